#include "csrc/common/fwd_launch.h"

#include <limits>
#include <string>

#include "csrc/common/form_clocks.h"
#include "csrc/common/fwd_args.h"
#include "csrc/common/operands.h"
#include "csrc/driver/device.h"
#include "csrc/driver/launch.h"
#include "csrc/driver/tensor_map.h"
#include "flash_attn4/core/softmax.h"

namespace fa4 {

namespace {

using driver::TensorMapSpec;

// ---- What can be launched ----------------------------------------------------------------------

Status check_call(const FwdParams& p) {
  if (Status s = check_sizes(p); !s.ok()) return s;
  const Extents q = query_extents(p), k = key_extents(p);
  if (Status s = check_operand("q", p.q, q); !s.ok()) return s;
  if (Status s = check_operand("k", p.k, k); !s.ok()) return s;
  return check_operand("v", p.v, k);
}

/// The rows of a packed call without sequences belong to none. They get what the rows of one
/// sequence without keys get: zeros.
FwdParams without_sequences(FwdParams p) {
  p.batch = 1;
  p.seqlen_q = p.total_q;
  p.seqlen_k = 0;
  p.cu_seqlens_q = p.cu_seqlens_k = p.seqused_q = p.seqused_k = nullptr;
  p.sink = nullptr;
  return p;
}

// ---- Tiles -------------------------------------------------------------------------------------

/// Every box of a tile starts with a query.
int64_t tile_queries(const FwdPlanRow& plan, int64_t packed_heads) {
  return plan.boxes * (plan.box_rows / packed_heads);
}

/// Query heads in the rows of a tile: all that share a KV head, or 1. A tile costs the same however
/// many of its rows are queries, so the fewer tiles win. Packing has to save a tenth of them,
/// because it stores rows less simply. Packed sequences count with their mean length, which is all
/// that the host knows.
int32_t choose_packed_heads(const FwdParams& p, const FwdPlanRow& plan) {
  const int64_t group = p.heads_q / p.heads_k;
  if (group > plan.box_rows) return 1;
  const int64_t queries = packed(p) ? max_of<int64_t>(1, p.total_q / p.batch) : p.seqlen_q;
  const int64_t tiles_apart = group * ceil_div(queries, tile_queries(plan, 1));
  const int64_t tiles_packed = ceil_div(queries, tile_queries(plan, group));
  return 10 * tiles_packed < 9 * tiles_apart ? static_cast<int32_t>(group) : 1;
}

/// Per head of the tiles and sequence; packed: slots of all sequences together.
int64_t count_tiles(const FwdParams& p, int64_t queries) {
  return packed(p) ? varlen_slots(p.total_q, p.batch, queries) : ceil_div(p.seqlen_q, queries);
}

/// The kernel counts tiles in 32 bits.
Status check_tiles(const FwdParams& p, const FwdPlanRow& plan, int32_t packed_heads) {
  const int64_t tiles = count_tiles(p, tile_queries(plan, packed_heads));
  const int64_t batch = query_extents(p).batch;
  const int64_t heads = p.heads_q / packed_heads;
  if (batch * heads <= TileOrder::kMaxTiles / tiles) return {};
  return Status::unsupported("q: batch * heads * tiles of queries must be at most " +
                             std::to_string(TileOrder::kMaxTiles) + " on this device, got " +
                             std::to_string(batch) + " * " + std::to_string(heads) + " * " +
                             std::to_string(tiles));
}

/// Of a call whose tiles are checked.
TileOrder tile_order(const FwdParams& p, const QueryTiling& tiling, int32_t packed_heads,
                     int64_t l2_budget) {
  const auto tiles = static_cast<int32_t>(count_tiles(p, tiling.queries));
  const auto heads = static_cast<int32_t>(p.heads_q / packed_heads);
  // Slots follow the sequences, so their lengths rise and fall: neither end of them is the long
  // one, and turning would balance nothing. All heads pass with a slot before the next one comes:
  // with head after head a block would meet slots of about the same place in every head, which are
  // all long or all short.
  if (packed(p)) return {.tiles = tiles, .heads = heads, .batch = 1, .group = heads};

  const int64_t head_bytes = p.seqlen_k * (p.head_dim + p.head_dim_v) * dtype_bytes(p.dtype);
  const int64_t group =
      heads_per_group(p.batch * p.heads_k, tiling.heads_per_kv, head_bytes, l2_budget);
  return query_tile_order(tiles, heads, static_cast<int32_t>(p.batch),
                          static_cast<int32_t>(min_of(group, p.batch * heads)), tiling.window);
}

QueryTiling make_tiling(const FwdParams& p, const FwdPlanRow& plan, int32_t packed_heads) {
  QueryTiling tiling;
  tiling.cu_seqlens_q = p.cu_seqlens_q;
  tiling.cu_seqlens_k = p.cu_seqlens_k;
  tiling.seqused_q = p.seqused_q;
  tiling.seqused_k = p.seqused_k;
  tiling.batch = static_cast<int32_t>(p.batch);
  tiling.seqlen_q = static_cast<int32_t>(p.seqlen_q);
  tiling.seqlen_k = static_cast<int32_t>(p.seqlen_k);
  tiling.total_q = static_cast<int32_t>(p.total_q);
  tiling.heads_per_kv = static_cast<int32_t>(p.heads_q / p.heads_k / packed_heads);
  tiling.queries = static_cast<int32_t>(tile_queries(plan, packed_heads));
  tiling.block_n = plan.block_n;
  tiling.window = make_window(p.causal, p.window_left, p.window_right);
  tiling.order = tile_order(p, tiling, packed_heads, plan.l2_budget);
  return tiling;
}

// ---- Tensor maps -------------------------------------------------------------------------------

/// Columns of a box: a row of it is the swizzle's span.
int box_columns(const FwdPlanRow& plan) {
  return static_cast<int>(TileLayout{8, plan.swizzle}.span_columns());
}

/// Of q or out: a box holds `queries` queries of every head in a tile's rows.
TensorMapSpec query_map(const FwdParams& p, const FwdPlanRow& plan, const Input& tensor,
                        int64_t head_dim, int32_t packed_heads, int32_t queries) {
  const Extents q = query_extents(p);
  const Strides& s = tensor.stride;
  return {.dtype = p.dtype,
          .base = tensor.data,
          .rank = 5,
          .size = {head_dim, packed_heads, q.rows, q.heads / packed_heads, q.batch},
          .stride = {1, s.head, s.row, s.head * packed_heads, s.batch},
          .box = {box_columns(plan), packed_heads, queries, 1, 1},
          .swizzle = plan.swizzle,
          .l2_fetch = l2_fetch(head_dim)};
}

/// Of k or v: a box holds `keys` keys.
TensorMapSpec key_map(const FwdParams& p, const FwdPlanRow& plan, const Input& tensor,
                      int64_t head_dim, int32_t keys) {
  const Extents k = key_extents(p);
  const Strides& s = tensor.stride;
  const bool empty = k.batch * k.rows == 0;
  return {.dtype = p.dtype,
          .base = empty ? p.q.data : tensor.data,  // a map wants an address, q always has one
          .rank = 4,
          .size = {head_dim, k.rows, k.heads, k.batch},
          .stride = {1, s.row, s.head, s.batch},
          .box = {box_columns(plan), keys, 1, 1},
          .swizzle = plan.swizzle,
          .l2_fetch = l2_fetch(head_dim)};
}

Status encode_maps(const FwdParams& p, const FwdPlanRow& plan, int device, FwdArgs* args) {
  const int32_t heads = args->packed_heads;
  const TensorMapSpec q = query_map(p, plan, p.q, p.head_dim, heads, args->box_queries);
  const TensorMapSpec k = key_map(p, plan, p.k, p.head_dim, plan.block_n / plan.ctas);
  const TensorMapSpec v = key_map(p, plan, p.v, p.head_dim_v, plan.value_rows);
  if (Status s = driver::encode_tensor_map("q", q, device, &args->q); !s.ok()) return s;
  if (Status s = driver::encode_tensor_map("k", k, device, &args->k); !s.ok()) return s;
  if (Status s = driver::encode_tensor_map("v", v, device, &args->v); !s.ok()) return s;
  if (!args->tensor_store) return {};
  const Input data{p.out.data, p.out.stride};
  const TensorMapSpec out = query_map(p, plan, data, p.head_dim_v, heads, plan.out_rows / heads);
  return driver::encode_tensor_map("out", out, device, &args->out);
}

// ---- Arguments ---------------------------------------------------------------------------------

/// Everything but the tensor maps.
FwdArgs make_args(const FwdParams& p, const FwdPlanRow& plan, int32_t packed_heads) {
  FwdArgs args{};
  args.packed_heads = packed_heads;
  args.box_queries = plan.box_rows / packed_heads;
  args.tiling = make_tiling(p, plan, packed_heads);
  args.softcap = p.softcap > 0.0f;
  args.score_scale = args.softcap ? p.softmax_scale / p.softcap : 0.0f;
  args.scale_log2 = (args.softcap ? p.softcap : p.softmax_scale) * kLog2e;
  args.clear_value_tail = p.cu_seqlens_k != nullptr || p.seqused_k != nullptr;
  args.vector_store = copy_engine_serves(p.out.data, p.out.stride, query_extents(p));
  // A box of out is cut off where the tensor ends and nowhere else.
  args.tensor_store = args.vector_store && !packed(p) && p.seqused_q == nullptr &&
                      plan.out_rows > 0 && plan.out_rows % packed_heads == 0;
  args.sink_dtype = p.sink_dtype;
  args.sink = p.sink;
  args.out_data = p.out.data;
  args.lse_data = p.lse.data;
  args.out_stride = p.out.stride;
  args.lse_stride = p.lse.stride;
  args.head_dim_v = static_cast<int32_t>(p.head_dim_v);
  return args;
}

}  // namespace

const FwdPlanRow* find_plan(std::span<const FwdPlanRow> plans, DType dtype,
                            const KernelRow& kernel) {
  for (const FwdPlanRow& plan : plans) {
    if (plan.dtype == dtype && plan.head_dim == kernel.head_dim.max &&
        plan.head_dim_v == kernel.head_dim_v.max && plan.ctas == kernel.ctas) {
      return &plan;
    }
  }
  return nullptr;
}

double fwd_clocks(const FwdPlanRow& plan, const FwdParams& p, int sms) {
  const int32_t seqlen_q = mean_rows(p, p.seqlen_q, p.total_q);
  const int32_t seqlen_k = mean_rows(p, p.seqlen_k, p.total_k);
  const int32_t packed_heads = choose_packed_heads(p, plan);
  const auto queries = static_cast<int32_t>(tile_queries(plan, packed_heads));
  // A CTA without rows of its own costs as much as any, for nothing.
  if (seqlen_q <= queries - queries / plan.ctas) return std::numeric_limits<double>::infinity();

  const Window window = make_window(p.causal, p.window_left, p.window_right);
  const int32_t tiles = ceil_div(seqlen_q, queries);
  const MeanTile tile = mean_tile(tiles, window, [&](int32_t i) {
    return kv_range(i * queries, (i + 1) * queries, plan.block_n, seqlen_q, seqlen_k, window);
  });
  const double count =
      tile_count(p, tiles, p.total_q, queries) * static_cast<double>(p.heads_q / packed_heads);
  return (tile.steps * plan.step_clocks + tile.masked * plan.mask_clocks) *
         rounds_of(count, sms / plan.ctas, !packed(p) && !window.bounded());
}

Status launch_fwd(const KernelRow& kernel, const FwdPlanRow& plan, const FwdParams& params,
                  const Context& context) {
  const Extents q = query_extents(params);
  if (q.empty()) return {};
  if (params.batch == 0) return launch_fwd(kernel, plan, without_sequences(params), context);
  if (Status s = check_call(params); !s.ok()) return s;
  const int32_t packed_heads = choose_packed_heads(params, plan);
  if (Status s = check_tiles(params, plan, packed_heads); !s.ok()) return s;
  FwdArgs args = make_args(params, plan, packed_heads);

  const driver::Table* table = nullptr;
  if (Status s = driver::table(&table); !s.ok()) return s;
  const driver::ContextGuard current(*table, context.device.ordinal);  // for the maps
  if (!current.status().ok()) return current.status();
  if (Status s = encode_maps(params, plan, context.device.ordinal, &args); !s.ok()) return s;
  driver::DeviceInfo device;
  if (Status s = driver::device_info(context.device.ordinal, &device); !s.ok()) return s;

  driver::Launch request;
  request.grid.x =
      static_cast<unsigned>(plan.ctas * min_of(device.sms / plan.ctas, args.tiling.order.count()));
  request.threads = plan.threads;
  request.shared_bytes = plan.shared_bytes;
  request.device = context.device.ordinal;
  request.stream = context.stream;
  request.args = &args;
  request.early_start = true;
  return driver::launch(kernel.name, kernel.image, request);
}

}  // namespace fa4
