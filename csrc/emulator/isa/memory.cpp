// Loads, stores and atomics of all address spaces.
#include <algorithm>
#include <cstring>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/access.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/scalar.h"
#include "csrc/emulator/machine/grid.h"

namespace fa4::emulator {

using ptx::Operand;
using ptx::Space;
using ptx::Type;

// ---- Resolving addresses ----------------------------------------------------------------------------------

uint8_t* resolve(Warp& w, AccessSpace space, uint64_t address, size_t bytes, uint32_t lane) {
  if (address % bytes != 0) {
    throw Fault("misaligned access: " + std::to_string(bytes) + " bytes at " + hex(address));
  }
  if (space == AccessSpace::kGeneric) {
    const uint64_t window = address & kWindowMask;
    space = window == kSharedWindow  ? AccessSpace::kShared
            : window == kLocalWindow ? AccessSpace::kLocal
                                     : AccessSpace::kGlobal;
    if (space != AccessSpace::kGlobal) address &= 0xffffffffu;
  }
  switch (space) {
    case AccessSpace::kShared: {
      const auto shared = static_cast<uint32_t>(address);
      return w.cta->cluster->cta_of_address(shared).shared.at(offset_of(shared), bytes);
    }
    case AccessSpace::kLocal:
      if (address + bytes > w.code->local_bytes) {
        throw Fault("local memory: " + std::to_string(bytes) + " bytes at " + hex(address) +
                    " are out of bounds, a thread has " + std::to_string(w.code->local_bytes) +
                    " bytes");
      }
      return w.local.data() + size_t{lane} * w.code->local_bytes + address;
    default:
      w.cta->cluster->grid->memory.check(address, bytes, &w.last_range);
      return reinterpret_cast<uint8_t*>(address);
  }
}

uint64_t lane_address(const Warp& w, const Op& op, uint32_t lane, int place) {
  const uint64_t base =
      uint64_t{w.source(op.r[place + 1])[lane]} << 32 | w.source(op.r[place])[lane];
  const uint64_t address = base + static_cast<uint64_t>(op.imm);
  const auto space = static_cast<AccessSpace>(op.space);
  return space == AccessSpace::kShared || space == AccessSpace::kLocal ? address & 0xffffffffu
                                                                       : address;
}

bool is_shared(AccessSpace space, uint64_t address) {
  return space == AccessSpace::kShared ||
         (space == AccessSpace::kGeneric && (address & kWindowMask) == kSharedWindow);
}

AccessSpace access_space(const Lowering& l) {
  for (size_t i = 1; !l.part(i).empty(); ++i) {
    const std::string_view part = l.part(i);
    if (part == "global" || part == "const") return AccessSpace::kGlobal;
    if (part == "shared" || part == "shared::cta" || part == "shared::cluster")
      return AccessSpace::kShared;
    if (part == "local") return AccessSpace::kLocal;
    if (part == "param" || part == "param::entry" || part == "param::func")
      return AccessSpace::kParam;
  }
  return AccessSpace::kGeneric;
}

namespace {

OpClass class_of(AccessSpace space) {
  return space == AccessSpace::kShared                                  ? OpClass::kShared
         : space == AccessSpace::kLocal || space == AccessSpace::kParam ? OpClass::kLocal
                                                                        : OpClass::kGlobal;
}

constexpr int kMostBytes = 32;  // that a load or store moves per lane

/// Elements of .v2, .v4, .v8.
int vector_count(const Lowering& l) {
  return l.has("v8") ? 8 : l.has("v4") ? 4 : l.has("v2") ? 2 : 1;
}

/// Refuses an access whose registers are not those that its opcode names.
void check_registers(const Lowering& l, const Draft& draft, int bytes) {
  const int count = vector_count(l);
  if (count * std::max(1, bytes / 4) != static_cast<int>(draft.list.size()))
    l.unmodelled("the number of registers");
  if (count * bytes > kMostBytes) l.unmodelled("more than 32 bytes");
}

[[noreturn]] void uninitialized(uint64_t address) {
  throw Fault("shared memory at " + hex(address & 0xffffffffu) +
              " was never written, or is read before a copy into it has completed");
}

/// The aligned word that holds these bytes. A half of it that equals half the poison may be data.
uint32_t word_around(const uint8_t* bytes) {
  uint32_t word = 0;
  std::memcpy(&word, bytes - reinterpret_cast<uintptr_t>(bytes) % 4, 4);
  return word;
}

uint64_t extended(uint64_t value, const Op& op) {
  if (op.mode == 0) return value;  // mode: bytes of a signed element
  const int shift = 64 - 8 * op.mode;
  return static_cast<uint64_t>(static_cast<int64_t>(value << shift) >> shift);
}

/// Elements of `width` bytes into the planes of the list, element after element. extra: a narrow element
/// goes to a 64-bit register, whose upper half is plane kD.
void run_load(Warp& w, const Op& op) {
  const auto space = static_cast<AccessSpace>(op.space);
  const int planes = std::max(1, op.width / 4);
  const int count = op.list_count / planes;
  const size_t bytes = static_cast<size_t>(op.width) * static_cast<size_t>(count);
  const bool check = w.cta->cluster->options->check_uninitialized;
  if (auto* const checker = w.cta->cluster->checker.get())
    checker->access(w, op, w.exec, static_cast<uint32_t>(bytes), false);
  // All addresses come before any result: a result may overwrite the address register.
  uint64_t addresses[kWarpLanes];
  for (uint32_t l = 0; l < kWarpLanes; ++l) addresses[l] = lane_address(w, op, l, kA);
  const PlaneRef* const list = w.code->lists.data() + op.list;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    const uint8_t* from = resolve(w, space, addresses[l], bytes, l);
    const bool shared = check && is_shared(space, addresses[l]);
    for (int k = 0; k < op.list_count; k += planes, from += op.width) {
      if (op.width > 4) {
        for (int part = 0; part < planes; ++part) {
          uint32_t value = 0;
          std::memcpy(&value, from + 4 * part, 4);
          if (shared && value == kPoison32) uninitialized(addresses[l]);
          w.target(list[k + part])[l] = value;
        }
        continue;
      }
      uint64_t value = 0;
      std::memcpy(&value, from, op.width);
      const bool poison = shared && op.width >= 2 && word_around(from) == kPoison32;
      if (poison) uninitialized(addresses[l]);
      const uint64_t wide = extended(value, op);
      w.target(list[k])[l] = static_cast<uint32_t>(wide);
      if (op.extra != 0)
        w.target(static_cast<PlaneRef>(op.r[kD]))[l] = static_cast<uint32_t>(wide >> 32);
    }
  }
}

void fill(Warp& w, PlaneRef plane, uint32_t value) {
  uint32_t* const to = w.target(plane);
  for (uint32_t l = 0; l < kWarpLanes; ++l) to[l] = (w.exec >> l & 1) != 0 ? value : to[l];
}

/// ld.param of a kernel parameter: the same for all lanes.
void run_load_param(Warp& w, const Op& op) {
  const uint8_t* from = w.cta->cluster->grid->parameters.data() + op.imm;
  const int planes = std::max(1, op.width / 4);
  for (int k = 0; k < op.list_count; k += planes, from += op.width) {
    for (int part = 0; part < planes; ++part) {
      uint32_t value = 0;
      std::memcpy(&value, from + 4 * part, std::min<size_t>(4, op.width));
      const uint64_t wide = extended(value, op);
      fill(w, w.code->lists[op.list + static_cast<uint32_t>(k + part)],
           static_cast<uint32_t>(wide));
      if (op.extra != 0) fill(w, op.r[kD], static_cast<uint32_t>(wide >> 32));
    }
  }
}

void run_store(Warp& w, const Op& op) {
  const auto space = static_cast<AccessSpace>(op.space);
  const int planes = std::max(1, op.width / 4);
  const int count = op.list_count / planes;
  const size_t bytes = static_cast<size_t>(op.width) * static_cast<size_t>(count);
  const PlaneRef* const list = w.code->lists.data() + op.list;
  if (auto* const checker = w.cta->cluster->checker.get())
    checker->access(w, op, w.exec, static_cast<uint32_t>(bytes), true);
  uint8_t values[kMostBytes];
  bool changed = false;
  uint64_t to_shared = 0;  // bytes
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    for (int k = 0; k < op.list_count; ++k) {
      const uint32_t value = w.source(list[k])[l];
      std::memcpy(values + k * std::min<int>(4, op.width), &value, std::min<size_t>(4, op.width));
    }
    const uint64_t address = lane_address(w, op, l, kA);
    uint8_t* const to = resolve(w, space, address, bytes, l);
    changed |= std::memcmp(to, values, bytes) != 0;
    std::memcpy(to, values, bytes);
    if (is_shared(space, address)) to_shared += bytes;
  }
  w.cta->cluster->statistics.shared_store_bytes += to_shared;
  if (changed) w.cta->cluster->notify();
}

}  // namespace

void lower_load(Lowering& l) {
  if (l.has("async")) l.unmodelled();
  const Type type = l.last_type();
  const int bytes = l.last_type_bytes();
  const AccessSpace space = access_space(l);
  const Operand& to = l.operand(0);
  // Call parameters (results) lie in local memory; kernel parameters in the parameter block.
  const bool kernel_param = space == AccessSpace::kParam &&
                            l.symbol_space(l.operand(1)) == Space::kParam &&
                            l.is_kernel_parameter(l.operand(1));
  const bool call_param = space == AccessSpace::kParam &&
                          l.symbol_space(l.operand(1)) == Space::kParam && !kernel_param;
  Draft& draft = l.emit(kernel_param ? run_load_param : run_load,
                        kernel_param ? OpClass::kMove : class_of(space));
  const int register_bytes = [&] {
    const Operand& first = to.kind == Operand::kVector ? to.parts[0] : to;
    return ptx::type_bytes(l.register_type(first));
  }();
  l.writes_list(draft, to, bytes);
  draft.op.width = static_cast<uint8_t>(bytes);
  draft.op.mode = is_signed(type) ? static_cast<uint8_t>(bytes) : 0;
  check_registers(l, draft, bytes);
  if (bytes <= 4 && register_bytes == 8) {  // a narrow element widened to 64 bits
    if (to.kind == Operand::kVector) l.unmodelled("widening of vectors");
    l.writes(draft, kD, to, 8);
    draft.r[kD] = draft.r[kD + 1];
    draft.op.extra = 1;
  }
  if (kernel_param) {
    const auto moved = static_cast<uint64_t>(bytes * vector_count(l));
    draft.op.imm = static_cast<int64_t>(l.symbol_param_offset(l.operand(1), moved));
    return;
  }
  l.address(draft, l.operand(1));
  draft.op.space = static_cast<uint8_t>(call_param                     ? AccessSpace::kLocal
                                        : space == AccessSpace::kParam ? AccessSpace::kGlobal
                                                                       : space);
}

void lower_store(Lowering& l) {
  if (l.has("async")) return lower_store_async(l);
  const int bytes = l.last_type_bytes();
  const AccessSpace space = access_space(l);
  Draft& draft = l.emit(run_store, class_of(space));
  l.reads_list(draft, l.operand(1), bytes);
  check_registers(l, draft, bytes);
  draft.op.width = static_cast<uint8_t>(bytes);
  l.address(draft, l.operand(0));
  draft.op.space = static_cast<uint8_t>(space == AccessSpace::kParam ? AccessSpace::kLocal : space);
}

}  // namespace fa4::emulator
