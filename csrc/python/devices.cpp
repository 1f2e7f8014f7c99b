#include "csrc/python/devices.h"

#include <pybind11/stl.h>

#include "csrc/dispatch/kernel_list.h"
#include "csrc/driver/device.h"

namespace fa4::python {

std::vector<pybind11::dict> devices() {
  std::vector<pybind11::dict> rows;
  int count = 0;
  if (!driver::device_count(&count).ok()) return rows;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    driver::DeviceInfo info;
    if (!driver::device_info(ordinal, &info).ok()) continue;
    std::vector<std::string> names;
    for (const KernelRow& kernel : kernel_list()) {
      if (target_runs_on(kernel.target, info.major, info.minor)) names.emplace_back(kernel.name);
    }
    pybind11::dict row;
    row["ordinal"] = ordinal;
    row["name"] = info.name;
    row["capability"] = pybind11::make_tuple(info.major, info.minor);
    row["kernels"] = names;
    rows.push_back(std::move(row));
  }
  return rows;
}

pybind11::dict driver() {
  int found = 0;
  const Status status = driver::driver_version(&found);
  pybind11::dict result;
  result["needed"] = driver::kNeededDriverVersion;
  result["found"] = found;
  result["problem"] = status.message;
  return result;
}

}  // namespace fa4::python
