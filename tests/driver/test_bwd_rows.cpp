// The kernels around the main kernel of a backward, each by itself in the emulator: what the prepare
// kernel makes of lse, O and dO, the finish kernel of the accumulator, the sink kernel of both.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "csrc/common/bwd_args.h"
#include "csrc/dispatch/emulation.h"
#include "csrc/dispatch/kernel_list.h"
#include "csrc/driver/launch.h"
#include "flash_attn4/core/dq_layout.h"
#include "flash_attn4/core/softmax.h"

namespace fa4::test {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr uint16_t kNaN16 = 0xffff;  // of both types

/// Runs on the emulated GPU while it lasts.
struct Emulated {
  Emulated() { EXPECT_TRUE(use_emulator("sm90").ok()); }
  ~Emulated() { EXPECT_TRUE(use_emulator(nullptr).ok()); }
};

void launch(Op op, DType dtype, int64_t blocks, int threads, const void* args) {
  const KernelRow* kernel = find_kernel(op, Target::kSm90a, dtype);
  ASSERT_NE(kernel, nullptr);
  driver::Launch request;
  request.grid.x = static_cast<unsigned>(blocks);
  request.threads = static_cast<unsigned>(threads);
  request.args = args;
  request.early_start = true;
  const Status status = driver::launch(kernel->name, kernel->image, request);
  ASSERT_TRUE(status.ok()) << status.message;
}

/// A number that both 16-bit types hold exactly, as its bits.
uint16_t encode(DType dtype, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (dtype == DType::kBFloat16 || value == 0.0f) return static_cast<uint16_t>(bits >> 16);
  const uint32_t exponent = (bits >> 23 & 0xff) - 127 + 15;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff));
}

/// Queries of a call and how its tensors lie.
struct Queries {
  DType dtype;
  bool packed;
  std::vector<int32_t> lengths;  // dense: all equal
  std::vector<int32_t> used;     // none: all rows count
  int spare;                     // packed: rows that belong to no sequence
  int head_dim;
  int block_m;
  bool aligned;  // rows begin at multiples of 16 bytes
  int heads = 3;

  std::vector<int32_t> offsets() const {
    std::vector<int32_t> result{0};
    for (int32_t length : lengths) result.push_back(result.back() + length);
    return result;
  }
  int total() const { return std::accumulate(lengths.begin(), lengths.end(), spare); }
  int columns() const { return head_dim > 64 ? 128 : 64; }
  int counted(int sequence) const { return used.empty() ? lengths[sequence] : used[sequence]; }
  int owned(int sequence) const {
    return lengths[sequence] + (packed && sequence + 1 == std::ssize(lengths) ? spare : 0);
  }
  /// Of (row, head, dim), sequences behind each other.
  Strides stride(int gap) const {
    const int64_t head = head_dim + gap, row = heads * head + gap;
    return {packed ? 0 : lengths[0] * row, row, head};
  }
  int gap() const { return aligned ? 8 : 3; }
  int64_t size(const Strides& s) const { return total() * s.row; }

  std::string text() const {
    return std::string(packed ? "packed " : "dense ") + testing::PrintToString(lengths) +
           ", used " + testing::PrintToString(used) + ", spare " + std::to_string(spare) +
           ", head_dim " + std::to_string(head_dim) + (aligned ? "" : ", odd strides") +
           ", block of " + std::to_string(block_m) + ", " + dtype_name(dtype);
  }
};

const Queries kCases[] = {
    {DType::kBFloat16, false, {130, 130}, {}, 0, 64, 128, true},
    {DType::kFloat16, false, {70, 70}, {}, 0, 128, 64, true},
    {DType::kBFloat16, false, {100, 100, 100}, {0, 64, 100}, 0, 40, 64, true},
    {DType::kFloat16, false, {5, 5}, {}, 0, 8, 128, false},
    {DType::kBFloat16, true, {3, 0, 64, 129}, {}, 0, 128, 64, true},
    {DType::kFloat16, true, {0, 65, 0, 0, 127}, {0, 1, 0, 0, 64}, 70, 96, 64, false},
    {DType::kFloat16, true, {1, 1, 1}, {}, 200, 64, 128, true},
};

/// The rows of a call in tensors and accumulators; the arrays that it points to live here.
struct Rows {
  std::vector<int32_t> offsets;
  BwdRows rows{};

  explicit Rows(const Queries& q) : offsets(q.offsets()) {
    rows.cu_seqlens_q = q.packed ? offsets.data() : nullptr;
    rows.seqused_q = q.used.empty() ? nullptr : q.used.data();
    rows.batch = static_cast<int32_t>(q.lengths.size());
    rows.seqlen_q = q.packed ? 1000 : q.lengths[0];
    rows.total_q = q.packed ? q.total() : 0;
    rows.heads = q.heads;
    rows.block_m = q.block_m;
    rows.acc_rows = accumulator_rows(rows.batch, rows.seqlen_q, rows.total_q, q.packed, q.block_m);
  }

  /// Calls body(sequence, query, row of the tensors, row of a head's accumulators) for every row
  /// that a sequence owns.
  template <class Body>
  void for_each(const Queries& q, Body body) const {
    for (int sequence = 0; sequence < rows.batch; ++sequence) {
      const int start = offsets[sequence];
      const int acc =
          accumulator_row(sequence, rows.seqlen_q, q.packed ? start : 0, q.packed, q.block_m);
      for (int query = 0; query < q.owned(sequence); ++query)
        body(sequence, query, start + query, acc + query);
    }
  }
};

}  // namespace

// ---- Prepare ------------------------------------------------------------------------------------

namespace {

struct Prepare {
  const Queries& q;
  bool with_dlse;
  Rows rows;
  std::vector<uint16_t> out, dout;
  std::vector<float> lse, dlse;
  std::vector<float> lse2, delta, accumulator;  // results
  std::vector<float> expected_lse2, expected_delta;
  std::vector<bool> used_block;  // by head and block
  std::vector<int32_t> turns;
  static constexpr int kTurns = 2;

  Prepare(const Queries& queries, bool dlse_given)
      : q(queries), with_dlse(dlse_given), rows(queries) {
    const int64_t acc = q.heads * rows.rows.acc_rows;
    out.assign(q.size(q.stride(q.gap())), kNaN16);
    dout.assign(q.size(q.stride(8)), kNaN16);
    lse.assign(q.heads * q.total(), kNaN);
    dlse.assign(q.heads * q.total(), kNaN);
    lse2.assign(acc, kNaN);
    delta.assign(acc, kNaN);
    accumulator.assign(acc * q.columns(), 7.0f);
    expected_lse2.assign(acc, kInfinity);
    expected_delta.assign(acc, 0.0f);
    used_block.assign(acc / q.block_m, false);
    turns.assign(acc / q.block_m * kTurns, 7);
    rows.for_each(q, [&](int sequence, int query, int row, int acc_row) {
      if (query < q.counted(sequence)) fill(query, row, acc_row);
    });
  }

  void fill(int query, int row, int acc_row) {
    for (int head = 0; head < q.heads; ++head) {
      const int64_t place = head * rows.rows.acc_rows + acc_row;
      used_block[place / q.block_m] = true;
      const bool empty = (query + head) % 5 == 4;  // sees no key: out and dout stay NaN
      lse[head * q.total() + row] = empty ? -kInfinity : 0.25f * static_cast<float>(row - head);
      if (empty) continue;
      dlse[head * q.total() + row] = static_cast<float>(row % 9);
      float sum = with_dlse ? -dlse[head * q.total() + row] : 0.0f;
      for (int i = 0; i < q.head_dim; ++i) {
        const auto o = static_cast<float>((row + 3 * i + head) % 7 - 3);
        const auto g = static_cast<float>((5 * row + i + head) % 11 - 4);
        out[row * q.stride(q.gap()).row + head * q.stride(q.gap()).head + i] = encode(q.dtype, o);
        dout[row * q.stride(8).row + head * q.stride(8).head + i] = encode(q.dtype, g);
        sum += o * g;
      }
      expected_lse2[place] = lse[head * q.total() + row] * kLog2e;
      expected_delta[place] = sum;
    }
  }

  void run() {
    BwdPrepareArgs args{};
    args.rows = rows.rows;
    args.head_dim_v = q.head_dim;
    args.acc_columns = q.columns();
    args.vector_loads = q.aligned;
    args.out = out.data();
    args.dout = dout.data();
    args.lse = lse.data();
    args.dlse = with_dlse ? dlse.data() : nullptr;
    args.out_stride = q.stride(q.gap());
    args.dout_stride = q.stride(8);
    // (head, row) for all sequences together: a dense batch coordinate steps over rows.
    args.lse_stride = {q.packed ? 0 : q.lengths[0], 1, q.total()};
    args.dlse_stride = args.lse_stride;
    args.lse2 = lse2.data();
    args.delta = delta.data();
    args.dq_accumulator = accumulator.data();
    args.turns = turns.data();
    args.turns_per_block = kTurns;
    launch(Op::kBwdPrepare, q.dtype, rows.rows.blocks() * q.heads, kBwdRowThreads, &args);
  }

  void check() const {
    for (size_t i = 0; i < lse2.size(); ++i) {
      ASSERT_EQ(lse2[i], expected_lse2[i]) << "row " << i;
      ASSERT_EQ(delta[i], expected_delta[i]) << "row " << i;  // sums of small integers
    }
    const int floats = q.block_m * q.columns();
    for (size_t block = 0; block < used_block.size(); ++block) {
      const float want = used_block[block] ? 0.0f : 7.0f;
      for (int i = 0; i < floats; ++i) ASSERT_EQ(accumulator[block * floats + i], want) << block;
      for (int i = 0; i < kTurns; ++i)
        ASSERT_EQ(turns[block * kTurns + i], static_cast<int32_t>(want)) << block;
    }
  }
};

}  // namespace

TEST(BwdPrepare, StatisticsOfEveryRow) {
  const Emulated emulated;
  for (const Queries& q : kCases) {
    for (bool with_dlse : {false, true}) {
      SCOPED_TRACE(q.text());
      Prepare prepare(q, with_dlse);
      prepare.run();
      prepare.check();
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

// ---- Finish -------------------------------------------------------------------------------------

TEST(BwdFinish, EveryRowOfTheGradient) {
  const Emulated emulated;
  for (const Queries& q : kCases) {
    SCOPED_TRACE(q.text());
    const Rows rows(q);
    const Strides stride = q.stride(q.gap());
    std::vector<float> accumulator(q.heads * rows.rows.acc_rows * q.columns(), kNaN);
    std::vector<uint16_t> dq(q.size(stride), kNaN16), expected = dq;
    rows.for_each(q, [&](int sequence, int query, int row, int acc_row) {
      for (int head = 0; head < q.heads; ++head) {
        const int64_t block = (head * rows.rows.acc_rows + acc_row) / q.block_m;
        for (int i = 0; i < q.head_dim; ++i) {
          const bool counts = query < q.counted(sequence);
          const auto value = static_cast<float>((7 * row + 13 * i + head) % 101 - 50);
          if (counts) {
            accumulator[block * q.block_m * q.columns() +
                        DqLayoutSm90::offset(acc_row % q.block_m, i, q.columns())] = value;
          }
          expected[row * stride.row + head * stride.head + i] =
              encode(q.dtype, counts ? 0.5f * value : 0.0f);
        }
      }
    });
    BwdFinishArgs args{};
    args.rows = rows.rows;
    args.head_dim = q.head_dim;
    args.acc_columns = q.columns();
    args.vector_store = q.aligned;
    args.scale = 0.5f;
    args.dq_accumulator = accumulator.data();
    args.dq = dq.data();
    args.dq_stride = stride;
    const int64_t blocks = rows.rows.blocks() * q.heads;
    launch(Op::kBwdFinish, q.dtype, blocks, kBwdRowThreads, &args);
    for (size_t i = 0; i < dq.size(); ++i) ASSERT_EQ(dq[i], expected[i]) << "element " << i;

    args.dq_accumulator = nullptr;
    launch(Op::kBwdFinish, q.dtype, blocks, kBwdRowThreads, &args);
    for (size_t i = 0; i < dq.size(); ++i)
      ASSERT_EQ(dq[i], expected[i] == kNaN16 ? kNaN16 : 0) << "element " << i;
  }
}

// ---- Sink ---------------------------------------------------------------------------------------

TEST(BwdSink, SumOverRowsInAnyElementType) {
  const Emulated emulated;
  constexpr int kHeads = 2;
  const float sinks[kHeads] = {0.5f, -1.25f};
  for (int64_t acc_rows : {0, 64, 9984}) {
    std::vector<float> lse2(kHeads * acc_rows), delta(kHeads * acc_rows);
    double expected[kHeads] = {};
    for (int64_t i = 0; i < kHeads * acc_rows; ++i) {
      const bool empty = i % 3 == 1;
      lse2[i] = empty ? kInfinity : static_cast<float>(i % 17) * 0.25f + 1.0f;
      delta[i] = empty ? 0.0f : static_cast<float>(i % 23) - 9.0f;
      const int64_t head = i / acc_rows;
      expected[head] -= std::exp2(sinks[head] * double{kLog2e} - lse2[i]) * delta[i];
    }
    for (DType sink_dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      uint16_t sinks16[kHeads], results16[kHeads] = {kNaN16, kNaN16};
      float results[kHeads] = {kNaN, kNaN};
      for (int head = 0; head < kHeads; ++head) sinks16[head] = encode(sink_dtype, sinks[head]);
      const bool wide = sink_dtype == DType::kFloat32;
      BwdSinkArgs args{};
      args.rows.acc_rows = acc_rows;
      args.sink_dtype = sink_dtype;
      args.sink = wide ? static_cast<const void*>(sinks) : sinks16;
      args.dsink = wide ? static_cast<void*>(results) : results16;
      args.lse2 = lse2.data();
      args.delta = delta.data();
      launch(Op::kBwdSink, DType::kBFloat16, kHeads, kBwdSinkThreads, &args);
      for (int head = 0; head < kHeads; ++head) {
        const auto want = static_cast<float>(expected[head]);
        if (wide) {
          EXPECT_NEAR(results[head], want, 1e-6f * (1.0f + 20.0f * std::abs(want)));
        } else {  // encode cuts off: the last bit may differ
          EXPECT_NEAR(results16[head], encode(sink_dtype, want), 1);
        }
      }
    }
  }
}

}  // namespace fa4::test
