// Tensor maps and boxes against a model that moves one element at a time.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "csrc/emulator/tensor/tensor_map.h"
#include "flash_attn4/core/descriptors.h"

namespace fa4::emulator::test {
namespace {

constexpr uint8_t kGuard = 0xa5;
constexpr uint32_t kSharedBytes = 64 * 1024;

/// A byte that differs from those around it and from the guard.
uint8_t pattern(size_t i) {
  return static_cast<uint8_t>((i * 37 + (i >> 8) * 11) % 151 + 1);
}

/// A tensor in a buffer of exactly the bytes its elements span, with guard bytes on both sides.
class Tensor {
 public:
  Tensor(TensorMapRequest request, uint32_t element_bytes) : request_(std::move(request)) {
    bytes_ = element_bytes * request_.dims[0];
    for (size_t d = 1; d < request_.dims.size(); ++d)
      bytes_ += (request_.dims[d] - 1) * request_.strides[d - 1];
    storage_.assign(bytes_ + 2 * kMargin + 16, kGuard);
    const size_t misaligned = reinterpret_cast<size_t>(storage_.data()) % 16;
    begin_ = storage_.data() + kMargin + (16 - misaligned) % 16;
    for (size_t i = 0; i < bytes_; ++i) begin_[i] = pattern(i);
    request_.base = begin_;
    const Status status = encode_tensor_map(request_, &encoded_);
    EXPECT_TRUE(status.ok()) << status.message;
  }

  const TensorMap& map() const { return *tensor_map_at(&encoded_); }
  const std::vector<uint8_t>& storage() const { return storage_; }
  uint8_t* begin() { return begin_; }
  /// Where the tensor begins in storage().
  size_t offset() const { return static_cast<size_t>(begin_ - storage_.data()); }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kMargin = 4096;
  TensorMapRequest request_;
  TensorMapBytes encoded_;
  std::vector<uint8_t> storage_;
  uint8_t* begin_ = nullptr;
  size_t bytes_ = 0;
};

std::vector<uint8_t> shared_memory() {
  std::vector<uint8_t> shared(kSharedBytes);
  for (size_t i = 0; i < shared.size(); ++i) shared[i] = static_cast<uint8_t>(pattern(i) ^ 0x80);
  return shared;
}

using Coordinates = std::vector<int32_t>;

/// visit(element's byte offset in the tensor or -1 where out of bounds, its shared address).
void for_each_element(const TensorMap& map, const Coordinates& at, uint32_t shared_address,
                      const std::function<void(int64_t, uint32_t)>& visit) {
  uint32_t count[5], total = 1;
  for (int d = 0; d < 5; ++d) {
    count[d] = (map.box[d] + map.step[d] - 1) / map.step[d];
    total *= count[d];
  }
  for (uint32_t i = 0; i < total; ++i) {
    int64_t offset = 0;
    bool inside = true;
    uint32_t rest = i;
    for (int d = 0; d < map.rank; ++d) {
      const int64_t index = int64_t{at[d]} + int64_t{rest % count[d]} * map.step[d];
      rest /= count[d];
      inside &= index >= 0 && index <= int64_t{map.last[d]};
      offset += index * static_cast<int64_t>(map.stride[d]);
    }
    const uint32_t row = i / count[0], column = i % count[0];
    uint32_t address = shared_address + column * map.element_bytes;
    if (map.swizzle_bytes == 0)
      address += row * count[0] * map.element_bytes;
    else
      address = swizzled(address + row * map.swizzle_bytes, Swizzle{map.swizzle_bytes});
    visit(inside ? offset : -1, address);
  }
}

void expect_same(const std::vector<uint8_t>& got, const std::vector<uint8_t>& expected,
                 const char* what) {
  const auto [first, other] = std::mismatch(got.begin(), got.end(), expected.begin());
  if (first == got.end()) return;
  ADD_FAILURE() << what << ": byte " << first - got.begin() << ": expected " << int{*other}
                << ", got " << int{*first};
}

/// Loads and stores the box at `at` and compares all of both memories with the model.
void check_copies(Tensor& tensor, const Coordinates& at, uint32_t shared_address) {
  const TensorMap& map = tensor.map();
  ASSERT_LE(shared_address + box_extent(map), kSharedBytes);
  const std::vector<uint8_t> shared_before = shared_memory(), global_before = tensor.storage();

  std::vector<uint8_t> shared = shared_before, expected = shared_before;
  for_each_element(map, at, shared_address, [&](int64_t offset, uint32_t address) {
    if (offset < 0)
      std::memset(&expected[address], 0, map.element_bytes);
    else
      std::memcpy(&expected[address], tensor.begin() + offset, map.element_bytes);
  });
  load_box(map, at.data(), shared.data(), shared_address);
  expect_same(shared, expected, "load, shared memory");
  expect_same(tensor.storage(), global_before, "load, global memory");

  shared = shared_before;
  expected = global_before;
  for_each_element(map, at, shared_address, [&](int64_t offset, uint32_t address) {
    if (offset < 0) return;
    std::memcpy(&expected[tensor.offset() + static_cast<size_t>(offset)], &shared[address],
                map.element_bytes);
  });
  store_box(map, at.data(), shared.data(), shared_address);
  expect_same(tensor.storage(), expected, "store, global memory");
  expect_same(shared, shared_before, "store, shared memory");
}

TensorMapRequest request_of(ElementType type, std::vector<uint64_t> dims,
                            std::vector<uint64_t> strides, std::vector<uint32_t> box,
                            uint32_t swizzle = 0, std::vector<uint32_t> steps = {}) {
  TensorMapRequest request;
  request.type = type;
  request.dims = std::move(dims);
  request.strides = std::move(strides);
  request.box = std::move(box);
  request.swizzle = swizzle;
  request.steps = std::move(steps);
  return request;
}

// ---- Encoding -----------------------------------------------------------------------------------

alignas(16) uint8_t memory[64];

TensorMapRequest valid_request() {
  TensorMapRequest request =
      request_of(ElementType::kBF16, {100, 20, 3}, {208, 4160}, {64, 16, 2}, 128, {1, 2, 1});
  request.base = memory;
  return request;
}

std::string encode_message(const TensorMapRequest& request) {
  TensorMapBytes bytes;
  const Status status = encode_tensor_map(request, &bytes);
  EXPECT_EQ(tensor_map_at(&bytes) != nullptr, status.ok());
  EXPECT_EQ(status.code, status.ok() ? Code::kOk : Code::kInvalidValue);
  return status.message;
}

TEST(EncodeTensorMap, HoldsTheRequest) {
  TensorMapBytes bytes;
  ASSERT_TRUE(encode_tensor_map(valid_request(), &bytes).ok());
  const TensorMap* map = tensor_map_at(&bytes);
  ASSERT_NE(map, nullptr);
  EXPECT_EQ(tensor_map_at(bytes.bytes + 8), nullptr);
  EXPECT_EQ(map->base, reinterpret_cast<uint64_t>(memory));
  EXPECT_EQ(map->rank, 3);
  EXPECT_EQ(map->type, ElementType::kBF16);
  EXPECT_EQ(map->swizzle_bytes, 128);
  const uint32_t last[] = {99, 19, 2, 0, 0}, box[] = {64, 16, 2, 1, 1}, step[] = {1, 2, 1, 1, 1};
  const uint64_t stride[] = {2, 208, 4160, 0, 0};
  for (int d = 0; d < 5; ++d) {
    EXPECT_EQ(map->last[d], last[d]) << d;
    EXPECT_EQ(map->box[d], box[d]) << d;
    EXPECT_EQ(map->step[d], step[d]) << d;
    EXPECT_EQ(map->stride[d], stride[d]) << d;
  }
}

TEST(EncodeTensorMap, LargestValuesAreTaken) {
  TensorMapRequest request =
      request_of(ElementType::kU8, {uint64_t{1} << 32, 1, 1, 1, uint64_t{1} << 32},
                 {(uint64_t{1} << 40) - 16, 0, 16, 32}, {256, 256, 1, 1, 1}, 0, {8, 8, 8, 8, 8});
  request.base = memory;
  EXPECT_EQ(encode_message(request), "");
}

TEST(EncodeTensorMap, ErrorsNameFieldRuleAndValue) {
  using Change = std::function<void(TensorMapRequest&)>;
  const std::pair<Change, const char*> cases[] = {
      {[](auto& r) { r.type = ElementType{10}; }, "type: must be within 0..9, got 10"},
      {[](auto& r) { r.base = nullptr; }, "base: must not be null, got 0x0"},
      {[](auto& r) { r.base = reinterpret_cast<void*>(0x1008); },
       "base: must be a multiple of 16 bytes, got 0x1008"},
      {[](auto& r) { r.dims.clear(); }, "dims: must have 1 to 5 entries, got 0"},
      {[](auto& r) { r.dims.resize(6, 1); }, "dims: must have 1 to 5 entries, got 6"},
      {[](auto& r) { r.dims[1] = 0; }, "dims[1]: must be within 1..2^32, got 0"},
      {[](auto& r) { r.dims[2] = (uint64_t{1} << 32) + 1; },
       "dims[2]: must be within 1..2^32, got 4294967297"},
      {[](auto& r) { r.strides.resize(3, 16); }, "strides: must have 2 entries for rank 3, got 3"},
      {[](auto& r) { r.strides[0] = 200; }, "strides[0]: must be a multiple of 16 bytes, got 200"},
      {[](auto& r) { r.strides[1] = uint64_t{1} << 40; },
       "strides[1]: must be less than 2^40 bytes, got 1099511627776"},
      {[](auto& r) { r.box.resize(2); }, "box: must have 3 entries for rank 3, got 2"},
      {[](auto& r) { r.box[1] = 0; }, "box[1]: must be within 1..256, got 0"},
      {[](auto& r) { r.box[2] = 257; }, "box[2]: must be within 1..256, got 257"},
      {[](auto& r) { r.box[0] = 12; }, "box[0]: inner box bytes must be a multiple of 16, got 24"},
      {[](auto& r) { r.box[0] = 128; },
       "box[0]: inner box bytes must be at most the swizzle of 128 bytes, got 256"},
      {[](auto& r) { r.swizzle = 32; },
       "box[0]: inner box bytes must be at most the swizzle of 32 bytes, got 128"},
      {[](auto& r) { r.box[1] = r.box[2] = 256; },
       "box: must have at most 233472 bytes, got 4194304"},
      {[](auto& r) { r.steps.resize(2); }, "steps: must have 3 entries or none for rank 3, got 2"},
      {[](auto& r) { r.steps[0] = 0; }, "steps[0]: must be within 1..8, got 0"},
      {[](auto& r) { r.steps[2] = 9; }, "steps[2]: must be within 1..8, got 9"},
      {[](auto& r) { r.swizzle = 16; }, "swizzle: must be 0, 32, 64 or 128 bytes, got 16"},
      {[](auto& r) {
         r.type = ElementType::kU16;
         r.fill_nan = true;
       },
       "fill_nan: must be false unless the element type is floating, got true with element type 1"},
  };
  for (const auto& [change, message] : cases) {
    TensorMapRequest request = valid_request();
    change(request);
    EXPECT_EQ(encode_message(request), message);
  }
}

// ---- What a map says ----------------------------------------------------------------------------

TEST(TensorMap, BytesOfABox) {
  Tensor rows(request_of(ElementType::kBF16, {64, 8}, {128}, {64, 8}, 128), 2);
  EXPECT_EQ(box_bytes(rows.map()), 1024u);
  EXPECT_EQ(row_pitch(rows.map()), 128u);
  EXPECT_EQ(box_extent(rows.map()), 1024u);

  Tensor narrow(request_of(ElementType::kBF16, {64, 8}, {128}, {16, 8}, 64), 2);
  EXPECT_EQ(box_bytes(narrow.map()), 256u);
  EXPECT_EQ(row_pitch(narrow.map()), 64u);
  EXPECT_EQ(box_extent(narrow.map()), 512u);

  // The step of dimension 0 is ignored; of the others ceil(box / step) elements are moved.
  Tensor stepped(request_of(ElementType::kF32, {64, 8, 9}, {256, 2048}, {32, 7, 9}, 0, {4, 2, 4}),
                 4);
  EXPECT_EQ(box_bytes(stepped.map()), 32u * 4 * 4 * 3);
  EXPECT_EQ(box_extent(stepped.map()), 32u * 4 * 4 * 3);
}

TEST(TensorMap, ReachIsFromTheFirstToTheLastElement) {
  Tensor tensor(request_of(ElementType::kF32, {3, 5, 2}, {64, 640}, {4, 1, 1}), 4);
  const ByteRange range = reach(tensor.map());
  EXPECT_EQ(range.begin, reinterpret_cast<uint64_t>(tensor.begin()));
  EXPECT_EQ(range.end - range.begin, 640u + 4 * 64 + 3 * 4);

  TensorMapRequest request =
      request_of(ElementType::kU8, {16, uint64_t{1} << 32}, {uint64_t{1} << 39}, {16, 1});
  request.base = memory;
  TensorMapBytes bytes;
  ASSERT_TRUE(encode_tensor_map(request, &bytes).ok());
  EXPECT_EQ(reach(*tensor_map_at(&bytes)).end, UINT64_MAX);  // not wrapped around
}

TEST(TensorMap, SharedAddressesAreMultiplesOf128) {
  for (uint32_t swizzle : {0u, 32u, 64u, 128u}) {
    Tensor tensor(request_of(ElementType::kF16, {16, 4}, {32}, {16, 4}, swizzle), 2);
    EXPECT_EQ(box_problem(tensor.map(), 0x480), "");
    EXPECT_EQ(box_problem(tensor.map(), 0x440), "must be a multiple of 128, got 0x440");
  }
}

TEST(TensorMap, CoordinatesThatTheCopyEngineRefuses) {
  Tensor tensor(request_of(ElementType::kBF16, {44, 4}, {96}, {32, 2}), 2);
  const auto load = [&](Coordinates at) { return load_problem(tensor.map(), at.data()); };
  const auto store = [&](Coordinates at) { return store_problem(tensor.map(), at.data()); };
  EXPECT_EQ(load({-16, -3}), "");
  EXPECT_EQ(load({12, 0}), "coordinate 0: must be a multiple of 8 elements (16 bytes), got 12");
  EXPECT_EQ(load({-4, 0}), "coordinate 0: must be a multiple of 8 elements (16 bytes), got -4");
  EXPECT_EQ(store({8, 3}), "");
  EXPECT_EQ(store({48, 9}), "");
  EXPECT_EQ(store({4, 0}), "coordinate 0: must be a multiple of 8 elements (16 bytes), got 4");
  EXPECT_EQ(store({-8, 0}), "coordinate 0: must not be negative in a store or reduction, got -8");
  EXPECT_EQ(store({0, -1}), "coordinate 1: must not be negative in a store or reduction, got -1");
  EXPECT_EQ(store({16, 0}),
            "inner extent: must be a multiple of 16 bytes where it clips a store or reduction, "
            "got 88");
}

// ---- Loads and stores ---------------------------------------------------------------------------

TEST(Box, EveryRankAndSwizzle) {
  const uint64_t dims[] = {40, 6, 5, 4, 3};
  const uint64_t strides[] = {96, 96 * 6, 96 * 6 * 5 + 32, (96 * 6 * 5 + 32) * 4};
  for (size_t rank = 1; rank <= 5; ++rank)
    for (uint32_t swizzle : {0u, 32u, 64u, 128u})
      for (uint32_t inner : {8u, 16u, 24u, 32u, 64u}) {
        if (swizzle != 0 && inner * 2 > swizzle) continue;
        SCOPED_TRACE("rank " + std::to_string(rank) + " swizzle " + std::to_string(swizzle) +
                     " inner " + std::to_string(inner));
        std::vector<uint32_t> box{inner, 5, 3, 2, 2};
        box.resize(rank);
        Tensor tensor(request_of(ElementType::kF16, {dims, dims + rank},
                                 {strides, strides + rank - 1}, box, swizzle),
                      2);
        check_copies(tensor, Coordinates(rank, 0), 0);
        check_copies(tensor, Coordinates(rank, 1), 0x480);  // 128-byte, not 1024-byte aligned
        check_copies(tensor, Coordinates(rank, -1), 0x1000);
        check_copies(tensor, Coordinates(rank, 2), 0x700);
      }
}

TEST(Box, OutOfBoundsInEachDimension) {
  for (uint32_t swizzle : {0u, 64u}) {
    Tensor tensor(request_of(ElementType::kF32, {20, 5, 4, 3, 2}, {80, 400, 1600, 4800},
                             {16, 4, 3, 2, 2}, swizzle),
                  4);
    for (size_t d = 0; d < 5; ++d)
      for (int32_t at :
           {-300, -17, -16, -4, -3, -1, 1, 3, 4, 5, 19, 20, 300, INT32_MIN, INT32_MAX}) {
        SCOPED_TRACE("dimension " + std::to_string(d) + " at " + std::to_string(at));
        Coordinates coordinates(5, 0);
        coordinates[d] = at;
        check_copies(tensor, coordinates, 0x400);
      }
  }
}

TEST(Box, InnerDimensionPartlyOutOfBounds) {
  const std::pair<ElementType, uint32_t> types[] = {{ElementType::kU8, 1},
                                                    {ElementType::kBF16, 2},
                                                    {ElementType::kF32, 4},
                                                    {ElementType::kS64, 8}};
  for (const auto& [type, bytes] : types) {
    for (uint32_t swizzle : {0u, 128u}) {
      const uint32_t inner = 128 / bytes;
      Tensor tensor(request_of(type, {inner + 3, 9}, {192}, {inner, 8}, swizzle), bytes);
      for (int32_t at = -static_cast<int32_t>(inner) - 1; at <= static_cast<int32_t>(inner) + 4;
           ++at)
        check_copies(tensor, {at, 1}, 0x880);
    }
  }
}

TEST(Box, ExtentsBeyondThoseOfCoordinates) {
  TensorMapRequest request = request_of(ElementType::kU8, {uint64_t{1} << 32}, {}, {16});
  alignas(16) uint8_t data[32];
  for (size_t i = 0; i < sizeof data; ++i) data[i] = pattern(i);
  request.base = data;
  TensorMapBytes bytes;
  ASSERT_TRUE(encode_tensor_map(request, &bytes).ok());
  std::vector<uint8_t> shared(16, kGuard);
  const int32_t inside = 16, outside = INT32_MIN;
  load_box(*tensor_map_at(&bytes), &inside, shared.data(), 0);
  expect_same(shared, std::vector<uint8_t>(data + 16, data + 32), "inside");
  load_box(*tensor_map_at(&bytes), &outside, shared.data(), 0);
  expect_same(shared, std::vector<uint8_t>(16, 0), "outside");
}

TEST(Box, StepsSkipElementsOfOuterDimensions) {
  for (uint32_t swizzle : {0u, 32u, 128u})
    for (uint32_t step = 1; step <= 8; ++step)
      for (uint32_t box : {1u, 7u, 8u, 16u}) {
        SCOPED_TRACE("step " + std::to_string(step) + " box " + std::to_string(box));
        Tensor tensor(request_of(ElementType::kBF16, {24, 13, 5}, {48, 640}, {16, box, 3}, swizzle,
                                 {3, step, 2}),
                      2);
        check_copies(tensor, {0, 0, 0}, 0x80);
        check_copies(tensor, {8, 2, 1}, 0x80);
        check_copies(tensor, {-8, -3, -1}, 0x80);
      }
}

TEST(Box, StridesOfZeroRepeatRows) {
  Tensor tensor(request_of(ElementType::kF32, {8, 6}, {0}, {8, 4}), 4);
  std::vector<uint8_t> shared(128);
  const int32_t at[] = {0, 1};
  load_box(tensor.map(), at, shared.data(), 0);
  for (int row = 0; row < 4; ++row)
    EXPECT_EQ(std::memcmp(&shared[row * 32], tensor.begin(), 32), 0);
}

TEST(Box, NanFill) {
  const std::pair<ElementType, uint32_t> types[] = {{ElementType::kF16, 2},
                                                    {ElementType::kBF16, 2},
                                                    {ElementType::kF32, 4},
                                                    {ElementType::kF64, 8}};
  for (const auto& [type, bytes] : types) {
    TensorMapRequest request = request_of(type, {32 / bytes, 2}, {32}, {32 / bytes, 4}, 32);
    request.fill_nan = true;
    Tensor tensor(request, bytes);
    std::vector<uint8_t> shared(128, kGuard), expected(128);
    const int32_t at[] = {0, -1};
    load_box(tensor.map(), at, shared.data(), 0);
    for (size_t i = 0; i < 128; i += 2) {
      expected[i] = 0xf7;
      expected[i + 1] = 0x7f;
    }
    std::memcpy(&expected[32], tensor.begin(), 64);
    expect_same(shared, expected, "NaN fill");
  }
}

TEST(Box, RoundTripThroughSharedMemory) {
  for (uint32_t swizzle : {0u, 32u, 64u, 128u}) {
    const uint32_t inner = swizzle == 0 ? 64 : swizzle / 2;
    const TensorMapRequest request =
        request_of(ElementType::kBF16, {100, 37}, {208}, {inner, 16}, swizzle);
    Tensor from(request, 2), to(request, 2);
    std::memset(to.begin(), 0, to.bytes());
    std::vector<uint8_t> shared(kSharedBytes);
    for (int32_t row = 0; row < 37; row += 16)
      for (int32_t column = 0; column < 100; column += static_cast<int32_t>(inner)) {
        const int32_t at[] = {column, row};
        load_box(from.map(), at, shared.data(), 0x400);
        store_box(to.map(), at, shared.data(), 0x400);
      }
    for (uint32_t row = 0; row < 37; ++row)
      EXPECT_EQ(std::memcmp(from.begin() + 208 * row, to.begin() + 208 * row, 200), 0) << row;
  }
}

// ---- Reductions ---------------------------------------------------------------------------------

constexpr ElementType kTypes[] = {
    ElementType::kU8,  ElementType::kU16, ElementType::kU32, ElementType::kS32, ElementType::kU64,
    ElementType::kS64, ElementType::kF16, ElementType::kF32, ElementType::kF64, ElementType::kBF16};

TEST(Reduction, DefinedForTheTypesOfPtx) {
  // Rows as in kTypes; columns add, min, max, inc, dec, and, or, xor.
  const char* defined[] = {"........", "........", "########", "###..###", "###..###",
                           ".##.....", "###.....", "#.......", "#.......", "###....."};
  for (int type = 0; type < 10; ++type)
    for (int op = 0; op < 8; ++op)
      EXPECT_EQ(reduction_defined(kTypes[type], Reduction(op)), defined[type][op] == '#')
          << type << " " << op;
}

template <class T>
T reduced(ElementType type, Reduction op, T old, T value) {
  // One element by itself, and one inside a group that is updated as one word.
  alignas(8) T target[9], source[9];
  for (int i = 0; i < 9; ++i) {
    target[i] = old;
    source[i] = value;
  }
  reduce_bytes(target + 1, source + 1, 8 * sizeof(T), type, op);
  EXPECT_EQ(std::memcmp(&target[0], &old, sizeof(T)), 0);
  for (int i = 2; i < 9; ++i) EXPECT_EQ(std::memcmp(&target[i], &target[1], sizeof(T)), 0) << i;
  return target[1];
}

TEST(Reduction, Integers) {
  const auto u32 = [](Reduction op, uint32_t old, uint32_t value) {
    return reduced(ElementType::kU32, op, old, value);
  };
  EXPECT_EQ(u32(Reduction::kAdd, 0xffffffff, 3), 2u);
  EXPECT_EQ(u32(Reduction::kMin, 0x80000000, 1), 1u);
  EXPECT_EQ(u32(Reduction::kMax, 0x80000000, 1), 0x80000000u);
  EXPECT_EQ(u32(Reduction::kInc, 4, 5), 5u);
  EXPECT_EQ(u32(Reduction::kInc, 5, 5), 0u);
  EXPECT_EQ(u32(Reduction::kDec, 4, 5), 3u);
  EXPECT_EQ(u32(Reduction::kDec, 0, 5), 5u);
  EXPECT_EQ(u32(Reduction::kDec, 6, 5), 5u);
  EXPECT_EQ(u32(Reduction::kAnd, 0xf0f0, 0xff00), 0xf000u);
  EXPECT_EQ(u32(Reduction::kOr, 0xf0f0, 0xff00), 0xfff0u);
  EXPECT_EQ(u32(Reduction::kXor, 0xf0f0, 0xff00), 0x0ff0u);

  EXPECT_EQ(reduced<int32_t>(ElementType::kS32, Reduction::kAdd, INT32_MAX, 1), INT32_MIN);
  EXPECT_EQ(reduced<int32_t>(ElementType::kS32, Reduction::kMin, -1, 1), -1);
  EXPECT_EQ(reduced<int32_t>(ElementType::kS32, Reduction::kMax, -1, 1), 1);
  EXPECT_EQ(reduced<int32_t>(ElementType::kS32, Reduction::kXor, -1, 1), -2);

  const uint64_t big = uint64_t{1} << 63;
  EXPECT_EQ(reduced<uint64_t>(ElementType::kU64, Reduction::kAdd, big + 5, big), 5u);
  EXPECT_EQ(reduced<uint64_t>(ElementType::kU64, Reduction::kMin, big, 1), 1u);
  EXPECT_EQ(reduced<uint64_t>(ElementType::kU64, Reduction::kMax, big, 1), big);
  EXPECT_EQ(reduced<uint64_t>(ElementType::kU64, Reduction::kAnd, big | 3, big | 6), big | 2);
  EXPECT_EQ(reduced<int64_t>(ElementType::kS64, Reduction::kMin, -2, 1), -2);
  EXPECT_EQ(reduced<int64_t>(ElementType::kS64, Reduction::kMax, -2, 1), 1);
}

TEST(Reduction, FloatsAdd) {
  EXPECT_EQ(reduced<float>(ElementType::kF32, Reduction::kAdd, 1.5f, 2.25f), 3.75f);
  EXPECT_EQ(reduced<float>(ElementType::kF32, Reduction::kAdd, 1e-40f, 1e-40f), 1e-40f + 1e-40f);
  const float nan = reduced<float>(ElementType::kF32, Reduction::kAdd, -INFINITY, INFINITY);
  EXPECT_EQ(std::bit_cast<uint32_t>(nan), 0x7fffffffu);
  EXPECT_EQ(reduced<double>(ElementType::kF64, Reduction::kAdd, 1.0, 0x1p-52), 1.0 + 0x1p-52);
  const uint64_t payload = 0x7ff3e4dd1bda155c;
  EXPECT_EQ(std::bit_cast<uint64_t>(reduced<double>(ElementType::kF64, Reduction::kAdd, 0.0,
                                                    std::bit_cast<double>(payload))),
            payload);
}

struct HalfCase {
  uint16_t old, value, sum, minimum, maximum;
};

void check(ElementType type, const HalfCase& c) {
  SCOPED_TRACE(std::to_string(c.old) + " and " + std::to_string(c.value));
  EXPECT_EQ(reduced(type, Reduction::kAdd, c.old, c.value), c.sum);
  EXPECT_EQ(reduced(type, Reduction::kMin, c.old, c.value), c.minimum);
  EXPECT_EQ(reduced(type, Reduction::kMax, c.old, c.value), c.maximum);
}

TEST(Reduction, Float16) {
  const HalfCase cases[] = {
      {0x3c00, 0x4000, 0x4200, 0x3c00, 0x4000},  // 1 + 2
      {0x3c00, 0x1000, 0x3c00, 0x1000, 0x3c00},  // tie to even, down
      {0x3c01, 0x1000, 0x3c02, 0x1000, 0x3c01},  // tie to even, up
      {0x0001, 0x0001, 0x0002, 0x0001, 0x0001},  // subnormal
      {0x03ff, 0x0001, 0x0400, 0x0001, 0x03ff},  // becomes normal
      {0x0400, 0x8001, 0x03ff, 0x8001, 0x0400},  // becomes subnormal
      {0x7bff, 0x4b80, 0x7bff, 0x4b80, 0x7bff},  // 65504 + 15
      {0x7bff, 0x4c00, 0x7c00, 0x4c00, 0x7bff},  // 65504 + 16: infinity
      {0xfc00, 0x7c00, 0x7fff, 0xfc00, 0x7c00},  // -infinity + infinity
      {0x0000, 0x8000, 0x0000, 0x8000, 0x0000},  // -0 is less than +0
      {0x8000, 0x8000, 0x8000, 0x8000, 0x8000}, {0x7e01, 0xbc00, 0x7fff, 0xbc00, 0xbc00},  // NaN
      {0xbc00, 0xfd01, 0x7fff, 0xbc00, 0xbc00}, {0x7e01, 0xfd01, 0x7fff, 0x7fff, 0x7fff},
  };
  for (const HalfCase& c : cases) check(ElementType::kF16, c);
}

TEST(Reduction, BFloat16) {
  const HalfCase cases[] = {
      {0x3f80, 0x4000, 0x4040, 0x3f80, 0x4000},  // 1 + 2
      {0x3f80, 0x3b80, 0x3f80, 0x3b80, 0x3f80},  // tie to even, down
      {0x3f81, 0x3b80, 0x3f82, 0x3b80, 0x3f81},  // tie to even, up
      {0x0001, 0x0001, 0x0002, 0x0001, 0x0001},  // subnormal
      {0x7f7f, 0x7f7f, 0x7f80, 0x7f7f, 0x7f7f},  // overflow
      {0xff80, 0x7f80, 0x7fff, 0xff80, 0x7f80},  // -infinity + infinity
      {0x0000, 0x8000, 0x0000, 0x8000, 0x0000},  // -0 is less than +0
      {0x7fc1, 0xbf80, 0x7fff, 0xbf80, 0xbf80},  // NaN
      {0x7fc1, 0xff81, 0x7fff, 0x7fff, 0x7fff},
  };
  for (const HalfCase& c : cases) check(ElementType::kBF16, c);
}

TEST(Reduction, BoxClippedAndSwizzled) {
  for (uint32_t swizzle : {0u, 64u}) {
    Tensor tensor(request_of(ElementType::kU32, {13, 6, 3}, {64, 384}, {16, 5, 2}, swizzle), 4);
    for (const Coordinates& at : {Coordinates{0, 0, 0},
                                  {4, 3, 2},
                                  {-4, -2, -1},
                                  {12, 5, 0},
                                  {16, 0, 0},
                                  {0, 6, 0},
                                  {0, 0, 3}}) {
      const std::vector<uint8_t> shared = shared_memory();
      std::vector<uint8_t> expected = tensor.storage();
      for_each_element(tensor.map(), at, 0x380, [&](int64_t offset, uint32_t address) {
        if (offset < 0) return;
        uint32_t old, value;
        uint8_t* target = &expected[tensor.offset() + static_cast<size_t>(offset)];
        std::memcpy(&old, target, 4);
        std::memcpy(&value, &shared[address], 4);
        old += value;
        std::memcpy(target, &old, 4);
      });
      reduce_box(tensor.map(), at.data(), shared.data(), 0x380, Reduction::kAdd);
      expect_same(tensor.storage(), expected, "reduction");
    }
  }
}

/// Two threads add `one` to every element 4096 times each, one of them element by element, the
/// other in words that hold several.
template <class T>
void check_concurrent(ElementType type, T one, T expected) {
  constexpr int kCount = 37, kRounds = 4096;
  alignas(8) T target[kCount] = {};
  T source[kCount];
  for (T& value : source) value = one;
  std::thread other([&] {
    for (int i = 0; i < kRounds; ++i)
      for (int k = 0; k < kCount; ++k)
        reduce_bytes(target + k, source + k, sizeof(T), type, Reduction::kAdd);
  });
  for (int i = 0; i < kRounds; ++i)
    reduce_bytes(target, source, sizeof source, type, Reduction::kAdd);
  other.join();
  for (int i = 0; i < kCount; ++i) EXPECT_EQ(target[i], expected) << i;
}

TEST(Reduction, AtomicAmongThreads) {
  check_concurrent<uint32_t>(ElementType::kU32, 1, 8192);
  check_concurrent<uint64_t>(ElementType::kU64, 1, 8192);
  check_concurrent<float>(ElementType::kF32, 1, 8192);
  check_concurrent<double>(ElementType::kF64, 1, 8192);
  // Counts of the last subnormal; sums stop where one more rounds back.
  check_concurrent<uint16_t>(ElementType::kF16, 1, 2048);
  check_concurrent<uint16_t>(ElementType::kBF16, 1, 256);
}

}  // namespace
}  // namespace fa4::emulator::test
