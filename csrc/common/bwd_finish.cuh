// Backward on the GPU, after the main kernel: dq from its float32 accumulator.
#pragma once

#include "csrc/common/bwd_args.h"
#include "csrc/common/rows.cuh"
#include "flash_attn4/core/dq_layout.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/griddepcontrol.cuh"
#include "flash_attn4/device/ptx/math.cuh"

namespace fa4 {

/// Kernel body: kBwdRowThreads threads. A thread takes 8 columns of the rows that lie together in
/// the accumulator (Layout, see core/dq_layout.h), so that it reads and writes 16 bytes at a time.
template <DType kDType, class Layout>
FA4_D void bwd_finish_body(const BwdFinishArgs& args) {
  constexpr int kRows = Layout::kVectorRows, kStep = Layout::kVectorRowStep;
  constexpr int kColumns = Layout::kVectorColumns;
  static_assert(kRows * kColumns == 4);
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const BwdRows& rows = args.rows;
  const int index = static_cast<int>(blockIdx.x) / rows.heads;
  const int head = static_cast<int>(blockIdx.x) - index * rows.heads;
  const RowBlock block = row_block(rows, index);
  if (block.owned == 0) return;

  const int64_t acc_row = head * rows.acc_rows + int64_t{index} * rows.block_m;
  const int64_t to = block.batch * args.dq_stride.batch + head * args.dq_stride.head;
  const int used = args.dq_accumulator == nullptr ? 0 : block.used;
  const int units = args.head_dim / 8;
  for (int i = threadIdx.x; i < rows.block_m / kRows * units; i += kBwdRowThreads) {
    const int group = i / units;
    const int column = 8 * (i - group * units);
    const int first = group / kStep * (kStep * kRows) + group % kStep;
    float values[kRows][8] = {};
    if (first < used) {
      const float* from = args.dq_accumulator + acc_row * args.acc_columns;
#pragma unroll
      for (int c = 0; c < 8; c += kColumns) {
        const float4 vector = *reinterpret_cast<const float4*>(
            from + Layout::offset(first, column + c, args.acc_columns));
        const float four[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) values[k / kColumns][c + k % kColumns] = four[k];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = first + r * kStep;
      if (row >= block.owned) continue;
      uint32_t words[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        words[k] =
            ptx::cvt_pack<kDType>(args.scale * values[r][2 * k], args.scale * values[r][2 * k + 1]);
        if (row >= used) words[k] = 0;
      }
      const int64_t offset = to + int64_t{block.first_row + row} * args.dq_stride.row + column;
      store_unit(args.dq, offset, uint4{words[0], words[1], words[2], words[3]}, args.vector_store);
    }
  }
}

}  // namespace fa4
