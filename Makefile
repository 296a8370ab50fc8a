# Needs Python 3.11-3.13, pip and make; everything else is set up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export OMP_NUM_THREADS ?= 1
.PHONY: run test coverage lint docs clean

# The main job: RLAR on the embedded thyroid phantom, to a table and a report.
run: $(VENV)/installed
	env -u OMP_NUM_THREADS $(BIN)/mtbench run --method rlar --out runs

# For two cores: a third process works while tests that kill or start others wait. Tests take from a
# millisecond to a minute: a process that has none left takes another's.
test: $(VENV)/tested lint
	$(BIN)/pytest -n 3 --dist worksteal --timeout 600 --durations=10 -rs

# The same tests, and which lines they reach: it takes half as long again.
coverage: $(VENV)/tested
	$(BIN)/pytest --cov --cov-report=term:skip-covered -n 2 --timeout 900

lint: $(VENV)/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, into docs/_build/html.
docs: $(VENV)/tested
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html

# pyradiomics 3.0.1 has no wheel and its setup.py imports numpy: hence the order, and no isolation.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch numpy setuptools wheel hatchling editables
	$(BIN)/pip install --quiet --no-build-isolation pyradiomics==3.0.1
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[thyroid]'
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[all]' --group dev
	$(BIN)/pip install --quiet --no-deps LibMTL==1.1.5  # a peer to compare with; it asks for torchvision
	touch $@

clean:
	rm -rf $(VENV)
