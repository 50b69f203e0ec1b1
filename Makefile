# make help lists the targets. Everything runs in .venv, which `setup` makes once.
SHELL := bash
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.10 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
READY := .venv/ready

.PHONY: help setup train test soak bench fuzz lint format audit wheel clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1\t/' | expand -t 10

setup: $(READY) ## a .venv with the exact versions of constraints.txt

# torch first and by its exact version: asked for in any other way, pip may bring several GB of CUDA packages.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.13 found; type make PYTHON=path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[dev]'
	@touch $@

train: setup ## train bert_small to the end
	$(BIN)/python -m lit_tfm.train experiment=bert_small

test: setup ## the test suite (two processes, one thread each)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

soak: setup ## the long tests as well
	LIT_TFM_EXAMPLES=1000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'slow or not slow'

FUZZED := text csv jsonl cache tokenizer checkpoint run_folder yaml
SECONDS_EACH ?= 600

fuzz: setup ## fuzz every reader of foreign bytes, 10 minutes each (SECONDS_EACH=60: one minute)
	$(PIP) --editable '.[fuzz]'
	for name in $(FUZZED); do $(BIN)/python fuzz/run.py $$name --seconds $(SECONDS_EACH) || exit $$?; done

# A path of DATA: folders wikitext-2, tinyshakespeare, emotion, sst2. Each writes its table into benchmarks/RESULTS.md.
DATA ?= ../shared/data
STEP_BENCHMARKS := \
	"throughput.py --quick data.path=$(DATA)/wikitext-2" \
	"nanogpt_step.py --quick data.path=$(DATA)/wikitext-2" \
	"framework_cost.py --quick data.path=$(DATA)/tinyshakespeare" \
	"mixed_lengths.py --quick --sets emotion=$(DATA)/emotion sst2=$(DATA)/sst2 --" \
	"memory.py --quick data.path=$(DATA)/wikitext-2" \
	"extras_cost.py --quick data.path=$(DATA)/tinyshakespeare"

START_BENCHMARKS := \
	"data_preparation.py --quick --path $(DATA)/wikitext-2" \
	"start_up.py --quick --path $(DATA)/wikitext-2" \
	"distributed.py --quick --path $(DATA)/wikitext-2"

LEARNING_BENCHMARKS := \
	"time_to_loss_char.py --quick --path $(DATA)/tinyshakespeare/input.txt" \
	"time_to_loss_mlm.py --quick --path $(DATA)/wikitext-2" \
	"time_to_accuracy.py --quick --path $(DATA)/emotion"

bench: setup ## the CPU benchmarks, shortened
	@set -e; for line in $(STEP_BENCHMARKS) $(START_BENCHMARKS) $(LEARNING_BENCHMARKS); do echo "== $$line"; $(BIN)/python benchmarks/$$line; done

lint: setup ## ruff
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

format: setup ## let ruff rewrite
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

audit: setup ## ask pip-audit whether a version of constraints.txt is known to be bad; needs a network
	$(PIP) --editable '.[audit]'
	$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip

wheel: setup ## build dist/*.whl
	$(BIN)/python -m build --wheel --outdir dist .

clean: ## remove what setup and builds made
	rm -rf .venv dist build *.egg-info

print-python:
	@echo $(PYTHON)
