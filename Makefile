# The commands of the README. `make help` lists them.
# Everything is installed into .venv; nothing outside this folder is touched.

SHELL := /bin/sh
.SHELLFLAGS := -euc
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
# Set on the command line (make demo OUT=FOLDER); a variable of that name in the environment changes nothing.
OUT = results/demo
COHORT = cohort
WEIGHTS = models/demo/iccr_demo.safetensors
PRESET = quick

# The first Python >= 3.11 that can make a virtual environment; PYTHON=/path/to/python chooses another.
# The newest comes late: PyTorch may not have a build for it yet.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3 python; do \
	if "$$p" -c '$(USABLE)' >/dev/null 2>&1; then command -v "$$p"; break; fi; done)

.PHONY: help demo studio test debug docs oldest lint format type bench cohort clean distclean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime  ## faces from shipped test skulls, by the shipped demo model
	@$(PY) sample.py num_samples=3 out="$(OUT)" overwrite=true

studio: $(VENV)/.studio  ## the page in the browser: a skull goes in, faces and a report come out
	@$(PY) -m muti_control.studio

test: $(VENV)/.dev  ## the test suite, on two cores
	@$(PY) -m pytest -n 2 --dist loadfile

debug: $(VENV)/.runtime  ## every training stage and sampling, end to end, on tiny networks, in runs/debug_*
	@rm -rf runs/debug_autoencoder runs/debug_grain runs/debug_base runs/debug_control runs/debug_pipnet runs/debug_pix2pix runs/debug_guidance_decoder runs/debug_control_ini.safetensors
	@$(PY) train.py configs/debug/autoencoder.yaml
	@$(PY) train.py configs/debug/grain.yaml
	@$(PY) train.py configs/debug/base.yaml
	@$(PY) tool_add_control.py runs/debug_base/model.safetensors runs/debug_control_ini.safetensors 'branches=[skull]'
	@$(PY) train.py configs/debug/control.yaml
	@$(PY) train.py configs/debug/pipnet.yaml
	@$(PY) train.py configs/debug/pix2pix.yaml
	@$(PY) train.py configs/debug/guidance_decoder.yaml
	@$(PY) sample.py weights=runs/debug_control/model.safetensors out=runs/debug_faces overwrite=true

docs: $(VENV)/.docs  ## all pages as a site, in build/docs
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "open build/docs/index.html; its search works after: $(PY) -m http.server --directory build/docs"

oldest: $(VENV)/.dev  ## the test suite with the oldest releases that pyproject.toml admits, in .venv-oldest
	@test -d .venv-oldest || $(PY) -m venv .venv-oldest
	@$(PY) .ci/oldest.py > .venv-oldest/requirements.txt
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-oldest/requirements.txt
	@.venv-oldest/bin/python -m pytest

lint: $(VENV)/.dev  ## style and formatting, changing nothing
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: $(VENV)/.dev  ## mend style and formatting
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

type: $(VENV)/.dev  ## static types
	@$(PY) -m mypy

bench: $(VENV)/.dev  ## a model beside its controls, baselines and ceiling (COHORT=FOLDER WEIGHTS=FILE PRESET=quick|full)
	@test -f "$(COHORT)/split_data/test.json" || { \
		echo "no cohort in '$(COHORT)': run 'make cohort' first, or pass COHORT=FOLDER" >&2; exit 2; }
	@$(PY) evaluate.py "configs/evaluate/$(PRESET).yaml" weights="$(WEIGHTS)" data.root="$(COHORT)"

cohort: $(VENV)/.dev  ## make the synthetic cohort (COHORT=FOLDER)
	@$(PY) -m data.cohort "$(COHORT)" num_subjects=5000 seed=1 valid_subjects=250 test_subjects=500 ceiling=true num_workers=2

include configs/demo/train.mk

clean:  ## remove caches and results/demo; keeps .venv, runs/, weights and all other results
	@rm -rf results/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove the virtual environments too
	@rm -rf $(VENV) .venv-oldest

# A virtual environment that works is kept, whichever Python made it.
$(PY):
	@if [ -z '$(PYTHON)' ]; then \
		echo "No Python >= 3.11 with the venv module was found (tried python3.11 to python3.14, python3, python)." >&2; \
		echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or run: make PYTHON=/path/to/python3" >&2; \
		exit 2; fi
	@'$(PYTHON)' -c '$(USABLE)' || { \
		echo "'$(PYTHON)' cannot be used: $$('$(PYTHON)' --version 2>&1 || true); needed are Python >= 3.11 and its venv module." >&2; \
		exit 2; }
	@echo "making $(VENV) with $$('$(PYTHON)' --version) ($(PYTHON))"
	@'$(PYTHON)' -m venv $(VENV)

# pip is given the lists of pyproject.toml. Where all of it is installed already, pip needs no network and changes nothing.
LIST = import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print("\n".join(p["dependencies"] + [r for e in sys.argv[1:] for r in p["optional-dependencies"][e]]))

$(VENV)/.runtime: pyproject.toml | $(PY)
	@$(PY) -c '$(LIST)' > $(VENV)/requirements-runtime.txt
	@echo "installing what the programs need (the first time: some minutes, mostly PyTorch)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements-runtime.txt
	@touch $@

$(VENV)/.studio: pyproject.toml | $(PY)
	@$(PY) -c '$(LIST)' studio report cohort ct > $(VENV)/requirements-studio.txt
	@echo "installing what the studio needs (the first time: some minutes, mostly PyTorch)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements-studio.txt
	@touch $@ $(VENV)/.runtime

$(VENV)/.docs: pyproject.toml | $(PY)
	@$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(VENV)/requirements-docs.txt
	@$(PY) -m pip install --disable-pip-version-check -r $(VENV)/requirements-docs.txt
	@touch $@

$(VENV)/.dev: pyproject.toml | $(PY)
	@$(PY) -c '$(LIST)' dev cohort ct eval report studio docs > $(VENV)/requirements-dev.txt
	@echo "installing what the programs and their tests need (the first time: some minutes, mostly PyTorch)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements-dev.txt
	@touch $@ $(VENV)/.runtime
