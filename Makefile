# make demo: a real sweep end to end on synthetic scenes. make test: everything that can be tested on this machine.
PYTHON ?= python3
BIN := .venv/bin
STORE ?= store
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test lint clean

demo: .venv/.installed
	$(BIN)/python -m sweeps run quickstart --store $(STORE)
	$(BIN)/python -m sweeps report quickstart --store $(STORE) -o $(STORE)/quickstart.html

test: .venv/.installed
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis store

# exact versions that install together: constraints.txt
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "idgbr needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 3; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
