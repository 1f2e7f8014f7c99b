// flash_attn4._C.emulator: the emulator's general interface for flash_attn4/emulator.py.
#pragma once

#include <pybind11/pybind11.h>

namespace fa4::python {

/// Adds the submodule and kernel_plans. In builds without GPU targets (emulator_absent.cpp) there is
/// neither.
void add_emulator(pybind11::module_& module);

}  // namespace fa4::python
