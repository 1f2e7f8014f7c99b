#include "csrc/python/emulator.h"

#include <pybind11/stl.h>

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/python/plans.h"
#include "flash_attn4/emulator.h"

namespace py = pybind11;

namespace fa4::python {

namespace {

using emulator::KernelInfo;
using emulator::Module;
using emulator::Options;
using emulator::Result;
using emulator::Statistics;
using emulator::WarpTrace;

using Triple = std::array<uint32_t, 3>;
using Regions = std::vector<std::pair<uintptr_t, size_t>>;

void raise_unless_ok(const Status& status) {
  switch (status.code) {
    case Code::kOk:
      return;
    case Code::kInvalidValue:
      throw py::value_error(status.message);
    case Code::kInvalidType:
      throw py::type_error(status.message);
    case Code::kUnsupported:
      PyErr_SetString(PyExc_NotImplementedError, status.message.c_str());
      throw py::error_already_set();
    case Code::kRuntime:
      throw std::runtime_error(status.message);
  }
}

emulator::Extent extent(const Triple& triple) {
  return {triple[0], triple[1], triple[2]};
}

Triple triple(const emulator::Extent& extent) {
  return {extent.x, extent.y, extent.z};
}

// ---- Options -------------------------------------------------------------------------------------

template <class Enum>
using Names = std::initializer_list<std::pair<const char*, Enum>>;

template <class Enum>
Enum choice(const py::object& options, const char* field, Names<Enum> names) {
  const auto value = options.attr(field).cast<std::string>();
  std::string known;
  for (const auto& [name, result] : names) {
    if (value == name) return result;
    if (!known.empty()) known += ", ";
    known += name;
  }
  throw py::value_error(std::string(field) + ": must be one of " + known + ", got " + value);
}

template <class Value>
void read(const py::object& options, const char* field, Value* value) {
  *value = options.attr(field).cast<Value>();
}

emulator::Plan plan_of(const py::handle& from) {
  using Done = emulator::Plan::Done;
  using Holder = emulator::Plan::Holder;
  emulator::Plan plan;
  for (const py::handle row : from.attr("roles")) {
    plan.roles.push_back({row.attr("name").cast<std::string>(),
                          row.attr("first_warp").cast<uint32_t>(),
                          row.attr("warps").cast<uint32_t>()});
  }
  for (const py::handle row : from.attr("barriers")) {
    emulator::Plan::Barrier barrier;
    barrier.name = row.attr("name").cast<std::string>();
    barrier.offset = row.attr("offset").cast<uint32_t>();
    barrier.stages = row.attr("stages").cast<uint32_t>();
    barrier.arrivals = row.attr("arrivals").cast<uint32_t>();
    barrier.done = choice<Done>(
        py::reinterpret_borrow<py::object>(row), "done",
        {{"threads", Done::kThreads}, {"bytes", Done::kBytes}, {"commit", Done::kCommit}});
    barrier.signals = row.attr("signals").cast<std::vector<std::string>>();
    barrier.waits = row.attr("waits").cast<std::vector<std::string>>();
    barrier.holder = choice<Holder>(py::reinterpret_borrow<py::object>(row), "holder",
                                    {{"own", Holder::kOwn},
                                     {"leader", Holder::kLeader},
                                     {"both", Holder::kBoth},
                                     {"peer", Holder::kPeer}});
    plan.barriers.push_back(std::move(barrier));
  }
  return plan;
}

std::map<std::string, emulator::Plan> plans_of(const py::object& from) {
  std::map<std::string, emulator::Plan> plans;
  const py::object items = from.attr("items")();
  for (const py::handle item : items) {
    const auto [name, plan] = item.cast<std::pair<std::string, py::object>>();
    plans[name] = plan_of(plan);
  }
  return plans;
}

/// From a flash_attn4.emulator.Options.
Options options_of(const py::object& from) {
  using emulator::Accumulate, emulator::Check, emulator::Order, emulator::Policy;
  Options to;
  to.policy = choice<Policy>(
      from, "policy",
      {{"eager", Policy::kEager}, {"lazy", Policy::kLazy}, {"random", Policy::kRandom}});
  to.accumulate = choice<Accumulate>(
      from, "accumulate", {{"sequential", Accumulate::kSequential}, {"exact", Accumulate::kExact}});
  to.order = choice<Order>(from, "order",
                           {{"ascending", Order::kAscending},
                            {"descending", Order::kDescending},
                            {"random", Order::kRandom}});
  to.check = choice<Check>(
      from, "check",
      {{"off", Check::kOff}, {"deployed", Check::kDeployed}, {"strict", Check::kStrict}});
  read(from, "max_findings", &to.max_findings);
  read(from, "seed", &to.seed);
  read(from, "perturbation", &to.perturbation);
  read(from, "random_election", &to.random_election);
  read(from, "check_uninitialized", &to.check_uninitialized);
  read(from, "threads", &to.threads);
  read(from, "max_steps", &to.max_steps);
  read(from, "stall_steps", &to.stall_steps);
  read(from, "resident_clusters", &to.resident_clusters);
  read(from, "trace", &to.trace);
  read(from, "barrier_names", &to.barrier_names);
  to.plans = plans_of(from.attr("plans"));
  return to;
}

// ---- Results as dicts ----------------------------------------------------------------------------

py::dict statistics_dict(const Statistics& statistics) {
  py::dict row;
  row["warp_instructions"] = statistics.warp_instructions;
  row["mma"] = statistics.mma;
  row["fma"] = statistics.fma;
  row["global_load_bytes"] = statistics.global_load_bytes;
  row["global_store_bytes"] = statistics.global_store_bytes;
  row["reduce_bytes"] = statistics.reduce_bytes;
  row["shared_operand_bytes"] = statistics.shared_operand_bytes;
  row["shared_store_bytes"] = statistics.shared_store_bytes;
  row["cluster_copy_bytes"] = statistics.cluster_copy_bytes;
  row["clusters"] = statistics.clusters;
  row["seconds"] = statistics.seconds;
  return row;
}

std::vector<py::dict> trace_dicts(const Result& result) {
  std::vector<py::dict> warps;
  for (const WarpTrace& trace : result.trace) {
    std::vector<py::dict> waits;
    for (const WarpTrace::Wait& wait : trace.waits) {
      py::dict row;
      row["line"] = wait.line;
      row["what"] = wait.what;
      row["begin"] = wait.begin;
      row["end"] = wait.end;
      waits.push_back(std::move(row));
    }
    py::dict row;
    row["cluster"] = trace.cluster;
    row["cta"] = trace.cta;
    row["warp"] = trace.warp;
    row["classes"] = trace.classes;
    row["waits"] = waits;
    warps.push_back(std::move(row));
  }
  return warps;
}

std::vector<py::dict> kernel_dicts(const Module& module) {
  std::vector<py::dict> kernels;
  for (const KernelInfo& kernel : module.kernels()) {
    std::vector<py::dict> parameters;
    for (const emulator::Parameter& parameter : kernel.parameters) {
      py::dict row;
      row["name"] = parameter.name;
      row["offset"] = parameter.offset;
      row["bytes"] = parameter.bytes;
      row["align"] = parameter.align;
      parameters.push_back(std::move(row));
    }
    py::dict row;
    row["name"] = kernel.name;
    row["parameters"] = parameters;
    row["parameter_bytes"] = kernel.parameter_bytes;
    row["static_shared_bytes"] = kernel.static_shared_bytes;
    row["max_threads"] = py::tuple(py::cast(triple(kernel.max_threads)));
    row["required_threads"] = py::tuple(py::cast(triple(kernel.required_threads)));
    row["required_cluster"] = py::tuple(py::cast(triple(kernel.required_cluster)));
    row["instructions"] = kernel.instructions;
    row["registers"] = kernel.registers;
    row["register_slots"] = kernel.register_slots;
    row["forms"] = kernel.forms;
    kernels.push_back(std::move(row));
  }
  return kernels;
}

// ---- Calls ---------------------------------------------------------------------------------------

std::unique_ptr<Module> load(const std::string& text, const std::string& name) {
  std::unique_ptr<Module> module;
  Status status;
  {
    const py::gil_scoped_release others_run;
    status = Module::load(text, name, &module);
  }
  raise_unless_ok(status);
  return module;
}

/// memory: None is any; a list, be it empty, is all there is.
Result launch(const Module& module, const std::string& kernel, const std::array<Triple, 3>& shape,
              size_t shared_bytes, const py::bytes& parameters,
              const std::optional<Regions>& memory, const py::object& options) {
  const auto block = static_cast<std::string_view>(parameters);
  emulator::Launch request;
  request.kernel = kernel;
  request.grid = extent(shape[0]);
  request.block = extent(shape[1]);
  request.cluster = extent(shape[2]);
  request.dynamic_shared_bytes = shared_bytes;
  request.parameters = {reinterpret_cast<const uint8_t*>(block.data()), block.size()};
  if (memory) {
    request.memory.push_back({});
    for (const auto& [base, bytes] : *memory) {
      request.memory.push_back({reinterpret_cast<const void*>(base), bytes});
    }
  }
  const Options chosen = options_of(options);
  Result result;
  Status status;
  {
    const py::gil_scoped_release others_run;
    status = module.launch(request, chosen, &result);
  }
  raise_unless_ok(status);
  return result;
}

void set_driver_images(const std::map<std::string, std::string>& images) {
  Status status;
  {
    const py::gil_scoped_release others_run;
    status = emulator::set_driver_images(images);
  }
  raise_unless_ok(status);
}

/// dims, strides, box, steps
using Layout = std::tuple<std::vector<uint64_t>, std::vector<uint64_t>, std::vector<uint32_t>,
                          std::vector<uint32_t>>;

py::bytes encode_tensor_map(uintptr_t base, int type, Layout layout, uint32_t swizzle,
                            bool fill_nan) {
  emulator::TensorMapRequest request;
  request.base = reinterpret_cast<void*>(base);
  request.type = static_cast<emulator::ElementType>(type);
  std::tie(request.dims, request.strides, request.box, request.steps) = std::move(layout);
  request.swizzle = swizzle;
  request.fill_nan = fill_nan;
  emulator::TensorMapBytes map;
  raise_unless_ok(emulator::encode_tensor_map(request, &map));
  return py::bytes(reinterpret_cast<const char*>(map.bytes), sizeof map.bytes);
}

}  // namespace

void add_emulator(py::module_& module) {
  module.def(
      "kernel_plans", &kernel_plans,
      "Kernel name -> roles and barriers of its plan, as rows for flash_attn4.emulator.Plan.");
  py::module_ m = module.def_submodule("emulator", "The emulator; see flash_attn4/emulator.py.");
  py::class_<Result>(m, "Result", "What a launch leaves besides memory.")
      .def("statistics", [](const Result& r) { return statistics_dict(r.statistics); })
      .def("trace", &trace_dicts)
      .def("json", &Result::json);
  py::class_<Module>(m, "Module", "A PTX file, parsed and lowered.")
      .def(py::init(&load), py::arg("text"), py::arg("name"))
      .def("target", &Module::target)
      .def("kernels", &kernel_dicts)
      .def("launch", &launch, py::arg("kernel"), py::arg("shape"), py::arg("shared_bytes"),
           py::arg("parameters"), py::arg("memory"), py::arg("options"));
  m.def("encode_tensor_map", &encode_tensor_map, py::arg("base"), py::arg("type"),
        py::arg("layout"), py::arg("swizzle"), py::arg("fill_nan"));
  m.def(
      "set_driver_options",
      [](const py::object& options) { emulator::set_driver_options(options_of(options)); },
      py::arg("options"));
  m.def("set_driver_images", &set_driver_images, py::arg("images"));
  m.def("take_statistics", [] { return statistics_dict(emulator::take_statistics()); });
}

}  // namespace fa4::python
