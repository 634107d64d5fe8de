# `make demo` and `make test` work on a fresh clone with nothing but python3 (3.11 or later) and make.
# Variables: PYTHON (interpreter that makes the environment), OUT, SAMPLES, STEPS (of the demo), JOBS (of the tests).

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
OUT     ?= out/demo
SAMPLES ?= 8
STEPS   ?= 20

# The environment is set up again when the metadata or the pinned versions change, by content, not by date.
KEY     := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
STAMP   := $(VENV)/.installed-$(KEY)

PACKAGES := i2am storage pipeline analysis flows
SOURCES  := $(PACKAGES) tests $(wildcard benchmarks examples)

.PHONY: help setup demo paper test unit lint format bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo     embedded model, capture, analysis, report (OUT=$(OUT) SAMPLES=$(SAMPLES) STEPS=$(STEPS))"
	@echo "make paper    the paper's experiments on the embedded model: out/paper/index.html"
	@echo "make test     every check and every test"
	@echo "make unit     the tests alone; T=tests/storage for a part"
	@echo "make lint     ruff, import-linter, mypy"
	@echo "make format   format the sources"
	@echo "make bench    the benchmarks behind every claim of speed or size; BENCHES=marginals for one"
	@echo "make clean    remove environment, caches and outputs"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "i2am needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "the venv module is missing; on Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup
	$(BIN)/i2am demo --out $(OUT) --samples $(SAMPLES) --steps $(STEPS) --resume

paper: setup
	$(BIN)/i2am paper --out out/paper

test: lint unit

T ?= tests
JOBS ?= 2
unit: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(T)

lint: setup
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

BENCHES ?= codecs marginals reanalysis memory workers writers many records overhead witness table
bench: setup
	@for name in $(BENCHES); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit $$?; done

clean:
	rm -rf $(VENV) build out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
