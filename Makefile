# make quickstart   set everything up and run the whole chain on text that is on this machine
# make test         set everything up and run the tests
# make grids        the longer tests: architectures at every ZeRO stage, runs broken off at many points
# make test-cluster   train on several hosts made of namespaces; needs root, and installs Debian's packages for it
# make faults       every fault of the table, then RUNS=500 real runs hit at random; over an hour; goes on where stopped
# make fuzz         a hundred thousand damaged files, shared out over all readers; minutes
# make check        format, lint, types, layers        make fix   repair format and lint
VENV ?= .venv
PYTHON ?= python3
ONWARD_CACHE ?= $(CURDIR)/.cache
# Tests run in this many processes; a file is not split.
JOBS ?= 2
RUN ?=
# Runs of the random campaign of faults.
RUNS ?= 500

export ONWARD_CACHE
export PATH := $(abspath $(VENV))/bin:$(PATH)
# Tests and quickstart need no hub; a stray look-up would only wait for a time-out.
export HF_HUB_OFFLINE ?= 1

READY := $(VENV)/.ready

.PHONY: setup quickstart test grids test-cluster faults fuzz check fix clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Onward needs Python 3.11 or newer; name one: make PYTHON=python3.11")'
	@# A venv without pip is what a missing python3-venv leaves behind: made anew, it says what is missing.
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(VENV)/bin/python -m launcher.jit
	touch $@

quickstart: $(READY)
	$(VENV)/bin/onward quickstart $(RUN)

test: $(READY)
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not grid and not cluster" $(RUN)

grids: $(READY)
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m grid $(RUN)

test-cluster: $(READY)
	tests/cluster/install.sh
	$(VENV)/bin/python -m pytest -m cluster tests/cluster $(RUN)

faults: $(READY)
	$(VENV)/bin/python -m benchmarks.faults.rows
	$(VENV)/bin/python -m benchmarks.faults --runs $(RUNS) --seed 1 $(RUN)
	$(VENV)/bin/python -m benchmarks.faults --seed 1 --report

fuzz: $(READY)
	$(VENV)/bin/python -m tests.fuzz --inputs 100000 --seed 1 $(RUN)

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

fix: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(ONWARD_CACHE) runs
