#include "csrc/python/emulator.h"

namespace fa4::python {

void add_emulator(pybind11::module_&) {}

}  // namespace fa4::python
