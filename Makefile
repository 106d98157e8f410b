# Everything that needs doing has a target; `make help` lists them.
# PYTHON chooses the interpreter of .venv:  make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INPUTS := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench sanitize wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort | \
		while IFS="$$(printf '\t')" read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

$(STAMP): $(INPUTS)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
		{ echo "creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing pntk into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cli,analysis,test,dev]"
	@touch $@

demo: $(STAMP) ## train a small network, featurize it, and write a report to demo-output/
	$(BIN)/pntk demo --out demo-output

test: $(STAMP) ## run the tests, with the coverage of pntk/
	$(BIN)/python -m pytest --cov -n auto --dist worksteal

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## check the kernels against the reference, then time them
	$(BIN)/python -m benchmarks

# A copy of pntk with its own extension, so that the one in the tree stays as it is. pytest and not
# python -m pytest: that would put this directory, and its pntk, first.
SANITIZED := build/sanitize
LEVELS := portable avx2 avx512
RUNTIMES = $(foreach name,asan.so ubsan.so stdc++.so.6,$(shell $(CXX) -print-file-name=lib$(name)))
sanitize: $(STAMP) ## run the tests of the CPU kernels under the address and undefined sanitizers
	rm -rf $(SANITIZED)/pntk && mkdir -p $(SANITIZED) && cp -r pntk $(SANITIZED)/pntk
	rm -f $(SANITIZED)/pntk/_C* $(SANITIZED)/pntk/_cuda*
	PNTK_NATIVE=1 PNTK_CUDA=0 PNTK_SANITIZE=1 $(BIN)/python setup.py --quiet build_ext \
		--build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	for level in $(LEVELS); do \
		echo "sanitized kernels: $$level" && \
		PNTK_CPU_LEVEL=$$level PYTHONPATH=$(CURDIR)/$(SANITIZED) LD_PRELOAD="$(strip $(RUNTIMES))" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/pytest -q --capture=sys -p no:cacheprovider -m "not slow" \
			tests/projection/test_*native.py tests/projection/test_ops.py \
			tests/projection/test_bits.py || exit 1; \
	done

wheel: $(STAMP) ## build a wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls -l dist

clean: ## remove what was built, .venv excepted
	rm -rf build dist *.egg-info pntk/_C*.so pntk/_cuda*.so htmlcov .coverage demo-output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f $(STAMP)
