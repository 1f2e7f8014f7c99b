#!/bin/sh
# Cross-compiles the op library for 64-bit Arm (Grace hosts). Needs g++-aarch64-linux-gnu or CXX.
# libtorch_cpu.so of this machine is of another architecture, so the library is linked without it.
set -eu
cxx=${CXX:-aarch64-linux-gnu-g++}
command -v "$cxx" >/dev/null || { echo "check-aarch64: no $cxx: install g++-aarch64-linux-gnu"; exit 1; }
torch=$(.venv/bin/python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')
.venv/bin/cmake -S . -B build/aarch64 -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER="$cxx" \
  -DCMAKE_ASM_COMPILER="$cxx" -DPython_EXECUTABLE="$PWD/.venv/bin/python" \
  -DFA4_PYTHON=OFF -DFA4_LINK_TORCH=OFF -DFA4_TORCH_DIR="$torch" -DFA4_ARCHS="${FA4_ARCHS:-cpu;sm90a;sm100f}"
.venv/bin/cmake --build build/aarch64
echo "check-aarch64: $(file -b build/aarch64/libfa4_ops.so | cut -d, -f1-2)"
