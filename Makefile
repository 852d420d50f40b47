# Build, run and test saccade. `make` lists the targets.
PYTHON      ?= python3
MODEL       ?= lookwhere-dinov2
SEED        ?= 1
CHECKPOINT  ?= build/$(MODEL).pt
SIZE        ?=
K           ?=
TASK        ?=
PRECISION   ?= fp32
ENGINE      ?= openvino
IMAGES      ?= examples
PYTEST_ARGS ?= -n 2 --dist loadfile

BIN     := .venv/bin
SACCADE := $(BIN)/saccade
BUNDLE  := build/$(basename $(notdir $(CHECKPOINT)))
# Not bundle.json: verdicts are added to it.
ONNX    := $(BUNDLE)/extractor.onnx
BUILT   := $(BUNDLE).$(ENGINE)-$(PRECISION).built.json
DEMO    := build/demo
PHOTO   := examples/china.jpg
NATIVE  := $(wildcard runtime/native/src/* runtime/native/python/* runtime/native/include/*)
EXPORT  := $(wildcard export/*.py) src/saccade/bundle.py src/saccade/golden.py
CHAIN   := $(wildcard runtime/*.py engines/*.py) $(NATIVE)
JUDGE   := $(wildcard validate/*.py)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help demo onnx engines parity bench test lint doctor clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: MODEL=$(MODEL) CHECKPOINT=FILE SIZE= K= TASK= PRECISION=$(PRECISION) ENGINE=$(ENGINE) IMAGES=$(IMAGES)"
demo:    $(DEMO)/demo.json ## From checkpoint to features, picture and proof, in build/demo
	@$(BIN)/python -m saccade.validate.demo --show $<
onnx:    $(ONNX)           ## Export CHECKPOINT (or a seeded MODEL) to a bundle
engines: $(BUILT)          ## Build ENGINE in PRECISION from the bundle
parity:  $(BUNDLE).$(ENGINE)-$(PRECISION).parity.html ## Prove that engine equal to PyTorch on IMAGES
bench:   build/bench/bench.json ## Time ENGINE against eager PyTorch
test:    lint              ## Run all tests, lint and types included
	$(BIN)/python -m pytest $(PYTEST_ARGS)
lint:    .venv/installed   ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy
doctor:  .venv/installed   ## Say what this machine has and lacks
	$(SACCADE) doctor
clean:                     ## Remove everything that was built, the environment excepted
	rm -rf build

# One environment for everything. Editing C++ does not rebuild an editable install by itself, hence the prerequisites.
.venv/installed: constraints.txt setup.cfg setup.py pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel pybind11
	rm -rf build/setuptools
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[all]'
	touch $@

build $(DEMO) build/bench:
	mkdir -p $@
build/$(MODEL).pt: export/seeded.py | .venv/installed build
	$(SACCADE) make-checkpoint $(MODEL) --seed $(SEED) -o $@
$(ONNX): $(CHECKPOINT) $(EXPORT) | .venv/installed build
	$(SACCADE) export $< -o $(BUNDLE) $(if $(SIZE),--size $(SIZE)) $(if $(K),--k $(K)) $(if $(TASK),--task $(TASK))
$(BUNDLE).%.built.json: $(ONNX) $(wildcard engines/*.py) constraints.txt | .venv/installed
	$(SACCADE) build $(BUNDLE) $(call engine_of,$*) --json > $@
$(BUNDLE).%.parity.html: $(BUNDLE).%.built.json $(CHAIN) $(JUDGE) | .venv/installed
	$(SACCADE) parity $(BUNDLE) --checkpoint $(CHECKPOINT) --images $(IMAGES) $(call engine_of,$*) --report $@
build/bench/bench.json: $(BUILT) $(CHAIN) $(JUDGE) | build/bench
	$(SACCADE) bench $(BUNDLE) --checkpoint $(CHECKPOINT) --engine $(ENGINE) --precision $(PRECISION) -o $@

# The engine and precision in a file name "tensorrt-rtx-fp32" as options.
engine_of = --engine $(patsubst %-$(lastword $(subst -, ,$(1))),%,$(1)) --precision $(lastword $(subst -, ,$(1)))

$(DEMO)/run.json $(DEMO)/features.npz $(DEMO)/overlay.png &: $(BUNDLE).openvino-fp32.built.json $(PHOTO) $(CHAIN) | $(DEMO)
	$(SACCADE) run $(BUNDLE) $(PHOTO) --dense -o $(DEMO)/features.npz --overlay $(DEMO)/overlay.png --json > $(DEMO)/run.json
$(DEMO)/parity.json $(DEMO)/parity.html &: $(BUNDLE).openvino-fp32.built.json $(PHOTO) $(CHAIN) $(JUDGE) | $(DEMO)
	$(SACCADE) parity $(BUNDLE) --checkpoint $(CHECKPOINT) --images $(IMAGES) --report $(DEMO)/parity.html --json > $(DEMO)/parity.json
$(DEMO)/bench.json: $(BUNDLE).openvino-fp32.built.json $(CHAIN) $(JUDGE) | $(DEMO)
	$(SACCADE) bench $(BUNDLE) --checkpoint $(CHECKPOINT) --rounds 3 --frames 5 -o $@
$(DEMO)/rtx.json: $(ONNX) $(wildcard engines/*.py) constraints.txt | .venv/installed $(DEMO)
	if $(BIN)/python -c 'import tensorrt_rtx' 2>/dev/null; then \
	  $(SACCADE) build $(BUNDLE) --engine tensorrt-rtx --json > $@; \
	else echo 'no TensorRT-RTX wheel for this machine: its engines are left out' >&2; echo null > $@; fi
$(DEMO)/demo.json: $(BUNDLE).openvino-fp32.built.json $(DEMO)/rtx.json $(DEMO)/run.json $(DEMO)/parity.json $(DEMO)/bench.json
	$(BIN)/python -m saccade.validate.demo $@ openvino=$< tensorrt_rtx=$(DEMO)/rtx.json run=$(DEMO)/run.json \
	  parity=$(DEMO)/parity.json bench=$(DEMO)/bench.json
