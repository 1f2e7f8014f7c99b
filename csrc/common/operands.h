// Operands of attention as a GPU's copy engine reads them: sizes, and what it cannot do.
#pragma once

#include <cstdint>

#include "csrc/driver/tensor_map.h"
#include "flash_attn4/params.h"
#include "flash_attn4/status.h"

namespace fa4 {

/// Rows of a tensor, and so of a sequence, that stay free of 2^30: sums of a row and a shift fit 32
/// bits. An idle tile may begin as much as a tile behind the last row, and has an end: two tiles of
/// every kernel stay free.
constexpr int64_t kFreeRows = 1024;
constexpr int64_t kMostRows = (int64_t{1} << 30) - kFreeRows;

inline bool packed(const Problem& p) {
  return p.cu_seqlens_q != nullptr;
}

/// Sizes of q and out, or of k and v, beside the head dimension.
struct Extents {
  int64_t batch;
  int64_t rows;
  int64_t heads;

  bool empty() const { return batch == 0 || rows == 0 || heads == 0; }
};

Extents query_extents(const Problem& p);
Extents key_extents(const Problem& p);

/// Whether the copy engine reads a tensor where it is, see gpu::readable; then its rows begin at
/// multiples of 16 bytes.
bool copy_engine_serves(const void* data, const Strides& stride, const Extents& extents);

/// Refuses an operand that the copy engine does not serve.
Status check_operand(const char* name, const Input& operand, const Extents& extents);
/// Refuses sizes that kernels do not hold in 32 bits.
Status check_sizes(const Problem& p);

driver::L2Fetch l2_fetch(int64_t head_dim);

}  // namespace fa4
