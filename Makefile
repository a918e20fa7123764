# Two commands on a fresh machine: `make sweep` and `make test`. Both set up .venv themselves, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: sweep studies test quick lint ui

sweep: $(READY)  ## search the schedule on digits: about 7 minutes on 2 cores
	$(BIN)/python experiments/sweep_schedule.py $(ARGS)

studies: $(READY)  ## every study that a claim rests on, at its small scale, then a verdict on every claim: hours on 2 cores; goes on when interrupted
	$(BIN)/python experiments/claims.py $(ARGS)

test: lint  ## lint, then everything: what takes one core side by side, then whole programs, each with all cores
	$(BIN)/python -m pytest -n auto --ignore tests/system
	$(BIN)/python -m pytest tests/system

quick: lint  ## lint, then the tests that neither start Ray nor train for long
	$(BIN)/python -m pytest -n auto -m "not slow" $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

ui: $(READY)  ## how sweeps are doing, and MLflow's comparison of runs; it prints two addresses to open
	$(BIN)/python -m dashboards.ui $(ARGS)

# Made anew when the requirements change; an interrupted installation is taken up again.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(READY)

