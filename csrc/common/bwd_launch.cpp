#include "csrc/common/bwd_launch.h"

#include <limits>
#include <string>

#include "csrc/common/bwd_args.h"
#include "csrc/common/form_clocks.h"
#include "csrc/common/operands.h"
#include "csrc/driver/device.h"
#include "csrc/driver/launch.h"
#include "csrc/driver/tensor_map.h"
#include "flash_attn4/core/softmax.h"

namespace fa4 {

namespace {

using std::to_string;

// ---- Sizes -------------------------------------------------------------------------------------

/// Rows of a packed call without sequences belong to none.
bool has_queries(const BwdParams& p) {
  return p.batch > 0 && !query_extents(p).empty();
}
bool has_keys(const BwdParams& p) {
  return p.batch > 0 && !key_extents(p).empty();
}

/// Rows per query head of the accumulator of dq and of the row statistics.
int64_t acc_rows_of(const BwdParams& p, const BwdPlanRow& plan) {
  if (!has_queries(p)) return 0;
  return accumulator_rows(p.batch, p.seqlen_q, p.total_q, packed(p), plan.block_m);
}

/// Per KV head and sequence; packed: slots of all sequences together.
int64_t count_tiles(const BwdParams& p, const BwdPlanRow& plan) {
  return packed(p) ? varlen_slots(p.total_k, p.batch, plan.block_n)
                   : ceil_div<int64_t>(p.seqlen_k, plan.block_n);
}

/// Grids and kernels count in 32 bits.
Status check_blocks(const char* what, int64_t heads, int64_t blocks) {
  if (blocks == 0 || heads <= TileOrder::kMaxTiles / blocks) return {};
  return Status::unsupported(std::string(what) + " must be at most " +
                             to_string(TileOrder::kMaxTiles) + " on this device, got " +
                             to_string(heads) + " * " + to_string(blocks));
}

Status check_counts(const BwdParams& p, const BwdPlanRow& plan) {
  if (Status s = check_sizes(p); !s.ok()) return s;
  const int64_t acc_rows =
      accumulator_rows(p.batch, p.seqlen_q, p.total_q, packed(p), plan.block_m);
  if (acc_rows > INT32_MAX) {
    return Status::unsupported("q: rows of all sequences, each in whole blocks of " +
                               to_string(plan.block_m) + ", must be at most " +
                               to_string(INT32_MAX) + " on this device, got " +
                               to_string(acc_rows));
  }
  if (Status s = check_blocks("q: heads * blocks of queries", p.heads_q, acc_rows / plan.block_m);
      !s.ok()) {
    return s;
  }
  // Of the main kernel's tiles, or of the blocks in which dk and dv become 0.
  const int64_t block = min_of(plan.block_m, plan.block_n);
  const int64_t blocks =
      packed(p) ? varlen_slots(p.total_k, p.batch, block) : ceil_div(p.seqlen_k, block);
  return check_blocks("k: heads of all sequences * blocks of keys",
                      key_extents(p).batch * p.heads_k, blocks);
}

// ---- Workspace ---------------------------------------------------------------------------------

/// What lies in the workspace, and how many bytes of it.
struct Workspace {
  float* dq_accumulator = nullptr;
  float* lse2 = nullptr;
  float* delta = nullptr;
  int32_t* turns = nullptr;
  int64_t bytes = 0;
};

/// Of a call whose counts are checked.
Workspace lay_out(const BwdParams& p, const BwdPlanRow& plan) {
  constexpr int64_t kAlignment = 128;
  Workspace workspace;
  const auto place = [&](auto*& part, int64_t count) {
    const auto start = reinterpret_cast<uintptr_t>(p.workspace) + workspace.bytes;
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(start);
    workspace.bytes += ceil_div<int64_t>(count * sizeof *part, kAlignment) * kAlignment;
  };
  const int64_t rows = acc_rows_of(p, plan) * p.heads_q;
  place(workspace.dq_accumulator, rows * plan.acc_columns);
  place(workspace.lse2, rows);
  place(workspace.delta, rows);
  if (p.deterministic) place(workspace.turns, rows / plan.block_m * plan.turns);
  return workspace;
}

Status check_workspace(const BwdParams& p, int64_t needed) {
  if (needed == 0) return {};
  if (p.workspace == nullptr || p.workspace_bytes < needed) {
    return Status::invalid_value(
        "workspace: must have " + to_string(needed) + " bytes (bwd_workspace_bytes), got " +
        (p.workspace == nullptr ? std::string("null") : to_string(p.workspace_bytes)));
  }
  if (reinterpret_cast<uintptr_t>(p.workspace) % 16 != 0) {
    return Status::invalid_value("workspace: address must be a multiple of 16 bytes, got one " +
                                 to_string(reinterpret_cast<uintptr_t>(p.workspace) % 16) +
                                 " bytes behind");
  }
  return {};
}

// ---- Launches ----------------------------------------------------------------------------------

/// One call, with all that its launches share.
struct Call {
  const KernelRow& kernel;
  const BwdPlanRow& plan;
  const BwdParams& p;
  const Context& context;
  Workspace workspace;
  BwdRows rows;
};

BwdRows make_rows(const BwdParams& p, const BwdPlanRow& plan) {
  BwdRows rows{};
  rows.cu_seqlens_q = p.cu_seqlens_q;
  rows.seqused_q = p.seqused_q;
  rows.batch = static_cast<int32_t>(p.batch);
  rows.seqlen_q = static_cast<int32_t>(p.seqlen_q);
  rows.total_q = static_cast<int32_t>(p.total_q);
  rows.heads = static_cast<int32_t>(p.heads_q);
  rows.block_m = plan.block_m;
  rows.acc_rows = acc_rows_of(p, plan);
  return rows;
}

driver::Launch request_of(const Call& call, int64_t blocks, unsigned threads, const void* args) {
  driver::Launch request;
  request.grid.x = static_cast<unsigned>(blocks);
  request.threads = threads;
  request.device = call.context.device.ordinal;
  request.stream = call.context.stream;
  request.args = args;
  request.early_start = true;
  return request;
}

/// Launches the kernel of `op` that belongs to the call's main kernel.
Status launch_part(const Call& call, Op op, int64_t blocks, unsigned threads, const void* args) {
  const KernelRow* kernel = find_kernel(op, call.kernel.target, call.plan.dtype);
  if (kernel == nullptr) {
    return Status::runtime(std::string(call.kernel.name) + ": is listed without " + op_name(op));
  }
  return driver::launch(kernel->name, kernel->image, request_of(call, blocks, threads, args));
}

Status launch_prepare(const Call& call) {
  const BwdParams& p = call.p;
  const Extents q = query_extents(p);
  BwdPrepareArgs args{};
  args.rows = call.rows;
  args.head_dim_v = static_cast<int32_t>(p.head_dim_v);
  args.acc_columns = call.plan.acc_columns;
  args.vector_loads = copy_engine_serves(p.out.data, p.out.stride, q) &&
                      copy_engine_serves(p.dout.data, p.dout.stride, q);
  args.out = p.out.data;
  args.dout = p.dout.data;
  args.lse = p.lse.data;
  args.dlse = p.dlse.data;
  args.out_stride = p.out.stride;
  args.dout_stride = p.dout.stride;
  args.lse_stride = p.lse.stride;
  args.dlse_stride = p.dlse.stride;
  args.lse2_sign = call.plan.lse2_sign;
  args.lse2 = call.workspace.lse2;
  args.delta = call.workspace.delta;
  args.dq_accumulator = call.workspace.dq_accumulator;
  args.turns = call.workspace.turns;
  args.turns_per_block = call.plan.turns;
  return launch_part(call, Op::kBwdPrepare, call.rows.blocks() * p.heads_q, kBwdRowThreads, &args);
}

Status launch_finish(const Call& call) {
  const BwdParams& p = call.p;
  BwdFinishArgs args{};
  args.rows = call.rows;
  args.head_dim = static_cast<int32_t>(p.head_dim);
  args.acc_columns = call.plan.acc_columns;
  args.vector_store = copy_engine_serves(p.dq.data, p.dq.stride, query_extents(p));
  args.scale = p.softmax_scale;
  args.dq_accumulator = call.workspace.dq_accumulator;
  args.dq = p.dq.data;
  args.dq_stride = p.dq.stride;
  return launch_part(call, Op::kBwdFinish, call.rows.blocks() * p.heads_q, kBwdRowThreads, &args);
}

/// All rows of a gradient to 0.
Status launch_zeros(const Call& call, const Output& gradient, const Extents& extents,
                    int64_t head_dim) {
  if (extents.empty()) return {};
  const int32_t block_m = call.plan.block_m;
  BwdFinishArgs args{};
  args.rows.batch = static_cast<int32_t>(extents.batch);
  args.rows.seqlen_q = static_cast<int32_t>(extents.rows);
  args.rows.heads = static_cast<int32_t>(extents.heads);
  args.rows.block_m = block_m;
  args.rows.acc_rows = accumulator_rows(extents.batch, extents.rows, 0, false, block_m);
  args.head_dim = static_cast<int32_t>(head_dim);
  args.acc_columns = call.plan.acc_columns;
  args.vector_store = copy_engine_serves(gradient.data, gradient.stride, extents);
  args.dq = gradient.data;
  args.dq_stride = gradient.stride;
  return launch_part(call, Op::kBwdFinish, args.rows.blocks() * extents.heads, kBwdRowThreads,
                     &args);
}

Status launch_sink(const Call& call) {
  if (call.p.dsink == nullptr || call.p.sink == nullptr || call.p.heads_q == 0) return {};
  BwdSinkArgs args{};
  args.rows = call.rows;
  args.sink_dtype = call.p.sink_dtype;
  args.sink = call.p.sink;
  args.lse2_sign = call.plan.lse2_sign;
  args.lse2 = call.workspace.lse2;
  args.delta = call.workspace.delta;
  args.dsink = call.p.dsink;
  return launch_part(call, Op::kBwdSink, call.p.heads_q, kBwdSinkThreads, &args);
}

// ---- The main kernel ---------------------------------------------------------------------------

/// Without a window all tiles are equal, and pass head after head. With one they differ: the long
/// ones come first, and all heads of a group pass with a tile before the next one comes, so that the
/// last blocks are short ones. What a group reads and adds to fits the L2 cache.
///
/// Deterministic: a tile waits for those that came before it at the same queries. Neighbours in the
/// order then belong to different heads, and under a right end of the window the tiles that see the
/// fewest queries come first, because those of the first queries are the first to be done.
TileOrder tile_order(const BwdParams& p, const BwdPlanRow& plan, Window window) {
  TileOrder order;
  order.tiles = static_cast<int32_t>(count_tiles(p, plan));
  order.heads = static_cast<int32_t>(p.heads_k);
  order.batch = static_cast<int32_t>(key_extents(p).batch);
  if (!window.bounded() && !p.deterministic) return order;
  // Of packed sequences the host knows the mean length.
  const int64_t queries = packed(p) ? max_of<int64_t>(1, p.total_q / p.batch) : p.seqlen_q;
  const int64_t row_bytes = (p.head_dim + p.head_dim_v) * dtype_bytes(p.dtype) +
                            plan.acc_columns * static_cast<int64_t>(sizeof(float));
  const int64_t pairs = int64_t{order.heads} * order.batch;
  order.group = static_cast<int32_t>(
      min_of(heads_per_group(pairs, 1, p.heads_q / p.heads_k * queries * row_bytes, plan.l2_budget),
             pairs));
  const bool right = window.right != Window::kUnbounded;
  // A right end: the first keys see the most queries; a left end alone: the last ones do.
  order.descending = p.deterministic ? right : window.bounded() && !right;
  return order;
}

KeyTiling make_tiling(const BwdParams& p, const BwdPlanRow& plan) {
  KeyTiling tiling;
  tiling.cu_seqlens_q = p.cu_seqlens_q;
  tiling.cu_seqlens_k = p.cu_seqlens_k;
  tiling.seqused_q = p.seqused_q;
  tiling.seqused_k = p.seqused_k;
  tiling.batch = static_cast<int32_t>(p.batch);
  tiling.seqlen_q = static_cast<int32_t>(p.seqlen_q);
  tiling.seqlen_k = static_cast<int32_t>(p.seqlen_k);
  tiling.total_k = static_cast<int32_t>(p.total_k);
  tiling.block_m = plan.block_m;
  tiling.block_n = plan.block_n;
  tiling.window = make_window(p.causal, p.window_left, p.window_right);
  tiling.order = tile_order(p, plan, tiling.window);
  return tiling;
}

/// Rows of one head, as wide as a span.
struct Box {
  int rows;
  Swizzle swizzle;
};

Status encode_map(const Call& call, const char* name, const Input& tensor, const Extents& extents,
                  int64_t head_dim, Box box, TensorMap* map) {
  const Strides& s = tensor.stride;
  const driver::TensorMapSpec spec{
      .dtype = call.p.dtype,
      .base = tensor.data,
      .rank = 4,
      .size = {head_dim, extents.rows, extents.heads, extents.batch},
      .stride = {1, s.row, s.head, s.batch},
      .box = {static_cast<int>(TileLayout{8, box.swizzle}.span_columns()), box.rows, 1, 1},
      .swizzle = box.swizzle,
      .l2_fetch = l2_fetch(head_dim)};
  return driver::encode_tensor_map(name, spec, call.context.device.ordinal, map);
}

Status encode_maps(const Call& call, BwdArgs* args) {
  const BwdParams& p = call.p;
  const Extents q = query_extents(p), k = key_extents(p);
  const BwdPlanRow& plan = call.plan;
  const Box queries{plan.block_m / plan.ctas, plan.swizzle};
  const Box keys{plan.block_n / plan.ctas, plan.swizzle};
  const Box part{plan.q_rows != 0 ? plan.q_rows : queries.rows, plan.swizzle};
  if (Status s = encode_map(call, "q", p.q, q, p.head_dim, part, &args->q); !s.ok()) return s;
  if (Status s = encode_map(call, "k", p.k, k, p.head_dim, keys, &args->k); !s.ok()) return s;
  if (Status s = encode_map(call, "v", p.v, k, p.head_dim_v, keys, &args->v); !s.ok()) return s;
  if (Status s = encode_map(call, "dout", p.dout, q, p.head_dim_v, queries, &args->dout); !s.ok()) {
    return s;
  }
  if (plan.across_swizzle == plan.swizzle) return {};
  const Box qt{plan.block_m, plan.across_swizzle}, kt{keys.rows, plan.across_swizzle};
  if (Status s = encode_map(call, "q", p.q, q, p.head_dim, qt, &args->qt); !s.ok()) return s;
  return encode_map(call, "k", p.k, k, p.head_dim, kt, &args->kt);
}

/// Everything but the tensor maps.
BwdArgs make_args(const Call& call) {
  const BwdParams& p = call.p;
  const Extents k = key_extents(p);
  BwdArgs args{};
  args.tiling = make_tiling(p, call.plan);
  args.group = static_cast<int32_t>(p.heads_q / p.heads_k);
  args.acc_rows = call.rows.acc_rows;
  args.softcap = p.softcap > 0.0f;
  args.score_scale = args.softcap ? p.softmax_scale / p.softcap : 0.0f;
  args.scale_log2 = (args.softcap ? p.softcap : p.softmax_scale) * kLog2e;
  args.softmax_scale = p.softmax_scale;
  args.clear_query_tail = packed(p) || p.seqused_q != nullptr;
  args.clear_key_tail = packed(p) || p.seqused_k != nullptr;
  args.vector_store = copy_engine_serves(p.dk.data, p.dk.stride, k) &&
                      copy_engine_serves(p.dv.data, p.dv.stride, k);
  args.lse2 = call.workspace.lse2;
  args.delta = call.workspace.delta;
  args.dq_accumulator = call.workspace.dq_accumulator;
  args.turns = call.workspace.turns;
  args.dk = p.dk.data;
  args.dv = p.dv.data;
  args.dk_stride = p.dk.stride;
  args.dv_stride = p.dv.stride;
  args.head_dim = static_cast<int32_t>(p.head_dim);
  args.head_dim_v = static_cast<int32_t>(p.head_dim_v);
  return args;
}

}  // namespace

const BwdPlanRow* find_plan(std::span<const BwdPlanRow> plans, DType dtype,
                            const KernelRow& kernel) {
  for (const BwdPlanRow& plan : plans) {
    if (plan.dtype == dtype && plan.head_dim == kernel.head_dim.max &&
        plan.head_dim_v == kernel.head_dim_v.max && plan.ctas == kernel.ctas) {
      return &plan;
    }
  }
  return nullptr;
}

double bwd_clocks(const BwdPlanRow& plan, const BwdParams& p, int sms) {
  const int32_t seqlen_q = mean_rows(p, p.seqlen_q, p.total_q);
  const int32_t seqlen_k = mean_rows(p, p.seqlen_k, p.total_k);
  // A CTA without keys of its own costs as much as any, for nothing.
  if (seqlen_k <= plan.block_n - plan.block_n / plan.ctas) {
    return std::numeric_limits<double>::infinity();
  }
  const Window window = make_window(p.causal, p.window_left, p.window_right);
  const int32_t keys = plan.block_n, tiles = ceil_div(seqlen_k, keys);
  const MeanTile tile = mean_tile(tiles, window, [&](int32_t i) {
    return q_range(i * keys, (i + 1) * keys, plan.block_m, seqlen_q, seqlen_k, window);
  });
  const double count = tile_count(p, tiles, p.total_k, keys) * static_cast<double>(p.heads_k);
  const double group = static_cast<double>(p.heads_q) / max_of<int64_t>(p.heads_k, 1);
  return group * tile.steps * plan.step_clocks *
         rounds_of(count, sms / plan.ctas, !packed(p) && !window.bounded());
}

Status workspace_bytes(const BwdPlanRow& plan, const BwdParams& params, int64_t* bytes) {
  if (Status s = check_counts(params, plan); !s.ok()) return s;
  *bytes = lay_out(params, plan).bytes;
  return {};
}

Status launch_bwd(const KernelRow& kernel, const BwdPlanRow& plan, const BwdParams& p,
                  const Context& context) {
  const Extents q = query_extents(p), k = key_extents(p);
  if (Status s = check_counts(p, plan); !s.ok()) return s;
  if (Status s = check_operand("q", p.q, q); !s.ok()) return s;
  if (Status s = check_operand("k", p.k, k); !s.ok()) return s;
  if (Status s = check_operand("v", p.v, k); !s.ok()) return s;
  if (Status s = check_operand("dout", p.dout, q); !s.ok()) return s;
  const Call call{kernel, plan, p, context, lay_out(p, plan), make_rows(p, plan)};
  if (Status s = check_workspace(p, call.workspace.bytes); !s.ok()) return s;

  if (!has_queries(p) || !has_keys(p)) {  // gradients of q, k and v are 0
    if (Status s = launch_zeros(call, p.dq, q, p.head_dim); !s.ok()) return s;
    if (Status s = launch_zeros(call, p.dk, k, p.head_dim); !s.ok()) return s;
    if (Status s = launch_zeros(call, p.dv, k, p.head_dim_v); !s.ok()) return s;
    if (p.dsink != nullptr && has_queries(p)) {
      if (Status s = launch_prepare(call); !s.ok()) return s;
    }
    return launch_sink(call);
  }

  BwdArgs args = make_args(call);
  const driver::Table* table = nullptr;
  if (Status s = driver::table(&table); !s.ok()) return s;
  const driver::ContextGuard current(*table, context.device.ordinal);  // for the maps
  if (!current.status().ok()) return current.status();
  if (Status s = encode_maps(call, &args); !s.ok()) return s;
  if (Status s = launch_prepare(call); !s.ok()) return s;
  const int64_t blocks = int64_t{plan.ctas} * args.tiling.order.count();
  driver::Launch request = request_of(call, blocks, plan.threads, &args);
  request.shared_bytes = plan.shared_bytes;
  if (Status s = driver::launch(kernel.name, kernel.image, request); !s.ok()) return s;
  if (Status s = launch_finish(call); !s.ok()) return s;
  return launch_sink(call);
}

}  // namespace fa4
