// Shared-memory descriptors, and the choice of the kernels for this machine.
//
// A descriptor places core matrices of 8 x 16 bytes. Offsets between them, and from one line of a
// core matrix to the next, with span = 32, 64 or 128 bytes of the swizzle (CUTLASS describes the
// same in mma_traits_sm90_gmma.hpp and mma_traits_sm100.hpp; the two architectures agree):
//
//                        next 8 rows               k + 8         next line
//     K-major            SBO                       16            span
//     K-major, none      SBO                       LBO           16
//     MN-major           16; LBO after span bytes  SBO           span
//     MN-major, none     SBO                       LBO           16
//
// The swizzle exchanges 16-byte units by bits of the resulting address, not of an offset.
#include "csrc/emulator/tensor/tensor_core.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "csrc/emulator/isa_choice.h"
#include "csrc/emulator/tensor/kernels.h"

namespace fa4::emulator {
namespace {

const TensorKernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return kTensorKernelsAvx512;
  if (isa == Isa::kAvx2) return kTensorKernelsAvx2;
#endif
  return kTensorKernelsBaseline;
}

const TensorKernels& kernels() {
  static const TensorKernels& chosen = kernels_of(host_isa());
  return chosen;
}

constexpr uint32_t bits(uint64_t descriptor, int first, int count) {
  return static_cast<uint32_t>(descriptor >> first & ((uint64_t{1} << count) - 1));
}

constexpr uint32_t kUnitBytes = 16;

typedef int32_t Lines
    __attribute__((vector_size(16)));  // addresses of half the lines of a core matrix

/// Bytes of a line that the swizzle acts on: 32, 64, 128, or 16 for none. 0: no such code.
uint32_t span_bytes(const SharedOperand& operand) {
  if (operand.kind == DescriptorKind::kGmma) {
    constexpr uint32_t kSpans[] = {16, 128, 64, 32};
    return kSpans[bits(operand.descriptor, 62, 2)];
  }
  constexpr uint32_t kSpans[] = {16, 0, 128, 0, 64, 0, 32, 0};
  return kSpans[bits(operand.descriptor, 61, 3)];
}

/// Offsets in bytes, see the table above.
struct UnitSteps {
  uint32_t group;        // to the next 8 rows inside a span
  uint32_t span_groups;  // groups of 8 rows in a span
  uint32_t span;         // to the next span
  uint32_t half;         // k + 8
  uint32_t line;
};

UnitSteps unit_steps(const SharedOperand& operand, uint32_t span) {
  const uint32_t leading = bits(operand.descriptor, 16, 14) << 4;
  const uint32_t stride = bits(operand.descriptor, 32, 14) << 4;
  if (span == kUnitBytes) return {0, 1, stride, leading, kUnitBytes};
  if (operand.major == OperandMajor::kK) return {0, 1, stride, kUnitBytes, span};
  return {kUnitBytes, span / kUnitBytes, leading, stride, span};
}

/// The descriptor is one that descriptor_problem accepts.
void locate(const SharedOperand& operand, OperandUnits* units) {
  const uint32_t span = span_bytes(operand);
  const UnitSteps steps = unit_steps(operand, span);
  const int32_t exchanged = span / kUnitBytes - 1;  // bits of the unit's place in its span
  const int32_t line = steps.line;
  const Lines lines = {0, line, 2 * line, 3 * line};
  units->groups = operand.rows / 8;
  units->major = operand.major;
  uint32_t* unit = units->unit;
  uint32_t group_address = bits(operand.descriptor, 0, 14) << 4;
  uint32_t left_in_span = steps.span_groups;
  for (int group = 0; group < units->groups; ++group) {
    for (uint32_t part = 0; part < 4; ++part, unit += 4) {
      const int32_t first = group_address + part / 2 * steps.half + part % 2 * 4 * line;
      Lines address = lines + first;
      address ^= (address >> 7 & exchanged) << 4;
      std::memcpy(unit, &address, sizeof(address));
    }
    group_address += steps.group;
    if (--left_in_span > 0) continue;
    left_in_span = steps.span_groups;
    group_address += steps.span - steps.span_groups * steps.group;
  }
}

/// One past the highest byte.
size_t end_of(const OperandUnits& units) {
  Lines last{};
  for (int first = 0; first < 16 * units.groups; first += 4) {
    Lines address;
    std::memcpy(&address, units.unit + first, sizeof(address));
    last = address > last ? address : last;
  }
  int32_t highest = 0;
  for (int lane = 0; lane < 4; ++lane) highest = std::max(highest, last[lane]);
  return highest + kUnitBytes;
}

template <class... Values>
std::string format(const char* text, Values... values) {
  char buffer[256];
  std::snprintf(buffer, sizeof(buffer), text, values...);
  return buffer;
}

/// A range of bits of the descriptor with only one legal value.
struct FixedField {
  const char* name;
  int first;
  int count;
  uint32_t value;
};

constexpr FixedField kGmmaFields[] = {
    {"reserved bits 14-15", 14, 2, 0},  {"reserved bits 30-31", 30, 2, 0},
    {"reserved bits 46-48", 46, 3, 0},  {"base offset (bits 49-51)", 49, 3, 0},
    {"reserved bits 52-61", 52, 10, 0},
};
constexpr FixedField kUmmaFields[] = {
    {"reserved bits 14-15", 14, 2, 0},
    {"reserved bits 30-31", 30, 2, 0},
    {"version (bits 46-48)", 46, 3, 1},
    {"base offset (bits 49-51)", 49, 3, 0},
    {"mode of the leading byte offset (bit 52)", 52, 1, 0},
    {"reserved bits 53-60", 53, 8, 0},
};

template <size_t kCount>
std::string field_problem(uint64_t descriptor, const FixedField (&fields)[kCount]) {
  for (const FixedField& field : fields) {
    const uint32_t value = bits(descriptor, field.first, field.count);
    if (value != field.value)
      return format("%s of shared-memory descriptor 0x%016llx: got %u, expected %u", field.name,
                    static_cast<unsigned long long>(descriptor), value, field.value);
  }
  return {};
}

}  // namespace

std::string descriptor_problem(const SharedOperand& operand, size_t shared_bytes) {
  const uint64_t descriptor = operand.descriptor;
  const std::string problem = operand.kind == DescriptorKind::kGmma
                                  ? field_problem(descriptor, kGmmaFields)
                                  : field_problem(descriptor, kUmmaFields);
  if (!problem.empty()) return problem;
  if (span_bytes(operand) == 0)
    return format(
        "swizzle (bits 61-63) of shared-memory descriptor 0x%016llx: got %u, expected 0 (none), "
        "2 (128 B), 4 (64 B) or 6 (32 B); 1 (128 B in atoms of 32 B) is not modelled",
        static_cast<unsigned long long>(descriptor), bits(descriptor, 61, 3));
  OperandUnits units;
  locate(operand, &units);
  const size_t end = end_of(units);
  if (end > shared_bytes)
    return format(
        "operand of %d rows at shared-memory descriptor 0x%016llx: reaches byte 0x%zx, expected "
        "at most 0x%zx, the size of shared memory",
        operand.rows, static_cast<unsigned long long>(descriptor), end, shared_bytes);
  return {};
}

uint32_t operand_units(const SharedOperand& operand, uint32_t* units) {
  OperandUnits located;
  locate(operand, &located);
  const auto count = static_cast<uint32_t>(16 * located.groups);
  static_assert(kMostUnits == sizeof(located.unit) / sizeof(*located.unit));
  std::copy_n(located.unit, count, units);
  return count;
}

bool find_element(const SharedOperand& operand, const uint8_t* shared, uint16_t pattern,
                  uint32_t* offset) {
  OperandUnits units;
  locate(operand, &units);
  const int found = kernels().find_in_units(units, shared, pattern);
  if (found < 0) return false;
  *offset = units.unit[found];
  while (std::memcmp(shared + *offset, &pattern, sizeof(pattern)) != 0) *offset += sizeof(pattern);
  return true;
}

void copy_operand(const SharedOperand& operand, const uint8_t* shared, uint16_t* to) {
  OperandUnits units;
  locate(operand, &units);
  kernels().copy_units(units, shared, to);
}

void read_operand(const SharedOperand& operand, const uint8_t* shared, float* to, size_t stride) {
  OperandUnits units;
  locate(operand, &units);
  kernels().read_units(units, shared, operand.type, to, stride);
}

void read_tmem_operand(const uint32_t* cells, size_t column_cells, int rows, Half type, float* to,
                       size_t stride) {
  kernels().read_tmem_operand(cells, column_cells, rows, type, to, stride);
}

void multiply(const Product& product, Accumulate mode) {
  kernels().multiply(product, mode);
}

void multiply_fragments(float* const* d, const float* a, const float* b, int n, bool accumulate,
                        Accumulate mode) {
  kernels().multiply_fragments(d, a, b, n, accumulate, mode);
}

void read_fragment_operand(const uint32_t* const* planes, Half type, float* to) {
  kernels().read_fragment_operand(planes, type, to);
}

}  // namespace fa4::emulator
