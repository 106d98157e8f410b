# Everything that needs doing has a target; `make help` lists them.
# PYTHON chooses the interpreter of .venv:  make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INPUTS := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort | \
		while IFS="$$(printf '\t')" read -r name text; do printf '  make %-6s %s\n' "$$name" "$$text"; done

$(STAMP): $(INPUTS)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
		{ echo "creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing pntk into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cli,analysis,test,dev]"
	@touch $@

demo: $(STAMP) ## train a small network, featurize it, and write a report to demo-output/
	$(BIN)/pntk demo --out demo-output

test: $(STAMP) ## run the tests, with the coverage of pntk/
	$(BIN)/python -m pytest --cov

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## check the kernels against the reference, then time them
	$(BIN)/python -m benchmarks

wheel: $(STAMP) ## build a wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls -l dist

clean: ## remove what was built, .venv excepted
	rm -rf build dist *.egg-info pntk/_C*.so htmlcov .coverage demo-output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f $(STAMP)
