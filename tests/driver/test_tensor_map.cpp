// Tensor maps: what the driver is given for a tensor, and which tensors can have one.
#include <gtest/gtest.h>

#include <thread>

#include "csrc/dispatch/gpu.h"
#include "csrc/driver/tensor_map.h"
#include "tests/driver/fake_driver.h"

namespace fa4::driver::test {

namespace {

using Sizes = std::vector<uint64_t>;

alignas(16) const uint16_t memory[16] = {};

/// (4, 6, 3) rows of 72 elements, each row's heads together, padded.
TensorMapSpec some_spec() {
  return {.dtype = DType::kFloat16,
          .base = memory,
          .rank = 4,
          .size = {72, 6, 3, 4},
          .stride = {1, 240, 80, 2400},
          .box = {64, 128, 1, 1}};
}

/// The number of the map, counted from 1 by the fake driver.
int encoded(const TensorMapSpec& spec, int device = 0) {
  TensorMap map{};
  EXPECT_TRUE(encode_tensor_map("k", spec, device, &map).ok());
  return map.bytes[0];
}

}  // namespace

TEST(TensorMap, SizesAndStridesInBytes) {
  FakeDriver fake;
  TensorMap map;
  ASSERT_TRUE(encode_tensor_map("k", some_spec(), 0, &map).ok());
  const FakeMap& got = state.maps.at(0);
  EXPECT_EQ(map.bytes[0], 1) << "the result is the driver's";
  EXPECT_EQ(got.type, CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
  EXPECT_EQ(got.base, memory);
  EXPECT_EQ(got.sizes, (Sizes{72, 6, 3, 4}));
  EXPECT_EQ(got.strides, (Sizes{480, 160, 4800}));
  EXPECT_EQ(got.box, (std::vector<uint32_t>{64, 128, 1, 1}));
  EXPECT_EQ(got.swizzle, CU_TENSOR_MAP_SWIZZLE_128B);
  EXPECT_EQ(got.l2, CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
  EXPECT_EQ(got.fill, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) << "zeros outside the tensor";

  TensorMapSpec other = some_spec();
  other.dtype = DType::kBFloat16;
  other.l2_fetch = L2Fetch::k256Bytes;
  ASSERT_TRUE(encode_tensor_map("k", other, 0, &map).ok());
  EXPECT_EQ(state.maps.at(1).type, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
  EXPECT_EQ(state.maps.at(1).l2, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

TEST(TensorMap, SwizzleIsTheSpecs) {
  const auto swizzled = [](Swizzle swizzle, int columns) {
    TensorMapSpec spec = some_spec();
    spec.swizzle = swizzle;
    spec.box[0] = columns;
    TensorMap map;
    EXPECT_TRUE(encode_tensor_map("k", spec, 0, &map).ok());
    EXPECT_EQ(state.maps.back().box.at(0), static_cast<uint32_t>(columns));
    return state.maps.back().swizzle;
  };
  FakeDriver fake;
  EXPECT_EQ(swizzled(Swizzle::k128B, 64), CU_TENSOR_MAP_SWIZZLE_128B);
  EXPECT_EQ(swizzled(Swizzle::k64B, 32), CU_TENSOR_MAP_SWIZZLE_64B);
  EXPECT_EQ(swizzled(Swizzle::k32B, 16), CU_TENSOR_MAP_SWIZZLE_32B);
}

TEST(TensorMap, StridesOfSingleElementsAreReplaced) {
  FakeDriver fake;
  TensorMapSpec spec = some_spec();
  spec.size[2] = spec.size[3] = 1;
  spec.stride[2] = 7;
  spec.stride[3] = int64_t{1} << 60;
  TensorMap map;
  ASSERT_TRUE(encode_tensor_map("k", spec, 0, &map).ok());
  EXPECT_EQ(state.maps.at(0).strides, (Sizes{480, 2880, 2880})) << "as if dense";
}

TEST(TensorMap, EmptyTensorsBecomeOneRow) {
  FakeDriver fake;
  TensorMapSpec spec = some_spec();
  spec.size[1] = 0;
  spec.stride[2] = 3;
  TensorMap map;
  ASSERT_TRUE(encode_tensor_map("k", spec, 0, &map).ok());
  EXPECT_EQ(state.maps.at(0).sizes, (Sizes{72, 1, 1, 1}));
  EXPECT_EQ(state.maps.at(0).strides, (Sizes{144, 144, 144}));
}

TEST(TensorMap, ExpandedDimensionsKeepTheirStride) {
  FakeDriver fake;
  TensorMapSpec spec = some_spec();
  spec.stride[2] = 0;
  TensorMap map;
  ASSERT_TRUE(encode_tensor_map("k", spec, 0, &map).ok());
  EXPECT_EQ(state.maps.at(0).strides, (Sizes{480, 0, 4800}));
}

TEST(TensorMap, RefusalNamesTheTensor) {
  FakeDriver fake;
  state.map_result = CUDA_ERROR_INVALID_VALUE;
  TensorMap map;
  const Status status = encode_tensor_map("k", some_spec(), 0, &map);
  EXPECT_EQ(status.code, Code::kRuntime);
  EXPECT_EQ(status.message, "tensor map of k: CUDA_ERROR_FAKE (fake text)");
}

TEST(TensorMap, EncodedOnceForTheSameTensorAndBox) {
  FakeDriver fake;
  const TensorMapSpec spec = some_spec();
  EXPECT_EQ(encoded(spec), 1);
  EXPECT_EQ(encoded(spec), 1);
  EXPECT_EQ(state.maps.size(), 1u);
  EXPECT_EQ(encoded(spec, 1), 2) << "another device";
  std::thread([&] { EXPECT_EQ(encoded(spec), 3) << "another thread"; }).join();
  {
    FakeDriver other;
    EXPECT_EQ(encoded(spec), 1) << "another driver";
    EXPECT_EQ(state.maps.size(), 1u);
  }
}

TEST(TensorMap, WhateverDiffersIsEncodedAnew) {
  FakeDriver fake;
  std::vector<TensorMapSpec> specs(7, some_spec());
  specs[1].dtype = DType::kBFloat16;
  specs[2].base = memory + 8;
  specs[3].rank = 3;
  specs[4].swizzle = Swizzle::k64B;
  specs[5].l2_fetch = L2Fetch::k256Bytes;
  specs[6].stride[3] += 8;
  for (int i = 0; i < 4; ++i) {
    specs.push_back(some_spec());
    specs.back().size[i] += 8;
    specs.push_back(some_spec());
    specs.back().box[i] += 8;
  }
  specs.push_back(some_spec());
  specs.back().stride[1] += 8;
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = 0; i < specs.size(); ++i) {
      EXPECT_EQ(encoded(specs[i]), static_cast<int>(i) + 1) << "spec " << i << ", pass " << pass;
    }
  }
}

TEST(TensorMap, TheOldestIsForgottenFirst) {
  FakeDriver fake;
  std::vector<TensorMapSpec> specs(17, some_spec());
  for (size_t i = 0; i < specs.size(); ++i) {
    specs[i].size[3] += static_cast<int64_t>(i);
    EXPECT_EQ(encoded(specs[i]), static_cast<int>(i) + 1);
  }
  EXPECT_EQ(encoded(specs[1]), 2);
  EXPECT_EQ(encoded(specs[16]), 17);
  EXPECT_EQ(encoded(specs[0]), 18);
  EXPECT_EQ(state.maps.at(17).sizes, (Sizes{72, 6, 3, 4}));
}

TEST(TensorMap, RefusalsAreNotKept) {
  FakeDriver fake;
  TensorMap map;
  state.map_result = CUDA_ERROR_INVALID_VALUE;
  EXPECT_FALSE(encode_tensor_map("k", some_spec(), 0, &map).ok());
  state.map_result = CUDA_SUCCESS;
  EXPECT_EQ(encoded(some_spec()), 2);
}

TEST(TensorMap, FitsWhatTheCopyEngineCanStepThrough) {
  struct Case {
    const char* what;
    int64_t address;  // elements from an aligned one
    int64_t size[3];
    int64_t stride[3];
    bool fits;
  };
  const int64_t limit = int64_t{1} << 39;  // 2^40 bytes
  const Case cases[] = {
      {"contiguous", 0, {2, 5, 3}, {960, 192, 64}, true},
      {"a multiple of 8", 0, {2, 5, 3}, {968, 200, 72}, true},
      {"odd batches", 0, {2, 5, 3}, {961, 192, 64}, false},
      {"odd rows", 0, {2, 5, 3}, {960, 196, 64}, false},
      {"odd heads", 0, {2, 5, 3}, {960, 192, 65}, false},
      {"odd strides of one element", 0, {1, 1, 1}, {961, 193, 65}, true},
      {"odd address", 4, {2, 5, 3}, {960, 192, 64}, false},
      {"nothing there", 4, {2, 0, 3}, {961, 193, 65}, true},
      {"expanded", 0, {2, 5, 3}, {960, 192, 0}, true},
      {"backwards", 0, {2, 5, 3}, {960, -192, 64}, false},
      {"far apart", 0, {2, 5, 3}, {limit - 8, 192, 64}, true},
      {"too far apart", 0, {2, 5, 3}, {limit, 192, 64}, false},
  };
  for (const Case& c : cases) {
    const void* base = memory + c.address;
    EXPECT_EQ(tensor_map_fits(base, 3, c.size, c.stride), c.fits) << c.what;
    EXPECT_EQ(gpu::readable(DType::kBFloat16, base, 3, c.size, c.stride), c.fits) << c.what;
    EXPECT_TRUE(gpu::readable(DType::kFloat32, base, 3, c.size, c.stride)) << c.what;
  }
}

}  // namespace fa4::driver::test
