# Needs Python 3.11 or newer with venv, make and curl; everything else is installed into .venv.
#
#   make demo                 the shop, with customers in it, until Ctrl-C
#   make demo ARGS=--once     the same, ending by itself: exit status 0 if the books balance
#   make test                 every test; those whose server is not installed are skipped and named at the end
#   make test ARGS=--require-servers     they fail instead (`python3 -m servers install` installs what is missing)
#   make torture              kills 1,000 workers on sqlite, and RabbitMQ and Kafka 5 times each, under load; a quarter of an
#                             hour; `make torture ARGS="sqlite --kills 50"` is a part of it
#   make faults               a million calls over connections that break, each ending at each byte of a call; some minutes
#   make check                format, lint, types, imports and the quick tests
#   make bench                what a call costs, compared with others
#   make bench-bus            what a task and an event cost, compared with others; needs the servers of `make test`

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
ARGS ?=

.PHONY: demo test torture faults check types quick bench bench-bus clean

demo: $(VENV)/ready$(if $(findstring production,$(ARGS)),-production)
	@$(VENV)/bin/python examples/shop/demo.py $(ARGS)

test: $(VENV)/ready-dev
	@$(VENV)/bin/python -m pytest -n 2 $(ARGS)

torture: $(VENV)/ready-dev
	@$(VENV)/bin/python -m tests.torture $(ARGS)

faults: $(VENV)/ready-dev
	@POLYWIRE_FAULTS=whole $(VENV)/bin/python -m pytest -n 2 --timeout=1800 tests/faults/test_fault_positions.py tests/faults/test_fault_endings.py \
		tests/faults/test_fault_load.py $(ARGS)

check: $(VENV)/ready-dev
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/lint-imports >/dev/null || $(VENV)/bin/lint-imports
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target types quick

types:
	$(VENV)/bin/mypy
	MYPYPATH=src $(VENV)/bin/mypy examples/shop
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# The rooms that need neither other processes nor other people's servers. (`make test` runs the others: breaking changes
# compare with buf, what is tried out on every wire with every policy or fault waits a lot, and so do further spellings of
# Connect, of which one is tried out here, too.)
quick:
	$(VENV)/bin/python -m pytest -q -n 2 -m 'not slow' --ignore-glob='tests/contract/test_breaking*' \
		--ignore=tests/conformance/test_policies_on_wires.py --ignore=tests/wire/test_faults_wires.py \
		--ignore=tests/wire/test_connect_conformance.py --ignore=tests/wire/test_rest_fuzz.py tests/unit \
		tests/policy tests/conformance tests/telemetry tests/contract tests/wire tests/system/test_app.py \
		tests/system/test_system_file.py tests/examples/test_shop_services.py

bench: $(VENV)/ready-bench
	$(VENV)/bin/python -m benchmarks.calls.run $(ARGS)

bench-bus: $(VENV)/ready-bench
	$(VENV)/bin/python -m benchmarks.bus.run $(ARGS)

clean:
	rm -rf $(VENV) .polywire examples/shop/.polywire

# One stamp file for each set of packages, renewed when pyproject.toml changes.

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found. Install it, or name it: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

# What the profile production of the shop needs: clients of RabbitMQ and Kafka, and the two themselves.
$(VENV)/ready-production: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[rabbitmq,kafka]'
	$(VENV)/bin/python -m servers install rabbitmq kafka
	@touch $(VENV)/ready $@

$(VENV)/ready-dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/ready $@

$(VENV)/ready-bench: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[bench]'
	@touch $(VENV)/ready $@
