VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
BUNDLE := artifacts/all-MiniLM-L6-v2

.PHONY: artifacts test faults guard guard-baseline bench-operations bench bench-cold bench-sts sts-given report lint typecheck clean

artifacts: $(VENV)/.installed  ## build the default bundle, print its table and a first vector
	$(BIN)/firstvec build --output artifacts
	@echo 'First vector, of "How do I reset my password?" (384 components, the first six):'
	@$(BIN)/firstvec encode --model $(BUNDLE) --format text "How do I reset my password?" | cut -d' ' -f1-6

test: $(VENV)/.installed lint typecheck  ## everything that must hold before a commit lands
	$(BIN)/pytest

faults: artifacts  ## the long campaigns of tests/faults: up to half an hour; figures in build/faults/figures.json
	$(BIN)/pip install --quiet --constraint constraints.txt --group faults
	$(BIN)/pytest tests/faults --faults --durations=0

guard: artifacts  ## regression guards: ratios to fixed peers beside those of benchmarks/baseline.json
	$(BIN)/python benchmarks/guard.py

guard-baseline: artifacts  ## measure the guards' baseline, on a machine that does nothing else
	$(BIN)/python benchmarks/guard.py --update

bench-operations: artifacts  ## the replaced loader's report: initialisation, metadata, detection, threads, memory …
	mkdir -p build/benchmarks
	$(BIN)/pytest benchmarks/test_operations.py --benchmark-columns=median,iqr,rounds -W ignore \
		--benchmark-json=build/benchmarks/operations.json

bench-cold: artifacts  ## the cold-start figures of the README, on this machine, in build/benchmarks
	$(BIN)/python benchmarks/cold_start.py --bundle $(BUNDLE) --json build/benchmarks/cold-start.json \
		--markdown build/benchmarks/cold-start.md --waterfall build/benchmarks/cold-start.svg
	$(BIN)/python benchmarks/hand_over.py --bundle $(BUNDLE)

bench: artifacts  ## speed and accuracy of a warm model beside its peers
	mkdir -p build/benchmarks
	$(BIN)/pytest benchmarks/test_throughput.py --benchmark-columns=median,iqr,rounds -W ignore \
		--benchmark-json=build/benchmarks/throughput.json --markdown=build/benchmarks/throughput.md

bench-sts: sts-given artifacts  ## STS=FILE: accuracy and speed of warm models on the sentences of a labelled set
	$(BIN)/python benchmarks/sts.py --bundle $(BUNDLE) --sts "$(STS)" --json build/benchmarks/sts.json \
		--markdown build/benchmarks/sts.md

sts-given:
	@test -n "$(STS)" || { echo "STS is not given: make bench-sts STS=path/of/sts-test.csv (benchmarks/README.md)" >&2; exit 1; }

report: $(VENV)/.installed  ## a page and a summary, in build/report, of what the targets above left in build/benchmarks
	$(BIN)/python benchmarks/report.py --bundle $(BUNDLE) --html build/report/index.html --markdown build/report/report.md \
		$(patsubst %,--cold %,$(wildcard build/benchmarks/cold-start.json)) \
		$(patsubst %,--throughput %,$(wildcard build/benchmarks/throughput.json)) \
		$(patsubst %,--operations %,$(wildcard build/benchmarks/operations.json))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(BUNDLE) .mypy_cache .pytest_cache .ruff_cache .hypothesis .cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone: asked for by another package, pip would take the newest build with its CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[build]' --group dev
	touch $@
