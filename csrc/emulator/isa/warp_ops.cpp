// Exchange between the lanes of a warp: shuffles, votes, reductions, elections.
#include <algorithm>
#include <bit>
#include <cmath>

#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/scalar.h"

namespace fa4::emulator {

using ptx::Operand;
using ptx::Type;

namespace {

/// Lanes that take part: the member mask in place `place`. False: they are not all here yet.
bool gather(Warp& w, const Op& op, int place, uint32_t* members) {
  *members = w.source(op.r[place])[w.first_lane()];
  if ((*members >> w.first_lane() & 1) == 0) {
    throw Fault("the member mask " + hex(*members) + " must hold the lane that gives it, " +
                lanes_text(w.exec & (0u - w.exec)));
  }
  return converged(w, *members);
}

std::string members_text(const Warp& w, const Op& op, uint32_t) {
  const uint32_t lane = w.live != 0 ? static_cast<uint32_t>(__builtin_ctz(w.live)) : 0;
  return "the lanes of mask " + hex(w.source(op.r[op.width])[lane]);
}

enum class Shuffle : uint8_t { kUp, kDown, kBfly, kIdx };

/// a: value, b: lane or distance, c: clamp and segment mask, upper half of c: members.
void run_shfl(Warp& w, const Op& op) {
  uint32_t members = 0;
  if (!gather(w, op, kC + 1, &members)) return;
  const uint32_t *value = w.source(op.r[kA]), *distance = w.source(op.r[kB]),
                 *control = w.source(op.r[kC]);
  uint32_t result[kWarpLanes] = {};
  uint32_t in_range = 0;
  for (uint32_t l = 0; l < kWarpLanes; ++l) {
    const uint32_t b = distance[l] & 31, clamp = control[l] & 31, segment = control[l] >> 8 & 31;
    const int max_lane = static_cast<int>((l & segment) | (clamp & ~segment));
    const int min_lane = static_cast<int>(l & segment);
    const int lane = static_cast<int>(l), by = static_cast<int>(b);
    int from = lane;
    bool valid = true;
    switch (static_cast<Shuffle>(op.mode)) {
      case Shuffle::kUp:
        from = lane - by;
        valid = from >= max_lane;
        break;
      case Shuffle::kDown:
        from = lane + by;
        valid = from <= max_lane;
        break;
      case Shuffle::kBfly:
        from = lane ^ by;
        valid = from <= max_lane;
        break;
      case Shuffle::kIdx:
        from = min_lane | (by & static_cast<int>(~segment & 31));
        valid = from <= max_lane;
        break;
    }
    if (!valid) from = lane;
    result[l] = value[from & 31];
    if (valid) in_range |= 1u << l;
  }
  uint32_t* const d = w.target(op.r[kD]);
  for (uint32_t l = 0; l < kWarpLanes; ++l) d[l] = (w.exec >> l & 1) != 0 ? result[l] : d[l];
  if (op.p[0] != kNoPred) w.set_pred(op.p[0], in_range);
}

enum class Vote : uint8_t { kAll, kAny, kUniform, kBallot };

void run_vote(Warp& w, const Op& op) {
  uint32_t members = 0;
  if (!gather(w, op, kB, &members)) return;
  const uint32_t mask = members & w.live;
  const uint32_t votes = (op.source_negated ? ~w.pred(op.p[2]) : w.pred(op.p[2])) & mask;
  const auto vote = static_cast<Vote>(op.mode);
  if (vote == Vote::kBallot) {
    for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
      w.target(op.r[kD])[__builtin_ctz(lanes)] = votes;
    }
    return;
  }
  const bool result = vote == Vote::kAll   ? votes == mask
                      : vote == Vote::kAny ? votes != 0
                                           : votes == mask || votes == 0;
  w.set_pred(op.p[0], result ? kAllLanes : 0);
}

enum class Redux : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kFmin, kFmax };

uint32_t reduce(Redux op, uint32_t a, uint32_t b, bool sign) {
  const auto sa = static_cast<int32_t>(a), sb = static_cast<int32_t>(b);
  switch (op) {
    case Redux::kAdd:
      return a + b;
    case Redux::kMin:
      return sign ? static_cast<uint32_t>(std::min(sa, sb)) : std::min(a, b);
    case Redux::kMax:
      return sign ? static_cast<uint32_t>(std::max(sa, sb)) : std::max(a, b);
    case Redux::kAnd:
      return a & b;
    case Redux::kOr:
      return a | b;
    case Redux::kXor:
      return a ^ b;
    case Redux::kFmin:
      return to_bits(std::fmin(from_bits<float>(a), from_bits<float>(b)));
    case Redux::kFmax:
      return to_bits(std::fmax(from_bits<float>(a), from_bits<float>(b)));
  }
  return a;
}

void run_redux(Warp& w, const Op& op) {
  uint32_t members = 0;
  if (!gather(w, op, kB, &members)) return;
  const uint32_t* const a = w.source(op.r[kA]);
  const bool absolute = (op.extra & 2) != 0;
  uint32_t result = 0;
  bool first = true;
  for (uint32_t lanes = members & w.live; lanes != 0; lanes &= lanes - 1) {
    const uint32_t value =
        absolute ? a[__builtin_ctz(lanes)] & 0x7fffffffu : a[__builtin_ctz(lanes)];
    result =
        first ? value : reduce(static_cast<Redux>(op.mode), result, value, (op.extra & 1) != 0);
    first = false;
  }
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    w.target(op.r[kD])[__builtin_ctz(lanes)] = result;
  }
}

void run_elect(Warp& w, const Op& op) {
  uint32_t members = 0;
  if (!gather(w, op, kA, &members)) return;
  members &= w.live;
  auto leader = static_cast<uint32_t>(__builtin_ctz(members));
  if (w.cta->cluster->options->random_election) {
    // The same lane for the same mask, as programs rely on it.
    const uint64_t number = mix(w.cta->cluster->options->seed ^ members) %
                            static_cast<uint64_t>(std::popcount(members));
    uint32_t rest = members;
    for (uint64_t i = 0; i < number; ++i) rest &= rest - 1;
    leader = static_cast<uint32_t>(__builtin_ctz(rest));
  }
  w.set_pred(op.p[0], 1u << leader);
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    w.target(op.r[kD])[__builtin_ctz(lanes)] = leader;
  }
}

/// match.any: lanes with the same value; match.all (mode 1): whether all have.
void run_match(Warp& w, const Op& op) {
  uint32_t members = 0;
  if (!gather(w, op, kB, &members)) return;
  members &= w.live;
  const uint32_t *low = w.source(op.r[kA]), *high = w.source(op.r[kA + 1]);
  uint32_t all_equal = members;
  uint32_t result[kWarpLanes] = {};
  for (uint32_t lanes = members; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    for (uint32_t others = members; others != 0; others &= others - 1) {
      const int k = __builtin_ctz(others);
      if (low[k] == low[l] && high[k] == high[l]) result[l] |= 1u << k;
    }
    if (result[l] != members) all_equal = 0;
  }
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    w.target(op.r[kD])[l] = op.mode == 1 ? all_equal : result[l];
  }
  if (op.p[0] != kNoPred) w.set_pred(op.p[0], all_equal != 0 ? kAllLanes : 0);
}

void run_activemask(Warp& w, const Op& op) {
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    w.target(op.r[kD])[__builtin_ctz(lanes)] = w.exec;
  }
}

/// d, or d|p.
void result_and_pred(Lowering& l, Draft& draft, const Operand& operand) {
  if (operand.kind == Operand::kPair) {
    l.writes(draft, kD, operand.parts[0], 4);
    l.writes_pred(draft, 0, operand.parts[1]);
  } else {
    l.writes(draft, kD, operand, 4);
  }
}

void waits_for_members(Draft& draft, int place) {
  draft.op.wait_text = members_text;
  draft.op.width = static_cast<uint8_t>(place);
}

}  // namespace

void lower_shfl(Lowering& l) {
  if (!l.has("sync")) l.unmodelled("without .sync");
  Draft& draft = l.emit(run_shfl, OpClass::kWarp);
  draft.op.mode = static_cast<uint8_t>(l.has("up")     ? Shuffle::kUp
                                       : l.has("down") ? Shuffle::kDown
                                       : l.has("bfly") ? Shuffle::kBfly
                                                       : Shuffle::kIdx);
  result_and_pred(l, draft, l.operand(0));
  l.reads(draft, kA, l.operand(1), 4);
  l.reads(draft, kB, l.operand(2), 4);
  l.reads(draft, kC, l.operand(4), 4);
  const VirtualPlane members = draft.r[kC];
  l.reads(draft, kC, l.operand(3), 4);
  draft.r[kC + 1] = members;
  waits_for_members(draft, kC + 1);
}

void lower_vote(Lowering& l) {
  if (!l.has("sync")) l.unmodelled("without .sync");
  Draft& draft = l.emit(run_vote, OpClass::kWarp);
  const Vote vote = l.has("all")   ? Vote::kAll
                    : l.has("any") ? Vote::kAny
                    : l.has("uni") ? Vote::kUniform
                                   : Vote::kBallot;
  draft.op.mode = static_cast<uint8_t>(vote);
  if (vote == Vote::kBallot) {
    l.writes(draft, kD, l.operand(0), 4);
  } else {
    l.writes_pred(draft, 0, l.operand(0));
  }
  l.reads_pred(draft, l.operand(1));
  l.reads(draft, kB, l.operand(2), 4);
  waits_for_members(draft, kB);
}

void lower_redux(Lowering& l) {
  const bool floating = l.last_type() == Type::kF32;
  constexpr std::pair<std::string_view, Redux> kNames[] = {
      {"add", Redux::kAdd}, {"min", Redux::kMin}, {"max", Redux::kMax},
      {"and", Redux::kAnd}, {"or", Redux::kOr},   {"xor", Redux::kXor}};
  Draft& draft = l.emit(run_redux, OpClass::kWarp);
  for (const auto& [name, value] : kNames) {
    if (l.has(name)) draft.op.mode = static_cast<uint8_t>(value);
  }
  if (floating) {
    if (l.has("NaN")) l.unmodelled();
    draft.op.mode = static_cast<uint8_t>(l.has("min") ? Redux::kFmin : Redux::kFmax);
  }
  draft.op.extra = (is_signed(l.last_type()) ? 1 : 0) | (l.has("abs") ? 2 : 0);
  l.writes(draft, kD, l.operand(0), 4);
  l.reads(draft, kA, l.operand(1), 4);
  l.reads(draft, kB, l.operand(2), 4);
  waits_for_members(draft, kB);
}

void lower_elect(Lowering& l) {
  Draft& draft = l.emit(run_elect, OpClass::kWarp);
  const Operand& result = l.operand(0);
  if (result.kind != Operand::kPair) l.unmodelled("one result");
  result_and_pred(l, draft, result);
  l.reads(draft, kA, l.operand(1), 4);
  waits_for_members(draft, kA);
}

void lower_match(Lowering& l) {
  const int bytes = ptx::type_bytes(l.last_type());
  Draft& draft = l.emit(run_match, OpClass::kWarp);
  draft.op.mode = l.has("all") ? 1 : 0;
  result_and_pred(l, draft, l.operand(0));
  l.reads(draft, kA, l.operand(1), bytes);
  l.reads(draft, kB, l.operand(2), 4);
  waits_for_members(draft, kB);
}

void lower_activemask(Lowering& l) {
  Draft& draft = l.emit(run_activemask, OpClass::kWarp);
  l.writes(draft, kD, l.operand(0), 4);
}

}  // namespace fa4::emulator
