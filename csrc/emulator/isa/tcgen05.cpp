// Tensor memory: allocation, loads and stores, and the waits between them. The MMAs are tcgen05_mma.cpp.
#include "csrc/emulator/isa/tcgen05.h"

#include <algorithm>
#include <cstring>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator {

using ptx::Operand;

void use_cta_group(Cta& cta, int group) {
  if (cta.tmem.cta_group == 0) cta.tmem.cta_group = group;
  if (cta.tmem.cta_group != group) {
    throw Fault("tcgen05: all instructions of a kernel must use one .cta_group, this one uses " +
                std::to_string(group) + " after " + std::to_string(cta.tmem.cta_group));
  }
  if (group == 2 && cta.cluster->ctas.size() % 2 != 0) {
    throw Fault("tcgen05: .cta_group::2 needs clusters with an even number of CTAs, got " +
                std::to_string(cta.cluster->ctas.size()));
  }
}

void check_columns(const TensorMemory& tmem, uint32_t first, uint32_t count) {
  if (tmem.allocated(first, count)) return;
  throw Fault("tensor memory: columns " + std::to_string(first) + " to " +
              std::to_string(first + count - 1) + " are not allocated");
}

namespace {

// ---- Allocation --------------------------------------------------------------------------------------------

std::string allocation_text(const Warp& w, const Op& op, uint32_t lanes) {
  const auto lane = static_cast<uint32_t>(__builtin_ctz(lanes));
  return std::to_string(w.source(op.r[kB])[lane]) + " free columns of tensor memory";
}

void check_column_count(uint32_t columns) {
  if (columns >= 32 && columns <= 512 && (columns & (columns - 1)) == 0) return;
  throw Fault("tensor memory: the number of columns must be a power of two from 32 to 512, got " +
              std::to_string(columns));
}

void run_alloc(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  Cta& cta = *w.cta;
  use_cta_group(cta, op.mode);
  const uint32_t columns = w.source(op.r[kB])[w.first_lane()];
  check_column_count(columns);
  if (!cta.tmem.may_allocate)
    throw Fault("tcgen05.alloc: the CTA has given up its permit to allocate");
  const uint32_t first = cta.tmem.find_free(columns);
  if (first == TensorMemory::kColumns) return w.block();
  const auto address =
      static_cast<uint32_t>(w.source(op.r[kA])[w.first_lane()] + static_cast<uint64_t>(op.imm));
  Cta& told = cta.cluster->cta_of_address(address);
  std::memcpy(told.shared.at(offset_of(address), 4), &first, 4);
  if (auto* const checker = cta.cluster->checker.get()) {
    checker->write_shared(w, op, told, offset_of(address), 4);
    checker->tensor_alloc(w, op, first, columns);
  }
  if (cta.tmem.cells.empty())
    cta.tmem.cells.resize(size_t{TensorMemory::kColumns} * TensorMemory::kLanes);
  std::fill_n(cta.tmem.column(first), size_t{columns} * TensorMemory::kLanes, kPoison32);
  cta.tmem.allocations.emplace_back(first, columns);
  cta.cluster->notify();
}

void run_dealloc(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  Cta& cta = *w.cta;
  use_cta_group(cta, op.mode);
  const uint32_t first = w.source(op.r[kA])[w.first_lane()] & 0xffff,
                 columns = w.source(op.r[kB])[w.first_lane()];
  auto& list = cta.tmem.allocations;
  const auto found = std::find(list.begin(), list.end(), std::make_pair(first, columns));
  if (found == list.end()) {
    throw Fault("tcgen05.dealloc: no allocation of " + std::to_string(columns) +
                " columns begins at column " + std::to_string(first));
  }
  if (auto* const checker = cta.cluster->checker.get())
    checker->tensor_dealloc(w, op, first, columns);
  list.erase(found);
  cta.cluster->notify();
}

void run_relinquish(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  use_cta_group(*w.cta, op.mode);
  w.cta->tmem.may_allocate = false;
}

// ---- Loads and stores --------------------------------------------------------------------------------------

enum class Shape : uint8_t { k32x32b, k16x64b, k16x128b, k16x256b, k16x32bx2 };

struct Cell {
  uint32_t lane, column;  // from the address of the instruction
};

/// Which cell register `r` of lane `l` holds; PTX ISA, tcgen05 data movement shapes.
Cell cell_of(Shape shape, uint32_t r, uint32_t l, uint32_t split) {
  switch (shape) {
    case Shape::k32x32b:
      return {l, r};
    case Shape::k16x64b:
      return {l / 4 + 8 * (l % 2), l / 2 % 2 + 2 * r};
    case Shape::k16x128b:
      return {l / 4 + 8 * (r % 2), l % 4 + 4 * (r / 2)};
    case Shape::k16x256b:
      return {l / 4 + 8 * (r / 2 % 2), r % 2 + 2 * (l % 4) + 8 * (r / 4)};
    case Shape::k16x32bx2:
      return {l % 16, r + (l < 16 ? 0 : split)};
  }
  return {0, 0};
}

uint32_t columns_of(Shape shape, uint32_t registers, uint32_t split) {
  switch (shape) {
    case Shape::k16x32bx2:
      return split + registers;
    case Shape::k16x64b:
      return 2 * registers;
    case Shape::k16x128b:
      return 2 * registers;
    case Shape::k16x256b:
      return 2 * registers;
    default:
      return registers;
  }
}

/// One access: where it begins, and which registers it moves.
struct Access {
  Shape shape;
  uint32_t lane, column;  // of the address
  uint32_t registers;
  uint32_t split;  // 16x32bx2: columns from the first half to the second
};

void tell_checker(Warp& w, const Op& op, const Access& a, bool writes) {
  check::Checker* const checker = w.cta->cluster->checker.get();
  if (checker == nullptr) return;
  const auto groups = static_cast<uint8_t>((a.shape == Shape::k32x32b ? 3u : 1u) << a.lane / 16);
  checker->tensor_access(w, op, a.column, columns_of(a.shape, a.registers, a.split), groups,
                         writes);
}

/// The address must be the same in all lanes, within the warp's quarter of the lanes, and allocated.
Access checked_access(Warp& w, uint32_t address, Shape shape, uint32_t registers, uint32_t split) {
  const Access access{shape, address >> 16, address & 0xffff, registers, split};
  const uint32_t quarter = 32 * (w.index % 4);
  const uint32_t rows = shape == Shape::k32x32b ? 32 : 16;
  const bool fits = access.lane >= quarter && access.lane + rows <= quarter + 32 &&
                    (access.lane - quarter) % 16 == 0;
  if (!fits) {
    throw Fault("tensor memory: warp " + std::to_string(w.index) + " may access lanes " +
                std::to_string(quarter) + " to " + std::to_string(quarter + 31) + ", got " +
                std::to_string(rows) + " lanes from lane " + std::to_string(access.lane));
  }
  check_columns(w.cta->tmem, access.column, columns_of(shape, registers, split));
  return access;
}

uint32_t uniform_address(Warp& w, const Op& op) {
  const uint32_t* const values = w.source(op.r[kA]);
  const auto address =
      static_cast<uint32_t>(values[w.first_lane()] + static_cast<uint64_t>(op.imm));
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    if (values[__builtin_ctz(lanes)] + static_cast<uint32_t>(op.imm) == address) continue;
    throw Fault("tensor memory: the address must be the same in all lanes of the warp");
  }
  return address;
}

/// Faults if a lane of register `r` holds what was never written.
void check_plane(const Access& a, uint32_t r, const uint32_t* plane) {
  uint32_t found = 0;
  for (uint32_t l = 0; l < kWarpLanes; ++l) found |= plane[l] == kPoison32 ? 1 : 0;
  if (found == 0) return;
  const auto lane = static_cast<uint32_t>(std::find(plane, plane + kWarpLanes, kPoison32) - plane);
  const Cell cell = cell_of(a.shape, r, lane, a.split);
  throw Fault("tensor memory at lane " + std::to_string(a.lane + cell.lane) + ", column " +
              std::to_string(a.column + cell.column) +
              " was never written, or is read before what writes it has completed");
}

/// The 32 lanes of register `r`.
void read_plane(Warp& w, const Access& a, uint32_t r, uint32_t* plane) {
  TensorMemory& tmem = w.cta->tmem;
  if (a.shape == Shape::k32x32b) {
    std::memcpy(plane, tmem.column(a.column + r) + a.lane, sizeof(uint32_t) * kWarpLanes);
  } else {
    for (uint32_t l = 0; l < kWarpLanes; ++l) {
      const Cell cell = cell_of(a.shape, r, l, a.split);
      plane[l] = tmem.column(a.column + cell.column)[a.lane + cell.lane];
    }
  }
  if (w.cta->cluster->options->check_uninitialized) check_plane(a, r, plane);
}

void read_cells(Warp& w, const Access& a, uint32_t* values) {
  for (uint32_t r = 0; r < a.registers; ++r) read_plane(w, a, r, values + r * kWarpLanes);
}

void write_plane(Warp& w, const Access& a, uint32_t r, const uint32_t* plane) {
  TensorMemory& tmem = w.cta->tmem;
  if (a.shape == Shape::k32x32b) {
    std::memcpy(tmem.column(a.column + r) + a.lane, plane, sizeof(uint32_t) * kWarpLanes);
    return;
  }
  for (uint32_t l = 0; l < kWarpLanes; ++l) {
    const Cell cell = cell_of(a.shape, r, l, a.split);
    tmem.column(a.column + cell.column)[a.lane + cell.lane] = plane[l];
  }
}

void write_cells(Warp& w, const Access& a, const uint32_t* values) {
  for (uint32_t r = 0; r < a.registers; ++r) write_plane(w, a, r, values + r * kWarpLanes);
}

void write_planes(Warp& w, const std::vector<PlaneRef>& planes, const uint32_t* values,
                  uint32_t exec) {
  for (size_t r = 0; r < planes.size(); ++r) {
    uint32_t* const to = w.target(planes[r]);
    const uint32_t* const from = values + r * kWarpLanes;
    for (uint32_t l = 0; l < kWarpLanes; ++l) to[l] = (exec >> l & 1) != 0 ? from[l] : to[l];
  }
}

/// Whether an access that may happen now or at the wait happens now.
bool happens_now(Warp& w) {
  switch (w.cta->cluster->options->policy) {
    case Policy::kEager:
      return true;
    case Policy::kLazy:
      return false;
    default:
      return w.cta->cluster->random.one_in(2);
  }
}

constexpr uint32_t kMostRegisters = 128;

void run_ld(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  const auto shape = static_cast<Shape>(op.mode);
  const uint32_t address = uniform_address(w, op);
  const Access access = checked_access(w, address, shape, op.list_count, op.extra);
  tell_checker(w, op, access, false);
  const PlaneRef* const list = w.code->lists.data() + op.list;
  if (w.cta->cluster->options->policy == Policy::kEager && w.exec == kAllLanes) {
    for (uint32_t r = 0; r < op.list_count; ++r) read_plane(w, access, r, w.target(list[r]));
    return;
  }
  const std::vector<PlaneRef> planes(list, list + op.list_count);
  uint32_t values[kMostRegisters * kWarpLanes];
  if (w.cta->cluster->options->policy == Policy::kEager) {
    read_cells(w, access, values);
    return write_planes(w, planes, values, w.exec);
  }
  // The registers hold nothing until the wait; tensor memory may be read early or late.
  PendingLoad load{op.line, planes, {}, w.exec, address, op.mode, op.extra};
  if (happens_now(w)) {
    read_cells(w, access, values);
    load.values.assign(values, values + size_t{op.list_count} * kWarpLanes);
  }
  std::fill_n(values, size_t{op.list_count} * kWarpLanes, kPoison32);
  write_planes(w, planes, values, w.exec);
  w.tmem_loads.push_back(std::move(load));
}

void run_st(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  const uint32_t address = uniform_address(w, op);
  const Access access =
      checked_access(w, address, static_cast<Shape>(op.mode), op.list_count, op.extra);
  tell_checker(w, op, access, true);
  PendingStore store{op.line, {}, address, op.mode, op.extra};
  if (happens_now(w)) {
    for (uint32_t r = 0; r < op.list_count; ++r) {
      write_plane(w, access, r, w.source(w.code->lists[op.list + r]));
    }
    return;
  }
  for (uint32_t r = 0; r < op.list_count; ++r) {
    const uint32_t* const plane = w.source(w.code->lists[op.list + r]);
    store.values.insert(store.values.end(), plane, plane + kWarpLanes);
  }
  w.tmem_stores.push_back(std::move(store));
}

void finish_loads(Warp& w) {
  for (const PendingLoad& load : w.tmem_loads) {
    if (!load.values.empty()) {
      write_planes(w, load.planes, load.values.data(), load.exec);
      continue;
    }
    uint32_t values[kMostRegisters * kWarpLanes];
    const auto registers = static_cast<uint32_t>(load.planes.size());
    read_cells(
        w, checked_access(w, load.address, static_cast<Shape>(load.shape), registers, load.split),
        values);
    write_planes(w, load.planes, values, load.exec);
  }
  w.tmem_loads.clear();
}

void finish_stores(Warp& w) {
  for (const PendingStore& store : w.tmem_stores) {
    const auto registers = static_cast<uint32_t>(store.values.size() / kWarpLanes);
    write_cells(
        w,
        checked_access(w, store.address, static_cast<Shape>(store.shape), registers, store.split),
        store.values.data());
  }
  w.tmem_stores.clear();
}

void run_wait_ld(Warp& w, const Op&) {
  if (!converged(w, kAllLanes)) return;
  finish_loads(w);
  if (auto* const checker = w.cta->cluster->checker.get()) checker->tensor_loads_waited(w);
}

void run_wait_st(Warp& w, const Op&) {
  if (!converged(w, kAllLanes)) return;
  finish_stores(w);
  if (auto* const checker = w.cta->cluster->checker.get()) checker->tensor_stores_waited(w);
}

/// mode: before_thread_sync.
void run_fence(Warp& w, const Op& op) {
  check::Checker* const checker = w.cta->cluster->checker.get();
  if (checker == nullptr) return;
  if (op.mode != 0) {
    checker->tensor_fence_before(w);
  } else {
    checker->tensor_fence_after(w);
  }
}

// ---- Lowering ----------------------------------------------------------------------------------------------

Shape shape_of(const Lowering& l) {
  constexpr std::pair<std::string_view, Shape> kShapes[] = {{"32x32b", Shape::k32x32b},
                                                            {"16x64b", Shape::k16x64b},
                                                            {"16x128b", Shape::k16x128b},
                                                            {"16x256b", Shape::k16x256b},
                                                            {"16x32bx2", Shape::k16x32bx2}};
  for (const auto& [name, shape] : kShapes) {
    if (l.has(name)) return shape;
  }
  l.unmodelled("the shape");
}

/// How many registers .xN moves.
size_t register_count(const Lowering& l, Shape shape) {
  constexpr std::pair<std::string_view, size_t> kTimes[] = {{"x1", 1},   {"x2", 2},    {"x4", 4},
                                                            {"x8", 8},   {"x16", 16},  {"x32", 32},
                                                            {"x64", 64}, {"x128", 128}};
  const size_t each = shape == Shape::k16x256b ? 4 : shape == Shape::k16x128b ? 2 : 1;
  for (const auto& [name, times] : kTimes) {
    if (l.has(name)) return each * times;
  }
  l.unmodelled("without .x1 to .x128");
}

void lower_access(Lowering& l, bool load) {
  l.only({"ld", "st", "sync", "aligned", "32x32b", "16x64b", "16x128b", "16x256b", "16x32bx2", "x1",
          "x2", "x4", "x8", "x16", "x32", "x64", "x128", "b32"});
  Draft& draft = l.emit(load ? run_ld : run_st, OpClass::kTmem);
  const Shape shape = shape_of(l);
  draft.op.mode = static_cast<uint8_t>(shape);
  const size_t values = load ? 0 : l.operand_count() - 1, address = load ? 1 : 0;
  if (load) {
    l.writes_list(draft, l.operand(values), 4);
    draft.pending_load = true;
  } else {
    l.reads_list(draft, l.operand(values), 4);
  }
  l.address(draft, l.operand(address));
  if (shape == Shape::k16x32bx2) {
    const int64_t split = l.immediate(l.operand(address + 1));
    if (split < 0 || split > TensorMemory::kColumns) l.unmodelled("this distance of the halves");
    draft.op.extra = static_cast<uint32_t>(split);
  }
  if (draft.list.size() > kMostRegisters || draft.list.size() != register_count(l, shape))
    l.unmodelled("the number of registers");
}

}  // namespace

void run_after_loads(Warp& w, const Op& op) {
  finish_loads(w);
  if (auto* const checker = w.cta->cluster->checker.get()) checker->tensor_loads_used(w, op);
  const auto pc = static_cast<uint32_t>(&op - w.code->ops.data());
  w.code->handlers_after_loads.at(pc)(w, op);
}

void finish_tensor_memory_accesses(Warp& w) {
  finish_loads(w);
  finish_stores(w);
}

void lower_tcgen05(Lowering& l) {
  const std::string_view action = l.part(1);
  const auto group = static_cast<uint8_t>(l.has("cta_group::2") ? 2 : 1);
  if (action == "alloc") {
    Draft& draft = l.emit(run_alloc, OpClass::kTmem);
    draft.op.mode = group;
    draft.op.wait_text = allocation_text;
    l.address(draft, l.operand(0));
    l.reads(draft, kB, l.operand(1), 4);
  } else if (action == "dealloc") {
    Draft& draft = l.emit(run_dealloc, OpClass::kTmem);
    draft.op.mode = group;
    l.reads(draft, kA, l.operand(0), 4);
    l.reads(draft, kB, l.operand(1), 4);
  } else if (action == "relinquish_alloc_permit") {
    l.emit(run_relinquish, OpClass::kTmem).op.mode = group;
  } else if (action == "ld" || action == "st") {
    lower_access(l, action == "ld");
  } else if (action == "wait::ld") {
    l.emit(run_wait_ld, OpClass::kTmem).waits_loads = true;
  } else if (action == "wait::st") {
    l.emit(run_wait_st, OpClass::kTmem);
  } else if (action == "fence::before_thread_sync" || action == "fence::after_thread_sync") {
    l.emit(run_fence, OpClass::kFence).op.mode = action == "fence::before_thread_sync";
  } else {
    lower_tensor_pipe(l);
  }
}

}  // namespace fa4::emulator
