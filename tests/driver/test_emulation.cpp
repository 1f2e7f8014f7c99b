// Calls on the CPU that run on an emulated GPU, through the library that is opened at run time.
#include <gtest/gtest.h>

#include <cmath>

#include "csrc/dispatch/emulation.h"
#include "csrc/driver/driver.h"
#include "flash_attn4/flash_attn4.h"

namespace fa4::test {

namespace {

constexpr int kRows = 3, kSplits = 2, kDim = 16;

struct CombineCall {
  float out_partial[kSplits][kRows][kDim];
  float lse_partial[kSplits][kRows];
  float out[kRows][kDim] = {};
  float lse[kRows] = {};

  CombineCall() {
    for (int split = 0; split < kSplits; ++split) {
      for (int row = 0; row < kRows; ++row) {
        lse_partial[split][row] = 0.25f * static_cast<float>(row - 3 * split);
        for (int i = 0; i < kDim; ++i) {
          out_partial[split][row][i] = static_cast<float>(7 * i - 5 * row + 31 * split);
        }
      }
    }
  }

  Status run(const Device& device = {}) {
    CombineParams p;
    p.num_splits = kSplits;
    p.batch = p.heads = 1;
    p.rows = kRows;
    p.head_dim_v = kDim;
    p.out_partial = {out_partial, {0, kDim, kDim}};
    p.out_partial_split_stride = kRows * kDim;
    p.lse_partial = {&lse_partial[0][0], {0, 1, 1}};
    p.lse_partial_split_stride = kRows;
    p.out = {out, {0, kDim, kDim}};
    p.lse = {lse, {0, 1, 1}};
    Context context;
    context.device = device;
    return combine(p, context);
  }
};

/// Ends what a test has begun.
struct Ending {
  ~Ending() { EXPECT_TRUE(use_emulator(nullptr).ok()); }
};

}  // namespace

TEST(Emulation, GpuKernelsServeCallsOnTheCpu) {
  CombineCall expected;
  ASSERT_TRUE(expected.run().ok());
  for (const char* arch : {"sm90", "sm100"}) {
    const Ending ending;
    const Status begun = use_emulator(arch);
    ASSERT_TRUE(begun.ok()) << begun.message;
    EXPECT_TRUE(emulating());
    CombineCall call;
    const Status status = call.run();
    ASSERT_TRUE(status.ok()) << status.message;
    for (int row = 0; row < kRows; ++row) {
      EXPECT_NEAR(call.lse[row], expected.lse[row], 1e-6f);
      for (int i = 0; i < kDim; ++i) {
        EXPECT_NEAR(call.out[row][i], expected.out[row][i], 1e-4f) << arch << row << i;
      }
    }
  }
  EXPECT_FALSE(emulating());
}

TEST(Emulation, WhatNoGpuKernelServesIsRefusedWithEveryReason) {
  const Ending ending;
  ASSERT_TRUE(use_emulator("sm100").ok());
  CombineCall call;
  FwdParams p;
  p.batch = p.seqlen_q = p.seqlen_k = p.heads_q = p.heads_k = 1;
  p.head_dim = p.head_dim_v = 384;  // more than any kernel serves
  const Status status = fwd(p, {});
  EXPECT_EQ(status.code, Code::kUnsupported);
  EXPECT_NE(status.message.find("no fwd kernel for this call on emulated sm_100: fa4_fwd_sm100_"),
            std::string::npos)
      << status.message;
}

TEST(Emulation, OneUseAtATime) {
  const Ending ending;
  ASSERT_TRUE(use_emulator("sm90").ok());
  const Status status = use_emulator("sm100");
  EXPECT_EQ(status.code, Code::kRuntime);
  EXPECT_NE(status.message.find("sm90 is in use, got sm100"), std::string::npos) << status.message;
  EXPECT_TRUE(emulating()) << "the first goes on";
}

TEST(Emulation, UnknownArchitecturesChangeNothing) {
  const Status status = use_emulator("sm80");
  EXPECT_EQ(status.code, Code::kInvalidValue);
  EXPECT_EQ(status.message, "arch: must be sm90 or sm100, got sm80");
  EXPECT_FALSE(emulating());
}

TEST(Emulation, OtherDevicesAreRefused) {
  const Ending ending;
  ASSERT_TRUE(use_emulator("sm90").ok());
  const Status status = CombineCall().run({Device::kCuda, 1});
  EXPECT_EQ(status.code, Code::kInvalidValue);
  EXPECT_EQ(status.message, "tensors must be on cpu while the emulator is in use, got cuda:1");
}

TEST(Emulation, KernelsMayTouchNotedMemoryOnly) {
  const Ending ending;
  ASSERT_TRUE(use_emulator("sm90").ok());
  CombineCall call;
  note_memory(&call, sizeof call - sizeof call.lse);
  const Status status = call.run();
  forget_memory();
  EXPECT_EQ(status.code, Code::kRuntime);
  EXPECT_NE(status.message.find("out of bounds"), std::string::npos) << status.message;
  EXPECT_TRUE(call.run().ok());
}

}  // namespace fa4::test
