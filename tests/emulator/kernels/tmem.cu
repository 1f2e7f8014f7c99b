// Tensor memory (sm_100): allocation, loads and stores of every shape.
#include "ptx.cuh"

namespace {

constexpr uint32_t kColumns = 256;

/// Allocates for all warps; returns the address.
__device__ __forceinline__ uint32_t allocate(uint32_t columns) {
  __shared__ uint32_t address;
  if (warp_index() == 0) {
    ptx::tmem_alloc<1>(ptx::shared_address(&address), columns);
    ptx::tmem_relinquish<1>();
  }
  ptx::tcgen05_fence_before();
  __syncthreads();
  ptx::tcgen05_fence_after();
  return address;
}

__device__ __forceinline__ void release(uint32_t address, uint32_t columns) {
  ptx::tcgen05_fence_before();
  __syncthreads();
  ptx::tcgen05_fence_after();
  if (warp_index() == 0) ptx::tmem_dealloc<1>(address, columns);
}

/// Own lanes of this warp, as an address.
__device__ __forceinline__ uint32_t quarter() {
  return (warp_index() % 4) << 21;
}

/// image: 128 lanes of kColumns cells.
__device__ __forceinline__ void write_image(uint32_t tmem, const uint32_t* image) {
  for (uint32_t column = 0; column < kColumns; column += 8) {
    uint32_t x[8];
    for (int i = 0; i < 8; ++i) x[i] = image[threadIdx.x * kColumns + column + i];
    ptx::tmem_store(tmem + quarter() + column, x);
  }
  ptx::tmem_wait_st();
}
__device__ __forceinline__ void read_image(uint32_t tmem, uint32_t* image) {
  for (uint32_t column = 0; column < kColumns; column += 8) {
    uint32_t x[8];
    ptx::tmem_load(x, tmem + quarter() + column);
    ptx::tmem_wait_ld();
    for (int i = 0; i < 8; ++i) image[threadIdx.x * kColumns + column + i] = x[i];
  }
}

}  // namespace

// Load: the image into tensor memory, registers of each thread out. Store: registers over the
// image, the image out. half: 1 for the upper 16 lanes of each quarter, shapes of 16 lanes only.
#define SHAPE(name, shape, regs)                                               \
  TMEM_LOAD(load_##name, shape, regs)                                          \
  TMEM_STORE(store_##name, shape, regs)                                        \
  KERNEL tmem_ld_##name(const uint32_t* image, uint32_t* out, uint32_t half) { \
    const uint32_t tmem = allocate(kColumns);                                  \
    write_image(tmem, image);                                                  \
    uint32_t x[regs];                                                          \
    load_##name(x, tmem + quarter() + (half << 20));                           \
    ptx::tmem_wait_ld();                                                       \
    for (int i = 0; i < regs; ++i) out[threadIdx.x * regs + i] = x[i];         \
    release(tmem, kColumns);                                                   \
  }                                                                            \
  KERNEL tmem_st_##name(const uint32_t* in, uint32_t* image, uint32_t half) {  \
    const uint32_t tmem = allocate(kColumns);                                  \
    write_image(tmem, image);                                                  \
    uint32_t x[regs];                                                          \
    for (int i = 0; i < regs; ++i) x[i] = in[threadIdx.x * regs + i];          \
    store_##name(tmem + quarter() + (half << 20), x);                          \
    ptx::tmem_wait_st();                                                       \
    read_image(tmem, image);                                                   \
    release(tmem, kColumns);                                                   \
  }
SHAPE(32x32b_x1, "32x32b.x1", 1)
SHAPE(32x32b_x2, "32x32b.x2", 2)
SHAPE(32x32b_x4, "32x32b.x4", 4)
SHAPE(32x32b_x8, "32x32b.x8", 8)
SHAPE(32x32b_x16, "32x32b.x16", 16)
SHAPE(32x32b_x32, "32x32b.x32", 32)
SHAPE(32x32b_x64, "32x32b.x64", 64)
SHAPE(32x32b_x128, "32x32b.x128", 128)
SHAPE(16x64b_x1, "16x64b.x1", 1)
SHAPE(16x64b_x16, "16x64b.x16", 16)
SHAPE(16x64b_x128, "16x64b.x128", 128)
SHAPE(16x128b_x1, "16x128b.x1", 2)
SHAPE(16x128b_x8, "16x128b.x8", 16)
SHAPE(16x128b_x64, "16x128b.x64", 128)
SHAPE(16x256b_x1, "16x256b.x1", 4)
SHAPE(16x256b_x2, "16x256b.x2", 8)
SHAPE(16x256b_x32, "16x256b.x32", 128)

/// Four allocations of one warp, the first given back in between. Each is filled with its number.
KERNEL __launch_bounds__(128) tmem_allocations(uint32_t* out) {
  __shared__ uint32_t address[4];
  const uint32_t columns[4] = {64, 128, 256, 32};
  if (warp_index() == 0) {
    for (int i = 0; i < 3; ++i) ptx::tmem_alloc<1>(ptx::shared_address(&address[i]), columns[i]);
    ptx::tmem_dealloc<1>(address[0], columns[0]);
    ptx::tmem_alloc<1>(ptx::shared_address(&address[3]), columns[3]);
    ptx::tmem_relinquish<1>();
  }
  ptx::tcgen05_fence_before();
  __syncthreads();
  ptx::tcgen05_fence_after();
  for (uint32_t i = 1; i < 4; ++i) {
    uint32_t x[8];
    for (uint32_t j = 0; j < 8; ++j) x[j] = 100 * i + j;
    for (uint32_t column = 0; column < columns[i]; column += 8) {
      ptx::tmem_store(address[i] + quarter() + column, x);
    }
  }
  ptx::tmem_wait_st();
  for (uint32_t i = 1; i < 4; ++i) {
    uint32_t x[8], y[8];
    ptx::tmem_load(x, address[i] + quarter());
    ptx::tmem_load(y, address[i] + quarter() + columns[i] - 8);
    ptx::tmem_wait_ld();
    out[threadIdx.x * 6 + 2 * i - 2] = x[0];
    out[threadIdx.x * 6 + 2 * i - 1] = y[7];
  }
  if (threadIdx.x < 4) out[128 * 6 + threadIdx.x] = address[threadIdx.x];
  ptx::tcgen05_fence_before();
  __syncthreads();
  ptx::tcgen05_fence_after();
  if (warp_index() == 0) {
    for (int i = 1; i < 4; ++i) ptx::tmem_dealloc<1>(address[i], columns[i]);
  }
}

/// Warp 1 asks for columns while warp 0 holds them all, and waits until they are given back.
KERNEL __launch_bounds__(64) tmem_allocation_waits(uint32_t* out) {
  __shared__ uint32_t first, second;
  __shared__ volatile uint32_t given_back;
  if (threadIdx.x == 0) given_back = 0;
  if (warp_index() == 0) ptx::tmem_alloc<1>(ptx::shared_address(&first), 512);
  __syncthreads();
  if (warp_index() == 0) {
    for (int i = 0; i < 10; ++i) __nanosleep(100);
    given_back = 1;
    __syncwarp();
    ptx::tmem_dealloc<1>(first, 512);
  } else {
    ptx::tmem_alloc<1>(ptx::shared_address(&second), 256);
    out[lane_index()] = given_back;
    ptx::tmem_dealloc<1>(second, 256);
  }
}
