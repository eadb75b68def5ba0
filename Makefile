# Everything from a clean clone: `make demo`, `make test`. Only Python 3.10+, venv and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
# A process a core, each with one thread: many threads for small tensors only wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bars clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## train on a real image, evaluate on its other half, write pictures and a report to runs/demo
	$(BIN)/mrcnn demo --out $(OUT)

test: $(VENV)/.installed-dev ## all tests: kernels in Triton's interpreter, then everything else
	TRITON_INTERPRET=1 $(PYTEST) -m interpreter
	$(PYTEST) -m "not interpreter"

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bars: $(VENV)/.installed-dev ## the long measurements, asked beside seen
	$(BIN)/python -m bench bars

clean: ## remove the environment and everything made
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed
