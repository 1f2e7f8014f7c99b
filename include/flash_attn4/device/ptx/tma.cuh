// Copies of tensor boxes between global and shared memory by the copy engine. One thread issues
// each. Coordinates are elements, innermost first; what lies outside the tensor reads as 0 and is
// not written.
#pragma once

#include "flash_attn4/core/tensor_map.h"
#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

FA4_D void prefetch_tensor_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// Asynchronous: the bytes of the whole box are delivered to the phase of `bar`.
FA4_D void tensor_load_4d(uint32_t to, const TensorMap* map, uint32_t bar, int c0, int c1, int c2,
                          int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

FA4_D void tensor_load_5d(uint32_t to, const TensorMap* map, uint32_t bar, int c0, int c1, int c2,
                          int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
      "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

/// By a CTA of a pair: `bar` may be one of the other CTA, by cluster_address.
FA4_D void tensor_load_4d_pair(uint32_t to, const TensorMap* map, uint32_t bar, int c0, int c1,
                               int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".cta_group::2 [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

FA4_D void tensor_load_5d_pair(uint32_t to, const TensorMap* map, uint32_t bar, int c0, int c1,
                               int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".cta_group::2 [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
      "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

/// Asynchronous: `bytes` from global to shared memory, all multiples of 16; no tensor map.
FA4_D void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(bar)
      : "memory");
}

/// Asynchronous: `bytes` of shared memory to that of another CTA of the cluster, which holds `bar`
/// too; both by cluster_address. When they have come there they have been read here.
FA4_D void bulk_copy_cluster(uint32_t to, uint32_t from, uint32_t bytes, uint32_t bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(to),
      "r"(from), "r"(bytes), "r"(bar)
      : "memory");
}

/// Asynchronous: reads shared memory until the bulk group that holds it has completed.
FA4_D void tensor_store_5d(const TensorMap* map, uint32_t from, int c0, int c1, int c2, int c3,
                           int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group "
      "[%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(map),
      "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

/// Asynchronous: adds `bytes` of floats in shared memory to those in global memory, all multiples of
/// 16; no tensor map. Each addition is atomic. Reads shared memory as a store does.
FA4_D void bulk_reduce_add(float* to, uint32_t from, uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
      "r"(from), "r"(bytes)
      : "memory");
}

/// Closes the group of this thread's stores so far.
FA4_D void bulk_commit_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Until at most kPending of this thread's groups still read shared memory.
template <int kPending>
FA4_D void bulk_wait_group_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

/// Until at most kPending of this thread's groups are not complete: what the others wrote is in
/// global memory.
template <int kPending>
FA4_D void bulk_wait_group() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Shared memory written by this thread before it is seen by copies and products after it.
FA4_D void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// What this thread knows to be in global memory is there for its copies after it.
FA4_D void fence_proxy_async_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace fa4::ptx
