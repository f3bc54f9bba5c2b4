# Every result of the study, from an empty machine: `make help` lists what there is to make.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PROFILE ?= reference
BASE_PYTHON ?= python3
# DATA=path: study and train on data of one's own, under the name of its folder.
ifdef DATA
override PROFILE := $(notdir $(abspath $(DATA)))
endif

BIN := .venv/bin
PYTHON := $(BIN)/python
INSTALLED := .venv/requirements.lock
RESULTS := results/$(PROFILE)
TEST_DATA := data/$(PROFILE)/testing.json
TRAINING_DATA := data/$(PROFILE)/training.json
# What the lecture on training trains on, whatever the profile.
LESSON_DATA := data/smoke/training.json

NOTEBOOKS := $(sort $(wildcard notebooks/[0-9][0-9]_*.ipynb))
EXECUTED := $(NOTEBOOKS:%=$(RESULTS)/%)
LIBRARY := $(shell find lib -type f -not -path '*/__pycache__/*' -not -name '*.md')
WEIGHTS := $(wildcard $(RESULTS)/checkpoints/*)
PREDICTIONS := $(RESULTS)/predictions/complete
# What every notebook is made from, besides itself and the notebook before it.
INPUTS := $(LIBRARY) $(INSTALLED) $(TEST_DATA) $(LESSON_DATA) $(WEIGHTS) $(PREDICTIONS)

# One thread per free core unless the caller knows better.
export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),$(shell $(BASE_PYTHON) -m lib.cores 2> /dev/null || getconf _NPROCESSORS_ONLN))
# OFFICIAL=file: the published weights, as one more row of the tables.
ifdef OFFICIAL
export UMETRACK_WEIGHTS := $(abspath $(OFFICIAL))
endif
# As lib/__init__.py says it, for programs that load torch before lib.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo 'PROFILE=smoke makes the toy size instead of PROFILE=reference.'

# ---- environment ----------------------------------------------------------------------------------------------------

# The copy of the lock file is written last: it says that all of it is installed. Two makes at once install once, where
# there is flock.
$(INSTALLED): requirements.lock
	@exec 9> .venv.lock; ! command -v flock > /dev/null || flock 9; \
	if [ ! -f $@ ] || [ $< -nt $@ ]; then $(MAKE) --no-print-directory install; fi

.PHONY: install
install: requirements.lock
	@if command -v uv > /dev/null; then $(install_with_uv); else $(install_with_pip); fi
	@printf '%s\n' "$$PWD" "$$on_start" > \
		"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/umetrack-study.pth"
	@mkdir -p .venv/etc/ipython && echo 'c.IPKernelApp.log_level = "ERROR"' > .venv/etc/ipython/ipython_kernel_config.py
	@cp $< $(INSTALLED)

# The .pth file lets notebooks import lib, and lets their kernels wait passively although they load torch before it. The
# kernels warn of nothing but errors: not of each port that they open on this machine.
export on_start = import os; os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Makes .venv/bin/umetrack. What builds it is in the lock: nothing more is downloaded.
this_folder = --quiet --no-deps --no-build-isolation --editable .

# uv does not read pip's settings: hand it the folders with wheels that pip is told about.
FIND_LINKS = $(or $(PIP_FIND_LINKS),$(shell $(BASE_PYTHON) -m pip config get global.find-links 2> /dev/null))
install_with_uv = uv venv --clear .venv && \
	uv pip install --python $(PYTHON) $(addprefix --find-links ,$(FIND_LINKS)) --requirement $< && \
	uv pip install --python $(PYTHON) $(this_folder)

install_with_pip = $(check_python) && \
	{ $(BASE_PYTHON) -m venv --clear .venv || { echo 'On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }; } && \
	$(PYTHON) -m pip install --disable-pip-version-check --requirement $< && \
	$(PYTHON) -m pip install --disable-pip-version-check $(this_folder)

check_python = { $(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	echo 'Python 3.11 or newer is needed, but $(BASE_PYTHON) is' "$$($(BASE_PYTHON) --version 2> /dev/null || echo missing)." \
	'Install one and name it (make BASE_PYTHON=python3.12 ...), or install uv.' >&2; exit 1; }; }

.PHONY: lock
lock: ## pin the newest versions that pyproject.toml allows (needs uv)
	uv pip compile pyproject.toml --group dev --universal --fork-strategy fewest --no-annotate --quiet \
		--custom-compile-command 'make lock' > lock.partial
	grep -vE '^(nvidia-|cuda-|triton)' lock.partial > requirements.lock  # torch's CUDA build pins these itself
	rm lock.partial

# ---- study ----------------------------------------------------------------------------------------------------------

.PHONY: study
ifndef DATA
study: $(EXECUTED) ## run every notebook: all tables and figures of results/PROFILE; DATA=path: tables of other data
else
# Networks that were trained on this data are preferred to the released ones. One that fails does not stop the rest.
OWN_WEIGHTS = $(wildcard $(RESULTS)/checkpoints)
study: $(INSTALLED)
	$(PYTHON) -m lib survey $(DATA)
	$(PYTHON) -m lib evaluate $(DATA) --method all --output $(RESULTS)/evaluation \
		$(addprefix --weights ,$(OWN_WEIGHTS)) $(addprefix --official ,$(OFFICIAL))
	@mkdir -p $(RESULTS)/notebooks
	$(PYTHON) -m lib.study.notebooks notebooks/01_data_inspection.ipynb $(RESULTS)/notebooks/01_data_inspection.ipynb \
		$(PROFILE) data=$(abspath $(DATA))
endif

# What is there already is kept, if it was made from the same weights and data.
.PHONY: anew
$(PREDICTIONS): $(LIBRARY) $(INSTALLED) $(TEST_DATA) $(WEIGHTS) $(if $(OFFICIAL),anew)
	@echo '== predictions'
	@$(PYTHON) -m lib predict --profile $(PROFILE)
	@touch $@

# Each notebook waits for the one before it.
$(foreach notebook,$(EXECUTED),$(eval $(notebook): $(previous))$(eval previous := $(notebook)))

$(RESULTS)/notebooks/%.ipynb: notebooks/%.ipynb $(INPUTS)
	@echo "== $<"
	@$(PYTHON) -m lib.study.notebooks $< $@ $(PROFILE)

.PHONY: notebooks
notebooks: study ## run the study, keep its notebooks and the pages of results as the ones to commit
	$(if $(filter-out reference,$(PROFILE)),$(error only the reference profile's notebooks are committed))
	cp -p $(EXECUTED) notebooks/
	$(PYTHON) -m lib results

# What is executed already is not executed again.
.PHONY: report
report: $(INSTALLED) ## make a book of the executed notebooks and pages: results/report/index.html
	@[ ! -f $(TEST_DATA) ] || [ -f $(RESULTS)/report/hands.html ] || \
		$(PYTHON) -m lib viewer --profile $(PROFILE) --output $(RESULTS)/report/hands.html
	$(PYTHON) -m lib report --profile $(PROFILE)

.PHONY: smoke
smoke: ## train and run the study at toy size
	$(MAKE) train PROFILE=smoke
	$(MAKE) study PROFILE=smoke

.PHONY: data
data: $(TEST_DATA) ## render the test recordings (three minutes)

# Rendering keeps what is there and checks that it is of this version, so the index is the stamp.
data/%/testing.json: | $(INSTALLED)
	$(PYTHON) -m lib render --profile $* --split test --output $(@D)

data/%/training.json: | $(INSTALLED)
	$(PYTHON) -m lib render --profile $* --split train --output $(@D)

ifdef DATA
.PHONY: $(TRAINING_DATA)  # imported anew whenever it is asked for: what is there is kept
$(TRAINING_DATA): $(INSTALLED)
	$(PYTHON) -m lib import $(DATA) --name $(PROFILE)
endif

# Where there is no training data, nothing was trained and there is nothing to tune.
.PHONY: train
train: $(INSTALLED) $(if $(DATA),$(TRAINING_DATA)) ## train every experiment, or go on with it; MINUTES=10, DATA=path
	@$(MAKE) $$($(PYTHON) -m lib experiments --profile $(PROFILE) | sed -E 's|([^ ]+).*|$(RESULTS)/checkpoints/\1.safetensors|')
	[ ! -f $(TRAINING_DATA) ] || [ -n "$(DATA)" ] || { $(PYTHON) -m lib tune --profile $(PROFILE) && \
		$(PYTHON) -m lib fit-confidence --profile $(PROFILE) --weights $(RESULTS)/checkpoints/full_temporal_loss.safetensors; }

# The data is asked for here, not as a prerequisite: weights that are there need none.
$(RESULTS)/checkpoints/%.safetensors:
	$(if $(DATA),,$(MAKE) $(TRAINING_DATA))
	$(PYTHON) -m lib train $* --profile $(PROFILE) --resume $(addprefix --minutes ,$(MINUTES))

# ---- checks ---------------------------------------------------------------------------------------------------------

.PHONY: test lint test-library test-tables test-notebooks
test: lint test-library test-tables test-notebooks ## check everything: lint, tests, released tables, stored outputs

lint: $(INSTALLED) ## check the code's form, in notebooks too
	@echo '== lint'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# Pages are tested in a browser; where none can be installed, these tests are skipped, with a reason.
.PHONY: chromium
chromium: ## install Chromium, which the tests of pages need
	@command -v chromium chromium-browser google-chrome google-chrome-stable > /dev/null || $(install_chromium)
install_chromium = if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	apt-get install -qq -y --no-install-recommends chromium > /dev/null; then :; \
	else echo 'No Chromium: tests of pages are skipped. On Debian: apt install chromium' >&2; fi

# Two halves at once, each on one thread.
TESTS := $(sort $(wildcard tests/test_*.py))
HALF = $(shell printf '%s\n' $(TESTS) | awk 'NR % 2 == $(1)')
test-library: $(INSTALLED) chromium
	@echo '== tests of the library'
	@$(PYTHON) -m pytest -p no:cacheprovider $(call HALF,0) & other=$$!; \
	$(PYTHON) -m pytest -p no:cacheprovider $(call HALF,1); mine=$$?; wait $$other && exit $$mine

# Before the notebooks, which write the tables anew.
test-tables: $(PREDICTIONS)
	@echo '== released tables'
	@TQDM_DISABLE=1 $(PYTHON) -m pytest tests/study_tables.py

# The stored outputs of cells tagged nbval-check-output must come out again; cells without the tag must run.
test-notebooks: $(PREDICTIONS) $(LESSON_DATA) | test-tables
	@echo '== stored outputs of the notebooks'
	@TQDM_DISABLE=1 $(PYTHON) -m pytest --nbval-lax --nbval-current-env $(NOTEBOOKS)

# ---- around it ------------------------------------------------------------------------------------------------------

.PHONY: lab
lab: $(INSTALLED) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

.PHONY: clean
clean: ## remove rendered data, executed notebooks, reports and caches (the environment: rm -r .venv)
	rm -rf data/*/ results/*/notebooks results/report results/*/report results/smoke .pytest_cache .ruff_cache
	find lib tests notebooks -name __pycache__ -prune -exec rm -rf {} +
