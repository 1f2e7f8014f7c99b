// The C++ interface of the emulator: loading PTX, launching kernels, and what failures report.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "flash_attn4/emulator.h"

namespace fa4::emulator::test {
namespace {

std::string ptx(const char* kernels) {
  return std::string(".version 8.5\n.target sm_90a\n.address_size 64\n") + kernels;
}

/// "line 12": where the text first stands in the PTX.
std::string line_of(const std::string& text, const char* what) {
  const size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return "line " +
         std::to_string(1 + std::count(text.begin(), text.begin() + static_cast<long>(at), '\n'));
}

void expect_contains(const Status& status, Code code, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code, code) << status.message;
  for (const std::string& part : parts)
    EXPECT_NE(status.message.find(part), std::string::npos)
        << "no \"" << part << "\" in: " << status.message;
}

/// A parameter block of these values, each aligned to its size.
template <class... T>
std::vector<uint8_t> parameters(const T&... values) {
  std::vector<uint8_t> block;
  const auto append = [&block](const void* value, size_t bytes) {
    block.resize((block.size() + bytes - 1) / bytes * bytes + bytes);
    std::memcpy(block.data() + block.size() - bytes, value, bytes);
  };
  (append(&values, sizeof values), ...);
  return block;
}

/// A module of one kernel `k`, and how to launch it.
struct Program {
  explicit Program(const char* kernels) : text(ptx(kernels)) {
    const Status status = Module::load(text, "kernel.ptx", &module);
    EXPECT_TRUE(status.ok()) << status.message;
    launch.kernel = "k";
    launch.block = {32, 1, 1};
  }

  Status run(const std::vector<uint8_t>& block = {}) {
    if (module == nullptr) return Status::runtime("the module was not loaded");
    launch.parameters = block;
    return module->launch(launch, options, &result);
  }

  std::string text;
  std::unique_ptr<Module> module;
  Launch launch;
  Options options;
  Result result;
};

#define EXPECT_OK(expression)                                       \
  do {                                                              \
    const Status expect_ok_status = (expression);                   \
    EXPECT_TRUE(expect_ok_status.ok()) << expect_ok_status.message; \
  } while (false)

template <class T>
Region region(const std::vector<T>& values) {
  return {values.data(), values.size() * sizeof(T)};
}

// ---- Loading ------------------------------------------------------------------------------------

Status load_status(const std::string& text) {
  std::unique_ptr<Module> module;
  const Status status = Module::load(text, "kernel.ptx", &module);
  EXPECT_EQ(module != nullptr, status.ok());
  return status;
}

TEST(LoadModule, TextThatIsNoPtx) {
  expect_contains(load_status("__global__ void k() {}\n"), Code::kInvalidValue,
                  {"kernel.ptx:1: ", "__global__ void k() {}"});
}

TEST(LoadModule, UnknownInstructionNamesFileLineAndText) {
  const std::string text =
      ptx(".visible .entry k()\n{\n.reg .b32 %r<3>;\nmov.u32 %r1, 1;\n"
          "frobnicate.u32 %r2, %r1;\nret;\n}\n");
  expect_contains(load_status(text), Code::kUnsupported,
                  {"kernel.ptx:8: ", "frobnicate.u32 %r2, %r1;"});
}

TEST(LoadModule, KernelsAndTheirParameters) {
  Program program(R"(
.visible .entry k(
  .param .u64 k_param_0,
  .param .u8 k_param_1,
  .param .f32 k_param_2,
  .param .align 64 .b8 k_param_3[128],
  .param .u16 k_param_4)
.maxntid 256, 1, 1
{
  .shared .align 16 .b8 buffer[48];
  .reg .b32 %r<3>;
  mov.u32 %r1, buffer;
  st.shared.u32 [%r1], 7;
  ret;
}
.visible .entry other()
.reqntid 64, 2, 1
.reqnctapercluster 2, 1, 1
{
  ret;
}
)");
  ASSERT_NE(program.module, nullptr);
  EXPECT_EQ(program.module->target(), "sm_90a");
  ASSERT_EQ(program.module->kernels().size(), 2u);
  const KernelInfo& kernel = program.module->kernels()[0];
  EXPECT_EQ(kernel.name, "k");
  ASSERT_EQ(kernel.parameters.size(), 5u);
  const size_t offsets[] = {0, 8, 12, 64, 192}, bytes[] = {8, 1, 4, 128, 2};
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(kernel.parameters[i].name, "k_param_" + std::to_string(i));
    EXPECT_EQ(kernel.parameters[i].offset, offsets[i]) << i;
    EXPECT_EQ(kernel.parameters[i].bytes, bytes[i]) << i;
  }
  EXPECT_EQ(kernel.parameters[3].align, 64u);
  EXPECT_EQ(kernel.parameter_bytes, 194u);
  EXPECT_EQ(kernel.static_shared_bytes, 48u);
  EXPECT_EQ(kernel.max_threads.x, 256u);
  EXPECT_EQ(kernel.required_threads.x, 0u);
  EXPECT_EQ(kernel.instructions, 3u);
  EXPECT_EQ(kernel.forms.at("st.shared.u32"), 1u);
  const KernelInfo& other = program.module->kernels()[1];
  EXPECT_EQ(other.name, "other");
  EXPECT_EQ(other.parameter_bytes, 0u);
  EXPECT_EQ(other.required_threads.x, 64u);
  EXPECT_EQ(other.required_threads.y, 2u);
  EXPECT_EQ(other.required_cluster.x, 2u);
}

// ---- Kernels that end ---------------------------------------------------------------------------

TEST(LaunchKernel, VectorAddWithATail) {
  Program program(R"(
.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 sum, .param .u32 count)
{
  .reg .pred %p<2>;
  .reg .b32 %r<6>;
  .reg .b64 %rd<8>;
  .reg .f32 %f<4>;
  ld.param.u64 %rd1, [a];
  ld.param.u64 %rd2, [b];
  ld.param.u64 %rd3, [sum];
  ld.param.u32 %r1, [count];
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %tid.x;
  mad.lo.s32 %r5, %r2, %r3, %r4;
  setp.ge.u32 %p1, %r5, %r1;
  @%p1 bra DONE;
  mul.wide.u32 %rd4, %r5, 4;
  add.s64 %rd5, %rd1, %rd4;
  add.s64 %rd6, %rd2, %rd4;
  add.s64 %rd7, %rd3, %rd4;
  ld.global.f32 %f1, [%rd5];
  ld.global.f32 %f2, [%rd6];
  add.f32 %f3, %f1, %f2;
  st.global.f32 [%rd7], %f3;
DONE:
  ret;
}
)");
  std::vector<float> a(200), b(200), sum(256, -1);
  for (size_t i = 0; i < a.size(); ++i) {
    a[i] = static_cast<float>(i) * 0.25f;
    b[i] = 1000 - static_cast<float>(i);
  }
  program.launch.grid = {2, 1, 1};
  program.launch.block = {128, 1, 1};
  program.launch.memory = {region(a), region(b), {sum.data(), 200 * sizeof(float)}};
  EXPECT_OK(program.run(parameters(a.data(), b.data(), sum.data(), uint32_t{200})));
  for (size_t i = 0; i < sum.size(); ++i) EXPECT_EQ(sum[i], i < 200 ? a[i] + b[i] : -1) << i;
  EXPECT_EQ(program.result.statistics.clusters, 2u);
  EXPECT_GT(program.result.statistics.warp_instructions, 7u * 18);
  EXPECT_NE(program.result.json().find("\"clusters\": 2"), std::string::npos);
}

TEST(LaunchKernel, LoopsWhoseCountDiffersPerLane) {
  // out[t] = sum of i * i for i < t % 7 * t, two nested loops.
  Program program(R"(
.visible .entry k(.param .u64 out)
{
  .reg .pred %p<3>;
  .reg .b32 %r<9>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [out];
  mov.u32 %r1, %tid.x;
  rem.u32 %r2, %r1, 7;
  mov.u32 %r3, 0;
  mov.u32 %r4, 0;
OUTER:
  setp.ge.u32 %p1, %r4, %r2;
  @%p1 bra STORE;
  mov.u32 %r5, 0;
INNER:
  setp.ge.u32 %p2, %r5, %r1;
  @%p2 bra NEXT;
  mad.lo.u32 %r6, %r4, %r1, %r5;
  mad.lo.u32 %r3, %r6, %r6, %r3;
  add.u32 %r5, %r5, 1;
  bra INNER;
NEXT:
  add.u32 %r4, %r4, 1;
  bra OUTER;
STORE:
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
  st.global.u32 [%rd3], %r3;
  ret;
}
)");
  for (Policy policy : {Policy::kEager, Policy::kLazy, Policy::kRandom}) {
    std::vector<uint32_t> out(48);
    program.launch.block = {48, 1, 1};  // the second warp is half full
    program.options.policy = policy;
    EXPECT_OK(program.run(parameters(out.data())));
    for (uint32_t t = 0; t < out.size(); ++t) {
      uint32_t expected = 0;
      for (uint32_t i = 0; i < t % 7 * t; ++i) expected += i * i;
      EXPECT_EQ(out[t], expected) << t;
    }
  }
}

constexpr const char* kReversal = R"(
.visible .entry k(.param .u64 out)
{
  .shared .align 4 .b8 buffer[512];
  .reg .b32 %r<8>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [out];
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, buffer;
  shl.b32 %r3, %r1, 2;
  add.u32 %r4, %r2, %r3;
  st.shared.u32 [%r4], %r1;
  bar.sync 0;
  sub.u32 %r5, %r2, %r3;
  ld.shared.u32 %r6, [%r5+508];
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
  st.global.u32 [%rd3], %r6;
  ret;
}
)";

TEST(LaunchKernel, SharedMemoryReversedAcrossABarrier) {
  Program program(kReversal);
  for (Policy policy : {Policy::kEager, Policy::kRandom})
    for (uint64_t seed = 0; seed < 4; ++seed) {
      std::vector<uint32_t> out(128);
      program.launch.block = {128, 1, 1};
      program.options.policy = policy;
      program.options.seed = seed;
      EXPECT_OK(program.run(parameters(out.data())));
      for (uint32_t t = 0; t < 128; ++t) EXPECT_EQ(out[t], 127 - t);
    }
}

TEST(LaunchKernel, ShufflesAndVotes) {
  Program program(R"(
.visible .entry k(.param .u64 out)
{
  .reg .pred %p<8>;
  .reg .b32 %r<16>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [out];
  mov.u32 %r1, %laneid;
  mul.lo.u32 %r2, %r1, 10;
  shfl.sync.bfly.b32 %r3, %r2, 5, 31, -1;
  shfl.sync.up.b32 %r4|%p1, %r2, 3, 0, -1;
  selp.u32 %r5, %r4, 777, %p1;
  shfl.sync.down.b32 %r6, %r2, 4, 31, -1;
  shfl.sync.idx.b32 %r7, %r2, 9, 31, -1;
  and.b32 %r8, %r1, 3;
  setp.eq.u32 %p2, %r8, 1;
  vote.sync.ballot.b32 %r9, %p2, -1;
  vote.sync.any.pred %p3, %p2, -1;
  vote.sync.all.pred %p4, %p2, -1;
  selp.u32 %r10, 1, 0, %p3;
  selp.u32 %r11, 2, 0, %p4;
  or.b32 %r12, %r10, %r11;
  redux.sync.max.u32 %r13, %r2, -1;
  mul.wide.u32 %rd2, %r1, 28;
  add.s64 %rd3, %rd1, %rd2;
  st.global.u32 [%rd3], %r3;
  st.global.u32 [%rd3+4], %r5;
  st.global.u32 [%rd3+8], %r6;
  st.global.u32 [%rd3+12], %r7;
  st.global.u32 [%rd3+16], %r9;
  st.global.u32 [%rd3+20], %r12;
  st.global.u32 [%rd3+24], %r13;
  ret;
}
)");
  std::vector<uint32_t> out(32 * 7);
  EXPECT_OK(program.run(parameters(out.data())));
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t* got = &out[lane * 7];
    EXPECT_EQ(got[0], (lane ^ 5) * 10) << lane;
    EXPECT_EQ(got[1], lane >= 3 ? (lane - 3) * 10 : 777) << lane;
    EXPECT_EQ(got[2], lane < 28 ? (lane + 4) * 10 : lane * 10) << lane;
    EXPECT_EQ(got[3], 90u) << lane;
    EXPECT_EQ(got[4], 0x22222222u) << lane;
    EXPECT_EQ(got[5], 1u) << lane;
    EXPECT_EQ(got[6], 310u) << lane;
  }
}

TEST(LaunchKernel, AtomicsOfManyBlocks) {
  // Every thread takes a ticket and leaves its number there; the greatest number is kept as well.
  Program program(R"(
.visible .entry k(.param .u64 counters, .param .u64 tickets)
{
  .reg .b32 %r<8>;
  .reg .b64 %rd<6>;
  ld.param.u64 %rd1, [counters];
  ld.param.u64 %rd2, [tickets];
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.u32 %r4, %r1, %r2, %r3;
  atom.global.add.u32 %r5, [%rd1], 1;
  red.global.max.u32 [%rd1+4], %r4;
  mul.wide.u32 %rd3, %r5, 4;
  add.s64 %rd4, %rd2, %rd3;
  st.global.u32 [%rd4], %r4;
  ret;
}
)");
  constexpr uint32_t kThreads = 64 * 96;
  for (int threads : {1, 2})
    for (Order order : {Order::kAscending, Order::kDescending, Order::kRandom}) {
      std::vector<uint32_t> counters(2), tickets(kThreads, UINT32_MAX), expected(kThreads);
      program.launch.grid = {64, 1, 1};
      program.launch.block = {96, 1, 1};
      program.launch.memory = {region(counters), region(tickets)};
      program.options.threads = threads;
      program.options.order = order;
      EXPECT_OK(program.run(parameters(counters.data(), tickets.data())));
      EXPECT_EQ(counters[0], kThreads);
      EXPECT_EQ(counters[1], kThreads - 1);
      std::sort(tickets.begin(), tickets.end());
      std::iota(expected.begin(), expected.end(), 0u);
      EXPECT_EQ(tickets, expected);
    }
}

// ---- Launches that are refused ------------------------------------------------------------------

TEST(LaunchKernel, WrongLaunchesNameWhatIsExpected) {
  Program program(R"(
.visible .entry k(.param .u64 out, .param .u32 count)
.reqntid 64, 1, 1
{
  ret;
}
)");
  program.launch.block = {64, 1, 1};
  EXPECT_OK(program.run(parameters(uint64_t{0}, uint32_t{0})));
  expect_contains(program.run(parameters(uint64_t{0})), Code::kInvalidValue,
                  {"parameters: ", "12 bytes", "got 8"});
  program.launch.block = {32, 2, 1};
  expect_contains(program.run(parameters(uint64_t{0}, uint32_t{0})), Code::kInvalidValue,
                  {"block: ", "(64, 1, 1)", "got (32, 2, 1)"});
  program.launch.block = {64, 1, 1};
  program.launch.kernel = "missing";
  expect_contains(program.run(parameters(uint64_t{0}, uint32_t{0})), Code::kInvalidValue,
                  {"kernel: ", "missing"});
}

// ---- Kernels that fail --------------------------------------------------------------------------

TEST(LaunchKernel, GlobalMemoryOutOfBounds) {
  Program program(R"(
.visible .entry k(.param .u64 out)
{
  .reg .b32 %r<3>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [out];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
  st.global.u32 [%rd3], %r1;
  ret;
}
)");
  std::vector<uint32_t> out(40);
  program.launch.memory = {{out.data(), 30 * sizeof(uint32_t)}};
  expect_contains(program.run(parameters(out.data())), Code::kRuntime,
                  {"global memory: 4 bytes", "120 bytes into a region of 120 bytes",
                   line_of(program.text, "st.global"), "st.global.u32 [%rd3], %r1;", "in kernel k",
                   "block (0, 0, 0), warp 0"});
  EXPECT_EQ(out[30], 0u) << "nothing is written out of bounds";
  program.launch.memory = {region(out)};
  EXPECT_OK(program.run(parameters(out.data())));
  EXPECT_EQ(out[31], 31u);
}

TEST(LaunchKernel, SharedMemoryOutOfBounds) {
  Program program(R"(
.visible .entry k(.param .u32 offset)
{
  .shared .align 16 .b8 buffer[64];
  .reg .b32 %r<4>;
  ld.param.u32 %r1, [offset];
  mov.u32 %r2, buffer;
  add.u32 %r3, %r2, %r1;
  st.shared.u32 [%r3], %r1;
  ret;
}
)");
  EXPECT_OK(program.run(parameters(uint32_t{60})));
  for (uint32_t offset : {64u, uint32_t(-4)})
    expect_contains(program.run(parameters(offset)), Code::kRuntime,
                    {"shared memory: 4 bytes", "out of bounds", "0x400 to 0x440",
                     line_of(program.text, "st.shared")});
  program.launch.dynamic_shared_bytes = 16;
  EXPECT_OK(program.run(parameters(uint32_t{64})));
}

TEST(LaunchKernel, LocalMemoryOutOfBounds) {
  Program program(R"(
.visible .entry k(.param .u64 offset)
{
  .local .align 8 .b8 stack[32];
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [offset];
  mov.u64 %rd2, stack;
  add.s64 %rd3, %rd2, %rd1;
  st.local.u64 [%rd3], %rd1;
  ret;
}
)");
  EXPECT_OK(program.run(parameters(uint64_t{24})));
  expect_contains(
      program.run(parameters(uint64_t{32})), Code::kRuntime,
      {"local memory: 8 bytes", "out of bounds", "32 bytes", line_of(program.text, "st.local")});
}

TEST(LaunchKernel, SharedMemoryThatWasNeverWritten) {
  Program program(kReversal);
  std::vector<uint32_t> out(128);
  program.launch.block = {96, 1, 1};  // the last 32 words are read, and nobody writes them
  expect_contains(program.run(parameters(out.data())), Code::kRuntime,
                  {"shared memory at 0x5fc", "never written", line_of(program.text, "ld.shared")});
  program.options.check_uninitialized = false;
  EXPECT_OK(program.run(parameters(out.data())));
  EXPECT_EQ(out[95], 32u);
}

TEST(LaunchKernel, Trap) {
  Program program(R"(
.visible .entry k()
{
  .reg .pred %p<2>;
  .reg .b32 %r<2>;
  mov.u32 %r1, %ctaid.x;
  setp.eq.u32 %p1, %r1, 5;
  @%p1 trap;
  ret;
}
)");
  program.launch.grid = {5, 1, 1};
  EXPECT_OK(program.run());
  program.launch.grid = {6, 1, 1};
  expect_contains(program.run(), Code::kRuntime,
                  {"trap", line_of(program.text, "trap"), "block (5, 0, 0)"});
}

TEST(LaunchKernel, BarrierThatAWarpNeverReaches) {
  Program program(R"(
.visible .entry k()
{
  .reg .pred %p<2>;
  .reg .b32 %r<2>;
  mov.u32 %r1, %tid.x;
  setp.ge.u32 %p1, %r1, 64;
  @%p1 bra DONE;
  bar.sync 3, 96;
DONE:
  ret;
}
)");
  program.launch.block = {96, 1, 1};
  const Status status = program.run();
  expect_contains(status, Code::kRuntime,
                  {"deadlock", "warp 0", "warp 1", line_of(program.text, "bar.sync 3"),
                   "bar.sync 3, 96;", "barrier 3: 64 of 96 threads"});
  EXPECT_EQ(status.message.find("warp 2"), std::string::npos) << "it has exited, it does not wait";
}

TEST(LaunchKernel, MbarrierThatNobodyArrivesAt) {
  Program program(R"(
.visible .entry k()
{
  .shared .align 8 .b64 barriers[2];
  .reg .pred %p<3>;
  .reg .b32 %r<4>;
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, barriers;
  setp.ne.u32 %p1, %r1, 0;
  @%p1 bra READY;
  mbarrier.init.shared::cta.b64 [%r2+8], 2;
  mbarrier.arrive.shared::cta.b64 _, [%r2+8];
READY:
  bar.sync 0;
WAIT:
  mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2+8], 0;
  @!%p2 bra WAIT;
  ret;
}
)");
  program.launch.block = {64, 1, 1};
  for (Policy policy : {Policy::kEager, Policy::kLazy, Policy::kRandom}) {
    program.options.policy = policy;
    expect_contains(program.run(), Code::kRuntime,
                    {"deadlock", "warp 0", "warp 1", line_of(program.text, "mbarrier.try_wait"),
                     "mbarrier 0x408", "phase 0", "1 of 2 arrivals"});
  }
}

TEST(LaunchKernel, EndlessLoopsAreBounded) {
  Program program(R"(
.visible .entry k(.param .u64 flag)
{
  .reg .pred %p<2>;
  .reg .b32 %r<2>;
  .reg .b64 %rd<2>;
  ld.param.u64 %rd1, [flag];
POLL:
  ld.volatile.global.u32 %r1, [%rd1];
  setp.eq.u32 %p1, %r1, 0;
  @%p1 bra POLL;
  ret;
}
)");
  uint32_t flag = 0;
  program.options.stall_steps = 300'000;
  expect_contains(program.run(parameters(&flag)), Code::kRuntime, {"hung", "300000", "warp 0"});
  program.options.stall_steps = Options{}.stall_steps;
  program.options.max_steps = 500'000;
  expect_contains(program.run(parameters(&flag)), Code::kRuntime, {"max_steps", "500000"});
  flag = 1;
  EXPECT_OK(program.run(parameters(&flag)));
}

}  // namespace
}  // namespace fa4::emulator::test
