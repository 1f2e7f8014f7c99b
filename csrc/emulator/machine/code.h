// A lowered kernel: what the machine runs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "csrc/emulator/machine/op.h"
#include "csrc/emulator/ptx/module.h"
#include "flash_attn4/emulator.h"

namespace fa4::emulator {

/// What a register holds before the first instruction.
struct Fill {
  enum Kind : uint8_t {
    kSpecial,        // value: ptx::Special
    kSharedAddress,  // value: offset in shared memory; the address carries the CTA's rank
    kDynamicShared,  // value: offset from the beginning of dynamic shared memory
    kParameter,      // value: offset in the parameter block; the register gets the address
  };
  Kind kind = kSpecial;
  bool high = false;  // upper 32 bits
  PlaneRef plane = 0;
  uint64_t value = 0;
};

/// A use of registers that a wgmma has or takes, at which something is missing.
struct WgmmaHazard {
  enum Kind : uint8_t {
    kNone,
    kUses,        // a register that the wgmma at `pc` writes, before it is waited for
    kOverwrites,  // ... that it reads
    kNoFence,     // a wgmma takes a register that the instruction at `pc` has used
    kFirst,       // a wgmma before any fence
  };
  Kind kind = kNone;
  uint32_t pc = 0;
};

struct Code {
  const ptx::Module* module = nullptr;
  const ptx::Kernel* kernel = nullptr;
  KernelInfo info;
  std::vector<Op> ops;  // one per instruction, and an exit at the end
  std::vector<PlaneRef> lists;
  std::vector<uint32_t> constants;  // planes
  std::vector<Fill> fills;
  std::unordered_map<uint32_t, Handler> handlers_after_loads;  // by pc: run_after_loads
  // By pc: run_wgmma_hazard, and what it stands before.
  std::unordered_map<uint32_t, std::pair<WgmmaHazard, Handler>> wgmma_hazards;
  std::vector<std::vector<uint32_t>> branch_targets;  // of brx.idx
  uint32_t planes = 0;
  uint32_t preds = 0;
  uint32_t static_shared_bytes = 0;  // from SharedMemory::kBase
  uint32_t dynamic_shared_align = 16;
  uint32_t local_bytes = 0;  // per thread

  /// Offset at which dynamic shared memory begins, an address without rank.
  uint32_t dynamic_shared_begin() const;
};

}  // namespace fa4::emulator
