# Each target works on a fresh clone: .venv is made when it is missing or its requirements change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
READY_SLURM := $(VENV)/.installed-slurm

.PHONY: demo test soak test-slurm bench lint docs clean

## demo: the default study (generated CT phantoms, CPU, offline), then its decisions
demo: $(READY)
	$(BIN)/snakemake --cores all
	@cat results/tables/phantom/comparisons.md
	@echo "Report: results/reports/phantom.html"

## test: linters, type checks, then all tests
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

## soak: what takes minutes each: studies that share, cohorts, 200 jobs, every network in every form (an hour)
soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m soak

## test-slurm: a study on a real SLURM with three virtual nodes, through faults (Debian, as root)
test-slurm: $(READY_SLURM)
	tests/slurm/lab.sh start && OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/slurm; \
	result=$$?; tests/slurm/lab.sh purge; exit $$result

## bench: every stage against its peers, in turns; the table of docs/performance.md (three quarters of an hour)
bench: $(READY)
	$(BIN)/python bench/all.py

## lint: style, types (of kdpipe and bench), and Snakemake's own advice
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --lint
	$(BIN)/mypy

## docs: a page for each method and network, from its docstring and parameters
docs: $(READY)
	$(BIN)/kdpipe docs --out docs

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

$(READY_SLURM): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,slurm]"
	@touch $@

## clean: remove what the study made; data and environment stay
clean:
	rm -rf results/*/ logs benchmarks .snakemake
