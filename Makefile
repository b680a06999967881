# Everything happens inside this clone: packages in .venv, caches in .*_cache.
# A bare machine needs git, make and Python 3.11 or newer with venv and pip.

.DEFAULT_GOAL := help
SHELL := /bin/sh

PORT ?= 5000
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements-dev.lock
STAMP := $(VENV)/.ready
BENCH_VENV := .venv-bench
BENCH_LOCK := requirements-bench.lock
BENCH_STAMP := $(BENCH_VENV)/.ready
BENCH := PYTHONPATH=src $(BENCH_VENV)/bin/python -m bench
BENCH_CARGO := --manifest-path bench/native/Cargo.toml
# The native reactor is rebuilt when its sources change; without cargo there is none, and setup.py says so.
RUST := setup.py rust/Cargo.toml rust/Cargo.lock rust/build.rs $(shell find rust/src rust/shield -name '*.rs' -not -path '*/target/*')
# A cargo on the PATH may be a shim without a toolchain, or cut off from its registry: then Rust is not checked, and said so.
RUST_WORKS = cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1 \
	&& cargo fetch --quiet --locked --manifest-path rust/Cargo.toml >/dev/null 2>&1 \
	&& cargo fetch --quiet --locked $(BENCH_CARGO) >/dev/null 2>&1

# The newest Python on the PATH that is new enough and can make environments; PYTHON=... overrides it.
# Debian ships python3 without ensurepip until python3-venv is there, so that is asked for too.
CANDIDATES := python3.15 python3.14 python3.13 python3.12 python3.11 python3 python
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in $(CANDIDATES); do \
	if $$name -c '$(USABLE)' >/dev/null 2>&1; then command -v $$name; break; fi; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Make .venv with the locked packages and Longshore itself (once; again when they change)

# All of its output goes to stderr, so that `make demo` leaves stdout to the answers.  Bytecode is written here, as
# a machine that sets PYTHONDONTWRITEBYTECODE would compile all of Longshore again at every start.
$(STAMP): $(LOCK) pyproject.toml $(RUST)
	@test -n '$(PYTHON)' || { \
		echo 'No Python 3.11 or newer with venv and pip was found (looked for: $(CANDIDATES)).' >&2; \
		echo 'Install one (Debian, Ubuntu: apt-get install python3-venv), or name it: make PYTHON=/path/to/python3' >&2; \
		exit 1; }
	@echo 'Setting up $(VENV) with $(PYTHON) (once, about a minute) ...' >&2
	@'$(PYTHON)' -c '$(USABLE)' || { \
		echo '$(PYTHON) is older than Python 3.11 or has no venv and pip.' >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -c '$(USABLE)' 2>/dev/null || '$(PYTHON)' -m venv --clear $(VENV) >&2
	@$(BIN)/python -m pip install --quiet --no-cache-dir --require-hashes -r $(LOCK) >&2
	@rm -f src/longshore/_native*.so
	@$(BIN)/python -m pip install --quiet --no-cache-dir --no-deps --no-build-isolation --editable . >&2
	@ls src/longshore/_native*.so >/dev/null 2>&1 || \
		echo 'The native reactor was not built (it takes Linux and cargo); the portable one serves.' >&2
	@$(BIN)/python -m compileall -q src
	@touch $@

.PHONY: demo
demo: $(STAMP) ## Serve examples/echo.py on tcp://127.0.0.1:5000 and talk to it (or: echo hello | make demo)
	@$(BIN)/python examples/demo.py $(PORT)

.PHONY: test
test: lint docs pytest ## Run every check and every test

.PHONY: pytest
pytest: $(STAMP) cargo
	$(BIN)/python -m pytest
	LONGSHORE_REACTOR=portable $(BIN)/python -m pytest -q $(PORTABLE)

# What differs between the reactors; the rest of the suite goes through the one that was built.
PORTABLE := tests/contract/test_conversations.py tests/contract/test_bad_input.py tests/contract/test_lifecycle.py \
	tests/contract/test_guard.py tests/contract/test_proxies.py tests/contract/test_memory_budget.py \
	tests/contract/test_start_tls.py

.PHONY: cargo
cargo:
	@if $(RUST_WORKS); then cd rust && cargo test --locked --quiet; fi

.PHONY: stress
stress: $(STAMP) ## Kill, reload, exhaust and attack for minutes; prints its figures (ROUNDS=1000 kills, SOAK=3600 seconds)
	LONGSHORE_ROUNDS=$(or $(ROUNDS),1000) LONGSHORE_SOAK=$(SOAK) $(BIN)/python -m pytest tests/stress -q -s --timeout=0 -o faulthandler_timeout=0

.PHONY: fuzz
fuzz: $(STAMP) ## Throw a million random inputs at the native framings, and compare with the portable ones
	LONGSHORE_FUZZ=1000000 $(BIN)/python -m pytest -q --timeout=0 tests/unit/test_native_framing.py -o faulthandler_timeout=0

.PHONY: wheel
wheel: $(STAMP) ## Build a wheel with the native reactor into dist/
	LONGSHORE_NATIVE=require $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

.PHONY: fast
fast: $(STAMP) ## Run the tests that take less than a quarter of a second each
	$(BIN)/python -m pytest -m 'not slow'

.PHONY: lint
lint: $(STAMP) ## Check format, style, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src
	@if ls src/longshore/_native*.so >/dev/null 2>&1; then \
		$(BIN)/python -m mypy.stubtest --concise longshore._native; fi
	$(BIN)/lint-imports --no-logo
	@if $(RUST_WORKS); then set -x; \
		cargo fmt --all --check --manifest-path rust/Cargo.toml && \
		cargo clippy --locked --quiet --all-targets --manifest-path rust/Cargo.toml -- -D warnings && \
		cargo clippy --locked --quiet --features python --lib --manifest-path rust/Cargo.toml -- -D warnings && \
		cargo fmt --check $(BENCH_CARGO) && \
		cargo clippy --quiet --locked --all-targets $(BENCH_CARGO) -- -D warnings; \
	else echo 'cargo with rustfmt and clippy, or its packages, cannot be had; the Rust sources are not checked.'; fi

.PHONY: format
format: $(STAMP) ## Put the code into its format, and mend what can be mended
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# The peers live in an environment of their own, on the Python that Longshore has in $(VENV).
$(BENCH_STAMP): $(BENCH_LOCK) $(STAMP)
	@echo 'Setting up $(BENCH_VENV) with the peers (once, about a minute) ...' >&2
	@$(BIN)/python -m venv --clear $(BENCH_VENV) >&2
	@$(BENCH_VENV)/bin/python -m pip install --quiet --no-cache-dir --require-hashes -r $(BENCH_LOCK) >&2
	@touch $@

.PHONY: bench
bench: $(BENCH_STAMP) ## Measure Longshore beside its peers (QUICK=1, CHECK=1, ONLY=scenario,scenario)
	@$(BENCH) run $(if $(QUICK),--quick) $(if $(CHECK),--check) $(if $(ONLY),--only $(ONLY))
	@$(if $(ONLY),:,$(BENCH).pool $(if $(QUICK),--quick) $(if $(CHECK),--check))
	@$(if $(ONLY),:,$(BENCH).shared $(if $(QUICK),--quick) $(if $(CHECK),--check))
	@$(if $(ONLY),:,$(BENCH).shared_redis $(if $(QUICK),--quick))

.PHONY: soak
soak: $(BENCH_STAMP) ## A million connections and ten million messages: does memory grow? (QUICK=1)
	@$(BENCH) soak $(if $(QUICK),--quick) --server 'longshore reactor' --server 'longshore green'

.PHONY: fairness
fairness: $(BENCH_STAMP) ## Do clients that flood delay others?
	@$(BENCH) fairness --server 'longshore reactor' --server 'longshore green'

.PHONY: docs
docs: $(STAMP) ## Build the documentation into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W -n --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo 'Read it: docs/_build/html/index.html'

COMPILE := uv pip compile --no-cache --quiet --universal --generate-hashes --python-version 3.11 --no-header \
	--no-emit-index-url --no-emit-find-links --upgrade

.PHONY: lock
lock: ## Pin the newest packages again (needs uv)
	@echo "# Every package that development needs, pinned and hashed. Written by 'make lock'; do not edit." > $(LOCK).new
	$(COMPILE) --group dev --extra msgpack --extra uvloop pyproject.toml >> $(LOCK).new
	@mv $(LOCK).new $(LOCK)
	@echo "# Every package that the benchmark needs, pinned and hashed. Written by 'make lock'; do not edit." \
		> $(BENCH_LOCK).new
	$(COMPILE) --group bench pyproject.toml >> $(BENCH_LOCK).new
	@mv $(BENCH_LOCK).new $(BENCH_LOCK)

.PHONY: clean
clean: ## Remove everything that make has made
	rm -rf $(VENV) $(BENCH_VENV) bench/.build bench/native/target .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache .dropin_cache build dist docs/_build
	find src tests examples docs bench -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info src/longshore/_native*.so rust/target
