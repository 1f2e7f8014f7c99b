// What the backward's main kernels share: the steps of a tile of keys, and where its gradients go.
#pragma once

#include <cstdint>

#include "csrc/common/rows.cuh"
#include "flash_attn4/core/types.h"
#include "flash_attn4/device/device.cuh"

namespace fa4 {

/// One step: a block of queries of one head. Heads come one after the other, blocks upwards.
struct BwdStep {
  int head;
  int block;

  template <class Block>
  FA4_D static BwdStep first(const Block& b) {
    return {b.tile.kv_head * b.args.group, b.tile.blocks.first};
  }
  template <class Block>
  FA4_D void advance(const Block& b) {
    if (++block < b.tile.blocks.last) return;
    block = b.tile.blocks.first;
    ++head;
  }
};

/// Where one of the gradients goes.
struct GradientRows {
  void* data;
  Strides stride;
  int columns;
};

template <class Block>
FA4_D GradientRows dk_rows(const Block& b) {
  return {b.args.dk, b.args.dk_stride, b.args.head_dim};
}
template <class Block>
FA4_D GradientRows dv_rows(const Block& b) {
  return {b.args.dv, b.args.dv_stride, b.args.head_dim_v};
}

/// A tile whose keys no query sees. By all threads of the block.
template <class Block>
FA4_D void store_no_gradients(const Block& b) {
  using Plan = typename Block::Plan;
  for (const GradientRows& to : {dk_rows(b), dv_rows(b)}) {
    const int units = to.columns / 8;
    const int64_t base = b.tile.batch * to.stride.batch + b.tile.kv_head * to.stride.head;
    for (int unit = threadIdx.x; unit < Plan::kBlockN * units; unit += Plan::kThreads) {
      const int key = b.first_key() + unit / units;
      if (key >= b.tile.k_owned) continue;
      store_unit(to.data, base + (b.tile.k_row + int64_t{key}) * to.stride.row + unit % units * 8,
                 uint4{}, b.args.vector_store);
    }
  }
}

}  // namespace fa4
