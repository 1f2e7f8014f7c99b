// The front end: PTX text to a module.
#include <gtest/gtest.h>

#include <bit>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "csrc/emulator/ptx/module.h"

namespace fa4::emulator::test {

namespace {

using ptx::Instruction;
using ptx::Kernel;
using ptx::Module;
using ptx::Operand;
using ptx::Space;
using ptx::Special;
using ptx::Symbol;
using ptx::Type;

const std::string kHeader = ".version 9.0\n.target sm_100f\n.address_size 64\n";
constexpr int kHeaderLines = 3;

Module parsed(const std::string& text) {
  Module module;
  const Status status = ptx::parse(text, "test.ptx", &module);
  EXPECT_TRUE(status.ok()) << status.message;
  return module;
}

std::string kernel_text(const std::string& body) {
  return kHeader + ".visible .entry k()\n{\n" + body + "\n}\n";
}

/// A module with one kernel `k` of this body, which starts in line kHeaderLines + 3.
Module with_body(const std::string& body) {
  Module module = parsed(kernel_text(body));
  if (module.kernels.empty()) module.kernels.emplace_back();
  return module;
}

std::string error_of(const std::string& text) {
  Module module;
  const Status status = ptx::parse(text, "test.ptx", &module);
  EXPECT_EQ(status.code, Code::kInvalidValue) << text;
  EXPECT_TRUE(module.kernels.empty()) << "a failed parse leaves the result alone";
  return status.message;
}

std::string body_error(const std::string& body) {
  return error_of(kernel_text(body));
}

const Symbol& symbol_named(const Module& module, const std::string& name) {
  static const Symbol kAbsent;
  for (const Symbol& symbol : module.symbols) {
    if (symbol.name == name) return symbol;
  }
  ADD_FAILURE() << "no symbol " << name;
  return kAbsent;
}

/// Operand `index` of the only instruction that follows the declarations.
Operand operand(const std::string& instruction, size_t index) {
  const Module module = with_body(
      ".reg .b32 %r<10>; .reg .b64 %rd<10>; .reg .pred %p<4>; .reg .f32 %f<4>;\n"
      ".shared .align 16 .b8 buffer[64];\n" +
      instruction);
  const Kernel& kernel = module.kernels[0];
  if (kernel.instructions.size() != 1 || kernel.instructions[0].operands.size() <= index) {
    ADD_FAILURE() << instruction;
    return {};
  }
  return kernel.instructions[0].operands[index];
}

int64_t immediate(const std::string& number) {
  const Operand result = operand("mov.b64 %rd1, " + number + ";", 1);
  EXPECT_EQ(result.kind, Operand::kImmediate) << number;
  EXPECT_FALSE(result.is_float) << number;
  return result.value;
}

#define EXPECT_CONTAINS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << text

// A bit of everything, for the tests of robustness.
const std::string kSample = kHeader + R"(
.extern .func (.param .b32 func_retval0) vprintf
(	.param .b64 vprintf_param_0, .param .b64 vprintf_param_1
);
.extern .shared .align 128 .b8 dynamic[];
.const .align 4 .f32 table[4] = {0f3F800000, 2.5, -1, 0d3FF0000000000000};
.global .align 1 .b8 $str[4] = {37, 100, 10};
.global .align 8 .u64 pointers[2] = {generic($str)+1, table};
.visible .entry sample(
	.param .u64 .ptr .global .align 1 sample_param_0,
	.param .align 64 .b8 sample_param_1[128] // a tensor map
)
.maxntid 128, 1, 1
.minnctapersm 1
.reqnctapercluster 2
{
	.reg .pred %p<5>; .reg .b32 %r<30>; .reg .b64 %rd<9>;
	.shared .align 8 .b8 bars[64];
	.loc 1 12 5, function_name $L__info_string0, inlined_at 1 40 3
	ld.param.u64 	%rd1, [sample_param_0];
	mov.b64 %rd2, sample_param_1;
	mov.u32 %r1, %tid.x;
	setp.lt.s32 %p1|%p2, %r1, -0x10;
	elect.sync _|%p3, -1;
	@!%p1 bra $L__BB0_2;
	{ .reg .pred p; WAIT:
	mbarrier.try_wait.parity.shared::cta.b64 p, [bars+8], 0;
	@p bra DONE; bra WAIT; DONE: }
	cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
	  [%r2], [%rd2, {%r3, %r4}], [%r5+-8];
$L__BB0_2:
	ts: .branchtargets $L__BB0_2, $L__BB0_3;
	brx.idx %r1, ts;
	{ // callseq 0, 0
	.param .b64 param0; .param .b32 retval0;
	st.param.b64 [param0], %rd1;
	call.uni (retval0), vprintf, (param0, param0);
	ld.param.b32 %r9, [retval0+0]; } /* over */
$L__BB0_3:
	ret;
}
.section .debug_str { $L__info_string0: .b8 95, 90 .b8 0 }
.file 1 "/home/kernel.cu", 1700000000, 123
)";

}  // namespace

TEST(PtxParser, NamesOfTypesAndSpecialRegisters) {
  EXPECT_EQ(ptx::type_named("bf16x2"), Type::kBF16x2);
  EXPECT_EQ(ptx::type_named("pred"), Type::kPred);
  EXPECT_EQ(ptx::type_named("rn"), Type::kNone);
  EXPECT_EQ(ptx::type_named("none"), Type::kNone);
  EXPECT_EQ(ptx::type_bytes(Type::kB128), 16);
  EXPECT_EQ(ptx::type_bytes(Type::kPred), 0);
  for (int i = 1; i <= static_cast<int>(Type::kF64); ++i) {
    EXPECT_EQ(ptx::type_named(ptx::type_name(static_cast<Type>(i))), static_cast<Type>(i));
  }
  EXPECT_STREQ(ptx::special_name(Special::kTidX), "%tid.x");
  for (int i = 0; i < static_cast<int>(Special::kCount); ++i) {
    const std::string name = ptx::special_name(static_cast<Special>(i));
    const Operand result = operand("mov.b32 %r1, " + name + ";", 1);
    EXPECT_EQ(result.kind, Operand::kSpecial) << name;
    EXPECT_EQ(static_cast<int>(result.special), i) << name;
  }
}

TEST(PtxParser, ReadsTheSample) {
  const Module module = parsed(kSample);
  EXPECT_EQ(module.version_major, 9);
  EXPECT_EQ(module.version_minor, 0);
  EXPECT_EQ(module.target, "sm_100f");
  EXPECT_EQ(module.files, (std::vector<std::string>{"", "/home/kernel.cu"}));
  ASSERT_EQ(module.kernels.size(), 1u);
  const Kernel& kernel = module.kernels[0];
  EXPECT_EQ(kernel.name, "sample");
  EXPECT_EQ(kernel.instructions.size(), 15u);
  EXPECT_EQ(symbol_named(module, "vprintf").space, Space::kFunction);
  EXPECT_TRUE(symbol_named(module, "vprintf").is_extern);
  EXPECT_EQ(kernel.symbols.size(), 3u) << "bars, param0, retval0";
  const Instruction& load = kernel.instructions[0];
  EXPECT_EQ(load.place.source_file, 1u);
  EXPECT_EQ(load.place.source_line, 12u);
  EXPECT_EQ(module.line(load.place.line), "ld.param.u64 \t%rd1, [sample_param_0];");
  EXPECT_EQ(module.line(0), "");
  EXPECT_EQ(module.line(1'000'000), "");
}

TEST(PtxParser, HeaderIsChecked) {
  EXPECT_CONTAINS(error_of(""), "test.ptx:1: module, got the end of the file, expected .version");
  EXPECT_CONTAINS(error_of(".version 7.8\n"), "PTX version, got 7.8, expected 8.x or 9.x");
  EXPECT_CONTAINS(error_of(".target sm_90a\n"), "first directive, got .target");
  EXPECT_CONTAINS(error_of(".version 8.4\n.entry k() { }\n"), "second directive, got .entry");
  EXPECT_CONTAINS(error_of(".version 8.4\n.target compute_90\n"), "target, got compute_90");
  EXPECT_CONTAINS(error_of(".version 8.4\n.target sm_90a\n.address_size 32\n"), "expected 64");
  EXPECT_EQ(parsed(".version 8.10\n.target sm_90a, debug, texmode_independent\n").version_minor,
            10);
}

TEST(PtxParser, ParametersAreLaidOut) {
  const Module module = parsed(kHeader + R"(.visible .entry k(
    .param .u8 a, .param .u64 .ptr .global .align 1 b, .param .f32 c,
    .param .align 64 .b8 map[128], .param .v2 .b32 d, .param .b16 e)
    .maxntid 96 .reqntid 32,2,1 .reqnctapercluster 2, 1 .explicitcluster .maxnreg 168
    .minnctapersm 1 .maxclusterrank 8 .blocksareclusters .abi_preserve 4 .noreturn
    .pragma "nounroll", "other";
    { ret; })");
  const Kernel& kernel = module.kernels[0];
  const std::vector<std::pair<uint64_t, uint64_t>> expected = {{0, 1},    {8, 8},   {16, 4},
                                                               {64, 128}, {192, 8}, {200, 2}};
  ASSERT_EQ(kernel.params.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const Symbol& param = module.symbols[kernel.params[i]];
    EXPECT_EQ(param.space, Space::kParam);
    EXPECT_EQ(param.offset, expected[i].first) << param.name;
    EXPECT_EQ(param.bytes, expected[i].second) << param.name;
  }
  EXPECT_EQ(module.symbols[kernel.params[1]].align, 8u) << ".ptr .align is of the memory behind it";
  EXPECT_EQ(kernel.param_bytes, 202u);
  EXPECT_EQ(kernel.max_threads, (std::array<uint32_t, 3>{96, 1, 1}));
  EXPECT_EQ(kernel.required_threads, (std::array<uint32_t, 3>{32, 2, 1}));
  EXPECT_EQ(kernel.cluster, (std::array<uint32_t, 3>{2, 1, 1}));
  EXPECT_TRUE(kernel.explicit_cluster);
  EXPECT_EQ(kernel.max_registers, 168u);
  EXPECT_CONTAINS(error_of(kHeader + ".entry k(.param .b8 a[40000]) { }"), "at most 32764 bytes");
  EXPECT_CONTAINS(error_of(kHeader + ".entry k(.param .texref a) { }"), "variable, got .texref");
  EXPECT_CONTAINS(error_of(kHeader + ".entry k() { }\n.entry k() { }"), "kernel, got k");
}

TEST(PtxParser, KernelsKeepTheirNamesApart) {
  const Module module = parsed(kHeader + R"(
    .entry a(.param .b32 p) { .reg .b32 x; .shared .b32 s; L: mov.b32 x, s; bra L; }
    .entry b(.param .b64 p) { .reg .b64 x; .shared .b64 s; L: mov.b64 x, s; bra L; })");
  ASSERT_EQ(module.kernels.size(), 2u);
  for (const Kernel& kernel : module.kernels) {
    EXPECT_EQ(kernel.registers.size(), 1u);
    EXPECT_EQ(kernel.labels.size(), 1u);
    EXPECT_EQ(kernel.instructions[0].operands[1].index, kernel.symbols[0]);
  }
  EXPECT_NE(module.kernels[0].symbols, module.kernels[1].symbols);
}

TEST(PtxParser, OpcodesAreSplitAndSurviveMoves) {
  const std::string opcode =
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.cta_group::2";
  Module first = with_body("exit;\n" + opcode + " [0], [1, {2, 3}], [4];\nadd .s32 1, 2,3;");
  const Module second = std::move(first);
  const Module copy = second;  // NOLINT: the copy must hold on its own
  std::vector<Instruction> moved = copy.kernels[0].instructions;
  std::vector<Instruction> grown;
  for (Instruction& instruction : moved) grown.push_back(std::move(instruction));
  EXPECT_EQ(grown[0].opcode, "exit");
  EXPECT_EQ(grown[0].parts, (std::vector<std::string_view>{"exit"}));
  EXPECT_EQ(grown[1].opcode, opcode);
  EXPECT_EQ(grown[1].parts, (std::vector<std::string_view>{
                                "cp", "async", "bulk", "tensor", "2d", "shared::cluster", "global",
                                "mbarrier::complete_tx::bytes", "cta_group::2"}));
  EXPECT_EQ(grown[2].opcode, "add.s32") << "a modifier may stand apart";
  EXPECT_EQ(grown[2].place.line, kHeaderLines + 5u);
}

TEST(PtxParser, IntegersInEveryBase) {
  EXPECT_EQ(immediate("42"), 42);
  EXPECT_EQ(immediate("-4294967296"), -4294967296);
  EXPECT_EQ(immediate("0x1F"), 31);
  EXPECT_EQ(immediate("0XfFU"), 255);
  EXPECT_EQ(immediate("0b101"), 5);
  EXPECT_EQ(immediate("017"), 15);
  EXPECT_EQ(immediate("0xffffffffffffffff"), -1);
  EXPECT_EQ(immediate("-0x8000000000000000"), INT64_MIN);
  EXPECT_EQ(immediate("~0"), -1);
  EXPECT_EQ(immediate("!3"), 0);
  EXPECT_EQ(immediate("-~4"), 5);
  EXPECT_EQ(immediate("1 + 2 - 4"), -1);
  EXPECT_EQ(immediate("WARP_SZ"), 32);
  EXPECT_EQ(immediate("-WARP_SZ"), -32);
  for (const std::string bad : {"08", "0x", "0b2", "12ab", "0x1G", "18446744073709551616", "1..2",
                                "0f3F80000", "0f3F8000000", "0d3FF", "1e", "1.5e+"}) {
    EXPECT_CONTAINS(body_error("mov.b64 _, " + bad + ";"), "malformed number") << bad;
  }
}

TEST(PtxParser, FloatsAreBits) {
  const auto check = [](const std::string& text, int bits, uint64_t value) {
    const Operand result = operand("mov.b64 %rd1, " + text + ";", 1);
    EXPECT_EQ(result.kind, Operand::kImmediate) << text;
    EXPECT_TRUE(result.is_float) << text;
    EXPECT_EQ(result.float_bits, bits) << text;
    EXPECT_EQ(static_cast<uint64_t>(result.value), value) << text;
  };
  check("0f3F800000", 32, 0x3F800000);
  check("0Fff800000", 32, 0xFF800000);
  check("-0f3F800000", 32, 0xBF800000);
  check("0d3FF0000000000000", 64, 0x3FF0000000000000);
  check("0D8000000000000000", 64, uint64_t{1} << 63);
  check("1.5", 64, std::bit_cast<uint64_t>(1.5));
  check("-2.5e-3", 64, std::bit_cast<uint64_t>(-2.5e-3));
  check("1e5", 64, std::bit_cast<uint64_t>(1e5));
  check("0.25", 64, std::bit_cast<uint64_t>(0.25));
  EXPECT_CONTAINS(body_error("mov.f32 _, ~1.5;"), "expected an integer; a float takes one -");
}

TEST(PtxParser, RegistersSinksPairsAndVectors) {
  EXPECT_EQ(operand("mov.b32 %r7, %r3;", 0).kind, Operand::kRegister);
  EXPECT_EQ(operand("mov.b32 %r7, %r3;", 1).index, 1u) << "numbered when first named";
  EXPECT_EQ(operand("st.async _, 1;", 0).kind, Operand::kSink);
  const Operand negated = operand("and.pred %p1, %p2, !%p3;", 2);
  EXPECT_TRUE(negated.kind == Operand::kRegister && negated.negated);
  EXPECT_TRUE(operand("fma.rn.f32 %f1, -%f2, %f3, %f3;", 1).negated);
  const Operand pair = operand("elect.sync _|%p1, -1;", 0);
  ASSERT_EQ(pair.kind, Operand::kPair);
  ASSERT_EQ(pair.parts.size(), 2u);
  EXPECT_EQ(pair.parts[0].kind, Operand::kSink);
  EXPECT_EQ(pair.parts[1].kind, Operand::kRegister);
  const Operand vector = operand("mov.b64 {%r1,%r2 , _, 5, 0f00000000}, %rd1;", 0);
  ASSERT_EQ(vector.kind, Operand::kVector);
  ASSERT_EQ(vector.parts.size(), 5u);
  EXPECT_EQ(vector.parts[2].kind, Operand::kSink);
  EXPECT_EQ(vector.parts[3].value, 5);
  EXPECT_TRUE(vector.parts[4].is_float);
  const Operand symbol = operand("mov.u32 %r1, buffer+8;", 1);
  EXPECT_EQ(symbol.kind, Operand::kSymbol);
  EXPECT_EQ(symbol.value, 8);
}

TEST(PtxParser, Addresses) {
  const auto base = [](const std::string& address, Operand::Kind kind, int64_t offset) {
    const Operand result = operand("ld.b32 %r1, " + address + ";", 1);
    ASSERT_EQ(result.kind, Operand::kAddress) << address;
    ASSERT_EQ(result.parts.size(), 1u) << address;
    EXPECT_EQ(result.parts[0].kind, kind) << address;
    EXPECT_EQ(result.value, offset) << address;
  };
  base("[%rd1]", Operand::kRegister, 0);
  base("[%rd1+16]", Operand::kRegister, 16);
  base("[ %rd1 + -4 ]", Operand::kRegister, -4);
  base("[%rd1-0x10]", Operand::kRegister, -16);
  base("[buffer]", Operand::kSymbol, 0);
  base("[buffer+4]", Operand::kSymbol, 4);
  base("[1024]", Operand::kImmediate, 0);
  EXPECT_EQ(operand("ld.b32 %r1, [1024+8];", 1).parts[0].value, 1032);

  const Operand tensor = operand("cp [%r1], [%rd1, { %r2, 7 , %r3 } ], [%r4], {%r5};", 1);
  ASSERT_EQ(tensor.kind, Operand::kAddress);
  ASSERT_EQ(tensor.parts.size(), 2u);
  EXPECT_EQ(tensor.parts[1].kind, Operand::kVector);
  EXPECT_EQ(tensor.parts[1].parts.size(), 3u);
  EXPECT_EQ(operand("cp [%r1], [%rd1, {%r2}], [%r4], {%r5};", 3).kind, Operand::kVector);

  const std::string registers = ".reg .b64 %rd<3>;\n";
  EXPECT_CONTAINS(body_error(registers + "ld.b32 _, [%rd1+%rd2];"), "offset, got %rd2");
  EXPECT_CONTAINS(body_error(registers + "ld.b32 _, [-%rd1];"), "base of an address, got -");
  EXPECT_CONTAINS(body_error(registers + "ld.b32 _, [%rd1, %rd2];"), "coordinates of an address");
  EXPECT_CONTAINS(body_error(registers + "ld.b32 _, [%rd1;"), "address, got ;, expected ']'");
}

TEST(PtxParser, RegistersOfScopes) {
  const Module module = with_body(R"(
    .reg .b32 %r<10>, x; .reg .pred p, q;
    mov.b32 %r9, x;
    { .reg .b64 x; .reg .b16 %r<5>; mov.b32 %r4, x; mov.b32 %r9, x; }
    { .reg .f32 x; @!q mov.b32 x, %r9; }
    mov.b32 %r4, x;)");
  const Kernel& kernel = module.kernels[0];
  const auto type = [&](size_t instruction, size_t operand) {
    return kernel.registers[kernel.instructions[instruction].operands[operand].index].type;
  };
  EXPECT_EQ(type(0, 1), Type::kB32);
  EXPECT_EQ(type(1, 0), Type::kB16);
  EXPECT_EQ(type(1, 1), Type::kB64);
  EXPECT_EQ(type(2, 0), Type::kB32) << "the inner range has no %r9";
  EXPECT_EQ(type(3, 0), Type::kF32);
  EXPECT_EQ(type(4, 0), Type::kB32);
  EXPECT_EQ(kernel.instructions[0].operands[0].index, kernel.instructions[2].operands[0].index);
  EXPECT_TRUE(kernel.instructions[3].guarded);
  EXPECT_TRUE(kernel.instructions[3].guard_negated);
  EXPECT_EQ(kernel.registers[kernel.instructions[3].guard].name, "q");
  EXPECT_EQ(kernel.registers.size(), 8u) << "only registers of ranges that are named";

  EXPECT_CONTAINS(body_error(".reg .v4 .f32 v;"), "type of .reg, got .v4");
  EXPECT_CONTAINS(body_error(".reg .b32 x, x;"), "register, got x");
  EXPECT_CONTAINS(body_error(".reg .b32 %r<4>, %r2;"), "register, got %r2");
  EXPECT_CONTAINS(body_error(".reg .b32 %r2, %r<4>;"), "registers, got %r");
  EXPECT_CONTAINS(body_error(".reg .b32 %r<4>; mov.b32 %r4, 0;"), "operand, got %r4");
  EXPECT_CONTAINS(body_error(".reg .b32 %r<2000000>;"), "from 0 to 1048576");
  EXPECT_CONTAINS(body_error(".reg .b32 %r<900000>, %s<900000>;"), "at most 1048576");
  EXPECT_CONTAINS(body_error("{ .reg .b32 x; } mov.b32 x, 0;"), "operand, got x");
  EXPECT_CONTAINS(body_error("mov.b32 _, %envreg3;"), "operand, got %envreg3");
  EXPECT_CONTAINS(body_error(".reg .b32 p; @p ret;"),
                  "guard, got p, expected a declared predicate");
}

TEST(PtxParser, LabelsOfScopes) {
  const Module module = with_body(R"(
    bra DONE;
    { LOOP: bra LOOP; bra DONE; bra OUT; }
    { LOOP: nop; bra LOOP; { bra LOOP; bra OUT; } DONE: bra DONE; }
    OUT: ret;
    DONE:)");
  const Kernel& kernel = module.kernels[0];
  const auto target = [&](size_t instruction) {
    const Operand& operand = kernel.instructions[instruction].operands[0];
    EXPECT_EQ(operand.kind, Operand::kLabel);
    return kernel.labels.at(operand.index).target;
  };
  EXPECT_EQ(target(0), 10u);
  EXPECT_EQ(target(1), 1u);
  EXPECT_EQ(target(2), 10u);
  EXPECT_EQ(target(3), 9u);
  EXPECT_EQ(target(5), 4u);
  EXPECT_EQ(target(6), 4u);
  EXPECT_EQ(target(7), 9u);
  EXPECT_EQ(target(8), 8u);
  EXPECT_EQ(kernel.labels.size(), 5u);

  EXPECT_CONTAINS(body_error("L: L: ret;"), "label, got L");
  EXPECT_CONTAINS(body_error("nop;\nbra L;"),
                  "test.ptx:7: target of a branch, got L, expected a label of the kernel: bra L;");
  EXPECT_CONTAINS(body_error("bra;"), "operands of a branch");
}

TEST(PtxParser, BranchTables) {
  const Module module = with_body(R"(
    .reg .b32 %r<2>;
    table: .branchtargets A, B, A;
    brx.idx.uni %r1, table;
    A: nop;
    B: ret;)");
  const Kernel& kernel = module.kernels[0];
  const Operand& targets = kernel.instructions[0].operands[1];
  ASSERT_EQ(targets.kind, Operand::kGroup);
  ASSERT_EQ(targets.parts.size(), 3u);
  const std::vector<uint32_t> expected = {1, 2, 1};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(targets.parts[i].kind, Operand::kLabel);
    EXPECT_EQ(kernel.labels[targets.parts[i].index].target, expected[i]);
  }
  EXPECT_CONTAINS(body_error("t: .branchtargets A; brx.idx 0, t;"), ".branchtargets, got A");
  EXPECT_CONTAINS(body_error("A: brx.idx 0, A;"), "expected the name of a .branchtargets list");
  EXPECT_CONTAINS(body_error("A: t: .branchtargets A; bra t;"), "expected a label of the kernel");
}

TEST(PtxParser, Calls) {
  const std::string functions = kHeader + R"(
    .extern .func (.param .b32 r) f (.param .b64 a, .param .b64 b);
    .extern .func __assertfail () .noreturn;
    .extern .func g;)";
  const Module module = parsed(functions + R"(.entry k() {
    { .param .b64 param0; .param .align 8 .b8 param1[24]; .param .b32 retval0;
      call.uni (retval0), f, (param0, param1); }
    call __assertfail, (); call g; call (_), f, (1, 2); })");
  const Kernel& kernel = module.kernels[0];
  const std::vector<Operand>& operands = kernel.instructions[0].operands;
  ASSERT_EQ(operands.size(), 3u);
  EXPECT_EQ(operands[0].kind, Operand::kGroup);
  EXPECT_EQ(operands[0].parts.size(), 1u);
  EXPECT_EQ(module.symbols[operands[1].index].name, "f");
  ASSERT_EQ(operands[2].parts.size(), 2u);
  const Symbol& argument = module.symbols[operands[2].parts[1].index];
  EXPECT_EQ(argument.space, Space::kParam);
  EXPECT_EQ(argument.bytes, 24u);
  EXPECT_EQ(kernel.symbols.size(), 3u);
  EXPECT_TRUE(kernel.instructions[1].operands[1].parts.empty());
  EXPECT_EQ(kernel.instructions[2].operands.size(), 1u);

  EXPECT_CONTAINS(error_of(functions + ".func h() { ret; }"), "device functions are not modelled");
  EXPECT_CONTAINS(body_error("call h, (1);"), "operand, got h");
  EXPECT_CONTAINS(body_error(".reg .b64 %rd1; call %rd1, (1);"), "indirect calls are not modelled");
  EXPECT_CONTAINS(body_error("p: .callprototype _ (.param .b32 x);"), "indirect call");
}

TEST(PtxParser, VariablesAndInitialisers) {
  const Module module = parsed(kHeader + R"(
    .visible .global .align 16 .b8 bytes[6] = {1, 0xff, -1};
    .global .u32 grid[2][3] = {{1, 2}, {3}};
    .global .f32 floats[] = {1.5, 0f7FC00001, -2, 0d4000000000000000};
    .const .f64 one = 1.0;
    .global .u16 rows[][3] = {{1}, 2, 3, 4, 5};
    .global .v2 .u16 vector[2] = {{1, 2}, {3, 4}};
    .global .u64 addresses[3] = {generic(later)-8, 5, bytes+4};
    .global .attribute(.managed) .s32 later = -2;
    .weak .global .b32 a, b[4];
    .extern .shared .align 128 .b8 smem[]; .extern .shared .align 128 .b8 smem[];
    .extern .global .b32 defined; .global .b32 defined = 3;
    .common .global .b64 zero;)");
  const Symbol& bytes = symbol_named(module, "bytes");
  EXPECT_EQ(bytes.bytes, 6u);
  EXPECT_EQ(bytes.align, 16u);
  EXPECT_EQ(bytes.initial, (std::vector<uint8_t>{1, 255, 255}));
  const Symbol& grid = symbol_named(module, "grid");
  EXPECT_EQ(grid.bytes, 24u);
  EXPECT_EQ(grid.initial, (std::vector<uint8_t>{1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0}));
  const Symbol& floats = symbol_named(module, "floats");
  EXPECT_EQ(floats.bytes, 16u);
  EXPECT_EQ(floats.initial, (std::vector<uint8_t>{0, 0, 0xC0, 0x3F, 1, 0, 0xC0, 0x7F, 0, 0, 0, 0xC0,
                                                  0, 0, 0, 0x40}));
  EXPECT_EQ(symbol_named(module, "one").initial.back(), 0x3F);
  EXPECT_EQ(symbol_named(module, "rows").bytes, 18u) << "whole rows";
  EXPECT_EQ(symbol_named(module, "rows").initial.size(), 14u);
  EXPECT_EQ(symbol_named(module, "vector").align, 4u);
  EXPECT_EQ(symbol_named(module, "vector").initial, (std::vector<uint8_t>{1, 0, 2, 0, 3, 0, 4, 0}));
  const Symbol& addresses = symbol_named(module, "addresses");
  ASSERT_EQ(addresses.references.size(), 2u);
  EXPECT_EQ(addresses.references[0].symbol, "later");
  EXPECT_EQ(addresses.references[0].offset, -8);
  EXPECT_EQ(addresses.references[1].at, 16u);
  EXPECT_EQ(addresses.initial[8], 5);
  EXPECT_EQ(symbol_named(module, "later").initial[0], 0xFE);
  EXPECT_EQ(symbol_named(module, "b").bytes, 16u);
  EXPECT_EQ(symbol_named(module, "smem").bytes, 0u);
  EXPECT_TRUE(symbol_named(module, "smem").is_extern);
  EXPECT_FALSE(symbol_named(module, "defined").is_extern);
  EXPECT_EQ(symbol_named(module, "defined").initial[0], 3);
}

TEST(PtxParser, WrongVariables) {
  const auto error = [](const std::string& text) { return error_of(kHeader + text); };
  EXPECT_CONTAINS(error(".global .b32 a[2] = {1, 2, 3};"),
                  "no more values than the variable holds");
  EXPECT_CONTAINS(error(".global .b32 a[2][2] = {{1, 2, 3}};"), "at most one row of the array");
  EXPECT_CONTAINS(error(".global .b32 a[1][2] = {{}, {}};"), "no more values than");
  EXPECT_CONTAINS(error(".global .b32 a[] = {};"), "array of unknown size");
  EXPECT_CONTAINS(error(".global .b32 a[2] = {{1}};"), "nested no deeper");
  EXPECT_CONTAINS(error(".global .b32 a = 1.5;"), "expected an integer");
  EXPECT_CONTAINS(error(".global .b32 a = b;"), "addresses only as elements of 8 bytes");
  EXPECT_CONTAINS(error(".global .b64 a = b;"), "initialiser, got b, expected a symbol");
  EXPECT_CONTAINS(error(".global .b32 a = ;"), "initialiser, got ;");
  EXPECT_CONTAINS(error(".shared .b32 a = 1;"), "expected a .global or .const variable");
  EXPECT_CONTAINS(error(".global .b32 a[2][];"), "extent of an array, got ]");
  EXPECT_CONTAINS(error(".global .b32 a[0];"), "expected at least 1");
  EXPECT_CONTAINS(error(".global .b32 a[1000000][1000000];"), "at most 2^40 bytes");
  EXPECT_CONTAINS(error(".global .b8 a[2][100000000] = {{1}, {2}};"), "at most 64 MiB");
  EXPECT_CONTAINS(error(".global .align 3 .b32 a;"), ".align, got 3, expected a power of two");
  EXPECT_CONTAINS(error(".global .pred a;"), "type of a variable");
  EXPECT_CONTAINS(error(".global .b32 a; .global .b32 a;"), "declaration, got a");
  EXPECT_CONTAINS(error(".global .texref t;"), "variable, got .texref");
  EXPECT_CONTAINS(error(".alias f, g;"), "directive of the module, got .alias");
}

TEST(PtxParser, ErrorsNameFileLineAndText) {
  EXPECT_EQ(
      body_error("nop;\n\tmov.b32 _, *;  // why\nret;"),
      "test.ptx:7: operand, got *, expected a register, symbol, number, address in [], vector "
      "in {} or _: mov.b32 _, *;  // why");
  EXPECT_CONTAINS(body_error("nop"), "operand, got }, expected");
  EXPECT_CONTAINS(body_error("%r1 = 4;"), "statement, got %r1");
  EXPECT_CONTAINS(body_error(".tex x;"), "directive in a kernel, got .tex");
  EXPECT_CONTAINS(body_error("mov.b32 _, \"text\";"), "operand, got \"text\"");
  EXPECT_CONTAINS(body_error("/* ret;"), "a comment without its end");
  EXPECT_CONTAINS(body_error("mov.b32 _, \x01\xff;"), ": mov.b32 _, ??;") << ": ASCII";
  EXPECT_CONTAINS(body_error("mov.b32 _, \x01;"), "got a character that PTX does not use here");
  EXPECT_CONTAINS(body_error("mov.b32 _, (1);"), "operand, got (");
  EXPECT_CONTAINS(error_of(kHeader + ".entry k() {"), "statement, got the end of the file");
  EXPECT_LT(body_error("mov.b32 _, " + std::string(100000, 'a') + ";").size(), 1000u);
}

TEST(PtxParser, DeepNestingIsRefused) {
  EXPECT_CONTAINS(body_error(std::string(100000, '{')),
                  "nesting of scopes, got {, expected at most");
  EXPECT_CONTAINS(error_of(kHeader + ".global .b32 a[1] = " + std::string(100000, '{')),
                  "nested no deeper");
  EXPECT_CONTAINS(body_error("mov.b32 _, " + std::string(100000, '-') + ";"), "operand, got ;");
  EXPECT_CONTAINS(body_error("mov.b32 _, " + std::string(100000, '[') + ";"), "operand, got [");
}

TEST(PtxParser, TruncatedTextIsRefusedOrWhole) {
  for (size_t size = 0; size < kSample.size(); ++size) {
    Module module;
    const Status status =
        ptx::parse(std::string_view(kSample).substr(0, size), "test.ptx", &module);
    EXPECT_TRUE(status.ok() || status.message.rfind("test.ptx:", 0) == 0) << status.message;
  }
}

TEST(PtxParser, MutantsDoNotCrash) {
  std::mt19937 random(7);
  const std::string alphabet = ".%{}[]()<>;,:@!|+-_\"/*0fxU \n";
  for (int round = 0; round < 6000; ++round) {
    std::string text = kSample;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < edits; ++i) {
      const size_t at = random() % text.size();
      const size_t length = std::min<size_t>(1 + random() % 12, text.size() - at);
      const char byte =
          random() % 4 == 0 ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
      switch (random() % 4) {
        case 0:
          text.erase(at, length);
          break;
        case 1:
          text[at] = byte;
          break;
        case 2:
          text.insert(at, 1, byte);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), length));
          break;
      }
    }
    Module module;
    const Status status = ptx::parse(text, "test.ptx", &module);
    ASSERT_TRUE(status.ok() || status.code == Code::kInvalidValue);
  }
}

}  // namespace fa4::emulator::test
