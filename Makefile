VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
BUNDLE := artifacts/all-MiniLM-L6-v2

.DEFAULT_GOAL := help
.PHONY: help artifacts test wheels faults guard guard-baseline bench-operations bench bench-cold bench-hosts bench-install bench-warm bench-sts bench-retrieval bench-ship bench-odd-texts bench-bulk bench-ray sts-given report docs lint typecheck clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-18s %s\n' "$$name" "$$text"; done

artifacts: $(VENV)/.installed  ## build the default bundle, print its table and a first vector
	$(BIN)/firstvec build --output artifacts
	@echo 'First vector, of "How do I reset my password?" (384 components, the first six):'
	@$(BIN)/firstvec encode --model $(BUNDLE) --format text "How do I reset my password?" | cut -d' ' -f1-6

test: $(VENV)/.installed lint typecheck  ## run the linters, the type checker and the tests, as before every commit
	$(BIN)/pytest

wheels: $(VENV)/.installed  ## build what users install, in dist/: wheels for Linux and macOS, and the sources
	$(BIN)/pip install --quiet --constraint constraints.txt --group wheels
	rm -rf dist
	for target in $$($(BIN)/python runtime/native/build.py --targets); do \
		FIRSTVEC_NATIVE=$$target $(BIN)/hatchling build --target wheel --directory dist || exit 1; done
	$(BIN)/hatchling build --target sdist --directory dist
	for wheel in dist/*-manylinux*.whl; do $(BIN)/auditwheel show $$wheel | grep '^"manylinux_2_17_' || exit 1; done

faults: artifacts  ## run the long campaigns of tests/faults and tests/native (more than an hour); figures in build/faults/figures.json
	$(BIN)/pip install --quiet --constraint constraints.txt --group faults --group wheels
	$(BIN)/pytest tests/faults tests/native tests/runtime/bulk/test_cluster.py tests/runtime/text/test_wordpiece.py tests/test_install.py tests/test_interop.py tests/test_shipped_forms.py tests/build/shipping/frozen --faults --durations=0

guard: artifacts  ## compare the code's processor time with this machine's baseline
	$(BIN)/python benchmarks/guard.py

guard-baseline: artifacts  ## measure the baseline of make guard, on an idle machine
	$(BIN)/python benchmarks/guard.py --update

bench-operations: artifacts  ## time the loader's operations: construction, metadata, detection, threads, memory
	mkdir -p build/benchmarks
	$(BIN)/pytest benchmarks/test_operations.py --benchmark-columns=median,iqr,rounds -W ignore \
		--benchmark-json=build/benchmarks/operations.json

bench-cold: artifacts  ## measure the time to the first vector, and its peers' (ROUNDS=N, default 15)
	$(BIN)/python benchmarks/cold_start.py --bundle $(BUNDLE) --json build/benchmarks/cold-start.json \
		--markdown build/benchmarks/cold-start.md $(addprefix --rounds ,$(ROUNDS))
	$(BIN)/python benchmarks/hand_over.py --bundle $(BUNDLE) $(addprefix --rounds ,$(ROUNDS))

bench-hosts: artifacts  ## measure the cold start of the adapters, and of their hosts' usual embedders (15 minutes)
	$(BIN)/pip install --quiet --constraint constraints.txt --group bench-hosts
	$(BIN)/python benchmarks/hosts.py --bundle $(BUNDLE) --json build/benchmarks/hosts.json \
		--markdown build/benchmarks/hosts.md $(addprefix --rounds ,$(ROUNDS))

bench-install: artifacts  ## measure what installs take on disk, firstvec's extras and its peers, and their first vector (10 minutes)
	$(BIN)/python benchmarks/install_sizes.py --bundle $(BUNDLE) --json build/benchmarks/install-sizes.json \
		--markdown build/benchmarks/install-sizes.md $(addprefix --rounds ,$(ROUNDS))

bench-warm: artifacts  ## measure the warm native engine: one text, two threads, a million texts, Ctrl-C (8 minutes)
	$(BIN)/python benchmarks/warm.py --bundle $(BUNDLE) --json build/benchmarks/warm.json

bench: artifacts  ## measure speed and accuracy of warm models, and their peers'
	mkdir -p build/benchmarks
	$(BIN)/pytest benchmarks/test_throughput.py --benchmark-columns=median,iqr,rounds -W ignore \
		--benchmark-json=build/benchmarks/throughput.json --markdown=build/benchmarks/throughput.md

bench-sts: sts-given artifacts  ## measure accuracy and speed on the sentences of a labelled set (STS=FILE)
	$(BIN)/python benchmarks/sts.py --bundle $(BUNDLE) --sts "$(STS)" --json build/benchmarks/sts.json \
		--markdown build/benchmarks/sts.md

bench-retrieval: artifacts  ## measure how many of the ten nearest passages stay, of all docstrings of Python (10 minutes)
	$(BIN)/python benchmarks/retrieval.py --bundle $(BUNDLE) --json build/benchmarks/retrieval.json \
		--markdown build/benchmarks/retrieval.md

bench-ship: artifacts  ## build docsearch as shiv, pex, a function and more, and measure them and its peers (20 minutes)
	$(BIN)/python benchmarks/shipped_forms.py --bundle $(BUNDLE) --json build/benchmarks/shipped-forms.json \
		--markdown build/benchmarks/shipped-forms.md $(addprefix --rounds ,$(ROUNDS))

bench-bulk: artifacts  ## measure firstvec embed: its speed beside encode, the memory of its workers, and its peers' (10 minutes)
	$(BIN)/python benchmarks/bulk.py --bundle $(BUNDLE) --json build/benchmarks/bulk.json

bench-ray: artifacts  ## measure an actor of Ray: its start, its memory, and two actors beside one (10 minutes)
	$(BIN)/python benchmarks/ray_actors.py --bundle $(BUNDLE) --json build/benchmarks/ray.json

bench-odd-texts: artifacts  ## measure how close the vectors of odd texts are to full precision
	$(BIN)/python benchmarks/odd_texts.py --bundle $(BUNDLE) --json build/benchmarks/odd-texts.json \
		--markdown build/benchmarks/odd-texts.md

sts-given:
	@test -n "$(STS)" || { echo "STS is not given: make bench-sts STS=path/of/sts-test.csv (benchmarks/README.md)" >&2; exit 1; }

report: $(VENV)/.installed  ## write the results of the bench targets to build/report/report.md and report.json
	$(BIN)/python benchmarks/report.py --bundle $(BUNDLE) --markdown build/report/report.md --json build/report/report.json \
		$(addprefix --cold ,$(wildcard build/benchmarks/cold-start.json)) \
		$(addprefix --throughput ,$(wildcard build/benchmarks/throughput.json)) \
		$(addprefix --operations ,$(wildcard build/benchmarks/operations.json)) \
		$(addprefix --retrieval ,$(wildcard build/benchmarks/retrieval.json)) \
		$(addprefix --odd-texts ,$(wildcard build/benchmarks/odd-texts.json))

docs: $(VENV)/.installed  ## build the documentation's site in site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in site/index.html"

lint: $(VENV)/.installed  ## check style, format, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

typecheck: $(VENV)/.installed  ## check types
	$(BIN)/mypy

clean:  ## delete the files that make and the tools wrote
	rm -rf $(VENV) $(BUNDLE) .mypy_cache .pytest_cache .ruff_cache .hypothesis .cache dist site runtime/firstvec/_native.abi3.so runtime/firstvec/_native.txt
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch is installed first and alone. As a dependency, pip would take its newest build, with the CUDA packages.
# The editable install compiles the extension module. If it cannot, it leaves a note that says why.
$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard runtime/native/*.[ch] runtime/native/*.py)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --build-constraint constraints.txt \
		--editable '.[build,ray,ship]' --group dev --group docs --group interop --group hosts
	@cat runtime/firstvec/_native.txt 2>/dev/null || true
	touch $@
