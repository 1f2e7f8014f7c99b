// flash_attn4._C: build information, kernel list, devices and the emulator. The ops do not need it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "csrc/dispatch/kernel_list.h"
#include "csrc/python/devices.h"
#include "csrc/python/emulator.h"
#include "flash_attn4/flash_attn4.h"

namespace py = pybind11;

namespace {

std::vector<py::dict> kernels() {
  std::vector<py::dict> rows;
  for (const fa4::KernelRow& kernel : fa4::kernel_list()) {
    std::vector<std::string> dtypes;
    for (const auto dtype : {fa4::DType::kFloat32, fa4::DType::kFloat16, fa4::DType::kBFloat16}) {
      if (kernel.dtypes & fa4::bit(dtype)) dtypes.emplace_back(fa4::dtype_name(dtype));
    }
    std::vector<std::string> features;
    for (int i = 0; i < fa4::kNumFeatures; ++i) {
      const auto feature = static_cast<fa4::Feature>(i);
      if (kernel.features & fa4::bit(feature)) features.emplace_back(fa4::feature_name(feature));
    }
    py::dict row;
    row["name"] = kernel.name;
    row["op"] = fa4::op_name(kernel.op);
    row["target"] = fa4::target_name(kernel.target);
    row["dtypes"] = dtypes;
    row["features"] = features;
    row["head_dim"] = py::make_tuple(kernel.head_dim.min, kernel.head_dim.max);
    row["head_dim_v"] = py::make_tuple(kernel.head_dim_v.min, kernel.head_dim_v.max);
    row["cubin_bytes"] = kernel.image.cubin_bytes();
    row["ptx_bytes"] = kernel.image.ptx_bytes();
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information, kernel list, devices and emulator of flash_attn4.";
  m.def("version", &fa4::version, "Version of the compiled library.");
  m.def("kernels", &kernels, "Every kernel of this build, one dict per row of the kernel list.");
  m.def(
      "devices", &fa4::python::devices,
      "GPUs the driver sees: dicts with ordinal, name, capability (major, minor) and kernels, the "
      "names of those that run there. Empty without a driver or in a build without GPU kernels.");
  m.def(
      "driver", &fa4::python::driver,
      "Dict: needed and found driver API version (13000 is CUDA 13.0; found 0: none), and why none "
      "was found.");
  fa4::python::add_emulator(m);
}
