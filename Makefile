# make train, make test: each sets up .venv first where that is missing or out of date
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3.10 python3 python; do \
  $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
ARGS ?=
# compiled files beside the environment: none in the tree, and no process compiles torch anew
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/$(VENV)/pycache
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train evaluate test slow lint docs endurance mutants clean help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: $(READY)  ## train the default experiment; ARGS="seed=1 ..." is handed on
	$(RUN) train.py $(ARGS)

evaluate: $(READY)  ## evaluate; ARGS="checkpoint=PATH"
	$(RUN) evaluate.py $(ARGS)

test: $(READY)  ## the quick tests, some minutes on two cores
	$(RUN) -m pytest -n 2 -m "not slow" $(ARGS)

slow: $(READY)  ## the tests that make test leaves out
	$(RUN) -m pytest -n 2 -m slow $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(READY)  ## the documentation as a site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict -f docs/site/mkdocs.yml

endurance: $(READY)  ## an hour: killed evaluations and runs resume, two machines are one run, memory stays flat; ARGS="SEED ROUNDS"; commit the results
	$(RUN) -m tests.endurance.evaluation $(ARGS)
	$(RUN) -m tests.endurance.training $(ARGS)
	$(RUN) -m tests.endurance.machines $(ARGS)
	$(RUN) -m tests.endurance.memory $(ARGS)

mutants: $(READY)  ## an hour: mutation tests of the core, a sample of mutmut's mutants; commit the result
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.mutants $(ARGS)

clean:  ## remove the environment, caches and builds; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# the stamp holds the requirements the environment was made from, so that a changed pin makes it anew
$(READY): requirements.txt
	@test -n "$(PYTHON)" || { echo "error: no Python from 3.10 to 3.13 found; install one or give PYTHON=/path/to/python3.12" >&2; exit 1; }
	@cmp -s requirements.txt $(READY) || { \
	  $(PYTHON) -m venv --clear $(VENV) \
	    || { echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }; \
	  $(RUN) -m pip install --quiet --disable-pip-version-check uv==0.13.9 && \
	  $(RUN) -m uv pip install --quiet --python $(RUN) -r requirements.txt; }
	@cp requirements.txt $(READY)
