# Two commands on a fresh machine: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The torch that this tree was last tested with, and the torchvision that belongs to it (timm imports it): their builds
# must be of one kind. `make test TORCH="torch==2.6.0 torchvision==0.21.0"` tries another pair.
TORCH  ?= torch==2.13.0 torchvision==0.28.0
# Options for pip. For the small CPU builds of torch and torchvision, the index options that PyTorch's installation page
# shows for "CPU".
PIP_ARGS ?=
RUN    ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test soak lint types spelling audit docs format clean

help:  ## list what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(VENV)/.installed  ## create .venv and install the project into it

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("l2c needs Python 3.10 or newer, got %d.%d: run make PYTHON=/path/to/python3.10" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(TORCH) -e ".[dev]"
	@touch $@

demo: install  ## train routers on the bundled digits DiT, export, sample, report; then a bundled graph on emoji
	$(BIN)/l2c train hydra.run.dir=$(RUN)
	$(BIN)/l2c evaluate graph=$(RUN)/cache_graph.json hydra.run.dir=$(RUN)/report
	$(BIN)/l2c evaluate graph=dit_emoji_euler28 num_images=10 baselines=[fewer_steps] timing_batch=2 timing_repetitions=1 \
		hydra.run.dir=$(RUN)/emoji

test: install  ## run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

soak: install  ## the long tests at their whole length: wrong settings, damaged files, kills, full disks, threads (hours)
	$(BIN)/python -m pytest tests/soak tests/training/test_runs.py tests/training/routers/test_distributed.py --soak

lint: install  ## ruff: lint, docstrings, format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy on the package, the scripts and the entry
	$(BIN)/mypy

spelling: install  ## codespell
	$(BIN)/codespell

audit: install  ## pip-audit: known vulnerabilities of what is installed, by osv.dev; needs the network
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) "pip-audit>=2.7"
	$(BIN)/pip-audit --local --skip-editable --vulnerability-service osv --progress-spinner off

docs: install  ## build the site into build/site, warnings being errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: install  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and what runs wrote
	rm -rf $(VENV) build runs .pytest_cache .mypy_cache .ruff_cache
