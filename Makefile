# make demo    set up, train the recipe nano on this machine, open with a progress display, end with a report
# make test    set up, run the tests        make check   lint, formatting, types
# make gpu     the tests that need a GPU    make setup   only .venv
# make peers   others' packages, each in an environment of its own, and the tests against them (2 GB, some minutes)
#
# A GPU-less Linux machine may take torch's smaller CPU build:
#   make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
PIP = .venv/bin/python -m pip --disable-pip-version-check install -q $(PIP_ARGS) -c constraints.txt
export PIP_REQUIRE_VIRTUALENV = 1

.PHONY: setup setup-dev demo test check gpu peers bubblewrap

setup: .venv/setup.stamp bubblewrap

setup-dev: .venv/setup-dev.stamp bubblewrap

demo: setup
	.venv/bin/baleen run nano --out runs/nano

test: setup-dev
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -m "not gpu"

# Without a cache: ruff's verdict on the order of imports outlives the move of a module.
check: setup-dev
	.venv/bin/ruff check --no-cache
	.venv/bin/ruff format --check
	.venv/bin/mypy

gpu: setup-dev
	@if .venv/bin/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
		HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -m gpu; \
	else \
		echo "no GPU here: the tests marked gpu were not run"; \
	fi

# Harbor needs Python 3.12; where it is not `python3.12`: make peers PYTHON312=/path/to/python
PYTHON312 ?= python3.12
PEERS = verifiers openenv mcp1 inspect

peers: setup-dev $(PEERS:%=.venv-peers/%/done) .venv-peers/conformance/done
	@$(MAKE) .venv-peers/harbor/done || echo "Harbor is left out: give PYTHON312=/path/to/python3.12"
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest tests/agent/adapters tests/agent/mcp

.venv-peers/verifiers/done: PACKAGES = verifiers==0.4.0 uv==0.13.9
.venv-peers/openenv/done: PACKAGES = openenv==0.10.0
.venv-peers/mcp1/done: PACKAGES = mcp==1.30.0
.venv-peers/inspect/done: PACKAGES = inspect_ai==0.3.285 numpy
.venv-peers/harbor/done: PACKAGES = harbor==0.26.0 numpy
.venv-peers/harbor/done: PYTHON = $(PYTHON312)

.venv-peers/%/done:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -q $(PACKAGES)
	@touch $@

# The suite needs Node 22, which npm has as a package.
.venv-peers/conformance/done:
	npm install --silent --no-audit --no-fund --prefix $(@D) node@22 @modelcontextprotocol/conformance@0.1.16
	@touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/setup.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[corpus,serve,agent]'
	@touch $@

.venv/setup-dev.stamp: .venv/setup.stamp
	$(PIP) -e '.[corpus,serve,agent,dev]'
	@touch $@

# The sandbox isolates best with bubblewrap. Missing, it is installed if that is ours to do, and said if it is not.
bubblewrap:
	@command -v bwrap > /dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get install -qq -y bubblewrap > /dev/null 2>&1; \
	} || echo "bubblewrap is missing, so the sandbox isolates less: apt-get install bubblewrap"
