# make demo    everything embedded on this machine, the tunnel on localhost:5000
# make test    all tests, against a real sshd, NGINX and Redis where there are some
# make check   format, lint, types for three platforms, import rules
# make bench   side by side with ssh -L, autossh, HAProxy and other stdio bridges
# make external  other makers' programs at the tunnel, which PyPI and npm are asked for

PYTHON ?= python3
PORT ?= 5000
VENV := .venv
BIN := $(VENV)/bin
APT := $(shell [ "$$(id -u)" = 0 ] && command -v apt-get)

.PHONY: demo test check bench external clean

demo: $(VENV)/demo
	@$(BIN)/catalyst-tunnel demo --port $(PORT)

test: $(VENV)/dev servers
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not sessions" $(PYTEST)
	$(BIN)/python -m pytest -m sessions $(PYTEST)

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32
	$(BIN)/mypy --platform darwin
	$(BIN)/lint-imports

bench: $(VENV)/dev servers
	$(BIN)/python -m bench $(BENCH)

external: $(VENV)/dev servers
	$(BIN)/python -m pytest tests/external $(PYTEST)

# Debian and Ubuntu keep venv in a package of its own.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "catalyst-tunnel needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    if [ -n "$(APT)" ]; then apt-get update -qq && apt-get install -y -qq python3-venv; \
	    else echo "Python's venv is missing: sudo apt-get install python3-venv"; exit 1; fi; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/demo

# The tests run servers of their own; the system's are left alone.
.PHONY: servers
servers:
	@PATH="$$PATH:/usr/sbin:/sbin"; \
	command -v sshd >/dev/null || missing="openssh-server openssh-client"; \
	command -v nginx >/dev/null || missing="$$missing nginx-light"; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	[ -z "$$missing" ] || if [ -n "$(APT)" ]; then apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	else echo "some tests will be skipped (sudo apt-get install $$missing)"; fi

clean:
	rm -rf $(VENV) .tools .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
