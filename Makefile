# `make` alone lists what there is. Everything happens in .venv and below the home folder (GENAI_HOME, default .genai).

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
# Test processes; each keeps to one thread, or they would fight for the cores.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.logicalcpu); echo $$(( n < 4 ? n : 4 )))
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --durations=10
SOURCES = genai_assets genai_assets_tests benchmarks tools

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-all lint format bench bench-quality clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: ## make .venv with the pinned packages; at once when nothing changed
	@$(PYTHON) tools/setup.py

demo: setup ## the whole graph on real pictures, then a table of figures and what to open
	@.venv/bin/genai demo

up: setup ## Dagster, the service and MLflow on loopback, until Ctrl-C
	@.venv/bin/genai up

test: setup lint ## lint, types, and all tests but the slow ones
	$(PYTEST) -m "not slow"
	@echo "All well. See the whole thing run: make demo. All tests, the slow ones too: make test-all."

test-all: setup lint ## lint, types, and every test
	$(PYTEST)
	@echo "All well. How fast it is: make bench."

lint: setup ## format, rules and import boundaries (ruff), types (basedpyright)
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/basedpyright

format: setup ## write the format, and the mends ruff is sure of
	.venv/bin/ruff format $(SOURCES)
	.venv/bin/ruff check --fix $(SOURCES)

bench: setup ## every benchmark against its peer, as a table
	@.venv/bin/python -m benchmarks.run

bench-quality: setup ## the goals of the embedded base: five minutes of fine-tuning, a table, sheets to look at
	@.venv/bin/python -m benchmarks.quality.goals $(ARGS)

clean: ## remove build leftovers and caches; with ALL=1 also .venv and .genai (pictures, models, request log)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .tmp_dagster_home_*
	find genai_assets genai_assets_tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +
ifeq ($(ALL),1)
	rm -rf .venv .genai
else
	@echo "Kept: .venv and .genai (pictures, models, request log). Remove them too: make clean ALL=1"
endif
