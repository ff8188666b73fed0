# Every target works from a fresh clone: the stamp file makes .venv once, and again when the pins change.
PYTHON ?= python3
VENV ?= .venv
RECIPE ?=
TTS_LIMIT ?= 4000
NBMAKE_TIMEOUT ?= 1200
PYTEST_FLAGS ?=
DEMO_FLAGS ?=

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
NOTEBOOKS = $(wildcard notebooks/[0-9]*.ipynb)
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup apt-lists chromium run test lab study figures slides bench demo check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# pip is upgraded first: the resolver of pip 23 was seen to backtrack for 20 minutes.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than Python 3.10: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable '.[lab,test]' --constraint constraints.txt
	@touch $@

setup: $(INSTALLED) ## make the environment in .venv

# Debian's package lists, where this machine has none yet and we may fetch them.
apt-lists:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1; \
		then apt-get update -qq || echo "apt-get update failed: Debian sources will be missing" >&2; fi

# Debian's browser, in which the web demo is tested; without it those tests skip.
chromium: apt-lists
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v chromium >/dev/null; then \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null || \
		echo "Chromium cannot be installed: the web demo is not tested in a browser" >&2; fi

run: setup apt-lists ## weights, corpus, every notebook, figures and the closing table
	$(PY) -m audiolm_utils weights
	$(PY) -m audiolm_utils data --tts-limit $(TTS_LIMIT)
	$(if $(NOTEBOOKS),$(PY) -m nbconvert --to notebook --execute --output-dir build/notebooks $(NOTEBOOKS))
	$(PY) -m audiolm_utils figures
	$(PY) -m audiolm_utils results

test: setup chromium ## all tests, slow ones and notebooks included
	AUDIOLM_FAST=1 $(PY) -m pytest tests $(if $(NOTEBOOKS),--nbmake --nbmake-timeout=$(NBMAKE_TIMEOUT) $(NOTEBOOKS)) $(PYTEST_FLAGS)

lab: setup ## JupyterLab, opened on the notebooks' table of contents
	$(PY) -m jupyterlab $(ROOT_FLAG) --LabApp.default_url=/lab/tree/notebooks/contents.ipynb

study: setup apt-lists ## train and measure every pocket recipe, resumable; RECIPE=name for one
	$(PY) -m audiolm_utils study $(RECIPE)

figures: setup ## regenerate figures/
	$(PY) -m audiolm_utils figures

slides: setup ## the presentation in build/slides: one file that opens without a network
	$(PY) tools/slides.py

bench: setup ## the performance tables, ratios in one run
	$(PY) -m audiolm_utils bench

demo: setup ## the web demo; DEMO_FLAGS="--host 0.0.0.0 --port 8000" lets other machines in
	$(PY) -m pip install --quiet --editable '.[demo]' --constraint constraints.txt
	$(PY) -m audiolm_utils demo $(DEMO_FLAGS)

check: setup ## ruff, format, types, notebooks
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) tools/check_notebooks.py $(NOTEBOOKS)

clean: ## remove .venv, build/ and tool caches; downloaded weights and audio stay in the cache
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
