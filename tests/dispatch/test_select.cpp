// Choosing a kernel, and saying why none fits.
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "csrc/dispatch/select.h"

namespace fa4 {

TEST(KernelList, NamesAreUniqueAndImagesArePresent) {
  std::set<std::string> names;
  for (const KernelRow& kernel : kernel_list()) {
    EXPECT_TRUE(names.insert(kernel.name).second) << kernel.name;
    if (kernel.target == Target::kCpu) continue;
    ASSERT_GT(kernel.image.cubin_bytes(), 4u) << kernel.name;
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(kernel.image.cubin_begin), 4),
              "\x7f"
              "ELF");
    ASSERT_GT(kernel.image.ptx_bytes(), 1u) << kernel.name;
    const std::string ptx(reinterpret_cast<const char*>(kernel.image.ptx_begin));
    EXPECT_EQ(ptx.size() + 1, kernel.image.ptx_bytes()) << "PTX is text that ends with a zero byte";
    EXPECT_NE(ptx.find(std::string(".entry ") + kernel.name + "("), std::string::npos);
  }
}

TEST(Select, CpuServesItsOps) {
  const KernelRow* kernel = nullptr;
  ASSERT_TRUE(select_kernel({Op::kFwd, DType::kBFloat16, 128, 128, 0}, {}, &kernel).ok());
  EXPECT_STREQ(kernel->name, "fwd_cpu");
  ASSERT_TRUE(
      select_kernel({Op::kBwd, DType::kFloat32, 64, 32, bit(Feature::kDlse)}, {}, &kernel).ok());
  EXPECT_STREQ(kernel->name, "bwd_cpu");
}

TEST(Select, EveryReasonIsGiven) {
  const KernelRow* kernel = nullptr;
  const Status status =
      select_kernel({Op::kBwd, DType::kFloat32, 264, 512, bit(Feature::kPaged)}, {}, &kernel);
  EXPECT_EQ(status.code, Code::kUnsupported);
  EXPECT_EQ(status.message,
            "no bwd kernel for this call on cpu: bwd_cpu: head_dim is 264 (serves 8..256), "
            "head_dim_v is 512 (serves 8..256), no paged");
}

TEST(Select, KernelsOfOtherPlacesAreNoReasonWhereSomeRunHere) {
  const KernelRow* kernel = nullptr;
  const Request request{Op::kCombine, DType::kBFloat16, 8, 2048, 0};
  EXPECT_EQ(select_kernel(request, {}, &kernel).message,
            "no combine kernel for this call on cpu: combine_cpu: head_dim_v is 2048 (serves "
            "8..1024)");
  const std::string nowhere = select_kernel(request, {false, 8, 6, "sm_86"}, &kernel).message;
  for (const KernelRow& row : kernel_list()) {
    const bool named = nowhere.find(std::string(row.name) + ": runs on ") != std::string::npos;
    EXPECT_EQ(named, row.op == Op::kCombine) << row.name << " in: " << nowhere;
  }
}

TEST(Select, TargetsRunWhereTheyMay) {
  EXPECT_TRUE(target_runs_on(Target::kSm90a, 9, 0));
  EXPECT_FALSE(target_runs_on(Target::kSm90a, 10, 0));
  EXPECT_TRUE(target_runs_on(Target::kSm100f, 10, 0));
  EXPECT_TRUE(target_runs_on(Target::kSm100f, 10, 3));
  EXPECT_FALSE(target_runs_on(Target::kSm100f, 12, 0));
  EXPECT_FALSE(target_runs_on(Target::kCpu, 9, 0));
}

TEST(Select, RequestsNameWhatACallNeeds) {
  FwdParams p;
  p.heads_q = 8;
  p.heads_k = 2;
  p.causal = true;
  p.window_right = 5;  // causal sets it to 0
  p.softcap = 10.0f;
  p.num_splits = 2;
  EXPECT_EQ(request_of(p).features, bit(Feature::kGqa) | bit(Feature::kCausal) |
                                        bit(Feature::kSoftcap) | bit(Feature::kSplits));
  p.num_splits = 0;  // the kernel's choice, for which it need not be able to split
  EXPECT_EQ(request_of(p).features,
            bit(Feature::kGqa) | bit(Feature::kCausal) | bit(Feature::kSoftcap));
  p = {};
  p.heads_q = p.heads_k = 1;
  p.window_left = 3;
  EXPECT_EQ(request_of(p).features, bit(Feature::kWindow));
}

}  // namespace fa4
