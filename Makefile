# make lab, make test, make run, make book, make course, make gpu, make clean
#
# The environment is made in .venv when pyproject.toml or constraints.txt changed, and
# never otherwise. To use an interpreter that has the packages already (a GPU server):
#     make gpu USE=python3

PYTHON ?= python3
VENV ?= .venv

ifdef USE
PY := $(USE)
SETUP :=
else
PY := $(VENV)/bin/python
SETUP := $(VENV)/.made
endif

.PHONY: help lab test format run book course gpu clean constraints

help:
	@echo "make lab          JupyterLab on the first chapter"
	@echo "make test         format, lint, types, unit tests, all notebooks (tiny)"
	@echo "make run          all chapters at this machine's scale, then the claims"
	@echo "make book         the chapters as pages in book/_build/html"
	@echo "make course       a folder a student in course/, without solutions: STUDENTS=file"
	@echo "make gpu          GPU tests, benches and chapters; one CUDA device"
	@echo "make format       format the code and mend what lint can mend"
	@echo "make constraints  resolve the newest set that goes with torch TORCH="
	@echo "make clean        remove .venv and everything built"
	@echo "Add USE=python3 to take that interpreter as it is, with no .venv."

$(VENV)/.made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "zolab needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[all]"
	touch $@

# Jupyter refuses root, which is who one is in a container.
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

lab: $(SETUP)
	$(PY) -m jupyterlab $(ROOT) --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

test: $(SETUP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest

format: $(SETUP)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

run: $(SETUP)
	$(PY) -m zolab run --all --keep-going

book: $(SETUP)
	$(PY) -c 'from jupyter_book.cli.main import main; main()' build . --path-output book --config book/_config.yml \
	  --toc book/_toc.yml --warningiserror --keep-going

course: $(SETUP)
	$(PY) -m zolab course $(if $(STUDENTS),--students $(STUDENTS))

# -o addopts= : a GPU server has pytest, but hardly the notebook plug-in.
gpu: $(SETUP)
	$(PY) -m zolab doctor --scale gpu
	$(PY) -m pytest -o addopts= -ra -m gpu tests
	$(PY) -m zolab.bench --device cuda
	$(PY) -m zolab run --all --keep-going --scale gpu

# A fresh environment without constraints becomes the tested set. torch is named,
# because its newest Linux wheel may bring a CUDA of several gigabytes; so is triton,
# because a CUDA build of torch accepts exactly one version of it.
TORCH ?= 2.13.0
TRITON ?= 3.7.1
constraints:
	rm -rf $(VENV)-new
	$(PYTHON) -m venv $(VENV)-new
	$(VENV)-new/bin/python -m pip install --quiet "torch==$(TORCH)" \
	  "triton==$(TRITON); sys_platform == 'linux'" -e ".[all,peers]"
	$(VENV)-new/bin/python -m pip check
	$(VENV)-new/bin/python -m pip freeze --exclude-editable > $(VENV)-new/frozen
	(echo "# The exact set that was tested on Linux and Python 3.11: make constraints"; \
	  sed -e 's/+cpu$$//' -e "s/^triton==.*/&; sys_platform == 'linux'/" \
	  $(VENV)-new/frozen) > constraints.txt
	rm -rf $(VENV)-new

clean:
	rm -rf $(VENV) $(VENV)-new build book/_build *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
