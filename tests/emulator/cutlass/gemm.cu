// A collective GEMM of CUTLASS, D = A * B with fp32 accumulation, and what a launch of it needs.
//
// One variant per compilation, chosen by macros (tests/emulator/cutlass_gemm.py sets them):
//   GEMM_SM90            0: tcgen05 (SM100), 1: wgmma (SM90)
//   GEMM_ELEMENT         element type of A and B
//   GEMM_OUTPUT          element type of D
//   GEMM_A_K_MAJOR, GEMM_B_K_MAJOR   1: K is contiguous; 0: M (of A) or N (of B) is
//   GEMM_TILE_M, _N, _K  the MMA tile; of both CTAs where two SMs share it
//   GEMM_CLUSTER_M, _N   extents of the cluster
//   GEMM_SCHEDULE        kernel schedule, a type in cutlass::gemm
//   GEMM_EPILOGUE        epilogue schedule, a type in cutlass::epilogue
//   GEMM_SCHEDULER       tile scheduler, a type in cutlass::gemm
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/epilogue/fusion/operations.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/util/packed_stride.hpp"

namespace {

#if GEMM_SM90
using Arch = cutlass::arch::Sm90;
#else
using Arch = cutlass::arch::Sm100;
#endif

using Element = GEMM_ELEMENT;
using Output = GEMM_OUTPUT;
using LayoutA =
    cute::conditional_t<GEMM_A_K_MAJOR, cutlass::layout::RowMajor, cutlass::layout::ColumnMajor>;
using LayoutB =
    cute::conditional_t<GEMM_B_K_MAJOR, cutlass::layout::ColumnMajor, cutlass::layout::RowMajor>;
using LayoutD = cutlass::layout::RowMajor;

// Elements of 16 bytes: what tensor maps require of the leading extent.
constexpr int kAlignment = 16 / sizeof(Element);
constexpr int kAlignmentD = 16 / sizeof(Output);

using Tile = cute::Shape<cute::Int<GEMM_TILE_M>, cute::Int<GEMM_TILE_N>, cute::Int<GEMM_TILE_K>>;
using Cluster = cute::Shape<cute::Int<GEMM_CLUSTER_M>, cute::Int<GEMM_CLUSTER_N>, cute::_1>;

using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    Arch, cutlass::arch::OpClassTensorOp, Tile, Cluster,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, LayoutD, kAlignmentD,
    Output, LayoutD, kAlignmentD, cutlass::epilogue::GEMM_EPILOGUE,
    cutlass::epilogue::fusion::LinearCombination<Output, float, void>>::CollectiveOp;

using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    Arch, cutlass::arch::OpClassTensorOp, Element, LayoutA, kAlignment, Element, LayoutB,
    kAlignment, float, Tile, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
        sizeof(typename Epilogue::SharedStorage))>,
    cutlass::gemm::GEMM_SCHEDULE>::CollectiveOp;

// M, N, K and the number of matrices.
using Problem = cute::Shape<int, int, int, int>;
using Gemm = cutlass::gemm::kernel::GemmUniversal<Problem, Mainloop, Epilogue,
                                                  cutlass::gemm::GEMM_SCHEDULER>;

// A GEMM as Python describes it: `matrices` each of A (M x K), B (N x K) and D (M x N), packed.
struct Request {
  uint64_t a, b, d;
  int32_t m, n, k, matrices;
  float alpha;
  int32_t sms;  // size of the machine, for schedulers that fill it
};

// What a launch of `gemm` takes beside its parameters.
struct Launch {
  uint32_t grid[3], block[3], cluster[3];
  uint32_t shared_bytes;
  uint32_t parameter_bytes;
};

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);
EncodeTiled encode_tiled = nullptr;
CUresult encode_status = CUDA_SUCCESS;

template <typename Stride>
Stride packed(const Stride& stride, int rows, int columns, int matrices) {
  return cutlass::make_cute_packed_stride(stride, cute::make_shape(rows, columns, matrices));
}

Gemm::Arguments arguments(const Request& r) {
  Gemm::Arguments result;
  result.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  result.problem_shape = {r.m, r.n, r.k, r.matrices};
  result.mainloop.ptr_A = reinterpret_cast<const Element*>(r.a);
  result.mainloop.dA = packed(Gemm::StrideA{}, r.m, r.k, r.matrices);
  result.mainloop.ptr_B = reinterpret_cast<const Element*>(r.b);
  result.mainloop.dB = packed(Gemm::StrideB{}, r.n, r.k, r.matrices);
  result.epilogue.thread.alpha = r.alpha;
  result.epilogue.thread.beta = 0;
  result.epilogue.ptr_D = reinterpret_cast<Output*>(r.d);
  result.epilogue.dD = packed(Gemm::StrideD{}, r.m, r.n, r.matrices);
  // Given, so that CUTLASS asks no device.
  result.hw_info.sm_count = r.sms;
  result.hw_info.max_active_clusters = r.sms / cute::size(Cluster{});
  return result;
}

void copy(uint32_t (&to)[3], const dim3& from) {
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(Gemm::MaxThreadsPerBlock,
                                             Gemm::MinBlocksPerMultiprocessor)
    gemm(const __grid_constant__ Gemm::Params params) {
  extern __shared__ char shared[];
  Gemm kernel;
  kernel(params, shared);
}

// CUTLASS calls the driver's function by name (CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL). In this
// library, where symbols are hidden, this definition takes its place.
extern "C" CUresult cuTensorMapEncodeTiled(
    CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* dims,
    const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps,
    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
    CUtensorMapFloatOOBfill fill) {
  CUresult status = CUDA_ERROR_NOT_INITIALIZED;
  if (encode_tiled != nullptr) {
    status = encode_tiled(map, type, rank, base, dims, strides, box, steps, interleave, swizzle,
                          promotion, fill);
  }
  if (status != CUDA_SUCCESS) encode_status = status;
  return status;
}

#define GEMM_EXPORT extern "C" __attribute__((visibility("default")))

// Parameters of `gemm`, written to `parameters`, and its launch. `encode` makes the tensor maps.
// Returns nullptr, or what is wrong.
GEMM_EXPORT const char* gemm_prepare(const Request* request, EncodeTiled encode, void* parameters,
                                     size_t capacity, Launch* launch) {
  static_assert(std::is_trivially_copyable_v<Gemm::Params>);
  launch->parameter_bytes = sizeof(Gemm::Params);
  if (capacity < sizeof(Gemm::Params)) return "the buffer is smaller than GemmKernel::Params";
  const Gemm::Arguments args = arguments(*request);
  if (!Gemm::can_implement(args)) return "CUTLASS cannot implement this problem";
  if (Gemm::get_workspace_size(args) != 0) return "the kernel needs a workspace";
  encode_tiled = encode;
  encode_status = CUDA_SUCCESS;
  const Gemm::Params params = Gemm::to_underlying_arguments(args, nullptr);
  if (encode_status != CUDA_SUCCESS) return "cuTensorMapEncodeTiled failed";
  std::memcpy(parameters, &params, sizeof(params));
  copy(launch->grid, Gemm::get_grid_shape(params));
  copy(launch->block, Gemm::get_block_shape());
  copy(launch->cluster, dim3(GEMM_CLUSTER_M, GEMM_CLUSTER_N, 1));
  launch->shared_bytes = Gemm::SharedStorageSize;
  return nullptr;
}
