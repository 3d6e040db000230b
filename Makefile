# `make demo` prunes the model that ships with spa; `make test` runs every check.
# Both set up a local .venv first and need only Python >= 3.10 and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The Pythons that have exporters (see models/zoo/__main__.py), an optimiser's last; where the files
# go; how many run at once; seconds for each.
ZOO_PYTHONS ?= $(BIN)/python
ZOO ?= build/zoo
JOBS ?= $(shell nproc)
LIMIT ?= 600

.PHONY: demo test lint fuzz mutation docs bench bench-quality zoo clean

$(BIN)/spa: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(BIN)/spa

demo: $(BIN)/spa
	$(BIN)/spa demo

test: $(BIN)/spa lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

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

zoo: $(BIN)/spa
	$(BIN)/python -m benchmarks.zoo $(ZOO_PYTHONS:%=--python %) --cache $(ZOO) --jobs $(JOBS) \
		--timeout $(LIMIT)

bench: $(BIN)/spa
	$(BIN)/python -m benchmarks.speed

# Hours; what is done is kept in build/. QUALITY=--quick takes minutes.
bench-quality: $(BIN)/spa
	$(BIN)/python -m benchmarks.quality $(QUALITY)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
