# Everything a reader or an author does. Each target makes the environment if it is missing;
# when it is there, that check takes a fraction of a second.
#   make lab PYTHON=python3.12     another Python than the first suitable one found
#   make test VENV=FOLDER          another place for the environment

VENV   ?= .venv
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done),python3)

SETUP := $(PYTHON) llmcourse/bootstrap.py --venv $(VENV)
RUN   := $(VENV)/bin/python
ROOMS := tests --ignore=tests/notebooks --ignore=tests/browser --ignore=tests/benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup lab test browser book lint format bench check notebooks readme clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make the environment, fetch the model, ask it one question
	@$(SETUP)

lab: ## set up what is missing and open the course in JupyterLab
	@$(SETUP)
	@$(RUN) -m llmcourse lab

test: ## unit tests in random order, then every notebook through nbval; coverage of both
	@$(SETUP) --extra test book
	$(RUN) -m pytest $(ROOMS) --cov --cov-report=
	$(RUN) -m pytest tests/notebooks --cov --cov-append --cov-report=term

browser: ## JupyterLab and the built site in headless Chromium
	@$(SETUP) --extra test book
	$(RUN) -m pytest tests/browser

book: ## the website, in book/_build/html
	@$(SETUP) --extra book --no-answer
	$(RUN) book/build.py

lint: ## ruff and mypy
	@$(SETUP) --extra dev --no-answer
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: ## let ruff reformat the code
	@$(SETUP) --extra dev --no-answer
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: ## the course's engine against llama.cpp and others; writes build/bench.json (BENCH="--rounds 1")
	@$(SETUP) --extra test
	$(RUN) -m tests.benchmarks
	$(RUN) -m tests.benchmarks.decode $(BENCH)

check: lint test ## what to run before a pull request

notebooks: ## execute the notebooks again and store their outputs
	@$(SETUP) --extra test
	$(RUN) tests/notebooks/execute.py $(NOTEBOOKS)

readme: ## write the generated parts of README.md anew
	@$(SETUP) --extra test --no-answer
	$(RUN) tests/readme.py

clean: ## remove what was built; keeps the environment, the model and the workspace
	rm -rf book/_build build dist .pytest_cache .ruff_cache .mypy_cache .coverage .coverage.*
