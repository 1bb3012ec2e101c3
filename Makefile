# Contourcast. `make demo` and `make test` each stand alone on a fresh machine.
PYTHON ?= python3
# A wheel file or requirement that satisfies torch's pin, such as PyTorch's CPU build: make TORCH=torch-2.13.0+cpu….whl demo
TORCH ?=
BIN := .venv/bin
# Processes that tests run in.
WORKERS ?= 2

DEMO_PARTS := baselines
TEST_PARTS := baselines,codecs,compare,dev,docs,evidence,networks,report,s3,simulation,tracing,train,triton

# Compiled at installation, where there is a compiler.
KERNEL := hatch_build.py $(addprefix contourcast/models/kernels/,build.py selective_scan.c)

# Python's files are compiled when they are first imported: most never are, and compiling all of them
# takes as long as everything else.
INSTALL = $(BIN)/pip install -q --no-compile -c constraints.txt $(TORCH)

# The review page, built; not in git, in the wheel.
PAGE := contourcast/service/static/index.html
PAGE_SOURCES := $(wildcard review/*.html review/*.json review/*.ts) $(shell find review/src -type f)

.PHONY: demo demo-service demo-review page test check test-all bench docs serve wheel peers constraints image-steps sbom clean

demo: .venv/.stamp-demo        ## a virtual patient, the main job, a table and pictures
	$(BIN)/contourcast demo --out demo

demo-service: .venv/.stamp-demo ## Orthanc, a course pushed by C-STORE, structure sets found back (needs make peers)
	$(BIN)/python deploy/demo_service.py --out demo-service

demo-review: .venv/.stamp-demo $(PAGE) ## the review page on a simulated course, with somebody to sign in as
	$(BIN)/python deploy/demo_review.py --out demo-review

page: $(PAGE)                  ## the review page, built into the package (needs Node 20.19 or newer)

test: .venv/.stamp-test        ## everything that the tests need, then the tests
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not slow" --doctest-modules contourcast tests

check: .venv/.stamp-test       ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-all: .venv/.stamp-test    ## the long ones too
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --doctest-modules contourcast tests

bench: .venv/.stamp-test       ## ratios against peers
	for script in $(filter-out measure,$(basename $(notdir $(wildcard benchmarks/*.py)))); do \
	  echo "== $$script"; $(BIN)/python -m benchmarks.$$script || exit 1; done

docs: .venv/.stamp-test
	$(BIN)/mkdocs build --strict --site-dir site

serve: .venv/.stamp-demo
	$(BIN)/contourcast serve

wheel: .venv/.stamp-test $(PAGE)
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

peers:                         ## the Debian programs that tests use as oracles (needs root)
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	  dicom3tools dcmtk plastimatch nginx-light orthanc orthanc-dicomweb orthanc-gdcm orthanc-python postgresql \
	  radosgw ceph-mon ceph-osd ceph-common openssl chromium

constraints:                   ## pins from what is installed
	$(BIN)/pip freeze --exclude-editable | sed -E 's/\+cpu//; / @ /d' \
	  | sed '1i # Every package that an installation with all extras but [gpu] has, exactly. Made by "make constraints".' > constraints.txt

image-steps:                   ## the stages of the image without an engine, on a bare Debian to be thrown away (root)
	docker/image-steps.sh

sbom: .venv/.stamp-demo        ## what an installation holds, as CycloneDX
	$(PYTHON) -m venv build/sbom && build/sbom/bin/pip install -q cyclonedx-bom==7.5.0
	mkdir -p dist && build/sbom/bin/cyclonedx-py environment --output-reproducible \
	  --pyproject pyproject.toml --output-file dist/contourcast.cdx.json $(BIN)/python

clean:
	rm -rf .venv demo demo-service demo-review site dist build review/node_modules contourcast/service/static

$(PAGE): $(PAGE_SOURCES)
	@command -v npm >/dev/null || { echo "the review page is built by Node.js 20.19 or newer: install it, or a wheel that holds the page"; exit 1; }
	cd review && npm ci --no-audit --no-fund && npm run build

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Contourcast needs Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "this Python cannot make environments; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.stamp-demo: pyproject.toml constraints.txt $(KERNEL) | .venv/bin/python
	@test -f .venv/.stamp-test -a ! .venv/.stamp-test -ot pyproject.toml || $(INSTALL) -e '.[$(DEMO_PARTS)]'
	@touch $@

.venv/.stamp-test: pyproject.toml constraints.txt $(KERNEL) | .venv/bin/python
	$(INSTALL) -e '.[$(TEST_PARTS)]'
	@touch $@
