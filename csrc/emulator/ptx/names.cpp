// Names of types and special registers.
#include <iterator>
#include <string_view>

#include "csrc/emulator/ptx/module.h"

namespace fa4::emulator::ptx {

namespace {

struct TypeRow {
  const char* name;
  int bytes;
};

// In the order of Type.
constexpr TypeRow kTypes[] = {
    {"none", 0},   {"pred", 0}, {"b8", 1},    {"b16", 2}, {"b32", 4},   {"b64", 8},
    {"b128", 16},  {"u8", 1},   {"u16", 2},   {"u32", 4}, {"u64", 8},   {"s8", 1},
    {"s16", 2},    {"s32", 4},  {"s64", 8},   {"f16", 2}, {"f16x2", 4}, {"bf16", 2},
    {"bf16x2", 4}, {"f32", 4},  {"f32x2", 8}, {"f64", 8},
};
static_assert(std::size(kTypes) == static_cast<size_t>(Type::kF64) + 1);

// In the order of Special.
constexpr const char* kSpecials[] = {
    "%tid.x",
    "%tid.y",
    "%tid.z",
    "%ntid.x",
    "%ntid.y",
    "%ntid.z",
    "%ctaid.x",
    "%ctaid.y",
    "%ctaid.z",
    "%nctaid.x",
    "%nctaid.y",
    "%nctaid.z",
    "%clusterid.x",
    "%clusterid.y",
    "%clusterid.z",
    "%nclusterid.x",
    "%nclusterid.y",
    "%nclusterid.z",
    "%cluster_ctaid.x",
    "%cluster_ctaid.y",
    "%cluster_ctaid.z",
    "%cluster_nctaid.x",
    "%cluster_nctaid.y",
    "%cluster_nctaid.z",
    "%cluster_ctarank",
    "%cluster_nctarank",
    "%is_explicit_cluster",
    "%laneid",
    "%warpid",
    "%nwarpid",
    "%smid",
    "%nsmid",
    "%gridid",
    "%lanemask_eq",
    "%lanemask_le",
    "%lanemask_lt",
    "%lanemask_ge",
    "%lanemask_gt",
    "%clock",
    "%clock_hi",
    "%clock64",
    "%globaltimer",
    "%globaltimer_lo",
    "%globaltimer_hi",
    "%total_smem_size",
    "%aggr_smem_size",
    "%dynamic_smem_size",
};
static_assert(std::size(kSpecials) == static_cast<size_t>(Special::kCount));

const TypeRow& row(Type type) {
  const auto index = static_cast<size_t>(type);
  return kTypes[index < std::size(kTypes) ? index : 0];
}

}  // namespace

int type_bytes(Type type) {
  return row(type).bytes;
}

Type type_named(std::string_view name) {
  for (size_t i = 1; i < std::size(kTypes); ++i) {
    if (name == kTypes[i].name) return static_cast<Type>(i);
  }
  return Type::kNone;
}

const char* type_name(Type type) {
  return row(type).name;
}

const char* special_name(Special special) {
  const auto index = static_cast<size_t>(special);
  return index < std::size(kSpecials) ? kSpecials[index] : "none";
}

}  // namespace fa4::emulator::ptx
