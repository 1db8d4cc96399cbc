# One command from a fresh machine to a trained model and its report; `make help` lists the rest.
# Nothing here needs root or an activated environment.

PYTHON ?= python3
# Where pip looks for torch besides its usual index. Plain pip gives a build that fits any machine but is made
# for CUDA and large; on machines without a GPU, name PyTorch's index of CPU builds: make TORCH_INDEX=URL
TORCH_INDEX ?=
# More settings for `make train`, and options for `make bench` and its kin:
# make train TRAIN="--train.steps 100"
TRAIN ?=
BENCH ?=

READY := .venv/.ready
DATA  := data/embedded
RUN   := runs/train-$(shell date +%Y%m%d-%H%M%S)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONNOUSERSITE := 1
# Ranks here are of this machine: more of them than cores is fine, and no ssh is needed to start them.
export OMPI_MCA_rmaps_base_oversubscribe := 1
ifeq ($(shell command -v ssh || true),)
export OMPI_MCA_plm := isolated
endif
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif

.DEFAULT_GOAL := help
.PHONY: help env train test bench bench-network bench-loss bench-kernels bench-reports lint clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20
	@echo
	@echo "PYTHON=...      the Python (3.11 or newer) that makes .venv; now: $(PYTHON)"
	@echo "TORCH_INDEX=URL a package index to look for torch in as well, such as PyTorch's CPU builds"

env: $(READY)  ## make .venv: pinned packages, and Horovod built for this machine

train: $(READY) $(DATA)/index.json  ## train a small GPT on 1 and on 2 ranks, and write the scaling report
	horovodrun -np 1 hvd-llm train gpt-tiny --run.device cpu --run.threads 1 --run.dir $(RUN)/n1 $(TRAIN)
	horovodrun -np 2 hvd-llm train gpt-tiny --run.device cpu --run.threads 1 --run.dir $(RUN)/n2 $(TRAIN)
	python -m analysis report $(RUN) --out $(RUN)/report
	@echo "Let the model write: .venv/bin/hvd-llm generate $(RUN)/n2 --prompt 'def read(path):'"
	@echo "The scaling report is $(RUN)/report/report.html"

# Two tests at a time, but for the suite on two to four ranks: ranks that wait take time from others.
test: lint  ## lint, then run every test
	pytest -n 2 tests/unit tests/parallel
	pytest tests/end_to_end/test_parallel.py
	pytest -n 2 --dist loadfile --ignore=tests/end_to_end/test_parallel.py tests/end_to_end
	pytest -n 2 tests/cluster

bench: $(READY) $(DATA)/index.json  ## side by side at 2 ranks: hvd_llm, stock Horovod, torch DDP
	python -m benchmarks.side_by_side $(BENCH)

bench-network: $(READY) $(DATA)/index.json  ## the same between 4 hosts with slow networks, made on this machine
	python -m benchmarks.network $(BENCH)

bench-loss: $(READY) $(DATA)/index.json  ## what compressing and meeting seldom costs in loss, between such hosts
	python -m benchmarks.loss $(BENCH)

bench-kernels: $(READY)  ## what compressors compute, beside a plain memory copy
	python -m benchmarks.kernels $(BENCH)

bench-reports: $(READY)  ## what reports of large runs cost: 1000 ranks, a timeline of 1 GB
	python -m benchmarks.reports $(BENCH)

lint: $(READY)  ## check style, format and the direction of imports
	ruff check .
	ruff format --check .
	lint-imports

clean:  ## remove .venv and caches; data/ and runs/ stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DATA)/index.json: | $(READY)
	hvd-llm prepare embedded --out $(DATA)

$(READY): setup.cfg constraints.txt $(wildcard hvd_llm/horovod_build/patience/*)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("PYTHON=$(PYTHON) is Python %d.%d; 3.11 or newer is needed" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments; run: apt install python3-venv"; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	python -m pip install --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[horovod,test]'
	hvd-llm install-horovod
	@touch $@
