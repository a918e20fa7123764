# Two commands on a fresh machine: `make sweep` and `make test`. Both set up .venv themselves, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: sweep studies test quick soak lint ui gpu docs pictures

sweep: $(READY)  ## search the schedule on digits: about 8 minutes on 2 cores
	$(BIN)/python experiments/sweep_schedule.py $(ARGS)

studies: $(READY)  ## every claim's experiment at its small scale, until its verdict: about 5 hours on 2 cores; ARGS="--budget 1" for less; the same command resumes
	$(BIN)/python experiments/claims.py $(ARGS)

test: lint  ## lint, then all tests; system tests share one process, unit tests use the rest
	$(BIN)/python -m pytest -n auto -m "not soak" $(ARGS)

quick: lint  ## lint, then the tests that start no program and train nothing for long
	$(BIN)/python -m pytest -n auto -m "not slow and not soak" $(ARGS)

soak: $(READY)  ## tests too slow for every change: more fault seeds, training of presets
	$(BIN)/python -m pytest -m soak $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell soflow orchestration dashboards experiments benchmarks tests docs *.md
	$(BIN)/lint-imports
	$(BIN)/mypy

ui: $(READY)  ## progress of sweeps, and MLflow's comparison of runs; it prints two addresses to open
	$(BIN)/python -m dashboards.ui $(ARGS)

gpu: $(READY)  ## checks and timings on a machine with CUDA, written to docs/gpu.md: about 8 minutes; exit code 2 without CUDA
	$(BIN)/python -m benchmarks.gpu $(ARGS)

docs: $(READY)  ## build the documentation in site/, with links checked
	$(BIN)/python docs/site/notebook.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict $(ARGS)

pictures: $(READY)  ## make the pictures of README.md and docs/ again: about half an hour on 2 cores; the same command resumes
	$(BIN)/python benchmarks/pictures.py $(ARGS)

# Set up again when the requirements change; an interrupted installation is continued.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(READY)
