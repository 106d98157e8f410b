"use strict";
// Shows the queries that the controls ask for. The choice stands in the address, as in
// #class=3&network=wrong or #query=17, so that it can be linked to.
(() => {
  const form = document.querySelector("form.controls");
  const status = form.querySelector("[role=status]");
  const queries = [...document.querySelectorAll("article.query")];
  const fields = ["class", "network", "query"]
    .map((name) => form.elements.namedItem(name))
    .filter((field) => field !== null);

  function show() {
    const wanted = fields.filter((field) => field.value !== "");
    let shown = 0;
    for (const query of queries) {
      query.hidden = wanted.some((field) => query.dataset[field.name] !== String(field.value));
      shown += query.hidden ? 0 : 1;
    }
    status.textContent = shown ? `${shown} of ${queries.length} queries shown` : why();
  }

  function why() {
    const index = form.elements.namedItem("query").value;
    if (index === "" || queries.some((query) => query.dataset.query === index)) {
      return `None of the ${queries.length} queries matches`;
    }
    const all = form.dataset.asked ? ` of ${form.dataset.asked}` : "";
    return `Query ${index} is not among the ${queries.length}${all} queries on this page`;
  }

  function readAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (!fields.some((field) => wanted.has(field.name))) return false; // that of a section
    for (const field of fields) {
      field.value = wanted.get(field.name) ?? "";
      if (field.selectedIndex === -1) field.selectedIndex = 0; // no such class
    }
    return true;
  }

  function writeAddress() {
    const chosen = fields.filter((field) => field.value !== "");
    const state = new URLSearchParams(chosen.map((field) => [field.name, field.value]));
    history.replaceState(null, "", `#${chosen.length ? state : "neighbours"}`);
  }

  function change() {
    show();
    writeAddress();
  }

  form.addEventListener("input", change);
  form.addEventListener("reset", () => setTimeout(change)); // after the fields are reset
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => readAddress() && show());
  form.hidden = false;
  if (readAddress()) form.scrollIntoView();
  show();
})();
