// Arithmetic of tensor cores on values: operands read through shared-memory descriptors, products
// added into accumulators. When a product happens is the business of the machine's agents.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "flash_attn4/emulator.h"

namespace fa4::emulator {

enum class Half : uint8_t { kF16, kBF16 };
enum class OperandMajor : uint8_t { kK, kMN };
enum class DescriptorKind : uint8_t { kGmma, kUmma };  // SM90 and SM100

/// K of one instruction on 16-bit elements.
constexpr int kK = 16;

/// An operand tile of `rows` (M or N) by 16 (K) elements in shared memory, as a descriptor says.
struct SharedOperand {
  DescriptorKind kind;
  uint64_t descriptor;
  OperandMajor major;
  Half type;
  int rows;  // multiple of 8
};

/// What is wrong with a descriptor, empty if nothing: reserved bits, an unknown swizzle code, a base
/// offset, an operand that ends beyond shared_bytes.
std::string descriptor_problem(const SharedOperand& operand, size_t shared_bytes);

/// Shared-memory offsets of the units of 16 bytes that the operand consists of, and their number. The
/// descriptor is one that descriptor_problem accepts.
constexpr uint32_t kMostUnits = 512;
uint32_t operand_units(const SharedOperand& operand, uint32_t* units);

/// Whether the operand holds the 16-bit element `pattern` (the poison of memory that was never
/// written), and the byte offset of the first one.
bool find_element(const SharedOperand& operand, const uint8_t* shared, uint16_t pattern,
                  uint32_t* offset);

/// Copies the operand's elements as stored, [16][rows], k outermost: to see later whether it changed.
void copy_operand(const SharedOperand& operand, const uint8_t* shared, uint16_t* to);

/// to[k * stride + row] = element (row, k) as fp32. shared is the CTA's shared memory from address 0.
void read_operand(const SharedOperand& operand, const uint8_t* shared, float* to, size_t stride);

/// A from tensor memory, K-major 16 bit: cell (lane, column c) holds k = 2c (low half) and 2c + 1.
/// cells points to the first column at the first lane, a column is `column_cells` cells of 32 bit.
/// to[k * stride + row] for 16 k, `rows` lanes.
void read_tmem_operand(const uint32_t* cells, size_t column_cells, int rows, Half type, float* to,
                       size_t stride);

/// D[n * d_stride + m] (+)= sum over k of A[k * a_stride + m] * B[k * b_stride + n], k < kK steps.
/// d is fp32 as tensor memory stores it: a column of rows is contiguous.
struct Product {
  float* d;
  size_t d_stride;  // cells from one column to the next
  const float* a;
  size_t a_stride;
  const float* b;
  size_t b_stride;
  int m;            // multiple of 16, up to 128
  int n;            // multiple of 8, up to 256
  int k;            // multiple of 16: several instructions on one accumulator may come as one
  bool accumulate;  // false: D = A B
};

/// Rounding of the sum, see Accumulate: kSequential is a chain of fp32 fused multiply-adds in order
/// of k; kExact sums 16 products and the accumulator exactly (in double) and rounds once per 16 k.
void multiply(const Product& product, Accumulate mode);

/// One warp's share of wgmma m64nNk16: 16 rows. Accumulator register i (of n / 2) is a plane of 32
/// lanes, d[i][lane] = element (row = lane/4 + 8*((i/2)%2), column = 8*(i/4) + 2*(lane%4) + i%2).
/// a: [16 k][16 rows], b: [16 k][n], both dense.
void multiply_fragments(float* const* d, const float* a, const float* b, int n, bool accumulate,
                        Accumulate mode);

/// A of wgmma from registers: four planes of 32 lanes, two elements each (see PTX: register fragment
/// of A). to[k * 16 + row].
void read_fragment_operand(const uint32_t* const* planes, Half type, float* to);

}  // namespace fa4::emulator
