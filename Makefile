# make demo    train a classifier from a pool a tenth its size, save it, load it, compare the bits
# make test    everything that the tests need, in a fresh environment, then the tests and the conformance suite
# make check   the tests of core, NumPy, files and command line, in an environment that is made once, without frameworks
# make versions  the same tests with Python 3.11, 3.12 and 3.13, and with the lowest versions of all packages
# make lint    ruff and mypy
# make docs    the documentation, warnings are errors
# make trust   hours of attacks: all tests with fifty times the examples, fuzzing, faults, long runs, hash seeds and
#              orders of import, packages, conformance, an hour of it for each backend (each alone: make properties,
#              fuzz, faults, soak, numerics, orders, packages, conformance, deep), then a page of what came of it
# make experiments   accuracy on real data: what is missing of the results (hours), then the report; see experiments/
# make zoo     models of timm and torchvision, Lightning and accelerate (minutes), then docs/results/zoo.md
# make bench   the official benchmarks on this machine, one thread (hours), then docs/performance.md; see benchmarks/
# make clean   remove what the targets above created
#
# PYTHON=python3.12 chooses the interpreter, PYTEST_ARGS="-n 0 -k exact" what pytest gets.

PYTHON ?= python3
# Two processes, so each gets one thread below; each begins with its half of the tests, so that one of them makes what
# neighbours share, as compiled programs, and takes tests of the other when it is done.
PYTEST_ARGS ?= -n 2 --dist worksteal

# What needs no framework.
CHECK = tests/core tests/models tests/files tests/cli tests/backends/test_numpy.py tests/backends/test_registry.py

# For each process.
ONE_THREAD = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# $(call environment,FOLDER,WHAT): a fresh virtual environment with WHAT installed. What pip compiles on one processor
# is compiled on all; a few files of packages are templates, which no compiler takes.
define environment
	@echo "==> $(1): a fresh environment with $(2)"
	rm -rf $(1)
	$(PYTHON) -m venv $(1)
	$(1)/bin/python $(PIP_INSTALL) --no-compile $(2)
	$(1)/bin/python -m compileall -q -j 0 $(1)/lib >/dev/null || true
endef

.PHONY: demo test check versions lint docs experiments zoo bench trust properties fuzz faults soak numerics orders packages conformance deep clean

demo:
	$(call environment,.venv-demo,".[demo]")
	.venv-demo/bin/smh demo --force

test:
	$(call environment,.venv-test,--editable ".[test$(comma)test-models$(comma)torch$(comma)jax$(comma)keras]")
	$(ONE_THREAD) .venv-test/bin/python -m pytest $(PYTEST_ARGS)
	printf '%s\n' torch jax tensorflow numpy | $(ONE_THREAD) xargs -P 2 -n 1 .venv-test/bin/smh conformance --backend

check: .venv-check/made
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv-check/bin/python -m pytest $(PYTEST_ARGS) $(CHECK)

.venv-check/made: pyproject.toml constraints.txt
	$(call environment,.venv-check,--editable ".[test]")
	touch $@

# For example PYTHONS="python3.12 python3.13"; the first one gets the lowest versions as well, where typer lays out
# help in another way.
PYTHONS ?= python3.11 python3.12 python3.13

versions:
	for python in $(PYTHONS); do \
	    rm -rf .venv-versions && $$python -m venv .venv-versions || exit 1; \
	    .venv-versions/bin/python $(PIP_INSTALL) --editable ".[test]" || exit 1; \
	    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv-versions/bin/python -m pytest $(PYTEST_ARGS) $(CHECK) || exit 1; \
	done
	rm -rf .venv-versions && $(firstword $(PYTHONS)) -m venv .venv-versions
	.venv-versions/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
	    --editable ".[test]"
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv-versions/bin/python -m pytest $(PYTEST_ARGS) $(CHECK) -k "not help"

lint: .venv-dev/made
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/mypy

docs: .venv-dev/made
	rm -rf site
	NO_MKDOCS_2_WARNING=1 .venv-dev/bin/mkdocs build --strict

.venv-dev/made: pyproject.toml constraints.txt
	$(call environment,.venv-dev,--editable ".[dev$(comma)docs]")
	touch $@

experiments: .venv-experiments/made
	OMP_NUM_THREADS=1 .venv-experiments/bin/python -m experiments run --jobs 2
	.venv-experiments/bin/python -m experiments report --output docs/results

.venv-experiments/made: pyproject.toml constraints.txt
	$(call environment,.venv-experiments,--editable ".[experiments]")
	touch $@

zoo: .venv-zoo/made
	OMP_NUM_THREADS=1 .venv-zoo/bin/python -m tests.zoo.elsewhere > .venv-zoo/page.md
	mv .venv-zoo/page.md docs/results/zoo.md

.venv-zoo/made: pyproject.toml constraints.txt
	$(call environment,.venv-zoo,--editable ".[torch]" timm torchvision lightning accelerate)
	touch $@

bench: .venv-bench/made
	for backend in numpy torch jax tensorflow; do .venv-bench/bin/python -m benchmarks kernels --backend $$backend || exit 1; done
	for backend in torch jax tensorflow; do .venv-bench/bin/python -m benchmarks step --backend $$backend || exit 1; done
	.venv-bench/bin/python -m benchmarks inference
	.venv-bench/bin/python -m benchmarks loading
	for backend in torch jax tensorflow; do .venv-bench/bin/python -m benchmarks sizes --backend $$backend || exit 1; done
	.venv-bench/bin/python -m benchmarks report

.venv-bench/made: pyproject.toml constraints.txt
	$(call environment,.venv-bench,--editable ".[test$(comma)test-models$(comma)torch$(comma)jax$(comma)keras]")
	touch $@

trust: properties fuzz faults soak numerics orders packages conformance deep
	.venv-trust/bin/python -m trust demo
	.venv-trust/bin/python -m trust report --output docs/results/trust.md --readme README.md

properties: .venv-trust/made
	HYPOTHESIS_PROFILE=deep $(ONE_THREAD) .venv-trust/bin/python -m pytest $(PYTEST_ARGS)

fuzz faults soak numerics orders packages conformance deep: .venv-trust/made
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv-trust/bin/python -m trust $@

.venv-trust/made: pyproject.toml constraints.txt
	$(call environment,.venv-trust,--editable ".[test$(comma)test-models$(comma)torch$(comma)jax$(comma)keras]")
	touch $@

clean:
	rm -rf .venv-demo .venv-test .venv-check .venv-versions .venv-dev .venv-experiments .venv-zoo .venv-bench .venv-trust site build dist
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

comma := ,
