// Backward: gradients from tiles of packed query rows against blocks of keys, in one or two passes.
//
//   one pass    an item is a KV head of a sequence. It visits every tile of query rows once, five
//               products each, and keeps dk and dv of the whole head as float32 accumulators.
//   two passes  when there are too few heads for the threads: first dk and dv, an item being a
//               range of keys, then dq, an item being a tile of query rows. Seven products, as S
//               and dP are needed twice, but as many items as one likes.
//
// Both add up the same numbers in the same order: dq over rising blocks of keys, dk and dv over
// rising tiles of query rows, every product of a tile and a block summed from zero. So the bits
// depend neither on the choice nor on the number of threads.
#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "csrc/cpu/backend.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/problem.h"
#include "flash_attn4/core/softmax.h"

namespace fa4::cpu {
namespace {

// Keys of an item of the first of two passes: large enough that preparing a query tile (conversion,
// transposition, D) is a small part of its products.
constexpr int kKeyTile = 4 * kBlockKeys;

struct BwdCall : Call {
  const BwdParams& params;
  explicit BwdCall(const BwdParams& p) : Call(p), params(p) {}

  int64_t query_tiles(int64_t sequence) const {
    return ceil_div<int64_t>(packed_rows(sequence), kTileRows);
  }
  int64_t key_tiles(int64_t sequence) const {
    return ceil_div<int64_t>(k.span(sequence).length, kKeyTile);
  }
};

/// Float32 dk and dv of the keys [first, last) of a sequence and KV head.
class KeyGradients {
 public:
  KeyGradients(const BwdCall& call, int32_t first, int32_t last)
      : first_(first),
        last_(last),
        dk_stride_(ceil_div<int64_t>(call.params.head_dim, 16) * 16),
        dv_stride_(ceil_div<int64_t>(call.params.head_dim_v, 16) * 16),
        data_(new float[(last - first) * (dk_stride_ + dv_stride_)]()) {}

  void give_to(BwdTile& tile) {
    tile.dk = dk();
    tile.dv = dv();
    tile.dk_stride = dk_stride_;
    tile.dv_stride = dv_stride_;
    tile.accumulator_key = first_;
  }

  void store(const BwdCall& call, int64_t sequence, int64_t head) const {
    const BwdParams& p = call.params;
    store(call, p.dk, sequence, head, dk(), p.softmax_scale);
    store(call, p.dv, sequence, head, dv(), 1.0f);
  }

 private:
  float* dk() const { return data_.get(); }
  float* dv() const { return data_.get() + (last_ - first_) * dk_stride_; }

  void store(const BwdCall& call, const Output& tensor, int64_t sequence, int64_t head,
             const float* rows, float scale) const {
    const bool is_dk = rows == dk();
    const int64_t stride = is_dk ? dk_stride_ : dv_stride_;
    const int dim = static_cast<int>(is_dk ? call.params.head_dim : call.params.head_dim_v);
    const int64_t base = call.k.offset(tensor.stride, sequence) + head * tensor.stride.head;
    for (int64_t key = first_; key < last_; ++key) {
      kernels().store_row(call.params.dtype, rows + (key - first_) * stride, scale,
                          call.element(tensor.data, base + key * tensor.stride.row), dim);
    }
  }

  int32_t first_, last_;
  int64_t dk_stride_, dv_stride_;
  std::unique_ptr<float[]> data_;
};

BwdTile make_tile(const BwdCall& call, const TileIndex& index, int64_t query_tile,
                  Workspace& work) {
  const BwdParams& p = call.params;
  BwdTile tile{};
  const int64_t first_row = query_tile * kTileRows;
  const int64_t rows = std::min<int64_t>(kTileRows, call.packed_rows(index.sequence) - first_row);
  call.describe(tile, index.sequence, first_row, static_cast<int>(rows), work);
  tile.softmax_scale = p.softmax_scale;
  tile.q = call.rows(p.q, index.sequence, index.head);
  tile.k = call.keys(p.k, index.sequence, index.head);
  tile.v = call.keys(p.v, index.sequence, index.head);
  tile.dout = call.rows(p.dout, index.sequence, index.head);
  tile.out = call.rows(p.out, index.sequence, index.head);
  tile.lse = call.scalars(p.lse, index.sequence, index.head);
  tile.dlse = call.scalars(p.dlse, index.sequence, index.head);
  return tile;
}

/// All gradients of a sequence and KV head.
void run_head(const BwdCall& call, const TileIndex& index) {
  Workspace& work = thread_workspace();
  KeyGradients gradients(call, 0, call.k.span(index.sequence).length);
  const int64_t tiles = call.query_tiles(index.sequence);
  for (int64_t query_tile = 0; query_tile < tiles; ++query_tile) {
    BwdTile tile = make_tile(call, index, query_tile, work);
    tile.dq = call.rows(call.params.dq, index.sequence, index.head);
    gradients.give_to(tile);
    kernels().bwd_tile(tile, work);
  }
  gradients.store(call, index.sequence, index.head);
}

/// dk and dv of a range of keys.
void run_keys(const BwdCall& call, const TileIndex& index) {
  Workspace& work = thread_workspace();
  const int32_t seqlen_q = call.q.span(index.sequence).length;
  const int32_t seqlen_k = call.k.span(index.sequence).length;
  const int32_t first = static_cast<int32_t>(index.tile * kKeyTile);
  const int32_t last = min_of(first + kKeyTile, seqlen_k);
  KeyGradients gradients(call, first, last);
  const BlockRange rows = q_range(first, last, 1, seqlen_q, seqlen_k, call.window);
  const int64_t end = ceil_div<int64_t>(rows.last * call.group, kTileRows);
  for (int64_t query_tile = rows.first * call.group / kTileRows; query_tile < end; ++query_tile) {
    BwdTile tile = make_tile(call, index, query_tile, work);
    tile.blocks.first = max_of(tile.blocks.first, first / kBlockKeys);
    tile.blocks.last =
        max_of(tile.blocks.first, min_of(tile.blocks.last, ceil_div(last, kBlockKeys)));
    gradients.give_to(tile);
    kernels().bwd_tile(tile, work);
  }
  gradients.store(call, index.sequence, index.head);
}

/// dq of a tile of query rows.
void run_queries(const BwdCall& call, const TileIndex& index) {
  Workspace& work = thread_workspace();
  BwdTile tile = make_tile(call, index, index.tiles - 1 - index.tile, work);
  tile.dq = call.rows(call.params.dq, index.sequence, index.head);
  kernels().bwd_tile(tile, work);
}

/// Whether the heads alone keep the threads busy: compares the time of the slowest thread in one
/// pass with two passes, which cost half as much again (docs/cpu.md) and spread evenly.
bool one_pass_pays(double work, double largest_head, int threads) {
  if (threads == 1 || work == 0.0) return true;
  const double rounds = std::ceil(work / (largest_head * threads) - 1e-6);
  return rounds * largest_head <= 1.5 * work / threads;
}

/// dsink[head] = - sum over rows of 2^(sink - lse) D, one item per sequence and query head; the
/// sums over sequences are added in order afterwards.
Status run_sink(const BwdCall& call, const Context& context) {
  const BwdParams& p = call.params;
  std::vector<float> sinks;
  call.load_sinks(sinks);
  std::vector<double> sums(p.batch * p.heads_q, 0.0);
  const double work = static_cast<double>(p.batch) * p.seqlen_q * p.heads_q * p.head_dim_v;
  const Status status = for_each_item(context, p.batch * p.heads_q, work, [&](int64_t item) {
    const int64_t sequence = item / p.heads_q;
    const int64_t head = item % p.heads_q;
    alignas(64) float dout[kMaxHeadDim];
    for (int64_t row = 0; row < call.q.span(sequence).length; ++row) {
      const auto at = [&](const Strides& stride) {
        return call.q.offset(stride, sequence) + row * stride.row + head * stride.head;
      };
      const float lse = p.lse.data[at(p.lse.stride)];
      if (lse == kMinusInfinity) continue;
      const int dim = static_cast<int>(p.head_dim_v);
      kernels().load_row(p.dtype, call.element(p.dout.data, at(p.dout.stride)), dout, dim);
      double delta =
          kernels().dot_row(p.dtype, dout, call.element(p.out.data, at(p.out.stride)), dim);
      if (p.dlse.data != nullptr) delta -= p.dlse.data[at(p.dlse.stride)];
      sums[item] -= std::exp2(static_cast<double>(sinks[head]) - lse * double{kLog2e}) * delta;
    }
  });
  for (int64_t head = 0; head < p.heads_q; ++head) {
    double total = 0.0;
    for (int64_t sequence = 0; sequence < p.batch; ++sequence)
      total += sums[sequence * p.heads_q + head];
    store_scalar(p.sink_dtype, static_cast<float>(total), p.dsink, head);
  }
  return status;
}

Status run_heads(const BwdCall& call, const TileOrder& heads, const Context& context) {
  return for_each_item(context, heads.size(), heads.work(),
                       [&](int64_t item) { run_head(call, heads.at(item)); });
}

Status run_two_passes(const BwdCall& call, TileOrder& order, const Context& context) {
  const BwdParams& p = call.params;
  order.clear(p.heads_k);
  for (int64_t i = 0; i < p.batch; ++i) order.add(i, call.key_tiles(i), call.pairs(i));
  order.finish();
  const Status status = for_each_item(context, order.size(), 4.0 * order.work() * p.head_dim,
                                      [&](int64_t item) { run_keys(call, order.at(item)); });
  if (!status.ok()) return status;
  order.clear(p.heads_k);
  for (int64_t i = 0; i < p.batch; ++i) order.add(i, call.query_tiles(i), call.pairs(i));
  order.finish();
  return for_each_item(context, order.size(), 3.0 * order.work() * p.head_dim,
                       [&](int64_t item) { run_queries(call, order.at(item)); });
}

Status run(const BwdParams& params, const Context& context) {
  thread_local TileOrder order;
  const BwdCall call(params);
  zero_unused(call.q, params.dtype, params.dq, params.heads_q, params.head_dim);
  zero_unused(call.k, params.dtype, params.dk, params.heads_k, params.head_dim);
  zero_unused(call.k, params.dtype, params.dv, params.heads_k, params.head_dim_v);
  order.clear(params.heads_k);
  double largest = 0.0;
  for (int64_t i = 0; i < params.batch; ++i) {
    const double work = call.pairs(i) * 5.0 * params.head_dim;
    largest = std::max(largest, work / params.heads_k);
    order.add(i, 1, work);
  }
  order.finish();
  const bool one_pass = one_pass_pays(order.work(), largest, num_threads(context));
  Status status = one_pass ? run_heads(call, order, context) : run_two_passes(call, order, context);
  if (status.ok() && params.sink != nullptr) status = run_sink(call, context);
  return status;
}

}  // namespace

Status bwd(const BwdParams& params, const Context& context) {
  try {
    Status status = check_sequences(params);
    return status.ok() ? run(params, context) : status;
  } catch (const std::bad_alloc&) {
    return Status::runtime("out of memory for the backward's scratch");
  }
}

}  // namespace fa4::cpu
