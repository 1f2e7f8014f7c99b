// The driver table of the emulator: devices, contexts, loading, launching, and what it says of failures.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <thread>

#include "csrc/driver/device.h"
#include "csrc/driver/launch.h"
#include "csrc/emulator/driver.h"

namespace fa4::emulator::test {

namespace {

// fill(out, first): out[thread] = first + thread, for one block.
// staged(args): the same through dynamic shared memory, parameters in one struct.
constexpr char kPtx[] = R"(
.version 8.8
.target sm_90a
.address_size 64

.extern .shared .align 16 .b8 staging[];

.visible .entry fill(.param .u64 fill_param_0, .param .u32 fill_param_1)
{
  .reg .b32 %r<4>;
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [fill_param_0];
  ld.param.u32 %r1, [fill_param_1];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r2, %tid.x;
  add.s32 %r3, %r1, %r2;
  mul.wide.u32 %rd3, %r2, 4;
  add.s64 %rd4, %rd2, %rd3;
  st.global.u32 [%rd4], %r3;
  ret;
}

.visible .entry staged(.param .align 8 .b8 staged_param_0[16])
{
  .reg .b32 %r<7>;
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [staged_param_0];
  ld.param.u32 %r1, [staged_param_0+8];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r2, %tid.x;
  add.s32 %r3, %r1, %r2;
  mov.u32 %r4, staging;
  shl.b32 %r5, %r2, 2;
  add.s32 %r5, %r4, %r5;
  st.shared.u32 [%r5], %r3;
  ld.shared.u32 %r6, [%r5];
  mul.wide.u32 %rd3, %r2, 4;
  add.s64 %rd4, %rd2, %rd3;
  st.global.u32 [%rd4], %r6;
  ret;
}
)";

constexpr uint32_t kThreads = 64;

const driver::Table& sm90() {
  return *fa4_emulator_table("sm90");
}

/// cuGetErrorString's text.
std::string text_of(CUresult code) {
  const char* text = nullptr;
  sm90().cuGetErrorString(code, &text);
  return text == nullptr ? "" : text;
}

void enter_context() {
  CUcontext context = nullptr;
  ASSERT_EQ(sm90().cuDevicePrimaryCtxRetain(&context, 0), CUDA_SUCCESS);
  ASSERT_EQ(sm90().cuCtxSetCurrent(context), CUDA_SUCCESS);
}

CUresult load(const driver::Table& table, const char* text, CUlibrary* library) {
  return table.cuLibraryLoadData(library, text, nullptr, nullptr, 0, nullptr, nullptr, 0);
}

CUkernel kernel_named(const char* name) {
  CUlibrary library = nullptr;
  CUkernel kernel = nullptr;
  EXPECT_EQ(load(sm90(), kPtx, &library), CUDA_SUCCESS) << text_of(CUDA_ERROR_INVALID_PTX);
  EXPECT_EQ(sm90().cuLibraryGetKernel(&kernel, library, name), CUDA_SUCCESS);
  return kernel;
}

CUlaunchConfig config_of(unsigned threads) {
  CUlaunchConfig config{};
  config.gridDimX = config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = threads;
  config.blockDimY = config.blockDimZ = 1;
  return config;
}

/// fill with `first` into `out`.
CUresult launch_fill(const CUlaunchConfig& config, uint32_t* out, uint32_t first) {
  void* params[] = {&out, &first};
  const auto function = reinterpret_cast<CUfunction>(kernel_named("fill"));
  return sm90().cuLaunchKernelEx(&config, function, params, nullptr);
}

CUresult launch_with(CUlaunchAttribute attribute) {
  uint32_t out[kThreads];
  CUlaunchConfig config = config_of(kThreads);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return launch_fill(config, out, 0);
}

struct StagedArgs {
  uint32_t* out;
  uint32_t first;
};

CUresult launch_staged(CUkernel kernel, uint32_t* out, unsigned shared_bytes) {
  StagedArgs args{out, 5};
  void* params[] = {&args};
  CUlaunchConfig config = config_of(kThreads);
  config.sharedMemBytes = shared_bytes;
  return sm90().cuLaunchKernelEx(&config, reinterpret_cast<CUfunction>(kernel), params, nullptr);
}

}  // namespace

TEST(EmulatorDriver, TablesAreNamedByArchitecture) {
  ASSERT_NE(fa4_emulator_table("sm90"), nullptr);
  ASSERT_NE(fa4_emulator_table("sm100"), nullptr);
  EXPECT_NE(fa4_emulator_table("sm90"), fa4_emulator_table("sm100"));
  EXPECT_EQ(fa4_emulator_table("sm80"), nullptr);
  EXPECT_EQ(fa4_emulator_table(nullptr), nullptr);
  EXPECT_TRUE(sm90().takes_ptx);
#define FA4_EXPECT_FUNCTION(name) EXPECT_NE(sm90().name, nullptr) << #name;
  FA4_DRIVER_FUNCTIONS(FA4_EXPECT_FUNCTION)
#undef FA4_EXPECT_FUNCTION
}

TEST(EmulatorDriver, OneDevicePerTable) {
  struct Expectation {
    const char *arch, *name;
    int major, sms;
  };
  for (const auto& [arch, name, major, sms] :
       {Expectation{"sm90", "Emulated SM90", 9, 132}, {"sm100", "Emulated SM100", 10, 148}}) {
    driver::replace_table(fa4_emulator_table(arch));
    driver::DeviceInfo info;
    int devices = 0;
    EXPECT_TRUE(driver::device_count(&devices).ok());
    EXPECT_EQ(devices, 1);
    EXPECT_TRUE(driver::device_info(0, &info).ok());
    EXPECT_EQ(info.name, name);
    EXPECT_EQ(info.major, major);
    EXPECT_EQ(info.minor, 0);
    EXPECT_EQ(info.sms, sms);
    driver::replace_table(nullptr);
  }
  int bytes = 0, clusters = 0;
  sm90().cuDeviceGetAttribute(&bytes, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 0);
  sm90().cuDeviceGetAttribute(&clusters, CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH, 0);
  EXPECT_EQ(bytes, 232448);
  EXPECT_EQ(clusters, 1);
}

TEST(EmulatorDriver, UnknownDevicesAndAttributesAreNamed) {
  CUdevice device = 0;
  EXPECT_EQ(sm90().cuDeviceGet(&device, 1), CUDA_ERROR_INVALID_DEVICE);
  EXPECT_EQ(text_of(CUDA_ERROR_INVALID_DEVICE),
            "cuDeviceGet: device: must be 0, the only emulated one, got 1");
  int value = 0;
  EXPECT_EQ(sm90().cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT, 0),
            CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(text_of(CUDA_ERROR_INVALID_VALUE),
            "cuDeviceGetAttribute: attribute: must be one the emulator knows, got 17");
  char name[8];
  EXPECT_EQ(sm90().cuDeviceGetName(name, sizeof name, 0), CUDA_SUCCESS);
  EXPECT_STREQ(name, "Emulate") << "cut to the buffer";
}

TEST(EmulatorDriver, ErrorsHaveNamesAndTheThreadsOwnText) {
  const char* name = nullptr;
  EXPECT_EQ(sm90().cuGetErrorName(CUDA_ERROR_LAUNCH_FAILED, &name), CUDA_SUCCESS);
  EXPECT_STREQ(name, "CUDA_ERROR_LAUNCH_FAILED");
  EXPECT_EQ(sm90().cuGetErrorName(static_cast<CUresult>(12345), &name), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(name, nullptr);
  EXPECT_EQ(sm90().cuInit(3), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(text_of(CUDA_ERROR_INVALID_VALUE), "cuInit: flags: must be 0, got 3");
  EXPECT_EQ(text_of(CUDA_ERROR_NOT_FOUND), "named symbol not found");
  EXPECT_EQ(text_of(CUDA_SUCCESS), "no error");
  std::thread([] { EXPECT_EQ(text_of(CUDA_ERROR_INVALID_VALUE), "invalid argument"); }).join();
}

TEST(EmulatorDriver, ContextsBelongToThreads) {
  enter_context();
  CUdevice device = 7;
  EXPECT_EQ(sm90().cuCtxGetDevice(&device), CUDA_SUCCESS);
  EXPECT_EQ(device, 0);
  std::thread([] {
    uint32_t out[kThreads];
    CUdevice device = 0;
    EXPECT_EQ(sm90().cuCtxGetDevice(&device), CUDA_ERROR_INVALID_CONTEXT);
    EXPECT_EQ(launch_fill(config_of(kThreads), out, 0), CUDA_ERROR_INVALID_CONTEXT);
    EXPECT_EQ(text_of(CUDA_ERROR_INVALID_CONTEXT),
              "cuLaunchKernelEx: the calling thread must have a current context, got none");
  }).join();
}

TEST(EmulatorDriver, LoadingSaysWhatIsWrongWithTheImage) {
  CUlibrary library = nullptr;
  EXPECT_EQ(load(sm90(), "\177ELF\2\1\1", &library), CUDA_ERROR_INVALID_IMAGE);
  EXPECT_NE(text_of(CUDA_ERROR_INVALID_IMAGE).find("must be PTX text, got machine code"),
            std::string::npos);

  std::string broken = kPtx;
  broken.replace(broken.find("mov.u32 %r2, %tid.x;"), 20, "mov.u32 %r2 %tid.x ;");
  EXPECT_EQ(load(sm90(), broken.c_str(), &library), CUDA_ERROR_INVALID_PTX);
  EXPECT_EQ(text_of(CUDA_ERROR_INVALID_PTX).rfind("fill.ptx:15: ", 0), 0u)
      << text_of(CUDA_ERROR_INVALID_PTX);

  EXPECT_EQ(load(*fa4_emulator_table("sm100"), kPtx, &library), CUDA_ERROR_NO_BINARY_FOR_GPU);
  EXPECT_EQ(text_of(CUDA_ERROR_NO_BINARY_FOR_GPU),
            "fill.ptx: .target: must run on sm_100, got sm_90a");
}

TEST(EmulatorDriver, ArchitectureAndFamilyOfTheTargetDecide) {
  struct Expectation {
    const char *target, *arch;
    bool runs;
  };
  for (const auto& [target, arch, runs] : {Expectation{"sm_90", "sm90", true},
                                           {"sm_90", "sm100", true},
                                           {"sm_90a", "sm90", true},
                                           {"sm_100a", "sm100", true},
                                           {"sm_100f", "sm100", true},
                                           {"sm_100f", "sm90", false},
                                           {"sm_100a", "sm90", false},
                                           {"sm_103a", "sm100", false}}) {
    std::string text = kPtx;
    text.replace(text.find("sm_90a"), 6, target);
    CUlibrary library = nullptr;
    const CUresult result = load(*fa4_emulator_table(arch), text.c_str(), &library);
    EXPECT_EQ(result == CUDA_SUCCESS, runs) << target << " on " << arch << ": " << text_of(result);
  }
}

TEST(EmulatorDriver, UnknownKernelsAndHandlesAreNamed) {
  CUlibrary library = nullptr;
  CUkernel kernel = nullptr;
  ASSERT_EQ(load(sm90(), kPtx, &library), CUDA_SUCCESS);
  EXPECT_EQ(sm90().cuLibraryGetKernel(&kernel, library, "full"), CUDA_ERROR_NOT_FOUND);
  EXPECT_EQ(text_of(CUDA_ERROR_NOT_FOUND),
            "cuLibraryGetKernel: name: must be one of fill, staged, got full");
  EXPECT_EQ(sm90().cuLibraryGetKernel(&kernel, nullptr, "fill"), CUDA_ERROR_INVALID_HANDLE);
  EXPECT_EQ(
      sm90().cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 0, nullptr, 0),
      CUDA_ERROR_INVALID_HANDLE);
  enter_context();
  const CUlaunchConfig config = config_of(1);
  EXPECT_EQ(sm90().cuLaunchKernelEx(&config, nullptr, nullptr, nullptr), CUDA_ERROR_INVALID_HANDLE);
}

TEST(EmulatorDriver, LaunchAssemblesParametersAndCounts) {
  enter_context();
  take_statistics();
  std::array<uint32_t, kThreads> out{};
  ASSERT_EQ(launch_fill(config_of(kThreads), out.data(), 100), CUDA_SUCCESS)
      << text_of(CUDA_ERROR_LAUNCH_FAILED);
  for (uint32_t i = 0; i < kThreads; ++i) EXPECT_EQ(out[i], 100 + i);
  const Statistics counted = take_statistics();
  EXPECT_EQ(counted.clusters, 1u);
  EXPECT_GE(counted.warp_instructions, 2u * 8u) << "two warps";
  EXPECT_EQ(take_statistics().clusters, 0u);
}

TEST(EmulatorDriver, SharedMemoryBeyond48KiBIsAskedFor) {
  enter_context();
  const CUkernel kernel = kernel_named("staged");
  constexpr auto kAttribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
  std::array<uint32_t, kThreads> out{};
  EXPECT_EQ(launch_staged(kernel, out.data(), 49153), CUDA_ERROR_INVALID_VALUE);
  EXPECT_NE(text_of(CUDA_ERROR_INVALID_VALUE).find("must be at most 49152"), std::string::npos);
  EXPECT_EQ(sm90().cuKernelSetAttribute(kAttribute, 232449, kernel, 0), CUDA_ERROR_INVALID_VALUE);
  EXPECT_NE(text_of(CUDA_ERROR_INVALID_VALUE).find("must lie in 0..232448"), std::string::npos);
  ASSERT_EQ(sm90().cuKernelSetAttribute(kAttribute, 232448, kernel, 0), CUDA_SUCCESS);
  ASSERT_EQ(launch_staged(kernel, out.data(), 232448), CUDA_SUCCESS)
      << text_of(CUDA_ERROR_LAUNCH_FAILED);
  EXPECT_EQ(out[kThreads - 1], 5 + kThreads - 1);
}

TEST(EmulatorDriver, LaunchAttributes) {
  enter_context();
  CUlaunchAttribute attribute{};
  for (const auto id :
       {CU_LAUNCH_ATTRIBUTE_IGNORE, CU_LAUNCH_ATTRIBUTE_COOPERATIVE, CU_LAUNCH_ATTRIBUTE_PRIORITY,
        CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION}) {
    attribute.id = id;
    EXPECT_EQ(launch_with(attribute), CUDA_SUCCESS) << id;
  }
  attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT;
  EXPECT_EQ(launch_with(attribute), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(text_of(CUDA_ERROR_INVALID_VALUE),
            "cuLaunchKernelEx: attribute: must be one the emulator knows, got 7");
}

TEST(EmulatorDriver, Clusters) {
  enter_context();
  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attribute.value.clusterDim = {1, 1, 1};
  EXPECT_EQ(launch_with(attribute), CUDA_SUCCESS);
  attribute.value.clusterDim = {2, 1, 1};
  EXPECT_EQ(launch_with(attribute), CUDA_ERROR_INVALID_VALUE) << "2 does not divide the grid of 1";
  attribute.value.clusterDim = {2, 0, 1};
  EXPECT_EQ(launch_with(attribute), CUDA_ERROR_INVALID_CLUSTER_SIZE);
  attribute.value.clusterDim = {16, 1, 1};
  EXPECT_EQ(launch_with(attribute), CUDA_ERROR_INVALID_CLUSTER_SIZE);
  EXPECT_NE(text_of(CUDA_ERROR_INVALID_CLUSTER_SIZE).find("must have at most 8 CTAs"),
            std::string::npos);

  const CUkernel kernel = kernel_named("fill");
  ASSERT_EQ(sm90().cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH, 2, kernel, 0),
            CUDA_SUCCESS);
  uint32_t out[kThreads];
  uint32_t* address = out;
  uint32_t first = 0;
  void* params[] = {&address, &first};
  CUlaunchConfig config = config_of(kThreads);
  config.gridDimX = 2;
  const auto function = reinterpret_cast<CUfunction>(kernel);
  EXPECT_EQ(sm90().cuLaunchKernelEx(&config, function, params, nullptr), CUDA_SUCCESS);
  attribute.value.clusterDim = {1, 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  EXPECT_EQ(sm90().cuLaunchKernelEx(&config, function, params, nullptr),
            CUDA_ERROR_INVALID_CLUSTER_SIZE);
}

TEST(EmulatorDriver, MissingParametersAreNamed) {
  enter_context();
  const CUlaunchConfig config = config_of(kThreads);
  const auto function = reinterpret_cast<CUfunction>(kernel_named("fill"));
  uint32_t* out = nullptr;
  void* params[] = {&out, nullptr};
  EXPECT_EQ(sm90().cuLaunchKernelEx(&config, function, params, nullptr), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(text_of(CUDA_ERROR_INVALID_VALUE),
            "cuLaunchKernelEx: kernelParams[1] of fill: must point to 4 bytes, got null");
  EXPECT_EQ(sm90().cuLaunchKernelEx(&config, function, nullptr, nullptr), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(sm90().cuLaunchKernelEx(nullptr, function, params, nullptr), CUDA_ERROR_INVALID_VALUE);
}

TEST(EmulatorDriver, NotedMemoryIsAllThatMayBeTouched) {
  enter_context();
  std::array<uint32_t, kThreads + 1> out{};
  sm90().note_memory(out.data(), kThreads * sizeof(uint32_t));
  EXPECT_EQ(launch_fill(config_of(kThreads), out.data(), 1), CUDA_SUCCESS);
  EXPECT_EQ(launch_fill(config_of(kThreads + 1), out.data(), 1), CUDA_ERROR_LAUNCH_FAILED);
  EXPECT_NE(text_of(CUDA_ERROR_LAUNCH_FAILED).find("out of bounds"), std::string::npos)
      << text_of(CUDA_ERROR_LAUNCH_FAILED);
  EXPECT_NE(text_of(CUDA_ERROR_LAUNCH_FAILED).find("st.global.u32"), std::string::npos)
      << text_of(CUDA_ERROR_LAUNCH_FAILED);
  EXPECT_EQ(out[kThreads], 0u);
  sm90().forget_memory();
  EXPECT_EQ(launch_fill(config_of(kThreads + 1), out.data(), 1), CUDA_SUCCESS);
  EXPECT_EQ(out[kThreads], 1 + kThreads);
}

TEST(EmulatorDriver, OptionsHoldForTheTable) {
  enter_context();
  Options options;
  options.max_steps = 3;
  set_driver_options(options);
  EXPECT_EQ(driver_options().max_steps, 3u);
  uint32_t out[kThreads];
  EXPECT_EQ(launch_fill(config_of(kThreads), out, 1), CUDA_ERROR_LAUNCH_FAILED);
  set_driver_options({});
  EXPECT_EQ(launch_fill(config_of(kThreads), out, 1), CUDA_SUCCESS);
}

TEST(EmulatorDriver, HostCodeOfTheLibraryLaunchesThroughIt) {
  driver::replace_table(&sm90());
  std::array<uint32_t, kThreads> out{};
  const StagedArgs args{out.data(), 5};
  const auto* ptx = reinterpret_cast<const unsigned char*>(kPtx);
  const unsigned char no_cubin[1] = {};
  driver::Launch request;
  request.threads = kThreads;
  request.shared_bytes = 100 * 1024;
  request.args = &args;
  const driver::Image image{no_cubin, no_cubin, ptx, ptx + sizeof kPtx};
  const Status status = driver::launch("staged", image, request);
  EXPECT_TRUE(status.ok()) << status.message;
  EXPECT_EQ(out[9], 14u);
  request.threads = 2048;
  const Status failed = driver::launch("staged", image, request);
  EXPECT_EQ(failed.code, Code::kRuntime);
  EXPECT_EQ(failed.message.rfind("launch of staged: CUDA_ERROR_INVALID_VALUE (", 0), 0u)
      << failed.message;
  driver::replace_table(nullptr);
}

// ---- Images --------------------------------------------------------------------------------------

namespace {

std::string with(const char* from, const char* to) {
  std::string text = kPtx;
  text.replace(text.find(from), std::strlen(from), to);
  return text;
}

/// out[3] after a launch of fill from 10: 13 where the text of kPtx runs.
uint32_t fourth_of_fill(CUkernel fill) {
  std::array<uint32_t, kThreads> out{};
  uint32_t* address = out.data();
  uint32_t first = 10;
  void* params[] = {&address, &first};
  const CUlaunchConfig config = config_of(kThreads);
  const CUresult result =
      sm90().cuLaunchKernelEx(&config, reinterpret_cast<CUfunction>(fill), params, nullptr);
  EXPECT_EQ(result, CUDA_SUCCESS) << text_of(result);
  return out[3];
}

CUresult launch_fill_as(const std::string& image) {
  EXPECT_TRUE(set_driver_images({{"fill", image}}).ok());
  uint32_t out[kThreads];
  const CUresult result = launch_fill(config_of(kThreads), out, 0);
  EXPECT_TRUE(set_driver_images({}).ok());
  return result;
}

}  // namespace

TEST(EmulatorDriver, ImagesReplaceKernelsThatAreLoadedAlready) {
  enter_context();
  const CUkernel fill = kernel_named("fill");
  EXPECT_EQ(fourth_of_fill(fill), 13u);
  ASSERT_TRUE(set_driver_images({{"fill", with("add.s32 %r3", "sub.s32 %r3")}}).ok());
  EXPECT_EQ(fourth_of_fill(fill), 7u);
  ASSERT_TRUE(set_driver_images({{"staged", with("add.s32 %r3", "sub.s32 %r3")}}).ok());
  EXPECT_EQ(fourth_of_fill(fill), 13u) << "another kernel's image";
  ASSERT_TRUE(set_driver_images({{"fill", with("add.s32 %r3", "mul.lo.s32 %r3")}}).ok());
  EXPECT_EQ(fourth_of_fill(fill), 30u);
  ASSERT_TRUE(set_driver_images({}).ok());
  EXPECT_EQ(fourth_of_fill(fill), 13u);
}

TEST(EmulatorDriver, AReplacementTakesWhatTheKernelWasAllowed) {
  enter_context();
  const CUkernel kernel = kernel_named("staged");
  constexpr auto kAttribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
  ASSERT_EQ(sm90().cuKernelSetAttribute(kAttribute, 232448, kernel, 0), CUDA_SUCCESS);
  std::string text = kPtx;
  text.replace(text.rfind("add.s32 %r3"), 7, "sub.s32");
  ASSERT_TRUE(set_driver_images({{"staged", text}}).ok());
  std::array<uint32_t, kThreads> out{};
  EXPECT_EQ(launch_staged(kernel, out.data(), 232448), CUDA_SUCCESS);
  EXPECT_EQ(out[2], 3u) << "5 - 2";
  ASSERT_TRUE(set_driver_images({}).ok());
}

TEST(EmulatorDriver, ImagesThatCannotBeLoadedChangeNothing) {
  enter_context();
  const CUkernel fill = kernel_named("fill");
  const std::string good = with("add.s32 %r3", "sub.s32 %r3");
  ASSERT_TRUE(set_driver_images({{"fill", good}}).ok());
  const std::string broken = with("mov.u32 %r2, %tid.x;", "mov.u32 %r2 %tid.x;");
  const Status no_ptx = set_driver_images({{"fill", broken}});
  EXPECT_EQ(no_ptx.code, Code::kInvalidValue);
  EXPECT_EQ(no_ptx.message.rfind("images: fill.ptx:15: ", 0), 0u) << no_ptx.message;
  const Status unmodelled = set_driver_images({{"fill", with("mul.wide.u32", "mul.far.u32")}});
  EXPECT_EQ(unmodelled.code, Code::kUnsupported) << unmodelled.message;
  const Status no_kernel = set_driver_images({{"fill", good}, {"full", good}});
  EXPECT_EQ(no_kernel.code, Code::kInvalidValue);
  EXPECT_EQ(no_kernel.message, "images: full: must hold a kernel of that name, got fill, staged");
  EXPECT_EQ(fourth_of_fill(fill), 7u);
  ASSERT_TRUE(set_driver_images({}).ok());
}

TEST(EmulatorDriver, ReplacementsFitTheKernelTheyReplace) {
  enter_context();
  EXPECT_EQ(launch_fill_as(with("sm_90a", "sm_100f")), CUDA_ERROR_NO_BINARY_FOR_GPU);
  EXPECT_EQ(text_of(CUDA_ERROR_NO_BINARY_FOR_GPU),
            "images: fill: .target: must run on sm_90, got sm_100f");
  EXPECT_EQ(launch_fill_as(with(", .param .u32 fill_param_1", ", .param .u64 fill_param_1")),
            CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(text_of(CUDA_ERROR_INVALID_VALUE),
            "images: fill: parameters: must be those of the kernel it replaces, 8, 4 bytes, got 8, "
            "8 bytes");
  EXPECT_EQ(
      launch_fill_as(with("u32 fill_param_1)", "u32 fill_param_1) .reqnctapercluster 2, 1, 1")),
      CUDA_ERROR_INVALID_VALUE)
      << "2 does not divide the grid of 1";
}

// ---- Tensor maps ---------------------------------------------------------------------------------

namespace {

struct MapCall {
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  cuuint32_t rank = 2;
  CUtensorMapInterleave interleave = CU_TENSOR_MAP_INTERLEAVE_NONE;
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
  CUtensorMapFloatOOBfill fill = CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  cuuint32_t inner_box = 64;
};

alignas(16) uint16_t elements[128 * 64];

CUresult encode(const MapCall& call, CUtensorMap* map) {
  const cuuint64_t dims[5] = {64, 128, 1, 1, 1}, strides[4] = {128, 128, 128, 128};
  const cuuint32_t box[5] = {call.inner_box, 16, 1, 1, 1}, steps[5] = {1, 1, 1, 1, 1};
  return sm90().cuTensorMapEncodeTiled(map, call.type, call.rank, elements, dims, strides, box,
                                       steps, call.interleave, call.swizzle,
                                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B, call.fill);
}

}  // namespace

TEST(EmulatorDriver, TensorMapsAreThoseOfTheGeneralInterface) {
  CUtensorMap map;
  ASSERT_EQ(encode({.fill = CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA}, &map), CUDA_SUCCESS)
      << text_of(CUDA_ERROR_INVALID_VALUE);
  TensorMapRequest request;
  request.base = elements;
  request.dims = {64, 128};
  request.strides = {128};
  request.box = {64, 16};
  request.swizzle = 128;
  request.fill_nan = true;
  TensorMapBytes expected;
  ASSERT_TRUE(encode_tensor_map(request, &expected).ok());
  EXPECT_EQ(std::memcmp(&map, expected.bytes, sizeof map), 0);
}

TEST(EmulatorDriver, TensorMapsThatAreNotModelledAreRefusedByName) {
  CUtensorMap map;
  const std::pair<MapCall, const char*> calls[] = {
      {{.type = CU_TENSOR_MAP_DATA_TYPE_TFLOAT32}, "tensorDataType: must be at most 9"},
      {{.rank = 6}, "tensorRank: must be 1 to 5, got 6"},
      {{.interleave = CU_TENSOR_MAP_INTERLEAVE_16B}, "interleave: must be 0, got 1"},
      {{.swizzle = CU_TENSOR_MAP_SWIZZLE_128B_ATOM_32B}, "swizzle: must be at most 3"},
      {{.inner_box = 128}, "cuTensorMapEncodeTiled: "},
  };
  for (const auto& [call, text] : calls) {
    EXPECT_EQ(encode(call, &map), CUDA_ERROR_INVALID_VALUE) << text;
    EXPECT_NE(text_of(CUDA_ERROR_INVALID_VALUE).find(text), std::string::npos)
        << text_of(CUDA_ERROR_INVALID_VALUE);
  }
}

}  // namespace fa4::emulator::test
