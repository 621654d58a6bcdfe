# Everything here works on a fresh machine with Python 3.11+: the first target that needs it
# makes .venv and installs the package into it.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test coverage check bench chaos bench-protect bench-breaker bench-outage bench-queue bench-listener bench-verification bench-hooks chaos-queue chaos-listener chaos-verification format clean

demo: .venv/ready
	$(BIN)/python examples/demo.py

# Four at a time, a file each: most tests wait for a server or a process, not for the processor.
test: .venv/ready
	$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder

# The same with branch coverage; about twice as long. A process that is forked beside busy threads
# may find a lock of coverage itself taken, for ever.
coverage: .venv/ready
	$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder --cov --cov-report=term \
	  --deselect tests/test_fork.py::test_fork_amid_busy_threads
	@rm -f .coverage .coverage.*

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes supabase_resilience --ignoreexternal
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_public_api.py tests/test_parity.py

# Every program, and BENCHMARKS.md anew; `make bench ONLY=queue` runs one and replaces its section.
# ARGS are the options of one program: `make bench ONLY=queue ARGS="polling --workers 100"`.
SEED ?= 1
bench: .venv/ready
	$(BIN)/python tests/benchmarks/evidence.py bench --only "$(ONLY)" ARGS="$(ARGS)"

chaos: .venv/ready
	$(BIN)/python tests/benchmarks/evidence.py chaos --only "$(ONLY)" SEED="$(SEED)" ARGS="$(ARGS)"

bench-protect: .venv/ready
	$(BIN)/python tests/benchmarks/protect.py $(ARGS)

# The peers go into an environment of their own, which is thrown away afterwards.
bench-breaker:
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(PYTHON) -m venv "$$dir/venv"; \
	"$$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check . -r tests/benchmarks/peers.txt; \
	"$$dir/venv/bin/python" tests/benchmarks/breakers.py $(ARGS)

bench-outage: .venv/ready
	$(BIN)/python tests/benchmarks/outage.py $(ARGS)

bench-queue:
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(PYTHON) -m venv "$$dir/venv"; \
	pip="$$dir/venv/bin/python -m pip install --quiet --disable-pip-version-check"; \
	$$pip ".[local]" -r tests/benchmarks/queue_peers.txt; \
	$$pip --no-deps aimq==0.1.2 || echo "aimq cannot be had: it is left out"; \
	"$$dir/venv/bin/python" tests/benchmarks/queues.py $(ARGS)

bench-listener: .venv/ready
	$(BIN)/python tests/benchmarks/listeners.py $(ARGS)

bench-verification: .venv/ready
	$(BIN)/python tests/benchmarks/verification.py $(ARGS)

bench-hooks: .venv/ready
	$(BIN)/python tests/benchmarks/hooks.py $(ARGS)

chaos-queue: .venv/ready
	$(BIN)/python tests/chaos/queues.py --seed $(SEED) $(ARGS)

# `make chaos-listener SEED=7`, or SEEDS=20 for so many in turn; SCENARIO=all plays all others, too.
SEEDS ?= 1
SCENARIO ?= faults
chaos-listener: .venv/ready
	$(BIN)/python tests/chaos/listener.py --scenario $(SCENARIO) --seed $(SEED) --seeds $(SEEDS) $(ARGS)

chaos-verification: .venv/ready
	$(BIN)/python tests/chaos/verification.py --seed $(SEED) $(ARGS)

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo "python3 -m venv failed: install your system's python3-venv package"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[local,otel,prometheus,status]" --group dev
	@touch $@

clean:
	rm -rf .venv dist build *.egg-info
