import json
import multiprocessing
import os
import pickle
import shutil
from dataclasses import replace
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch

from pntk.errors import StoreError
from pntk.store import DONE, MISSING, SKIPPED, FeatureStore, RowWriter, Shard, join
from pntk.store.create import describe_store
from pntk.store.joined import is_joined
from pntk.store.layout import text_checksum
from pntk.store.part import Part, open_part

DTYPES = ["float32", "float64", "float16"]


@pytest.fixture
def make_joined(tmp_path, make_header, values):
    """Ten rows in three shards, of which row 5, the only one of its shard, is skipped."""

    def make(dtype="float32"):
        whole = make_header(dtype=dtype)
        rows, columns = values(whole)
        for number, (start, stop) in enumerate(pairwise([0, 5, 6, 10])):
            header = replace(whole, rows=stop - start, shard=Shard(number, 3, start, 10))
            cells = {name: column[start:stop] for name, column in columns.items()}
            with RowWriter.open(tmp_path / f"{number}.h5", header) as writer:
                skipped = np.full(stop - start, start == 5)
                writer.write(np.arange(stop - start), rows[start:stop], cells, skipped)
        return join(tmp_path / "joined.h5", [tmp_path / f"{i}.h5" for i in range(3)])

    return make


@pytest.fixture
def joined(make_joined):
    return make_joined()


@pytest.fixture
def expected(make_header, held):
    def rows(dtype="float32"):
        found = held(make_header(dtype=dtype)).copy()
        found[5] = 0
        return found

    return rows


@pytest.fixture
def by_hand(make_header):
    """A file that joins what a list says, or that has this text for a list."""

    def write(path, listed, header=None, **attributes):
        header = header or make_header()
        text = listed if isinstance(listed, str) else json.dumps(listed)
        with h5py.File(path, "w", libver=("v108", "v110")) as file:
            describe_store(file, header)
            file.attrs["shards"] = np.bytes_(text)
            file.attrs["shards_crc32"] = text_checksum(text)
            for name, value in attributes.items():
                file.attrs[name] = value
        return path

    return write


def entry(path, **changes):
    part = open_part(path)
    found = {
        "file": path.name,
        "rows": part.layout.header.rows,
        "header_crc32": part.header_crc32,
    }
    return {**found, **changes}


# --- reading


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_store_of_all_rows(make_joined, make_header, values, expected, dtype):
    _, columns = values(make_header())
    store = FeatureStore(make_joined(dtype))
    rows = expected(dtype)
    assert store.header == make_header(dtype=dtype)
    assert (len(store), store.shape) == (10, (10, 6))
    assert store.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    for found in (store.numpy(), store.torch().numpy(), store.read(0, 10).numpy()):
        assert found.dtype == rows.dtype
        np.testing.assert_array_equal(found, rows)
    assert store.done.tolist() == [DONE] * 5 + [SKIPPED] + [DONE] * 4
    assert store.done.dtype == np.uint8
    assert (store.num_done, store.complete, store.skipped.tolist()) == (10, True, [5])
    np.testing.assert_array_equal(store.labels, columns["labels"])
    np.testing.assert_array_equal(store.column("reweighting"), columns["reweighting"])
    assert [file.name for file in store.files] == ["0.h5", "1.h5", "2.h5"]
    assert repr(store).endswith(f"joined.h5', 10/10 rows, k=6, {dtype}, 3 shards)")
    store.require_complete()
    assert store.verify().ok and store.verify().rows_checked == 10


def test_arrays_are_read_only_and_tensors_the_callers(joined):
    store = FeatureStore(joined)
    for rows in (store.numpy(), store.labels, store.done):
        with pytest.raises(ValueError, match="read-only"):
            rows[0] = 1
    store.torch().zero_()
    assert store.torch().any()


@pytest.mark.parametrize("use", ["numpy", "torch"])
def test_too_little_memory(joined, monkeypatch, use):
    monkeypatch.setattr("pntk.store.reader.available_memory", lambda: 239)
    store = FeatureStore(joined)
    message = (
        r"joined.h5: its rows take 240 bytes in memory and 239 are .* with read\(start, stop\)"
    )
    with pytest.raises(StoreError, match=message):
        getattr(store, use)()
    assert store.read(0, 10).shape == (10, 6)


def test_all_rows_are_held_once(joined, monkeypatch):
    """What is read goes into the result, and not through a copy of a shard."""
    outs = []
    read = Part.read

    def spy(self, name, first=0, last=None, out=None):
        outs.append((name, out is None))
        return read(self, name, first, last, out)

    store = FeatureStore(joined)
    monkeypatch.setattr(Part, "read", spy)
    store.torch()
    assert outs == [("features", False)] * 3


def test_damage_is_named_by_row_and_file(joined, flip):
    flip(joined.with_name("0.h5"), "features", 2)
    flip(joined.with_name("2.h5"), "labels", 0)
    flip(joined.with_name("2.h5"), "done", 3)
    store = FeatureStore(joined)
    report = store.verify()
    assert report.bad_rows == [2, 6, 9]
    assert (report.rows_checked, report.skipped, report.missing) == (9, 1, 0)
    starts = [
        r"row 2 (in 0.h5): checksum is 0x",
        r"row 6 (in 2.h5): checksum is 0x",
        f"row 9 (in 2.h5): done is {DONE ^ 1}, expected 0, 85 or 170",
    ]
    for message, start in zip(report.messages, starts, strict=True):
        assert message.startswith(start)
    checked = FeatureStore(joined, check=True)
    assert checked.read(3, 6).shape == (3, 6)
    with pytest.raises(StoreError, match=r"2.h5: row 0 is damaged"):
        checked[6]


def test_it_follows_the_writer_of_a_shard(joined, expected):
    store = FeatureStore(joined)
    with RowWriter.reopen(joined.with_name("2.h5")) as writer:
        writer.forget([1])
        assert store.done[7] == MISSING and not store.complete
        with pytest.raises(StoreError, match="1 of 10 rows are missing"):
            store.require_complete()
        assert store.verify().missing == 1
        again = np.arange(6, dtype=np.float32)[None]
        writer.write([1], again, {"labels": [77], "reweighting": [0.5]})
    assert store.complete and store.labels[7] == 77
    assert torch.equal(store[7], torch.arange(6.0))
    assert torch.equal(store[6], torch.from_numpy(expected()[6]))


def test_closed(joined):
    with FeatureStore(joined) as store:
        pass
    uses = (store.numpy, store.torch, store.verify, lambda: store[0], lambda: store.read(0, 1))
    for use in (*uses, lambda: store.labels, lambda: store.done, lambda: list(store)):
        with pytest.raises(StoreError, match=r"joined.h5: the store is closed; open it again"):
            use()
    assert "closed" in repr(store)


def test_pickle(joined, expected):
    copy = pickle.loads(pickle.dumps(FeatureStore(joined)))
    np.testing.assert_array_equal(copy.numpy(), expected())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork(joined, expected):
    store = FeatureStore(joined)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        rows = pool.map(store.__getitem__, range(10))
    np.testing.assert_array_equal(torch.stack(rows).numpy(), expected())


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_nothing_stays_open(joined):
    before = os.listdir("/proc/self/fd")
    store = FeatureStore(joined, check=True)
    store.torch(), store.labels, store.verify(), store[3]
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_is_joined(joined):
    assert is_joined(joined) and not is_joined(joined.with_name("0.h5"))


# --- other readers


def same_for_h5py(path, store):
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["done"][:], store.done)
        np.testing.assert_array_equal(file["labels"][:], store.labels)
        np.testing.assert_array_equal(file["reweighting"][:], store.column("reweighting"))
        rows = file["features"][:].astype(store.numpy().dtype)
        if "scales" in file:
            rows *= file["scales"][:][:, None]
        np.testing.assert_array_equal(rows, store.numpy())
        assert file["checksums"].shape == (10,) and file["checksums"][:].all()
        assert file.attrs["header"].decode() == store.header.to_json()
        assert file["features"].is_virtual


@pytest.mark.parametrize("dtype", DTYPES)
def test_h5py_sees_the_same_wherever_it_is(make_joined, tmp_path, monkeypatch, dtype):
    path = make_joined(dtype)
    same_for_h5py(path, FeatureStore(path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    same_for_h5py(path, FeatureStore(path))
    monkeypatch.chdir("/")
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    os.rename(tmp_path, moved)
    same_for_h5py(moved / "joined.h5", FeatureStore(moved / "joined.h5"))
    os.rename(moved, tmp_path)
    same_for_h5py(os.path.relpath(path), FeatureStore(os.path.relpath(path)))


def test_to_h5py_rows_of_an_absent_shard_are_missing(joined):
    joined.with_name("2.h5").unlink()
    with h5py.File(joined) as file:
        assert file["done"][:].tolist() == [DONE] * 5 + [SKIPPED] + [MISSING] * 4


# --- shards that are not what they were


def refused(path, message):
    with pytest.raises(StoreError, match=message):
        FeatureStore(path)


def test_absent_shard(joined):
    os.rename(joined.with_name("1.h5"), joined.with_name("moved.h5"))
    message = r"joined.h5: its shard 1.h5 is not in .*: put it back beside the file that joins it"
    refused(joined, message)
    os.rename(joined.with_name("moved.h5"), joined.with_name("1.h5"))
    assert FeatureStore(joined).complete


def test_another_shard_of_that_name(joined, make_store):
    shutil.copy(joined.with_name("0.h5"), joined.with_name("2.h5"))
    refused(joined, r"joined.h5: 2.h5 is not the shard that was joined \(its header differs\); put")


def test_shard_of_another_model(joined, make_store):
    other = make_store("other.h5", rows=4, weights="cd", shard=Shard(2, 3, 6, 10))
    os.replace(other, joined.with_name("2.h5"))
    refused(joined, r"2.h5 is not the shard that was joined")


def test_shard_made_anew(joined, make_store):
    """A file with the same header takes the place of the old one."""
    anew = make_store("anew.h5", rows=4, shard=Shard(2, 3, 6, 10), seed=3)
    os.replace(anew, joined.with_name("2.h5"))
    store = FeatureStore(joined)
    assert torch.equal(store[6:], FeatureStore(store.files[2]).torch())


def test_shard_replaced_while_open(joined):
    store = FeatureStore(joined)
    copy = joined.with_name("copy.h5")
    shutil.copy(joined.with_name("1.h5"), copy)
    os.replace(copy, joined.with_name("1.h5"))
    assert store[0].any()
    with pytest.raises(StoreError, match=r"1.h5: was replaced since it was opened; open it again"):
        store[5]


def test_truncated_shard(joined):
    path = joined.with_name("1.h5")
    path.write_bytes(path.read_bytes()[:-1])
    refused(joined, r"1.h5: .*truncated")


def test_shard_of_another_version(joined, edit):
    edit(joined.with_name("1.h5"), "format_version", 1)
    refused(joined, r"1.h5: format version 1, this pntk reads version 2; make it again")


def test_joined_file_of_a_newer_version(joined, edit):
    edit(joined, "format_version", 3)
    refused(joined, r"joined.h5: format version 3, this pntk reads version 2; upgrade pntk")


def test_moved_in_full(joined, tmp_path, expected):
    (tmp_path / "new").mkdir()
    for name in ("joined.h5", "0.h5", "1.h5", "2.h5"):
        shutil.move(tmp_path / name, tmp_path / "new" / name)
    np.testing.assert_array_equal(FeatureStore(tmp_path / "new" / "joined.h5").numpy(), expected())


def test_a_link_to_the_file_finds_the_shards(joined, tmp_path, expected):
    (tmp_path / "new").mkdir()
    os.symlink(joined, tmp_path / "new" / "link.h5")
    np.testing.assert_array_equal(FeatureStore(tmp_path / "new" / "link.h5").numpy(), expected())


# --- lists that want something else


@pytest.fixture
def places(tmp_path, full_store):
    """A folder to join in, with a store outside of it."""
    inside = tmp_path / "inside"
    inside.mkdir()
    return inside, full_store


def test_nothing_outside_is_read(places, by_hand, monkeypatch):
    inside, outside = places
    os.symlink(outside, inside / "link.h5")
    os.symlink("..", inside / "up")
    (inside / "sub").mkdir()
    names = [str(outside), "../full.h5", "sub/../../full.h5", "link.h5", "up/full.h5", "sub/.."]
    names += ["/etc/passwd", "..", "\0", "full.h5\0", "\ud800", str(inside / "full.h5")]
    monkeypatch.setattr("pntk.store.joined.open_part", lambda *_: pytest.fail("it was opened"))
    for name in names:
        path = by_hand(inside / "joined.h5", [entry(outside, file=name)])
        refused(
            path, r"joined.h5: its shard .* is no path below .*inside, and nothing else is read"
        )


def test_a_link_inside_is_followed(places, by_hand):
    inside, outside = places
    (inside / "sub").mkdir()
    shutil.copy(outside, inside / "sub" / "real.h5")
    os.symlink(inside / "sub" / "real.h5", inside / "link.h5")
    path = by_hand(inside / "joined.h5", [entry(outside, file="link.h5")])
    assert FeatureStore(path).files == [inside / "sub" / "real.h5"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a directory"),
        (".", "is a directory"),
        ("pipe", "is not a regular file"),
        ("text", "is not an HDF5 file"),
        ("nowhere/full.h5", "its shard nowhere/full.h5 is not in"),
        ("x" * 300, "its shard x+ is not in"),
        ("text/full.h5", "its shard text/full.h5 is not in"),
    ],
)
def test_what_is_no_store(places, by_hand, name, message):
    inside, outside = places
    os.mkfifo(inside / "pipe")
    (inside / "text").write_text("hello")
    refused(by_hand(inside / "joined.h5", [entry(outside, file=name)]), message)


def test_joined_files_hold_no_rows_for_others(joined, by_hand, make_header, tmp_path):
    """Neither another one nor the file itself."""
    listed = {"rows": 10, "header_crc32": text_checksum(make_header().to_json())}
    message = "joins shards and holds no rows itself, as a shard has to"
    refused(by_hand(tmp_path / "new.h5", [{"file": "joined.h5", **listed}]), message)
    refused(by_hand(tmp_path / "self.h5", [{"file": "self.h5", **listed}]), message)


def test_a_store_that_lists_itself_too(full_store, edit):
    """Which would be both kinds at once."""
    text = json.dumps([entry(full_store)])
    edit(full_store, "shards", text)
    edit(full_store, "shards_crc32", text_checksum(text))
    refused(full_store, "full.h5: joins shards and holds no rows itself")


ODD = ["10.0", "1e300", "NaN", "true", '"10"', "null", "[10]"]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "3",
        '"full.h5"',
        "[3]",
        '["full.h5"]',
        "[{}]",
        '[{"file": "full.h5", "rows": 10}]',
        '[{"file": "full.h5", "rows": 10, "header_crc32": 1, "start": 0}]',
        '[{"file": 3, "rows": 10, "header_crc32": 1}]',
        '[{"file": ["full.h5"], "rows": 10, "header_crc32": 1}]',
        '[{"file": null, "rows": 10, "header_crc32": 1}]',
        *(f'[{{"file": "full.h5", "rows": {n}, "header_crc32": 1}}]' for n in ODD),
        *(f'[{{"file": "full.h5", "rows": 10, "header_crc32": {n}}}]' for n in ODD),
    ],
)
def test_lists_of_something_else(tmp_path, full_store, by_hand, text):
    refused(by_hand(tmp_path / "j.h5", text), r"j.h5: its list of shards is damaged; join them aga")


def test_one_name_twice(tmp_path, full_store, by_hand, make_header):
    listed = [entry(full_store)] * 2
    refused(by_hand(tmp_path / "j.h5", listed, make_header(rows=20)), "list of shards is damaged")


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "1" * 10_000, "{'a': 1}"])
def test_lists_that_are_not_json(tmp_path, by_hand, text):
    refused(by_hand(tmp_path / "j.h5", text), r"j.h5: its list of shards is (not JSON|damaged)")


@pytest.mark.parametrize("number", [11, -10, 0, 10**30])
@pytest.mark.parametrize("field", ["rows", "header_crc32"])
def test_numbers_that_are_not_the_shards(tmp_path, full_store, by_hand, field, number):
    path = by_hand(tmp_path / "j.h5", [entry(full_store, **{field: number})])
    refused(path, r"full.h5 is not the shard that was joined")


@pytest.mark.parametrize("rows", [9, 11, 10**18])
def test_rows_that_do_not_add_up(tmp_path, full_store, by_hand, make_header, rows):
    path = by_hand(tmp_path / "j.h5", [entry(full_store)], make_header(rows=rows))
    refused(path, f"j.h5: its shards hold 10 rows and its header says {rows}; join them again")


def test_no_shards(tmp_path, by_hand):
    refused(by_hand(tmp_path / "j.h5", []), "its shards hold 0 rows and its header says 10")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 7}, "full.h5 holds other rows: width is 6 there and 7 in the others"),
        ({"dtype": "float64"}, "dtype is 'float32' there and 'float64' in"),
        ({"columns": {}}, "columns.labels is 'int64' there and 'absent' in"),
        ({"weights": "cd"}, "weights is 'ab12' there and 'cd' in"),
        ({"shard": Shard(0, 2, 0, 20)}, "joins shards and says that it is one; join them again"),
    ],
)
def test_header_of_something_else(tmp_path, full_store, by_hand, make_header, changes, message):
    refused(by_hand(tmp_path / "j.h5", [entry(full_store)], make_header(**changes)), message)


@pytest.mark.parametrize(
    "attributes",
    [
        {"shards": 3},
        {"shards": np.zeros(5)},
        {"shards": h5py.Empty("S10")},
        {"shards_crc32": 3},
        {"shards_crc32": np.bytes_("3")},
    ],
)
def test_attributes_of_another_type(tmp_path, full_store, by_hand, attributes):
    path = by_hand(tmp_path / "j.h5", [entry(full_store)], **attributes)
    refused(path, r"j.h5: the shards is damaged \(its checksum does not match\)")


def test_thousands_of_entries(tmp_path, full_store, by_hand, make_header):
    """The first that is not there ends it."""
    first = entry(full_store)
    listed = [first, *({**first, "file": f"{i}.h5"} for i in range(100_000))]
    path = by_hand(tmp_path / "j.h5", listed, make_header(rows=10**6))
    refused(path, r"its shard 0.h5 is not in")


def test_damaged_metadata_is_never_anything_but_a_store_error(joined):
    whole = joined.read_bytes()
    random = np.random.default_rng(0)
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))
    for place in random.choice(used, 150):
        content = bytearray(whole)
        content[place] ^= 1 << random.integers(8)
        joined.write_bytes(content)
        try:
            FeatureStore(joined).verify()
        except StoreError:
            continue
