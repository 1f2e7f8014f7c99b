// Host time of fa4::fwd for a GPU with a driver that does nothing: what the library itself spends.
//
//     fa4_bench_fwd_launch [nanoseconds]   that the driver spends on a tensor map, and on a launch;
//                                          0 (default): its functions return at once
//
// Medians over batches of calls, nanoseconds. The parts are measured each in a loop of its own and
// need not add up to the whole. The last line is of the real driver, where there is one.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "csrc/dispatch/check.h"
#include "csrc/dispatch/gpu.h"
#include "csrc/driver/device.h"
#include "csrc/driver/launch.h"
#include "csrc/driver/tensor_map.h"
#include "tests/driver/fwd_calls.h"

namespace fa4::test {
namespace {

using Clock = std::chrono::steady_clock;

std::chrono::nanoseconds driver_time{0};
thread_local int encodings = 0;

void spend_driver_time() {
  if (driver_time.count() == 0) return;
  const auto end = Clock::now() + driver_time;
  while (Clock::now() < end) {
  }
}

CUresult encode(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  ++encodings;
  spend_driver_time();
  return CUDA_SUCCESS;
}

CUresult launch_kernel(const CUlaunchConfig*, CUfunction, void**, void**) {
  spend_driver_time();
  return CUDA_SUCCESS;
}

/// Nanoseconds of call(i), i = 0, 1, ...: the median over batches.
template <class Call>
double median(Call call) {
  constexpr int kBatches = 2001, kCalls = 100;
  std::vector<double> times(kBatches);
  int index = 0;
  for (double& time : times) {
    const auto begin = Clock::now();
    for (int i = 0; i < kCalls; ++i) call(index++);
    time = std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / kCalls;
  }
  std::nth_element(times.begin(), times.begin() + kBatches / 2, times.end());
  return times[kBatches / 2];
}

/// Ends the program when a call fails: its time would be that of a message.
void expect_ok(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message.c_str());
  std::exit(1);
}

constexpr int kSets = 64;  // of tensors: more than there are maps kept

template <class T>
T* moved(T* data, int set) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(data) + (uintptr_t{1} << 20) * set);
}

/// The same call on other tensors.
FwdParams moved(FwdParams p, int set) {
  p.q.data = moved(p.q.data, set);
  p.k.data = moved(p.k.data, set);
  p.v.data = moved(p.v.data, set);
  p.out.data = moved(p.out.data, set);
  return p;
}

void measure_parts(const FwdParams& params, const Context& context) {
  Place place;
  expect_ok(gpu::describe(context.device, &place));
  const KernelRow* kernel = nullptr;
  expect_ok(select_kernel(request_of(params), place, &kernel));
  TensorMap map;
  driver::Launch request;
  request.threads = 384;
  request.shared_bytes = 200 << 10;
  request.args = &map;

  const auto print = [](const char* what, double time) {
    std::printf("  %-24s%6.0f\n", what, time);
  };
  print("check", median([&](int) { expect_ok(check(params)); }));
  print("describe the device", median([&](int) {
          Place here;
          expect_ok(gpu::describe(context.device, &here));
        }));
  print("select a kernel",
        median([&](int) { expect_ok(select_kernel(request_of(params), place, &kernel)); }));
  print("launch_fwd", median([&](int) { expect_ok(gpu::fwd(*kernel, params, context)); }));
  print("  of it driver::launch",
        median([&](int) { expect_ok(driver::launch(kernel->name, kernel->image, request)); }));
}

void measure(const char* name, const FwdParams& params) {
  FakeDriver fake;
  fake.table.cuTensorMapEncodeTiled = encode;
  fake.table.cuLaunchKernelEx = launch_kernel;
  state.current = driver::test::context(0);  // as under torch
  const Context context{.device = {Device::kCuda, 0}};
  std::vector<FwdParams> sets;
  for (int set = 0; set < kSets; ++set) sets.push_back(moved(params, set));

  expect_ok(fwd(params, context));
  const int maps = encodings;
  const double again = median([&](int) { expect_ok(fwd(params, context)); });
  encodings = 0;
  const double others = median([&](int i) { expect_ok(fwd(sets[i % kSets], context)); });
  std::atomic<bool> done{false};
  std::thread second([&] {
    while (!done) expect_ok(fwd(params, context));
  });
  const double beside = median([&](int) { expect_ok(fwd(params, context)); });
  done = true;
  second.join();
  std::printf(
      "%s: %.0f on the same tensors again, %.0f on others (%d maps to encode), %.0f again beside a "
      "second thread\n",
      name, again, others, maps, beside);
  measure_parts(params, context);
  encodings = 0;
}

driver::TensorMapSpec some_spec(int set) {
  return {.base = moved(kQ, set),
          .rank = 5,
          .size = {128, 1, 4096, 16, 2},
          .stride = {1, 128, 2048, 128, 4096 * 2048},
          .box = {64, 1, 128, 1, 1}};
}

/// Encoding looks at no memory, so any address will do.
void measure_real_driver() {
  const driver::Table* real = nullptr;
  if (Status s = driver::table(&real); !s.ok()) {
    std::printf("real driver: %s\n", s.message.c_str());
    return;
  }
  const driver::ContextGuard current(*real, 0);
  expect_ok(current.status());
  TensorMap map;
  const double time = median(
      [&](int i) { expect_ok(driver::encode_tensor_map("q", some_spec(i % kSets), 0, &map)); });
  std::printf("real driver: %.0f to encode a tensor map, our part included\n", time);
}

}  // namespace
}  // namespace fa4::test

int main(int argc, char** argv) {
  using namespace fa4::test;
  driver_time = std::chrono::nanoseconds(argc > 1 ? std::atoi(argv[1]) : 0);
  const Shape shape{.batch = 2,
                    .seqlen_q = 4096,
                    .seqlen_k = 4096,
                    .heads_q = 16,
                    .heads_k = 4,
                    .head_dim = 128,
                    .head_dim_v = 128};
  measure("dense", dense_call(shape));
  measure("packed", packed_call(shape, 5000, 5000));
  measure_real_driver();
}
