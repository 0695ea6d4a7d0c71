# `make` tells what there is. A machine with Python 3.10 or newer and make needs nothing else.

PYTHON ?= python3
VENV ?= .venv
# A file of pins that go over those of requirements.txt.
OVERRIDES ?=
BIN = $(VENV)/bin
READY = $(VENV)/.ready
SERVERS_READY = $(VENV)/.servers-ready

# What touches the database is tested on the servers, too, and not on SQLite alone.
DATABASE_TESTS = tests/test_models.py tests/test_accounts.py tests/test_reseal.py \
    tests/test_session_index.py tests/test_backchannel_logout.py tests/test_events.py \
    $(wildcard tests/test_grants*.py tests/test_refresh*.py)

# The checks are not to touch the demo that somebody runs here.
CHECK_DEMO = DEMO_DIR=.test/demo

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint typecheck checks further in-browser on-servers on-postgresql \
    on-mariadb on-postgresql-and-mariadb oldest newest oldest-and-newest package bench measure docs \
    pages build clean

help:
	@echo "make demo       the demo site and its OpenID Provider  [PORT=8000 OP_PORT=9000]"
	@echo "make test       the tests that need Python alone"
	@echo "make test-all   all that CI runs: lint, types, checks, every test on the oldest and"
	@echo "                the newest Python and Django, the wheel; needs Chromium, gettext,"
	@echo "                PostgreSQL, MariaDB, Redis, faketime, Node.js 20 and npm, and starts its own servers"
	@echo "make lint       ruff: rules and format"
	@echo "make typecheck  mypy, strict"
	@echo "make bench      the benchmarks, beside other packages"
	@echo "make docs       the documentation, in .test/docs/html; a warning is an error"
	@echo "make build      the sdist and the wheel, in dist/"
	@echo "make clean      remove what these made, the demo's database included"
	@echo
	@echo "Another Python:  make test PYTHON=python3.12"

demo: $(READY)
	@$(BIN)/python -m demo_site.run $(if $(PORT),--port $(PORT)) $(if $(OP_PORT),--op-port $(OP_PORT))

test: $(READY)
	@$(BIN)/python -c 'import sys, django; print("Python %d.%d.%d," % sys.version_info[:3], "Django", django.__version__)'
	@$(BIN)/python -m pytest --numprocesses auto -m "not browser and not servers"

test-all: test further
	@echo "test-all: everything passed, nothing was left out."

# All but `make test`, for whoever has just run that.
further: lint typecheck checks docs in-browser on-servers oldest-and-newest package

lint: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

typecheck: $(READY)
	@$(BIN)/mypy

checks: $(READY)
	@$(CHECK_DEMO) $(BIN)/python -W error manage.py makemigrations --check --dry-run
	@$(CHECK_DEMO) $(BIN)/python -W error manage.py check --fail-level WARNING
	@$(CHECK_DEMO) DEMO_HTTPS=1 $(BIN)/python -W error manage.py check --deploy --fail-level WARNING
	@for po in oidc_rp/locale/*/LC_MESSAGES/*.po; do \
	    msgfmt --check-format --check-domain --output-file=- "$$po" | cmp - "$${po%.po}.mo" || { \
	        echo "$${po%.po}.mo is not the compiled $$po: run django-admin compilemessages" >&2; exit 1; }; \
	done

in-browser: $(READY)
	@$(BIN)/python -m pytest -m browser

on-servers: $(SERVERS_READY)
	@$(BIN)/python -m pytest -m servers
	@$(MAKE) --no-print-directory on-postgresql-and-mariadb

on-postgresql on-mariadb: $(SERVERS_READY)
	@echo "The tests that touch the database, $(subst -, ,$@):"
	@DATABASE=$(subst on-,,$@) $(BIN)/python -m pytest --ds=tests.servers.settings \
	    -m "not browser and not servers" $(DATABASE_TESTS)

oldest:
	@python=$$(tests/packaging/find_python 3.10) && $(MAKE) --no-print-directory test \
	    PYTHON="$$python" VENV=.venv-oldest OVERRIDES=tests/packaging/oldest.txt

newest:
	@python=$$(tests/packaging/find_python 3.13 3.14) && $(MAKE) --no-print-directory test \
	    PYTHON="$$python" VENV=.venv-newest OVERRIDES=tests/packaging/newest.txt

# Two at once: most of their time is spent waiting.
oldest-and-newest on-postgresql-and-mariadb:
	@mkdir -p .test
	@$(MAKE) --no-print-directory $(firstword $(subst -and-, ,$@)) >.test/$@.log 2>&1 & first=$$!; \
	$(MAKE) --no-print-directory $(if $(findstring on-,$@),on-)$(lastword $(subst -and-, ,$@)); second=$$?; \
	wait $$first; first=$$?; \
	cat .test/$@.log; \
	exit $$((first + second))

package: build
	@$(BIN)/python -m tests.packaging.smoke dist/*.whl

bench:
	@$(MAKE) --no-print-directory measure VENV=.venv-bench OVERRIDES=benchmarks/requirements.txt

measure: $(READY)
	@$(BIN)/python -m benchmarks

docs:
	@$(MAKE) --no-print-directory pages VENV=.venv-docs OVERRIDES=docs/requirements.txt

pages: $(READY)
	@$(BIN)/python -m sphinx --fresh-env --nitpicky --fail-on-warning --keep-going --quiet \
	    --doctree-dir .test/docs/doctrees docs .test/docs/html
	@echo "The documentation: .test/docs/html/index.html"

build: $(READY)
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation

clean:
	@rm -rf .venv .venv-* .demo .test build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.txt $(OVERRIDES)
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "$(PYTHON) was not found. Install Python 3.10 or newer, or name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1): Python 3.10 or newer is needed. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments: its venv module is not complete." >&2; \
	    echo "On Debian and Ubuntu: apt install python3-venv (or python3.X-venv for one version)." >&2; exit 1; }
	@echo "Making $(VENV) and installing into it, once; this takes a minute or two."
	@"$(PYTHON)" -m venv --clear "$(VENV)"
	@for pins in requirements.txt $(OVERRIDES); do \
	    $(BIN)/python -m pip --disable-pip-version-check install --quiet -r "$$pins" || { \
	        echo "Installing the packages of $$pins failed; pip says why above." >&2; exit 1; }; \
	done
	@$(BIN)/python -m pip --disable-pip-version-check check >/dev/null
	@touch $@

$(SERVERS_READY): $(READY) tests/servers/requirements.txt
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet -r tests/servers/requirements.txt
	@touch $@
