# `make demo` prunes the model that ships with spa; `make test` runs every check.
# Both set up a local .venv first and need only Python >= 3.10 and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint fuzz mutation docs bench clean

$(BIN)/spa: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(BIN)/spa

demo: $(BIN)/spa
	$(BIN)/spa demo

test: $(BIN)/spa lint
	$(BIN)/python -m pytest -n auto

lint: $(BIN)/spa
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(BIN)/spa
	SPA_FUZZ_EXAMPLES=10000 $(BIN)/python -m pytest -n auto \
		tests/test_random_graphs.py tests/test_over_tying.py

mutation: $(BIN)/spa
	$(BIN)/python -m benchmarks.mutation --report docs/mutation.md

docs: $(BIN)/spa
	$(BIN)/python docs/generate.py

bench: $(BIN)/spa
	$(BIN)/python -m benchmarks.speed

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
