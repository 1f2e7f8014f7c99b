// tcgen05.mma and tcgen05.commit: the tensor pipe of a CTA, or of a pair of CTAs.
#include <algorithm>
#include <array>
#include <utility>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/tcgen05.h"
#include "csrc/emulator/machine/mbarrier.h"
#include "csrc/emulator/tensor/tensor_core.h"

namespace fa4::emulator {

using ptx::Operand;

namespace {

/// The instruction descriptor of kind::f16; include/flash_attn4/core/descriptors.h has the bits.
struct Instruction {
  Half a_type, b_type;
  OperandMajor a_major, b_major;
  bool negate_a, negate_b;
  int m, n;
};

Instruction decode_instruction(uint32_t bits) {
  const uint32_t unsupported = bits & 0xe080200fu;  // sparsity, saturation, reserved bits, shift
  const uint32_t d_format = bits >> 4 & 3, a_format = bits >> 7 & 7, b_format = bits >> 10 & 7;
  if (unsupported != 0 || d_format != 1 || a_format > 1 || b_format > 1) {
    throw Fault(
        "tcgen05.mma: the instruction descriptor must ask for fp16 or bf16 operands and an fp32 "
        "accumulator, dense, got " +
        hex(bits));
  }
  return {a_format == 1 ? Half::kBF16 : Half::kF16,
          b_format == 1 ? Half::kBF16 : Half::kF16,
          (bits >> 15 & 1) != 0 ? OperandMajor::kMN : OperandMajor::kK,
          (bits >> 16 & 1) != 0 ? OperandMajor::kMN : OperandMajor::kK,
          (bits >> 13 & 1) != 0,
          (bits >> 14 & 1) != 0,
          static_cast<int>(bits >> 24 & 31) * 16,
          static_cast<int>(bits >> 17 & 63) * 8};
}

void check_shape(const Instruction& i, int group) {
  const bool m_fits = group == 1 ? i.m == 64 || i.m == 128 : i.m == 128 || i.m == 256;
  const int step = group == 2 ? 32 : i.m == 64 ? 8 : 16;
  if (m_fits && i.n >= step && i.n <= 256 && i.n % step == 0) return;
  throw Fault("tcgen05.mma: no shape M = " + std::to_string(i.m) + ", N = " + std::to_string(i.n) +
              " for .cta_group::" + std::to_string(group));
}

/// Rows that a CTA holds of A or D, in tensor memory at this address.
void check_place(uint32_t address, uint32_t lanes, uint32_t columns) {
  const uint32_t lane = address >> 16, column = address & 0xffff;
  if (lane % 16 == 0 && lane + lanes <= TensorMemory::kLanes &&
      column + columns <= TensorMemory::kColumns) {
    return;
  }
  throw Fault("tcgen05.mma: " + std::to_string(lanes) + " lanes and " + std::to_string(columns) +
              " columns from lane " + std::to_string(lane) + ", column " + std::to_string(column) +
              " do not lie in tensor memory");
}

/// One k-step: where its operands lie.
struct Step {
  bool a_in_tmem = false;
  uint64_t a = 0;  // descriptor, or address in tensor memory
  uint64_t b = 0;  // descriptor
};

class Mma : public Operation {
 public:
  Mma(Cluster& cluster, uint32_t leader, int group, uint32_t d, Instruction instruction,
      bool accumulate)
      : cluster_(cluster),
        leader_(leader),
        group_(group),
        d_(d),
        i_(instruction),
        accumulate_(accumulate) {}

  void add(Step step) { steps_.push_back(step); }
  /// Lanes of D to leave alone: four words per CTA.
  void disable(const std::array<uint32_t, 8>& lanes) {
    disabled_ = lanes;
    has_disabled_ =
        std::any_of(lanes.begin(), lanes.end(), [](uint32_t word) { return word != 0; });
  }
  std::string name() const override { return "tcgen05.mma"; }

  void check_places() const {
    const bool halves = group_ == 2 && rows() == 64;
    const bool quarters = group_ == 1 && rows() == 64;
    const auto lanes = static_cast<uint32_t>(quarters ? 112 : rows());
    check_place(d_, halves ? TensorMemory::kLanes : lanes,
                static_cast<uint32_t>(halves ? i_.n / 2 : i_.n));
    if (steps_[0].a_in_tmem) check_place(static_cast<uint32_t>(steps_[0].a), lanes, kK / 2);
  }

  /// Before it is submitted: which memory it works on.
  void tell_checker(Warp& w, const Op& op) {
    check::MmaOperands operands;
    std::array<std::array<uint32_t, kMostUnits>, 4> units;
    for (int c = 0; c < group_; ++c) {
      const Step& step = steps_[0];
      if (step.a_in_tmem) {
        operands.a.push_back({&cta(c), static_cast<uint32_t>(step.a & 0xffff), kK / 2,
                              lane_groups(static_cast<uint32_t>(step.a) >> 16 & 0xff, rows())});
      } else {
        tell_shared(c, {DescriptorKind::kUmma, step.a, i_.a_major, i_.a_type, rows()},
                    units[static_cast<size_t>(2 * c)], &operands);
      }
      tell_shared(c, {DescriptorKind::kUmma, step.b, i_.b_major, i_.b_type, i_.n / group_},
                  units[static_cast<size_t>(2 * c + 1)], &operands);
      const bool halves = group_ == 2 && rows() == 64;
      operands.d.push_back({&cta(c), d_ & 0xffff, static_cast<uint32_t>(halves ? i_.n / 2 : i_.n),
                            halves ? uint8_t{0xff} : lane_groups(d_ >> 16, rows())});
    }
    operands.reads_d = accumulate_;
    operands.shape = uint64_t{d_} << 32 | static_cast<uint64_t>(i_.m) << 12 |
                     static_cast<uint64_t>(i_.n) << 2 | static_cast<uint64_t>(group_);
    cluster_.checker->mma(w, op, operands);
  }

  /// Steps that accumulate into the same place are one longer product: the sums are the same, and D is
  /// read and written once.
  bool absorb(Operation& next_operation) override {
    const auto* const next = dynamic_cast<Mma*>(&next_operation);
    constexpr size_t kMostSteps = 8;
    if (next == nullptr || !next->accumulate_ || steps_.size() == kMostSteps) return false;
    if (has_disabled_ || next->has_disabled_) return false;
    const Instruction &x = i_, &y = next->i_;
    const bool same = next->d_ == d_ && next->leader_ == leader_ && next->group_ == group_ &&
                      x.m == y.m && x.n == y.n && x.a_type == y.a_type && x.b_type == y.b_type &&
                      x.a_major == y.a_major && x.b_major == y.b_major &&
                      x.negate_a == y.negate_a && x.negate_b == y.negate_b;
    if (!same) return false;
    steps_.push_back(next->steps_[0]);
    return true;
  }

  void read() override {
    const size_t k = steps_.size() * kK;
    for (int c = 0; c < group_; ++c) a_[c] = take_buffer(k * static_cast<size_t>(rows()));
    b_ = take_buffer(k * static_cast<size_t>(i_.n));
    for (size_t s = 0; s < steps_.size(); ++s) {
      for (int c = 0; c < group_; ++c)
        read_a(steps_[s], c, a_[c].data() + s * kK * static_cast<size_t>(rows()));
      read_b(steps_[s], b_.data() + s * kK * static_cast<size_t>(i_.n));
    }
  }

  void write() override {
    for (int c = 0; c < group_; ++c) {
      if (has_disabled_) {
        multiply_enabled_lanes(c);
      } else {
        multiply_cta(c);
      }
      cluster_.spare_buffers.push_back(std::move(a_[c]));
    }
    cluster_.spare_buffers.push_back(std::move(b_));
    Statistics& statistics = cluster_.statistics;
    statistics.mma += steps_.size();
    statistics.fma +=
        steps_.size() * static_cast<uint64_t>(i_.m) * static_cast<uint64_t>(i_.n) * kK;
  }

 private:
  /// Rows of A and D that one CTA holds.
  int rows() const { return i_.m / group_; }
  Cta& cta(int c) const { return cluster_.ctas[leader_ + static_cast<uint32_t>(c)]; }

  /// Which groups of sixteen lanes the rows of one CTA lie in: see read_a_from_tmem.
  uint8_t lane_groups(uint32_t lane, int rows) const {
    const uint32_t groups = rows == 64 && group_ == 1 ? 0x55u : (1u << rows / 16) - 1;
    return static_cast<uint8_t>(groups << lane / 16);
  }

  void tell_shared(int c, const SharedOperand& operand, std::array<uint32_t, kMostUnits>& units,
                   check::MmaOperands* operands) {
    if (!descriptor_problem(operand, cta(c).shared.end()).empty())
      return;  // faults when it is read
    operands->shared.push_back({&cta(c), units.data(), operand_units(operand, units.data())});
  }

  std::vector<float> take_buffer(size_t size) {
    std::vector<float> buffer;
    if (!cluster_.spare_buffers.empty()) {
      buffer = std::move(cluster_.spare_buffers.back());
      cluster_.spare_buffers.pop_back();
    }
    if (buffer.size() < size) buffer.resize(size);
    return buffer;
  }

  void read_shared(int c, uint64_t descriptor, OperandMajor major, Half type, int rows, float* to,
                   size_t stride) {
    Cta& owner = cta(c);
    const SharedOperand operand{DescriptorKind::kUmma, descriptor, major, type, rows};
    const std::string problem = descriptor_problem(operand, owner.shared.end());
    if (!problem.empty())
      throw Fault("tcgen05.mma: shared-memory descriptor " + hex(descriptor) + ": " + problem);
    uint32_t offset = 0;
    if (cluster_.options->check_uninitialized &&
        find_element(operand, owner.shared.base(), kPoison16, &offset)) {
      throw Fault("tcgen05.mma of line " + std::to_string(line) + " reads shared memory at " +
                  hex(offset) + " of CTA " + std::to_string(owner.rank) +
                  ", which was never written, or not yet");
    }
    read_operand(operand, owner.shared.base(), to, stride);
    cluster_.statistics.shared_operand_bytes += static_cast<uint64_t>(rows) * kK * 2;
  }

  void read_a(const Step& step, int c, float* to) {
    const auto stride = static_cast<size_t>(rows());
    if (step.a_in_tmem) {
      read_a_from_tmem(static_cast<uint32_t>(step.a), c, to);
    } else {
      read_shared(c, step.a, i_.a_major, i_.a_type, rows(), to, stride);
    }
    if (i_.negate_a) negate(to, stride * kK);
  }

  void read_a_from_tmem(uint32_t address, int c, float* to) {
    TensorMemory& tmem = cta(c).tmem;
    const uint32_t column = address & 0xffff, lane = address >> 16;
    check_columns(tmem, column, kK / 2);
    const auto stride = static_cast<size_t>(rows());
    const auto check = [&](uint32_t first_lane, uint32_t count) {
      if (!cluster_.options->check_uninitialized) return;
      for (uint32_t k = 0; k < kK / 2; ++k) {
        const uint32_t* const cells = tmem.column(column + k) + first_lane;
        if (std::find(cells, cells + count, kPoison32) == cells + count) continue;
        throw Fault("tcgen05.mma of line " + std::to_string(line) +
                    " reads A in tensor memory at column " + std::to_string(column + k) +
                    ", which was never written, or not yet");
      }
    };
    if (rows() == 64 && group_ == 1) {  // sixteen rows in each quarter of the lanes
      for (uint32_t quarter = 0; quarter < 4; ++quarter) {
        check(32 * quarter + lane, 16);
        read_tmem_operand(tmem.column(column) + 32 * quarter + lane, TensorMemory::kLanes, 16,
                          i_.a_type, to + 16 * quarter, stride);
      }
      return;
    }
    check(lane, static_cast<uint32_t>(rows()));
    read_tmem_operand(tmem.column(column) + lane, TensorMemory::kLanes, rows(), i_.a_type, to,
                      stride);
  }

  /// Each CTA of a pair holds half of N.
  void read_b(const Step& step, float* to) {
    const int part = i_.n / group_;
    for (int c = 0; c < group_; ++c) {
      read_shared(c, step.b, i_.b_major, i_.b_type, part, to + c * part, static_cast<size_t>(i_.n));
    }
    if (i_.negate_b) negate(to, static_cast<size_t>(i_.n) * kK);
  }

  static void negate(float* values, size_t count) {
    for (size_t k = 0; k < count; ++k) values[k] = -values[k];
  }

  /// The product, with the former values put back into disabled lanes.
  void multiply_enabled_lanes(int c) {
    TensorMemory& tmem = cta(c).tmem;
    const uint32_t first = d_ & 0xffff;
    const uint32_t columns =
        std::min<uint32_t>(static_cast<uint32_t>(i_.n), TensorMemory::kColumns - first);
    const std::vector<uint32_t> before(tmem.column(first),
                                       tmem.column(first) + size_t{columns} * TensorMemory::kLanes);
    multiply_cta(c);
    for (uint32_t column = 0; column < columns; ++column) {
      for (uint32_t lane = 0; lane < TensorMemory::kLanes; ++lane) {
        if ((disabled_[static_cast<size_t>(4 * c) + lane / 32] >> lane % 32 & 1) == 0) continue;
        tmem.column(first + column)[lane] = before[size_t{column} * TensorMemory::kLanes + lane];
      }
    }
  }

  void multiply_cta(int c) {
    TensorMemory& tmem = cta(c).tmem;
    const uint32_t column = d_ & 0xffff, lane = d_ >> 16;
    const bool halves =
        group_ == 2 && rows() == 64;  // the second half of N lies in lanes 64 and up
    const int columns = halves ? i_.n / 2 : i_.n;
    check_columns(tmem, column, static_cast<uint32_t>(columns));
    auto* const d = reinterpret_cast<float*>(tmem.column(column) + lane);
    const auto stride = static_cast<size_t>(rows());
    Product p{d,
              TensorMemory::kLanes,
              a_[c].data(),
              stride,
              b_.data(),
              static_cast<size_t>(i_.n),
              rows(),
              columns,
              static_cast<int>(steps_.size()) * kK,
              accumulate_};
    const Accumulate mode = cluster_.options->accumulate;
    if (halves) {
      multiply(p, mode);
      p.d = d + 64;
      p.b = b_.data() + columns;
      multiply(p, mode);
    } else if (rows() == 64) {
      for (int quarter = 0; quarter < 4; ++quarter) {
        p.d = d + 32 * quarter;
        p.a = a_[c].data() + 16 * quarter;
        p.m = 16;
        multiply(p, mode);
      }
    } else {
      multiply(p, mode);
    }
  }

  Cluster& cluster_;
  uint32_t leader_;
  int group_;
  uint32_t d_;
  Instruction i_;
  bool accumulate_;
  std::vector<Step> steps_;
  std::array<uint32_t, 8> disabled_{};
  bool has_disabled_ = false;
  std::vector<float> a_[2], b_;
};

/// Arrives when all that was issued before it into the pipe is done.
class Commit : public Operation {
 public:
  Commit(std::vector<std::pair<Cta*, uint32_t>> barriers, check::Parcel parcel)
      : barriers_(std::move(barriers)), parcel_(std::move(parcel)) {}
  void write() override {
    for (const auto& [cta, offset] : barriers_) {
      if (parcel_ != nullptr) cta->cluster->checker->deliver(*cta, offset, parcel_);
      mbarrier_arrive(*cta, offset, 1, 0, false);
    }
  }
  std::string name() const override { return "tcgen05.commit"; }

 private:
  std::vector<std::pair<Cta*, uint32_t>> barriers_;
  check::Parcel parcel_;
};

/// One thread issues for the CTA, or the leader's for the pair.
uint32_t issuing_lane(const Warp& w, const char* what) {
  if ((w.exec & (w.exec - 1)) != 0) {
    throw Fault(std::string(what) + ": one thread must issue it, " + lanes_text(w.exec) + " do");
  }
  return w.first_lane();
}

uint64_t value(const Warp& w, const Op& op, int place, uint32_t lane) {
  return uint64_t{w.source(op.r[place + 1])[lane]} << 32 | w.source(op.r[place])[lane];
}

/// mode: cta_group, and 4 where A is in tensor memory. D is the first plane of the list, the instruction
/// descriptor the second, then the masks of lanes to leave alone.
void run_mma(Warp& w, const Op& op) {
  const uint32_t lane = issuing_lane(w, "tcgen05.mma");
  const int group = op.mode & 3;
  Cta& cta = *w.cta;
  use_cta_group(cta, group);
  if (group == 2 && cta.rank % 2 != 0) {
    throw Fault("tcgen05.mma.cta_group::2: the CTA of even rank issues for the pair, got rank " +
                std::to_string(cta.rank));
  }
  const PlaneRef* const list = w.code->lists.data() + op.list;
  const uint32_t d = w.source(list[0])[lane] + static_cast<uint32_t>(op.offset_c);
  const Instruction instruction = decode_instruction(w.source(list[1])[lane]);
  check_shape(instruction, group);
  const bool accumulate =
      op.p[2] != kNoPred && ((w.pred(op.p[2]) >> lane & 1) != 0) != op.source_negated;
  auto mma = std::make_unique<Mma>(*cta.cluster, cta.rank, group, d, instruction, accumulate);
  std::array<uint32_t, 8> disabled{};
  for (uint32_t k = 2; k < op.list_count; ++k) disabled[k - 2] = w.source(list[k])[lane];
  mma->disable(disabled);
  const bool a_in_tmem = (op.mode & 4) != 0;
  mma->add({a_in_tmem, value(w, op, kA, lane) + static_cast<uint64_t>(a_in_tmem ? op.imm : 0),
            value(w, op, kB, lane)});
  mma->check_places();
  mma->line = op.line;
  if (cta.cluster->checker != nullptr) mma->tell_checker(w, op);
  cta.cluster->agents.submit(std::move(mma), static_cast<int>(cta.rank));
}

/// a: barrier; list: mask of a multicast.
void run_commit(Warp& w, const Op& op) {
  const uint32_t lane = issuing_lane(w, "tcgen05.commit");
  Cluster& cluster = *w.cta->cluster;
  use_cta_group(*w.cta, op.mode);
  const auto address =
      static_cast<uint32_t>(value(w, op, kA, lane) + static_cast<uint64_t>(op.imm));
  std::vector<std::pair<Cta*, uint32_t>> barriers;
  if (op.list_count == 0) {
    barriers.emplace_back(&cluster.cta_of_address(address), offset_of(address));
  } else {
    const uint32_t mask = w.source(w.code->lists[op.list])[lane] & 0xffff;
    for (uint32_t rank = 0; rank < cluster.ctas.size(); ++rank) {
      if ((mask >> rank & 1) != 0) barriers.emplace_back(&cluster.ctas[rank], offset_of(address));
    }
  }
  check::Parcel parcel;
  if (cluster.checker != nullptr) {
    for (const auto& [cta, offset] : barriers) cluster.checker->promise(w, op, *cta, offset, true);
    parcel = cluster.checker->commit(w);
  }
  auto commit = std::make_unique<Commit>(std::move(barriers), std::move(parcel));
  commit->line = op.line;
  cluster.agents.submit(std::move(commit), static_cast<int>(w.cta->rank));
}

void lower_mma_instruction(Lowering& l) {
  l.only({"mma", "cta_group::1", "cta_group::2", "kind::f16", "collector::a::fill",
          "collector::a::use", "collector::a::lastuse", "collector::a::discard"});
  if (!l.has("kind::f16")) l.unmodelled("kinds other than f16");
  Draft& draft = l.emit(run_mma, OpClass::kMma);
  const bool a_in_tmem = l.operand(1).kind == Operand::kAddress;
  draft.op.mode = static_cast<uint8_t>((l.has("cta_group::2") ? 2 : 1) | (a_in_tmem ? 4 : 0));
  const Operand& d = l.operand(0);
  if (d.kind != Operand::kAddress) l.unmodelled("an address is expected");
  if (l.operand(3).kind == Operand::kVector) l.unmodelled("a list in place of the descriptor");
  l.reads_list(draft, d.parts[0], 4);
  draft.op.offset_c = static_cast<int32_t>(d.value);
  l.reads_list(draft, l.operand(3), 4);
  if (a_in_tmem) {
    l.address(draft, l.operand(1));
  } else {
    l.reads(draft, kA, l.operand(1), 8);
  }
  l.reads(draft, kB, l.operand(2), 8);
  size_t next = 4;
  if (next < l.operand_count() && l.operand(next).kind == Operand::kVector)
    l.reads_list(draft, l.operand(next++), 4);
  l.reads_pred(draft, l.operand(next++));
  if (draft.list.size() > 10) l.unmodelled("the number of lane masks");
  if (next < l.operand_count()) l.unmodelled("scaling of D");
}

}  // namespace

void lower_tensor_pipe(Lowering& l) {
  if (l.part(1) == "mma") return lower_mma_instruction(l);
  if (l.part(1) != "commit") l.unmodelled();
  Draft& draft = l.emit(run_commit, OpClass::kMma);
  draft.op.mode = l.has("cta_group::2") ? 2 : 1;
  l.address(draft, l.operand(0));
  if (l.has("multicast::cluster")) l.reads_list(draft, l.operand(1), 4);
}

}  // namespace fa4::emulator
