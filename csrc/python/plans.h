// Plans of this build's kernels as Python data, for flash_attn4/emulator.py.
#pragma once

#include <pybind11/pybind11.h>

namespace fa4::python {

/// Kernel name -> {"roles": rows of PlanRole, "barriers": rows of PlanBarrier}, all dicts.
pybind11::dict kernel_plans();

}  // namespace fa4::python
