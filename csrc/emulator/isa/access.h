// Addresses of lanes, shared by the families that access memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/emulator/lower/lowering.h"
#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator {

/// Op::space. Shared addresses may name any CTA of the cluster.
enum class AccessSpace : uint8_t { kGeneric, kGlobal, kShared, kLocal, kParam };

/// The space that the instruction's modifiers name.
AccessSpace access_space(const Lowering& lowering);

/// The bytes behind an address of a lane; faults where they do not exist or are misaligned.
uint8_t* resolve(Warp& warp, AccessSpace space, uint64_t address, size_t bytes, uint32_t lane);

/// Base register at `place` plus op.imm.
uint64_t lane_address(const Warp& warp, const Op& op, uint32_t lane, int place);

bool is_shared(AccessSpace space, uint64_t address);

}  // namespace fa4::emulator
