// Loading and launching through the table.
#include <gtest/gtest.h>

#include <thread>

#include "csrc/driver/launch.h"
#include "tests/driver/fake_driver.h"

namespace fa4::driver::test {

namespace {

// An image is identified by its address; each test uses one of its own, as loaded kernels are kept.
Image image_at(const unsigned char* bytes) {
  return {bytes, bytes + 4, bytes, bytes + 4};
}

Launch small_launch(const int* args) {
  Launch request;
  request.grid = {3, 2, 1};
  request.threads = 128;
  request.args = args;
  return request;
}

}  // namespace

TEST(Launch, LoadsOnceAndPassesTheConfiguration) {
  FakeDriver fake;
  static const unsigned char bytes[4] = {};
  const int args = 42;
  state.args_bytes = sizeof args;
  int stream = 0;
  Launch request = small_launch(&args);
  request.stream = &stream;
  request.device = 1;
  ASSERT_TRUE(launch("kernel", image_at(bytes), request).ok());
  ASSERT_TRUE(launch("kernel", image_at(bytes), request).ok());
  EXPECT_EQ(state.loads, 1);
  EXPECT_EQ(state.kernels, std::vector<std::string>{"kernel"});
  ASSERT_EQ(state.launches.size(), 2u);
  EXPECT_EQ(state.launches[0].gridDimX, 3u);
  EXPECT_EQ(state.launches[0].gridDimY, 2u);
  EXPECT_EQ(state.launches[0].blockDimX, 128u);
  EXPECT_EQ(state.launches[0].hStream, reinterpret_cast<CUstream>(&stream));
  EXPECT_EQ(state.launch_contexts[0], context(1));
  EXPECT_TRUE(state.shared_bytes.empty()) << "48 KiB and less need no attribute";
  EXPECT_EQ(*reinterpret_cast<const int*>(state.args.data()), 42);
}

TEST(Launch, EarlyStartIsAnAttributeOfTheLaunch) {
  FakeDriver fake;
  static const unsigned char bytes[4] = {};
  const int args = 0;
  Launch request = small_launch(&args);
  ASSERT_TRUE(launch("kernel", image_at(bytes), request).ok());
  request.early_start = true;
  ASSERT_TRUE(launch("kernel", image_at(bytes), request).ok());
  EXPECT_EQ(state.early_starts, (std::vector<int>{0, 1}));
}

TEST(Launch, LargeSharedMemoryIsAskedForOncePerDevice) {
  FakeDriver fake;
  static const unsigned char bytes[4] = {};
  const int args = 0;
  Launch request = small_launch(&args);
  request.shared_bytes = 200 * 1024;
  ASSERT_TRUE(launch("kernel", image_at(bytes), request).ok());
  ASSERT_TRUE(launch("kernel", image_at(bytes), request).ok());
  EXPECT_EQ(state.shared_bytes, std::vector<int>{200 * 1024});
  EXPECT_EQ(state.launches[1].sharedMemBytes, 200u * 1024u);
  request.device = 1;
  ASSERT_TRUE(launch("kernel", image_at(bytes), request).ok());
  EXPECT_EQ(state.shared_bytes, std::vector<int>(2, 200 * 1024));
  request.shared_bytes = 220 * 1024;
  ASSERT_TRUE(launch("kernel", image_at(bytes), request).ok());
  EXPECT_EQ(state.shared_bytes.back(), 220 * 1024) << "more than was asked for before";
  EXPECT_EQ(state.shared_bytes.size(), 3u);
}

TEST(Launch, RefusedSharedMemoryIsNamedAndAskedForAgain) {
  FakeDriver fake;
  static const unsigned char bytes[4] = {};
  const int args = 0;
  Launch request = small_launch(&args);
  request.shared_bytes = 1 << 20;
  state.attribute_result = CUDA_ERROR_INVALID_VALUE;
  const Status status = launch("some_kernel", image_at(bytes), request);
  EXPECT_EQ(status.code, Code::kRuntime);
  EXPECT_EQ(status.message, "shared memory of some_kernel: CUDA_ERROR_FAKE (fake text)");
  EXPECT_TRUE(state.launches.empty());
  state.attribute_result = CUDA_SUCCESS;
  EXPECT_TRUE(launch("some_kernel", image_at(bytes), request).ok());
  EXPECT_EQ(state.shared_bytes.size(), 2u);
}

TEST(Launch, TheDriverIsAskedForTheDeviceOnce) {
  FakeDriver fake;
  static const unsigned char bytes[4] = {};
  state.current = context(1);
  const int args = 0;
  Launch request = small_launch(&args);
  request.shared_bytes = 200 * 1024;
  request.device = 1;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(launch("kernel", image_at(bytes), request).ok());
  EXPECT_EQ(state.device_gets, 1);
}

TEST(Launch, WhatOneThreadPreparedServesTheOthers) {
  FakeDriver fake;
  static const unsigned char bytes[4] = {};
  const int args = 0;
  const auto launch_with = [&](size_t shared_bytes) {
    Launch request = small_launch(&args);
    request.shared_bytes = shared_bytes;
    EXPECT_TRUE(launch("kernel", image_at(bytes), request).ok());
  };
  launch_with(200 * 1024);
  std::thread([&] {
    launch_with(200 * 1024);
    launch_with(220 * 1024);
  }).join();
  launch_with(220 * 1024);
  launch_with(200 * 1024);
  EXPECT_EQ(state.loads, 1);
  EXPECT_EQ(state.device_gets, 1);
  EXPECT_EQ(state.shared_bytes, (std::vector<int>{200 * 1024, 220 * 1024}))
      << "asked for as it grows, never taken back";
  EXPECT_EQ(state.launches.size(), 5u);
}

TEST(Launch, OldDriverIsNamedWithBothVersions) {
  FakeDriver fake;
  static const unsigned char bytes[4] = {};
  state.load_result = CUDA_ERROR_NO_BINARY_FOR_GPU;
  state.driver_version = 12040;
  const int args = 0;
  const Status status = launch("kernel", image_at(bytes), small_launch(&args));
  EXPECT_EQ(status.code, Code::kRuntime);
  EXPECT_NE(status.message.find("needs a driver for CUDA 13.0 (R580 or newer), found CUDA 12.4"),
            std::string::npos)
      << status.message;
  state.load_result = CUDA_SUCCESS;
  EXPECT_TRUE(launch("kernel", image_at(bytes), small_launch(&args)).ok())
      << "a failed load is retried";
}

TEST(Launch, FailureNamesTheKernelAndTheDriversError) {
  FakeDriver fake;
  static const unsigned char bytes[4] = {};
  state.launch_result = CUDA_ERROR_INVALID_VALUE;
  const int args = 0;
  const Status status = launch("some_kernel", image_at(bytes), small_launch(&args));
  EXPECT_EQ(status.code, Code::kRuntime);
  EXPECT_EQ(status.message, "launch of some_kernel: CUDA_ERROR_FAKE (fake text)");
}

TEST(Launch, ManyThreadsLoadOnce) {
  FakeDriver fake;
  static const unsigned char bytes[4] = {};
  state.current = context(0);
  state.launch_result = CUDA_ERROR_INVALID_VALUE;  // launches are not recorded concurrently
  fake.table.cuLaunchKernelEx = [](const CUlaunchConfig*, CUfunction, void**, void**) {
    return CUDA_SUCCESS;
  };
  const int args = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back(
        [&] { EXPECT_TRUE(launch("kernel", image_at(bytes), small_launch(&args)).ok()); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(state.loads, 1);
}

}  // namespace fa4::driver::test
