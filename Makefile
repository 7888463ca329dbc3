# make demo   sets up .venv once, with what the demo needs and no test tools, and runs the main job on embedded data
# make test   sets up .venv with the test tools as well, then runs the tests
# make test-slow   the long tests, which `make test` leaves out
# make test-cluster   the tests of sequences on Ray and Slurm and of runs on Flower, with their long trainings; installs
#   Ray (70 MB) and Flower as well.
#   `make test` leaves those of Ray out: a cluster takes seconds to start, and minutes on a machine that is busy
# make docs   the same set-up, then builds the documentation into docs/_build/html
# make resolve   checks that every extra resolves for Python 3.10, 3.11 and 3.12, without installing anything
# make release   builds wheel and sdist into dist/, and trains from each in a clean environment
# make lint   formatter, linter and type checker
#
# The workers of pytest begin with one stretch of the tests each, so that few session fixtures are made twice, and one
# that is done takes over half of what another still has (worksteal): no long file is left to a single core at the end.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo

.PHONY: demo test test-slow test-cluster docs resolve release lint clean
.DELETE_ON_ERROR:

$(STAMP): pyproject.toml .ci/install
	.ci/install $(VENV) dev $(PYTHON)
	touch $@ $(DEMO_STAMP)

$(DEMO_STAMP): pyproject.toml .ci/install
	.ci/install $(VENV) demo $(PYTHON)
	touch $@

demo: $(DEMO_STAMP)
	$(BIN)/reuse-algos demo

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-slow: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m slow

test-cluster: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[ray,slurm,federated]"
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_cluster_launchers.py tests/test_federated.py

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -b html -d docs/_build/trees docs docs/_build/html

resolve:
	.ci/resolve $(PYTHON)

release: resolve
	.ci/release $(PYTHON)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) demo dist docs/_build
