# The commands of this project; `make help` lists them. Each works on a machine that has Python 3.11+ and nothing else.

VENV := .venv
BIN := $(VENV)/bin
COVERED := perk meta_training service
# A process of tests for each core; files are whole, as tests of a file share servers.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
ON_CUDA := $(wildcard tests/kernels/test_*_triton.py) tests/kernels/test_multi_adapter.py \
	tests/perk/test_gradient_graphs.py \
	tests/meta_training/test_outer_loop.py::test_with_full_unrolling_it_equals_finite_differences

# A stamp is newer than what it was made from: a second call has nothing to install. BASE stands for "runs the service",
# TEST for "and checks it"; MODEL for the converted base model in the user's cache.
INSTALL_INPUTS := pyproject.toml constraints.txt scripts/install.sh
BASE := $(VENV)/.installed
TEST := $(VENV)/.installed-for-tests
MODEL := $(VENV)/.base-model

.DEFAULT_GOAL := help
# One install at a time, even under `make -j`.
.NOTPARALLEL:
.PHONY: help serve demo test test-cuda lint clean experiment-length experiment-truncation experiment-rank

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(BASE) $(MODEL) ## start the service on http://127.0.0.1:8000
	$(BIN)/perk serve

demo: $(BASE) $(MODEL) ## encode the documents of examples/, ask their questions, print the score
	$(BIN)/python -m service.demo

test: lint $(MODEL) ## everything that must hold: lint, then all tests with their coverage
	$(BIN)/pytest $(PARALLEL) --cov --cov-report=
	@for package in $(COVERED); do $(BIN)/coverage report --include="$$package/*" --fail-under=80 || exit 1; done

test-cuda: $(TEST) ## the kernels' tests on this machine's CUDA device, not in Triton's interpreter
	PERK_TEST_DEVICE=cuda $(BIN)/pytest $(PARALLEL) $(ON_CUDA)

lint: $(TEST) ## format, style, types and the arrows between the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Hours each, on CPU cores alone; stopped ones go on when called again. They need the training data, see docs/guide.md.
experiment-length: $(TEST) $(MODEL) ## train on short QA1 stories, score on longer ones, by method: runs/qa1-length/report.md
	$(BIN)/python -m meta_training experiment meta_training/experiments/qa1-length.yaml

experiment-truncation: $(TEST) $(MODEL) ## unroll 0, 1, 2 or 3 of the inner steps: runs/truncation/report.md
	$(BIN)/python -m meta_training experiment meta_training/experiments/truncation.yaml

experiment-rank: $(TEST) $(MODEL) ## adapters of rank 16 against 256: runs/rank/report.md
	$(BIN)/python -m meta_training experiment meta_training/experiments/rank.yaml

clean: ## remove the environment and everything that a run leaves in this folder
	rm -rf $(VENV) build dist htmlcov *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BASE): $(INSTALL_INPUTS)
	scripts/install.sh
	@touch $@

$(TEST): $(INSTALL_INPUTS)
	scripts/install.sh dev,train,ray
	@touch $@ $(BASE)

$(MODEL): | $(BASE)
	$(BIN)/python -m perk
	@touch $@
