// From parsed PTX to the operations of the machine: one Op per instruction, in the same order, so that
// a pc is an index into both.
//
// Each family of instructions (csrc/emulator/isa/) lowers its own: it finds the handler for a form and
// says which operands the handler reads and writes. Registers are virtual until allocate_registers.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "csrc/emulator/machine/code.h"
#include "csrc/emulator/ptx/module.h"

namespace fa4::emulator {

/// An instruction the emulator has no model of. Becomes Status::unsupported with file, line and text.
class Unmodelled : public std::runtime_error {
 public:
  explicit Unmodelled(const std::string& what) : std::runtime_error(what) {}
};

/// A plane before registers are allocated: a number, or with kConstantPlane an index of a constant.
using VirtualPlane = uint32_t;
constexpr VirtualPlane kConstantPlane = 1u << 31;
constexpr VirtualPlane kNoPlane = UINT32_MAX;

/// Handler of what has no effect on values: hints, fences, moves that were forwarded.
void no_operation(Warp& warp, const Op& op);

struct Draft {
  Op op;
  std::array<VirtualPlane, 8> r;
  std::vector<VirtualPlane> list;
  std::vector<VirtualPlane> reads, writes;  // without constants
  bool pending_load = false;                // writes its registers later: tcgen05.ld
  bool waits_loads = false;                 // ... at the latest here: tcgen05.wait::ld
  bool needs_loads = false;                 // uses such a register before the wait
  enum class Wgmma : uint8_t { kNone, kMma, kFence, kCommit, kWait };
  Wgmma wgmma = Wgmma::kNone;  // of kMma the list holds the accumulators, then A
  WgmmaHazard wgmma_hazard;
};

/// Variables of a module in the host's memory.
class Variables {
 public:
  explicit Variables(const ptx::Module& module);
  bool holds(uint32_t symbol) const { return address_.count(symbol) != 0; }
  uint64_t address(uint32_t symbol) const { return address_.at(symbol); }
  const std::vector<std::pair<uint64_t, uint64_t>>& ranges() const { return ranges_; }

 private:
  std::vector<std::unique_ptr<uint8_t, void (*)(void*)>> storage_;
  std::unordered_map<uint32_t, uint64_t> address_;
  std::vector<std::pair<uint64_t, uint64_t>> ranges_;  // begin, end
};

class Lowering {
 public:
  Lowering(const ptx::Module& module, const ptx::Kernel& kernel, const Variables& variables,
           Code* code);

  /// Lowers every instruction. Throws Unmodelled, with the instruction in place().
  void run();
  /// Of the instruction in work, the kernel's before the first.
  uint32_t line() const {
    return instruction_ != nullptr ? instruction_->place.line : kernel_.place.line;
  }

  // ---- What stands in the instruction
  bool has(std::string_view part) const;
  std::string_view part(size_t index) const;  // empty beyond the last
  ptx::Type last_type() const;                // of the last part that names a type
  int last_type_bytes() const;  // of its values; at least 1: without a type unmodelled
  size_t operand_count() const { return instruction_->operands.size(); }
  const ptx::Operand& operand(size_t index) const;
  /// The form is not modelled.
  [[noreturn]] void unmodelled(const std::string& why = "") const;
  /// Refuses the form unless all parts but the first are among these: what a family's list in
  /// isa/table.cpp leaves open.
  void only(std::initializer_list<std::string_view> parts) const;

  // ---- What the handler works on
  Draft& emit(Handler handler, OpClass op_class);
  void reads(Draft& draft, int place, const ptx::Operand& operand, int bytes);
  void writes(Draft& draft, int place, const ptx::Operand& operand, int bytes);
  void reads_list(Draft& draft, const ptx::Operand& operand, int bytes);
  void writes_list(Draft& draft, const ptx::Operand& operand, int bytes);
  void reads_pred(Draft& draft, const ptx::Operand& operand);
  void writes_pred(Draft& draft, int index, const ptx::Operand& operand);
  /// [base + offset]: the base in place kA unless told, the offset in imm.
  void address(Draft& draft, const ptx::Operand& operand, int place = kA);
  /// An operand that must be an integer immediate.
  int64_t immediate(const ptx::Operand& operand) const;
  bool is_immediate(const ptx::Operand& operand) const {
    return operand.kind == ptx::Operand::kImmediate;
  }
  bool is_pred(const ptx::Operand& operand) const;
  ptx::Type register_type(const ptx::Operand& operand) const;
  uint32_t label_target(const ptx::Operand& operand) const;
  const std::string& symbol_name(const ptx::Operand& operand) const;
  /// The space of the symbol at the base of an address or in a mov, kFunction where there is none.
  ptx::Space symbol_space(const ptx::Operand& operand) const;
  /// Whether the base of an address is a parameter of the kernel (not of a call), and its place there.
  bool is_kernel_parameter(const ptx::Operand& operand) const;
  uint64_t symbol_param_offset(const ptx::Operand& operand, uint64_t bytes) const;
  Code& code() { return *code_; }
  const ptx::Kernel& kernel() const { return kernel_; }
  const ptx::Module& module() const { return module_; }

  VirtualPlane constant(uint32_t value);

 private:
  struct RegisterInfo {
    VirtualPlane first = 0;
    uint8_t planes = 0;  // 0: a predicate
    PredRef pred = 0;
    uint32_t definitions = 0;
    bool guarded_definition = false;
  };
  void lay_out_symbols();
  void number_registers();
  void count_definitions();
  /// Gives a register that is a plain copy the planes of its source. False: it needs an instruction.
  bool forward_move();
  void resolve_copies();
  bool forwards(const ptx::Operand& operand) const;
  VirtualPlane plane(const ptx::Operand& operand, int index);
  VirtualPlane resolved(VirtualPlane plane) const;
  VirtualPlane filled(Fill fill);
  VirtualPlane symbol_plane(const ptx::Operand& operand, int index);
  void note_read(Draft& draft, VirtualPlane plane);

  const ptx::Module& module_;
  const ptx::Kernel& kernel_;
  const Variables& variables_;
  Code* code_;
  const ptx::Instruction* instruction_ = nullptr;
  std::vector<RegisterInfo> registers_;
  std::vector<VirtualPlane> alias_;  // by plane; itself where it is no alias
  std::vector<std::pair<Fill, VirtualPlane>> fills_;
  std::unordered_map<uint32_t, VirtualPlane> constants_;
  std::unordered_map<uint32_t, uint32_t> shared_offset_;  // symbol -> offset from address 0
  std::unordered_map<uint32_t, uint32_t> local_offset_;
  VirtualPlane planes_ = 0;
  VirtualPlane scratch_ = 0;  // written by operands `_`
  std::vector<Draft> drafts_;

  friend void allocate_registers(Lowering& lowering);
};

/// Liveness and slots: turns virtual planes into the fewest registers, so that a warp's fit the caches.
void allocate_registers(Lowering& lowering);

/// Lowers the current instruction by its family (isa/table.cpp).
void lower_instruction(Lowering& lowering);

}  // namespace fa4::emulator
