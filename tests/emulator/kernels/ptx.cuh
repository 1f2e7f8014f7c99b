// One function per PTX instruction under test. Names follow the ISA; addresses of shared memory are
// 32-bit, `to` and `from` say the direction of a copy, `bar` is the address of an mbarrier.
#pragma once

#include <cstdint>

#define DEVICE static __device__ __forceinline__
#define KERNEL extern "C" __global__ void

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define HAS_SM100 1
#else
#define HAS_SM100 0
#endif

/// The 128 bytes of a CUtensorMap; a kernel takes it as const __grid_constant__ TensorMap.
struct alignas(64) TensorMap {
  uint8_t bytes[128];
};

/// Where a box begins, innermost coordinate first.
struct Coordinates {
  int c[5];
};

constexpr uint32_t kAllLanes = 0xffffffffu;

/// Dynamic shared memory. Swizzle patterns repeat every 1024 bytes, so tiles begin at a multiple.
extern __shared__ uint8_t dynamic_shared[];

namespace ptx {

// ---- Addresses and special registers ------------------------------------------------------------

DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// The same place in the shared memory of CTA `rank` of the cluster.
DEVICE uint32_t mapa(uint32_t address, uint32_t rank) {
  uint32_t result;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
  return result;
}

template <class T>
DEVICE T* mapa_generic(T* pointer, uint32_t rank) {
  uint64_t result;
  asm("mapa.u64 %0, %1, %2;" : "=l"(result) : "l"(pointer), "r"(rank));
  return reinterpret_cast<T*>(result);
}

#define SPECIAL_REGISTER(function, name)                   \
  DEVICE uint32_t function() {                             \
    uint32_t value;                                        \
    asm volatile("mov.u32 %0, %%" name ";" : "=r"(value)); \
    return value;                                          \
  }
SPECIAL_REGISTER(laneid, "laneid")
SPECIAL_REGISTER(warpid, "warpid")
SPECIAL_REGISTER(lanemask_eq, "lanemask_eq")
SPECIAL_REGISTER(lanemask_le, "lanemask_le")
SPECIAL_REGISTER(lanemask_lt, "lanemask_lt")
SPECIAL_REGISTER(lanemask_ge, "lanemask_ge")
SPECIAL_REGISTER(lanemask_gt, "lanemask_gt")
SPECIAL_REGISTER(clusterid_x, "clusterid.x")
SPECIAL_REGISTER(clusterid_y, "clusterid.y")
SPECIAL_REGISTER(clusterid_z, "clusterid.z")
SPECIAL_REGISTER(nclusterid_x, "nclusterid.x")
SPECIAL_REGISTER(nclusterid_y, "nclusterid.y")
SPECIAL_REGISTER(cluster_ctaid_x, "cluster_ctaid.x")
SPECIAL_REGISTER(cluster_ctaid_y, "cluster_ctaid.y")
SPECIAL_REGISTER(cluster_ctaid_z, "cluster_ctaid.z")
SPECIAL_REGISTER(cluster_nctaid_x, "cluster_nctaid.x")
SPECIAL_REGISTER(cluster_nctaid_y, "cluster_nctaid.y")
SPECIAL_REGISTER(cluster_ctarank, "cluster_ctarank")
SPECIAL_REGISTER(cluster_nctarank, "cluster_nctarank")
SPECIAL_REGISTER(dynamic_smem_size, "dynamic_smem_size")

/// True in one lane of the warp.
DEVICE bool elect() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// ---- mbarrier -----------------------------------------------------------------------------------

DEVICE void mbarrier_init(uint32_t bar, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
DEVICE void mbarrier_inval(uint32_t bar) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}
/// Makes inits visible to the copy engine and to other CTAs of the cluster.
DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void mbarrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
DEVICE void mbarrier_arrive(uint32_t bar, uint32_t count) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(count)
               : "memory");
}
/// Returns the token of the phase arrived at.
DEVICE uint64_t mbarrier_arrive_token(uint32_t bar) {
  uint64_t token;
  asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(token) : "r"(bar) : "memory");
  return token;
}
DEVICE uint32_t mbarrier_pending_count(uint64_t token) {
  uint32_t count;
  asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(count) : "l"(token));
  return count;
}
/// bar: an address of mapa.
DEVICE void mbarrier_arrive_remote(uint32_t bar) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(bar)
               : "memory");
}
DEVICE void mbarrier_arrive_remote(uint32_t bar, uint32_t count) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0], %1;" ::"r"(bar), "r"(count)
               : "memory");
}
DEVICE void mbarrier_expect_tx(uint32_t bar, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
DEVICE void mbarrier_arrive_expect_tx(uint32_t bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
               : "memory");
}
DEVICE void mbarrier_arrive_expect_tx_remote(uint32_t bar, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(bar),
      "r"(bytes)
      : "memory");
}

#define MBARRIER_WAIT(function, opcode, type, constraint) \
  DEVICE bool function(uint32_t bar, type phase) {        \
    uint32_t done;                                        \
    asm volatile(                                         \
        "{\n"                                             \
        ".reg .pred p;\n" opcode                          \
        " p, [%1], %2;\n"                                 \
        "selp.b32 %0, 1, 0, p;\n"                         \
        "}"                                               \
        : "=r"(done)                                      \
        : "r"(bar), constraint(phase)                     \
        : "memory");                                      \
    return done != 0;                                     \
  }
MBARRIER_WAIT(mbarrier_test_wait_parity, "mbarrier.test_wait.parity.shared::cta.b64", uint32_t, "r")
MBARRIER_WAIT(mbarrier_try_wait_parity, "mbarrier.try_wait.parity.shared::cta.b64", uint32_t, "r")
MBARRIER_WAIT(mbarrier_try_wait_parity_cluster,
              "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64", uint32_t, "r")
MBARRIER_WAIT(mbarrier_test_wait, "mbarrier.test_wait.shared::cta.b64", uint64_t, "l")
MBARRIER_WAIT(mbarrier_try_wait, "mbarrier.try_wait.shared::cta.b64", uint64_t, "l")

/// Until the phase of this parity has completed.
DEVICE void mbarrier_wait(uint32_t bar, uint32_t parity) {
  while (!mbarrier_try_wait_parity(bar, parity)) {
  }
}

/// The same with the loop inside the assembly, labels and all, and a time limit per try.
DEVICE void mbarrier_wait_loop(uint32_t bar, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1, 0x989680;\n"
      "@done bra.uni DONE;\n"
      "bra.uni AGAIN;\n"
      "DONE:\n"
      "}" ::"r"(bar),
      "r"(parity)
      : "memory");
}

// ---- Barriers of the CTA and of the cluster -----------------------------------------------------

DEVICE void bar_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void bar_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
DEVICE void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
/// Generic writes to shared memory before it are seen by copies and MMAs after it.
DEVICE void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- Tensor copies ------------------------------------------------------------------------------

#define LOAD_HEAD(rank) "cp.async.bulk.tensor." #rank "d.shared::cluster.global.tile"
#define LOAD_TAIL ".mbarrier::complete_tx::bytes [%0], [%1, "
#define TENSOR_LOAD(rank, coordinates, ...)                                                    \
  asm volatile(LOAD_HEAD(rank) LOAD_TAIL coordinates "], [%2];" ::"r"(to), "l"(map), "r"(bar), \
               __VA_ARGS__                                                                     \
               : "memory")

/// Box at `at` of global memory to shared memory; completes bytes on bar. One thread.
template <int kRank>
DEVICE void tensor_load(uint32_t to, const TensorMap* map, const Coordinates& at, uint32_t bar) {
  const int (&c)[5] = at.c;
  if constexpr (kRank == 1) TENSOR_LOAD(1, "{%3}", "r"(c[0]));
  if constexpr (kRank == 2) TENSOR_LOAD(2, "{%3, %4}", "r"(c[0]), "r"(c[1]));
  if constexpr (kRank == 3) TENSOR_LOAD(3, "{%3, %4, %5}", "r"(c[0]), "r"(c[1]), "r"(c[2]));
  if constexpr (kRank == 4) {
    TENSOR_LOAD(4, "{%3, %4, %5, %6}", "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
  }
  if constexpr (kRank == 5) {
    TENSOR_LOAD(5, "{%3, %4, %5, %6, %7}", "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4]));
  }
}

/// Box to the same place in every CTA of the mask; the barrier at bar's place there gets the bytes.
DEVICE void tensor_load_multicast(uint32_t to, const TensorMap* map, int c0, int c1, uint32_t bar,
                                  uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(bar), "r"(c0), "r"(c1), "h"(mask)
      : "memory");
}

/// With a cache policy that evicts first.
DEVICE void tensor_load_hinted(uint32_t to, const TensorMap* map, int c0, int c1, uint32_t bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(bar), "r"(c0), "r"(c1), "l"(uint64_t{0x12f0000000000000})
      : "memory");
}

#define STORE_HEAD(rank) "cp.async.bulk.tensor." #rank "d.global.shared::cta.bulk_group [%0, "
#define TENSOR_STORE(rank, coordinates, ...)                                              \
  asm volatile(STORE_HEAD(rank) coordinates "], [%1];" ::"l"(map), "r"(from), __VA_ARGS__ \
               : "memory")

/// Box from shared memory to `at`; what lies outside the tensor is dropped. One thread.
template <int kRank>
DEVICE void tensor_store(const TensorMap* map, const Coordinates& at, uint32_t from) {
  const int (&c)[5] = at.c;
  if constexpr (kRank == 1) TENSOR_STORE(1, "{%2}", "r"(c[0]));
  if constexpr (kRank == 2) TENSOR_STORE(2, "{%2, %3}", "r"(c[0]), "r"(c[1]));
  if constexpr (kRank == 3) TENSOR_STORE(3, "{%2, %3, %4}", "r"(c[0]), "r"(c[1]), "r"(c[2]));
  if constexpr (kRank == 4) {
    TENSOR_STORE(4, "{%2, %3, %4, %5}", "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
  }
  if constexpr (kRank == 5) {
    TENSOR_STORE(5, "{%2, %3, %4, %5, %6}", "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4]));
  }
}

DEVICE void tensor_reduce_add(const TensorMap* map, int c0, int c1, uint32_t from) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], "
      "[%1];" ::"l"(map),
      "r"(from), "r"(c0), "r"(c1)
      : "memory");
}

// ---- Bulk copies without a map ------------------------------------------------------------------

DEVICE void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(bar)
      : "memory");
}
DEVICE void bulk_store(void* to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}
/// to and bar: addresses of mapa, in one CTA.
DEVICE void bulk_copy_to_peer(uint32_t to, uint32_t from, uint32_t bytes, uint32_t bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(to),
      "r"(from), "r"(bytes), "r"(bar)
      : "memory");
}
DEVICE void bulk_reduce_add_f32(void* to, uint32_t from, uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
      "r"(from), "r"(bytes)
      : "memory");
}
DEVICE void bulk_reduce_add_bf16(void* to, uint32_t from, uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [%0], [%1], %2;" ::"l"(to),
      "r"(from), "r"(bytes)
      : "memory");
}
DEVICE void bulk_commit_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int kPending>
DEVICE void bulk_wait_group() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
/// Until the sources may be overwritten.
template <int kPending>
DEVICE void bulk_wait_group_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// ---- Allocation of registers --------------------------------------------------------------------

template <int kRegisters>
DEVICE void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
DEVICE void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace ptx

// ---- What many kernels do -----------------------------------------------------------------------

/// The first multiple of 1024 in dynamic shared memory; launches ask for 1024 bytes more.
DEVICE uint8_t* aligned_shared() {
  const uint32_t address = ptx::shared_address(dynamic_shared);
  return dynamic_shared + ((1024 - (address & 1023)) & 1023);
}

/// By the whole CTA, 4 bytes at a time.
DEVICE void copy_words(void* to, const void* from, uint32_t bytes) {
  for (uint32_t i = threadIdx.x; i < bytes / 4; i += blockDim.x) {
    static_cast<uint32_t*>(to)[i] = static_cast<const uint32_t*>(from)[i];
  }
}

/// Address field of a matrix descriptor. In a cluster shared addresses carry the CTA above bit 24.
DEVICE uint64_t descriptor_address(uint32_t address) {
  return (address & 0x3ffff) >> 4;
}

/// One mbarrier, ready for all threads of the CTA.
DEVICE void init_one(uint32_t bar, uint32_t count) {
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, count);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
}

DEVICE uint32_t warp_index() {
  return threadIdx.x / 32;
}
DEVICE uint32_t lane_index() {
  return threadIdx.x % 32;
}

/// A kernel of one instruction: out[i] = op(a[i], b[i], c[i]) for n elements. R, A, B, C: types of
/// the result and of the operands; r, a_, b_, c_: their constraints.
#define OPERATION(name, R, r, A, a_, B, b_, C, c_, text)                   \
  KERNEL name(const A* a, const B* b, const C* c, R* out, int n) {         \
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); \
    if (i >= n) return;                                                    \
    R result;                                                              \
    asm(text : "=" r(result) : a_(a[i]), b_(b[i]), c_(c[i]));              \
    out[i] = result;                                                       \
  }

// ---- Lists of registers in assembly: %0 to %(n-1), and n operands of one constraint -------------

#define REGISTERS_1 "%0"
#define REGISTERS_2 "%0, %1"
#define REGISTERS_4 "%0, %1, %2, %3"
#define REGISTERS_8 REGISTERS_4 ", %4, %5, %6, %7"
#define REGISTERS_16 \
  REGISTERS_8        \
  ", %8, %9, %10, %11, %12, %13, %14, %15"
#define REGISTERS_32                         \
  REGISTERS_16                               \
  ", %16, %17, %18, %19, %20, %21, %22, %23" \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_48                         \
  REGISTERS_32                               \
  ", %32, %33, %34, %35, %36, %37, %38, %39" \
  ", %40, %41, %42, %43, %44, %45, %46, %47"
#define REGISTERS_64                         \
  REGISTERS_48                               \
  ", %48, %49, %50, %51, %52, %53, %54, %55" \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_128                                \
  REGISTERS_64                                       \
  ", %64, %65, %66, %67, %68, %69, %70, %71"         \
  ", %72, %73, %74, %75, %76, %77, %78, %79"         \
  ", %80, %81, %82, %83, %84, %85, %86, %87"         \
  ", %88, %89, %90, %91, %92, %93, %94, %95"         \
  ", %96, %97, %98, %99, %100, %101, %102, %103"     \
  ", %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119" \
  ", %120, %121, %122, %123, %124, %125, %126, %127"

#define OPERANDS_1(c, x, i) c((x)[i])
#define OPERANDS_2(c, x, i) c((x)[i]), c((x)[(i) + 1])
#define OPERANDS_4(c, x, i) OPERANDS_2(c, x, i), OPERANDS_2(c, x, (i) + 2)
#define OPERANDS_8(c, x, i) OPERANDS_4(c, x, i), OPERANDS_4(c, x, (i) + 4)
#define OPERANDS_16(c, x, i) OPERANDS_8(c, x, i), OPERANDS_8(c, x, (i) + 8)
#define OPERANDS_32(c, x, i) OPERANDS_16(c, x, i), OPERANDS_16(c, x, (i) + 16)
#define OPERANDS_48(c, x, i) OPERANDS_32(c, x, i), OPERANDS_16(c, x, (i) + 32)
#define OPERANDS_64(c, x, i) OPERANDS_32(c, x, i), OPERANDS_32(c, x, (i) + 32)
#define OPERANDS_128(c, x, i) OPERANDS_64(c, x, i), OPERANDS_64(c, x, (i) + 64)

#if HAS_SM100
// ---- Tensor memory and tcgen05 ------------------------------------------------------------------

namespace ptx {

/// A power of two of columns, 32 to 512, by one warp; the address goes to shared memory.
template <int kGroup>
DEVICE void tmem_alloc(uint32_t to, uint32_t columns) {
  if constexpr (kGroup == 1) {
    asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(to),
                 "r"(columns)
                 : "memory");
  } else {
    asm volatile("tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(to),
                 "r"(columns)
                 : "memory");
  }
}
template <int kGroup>
DEVICE void tmem_dealloc(uint32_t address, uint32_t columns) {
  if constexpr (kGroup == 1) {
    asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" ::"r"(address),
                 "r"(columns));
  } else {
    asm volatile("tcgen05.dealloc.cta_group::2.sync.aligned.b32 %0, %1;" ::"r"(address),
                 "r"(columns));
  }
}
template <int kGroup>
DEVICE void tmem_relinquish() {
  if constexpr (kGroup == 1) {
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
  } else {
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::2.sync.aligned;");
  }
}

#define TCGEN05_MMA(group, a_text, a_constraint)                                             \
  asm volatile(                                                                              \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"                                            \
      "tcgen05.mma.cta_group::" group ".kind::f16 [%0], " a_text ", %2, %3, p;\n}" ::"r"(d), \
      a_constraint(a), "l"(b), "r"(instruction), "r"(add)                                    \
      : "memory")

/// D = A B, or D += A B; A from shared memory. One thread, for the CTA or for the pair.
template <int kGroup>
DEVICE void mma_ss(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction, int add) {
  if constexpr (kGroup == 1) TCGEN05_MMA("1", "%1", "l");
  if constexpr (kGroup == 2) TCGEN05_MMA("2", "%1", "l");
}
/// A from tensor memory.
template <int kGroup>
DEVICE void mma_ts(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction, int add) {
  if constexpr (kGroup == 1) TCGEN05_MMA("1", "[%1]", "r");
  if constexpr (kGroup == 2) TCGEN05_MMA("2", "[%1]", "r");
}

/// One arrival on bar when all earlier MMAs of this thread are done.
template <int kGroup>
DEVICE void mma_commit(uint32_t bar) {
  if constexpr (kGroup == 1) {
    asm volatile(
        "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(bar)
        : "memory");
  } else {
    asm volatile(
        "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(bar)
        : "memory");
  }
}
/// The same in every CTA of the mask.
DEVICE void mma_commit_pair(uint32_t bar, uint16_t mask) {
  asm volatile(
      "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 "
      "[%0], %1;" ::"r"(bar),
      "h"(mask)
      : "memory");
}
DEVICE void tcgen05_fence_before() {
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
}
DEVICE void tcgen05_fence_after() {
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}
DEVICE void tmem_wait_ld() {
  asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
}
DEVICE void tmem_wait_st() {
  asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
}

// Loads and stores of `regs` registers per thread; `at` is the number of the address operand.
#define TMEM_LOAD(function, shape, regs)                                                       \
  DEVICE void function(uint32_t (&x)[regs], uint32_t address) {                                \
    asm volatile("tcgen05.ld.sync.aligned." shape ".b32 {" REGISTERS_##regs "}, [%" #regs "];" \
                 : OPERANDS_##regs("=r", x, 0)                                                 \
                 : "r"(address)                                                                \
                 : "memory");                                                                  \
  }
#define TMEM_STORE(function, shape, regs)                                                 \
  DEVICE void function(uint32_t address, const uint32_t (&x)[regs]) {                     \
    asm volatile("tcgen05.st.sync.aligned." shape ".b32 [%" #regs "], {" REGISTERS_##regs \
                 "};" ::OPERANDS_##regs("r", x, 0),                                       \
                 "r"(address)                                                             \
                 : "memory");                                                             \
  }
TMEM_LOAD(tmem_load, "32x32b.x8", 8)
TMEM_LOAD(tmem_load, "32x32b.x32", 32)
TMEM_STORE(tmem_store, "32x32b.x8", 8)
TMEM_STORE(tmem_store, "32x32b.x32", 32)

/// Box of a CTA pair's load: the bytes complete on the even CTA's barrier.
DEVICE void tensor_load_pair(uint32_t to, const TensorMap* map, int c0, int c1, uint32_t bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.cta_group::2.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(map), "r"(bar & 0xfefffff8u), "r"(c0), "r"(c1)
      : "memory");
}

}  // namespace ptx
#endif
