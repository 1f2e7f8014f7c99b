#include "csrc/driver/tensor_map.h"

#include <string>

namespace fa4::driver {

namespace {

// Rules of cuTensorMapEncodeTiled without interleave.
constexpr int64_t kAlignment = 16;                  // of the base and of strides, bytes
constexpr int64_t kStrideLimit = int64_t{1} << 40;  // bytes
constexpr int64_t kElementBytes = 2;

CUtensorMapDataType element_type(DType dtype) {
  return dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                  : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

CUtensorMapSwizzle swizzle_mode(Swizzle swizzle) {
  return swizzle == Swizzle::k128B  ? CU_TENSOR_MAP_SWIZZLE_128B
         : swizzle == Swizzle::k64B ? CU_TENSOR_MAP_SWIZZLE_64B
                                    : CU_TENSOR_MAP_SWIZZLE_32B;
}

/// Whether the copy engine can step by `stride` elements: 0, an expanded dimension, is a stride
/// like any other.
bool can_step(int64_t stride) {
  return stride >= 0 && stride < kStrideLimit / kElementBytes &&
         stride * kElementBytes % kAlignment == 0;
}

/// The driver's part: the map as cuTensorMapEncodeTiled takes it.
CUresult encode(const Table& driver, const TensorMapSpec& spec, TensorMap* result) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
  cuuint64_t sizes[TensorMapSpec::kMaxRank];
  cuuint64_t strides[TensorMapSpec::kMaxRank - 1];  // bytes, of dimensions 1 and up
  cuuint32_t box[TensorMapSpec::kMaxRank];
  const cuuint32_t steps[TensorMapSpec::kMaxRank] = {1, 1, 1, 1, 1};
  bool empty = false;
  for (int i = 0; i < spec.rank; ++i) empty = empty || spec.size[i] == 0;
  int64_t extent = 0;  // bytes that the dimensions so far span
  for (int i = 0; i < spec.rank; ++i) {
    const int64_t size = empty && i > 0 ? 1 : spec.size[i];
    int64_t stride = i == 0 ? kElementBytes : spec.stride[i] * kElementBytes;
    // No step is ever taken along a dimension of size 1, and torch leaves any stride there.
    if (i > 0 && size == 1) stride = extent;
    extent = max_of(extent, size * stride);
    sizes[i] = static_cast<cuuint64_t>(size);
    box[i] = static_cast<cuuint32_t>(spec.box[i]);
    if (i > 0) strides[i - 1] = static_cast<cuuint64_t>(stride);
  }
  return driver.cuTensorMapEncodeTiled(
      reinterpret_cast<CUtensorMap*>(result), element_type(spec.dtype),
      static_cast<cuuint32_t>(spec.rank), const_cast<void*>(spec.base), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_mode(spec.swizzle),
      spec.l2_fetch == L2Fetch::k256Bytes ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B
                                          : CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/// The maps that were encoded last. A map follows from driver, device and spec alone: so none ever
/// becomes wrong, whatever becomes of the memory.
class RecentMaps {
 public:
  const TensorMap* find(const Table* driver, int device, const TensorMapSpec& spec) const {
    for (int i = 0; i < kMaps; ++i) {
      if (bases_[i] != spec.base) continue;  // most differ, and these lie side by side
      const Entry& entry = entries_[i];
      if (entry.driver == driver && entry.device == device && entry.spec == spec) return &entry.map;
    }
    return nullptr;
  }

  void add(const Table* driver, int device, const TensorMapSpec& spec, const TensorMap& map) {
    bases_[next_] = spec.base;
    entries_[next_] = {map, driver, device, spec};
    next_ = (next_ + 1) % kMaps;
  }

 private:
  static constexpr int kMaps = 16;  // of four forward calls at least

  struct Entry {
    TensorMap map;
    const Table* driver;  // null: no entry yet
    int device;
    TensorMapSpec spec;
  };

  const void* bases_[kMaps] = {};
  Entry entries_[kMaps] = {};
  int next_ = 0;
};

}  // namespace

bool tensor_map_fits(const void* base, int rank, const int64_t* size, const int64_t* stride) {
  bool fits = reinterpret_cast<uintptr_t>(base) % kAlignment == 0;
  for (int i = 0; i < rank; ++i) {
    if (size[i] == 0) return true;
    fits = fits && (size[i] == 1 || can_step(stride[i]));
  }
  return fits;
}

Status encode_tensor_map(const char* name, const TensorMapSpec& spec, int device,
                         TensorMap* result) {
  const Table* driver = nullptr;
  if (Status s = table(&driver); !s.ok()) return s;
  thread_local RecentMaps recent;
  if (const TensorMap* known = recent.find(driver, device, spec)) {
    *result = *known;
    return {};
  }
  const CUresult encoded = encode(*driver, spec, result);
  if (encoded != CUDA_SUCCESS) {
    return check(*driver, encoded, std::string("tensor map of ") + name);
  }
  recent.add(driver, device, spec, *result);
  return {};
}

}  // namespace fa4::driver
