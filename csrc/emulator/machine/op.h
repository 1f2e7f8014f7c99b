// A lowered instruction, and the registers it works on.
//
// A register of a warp is a plane: 32 lanes of 32 bits. Narrower values use the low bits, 64-bit
// values two planes (low, high), which need not be neighbours, so that packing two 32-bit registers
// into one of 64 costs nothing. Predicates are 32-bit masks.
#pragma once

#include <cstdint>
#include <string>

namespace fa4::emulator {

constexpr int kWarpLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct Warp;
struct Op;
using Handler = void (*)(Warp&, const Op&);
/// What a warp that stands at the instruction waits for, for reports and traces.
using WaitText = std::string (*)(const Warp&, const Op&, uint32_t lanes);

/// Which plane: an index into the warp's registers or, with kConstant set, into the constants of the
/// kernel.
using PlaneRef = uint16_t;
constexpr PlaneRef kConstant = 0x8000;

/// A mask of lanes: predicate register number, or none.
using PredRef = uint16_t;
constexpr PredRef kNoPred = 0xffff;

/// Op::mode of the instructions of OpClass::kControl after which another one than the next may follow.
enum : uint8_t { kBranch = 1, kBranchIndexed = 2, kLeave = 3 };

/// What traces count.
enum class OpClass : uint8_t {
  kInteger,
  kFloat,
  kApprox,
  kConvert,
  kMove,
  kPredicate,
  kControl,
  kGlobal,
  kShared,
  kLocal,
  kBarrier,
  kMbarrier,
  kCopy,
  kMma,
  kTmem,
  kWarp,
  kFence,
  kOther,
  kCount,
};
const char* op_class_name(OpClass op_class);

/// Places of operands in Op::r: destination, then sources a, b, c; each a low and a high plane.
enum : int { kD = 0, kA = 2, kB = 4, kC = 6 };

struct Op {
  Handler run = nullptr;
  WaitText wait_text = nullptr;
  PlaneRef r[8] = {};
  PredRef p[3] = {kNoPred, kNoPred, kNoPred};  // destination, second destination, source
  PredRef guard = kNoPred;
  bool guard_negated = false;
  bool source_negated = false;  // of p[2]
  OpClass op_class = OpClass::kOther;
  uint8_t width = 0;        // bytes of an element, where a handler serves several
  uint8_t space = 0;        // ptx::Space or kGeneric
  uint8_t mode = 0;         // variants of a handler, as its family defines them
  uint16_t list_count = 0;  // planes of longer operand lists, in Code::lists
  uint32_t list = 0;
  uint32_t extra = 0;    // index into tables of the code, or a second immediate
  uint32_t line = 0;     // of the PTX
  int32_t offset_b = 0;  // of second and third addresses, in places kB and kC
  int32_t offset_c = 0;
  int64_t imm = 0;  // branch target, address offset, table selector
};
static_assert(sizeof(Op) <= 96);

}  // namespace fa4::emulator
