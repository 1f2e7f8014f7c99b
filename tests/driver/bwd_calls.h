// Backward calls for launch tests, and what became of them in the fake driver.
#pragma once

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "csrc/common/bwd_args.h"
#include "tests/driver/fwd_calls.h"

namespace fa4::test {

// Nothing is read through these addresses.
void* const kDq = reinterpret_cast<void*>(0x110000);
void* const kDk = reinterpret_cast<void*>(0x120000);
void* const kDv = reinterpret_cast<void*>(0x130000);
void* const kDsink = reinterpret_cast<void*>(0x140000);
const void* const kDout = reinterpret_cast<const void*>(0x150000);
const void* const kSink = reinterpret_cast<const void*>(0x160000);
void* const kWorkspace = reinterpret_cast<void*>(0x1000000);

/// A launch that the fake driver was asked for.
struct Launched {
  Op op;
  CUlaunchConfig config;
  std::vector<char> args;

  template <class Args>
  Args as() const {
    Args result;
    EXPECT_EQ(args.size(), sizeof result);
    std::memcpy(&result, args.data(), sizeof result);
    return result;
  }
};
inline std::vector<Launched> launched;

/// A fake driver that tells the launches of a backward apart.
struct BwdDriver : FakeDriver {
  BwdDriver() {
    launched.clear();
    table.cuLaunchKernelEx = [](const CUlaunchConfig* config, CUfunction function, void** params,
                                void** extra) {
      Op op = Op::kBwd;
      size_t bytes = sizeof(BwdArgs);
      const std::pair<Op, size_t> parts[] = {{Op::kBwdPrepare, sizeof(BwdPrepareArgs)},
                                             {Op::kBwdFinish, sizeof(BwdFinishArgs)},
                                             {Op::kBwdSink, sizeof(BwdSinkArgs)}};
      for (const auto& [part, part_bytes] : parts) {
        for (Target target : {Target::kSm90a, Target::kSm100f}) {
          for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
            const KernelRow* const kernel = find_kernel(part, target, dtype);
            if (kernel == nullptr) continue;
            const void* code = kernel->image.cubin_begin;
            if (code == static_cast<void*>(function)) op = part, bytes = part_bytes;
          }
        }
      }
      const char* first = static_cast<const char*>(params[0]);
      launched.push_back({op, *config, {first, first + bytes}});
      static const driver::Table plain = driver::test::make_fake_table();
      return plain.cuLaunchKernelEx(config, function, params, extra);
    };
  }
};

inline BwdParams backward_of(const FwdParams& fwd) {
  BwdParams p;
  static_cast<Problem&>(p) = fwd;
  p.q = fwd.q;
  p.k = fwd.k;
  p.v = fwd.v;
  p.out = {fwd.out.data, fwd.out.stride};
  p.dout = {kDout, fwd.out.stride};
  p.lse = {fwd.lse.data, fwd.lse.stride};
  p.dq = {kDq, fwd.q.stride};
  p.dk = {kDk, fwd.k.stride};
  p.dv = {kDv, fwd.v.stride};
  p.workspace = kWorkspace;
  p.workspace_bytes = int64_t{1} << 60;
  return p;
}
inline BwdParams dense(const Shape& shape) {
  return backward_of(dense_call(shape));
}
inline BwdParams packed(const Shape& shape, int64_t total_q, int64_t total_k) {
  return backward_of(packed_call(shape, total_q, total_k));
}

}  // namespace fa4::test
