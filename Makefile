# make run    train BERT in a 2-stage pipeline on this machine, from an empty clone
# make test   install what the tests need, check the code, run every test
# make check  ruff and mypy only
# make testbed N=4   leave 4 hosts with sshd up on this machine (needs root); make testbed-down ends them (T=NUMBER where several are up)
# make faults [CASE=R1,C2]   hurt runs in every way of the battery; make soak MINUTES=30 SEED=1 hurts one at random
# make clean  remove the environment
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
N ?= 4
MINUTES ?= 30
SEED ?= 1

# Tests import a small part of what they install: that is compiled when it is first imported, and so it must be written.
export PYTHONDONTWRITEBYTECODE =

.PHONY: run test hosts image check clean testbed testbed-down faults soak
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	$(BIN)/vpipe launch configs/local.yml
	@echo
	@echo "next: . $(BIN)/activate, then: vpipe logs --rank 1, vpipe status, vpipe init; README.md tells the rest"

test:
	$(MAKE) --no-print-directory -j 2 --output-sync check image
	$(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder

hosts:
	tests/testbed/install
	tests/apptainer/install

image: hosts $(VENV)/test.stamp
	$(BIN)/python -m tests.apptainer

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

testbed: $(VENV)/test.stamp
	tests/testbed/install
	$(BIN)/python -m tests.testbed up $(N)

testbed-down:
	$(BIN)/python -m tests.testbed down $(T)

faults: $(VENV)/test.stamp
	tests/testbed/install
	$(BIN)/python -m tests.faults $(CASE)

soak: $(VENV)/test.stamp
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED)

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -e '.[worker]'
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[worker,test]'
	touch $@ $(VENV)/run.stamp
