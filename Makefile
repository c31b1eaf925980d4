# `make reproduce` and `make test` are the two commands; `make help` lists the others.
# For GNU make 3.81 (macOS) and later. NSLIB_IMAGENET and NSLIB_WEIGHTS, where the environment
# or the command line sets them, reach every command: make hands them on by itself.

PYTHON ?= python3
PROFILE = laptop
FORCE   =
ARGS    =

# Of the benchmarks those whose figures the README states.
TIMED := "attack_step --pairs 5" "corruptions --images 32 --rounds 3" "finetune_round"

# Of the tests: over the cores, a file at a time, for what its tests share is made once.
SPREAD := -n auto --maxprocesses 4 --dist loadfile

EXTRAS      := attacks,xai,distributed,lab,test
VENV_PYTHON := .venv/bin/python
INSTALLED   := .venv/.installed

.PHONY: help reproduce test lint unit nbval bench lab notebooks clean
.DELETE_ON_ERROR:
.NOTPARALLEL: # the parts of `test` would take the cores from each other

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

reproduce: $(INSTALLED) ## run the notebooks; PROFILE=smoke|laptop|full|gpu|imagenet|imagenet_small FORCE=1 ARGS="..."
	$(VENV_PYTHON) -m nslib reproduce --profile $(PROFILE) $(if $(FORCE),--force) $(ARGS)

test: lint unit nbval ## lint, unit and nbval, each a target too; -k goes on after a failure

lint: $(INSTALLED)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

# A process a core, of one thread each: small models gain more from a second process than from a second thread.
unit: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest $(SPREAD)

# An empty store and figure folder: nothing is taken from an earlier run or left in the work tree.
# Real data is hidden: the committed outputs are those of the smoke profile without it.
nbval: $(INSTALLED)
	@tmp=$$(mktemp -d) || exit 1; \
	trap 'rm -rf "$$tmp"' EXIT; trap 'exit 130' INT TERM; \
	unset NSLIB_IMAGENET NSLIB_WEIGHTS; \
	NSLIB_STORE="$$tmp/store" NSLIB_FIGURES="$$tmp/figures" OMP_NUM_THREADS=1 \
	$(VENV_PYTHON) -m pytest $(SPREAD) --nbval-lax --nbval-sanitize-with tests/nbval_sanitize.cfg \
		--nbval-current-env --nbval-cell-timeout 240 paper_nb/*.ipynb

bench: $(INSTALLED) ## time against references, in turn; let nothing else run; writes benchmarks/results
	@for timed in $(TIMED); do \
		set -- $$timed; name=$$1; shift; \
		echo "benchmarks/$$name.py $$*"; \
		out=benchmarks/results/$$name.txt; \
		$(VENV_PYTHON) benchmarks/$$name.py "$$@" > $$out.partial && mv $$out.partial $$out && cat $$out || exit 1; \
	done

# The server's root is the repository, so that jupytext finds the pairing in pyproject.toml.
lab: $(INSTALLED) ## open JupyterLab in paper_nb
	$(VENV_PYTHON) -m jupyterlab --LabApp.default_url=/lab/tree/paper_nb

notebooks: $(INSTALLED) ## re-execute the notebooks at the smoke profile and write them back
	$(VENV_PYTHON) -m nslib notebooks

clean: ## remove the environment, caches and builds; results in runs and figures stay
	rm -rf .venv .pytest_cache .ruff_cache build dist
	find nslib paper_nb tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): $(VENV_PYTHON) pyproject.toml constraints.txt
	$(VENV_PYTHON) -m pip install -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

$(VENV_PYTHON):
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "make: $(PYTHON) not found: install Python 3.11 to 3.13, or name one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
		"make: nslib needs Python 3.11 to 3.13, $(PYTHON) is " + sys.version.split()[0] + \
		": name another one: make PYTHON=python3.12")'
	"$(PYTHON)" -m venv --clear .venv || { rm -rf .venv; exit 1; }
