// Tensor cores: their operands in shared memory, and tensor memory.
#include <algorithm>

#include "csrc/emulator/check/checker.h"

namespace fa4::emulator::check {

// ---- Order in tensor memory
//      -----------------------------------------------------------------------

bool Checker::tensor_ordered(const Access& x, Epoch earlier, bool earlier_writes) {
  const Party& p = *x.by;
  if (p.tensor.knows(earlier)) return true;
  // The allocation is synchronous: a barrier is enough. That of a pair is one of both CTAs.
  if ((facts(earlier.pc()) & kAllocates) != 0) {
    const Party& other = party_of(earlier);
    if (other.warp->cta != p.warp->cta) return true;
    return p.seen.at(other.index) >= other.stores.issued[earlier.time()];
  }
  if (x.unconditional && p.tensor_heard.knows(earlier)) return true;
  const bool both_mma =
      earlier.agent() == tensor_agent(kTensorMmas, p) && x.epoch.agent() == earlier.agent();
  if (!both_mma) return false;
  // MMAs of one thread take effect in the order of their issue where the ISA grants it: same
  // accumulator and shape, or A in tensor memory that a later one overwrites. Widely used kernels
  // rely on it everywhere.
  if (!strict_) return true;
  if (!earlier_writes) return x.writes;
  return x.writes && p.mma_shapes[earlier.time()] == x.shape;
}

void Checker::over_tensor(Access& x, Cta& cta, uint32_t column, uint32_t columns, uint8_t groups) {
  TensorShadow& shadow = state(cta).tensor;
  if (shadow.cells.empty()) return;  // nothing is allocated: the access itself faults
  const uint32_t end = std::min(column + columns, TensorShadow::kColumns);
  for (uint32_t c = column; c < end; ++c) {
    for (uint32_t group = 0; group < TensorShadow::kGroups; ++group) {
      if ((groups >> group & 1) != 0) touch(shadow.at(c, group), x, {cta.rank, 0, c, group});
    }
  }
}

// ---- Loads and stores
//      -----------------------------------------------------------------------------

void Checker::tensor_access(Warp& w, const Op& op, uint32_t column, uint32_t columns,
                            uint8_t groups, bool writes) {
  Access x = ordinary(w, op, writes);
  Party& p = *x.by;
  Queue& queue = writes ? p.stores : p.loads;
  const uint32_t number = queue.issue(time(p));
  x.tensor = true;
  x.epoch = {tensor_agent(writes ? kStores : kLoads, p), pc_of(w, op), number};
  over_tensor(x, *w.cta, column, columns, groups);
}

void Checker::tensor_loads_waited(Warp& w) {
  Party& p = party(w);
  p.tensor.raise(tensor_agent(kLoads, p), p.loads.last());
  p.loads.wait(p.loads.last(), time(p));
}

void Checker::tensor_stores_waited(Warp& w) {
  Party& p = party(w);
  p.tensor.raise(tensor_agent(kStores, p), p.stores.last());
  p.stores.wait(p.stores.last(), time(p));
}

void Checker::tensor_loads_used(Warp& w, const Op& op) {
  if (!strict_) return tensor_loads_waited(w);
  const Party& p = party(w);
  if (p.loads.waited.size() > p.loads.last()) return;
  found("used " + std::to_string(op.line),
        warp_text(p) + ", " + line_text(pc_of(w, op)) +
            ", uses a register that a tcgen05.ld writes: no tcgen05.wait::ld between them");
}

void Checker::tensor_fence_before(Warp& w) {
  Party& p = party(w);
  p.tensor_told.join(p.tensor);
  if (is_alone(w.exec)) p.tensor_together.join(p.tensor);
}

void Checker::tensor_fence_after(Warp& w) {
  Party& p = party(w);
  p.tensor.join(p.tensor_heard);
}

/// The columns are written, as it were, by a store that is complete.
void Checker::tensor_alloc(Warp& w, const Op& op, uint32_t column, uint32_t columns) {
  CtaState& s = state(*w.cta);
  s.tensor.cells.resize(size_t{TensorShadow::kColumns} * TensorShadow::kGroups);
  const auto first = s.tensor.cells.begin() + static_cast<std::ptrdiff_t>(column * 8);
  std::fill(first, first + static_cast<std::ptrdiff_t>(columns * 8), Cell{});
  tensor_access(w, op, column, columns, 0xff, true);
  tensor_stores_waited(w);
}

void Checker::tensor_dealloc(Warp& w, const Op& op, uint32_t column, uint32_t columns) {
  Access x = ordinary(w, op, true);
  Party& p = *x.by;
  facts(pc_of(w, op));
  x.tensor = x.unconditional = true;
  x.epoch = {tensor_agent(kStores, p), pc_of(w, op), p.stores.last()};
  over_tensor(x, *w.cta, column, columns, 0xff);
}

// ---- tcgen05.mma
//      ----------------------------------------------------------------------------------

void Checker::mma(Warp& w, const Op& op, const MmaOperands& operands) {
  Access shared = ordinary(w, op, false);
  Party& p = *shared.by;
  const uint32_t number = p.queues[kMmas].issue(time(p)), pc = pc_of(w, op);
  const uint32_t shape =
      shapes_.try_emplace(operands.shape, static_cast<uint32_t>(shapes_.size())).first->second;
  p.mma_shapes.push_back(shape);
  shared.async = true;
  shared.epoch = {agent(kMmas, p), pc, number};
  for (const MmaOperands::Shared& operand : operands.shared) {
    use(*operand.cta, shared.epoch, w, op);
    over_units(shared, *operand.cta, operand.units, operand.count);
  }
  Access tensor = ordinary(w, op, false);
  tensor.tensor = true;
  tensor.shape = shape;
  tensor.epoch = {tensor_agent(kTensorMmas, p), pc, number};
  for (const MmaOperands::Tensor& a : operands.a) {
    over_tensor(tensor, *a.cta, a.column, a.columns, a.groups);
  }
  tensor.writes = true;
  tensor.reads = operands.reads_d;
  tensor.known_write = {};  // an MMA may overwrite where it may not read
  for (const MmaOperands::Tensor& d : operands.d) {
    over_tensor(tensor, *d.cta, d.column, d.columns, d.groups);
  }
}

/// A commit hands over the MMAs of its thread, and implies fence::before. What that thread had seen
/// comes before its MMAs, so it is handed over too: rings that copies fill and MMAs read rest on
/// that.
Parcel Checker::commit(Warp& w) {
  Party& p = party(w);
  auto parcel = std::make_shared<Knowledge>();
  Queue& queue = p.queues[kMmas];
  queue.wait(queue.last(), time(p));
  tell(p, parcel.get(), is_alone(w.exec));
  tick(p);
  parcel->tensor.join(p.tensor);
  parcel->tensor.raise(tensor_agent(kTensorMmas, p), queue.last());
  parcel->seen.raise(agent(kMmas, p), queue.last());
  return parcel;
}

// ---- wgmma
//      ----------------------------------------------------------------------------------------

void Checker::wgmma(Warp& w, const Op& op, const uint32_t* units, uint32_t count) {
  Access x = ordinary(w, op, false);
  Party& p = *x.by;
  x.async = true;
  x.epoch = {agent(kWgmmas, p), pc_of(w, op), p.wgmma_groups + 1};
  Queue& queue = p.queues[kWgmmas];
  while (queue.last() < x.epoch.time()) queue.issue(time(p));
  use(*w.cta, x.epoch, w, op);
  over_units(x, *w.cta, units, count);
}

void Checker::wgmma_commit(Warp& w) {
  Party& p = party(w);
  ++p.wgmma_groups;
}

void Checker::wgmma_hazard(Warp& w, const Op& op, const WgmmaHazard& hazard) {
  if (!strict_) return;
  const std::string other = line_text(hazard.pc);
  const auto text = [&]() -> std::string {
    switch (hazard.kind) {
      case WgmmaHazard::kUses:
        return "uses a register that the wgmma of " + other +
               " writes: no wgmma.wait_group for its group between them";
      case WgmmaHazard::kOverwrites:
        return "overwrites a register that the wgmma of " + other +
               " reads: no wgmma.wait_group for its group between them";
      case WgmmaHazard::kNoFence:
        return "takes a register that " + other + " has used: no wgmma.fence between them";
      default:
        return "has no wgmma.fence before it";
    }
  };
  found("wgmma " + std::to_string(op.line), warp_text(party(w)) + ", " + line_text(pc_of(w, op)) +
                                                ", " + text() + quote("the other", hazard.pc));
}

void Checker::wgmma_waited(Warp& w, uint64_t groups) {
  Party& p = party(w);
  p.queues[kWgmmas].wait(static_cast<uint32_t>(groups), time(p));
  const uint32_t first = p.index - w.index % 4;
  const uint32_t end = std::min(first + 4, (w.cta->rank + 1) * warps_);
  for (uint32_t i = first; i < end; ++i) {
    p.seen.raise(agent(kWgmmas, parties_[i]), static_cast<uint32_t>(groups));
  }
}

}  // namespace fa4::emulator::check
