// Tensor maps: the checks of cuTensorMapEncodeTiled and what a map says about memory.
#include "csrc/emulator/tensor/tensor_map.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>

namespace fa4::emulator {
namespace {

constexpr size_t kMaxRank = 5;
constexpr uint64_t kMaxExtent = uint64_t{1} << 32;
constexpr uint64_t kStrideLimit = uint64_t{1} << 40;
constexpr uint32_t kMaxBox = 256;
constexpr uint32_t kMaxStep = 8;
constexpr uint32_t kAlignment = 16;            // of the base, strides and inner box, bytes
constexpr uint32_t kSharedAlignment = 128;     // of a box in shared memory, bytes
constexpr uint64_t kMaxBoxBytes = 228 * 1024;  // the shared memory of an SM

constexpr ElementType kLastType = ElementType::kBF16;

uint8_t bytes_of(ElementType type) {
  switch (type) {
    case ElementType::kU8:
      return 1;
    case ElementType::kU16:
    case ElementType::kF16:
    case ElementType::kBF16:
      return 2;
    case ElementType::kU32:
    case ElementType::kS32:
    case ElementType::kF32:
      return 4;
    case ElementType::kU64:
    case ElementType::kS64:
    case ElementType::kF64:
      return 8;
  }
  return 0;
}

bool is_floating(ElementType type) {
  return type == ElementType::kF16 || type == ElementType::kBF16 || type == ElementType::kF32 ||
         type == ElementType::kF64;
}

std::string hex_text(uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%" PRIx64, value);
  return text;
}

/// Elements of a box along one dimension.
constexpr uint32_t count(uint32_t box, uint32_t step) {
  return (box + step - 1) / step;
}

std::string entry(const char* field, size_t index) {
  return std::string(field) + "[" + std::to_string(index) + "]";
}

Status wrong(const std::string& field, const std::string& rule, const std::string& got) {
  return Status::invalid_value(field + ": " + rule + ", got " + got);
}

Status wrong(const std::string& field, const std::string& rule, uint64_t got) {
  return wrong(field, rule, std::to_string(got));
}

Status check_counts(const TensorMapRequest& request) {
  const size_t rank = request.dims.size();
  const std::string of_rank = " for rank " + std::to_string(rank);
  if (rank < 1 || rank > kMaxRank) return wrong("dims", "must have 1 to 5 entries", rank);
  if (request.strides.size() != rank - 1)
    return wrong("strides", "must have " + std::to_string(rank - 1) + " entries" + of_rank,
                 request.strides.size());
  if (request.box.size() != rank)
    return wrong("box", "must have " + std::to_string(rank) + " entries" + of_rank,
                 request.box.size());
  if (!request.steps.empty() && request.steps.size() != rank)
    return wrong("steps", "must have " + std::to_string(rank) + " entries or none" + of_rank,
                 request.steps.size());
  return {};
}

Status check_global(const TensorMapRequest& request) {
  const uint64_t base = reinterpret_cast<uint64_t>(request.base);
  if (base == 0) return wrong("base", "must not be null", hex_text(base));
  if (base % kAlignment != 0)
    return wrong("base", "must be a multiple of 16 bytes", hex_text(base));
  for (size_t d = 0; d < request.dims.size(); ++d)
    if (request.dims[d] < 1 || request.dims[d] > kMaxExtent)
      return wrong(entry("dims", d), "must be within 1..2^32", request.dims[d]);
  for (size_t d = 0; d < request.strides.size(); ++d) {
    if (request.strides[d] % kAlignment != 0)
      return wrong(entry("strides", d), "must be a multiple of 16 bytes", request.strides[d]);
    if (request.strides[d] >= kStrideLimit)
      return wrong(entry("strides", d), "must be less than 2^40 bytes", request.strides[d]);
  }
  return {};
}

Status check_box(const TensorMapRequest& request) {
  for (size_t d = 0; d < request.box.size(); ++d)
    if (request.box[d] < 1 || request.box[d] > kMaxBox)
      return wrong(entry("box", d), "must be within 1..256", request.box[d]);
  for (size_t d = 0; d < request.steps.size(); ++d)
    if (request.steps[d] < 1 || request.steps[d] > kMaxStep)
      return wrong(entry("steps", d), "must be within 1..8", request.steps[d]);
  const uint32_t swizzle = request.swizzle;
  if (swizzle != 0 && swizzle != 32 && swizzle != 64 && swizzle != 128)
    return wrong("swizzle", "must be 0, 32, 64 or 128 bytes", swizzle);
  const uint32_t inner = request.box[0] * bytes_of(request.type);
  if (inner % kAlignment != 0)
    return wrong("box[0]", "inner box bytes must be a multiple of 16", inner);
  if (swizzle != 0 && inner > swizzle)
    return wrong(
        "box[0]",
        "inner box bytes must be at most the swizzle of " + std::to_string(swizzle) + " bytes",
        inner);
  uint64_t bytes = inner;
  for (size_t d = 1; d < request.box.size(); ++d)
    bytes *= count(request.box[d], request.steps.empty() ? 1 : request.steps[d]);
  if (bytes > kMaxBoxBytes)
    return wrong("box", "must have at most " + std::to_string(kMaxBoxBytes) + " bytes", bytes);
  return {};
}

Status check(const TensorMapRequest& request) {
  if (request.type > kLastType)
    return wrong("type", "must be within 0..9", static_cast<uint64_t>(request.type));
  if (Status status = check_counts(request); !status.ok()) return status;
  if (Status status = check_global(request); !status.ok()) return status;
  if (Status status = check_box(request); !status.ok()) return status;
  if (request.fill_nan && !is_floating(request.type))
    return wrong("fill_nan", "must be false unless the element type is floating",
                 "true with element type " + std::to_string(static_cast<int>(request.type)));
  return {};
}

}  // namespace

Status encode_tensor_map(const TensorMapRequest& request, TensorMapBytes* result) {
  if (Status status = check(request); !status.ok()) return status;
  TensorMap map;
  map.base = reinterpret_cast<uint64_t>(request.base);
  map.rank = static_cast<uint8_t>(request.dims.size());
  map.type = request.type;
  map.element_bytes = bytes_of(request.type);
  map.swizzle_bytes = static_cast<uint8_t>(request.swizzle);
  map.fill_nan = request.fill_nan;
  for (size_t d = 0; d < kMaxRank; ++d) {
    const bool used = d < map.rank;
    map.last[d] = used ? static_cast<uint32_t>(request.dims[d] - 1) : 0;
    map.box[d] = used ? request.box[d] : 1;
    map.stride[d] = d == 0 ? map.element_bytes : used ? request.strides[d - 1] : 0;
    // The copy engine has no step along the inner dimension; the driver ignores the first entry.
    map.step[d] = used && d > 0 && !request.steps.empty() ? request.steps[d] : 1;
  }
  *result = {};
  std::memcpy(result->bytes, &map, sizeof map);
  return {};
}

const TensorMap* tensor_map_at(const void* address) {
  if (address == nullptr) return nullptr;
  uint64_t magic;
  std::memcpy(&magic, address, sizeof magic);
  return magic == TensorMap::kMagic ? static_cast<const TensorMap*>(address) : nullptr;
}

ByteRange reach(const TensorMap& map) {
  unsigned __int128 end = map.base + static_cast<unsigned __int128>(map.element_bytes);
  for (int d = 0; d < map.rank; ++d)
    end += static_cast<unsigned __int128>(map.stride[d]) * map.last[d];
  return {map.base, end > UINT64_MAX ? UINT64_MAX : static_cast<uint64_t>(end)};
}

uint32_t box_bytes(const TensorMap& map) {
  uint32_t bytes = map.element_bytes;
  for (int d = 0; d < map.rank; ++d) bytes *= count(map.box[d], map.step[d]);
  return bytes;
}

uint32_t row_pitch(const TensorMap& map) {
  return map.swizzle_bytes != 0 ? map.swizzle_bytes : map.box[0] * map.element_bytes;
}

uint32_t box_extent(const TensorMap& map) {
  return box_bytes(map) / (map.box[0] * map.element_bytes) * row_pitch(map);
}

std::string box_problem(const TensorMap&, uint32_t shared_address) {
  if (shared_address % kSharedAlignment == 0) return {};
  return "must be a multiple of " + std::to_string(kSharedAlignment) + ", got " +
         hex_text(shared_address);
}

std::string load_problem(const TensorMap& map, const int32_t* coordinates) {
  const int32_t unit = std::max<int32_t>(1, kAlignment / map.element_bytes);
  if (coordinates[0] % unit == 0) return {};
  return "coordinate 0: must be a multiple of " + std::to_string(unit) +
         " elements (16 bytes), got " + std::to_string(coordinates[0]);
}

std::string store_problem(const TensorMap& map, const int32_t* coordinates) {
  if (std::string problem = load_problem(map, coordinates); !problem.empty()) return problem;
  for (int d = 0; d < map.rank; ++d)
    if (coordinates[d] < 0)
      return "coordinate " + std::to_string(d) +
             ": must not be negative in a store or reduction, got " +
             std::to_string(coordinates[d]);
  const uint64_t extent = uint64_t{map.last[0]} + 1;
  const uint64_t first = static_cast<uint64_t>(coordinates[0]);
  const bool clipped = first < extent && first + map.box[0] > extent;
  if (!clipped || extent * map.element_bytes % kAlignment == 0) return {};
  return "inner extent: must be a multiple of 16 bytes where it clips a store or reduction, got " +
         std::to_string(extent * map.element_bytes);
}

}  // namespace fa4::emulator
