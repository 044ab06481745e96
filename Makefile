# What a newcomer types; `make` alone lists it. Needs python3 (3.11) and make, and a package index that pip can reach.
SHELL  := /bin/sh
VENV   := .venv
BIN    := $(VENV)/bin
DOCS   := .venv-docs
PYTHON ?= python3
SCALE  ?= quick
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ifeq ($(filter smoke quick paper,$(SCALE)),)
$(error SCALE is smoke, quick or paper, not '$(SCALE)')
endif

.DEFAULT_GOAL := help
.PHONY: help report check test matrix lab readme book setup clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

report: $(VENV)/.ready ## the results table: train what has no record yet, then build reports/ [SCALE=smoke|quick|paper]
	@$(BIN)/molrec report --scale $(SCALE)
	@$(BIN)/python tests/sync.py readme >/dev/null || $(MAKE) -s readme

check: $(VENV)/.ready ## under a minute: modules in sync, notebooks clean and formatted, the quickest tests
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/run.sh quick

test: $(VENV)/.ready ## modules and notebooks in order, every notebook's lessons, then pytest
	@tests/run.sh

matrix: ## the oldest and the newest versions that the package allows, on every Python there is (5 GB each)
	@tests/matrix.sh

lab: $(VENV)/.ready ## JupyterLab on the notebooks; its root is the project's, so that figures and records are within reach
	@$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb

readme: $(VENV)/.ready ## README.md from nbs/index.ipynb, with the results table as it is now
	@echo "README.md from nbs/index.ipynb"
	@cd nbs && ../$(BIN)/jupyter nbconvert --log-level ERROR --execute --inplace --to notebook index.ipynb
	@$(BIN)/nbdev_clean --fname nbs/index.ipynb
	@$(BIN)/jupyter nbconvert --log-level ERROR --config nbs/readme_config.py --to markdown --output-dir . --output README nbs/index.ipynb

book: $(DOCS)/.packages ## the notebooks, guides and tables as a book, in _docs/book/index.html
	@$(DOCS)/bin/python nbs/book/stage.py _docs/source
	@$(DOCS)/bin/python -m sphinx -q -W --keep-going -j auto -d _docs/.doctrees _docs/source _docs/book
	@echo "_docs/book/index.html"

setup: $(VENV)/.ready ## the environment alone, in .venv (about 2 GB)

clean: ## remove caches, checkpoints and executed notebooks; records, reports and .venv stay
	@rm -rf work _docs .cache .pytest_cache .hypothesis .ruff_cache .ipynb_checkpoints nbs/.ipynb_checkpoints build dist *.egg-info
	@find molrec nbs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. Each stamp is written last, so a set-up that was cut off is never taken for a finished one.
# .packages is a copy of the requirements.txt it was made from: only another content, not another date, makes a new one.
$(VENV)/.packages: requirements.txt
	@set -e; \
	if cmp -s requirements.txt $@; then touch $@; exit 0; fi; \
	for python in $(PYTHON) python3.11 none; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then break; fi; \
	done; \
	if [ "$$python" = none ]; then \
	    echo "molrec's versions fit Python 3.11, and '$(PYTHON)' is $$($(PYTHON) -V 2>/dev/null || echo missing). Install Python 3.11 or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "set-up 1/4  .venv, from $$($$python -V)"; \
	"$$python" -m venv --clear $(VENV) || { echo "Python's venv module did not make .venv; on Debian and Ubuntu it is the package python3.11-venv." >&2; exit 1; }; \
	echo "set-up 2/4  the packages of requirements.txt (one to four minutes, 2 GB)"; \
	$(BIN)/pip install -qq -r requirements.txt; \
	cp requirements.txt $@

# nbdev_install_hooks also writes to the user's own Jupyter settings, which this project has no use for (jupyter_hooks is off): it gets
# another HOME. The hooks are then pointed at .venv, so that a merge works outside of it too.
$(VENV)/.ready: $(VENV)/.packages pyproject.toml settings.ini
	@set -e; \
	echo "set-up 3/4  the molrec command and the Jupyter kernel"; \
	$(BIN)/pip install -qq --no-deps --no-build-isolation --use-pep517 -e .; \
	$(BIN)/python -m ipykernel install --sys-prefix --name molrec --display-name molrec >/dev/null 2>&1; \
	echo "set-up 4/4  nbdev's git hooks"; \
	if [ -d .git ] && [ "$$(git rev-parse --show-toplevel 2>/dev/null)" = "$$(pwd -P)" ] \
	    && GIT_CONFIG_GLOBAL="$${GIT_CONFIG_GLOBAL:-$$HOME/.gitconfig}" HOME="$$PWD/$(VENV)" $(BIN)/nbdev_install_hooks >/dev/null 2>&1; then \
	    printf '#!/bin/sh\n$(BIN)/nbdev_trust\n' > .git/hooks/post-merge; \
	    sed 's|driver = nbdev_merge|driver = $(BIN)/nbdev_merge|' .gitconfig > $(VENV)/.gitconfig; mv $(VENV)/.gitconfig .gitconfig; \
	else echo "            skipped: this folder is not a git checkout of its own"; fi; \
	touch $@

# The book's tools, apart: they pin what the two commands do not need.
$(DOCS)/.packages: requirements-docs.txt
	@set -e; \
	if cmp -s requirements-docs.txt $@; then touch $@; exit 0; fi; \
	echo "set-up      the packages of requirements-docs.txt, in $(DOCS)"; \
	$(PYTHON) -m venv --clear $(DOCS); \
	$(DOCS)/bin/pip install -qq -r requirements-docs.txt; \
	cp requirements-docs.txt $@
