// What a PTX file says, as data: the parser's result. Names are resolved (registers, symbols,
// labels), nothing is interpreted: an opcode is the text that stands in the file.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flash_attn4/status.h"

namespace fa4::emulator::ptx {

/// Fundamental types of PTX. kNone: the declaration or opcode names none.
enum class Type : uint8_t {
  kNone,
  kPred,
  kB8,
  kB16,
  kB32,
  kB64,
  kB128,
  kU8,
  kU16,
  kU32,
  kU64,
  kS8,
  kS16,
  kS32,
  kS64,
  kF16,
  kF16x2,
  kBF16,
  kBF16x2,
  kF32,
  kF32x2,
  kF64,
};

/// Bytes of a value; 0 for kPred and kNone.
int type_bytes(Type type);
/// "f32"; the type of an opcode part or a declaration, kNone where the text names none.
Type type_named(std::string_view name);
const char* type_name(Type type);

/// A virtual register of one kernel. Scopes of inline assembly are resolved: two registers of one
/// name in two scopes are two entries.
struct Register {
  Type type = Type::kNone;
  std::string name;  // with its %
};

enum class Space : uint8_t { kGlobal, kConst, kShared, kLocal, kParam, kFunction };

/// A variable or function.
struct Symbol {
  std::string name;
  Space space = Space::kGlobal;
  Type type = Type::kNone;  // of an element
  uint32_t align = 1;
  uint64_t bytes = 0;   // 0: extern shared memory, whose size the launch gives
  uint64_t offset = 0;  // of a kernel parameter, in the parameter block
  bool is_extern = false;
  std::vector<uint8_t> initial;  // global and const; shorter than bytes: the rest is 0
  // Places of `initial` that hold the address of another symbol, as 8 bytes.
  struct Reference {
    uint64_t at = 0;
    std::string symbol;
    int64_t offset = 0;
  };
  std::vector<Reference> references;
};

enum class Special : uint8_t {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kClusteridX,
  kClusteridY,
  kClusteridZ,
  kNclusteridX,
  kNclusteridY,
  kNclusteridZ,
  kClusterCtaidX,
  kClusterCtaidY,
  kClusterCtaidZ,
  kClusterNctaidX,
  kClusterNctaidY,
  kClusterNctaidZ,
  kClusterCtarank,
  kClusterNctarank,
  kIsExplicitCluster,
  kLaneid,
  kWarpid,
  kNwarpid,
  kSmid,
  kNsmid,
  kGridid,
  kLanemaskEq,
  kLanemaskLe,
  kLanemaskLt,
  kLanemaskGe,
  kLanemaskGt,
  kClock,
  kClockHi,
  kClock64,
  kGlobaltimer,
  kGlobaltimerLo,
  kGlobaltimerHi,
  kTotalSmemSize,
  kAggrSmemSize,
  kDynamicSmemSize,
  kCount,
};
/// "%tid.x"
const char* special_name(Special special);

struct Operand {
  enum Kind : uint8_t {
    kSink,       // _
    kRegister,   // index: into Kernel::registers
    kImmediate,  // value; is_float: the bits of a 0f (32) or 0d (64 bit) literal
    kSymbol,     // index: into Module::symbols; value: offset added in the text (name+8)
    kLabel,      // index: into Kernel::labels
    kSpecial,    // special
    kAddress,    // [base+value]: parts[0] is a register, symbol or immediate.
                 // [base, {c0, c1}]: parts[1] is the vector of coordinates.
    kVector,     // {a, b}: parts
    kPair,       // a|b: parts
    kGroup,      // (a, b) of a call: parts
  };
  Kind kind = kSink;
  bool negated = false;    // !%p, or -%r
  bool is_float = false;   // immediates
  uint8_t float_bits = 0;  // 32 or 64 when is_float
  Special special = Special::kCount;
  uint32_t index = 0;
  int64_t value = 0;
  std::vector<Operand> parts;
};

/// Where an instruction stands: line of the PTX text and, where .loc directives tell, the source.
struct Place {
  uint32_t line = 0;
  uint32_t source_file = 0;  // number of a .file directive; 0: none
  uint32_t source_line = 0;
};

struct Instruction {
  Place place;
  bool guarded = false;
  bool guard_negated = false;
  uint32_t guard = 0;                   // register
  std::string_view opcode;              // "fma.rn.ftz.f32"; stored in Module::opcodes
  std::vector<std::string_view> parts;  // of opcode, split at '.': "fma", "rn", "ftz", "f32"
  std::vector<Operand> operands;
};

struct Label {
  std::string name;
  uint32_t target = 0;  // index of the instruction that follows; may equal the count
};

struct Kernel {
  std::string name;
  Place place;
  std::vector<uint32_t> params;  // symbols, in order
  uint64_t param_bytes = 0;
  std::vector<Register> registers;
  std::vector<Instruction> instructions;
  std::vector<Label> labels;
  std::vector<uint32_t> symbols;          // declared in the body: shared, local, call parameters
  std::array<uint32_t, 3> max_threads{};  // .maxntid; 0: absent
  std::array<uint32_t, 3> required_threads{};  // .reqntid
  std::array<uint32_t, 3> cluster{};           // .reqnctapercluster
  bool explicit_cluster = false;
  uint32_t max_registers = 0;  // .maxnreg
};

struct Module {
  int version_major = 0, version_minor = 0;
  std::string target;           // "sm_100f"
  std::vector<Symbol> symbols;  // of the module and of every kernel
  std::vector<Kernel> kernels;
  std::vector<std::string> files;  // by number of a .file directive; [0] is empty
  std::string text;                // the PTX; error messages quote lines of it
  // What Instruction::opcode and parts view. Copies of a module share it, moves keep it.
  std::shared_ptr<const std::deque<std::string>> opcodes;

  /// Line `number` (from 1) without surrounding blanks.
  std::string_view line(uint32_t number) const;
};

/// Parses PTX of versions 8.x and 9.x. On failure invalid_value with "FILE:LINE: what, got X,
/// expected Y: text of the line", and `result` is as before; `file` is the name that messages use.
Status parse(std::string_view text, std::string_view file, Module* result);

}  // namespace fa4::emulator::ptx
