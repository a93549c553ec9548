# What a developer can run. Each target works in a fresh clone; dev.py does the work.
PYTHON ?= python3

.PHONY: help build demo test transports lint types coverage sanitize fuzz soak conformance bench docs dist clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

build: ## make the virtual environment and build the extension modules in place
	$(PYTHON) dev.py build

demo: ## an embedded exchange, its feed, and clients that measure it
	$(PYTHON) dev.py demo

test: ## the whole test suite
	$(PYTHON) dev.py test

transports: ## the tests with what connections use on other systems: other TLS, the event loop's transports
	$(PYTHON) dev.py transports

lint: ## ruff and cython-lint
	$(PYTHON) dev.py lint

types: ## mypy --strict, pyright, and the stubs against the binaries
	$(PYTHON) dev.py types

coverage: ## lines of Python and Cython that the tests reach, against a floor for each module
	$(PYTHON) dev.py coverage

sanitize: ## the tests with AddressSanitizer and UndefinedBehaviorSanitizer
	$(PYTHON) dev.py sanitize

SECONDS ?= 60
fuzz: ## the fuzzers, SECONDS=60 each
	$(PYTHON) dev.py fuzz $(SECONDS)

soak: ## random clients, servers and faults; SECONDS=600
	$(PYTHON) dev.py soak $(if $(filter command environment,$(firstword $(origin SECONDS))),$(SECONDS),600)

conformance: ## the Autobahn test suite against server and client; needs a Python 2.7
	$(PYTHON) dev.py conformance

bench: ## the benchmarks, against peers and C; BENCH="--quick" for three minutes of them
	$(PYTHON) dev.py bench $(BENCH)

docs: ## the documentation as HTML, with warnings as errors, and its doctests
	$(PYTHON) dev.py docs

dist: ## sdist and wheel, installed and tried out away from the checkout
	$(PYTHON) dev.py dist

clean: ## remove what was built
	$(PYTHON) dev.py clean
