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
CALIBRATION ?=
PEERS       ?= eager full-backbone
NVCC        ?= nvcc
GPU_CHECK_ARGS ?=
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

BIN     := .venv/bin
SACCADE := $(BIN)/saccade
NAME    := $(basename $(notdir $(CHECKPOINT)))
BUNDLE  := build/$(NAME)
ONNX    := $(BUNDLE)/extractor.onnx
CHOICE  := $(ENGINE)-$(PRECISION)
# Graphs to convert first; OpenVINO takes 16 bits as a hint on the fp32 graphs.
VARIANT := $(if $(filter %-fp32 openvino-bf16 openvino-fp16,$(CHOICE)),,$(BUNDLE).$(PRECISION).converted.json)
DEMO    := build/demo
PHOTO   := examples/china.jpg
NATIVE  := $(wildcard runtime/native/src/* runtime/native/python/*)
LIB     := $(NATIVE) $(wildcard runtime/native/*.* runtime/native/include/* runtime/native/examples/*.* runtime/cuda/* \
             tests/runtime/native/*.* tests/runtime/cuda_host.cpp)
FATBIN  := build/cuda/saccade.fatbin
LIBRARY := $(wildcard src/saccade/*.py src/saccade/cli/*.py)
ENGINES := $(wildcard engines/*.py) $(LIBRARY) constraints.txt
EXPORT  := $(wildcard export/*.py) $(LIBRARY) constraints.txt
CHAIN   := $(wildcard runtime/*.py) $(NATIVE) $(ENGINES)
JUDGE   := $(wildcard validate/*.py) $(EXPORT) $(CHAIN)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo onnx engines parity bench lib lib-test cuda no-nvcc gpu-check gpu-check-needs fuzz clang test lint doctor clean FORCE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: MODEL=$(MODEL) CHECKPOINT=FILE SIZE= K= TASK= PRECISION=$(PRECISION) ENGINE=$(ENGINE) IMAGES=$(IMAGES) CALIBRATION=$(CALIBRATION) PEERS='$(PEERS)'"
demo:    $(DEMO)/demo.json ## From checkpoint to features, picture and proof, in build/demo
	@$(BIN)/python -m saccade.validate.demo --show $<
onnx:    $(ONNX)           ## Export CHECKPOINT (or a seeded MODEL) to a bundle
engines: $(BUNDLE).$(CHOICE).built.json ## Build ENGINE in PRECISION (int8, fp8: CALIBRATION=FOLDER) from the bundle
parity:  $(BUNDLE).$(CHOICE).parity.json ## Prove that engine equal to PyTorch on IMAGES
bench:   build/bench/$(notdir $(BUNDLE)).$(CHOICE).json ## Time that engine against PEERS and the machine's roof
cuda:    $(if $(shell command -v $(NVCC)),$(FATBIN),no-nvcc) ## Compile the CUDA kernels (NVCC=) to build/cuda; see docs/gpu.md
gpu-check: gpu-check-needs $(if $(shell command -v $(NVCC)),$(FATBIN),no-nvcc) build/gpu-check/kernels ## Check and time it all on this GPU, with torch in PYTHON; see docs/gpu.md
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m saccade.validate.gpu_check $(GPU_CHECK_ARGS)
lib:     build/native/release/built ## Build the C library, build/lib/libsaccade.so
lib-test: $(foreach kind,release asan tsan,build/native/$(kind)/built) ## Test the C library, under sanitizers too
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/runtime/native
fuzz:    clang build/native/fuzz/built ## Fuzz what the C library parses and measures, 300 s each, into build/fuzz
	for target in bundle image; do mkdir -p build/fuzz/$$target && \
	  build/native/fuzz/tests/fuzz_$$target -max_total_time=300 -max_len=8192 -print_final_stats=1 \
	    -artifact_prefix=build/fuzz/$$target- build/fuzz/$$target tests/runtime/native/corpus/$$target || exit 1; done
clang:
	@command -v clang++-14 > /dev/null || { echo 'make fuzz needs libFuzzer: apt install clang-14 libclang-rt-14-dev' >&2; exit 1; }
test:    lint $(foreach kind,release asan tsan,build/native/$(kind)/built) ## Run all tests, lint and types included
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

# The C library with its tests and examples, as a preset of runtime/native/CMakePresets.json says.
build/native/%/built: $(LIB) .venv/installed
	cmake -S runtime/native --preset $* --log-level=WARNING -DSACCADE_OPENVINO_INCLUDE=$$($(BIN)/python -c \
	  'import importlib.util as find; print(find.find_spec("openvino").submodule_search_locations[0])')/include
	cmake --build build/native/$* --parallel 2
	touch $@

# A setting is a file that is rewritten only when its text differs, so that what was made with another one is stale.
define keep_setting
@echo '$(SETTING)' | cmp -s - $@ || echo '$(SETTING)' > $@
endef
build/settings/%: FORCE | build/settings
	$(keep_setting)
build/settings/$(MODEL).seed: SETTING = $(SEED)
build/settings/$(NAME).export: SETTING = $(CHECKPOINT) $(SIZE) $(K) $(TASK)
build/settings/$(NAME).calibration: SETTING = $(CALIBRATION) $(if $(CALIBRATION),$(words $(wildcard $(CALIBRATION)/*)) files)
build/settings/$(NAME).images: SETTING = $(IMAGES) $(wildcard $(IMAGES)/*)
build/settings build/bench $(DEMO):
	mkdir -p $@

build/$(MODEL).pt: export/seeded.py build/settings/$(MODEL).seed | .venv/installed
	$(SACCADE) make-checkpoint $(MODEL) --seed $(SEED) -o $@
$(ONNX): $(CHECKPOINT) build/settings/$(NAME).export $(EXPORT) | .venv/installed
	$(SACCADE) export $< -o $(BUNDLE) --force $(if $(SIZE),--size $(SIZE)) $(if $(K),--k $(K)) $(if $(TASK),--task $(TASK))
$(BUNDLE).%.converted.json: $(ONNX) $(if $(CALIBRATION),build/settings/$(NAME).calibration) $(JUDGE) | .venv/installed
	$(SACCADE) convert $(BUNDLE) --precision $* $(if $(CALIBRATION),--calibration $(CALIBRATION)) --json > $@
$(BUNDLE).$(CHOICE).built.json: $(VARIANT)
$(BUNDLE).%.built.json: $(ONNX) $(ENGINES) | .venv/installed
	$(SACCADE) build $(BUNDLE) $(call options_of,$*) --json > $@
# A failed parity exits with 1, and make then deletes its target: the page that shows why is another file.
$(BUNDLE).%.parity.json: $(BUNDLE).%.built.json build/settings/$(NAME).images $(JUDGE)
	$(SACCADE) parity $(BUNDLE) --checkpoint $(CHECKPOINT) --images $(IMAGES) $(call options_of,$*) \
	  --report $(BUNDLE).$*.parity.html --json > $@
build/bench/$(notdir $(BUNDLE)).%.json: $(BUNDLE).%.built.json $(JUDGE) | build/bench
	$(SACCADE) bench $(BUNDLE) --checkpoint $(CHECKPOINT) --peers $(PEERS) --roof $(call options_of,$*) \
	  --plots $(basename $@).plots --markdown $(basename $@).md -o $@

# Machine code for each architecture, and PTX for those between and after them. -fmad=false: the CPU's bits. What ptxas
# says of registers, shared memory and spills is kept beside the fatbin.
CUDA_ARCHITECTURES := 75 80 86 87 89 90 100 120
$(FATBIN).settings: SETTING = $(shell command -v $(NVCC)) $(CUDA_ARCHITECTURES)
$(FATBIN).settings: FORCE
	@mkdir -p $(@D)
	$(keep_setting)
$(FATBIN): $(wildcard runtime/cuda/*) runtime/native/src/taps.hpp runtime/native/src/kernels.hpp $(FATBIN).settings
	$(NVCC) -std=c++17 -fmad=false -Werror all-warnings -Xptxas -v \
	  -I runtime/cuda -I runtime/native/include -I runtime/native/src \
	  $(foreach n,$(CUDA_ARCHITECTURES),-gencode arch=compute_$n,code=sm_$n) -gencode arch=compute_75,code=compute_75 \
	  -fatbin -o $@ runtime/cuda/saccade.cu 2> $(@D)/ptxas.txt || { cat $(@D)/ptxas.txt >&2; exit 1; }
# For the machine's own Python, which has torch with CUDA: nothing is installed there.
build/gpu-check/kernels: setup.py $(NATIVE)
	mkdir -p $(@D)
	$(PYTHON) setup.py --quiet build_ext --inplace
	touch $@
gpu-check-needs:
	@$(PYTHON) -c 'import importlib.util as find, sys; \
	  lacks = [name.lower() for name in sys.argv[1:] if find.find_spec(name.replace("Pillow", "PIL")) is None]; \
	  sys.exit(f"make gpu-check: {sys.executable} lacks {(chr(44) + chr(32)).join(lacks)}; install them, or name another PYTHON=" \
	    if lacks else 0)' torch numpy Pillow msgspec tqdm pybind11 setuptools
no-nvcc:
	@echo '$(NVCC) is not here, so the CUDA kernels are not compiled; they need CUDA toolkit 13.0'

# "tensorrt-rtx-fp32" as options.
options_of = --engine $(patsubst %-$(lastword $(subst -, ,$(1))),%,$(1)) --precision $(lastword $(subst -, ,$(1)))

$(DEMO)/run.json $(DEMO)/features.npz $(DEMO)/overlay.png &: $(BUNDLE).openvino-fp32.built.json $(PHOTO) $(CHAIN) | $(DEMO)
	$(SACCADE) run $(BUNDLE) $(PHOTO) --dense -o $(DEMO)/features.npz --overlay $(DEMO)/overlay.png --json > $(DEMO)/run.json
$(DEMO)/parity.json: $(BUNDLE).openvino-fp32.parity.json | $(DEMO)
	cp $(BUNDLE).openvino-fp32.parity.html $(DEMO)/parity.html
	cp $< $@
$(DEMO)/bench.json: $(BUNDLE).openvino-fp32.built.json $(JUDGE) | $(DEMO)
	$(SACCADE) bench $(BUNDLE) --checkpoint $(CHECKPOINT) --rounds 3 --frames 5 -o $@
$(DEMO)/rtx.json: $(ONNX) $(ENGINES) | .venv/installed $(DEMO)
	if $(BIN)/python -c 'import tensorrt_rtx' 2>/dev/null; then \
	  $(SACCADE) build $(BUNDLE) --engine tensorrt-rtx --json > $@; \
	else echo 'no TensorRT-RTX wheel for this machine: its engines are left out' >&2; echo null > $@; fi
$(DEMO)/demo.json: $(BUNDLE).openvino-fp32.built.json $(DEMO)/rtx.json $(DEMO)/run.json $(DEMO)/parity.json $(DEMO)/bench.json
	$(BIN)/python -m saccade.validate.demo $@ openvino=$< tensorrt_rtx=$(DEMO)/rtx.json run=$(DEMO)/run.json \
	  parity=$(DEMO)/parity.json bench=$(DEMO)/bench.json
