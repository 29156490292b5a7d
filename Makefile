# make demo    set up, train the recipe nano on this machine, open with a progress display, end with a report
# make test    set up, run the tests        make check   lint, formatting, types
# make gpu     the tests that need a GPU    make setup   only .venv
#
# A GPU-less Linux machine may take torch's smaller CPU build:
#   make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
PIP = .venv/bin/python -m pip --disable-pip-version-check install -q $(PIP_ARGS) -c constraints.txt
export PIP_REQUIRE_VIRTUALENV = 1

.PHONY: setup setup-dev demo test check gpu bubblewrap

setup: .venv/setup.stamp bubblewrap

setup-dev: .venv/setup-dev.stamp bubblewrap

demo: setup
	.venv/bin/baleen run nano --out runs/nano

test: setup-dev
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -m "not gpu"

check: setup-dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

gpu: setup-dev
	@if .venv/bin/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
		HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -m gpu; \
	else \
		echo "no GPU here: the tests marked gpu were not run"; \
	fi

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/setup.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[corpus,serve]'
	@touch $@

.venv/setup-dev.stamp: .venv/setup.stamp
	$(PIP) -e '.[corpus,serve,dev]'
	@touch $@

# The sandbox isolates best with bubblewrap. Missing, it is installed if that is ours to do, and said if it is not.
bubblewrap:
	@command -v bwrap > /dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get install -qq -y bubblewrap > /dev/null 2>&1; \
	} || echo "bubblewrap is missing, so the sandbox isolates less: apt-get install bubblewrap"
