// From CombineParams on a GPU to the launch: kernel choice, grid, vectorised or not.
#include <gtest/gtest.h>

#include "csrc/common/combine.h"
#include "flash_attn4/flash_attn4.h"
#include "tests/driver/fake_driver.h"

namespace fa4::driver::test {

namespace {

alignas(16) float buffer[64];

CombineParams params_of(int64_t rows, int64_t heads) {
  CombineParams p;
  p.num_splits = 4;
  p.batch = 1;
  p.rows = rows;
  p.heads = heads;
  p.head_dim_v = 64;
  p.out_partial = {buffer, {0, heads * 64, 64}};
  p.out_partial_split_stride = rows * heads * 64;
  p.lse_partial = {buffer, {0, heads, 1}};
  p.lse_partial_split_stride = rows * heads;
  p.out = {buffer, {0, heads * 64, 64}};
  p.lse = {buffer, {0, heads, 1}};
  return p;
}

Context on_gpu() {
  Context context;
  context.device = {Device::kCuda, 0};
  return context;
}

CombineArgs launched_args() {
  CombineArgs args;
  std::memcpy(&args, state.args.data(), sizeof args);
  return args;
}

}  // namespace

TEST(CombineLaunch, ChoosesTheKernelOfTheDeviceAndElementType) {
  struct Expectation {
    int major;
    DType dtype;
    const char* kernel;
  };
  for (const auto& [major, dtype, kernel] :
       {Expectation{9, DType::kFloat32, "fa4_combine_sm90_fp32"},
        Expectation{9, DType::kBFloat16, "fa4_combine_sm90_bf16"},
        Expectation{10, DType::kFloat16, "fa4_combine_sm100_fp16"}}) {
    FakeDriver fake;
    state.capability_major = major;
    CombineParams p = params_of(3, 2);
    p.partial_dtype = dtype;
    ASSERT_TRUE(combine(p, on_gpu()).ok());
    EXPECT_EQ(state.kernels.back(), kernel);
  }
}

TEST(CombineLaunch, OneWarpPerResultRow) {
  FakeDriver fake;
  state.args_bytes = sizeof(CombineArgs);
  ASSERT_TRUE(combine(params_of(7, 3), on_gpu()).ok());
  EXPECT_EQ(state.launches[0].blockDimX, 128u);
  EXPECT_EQ(state.launches[0].gridDimX, 6u) << "21 rows, 4 warps per block";
  EXPECT_EQ(launched_args().results, 21);
  EXPECT_TRUE(launched_args().vectorized);
}

TEST(CombineLaunch, OddStridesAndAddressesAreReadElementWise) {
  FakeDriver fake;
  state.args_bytes = sizeof(CombineArgs);
  CombineParams odd_stride = params_of(2, 2);
  odd_stride.out_partial.stride.row += 1;
  ASSERT_TRUE(combine(odd_stride, on_gpu()).ok());
  EXPECT_FALSE(launched_args().vectorized);
  CombineParams odd_address = params_of(2, 2);
  odd_address.out.data = buffer + 1;
  ASSERT_TRUE(combine(odd_address, on_gpu()).ok());
  EXPECT_FALSE(launched_args().vectorized);
}

TEST(CombineLaunch, NothingToDoLaunchesNothing) {
  FakeDriver fake;
  ASSERT_TRUE(combine(params_of(0, 3), on_gpu()).ok());
  EXPECT_TRUE(state.launches.empty());
}

TEST(CombineLaunch, OtherDevicesGetEveryReason) {
  FakeDriver fake;
  state.capability_major = 8;
  state.capability_minor = 6;
  const Status status = combine(params_of(2, 2), on_gpu());
  EXPECT_EQ(status.code, Code::kUnsupported);
  EXPECT_NE(status.message.find("no combine kernel for this call on cuda:0 (Fake GPU, sm_86)"),
            std::string::npos)
      << status.message;
  EXPECT_NE(status.message.find("fa4_combine_sm90_fp32: runs on sm90a"), std::string::npos);
  EXPECT_NE(status.message.find("combine_cpu: runs on cpu"), std::string::npos);
  EXPECT_TRUE(state.launches.empty());
}

TEST(CombineLaunch, ForwardWithoutAGpuKernelSaysSo) {
  FakeDriver fake;
  FwdParams p;
  p.batch = p.seqlen_q = p.seqlen_k = p.heads_q = p.heads_k = 1;
  p.head_dim = p.head_dim_v = 384;  // more than any kernel serves
  const Status status = fwd(p, on_gpu());
  EXPECT_EQ(status.code, Code::kUnsupported);
  EXPECT_EQ(
      status.message.find("no fwd kernel for this call on cuda:0 (Fake GPU, sm_90): fa4_fwd_sm90_"),
      0u)
      << status.message;
}

}  // namespace fa4::driver::test
