# Every target sets up the virtual environment by itself; nothing else is installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# `make -j train export validate` means one after the other, too.
.NOTPARALLEL:
.PHONY: setup demo train export validate test gpu lint clean

setup: $(READY)

$(READY): pyproject.toml
	# Anew also where it is of a Python that is too old; one may have been left without pip.
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
		|| $(PYTHON) -m venv $(if $(wildcard $(VENV)/pyvenv.cfg),--clear) $(VENV)
	$(BIN)/python -c 'import pip' 2> /dev/null || $(BIN)/python -m ensurepip --upgrade
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	# A Triton for the tests, where there is one; what it requires of numpy is not ours.
	-$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/triton \
		nvidia-pytriton==0.7.0
	# The names that the oldest TensorRT that is supported has, for a test.
	-$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/tensorrt-10.13 \
		tensorrt-cu13-bindings==10.13.2.6
	touch $@

demo: $(READY)
	$(BIN)/cifar-deploy demo $(ARGS)

# make train MODEL=resnet50 ARGS="--epochs 3"
train: $(READY)
	$(BIN)/cifar-deploy train $(or $(MODEL),$(error name a network: make train MODEL=resnet18)) $(ARGS)

export: $(READY)
	$(BIN)/cifar-deploy export $(MODEL) --precision fp32 --precision fp16 $(ARGS)

validate: $(READY)
	$(BIN)/cifar-deploy validate $(MODEL) $(ARGS)

# A worker a core, and a thread a worker; a folder's tests stay together, for what they share. The
# longest begin first, as tests/conftest.py has them.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder $(ARGS)

# Everything that needs a GPU, with the Python that is there and no network:
# make gpu OUT=results STAGES="train:cnn9 export validate benchmark" WHEELS=folder ARGS="--total 540"
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py $(if $(OUT),--out "$(OUT)") \
		$(if $(STAGES),--stages "$(STAGES)") $(if $(WHEELS),--wheels "$(WHEELS)") $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist demo .mypy_cache .pytest_cache .ruff_cache
