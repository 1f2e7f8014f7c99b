// What is said of a finding: first a sentence with both parties and what is missing between them.
#include <algorithm>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/machine/grid.h"
#include "csrc/emulator/machine/special.h"

namespace fa4::emulator::check {

void Checker::found(const std::string& key, const std::string& text) {
  if (!keys_.insert(key).second) return;
  findings_.push_back(text);
  if (findings_.size() >= cluster_.options->max_findings) finish();
}

// ---- Names
//      ----------------------------------------------------------------------------------------

std::string Checker::warp_text(const Party& p) const {
  const Warp& w = *p.warp;
  std::string text = "warp " + std::to_string(w.index);
  if (ctas_.size() > 1) text += " of CTA " + std::to_string(w.cta->rank);
  return role_of(w).empty() ? text : text + " (" + role_of(w) + ")";
}

std::string Checker::name_of(uint32_t rank, uint32_t offset) const {
  const std::string name = barrier_name(*cluster_.options, code_, offset);
  const std::string text = name.empty() ? "mbarrier " + hex(offset) : name;
  return ctas_.size() > 1 ? text + " of CTA " + std::to_string(rank) : text;
}

/// "line 123 (softmax.cuh:88)"
std::string Checker::line_text(uint32_t pc) const {
  if (pc >= code_.kernel->instructions.size()) return "the end of the kernel";
  const ptx::Place& place = code_.kernel->instructions[pc].place;
  std::string text = "line " + std::to_string(place.line);
  if (place.source_line != 0 && place.source_file < code_.module->files.size()) {
    text += " (" + code_.module->files[place.source_file] + ":" +
            std::to_string(place.source_line) + ")";
  }
  return text;
}

std::string Checker::quote(const char* what, uint32_t pc) const {
  if (pc >= code_.kernel->instructions.size()) return "";
  return std::string("\n  ") + what + ": " + place_text(code_, pc);
}

/// Who did it: "tcgen05.mma of warp 12 (mma)".
std::string Checker::actor(Epoch epoch, bool tensor) const {
  const auto count = static_cast<uint32_t>(parties_.size());
  const uint32_t kind = epoch.agent() / count;
  if (!tensor && kind >= kKinds) {
    const auto& [rank, offset] = barrier_agents_[epoch.agent() - kKinds * count];
    return "a copy that completes on " + name_of(rank, offset);
  }
  const std::string warp = warp_text(party_of(epoch));
  constexpr const char* kShared[] = {"",          "tcgen05.mma of ", "a bulk copy of ",
                                     "wgmma of ", "cp.async of ",    ""};
  constexpr const char* kTensor[] = {"tcgen05.ld of ", "tcgen05.st of ", "tcgen05.mma of "};
  if (tensor && (facts_[epoch.pc()] & kAllocates) != 0) return "tcgen05.alloc of " + warp;
  if (tensor && (facts_[epoch.pc()] & kFrees) != 0) return "tcgen05.dealloc of " + warp;
  return (tensor ? kTensor[kind] : kShared[kind]) + warp;
}

// ---- What is missing
//      ------------------------------------------------------------------------------

/// Between an asynchronous operation of `queue` and x: its own warp's wait, or the way from there.
std::string Checker::missing_wait(const Access& x, Epoch earlier, const Queue& queue,
                                  const char* wait, const char* what) const {
  const Party& other = party_of(earlier);
  const std::string they = warp_text(other);
  const bool waited = queue.waited.size() > earlier.time();
  if (other.index == x.by->index) return std::string("no ") + wait + " between them";
  const uint32_t last = std::max(heard(x, other.index), heard(x, agent(kLanes, other)));
  if (last < queue.issued[earlier.time()] || (waited && last < queue.waited[earlier.time()])) {
    return "no barrier between them: " + warp_text(*x.by) + " has not waited at one that " + they +
           " signals after its " + wait;
  }
  if (!waited)
    return std::string("no ") + wait + " of " + they + " between " + what + " and its signal";
  return "";
}

/// A wait for the wrong parity passes, but for another phase.
std::string Checker::last_wait(const Party& p, uint32_t rank, uint32_t offset) const {
  const auto found = ctas_[rank].mbarriers.find(offset);
  if (found == ctas_[rank].mbarriers.end()) return "";
  const auto& waits = found->second.waits;
  if (p.index >= waits.size() || !waits[p.index].any) return "";
  const uint64_t phases = waits[p.index].phases;
  return "; its last wait for it, " + line_text(waits[p.index].pc) + ", passed when " +
         std::to_string(phases) + (phases == 1 ? " phase was" : " phases were") + " complete";
}

std::string Checker::missing_shared(const Access& x, Epoch earlier, bool earlier_writes) const {
  const auto count = static_cast<uint32_t>(parties_.size());
  const uint32_t kind = earlier.agent() / count;
  const std::string me = warp_text(*x.by);
  if (!x.alone && x.by->lane_seen.knows(earlier))
    return "no bar.warp.sync of " + me + " between the wait of one of its lanes and this access";
  if (kind >= kKinds) {
    const auto& [rank, offset] = barrier_agents_[earlier.agent() - kKinds * count];
    return me + " has not waited for the phase of " + name_of(rank, offset) +
           " that the copy completes" + last_wait(*x.by, rank, offset);
  }
  const Party& other = party_of(earlier);
  const std::string they = warp_text(other);
  if (kind == kMmas) return missing_commit(x, earlier);
  if (x.async && x.alone && (x.by->proxied.knows(earlier) || x.by->lane_proxied.knows(earlier)))
    return "no bar.warp.sync between them: one lane issues the copy, others may still write";
  if (x.async && earlier_writes && knows(*x.by, earlier, x.alone)) {
    return "no fence.proxy.async between them: " + they +
           " needs one between its write and its signal";
  }
  if (kind == kThreads && heard(x, agent(kLanes, other)) >= earlier.time()) {
    return "no bar.warp.sync of " + they + " between its " + (earlier_writes ? "write" : "read") +
           " and its signal, which one lane gives";
  }
  constexpr const char* kWaits[] = {"", "", "cp.async.bulk.wait_group.read", "wgmma.wait_group",
                                    "cp.async.wait_group"};
  if (kind != kThreads && kind != kLanes) {
    return missing_wait(x, earlier, other.queues[kind], kWaits[kind],
                        kind == kWgmmas ? "the wgmma" : "the copy");
  }
  return "no barrier between them: " + me + " has not waited at one that " + they +
         " signals after its " + (earlier_writes ? "write" : "read");
}

std::string Checker::missing_commit(const Access& x, Epoch earlier) const {
  const Party& other = party_of(earlier);
  const Queue& queue = other.queues[kMmas];
  const bool signalled =
      other.index != x.by->index && heard(x, other.index) >= queue.issued[earlier.time()];
  if (queue.waited.size() <= earlier.time() && signalled)
    return "no tcgen05.commit between the MMA and the signal of " + warp_text(other);
  return warp_text(*x.by) +
         " has not waited for an mbarrier that a tcgen05.commit after the MMA completes";
}

std::string Checker::missing_tensor(const Access& x, Epoch earlier) const {
  const auto count = static_cast<uint32_t>(parties_.size());
  const uint32_t kind = earlier.agent() / count;
  const Party& other = party_of(earlier);
  if (x.by->tensor_heard.knows(earlier)) {
    return "no tcgen05.fence::after_thread_sync of " + warp_text(*x.by) +
           " between its wait and this access";
  }
  if (kind == kTensorMmas) {
    if (x.epoch.agent() != earlier.agent()) return missing_commit(x, earlier);
    return "MMAs of one thread are in order only on the same accumulator and shape; this one needs "
           "a tcgen05.commit and a wait for its mbarrier";
  }
  const bool load = kind == kLoads;
  const bool allocates = (facts_[earlier.pc()] & kAllocates) != 0;
  const char* const wait = allocates ? "tcgen05.alloc"
                           : load    ? "tcgen05.wait::ld"
                                     : "tcgen05.wait::st";
  const std::string text = missing_wait(x, earlier, load ? other.loads : other.stores, wait,
                                        load ? "the load" : "the store");
  if (!text.empty()) return text;
  return "no tcgen05.fence::before_thread_sync of " + warp_text(other) + " between its " + wait +
         " and its signal" +
         (other.tensor_told.knows(earlier) ? ", or no bar.warp.sync where one lane gives it" : "");
}

std::string Checker::missing(const Access& x, Epoch earlier, bool earlier_writes) const {
  return x.tensor ? missing_tensor(x, earlier) : missing_shared(x, earlier, earlier_writes);
}

// ---- The sentence
//      ---------------------------------------------------------------------------------

std::string Checker::location_text(const Access& x, const Location& at) const {
  std::string where = x.tensor ? "tensor memory at column " + std::to_string(at.column) +
                                     ", lanes " + std::to_string(16 * at.group) + " to " +
                                     std::to_string(16 * at.group + 15)
                               : "shared memory at " + hex(at.offset);
  if (ctas_.size() > 1) where += " of CTA " + std::to_string(at.rank);
  return where;
}

/// Accesses may be told of memory that nothing uses: the option is for compilers that do so.
void Checker::unwritten(const Access& x, const Location& at) {
  if (!cluster_.options->check_uninitialized) return;
  found("unwritten " + std::to_string(x.epoch.pc()),
        actor(x.epoch, x.tensor) + ", " + line_text(x.epoch.pc()) + ", reads " +
            location_text(x, at) +
            ", which was never written, or not yet: a wait is missing, or the write");
}

void Checker::race(const Access& x, Epoch earlier, bool earlier_writes, const Location& at) {
  const char* const verb = x.unconditional ? "frees" : x.writes ? "overwrites" : "reads";
  const std::string key = "race " + std::to_string(x.epoch.pc()) + " " +
                          std::to_string(earlier.pc()) + (earlier_writes ? " w" : " r");
  found(key, actor(x.epoch, x.tensor) + ", " + line_text(x.epoch.pc()) + ", " + verb + " " +
                 location_text(x, at) + " that " + actor(earlier, x.tensor) + ", " +
                 line_text(earlier.pc()) + ", " + (earlier_writes ? "writes: " : "reads: ") +
                 missing(x, earlier, earlier_writes) +
                 quote(earlier_writes ? "the write" : "the read", earlier.pc()));
}

}  // namespace fa4::emulator::check
