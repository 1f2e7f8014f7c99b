// Tensor maps: what the copy engine has to know of a tensor before it moves boxes of it between
// global and shared memory. Tensors of 16-bit elements; boxes lie in shared memory in a swizzle
// (core/descriptors.h).
#pragma once

#include "csrc/driver/driver.h"
#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/core/tensor_map.h"
#include "flash_attn4/core/types.h"
#include "flash_attn4/status.h"

namespace fa4::driver {

/// The L2 cache fetches this many bytes at once when a box asks for some of them.
enum class L2Fetch : uint8_t { k128Bytes, k256Bytes };

/// A tensor and the box that one copy moves. Dimensions are innermost first, the innermost
/// contiguous. What a box holds outside the tensor reads as zero and is not written.
struct TensorMapSpec {
  static constexpr int kMaxRank = 5;

  DType dtype = DType::kBFloat16;  // or kFloat16
  const void* base = nullptr;      // memory of the device, even where the tensor has no elements
  int rank = 0;
  int64_t size[kMaxRank] = {};    // elements, below 2^32; [0] a positive multiple of 8
  int64_t stride[kMaxRank] = {};  // elements; [0] is not read, nor that of a dimension of size 1
  int box[kMaxRank] = {};         // elements, at most 256; [0] at most the swizzle's span
  Swizzle swizzle = Swizzle::k128B;
  L2Fetch l2_fetch = L2Fetch::k128Bytes;

  bool operator==(const TensorMapSpec&) const = default;
};

/// Whether a tensor of 16-bit elements can have a map: its base and the dimensions beside the
/// contiguous one, in any order. A tensor without elements always can.
bool tensor_map_fits(const void* base, int rank, const int64_t* size, const int64_t* stride);

/// The map, encoded by the driver unless it is one of the last that this thread asked for. A context
/// of `device` (its ordinal) must be current (ContextGuard). `name` of the tensor, for messages. An
/// empty tensor gets the map of a single row, through which nothing may be read.
Status encode_tensor_map(const char* name, const TensorMapSpec& spec, int device,
                         TensorMap* result);

}  // namespace fa4::driver
