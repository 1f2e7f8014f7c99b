#include "csrc/python/devices.h"

namespace fa4::python {

std::vector<pybind11::dict> devices() {
  return {};
}

pybind11::dict driver() {
  pybind11::dict result;
  result["needed"] = 0;
  result["found"] = 0;
  result["problem"] = "this build has no GPU kernels (FA4_ARCHS=cpu)";
  return result;
}

}  // namespace fa4::python
