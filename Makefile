# make demo        trains a small GPT on this machine, from a bare clone
# make test        builds everything and runs a sample of the test matrices
# make test-full   the whole matrices
# make sanitize    C++ tests and wrong PTX under sanitizers of addresses, behaviour and threads
# make sanitize-emulator   the emulator's Python tests under those of addresses and behaviour
# make test-blackwell   on a B200 or B300: builds, runs the tests there, writes a report
# make lint        formatting and types, as pre-commit runs them
# make check-aarch64   compiles the op library for 64-bit Arm (needs a cross compiler)
PYTHON ?= python3
BIN := .venv/bin
CTEST = PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir build/cmake-$$($(BIN)/python -c \
	"import sysconfig; print(sysconfig.get_config_var('SOABI'))") --output-on-failure

# What GPU kernels serve, through the launch code and the kernels that a GPU would get.
ON_EMULATED_GPU = tests/ops tests/gpu/test_fwd_lengths.py

.PHONY: build demo test test-full sanitize sanitize-emulator test-blackwell lint check-aarch64 clean

build:
	@$(PYTHON) tools/bootstrap.py

demo: build
	$(BIN)/python examples/train_gpt.py

test:
	@$(PYTHON) tools/bootstrap.py --tests
	$(CTEST)
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest -q --device sm90-emulated $(ON_EMULATED_GPU)
	$(BIN)/python -m pytest -q --device sm100-emulated $(ON_EMULATED_GPU)

test-full:
	@$(PYTHON) tools/bootstrap.py --tests
	$(CTEST)
	$(BIN)/python -m pytest --full
	$(BIN)/python -m pytest -q --full --device sm90-emulated $(ON_EMULATED_GPU)
	$(BIN)/python -m pytest -q --full --device sm100-emulated $(ON_EMULATED_GPU)

sanitize: build
	for kind in address thread; do \
		export PATH="$(CURDIR)/$(BIN):$$PATH"; tree=build/sanitize-$$kind; \
		cmake -S . -B $$tree -G Ninja -DFA4_SANITIZE=$$kind -DFA4_TESTS=ON \
			-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python && cmake --build $$tree && \
		ctest --test-dir $$tree --output-on-failure || exit 1; \
	done
	FA4_FUZZ_EXTENSION=$$(echo build/sanitize-address/_C.*.so) ASAN_OPTIONS=detect_leaks=0 \
	FA4_FUZZ_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
		$(BIN)/python tests/emulator/ptx_fuzz.py --seconds 120

sanitize-emulator:
	@$(PYTHON) tools/bootstrap.py --tests
	$(BIN)/python tools/sanitize_emulator.py

# The tests run on the first GPU.
test-blackwell:
	@found=$$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader 2>/dev/null | head -n 1); \
	case "$$found" in \
	*", 10."*) echo "test-blackwell: on $$found" ;; \
	*) echo "test-blackwell: needs a GPU of compute capability 10.x (B200, B300)," \
		"found $${found:-no GPU}" >&2; exit 1 ;; \
	esac
	@$(PYTHON) tools/bootstrap.py
	$(BIN)/python tools/gpu_report.py --out docs/reports/blackwell.json tests/ops tests/gpu

lint: build
	$(BIN)/pre-commit run --all-files

check-aarch64: build
	sh tools/check_aarch64.sh

clean:
	rm -rf build dist *.egg-info flash_attn4/*.so
