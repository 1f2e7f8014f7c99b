// What flash_attn4._C tells of devices; devices_absent.cpp in builds without GPU targets.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace fa4::python {

std::vector<pybind11::dict> devices();
pybind11::dict driver();

}  // namespace fa4::python
