#include "csrc/cpu/problem.h"

#include <algorithm>
#include <cstring>

#include "flash_attn4/core/softmax.h"

namespace fa4::cpu {
float load_scalar(DType dtype, const void* data, int64_t index) {
  const int64_t bytes = dtype_bytes(dtype);
  float eight[8] = {};
  float row[16];
  std::memcpy(eight, static_cast<const char*>(data) + index * bytes, bytes);
  kernels().load_row(dtype, eight, row, 8);
  return row[0];
}

void store_scalar(DType dtype, float value, void* data, int64_t index) {
  const int64_t bytes = dtype_bytes(dtype);
  const float row[8] = {value};
  float eight[8];
  kernels().store_row(dtype, row, 1.0f, eight, 8);
  std::memcpy(static_cast<char*>(data) + index * bytes, eight, bytes);
}

Call::Call(const Problem& p)
    : problem(p),
      q(query_side(p)),
      k(key_side(p)),
      window(make_window(p.causal, p.window_left, p.window_right)),
      score{p.softmax_scale * kLog2e, 0.0f, 0.0f},
      group(p.heads_q / p.heads_k) {
  if (p.softcap != 0.0f) {
    score.cap_in = p.softmax_scale / p.softcap;
    score.cap_out_log2 = p.softcap * kLog2e;
  }
}

double Call::pairs(int64_t sequence) const {
  const double rows = q.span(sequence).length;
  const double keys = k.span(sequence).length;
  double visible = keys;
  if (window.left != Window::kUnbounded && window.right != Window::kUnbounded) {
    visible = std::min(keys, double{1} + window.left + window.right);
  } else if (window.bounded()) {
    visible = keys < rows ? keys * keys / (2 * rows) : keys - rows / 2;
  }
  return rows * visible * problem.heads_q;
}

void* Call::element(const void* data, int64_t index) const {
  return static_cast<char*>(const_cast<void*>(data)) + index * dtype_bytes(problem.dtype);
}

void Call::load_sinks(std::vector<float>& sinks_log2) const {
  sinks_log2.clear();
  if (problem.sink == nullptr) return;
  for (int64_t head = 0; head < problem.heads_q; ++head) {
    sinks_log2.push_back(load_scalar(problem.sink_dtype, problem.sink, head) * kLog2e);
  }
}

QueryRows Call::rows(const View<void>& tensor, int64_t sequence, int64_t head) const {
  const int64_t offset = q.offset(tensor.stride, sequence) + head * group * tensor.stride.head;
  return {element(tensor.data, offset), tensor.stride.row, tensor.stride.head};
}

QueryRows Call::rows(const View<const void>& tensor, int64_t sequence, int64_t head) const {
  return rows(View<void>{const_cast<void*>(tensor.data), tensor.stride}, sequence, head);
}

QueryScalars Call::scalars(const View<float>& tensor, int64_t sequence, int64_t head) const {
  if (tensor.data == nullptr) return {};
  const int64_t offset = q.offset(tensor.stride, sequence) + head * group * tensor.stride.head;
  return {tensor.data + offset, tensor.stride.row, tensor.stride.head};
}

QueryScalars Call::scalars(const View<const float>& tensor, int64_t sequence, int64_t head) const {
  return scalars(View<float>{const_cast<float*>(tensor.data), tensor.stride}, sequence, head);
}

KeyRows Call::keys(const View<const void>& tensor, int64_t sequence, int64_t head) const {
  const int64_t offset = k.offset(tensor.stride, sequence) + head * tensor.stride.head;
  return {element(tensor.data, offset), tensor.stride.row, nullptr, 0, 0};
}

void Call::describe(Tile& tile, int64_t sequence, int64_t first_row, int rows,
                    Workspace& work) const {
  const int32_t seqlen_q = q.span(sequence).length;
  const int32_t seqlen_k = k.span(sequence).length;
  tile.dtype = problem.dtype;
  tile.head_dim = static_cast<int>(problem.head_dim);
  tile.head_dim_v = static_cast<int>(problem.head_dim_v);
  tile.group = static_cast<int>(group);
  tile.first_row = first_row;
  tile.rows = rows;
  tile.seqlen_k = seqlen_k;
  tile.key_first = work.key_first;
  tile.key_last = work.key_last;
  tile.score = score;
  const int32_t row_first = static_cast<int32_t>(first_row / group);
  const int32_t row_last = static_cast<int32_t>((first_row + rows - 1) / group) + 1;
  tile.blocks = kv_range(row_first, row_last, kBlockKeys, seqlen_q, seqlen_k, window);
  if (!window.bounded()) {
    // Kernels never touch keys past the end, so the last block needs no mask for them.
    tile.blocks.full_first = tile.blocks.first;
    tile.blocks.full_last = tile.blocks.last;
    return;
  }
  // Kernels read whole vectors. Lanes without a row see nothing.
  const int lanes = min_of(kTileRows, rows + kMostLanes);
  std::fill_n(work.key_first + rows, lanes - rows, 0);
  std::fill_n(work.key_last + rows, lanes - rows, 0);
  int i = 0;
  for (int32_t row = row_first; row < row_last; ++row) {
    const Interval visible = visible_keys(row, seqlen_q, seqlen_k, window);
    const int64_t end = min_of((row + int64_t{1}) * group - first_row, int64_t{rows});
    for (; i < end; ++i) {
      work.key_first[i] = visible.first;
      work.key_last[i] = visible.last;
    }
  }
}

}  // namespace fa4::cpu
