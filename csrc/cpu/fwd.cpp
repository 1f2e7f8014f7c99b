// Forward: splits the call into tiles of packed query rows, and into ranges of keys where asked
// for, and gives them to the kernels.
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "csrc/cpu/backend.h"
#include "csrc/cpu/merge.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/problem.h"
#include "flash_attn4/core/softmax.h"

namespace fa4::cpu {
namespace {

// num_splits = 0: calls with fewer tiles than this are split, into ranges of at least kSplitKeys
// keys. A rule of shapes alone, so that results do not depend on the number of threads.
constexpr int64_t kEnoughTiles = 32;
constexpr int64_t kSplitKeys = 512;

/// Float32 results of the splits, packed rows of all heads of a sequence one after another:
/// out [packed row][split][head_dim_v] and lse [packed row][split].
struct Partials {
  int64_t splits = 1;
  std::vector<int64_t> first_row;  // of each sequence
  std::unique_ptr<float[]> out;
  std::unique_ptr<float[]> lse;

  /// Index of packed row 0 of a sequence and KV head.
  int64_t row(const Call& call, const TileIndex& index) const {
    return first_row[index.sequence] + index.head * call.packed_rows(index.sequence);
  }
};

struct FwdCall : Call {
  const FwdParams& params;
  std::vector<float>& sink_log2;
  int64_t tile_rows = kTileRows;

  FwdCall(const FwdParams& p, std::vector<float>& sinks) : Call(p), params(p), sink_log2(sinks) {}
};

int64_t count_tiles(const Call& call, int64_t tile_rows) {
  int64_t tiles = 0;
  for (int64_t sequence = 0; sequence < call.problem.batch; ++sequence) {
    tiles += ceil_div(call.packed_rows(sequence), tile_rows) * call.problem.heads_k;
  }
  return tiles;
}

/// Rows of a query tile: fewer when the threads would otherwise have less than a few tiles each. A
/// row's result does not depend on the tile it is in.
int64_t choose_tile_rows(const Call& call, int threads) {
  int64_t rows = kTileRows;
  while (threads > 1 && rows > 32 && count_tiles(call, rows) < int64_t{4} * threads) rows /= 2;
  return rows;
}

int64_t choose_splits(const Call& call, int64_t asked) {
  int64_t keys = 0;
  for (int64_t i = 0; i < call.problem.batch; ++i)
    keys = std::max<int64_t>(keys, call.k.span(i).length);
  if (asked == 0) {
    const int64_t tiles = std::max<int64_t>(1, count_tiles(call, kTileRows));
    asked = std::min(ceil_div(kEnoughTiles, tiles), keys / kSplitKeys);
  }
  return clamp_to<int64_t>(asked, 1, std::max<int64_t>(1, ceil_div<int64_t>(keys, kBlockKeys)));
}

/// The keys of split `split`, as blocks. The borders depend on the sequence alone.
Interval split_blocks(int32_t seqlen_k, int64_t splits, int64_t split) {
  const int64_t blocks = ceil_div(seqlen_k, kBlockKeys);
  return {static_cast<int32_t>(blocks * split / splits),
          static_cast<int32_t>(blocks * (split + 1) / splits)};
}

FwdTile make_tile(const FwdCall& call, const TileIndex& index, Workspace& work) {
  const FwdParams& p = call.params;
  FwdTile tile{};
  const int64_t first_row = (index.tiles - 1 - index.tile) * call.tile_rows;
  const int64_t rows = std::min(call.tile_rows, call.packed_rows(index.sequence) - first_row);
  call.describe(tile, index.sequence, first_row, static_cast<int>(rows), work);
  tile.q = call.rows(p.q, index.sequence, index.head);
  tile.k = call.keys(p.k, index.sequence, index.head);
  tile.v = call.keys(p.v, index.sequence, index.head);
  if (p.page_table != nullptr) {
    const int32_t* pages = p.page_table + index.sequence * p.page_table_stride;
    tile.k = {call.element(p.k.data, index.head * p.k.stride.head), p.k.stride.row, pages,
              p.k.stride.batch, p.page_size};
    tile.v = {call.element(p.v.data, index.head * p.v.stride.head), p.v.stride.row, pages,
              p.v.stride.batch, p.page_size};
  }
  tile.out_dtype = p.dtype;
  tile.out = call.rows(p.out, index.sequence, index.head);
  tile.lse = call.scalars(p.lse, index.sequence, index.head);
  if (p.sink != nullptr) tile.sink_log2 = call.sink_log2.data() + index.head * call.group;
  return tile;
}

/// Restricts a tile to a split and sends its results to the partials.
void make_split(const FwdCall& call, const Partials& partials, const TileIndex& index,
                int64_t split, FwdTile& tile) {
  const Interval blocks = split_blocks(tile.seqlen_k, partials.splits, split);
  BlockRange& range = tile.blocks;
  range.first = max_of(range.first, blocks.first);
  range.last = max_of(range.first, min_of(range.last, blocks.last));
  const int64_t dim = call.params.head_dim_v;
  const int64_t row = partials.row(call, index) * partials.splits + split;
  tile.out_dtype = DType::kFloat32;
  tile.out = {partials.out.get() + row * dim, call.group * partials.splits * dim,
              partials.splits * dim};
  tile.lse = {partials.lse.get() + row, call.group * partials.splits, partials.splits};
  if (split != 0) tile.sink_log2 = nullptr;  // the sink counts once
}

/// Which kernel serves a tile depends on the sequence, not on the tile: the size of tiles depends
/// on the number of threads, and results do not.
void run_tile(const FwdCall& call, const TileIndex& index, const FwdTile& tile, Workspace& work) {
  const Kernels& isa = kernels();
  const bool few = call.packed_rows(index.sequence) <= isa.few_rows;
  few ? isa.fwd_few_rows(tile, work) : isa.fwd_tile(tile, work);
}

void merge_tile(const FwdCall& call, const Partials& partials, const TileIndex& index) {
  const int64_t first_row = (index.tiles - 1 - index.tile) * call.tile_rows;
  const int64_t end = std::min(first_row + call.tile_rows, call.packed_rows(index.sequence));
  const QueryRows out = call.rows(call.params.out, index.sequence, index.head);
  const QueryScalars lse = call.scalars(call.params.lse, index.sequence, index.head);
  const int64_t dim = call.params.head_dim_v;
  for (int64_t packed = first_row; packed < end; ++packed) {
    const int64_t row = packed / call.group;
    const int64_t head = packed % call.group;
    const int64_t at = (partials.row(call, index) + packed) * partials.splits;
    CombineRow merge{};
    merge.partial_dtype = DType::kFloat32;
    merge.out_dtype = call.params.dtype;
    merge.head_dim_v = static_cast<int>(dim);
    merge.num_splits = static_cast<int>(partials.splits);
    merge.partial = partials.out.get() + at * dim;
    merge.split_stride = dim;
    merge.out = call.element(out.data, row * out.row_stride + head * out.head_stride);
    lse.data[row * lse.row_stride + head * lse.head_stride] =
        merge_row(merge, partials.lse.get() + at, 1);
  }
}

Status run_split(const FwdCall& call, const TileOrder& order, int64_t splits,
                 const Context& context) {
  Partials partials;
  partials.splits = splits;
  int64_t rows = 0;
  for (int64_t i = 0; i < call.params.batch; ++i) {
    partials.first_row.push_back(rows);
    rows += call.packed_rows(i) * call.params.heads_k;
  }
  partials.out.reset(new float[rows * splits * call.params.head_dim_v]);
  partials.lse.reset(new float[rows * splits]);
  Status status = for_each_item(context, order.size() * splits, order.work(), [&](int64_t item) {
    const TileIndex index = order.at(item / splits);
    Workspace& work = thread_workspace();
    FwdTile tile = make_tile(call, index, work);
    make_split(call, partials, index, item % splits, tile);
    run_tile(call, index, tile, work);
  });
  if (!status.ok()) return status;
  const double merged = static_cast<double>(rows) * splits * call.params.head_dim_v;
  return for_each_item(context, order.size(), merged,
                       [&](int64_t item) { merge_tile(call, partials, order.at(item)); });
}

Status run_whole(const FwdCall& call, const TileOrder& order, const Context& context) {
  return for_each_item(context, order.size(), order.work(), [&](int64_t item) {
    Workspace& work = thread_workspace();
    const TileIndex index = order.at(item);
    run_tile(call, index, make_tile(call, index, work), work);
  });
}

void fill_unused_lse(const Call& call, const OutputF32& lse) {
  for_each_unused(call.q, lse.stride, [&](int64_t offset, int64_t rows) {
    for (int64_t head = 0; head < call.problem.heads_q; ++head) {
      for (int64_t row = 0; row < rows; ++row) {
        lse.data[offset + row * lse.stride.row + head * lse.stride.head] = kMinusInfinity;
      }
    }
  });
}

Status run(const FwdParams& params, const Context& context) {
  thread_local TileOrder order;
  thread_local std::vector<float> sinks;
  FwdCall call(params, sinks);
  call.load_sinks(sinks);
  const int threads = num_threads(context);
  const int64_t splits = params.num_splits == 1 ? 1 : choose_splits(call, params.num_splits);
  if (splits == 1) call.tile_rows = choose_tile_rows(call, threads);
  order.clear(params.heads_k);
  for (int64_t i = 0; i < params.batch; ++i) {
    const double work = call.pairs(i) * static_cast<double>(params.head_dim + params.head_dim_v);
    order.add(i, ceil_div(call.packed_rows(i), call.tile_rows), work);
  }
  order.finish();
  zero_unused(call.q, params.dtype, params.out, params.heads_q, params.head_dim_v);
  fill_unused_lse(call, params.lse);
  return splits == 1 ? run_whole(call, order, context) : run_split(call, order, splits, context);
}

}  // namespace

Status fwd(const FwdParams& params, const Context& context) {
  try {
    Status status = check_sequences(params);
    if (status.ok()) status = check_pages(params);
    return status.ok() ? run(params, context) : status;
  } catch (const std::bad_alloc&) {
    return Status::runtime("out of memory for the forward's scratch");
  }
}

}  // namespace fa4::cpu
