# Two commands do all the set-up: `make demo` and `make test`. Everything goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
# Installed first and alone, so that nothing else picks a build of it. A CPU build is enough: where pip would take one with
# CUDA, name PyTorch's CPU index, as in  make demo TORCH="torch==2.13.0 --index-url URL"
TORCH ?= torch==2.13.0
# The versions that CI was green with, for all else. To take the newest:  make test PINS=
PINS ?= --constraint .ci/constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/ready
TOOLS := $(VENV)-tools

# Modules are compiled by the first process that imports them, not by each: pip does not (--no-compile), as most are never imported.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check style types imports fuzz faults soak bench-bars arm64 format lock audit release clean

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --no-compile $(TORCH)
	$(BIN)/pip install --quiet --no-compile $(PINS) --editable ".[serve,otel,bulk,ray,qdrant,milvus,lancedb,pgvector,langchain-qdrant,langchain-milvus,llama-index,haystack,export,openvino,mini,bench,dev]"
	touch $(READY)

demo: $(READY)  ## build the offline model, export it with INT8, and show what it does
	$(BIN)/m3-export mini-m3 out/mini-m3 --force
	$(BIN)/python examples/demo.py out/mini-m3

test: $(READY)  ## every test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15

check: style imports types  ## style, types, and the direction of imports

style: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

imports: $(READY)
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy -p m3_runtime -p m3_export -p m3_models -p m3_bench

# What takes too long for every day; `make test` runs a few seconds of the first two.
TINY := out/tiny-random

$(TINY): $(READY)
	rm -rf $(TINY)-checkpoint
	$(BIN)/m3-export tiny-random $(TINY)-checkpoint --checkpoint-only
	$(BIN)/m3-export $(TINY)-checkpoint $(TINY) --quiet --force

fuzz: $(TINY)  ## a million texts against transformers and PyTorch, ten thousand hostile bundles
	$(BIN)/python tests/fuzz/fuzz_texts.py $(TINY) $(TINY)-checkpoint
	$(BIN)/python tests/fuzz/fuzz_bundles.py $(TINY)

# FAULTS="--mount --clock" adds real full disks (as root) and clock jumps (with Debian's libfaketime)
faults: $(TINY)  ## export, bulk and server killed, stopped for a minute, without room on the disk
	$(BIN)/python tests/fuzz/faults.py $(TINY) $(TINY)-checkpoint $(FAULTS)

MINUTES ?= 30
SOAK ?= out/mini-m3

soak: $(READY)  ## a server under changing load: memory, leaks, wrong answers; MINUTES=1440 for a day
	test -d $(SOAK) || $(BIN)/m3-export mini-m3 $(SOAK)
	$(BIN)/m3-bench soak $(SOAK) --minutes $(MINUTES) -o out/soak.json --force

# What is measured, in BGE-M3's geometry. BARS takes options, as in  make bench-bars BARS="--targets ceiling,lite-query"
CHECKPOINT ?= out/ckpt-large
BALANCED ?= out/large-balanced

bench-bars: $(READY)  ## our targets: variants against peers and the processor's ceiling (exports first if need be; about an hour)
	test -d $(CHECKPOINT) || $(BIN)/m3-export synthetic-xlmr-large $(CHECKPOINT) --checkpoint-only
	test -d $(BALANCED) || $(BIN)/m3-export $(CHECKPOINT) $(BALANCED) --budget balanced
	$(BIN)/m3-bench peers $(CHECKPOINT) $(BALANCED) --scenarios targets --rounds 5 -o out/targets.json $(BARS)

arm64: $(READY)  ## tests and vectors on Arm, emulated (as root; apt-get install debootstrap qemu-user-static proot)
	$(BIN)/python -m pytest -q tests/contract --bundles out/bundles
	PYTHON=$(BIN)/python tests/environment/arm64.sh out/arm64 out/bundles

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY)  ## write down what is installed
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > .ci/constraints.txt

$(TOOLS)/ready:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

audit: $(TOOLS)/ready  ## known vulnerabilities in what CI installs; asks PyPI
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --requirement .ci/constraints.txt
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --requirement tests/environment/pins.txt

release: check test $(TOOLS)/ready  ## dist/: sdist, wheel, and the bill of materials of a server's installation
	rm -rf dist $(VENV)-release
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/pip install --quiet --disable-pip-version-check $(PINS) "$$(echo dist/*.whl)[serve,bulk,openvino]"
	rm $(VENV)-release/lib/python*/site-packages/m3_runtime-*.dist-info/direct_url.json  # names a folder of this machine
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible --output-file dist/sbom.cdx.json $(VENV)-release/bin/python

clean:
	rm -rf out $(VENV) $(TOOLS) $(VENV)-release dist
