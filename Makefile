# Two commands on a fresh machine with Python 3.11 or newer, git and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

# A picture of the quick start's test split, unseen in training, with its age and sex.
PICTURE := vlm/data/skin/ISIC_0000041.jpg
PERSON := age=40, sex=female

# A case of the demo's test split, unseen in training, with the values of its row in data/phantom/cases.csv.
CASE := phantom-7-00053
VITALS := glucose=12.2, bp=135/91, age=0.34

# Options of the demo's config, such as --train.precision fp32.
OPTIONS ?=

# Folders of the runs that `make release` takes; one that is missing is left out.
SKIN ?= runs/skin
DEMO ?= runs/demo
HAM10000 ?= runs/ham10000

.PHONY: help install skin demo demo-full test room coverage test-lowest soak lint release

help:
	@echo "make skin   install, train on real pictures of the skin, test, draft the report of an unseen one"
	@echo "make demo   the same on the synthetic cohort, every fact of which is known"
	@echo "make demo-full   the demo with more steps, and all its test cases in every comparison"
	@echo "make test   install and run the whole test suite"
	@echo "make room ROOM=model   the quick tests of one room, in a minute"
	@echo "make coverage   the same, and which lines no test runs; it takes longer"
	@echo "make test-lowest   install the oldest supported versions into .venv-lowest and run the test suite on them"
	@echo "make soak   the long statistical checks that make test samples"
	@echo "make release   write the release files in dist: wheel, source, the adapters of runs/demo and runs/ham10000"
	@echo "make docs   build the documentation in build/site; any warning is an error"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -m pip config list | grep -Eq '\.(index-url|no-index)='; then \
		echo "pip installs, since it has an index of its own"; $(PIP) -e '.[dev]'; \
	elif ! { $(PIP) 'uv>=0.13' && $(BIN)/uv pip install --system-certs --python $(BIN)/python -e '.[dev]'; }; then \
		echo "pip installs, since uv could not"; $(PIP) -e '.[dev]'; \
	fi
	@touch $@

skin: install
	$(BIN)/accelerate launch train_lora.py --config configs/skin.yaml --run.overwrite true
	@echo; echo 'infer.py --image $(PICTURE) --vitals "$(PERSON)"'; echo
	@$(BIN)/python infer.py --adapter runs/skin/adapter --image $(PICTURE) --vitals "$(PERSON)"
	@echo; echo "Made: runs/skin/adapter to share, runs/skin/report.html to look at"

demo-full: FULL := --run.name demo-full --loss.head_only_steps 240 --train.max_steps 400 --train.eval_steps 80 \
	--evaluation.ablation_cases 0 --evaluation.bootstrap_draws 2000
demo-full: install
	$(BIN)/accelerate launch train_lora.py --config configs/demo.yaml --run.overwrite true $(FULL)

demo: install
	$(BIN)/accelerate launch train_lora.py --config configs/demo.yaml --run.overwrite true $(OPTIONS)
	@echo; echo 'infer.py --image data/phantom/images/$(CASE).png --vitals "$(VITALS)"'; echo
	@$(BIN)/python infer.py --adapter runs/demo/adapter --image data/phantom/images/$(CASE).png --vitals "$(VITALS)"
	@echo; echo "Made:"
	@echo "  runs/demo/adapter           the adapter: share this folder"
	@echo "  runs/demo/metrics.json      what it does on unseen cases, with intervals"
	@echo "  runs/demo/predictions.jsonl every test case: reference, draft, probabilities"
	@echo "  runs/demo/table1.csv        the same for a spreadsheet"
	@echo "  runs/demo/report.html       the page that shows it"
	@echo "  runs/demo/figures           correlations and losses"

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

room: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow and not soak' tests/$(ROOM)

coverage: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov=vlm --cov-report=term:skip-covered

test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --disable-pip-version-check 'uv>=0.13'
	.venv-lowest/bin/uv pip install --system-certs --python .venv-lowest/bin/python --resolution lowest-direct -e '.[dev]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

soak: install
	$(BIN)/python -m pytest -m soak

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

release: install
	rm -rf dist
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")'
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	$(BIN)/python -m vlm.adapter.release dist skin=$(SKIN) demo=$(DEMO) ham10000=$(HAM10000)

.PHONY: docs
docs: install
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
