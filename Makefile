# make demo        trains a small GPT on this machine, from a bare clone
# make test        builds everything and runs a sample of the test matrices
# make test-full   the whole matrices
# make lint        formatting and types, as pre-commit runs them
# make check-aarch64   compiles the op library for 64-bit Arm (needs a cross compiler)
PYTHON ?= python3
BIN := .venv/bin
CTEST = PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir build/cmake-$$($(BIN)/python -c \
	"import sysconfig; print(sysconfig.get_config_var('SOABI'))") --output-on-failure

# What GPU kernels serve, through the launch code and the kernels that a GPU would get.
ON_EMULATED_GPU = --device sm90-emulated tests/ops tests/gpu/test_fwd_lengths.py

.PHONY: build demo test test-full lint check-aarch64 clean

build:
	@$(PYTHON) tools/bootstrap.py

demo: build
	$(BIN)/python examples/train_gpt.py

test:
	@$(PYTHON) tools/bootstrap.py --tests
	$(CTEST)
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest -q $(ON_EMULATED_GPU)

test-full:
	@$(PYTHON) tools/bootstrap.py --tests
	$(CTEST)
	$(BIN)/python -m pytest --full
	$(BIN)/python -m pytest -q --full $(ON_EMULATED_GPU)

lint: build
	$(BIN)/pre-commit run --all-files

check-aarch64: build
	sh tools/check_aarch64.sh

clean:
	rm -rf build dist *.egg-info flash_attn4/*.so
