#include "csrc/emulator/lower/lowering.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "csrc/emulator/machine/machine.h"
#include "csrc/emulator/machine/special.h"

namespace fa4::emulator {

using ptx::Operand;
using ptx::Space;
using ptx::Symbol;
using ptx::Type;

namespace {

constexpr uint64_t kMostShared = 228 << 10;  // bytes of a CTA on any GPU
constexpr uint64_t kMostLocal = 512 << 10;   // bytes of a thread, by the CUDA programming guide

uint32_t aligned(uint32_t offset, uint32_t align) {
  return (offset + align - 1) / align * align;
}

void end_of_kernel(Warp& w, const Op&) {
  w.exec = w.current.mask;
  w.outcome = Outcome::kExit;
}

/// Bits of an immediate as a value of `bytes` bytes.
uint64_t immediate_bits(const Operand& operand, Type wanted) {
  if (!operand.is_float || operand.float_bits == 32) return static_cast<uint64_t>(operand.value);
  if (wanted != Type::kF32) return static_cast<uint64_t>(operand.value);
  double value = 0;
  std::memcpy(&value, &operand.value, 8);
  const auto narrow = static_cast<float>(value);
  uint32_t bits = 0;
  std::memcpy(&bits, &narrow, 4);
  return bits;
}

}  // namespace

void no_operation(Warp&, const Op&) {}

Variables::Variables(const ptx::Module& module) {
  const auto allocate = [this](const Symbol& symbol, uint32_t index) {
    const size_t align = std::max<size_t>(symbol.align, 16);
    // Pages that nobody touches cost nothing.
    storage_.emplace_back(static_cast<uint8_t*>(std::calloc(symbol.bytes + align, 1)), &std::free);
    if (storage_.back() == nullptr) throw std::bad_alloc();
    const auto raw = reinterpret_cast<uint64_t>(storage_.back().get());
    const uint64_t begin = (raw + align - 1) / align * align;
    std::ranges::copy(symbol.initial, reinterpret_cast<uint8_t*>(begin));
    address_[index] = begin;
    ranges_.emplace_back(begin, begin + symbol.bytes);
  };
  std::unordered_map<std::string, uint32_t> by_name;
  for (uint32_t i = 0; i < module.symbols.size(); ++i) {
    const Symbol& symbol = module.symbols[i];
    if (symbol.space != Space::kGlobal && symbol.space != Space::kConst) continue;
    allocate(symbol, i);
    by_name[symbol.name] = i;
  }
  for (const auto& [index, address] : address_) {
    for (const Symbol::Reference& reference : module.symbols[index].references) {
      const auto found = by_name.find(reference.symbol);
      if (found == by_name.end()) continue;
      const uint64_t value = address_[found->second] + static_cast<uint64_t>(reference.offset);
      std::memcpy(reinterpret_cast<void*>(address + reference.at), &value, 8);
    }
  }
}

Lowering::Lowering(const ptx::Module& module, const ptx::Kernel& kernel, const Variables& variables,
                   Code* code)
    : module_(module), kernel_(kernel), variables_(variables), code_(code) {}

void Lowering::run() {
  lay_out_symbols();
  number_registers();
  count_definitions();
  drafts_.reserve(kernel_.instructions.size() + 1);
  for (const ptx::Instruction& instruction : kernel_.instructions) {
    instruction_ = &instruction;
    ++code_->info.forms[std::string(instruction.opcode)];
    if (forward_move()) {
      emit(no_operation, OpClass::kMove);
      continue;
    }
    lower_instruction(*this);
  }
  Draft end;
  end.op.run = end_of_kernel;
  end.r.fill(kNoPlane);
  drafts_.push_back(std::move(end));
  resolve_copies();
  allocate_registers(*this);
}

// ---- Symbols -------------------------------------------------------------------------------------------

void Lowering::lay_out_symbols() {
  uint32_t shared = SharedMemory::kBase;
  std::vector<uint32_t> dynamic;
  const auto place = [&](uint32_t index) {
    const Symbol& symbol = module_.symbols[index];
    if (symbol.space == Space::kShared && symbol.bytes == 0) {
      dynamic.push_back(index);
      code_->dynamic_shared_align = std::max(code_->dynamic_shared_align, symbol.align);
    } else if (symbol.space == Space::kShared) {
      shared = aligned(shared, symbol.align);
      if (shared + symbol.bytes > SharedMemory::kBase + kMostShared) {
        throw Unmodelled("no more than 228 KiB of static shared memory, " + symbol.name +
                         " exceeds them");
      }
      shared_offset_[index] = shared;
      shared += static_cast<uint32_t>(symbol.bytes);
    } else if (symbol.space == Space::kLocal || symbol.space == Space::kParam) {
      code_->local_bytes = aligned(code_->local_bytes, std::max<uint32_t>(symbol.align, 16));
      if (code_->local_bytes + symbol.bytes > kMostLocal) {
        throw Unmodelled("no more than 512 KiB of local memory per thread, " + symbol.name +
                         " exceeds them");
      }
      local_offset_[index] = code_->local_bytes;
      code_->local_bytes += static_cast<uint32_t>(symbol.bytes);
    }
  };
  std::vector<bool> in_kernel(module_.symbols.size(), false);
  for (const ptx::Kernel& kernel : module_.kernels) {
    for (const uint32_t index : kernel.symbols) in_kernel[index] = true;
    for (const uint32_t index : kernel.params) in_kernel[index] = true;
  }
  for (uint32_t i = 0; i < module_.symbols.size(); ++i) {
    if (!in_kernel[i] && module_.symbols[i].space == Space::kShared) place(i);
  }
  for (const uint32_t index : kernel_.symbols) place(index);
  code_->static_shared_bytes = shared - SharedMemory::kBase;
  code_->local_bytes = aligned(code_->local_bytes, 16);
}

uint32_t Code::dynamic_shared_begin() const {
  return aligned(SharedMemory::kBase + static_shared_bytes, dynamic_shared_align);
}

// ---- Registers -----------------------------------------------------------------------------------------

void Lowering::number_registers() {
  registers_.resize(kernel_.registers.size());
  PredRef preds = 0;
  for (size_t i = 0; i < registers_.size(); ++i) {
    RegisterInfo& info = registers_[i];
    const Type type = kernel_.registers[i].type;
    if (type == Type::kPred) {
      if (preds == kNoPred - 1) throw Unmodelled("kernels with more than 65533 predicates");
      info.pred = preds++;
      continue;
    }
    info.planes = static_cast<uint8_t>(std::max(1, ptx::type_bytes(type) / 4));
    info.first = planes_;
    planes_ += info.planes;
  }
  scratch_ = planes_++;
  code_->preds = preds;
  alias_.resize(planes_);
  for (VirtualPlane i = 0; i < planes_; ++i) alias_[i] = i;
}

void Lowering::count_definitions() {
  // An instruction may define any register that its first operand names, or any in its first two
  // operands where results are lists or pairs. Counting too many only keeps a copy from being forwarded.
  const auto count = [this](const auto& self, const Operand& operand, bool guarded) -> void {
    if (operand.kind == Operand::kRegister) {
      ++registers_[operand.index].definitions;
      registers_[operand.index].guarded_definition |= guarded;
    }
    for (const Operand& part : operand.parts) self(self, part, guarded);
  };
  for (const ptx::Instruction& instruction : kernel_.instructions) {
    if (instruction.operands.empty()) continue;
    const Operand& first = instruction.operands[0];
    if (first.kind != Operand::kAddress) count(count, first, instruction.guarded);
  }
}

VirtualPlane Lowering::resolved(VirtualPlane plane) const {
  while ((plane & kConstantPlane) == 0 && plane < alias_.size() && alias_[plane] != plane) {
    plane = alias_[plane];
  }
  return plane;
}

/// Whether each use of the operand sees the one definition it has.
bool Lowering::forwards(const Operand& operand) const {
  if (operand.kind != Operand::kRegister) return false;
  const RegisterInfo& info = registers_[operand.index];
  return info.planes > 0 && info.definitions == 1 && !info.guarded_definition;
}

bool Lowering::forward_move() {
  // PTX from a compiler is in static single assignment form except for loop variables, and there copies
  // can be forwarded: wherever the copy is used, the source still has the same value.
  const ptx::Instruction& i = *instruction_;
  const bool is_move = i.parts[0] == "mov" && i.parts.size() == 2;
  const bool is_cast = i.parts[0] == "cvta" && (has("global") || has("param") || has("const"));
  if ((!is_move && !is_cast) || i.guarded || i.operands.size() != 2) return false;
  const int bytes = ptx::type_bytes(last_type());
  if (bytes < 4) return false;
  const Operand &to = i.operands[0], &from = i.operands[1];
  if (to.kind == Operand::kRegister && forwards(to) && from.kind == Operand::kRegister &&
      forwards(from) && registers_[to.index].planes == registers_[from.index].planes) {
    for (int k = 0; k < registers_[to.index].planes; ++k) {
      alias_[registers_[to.index].first + static_cast<uint32_t>(k)] = plane(from, k);
    }
    return true;
  }
  const bool fixed = from.kind == Operand::kImmediate || from.kind == Operand::kSymbol ||
                     (from.kind == Operand::kSpecial && special_is_fixed(from.special));
  if (fixed && forwards(to)) {
    for (int k = 0; k < registers_[to.index].planes; ++k) {
      alias_[registers_[to.index].first + static_cast<uint32_t>(k)] = plane(from, k);
    }
    return true;
  }
  const auto halves_forward = [&](const Operand& vector, const Operand& whole) {
    return vector.kind == Operand::kVector && static_cast<int>(vector.parts.size()) * 4 == bytes &&
           registers_[whole.index].planes == vector.parts.size() &&
           std::all_of(vector.parts.begin(), vector.parts.end(), [this](const Operand& part) {
             return forwards(part) && registers_[part.index].planes == 1;
           });
  };
  if (forwards(to) && halves_forward(from, to)) {
    for (size_t k = 0; k < from.parts.size(); ++k) {
      alias_[registers_[to.index].first + k] = plane(from.parts[k], 0);
    }
    return true;
  }
  if (forwards(from) && halves_forward(to, from)) {
    for (size_t k = 0; k < to.parts.size(); ++k) {
      alias_[registers_[to.parts[k].index].first] = plane(from, static_cast<int>(k));
    }
    return true;
  }
  return false;
}

/// Instructions may be lowered before the copy that their operands come from: code need not stand in the
/// order of its flow.
void Lowering::resolve_copies() {
  const auto resolve = [this](auto& planes) {
    for (VirtualPlane& plane : planes) {
      if (plane != kNoPlane) plane = resolved(plane);
    }
  };
  for (Draft& draft : drafts_) {
    resolve(draft.r);
    resolve(draft.list);
    resolve(draft.reads);
    resolve(draft.writes);
    std::erase_if(draft.reads, [](VirtualPlane plane) { return (plane & kConstantPlane) != 0; });
  }
}

VirtualPlane Lowering::constant(uint32_t value) {
  const auto [found, added] =
      constants_.emplace(value, kConstantPlane | static_cast<uint32_t>(constants_.size()));
  if (added) code_->constants.insert(code_->constants.end(), kWarpLanes, value);
  return found->second;
}

VirtualPlane Lowering::filled(Fill fill) {
  for (const auto& [known, plane] : fills_) {
    if (known.kind == fill.kind && known.high == fill.high && known.value == fill.value)
      return plane;
  }
  const VirtualPlane plane = planes_++;
  alias_.push_back(plane);
  fills_.emplace_back(fill, plane);
  return plane;
}

VirtualPlane Lowering::symbol_plane(const Operand& operand, int index) {
  const uint32_t symbol = operand.index;
  const Symbol& s = module_.symbols[symbol];
  const bool high = index == 1;
  const auto offset = static_cast<uint64_t>(operand.value);
  const auto half = [high](uint64_t value) {
    return static_cast<uint32_t>(high ? value >> 32 : value);
  };
  if (variables_.holds(symbol)) return constant(half(variables_.address(symbol) + offset));
  if (const auto found = shared_offset_.find(symbol); found != shared_offset_.end()) {
    return filled({Fill::kSharedAddress, high, 0, found->second + offset});
  }
  if (s.space == Space::kShared) return filled({Fill::kDynamicShared, high, 0, offset});
  if (const auto found = local_offset_.find(symbol); found != local_offset_.end()) {
    return constant(half(found->second + offset));
  }
  if (s.space == Space::kParam) return filled({Fill::kParameter, high, 0, s.offset + offset});
  unmodelled("the address of " + s.name);
}

VirtualPlane Lowering::plane(const Operand& operand, int index) {
  switch (operand.kind) {
    case Operand::kRegister: {
      const RegisterInfo& info = registers_[operand.index];
      if (info.planes == 0) unmodelled("a predicate where a value is expected");
      return index < info.planes ? resolved(info.first + static_cast<uint32_t>(index))
                                 : constant(0);
    }
    case Operand::kImmediate: {
      const uint64_t bits = immediate_bits(operand, last_type());
      return constant(static_cast<uint32_t>(index == 0 ? bits : index == 1 ? bits >> 32 : 0));
    }
    case Operand::kSymbol:
      return symbol_plane(operand, index);
    case Operand::kSpecial:
      if (!special_is_fixed(operand.special)) unmodelled("reading this register here");
      return filled({Fill::kSpecial, index == 1, 0, static_cast<uint64_t>(operand.special)});
    default:
      unmodelled("this kind of operand");
  }
}

// ---- Drafts --------------------------------------------------------------------------------------------

Draft& Lowering::emit(Handler handler, OpClass op_class) {
  Draft draft;
  draft.r.fill(kNoPlane);
  draft.op.run = handler;
  draft.op.op_class = op_class;
  draft.op.line = instruction_->place.line;
  if (instruction_->guarded) {
    draft.op.guard = registers_[instruction_->guard].pred;
    draft.op.guard_negated = instruction_->guard_negated;
  }
  drafts_.push_back(std::move(draft));
  return drafts_.back();
}

void Lowering::note_read(Draft& draft, VirtualPlane plane) {
  if ((plane & kConstantPlane) == 0) draft.reads.push_back(plane);
}

void Lowering::reads(Draft& draft, int place, const Operand& operand, int bytes) {
  for (int k = 0; k < 2; ++k) {
    const VirtualPlane p = k == 0 || bytes > 4 ? plane(operand, k) : constant(0);
    draft.r[static_cast<size_t>(place + k)] = p;
    note_read(draft, p);
  }
}

void Lowering::writes(Draft& draft, int place, const Operand& operand, int bytes) {
  if (operand.kind != Operand::kSink && operand.kind != Operand::kRegister) {
    unmodelled("a destination that is no register");
  }
  for (int k = 0; k < (bytes > 4 ? 2 : 1); ++k) {
    const bool held = operand.kind == Operand::kRegister && k < registers_[operand.index].planes;
    const VirtualPlane p = held ? plane(operand, k) : scratch_;
    draft.r[static_cast<size_t>(place + k)] = p;
    draft.writes.push_back(p);
  }
}

void Lowering::reads_list(Draft& draft, const Operand& operand, int bytes) {
  if (operand.kind == Operand::kVector) {
    for (const Operand& part : operand.parts) reads_list(draft, part, bytes);
    return;
  }
  for (int k = 0; k < std::max(1, bytes / 4); ++k) {
    const VirtualPlane p = plane(operand, k);
    draft.list.push_back(p);
    note_read(draft, p);
  }
}

void Lowering::writes_list(Draft& draft, const Operand& operand, int bytes) {
  if (operand.kind == Operand::kVector) {
    for (const Operand& part : operand.parts) writes_list(draft, part, bytes);
    return;
  }
  const bool sink = operand.kind == Operand::kSink;
  const int planes = std::max(1, bytes / 4);
  if (!sink && operand.kind != Operand::kRegister) unmodelled("a destination that is no register");
  if (!sink && registers_[operand.index].planes < planes) {
    unmodelled("a destination of fewer than " + std::to_string(4 * planes) + " bytes");
  }
  for (int k = 0; k < planes; ++k) {
    const VirtualPlane p = sink ? scratch_ : plane(operand, k);
    draft.list.push_back(p);
    draft.writes.push_back(p);
  }
}

bool Lowering::is_pred(const Operand& operand) const {
  return operand.kind == Operand::kRegister && registers_[operand.index].planes == 0;
}

void Lowering::reads_pred(Draft& draft, const Operand& operand) {
  if (!is_pred(operand)) unmodelled("a predicate operand that is no predicate register");
  draft.op.p[2] = registers_[operand.index].pred;
  draft.op.source_negated = operand.negated;
}

void Lowering::writes_pred(Draft& draft, int index, const Operand& operand) {
  if (operand.kind == Operand::kSink) {
    draft.op.p[index] = static_cast<PredRef>(code_->preds);  // one more than there are: never read
    return;
  }
  if (!is_pred(operand)) unmodelled("a predicate result that is no predicate register");
  draft.op.p[index] = registers_[operand.index].pred;
}

void Lowering::address(Draft& draft, const Operand& operand, int place) {
  if (operand.kind != Operand::kAddress || operand.parts.empty())
    unmodelled("an address is expected");
  const Operand& base = operand.parts[0];
  draft.op.imm = operand.value;
  const int bytes = base.kind == Operand::kRegister ? 4 * registers_[base.index].planes : 8;
  reads(draft, place, base, bytes);
}

// ---- The instruction -----------------------------------------------------------------------------------

bool Lowering::has(std::string_view part) const {
  const auto& parts = instruction_->parts;
  return std::find(parts.begin() + 1, parts.end(), part) != parts.end();
}

std::string_view Lowering::part(size_t index) const {
  return index < instruction_->parts.size() ? instruction_->parts[index] : std::string_view();
}

Type Lowering::last_type() const {
  for (size_t i = instruction_->parts.size(); i-- > 1;) {
    const Type type = ptx::type_named(instruction_->parts[i]);
    if (type != Type::kNone) return type;
  }
  return Type::kNone;
}

int Lowering::last_type_bytes() const {
  const int bytes = ptx::type_bytes(last_type());
  if (bytes == 0) unmodelled("without a type of values");
  return bytes;
}

const Operand& Lowering::operand(size_t index) const {
  if (index >= instruction_->operands.size()) {
    unmodelled("operand " + std::to_string(index + 1) + " is missing");
  }
  return instruction_->operands[index];
}

void Lowering::unmodelled(const std::string& why) const {
  throw Unmodelled("no model of " + std::string(instruction_->opcode) +
                   (why.empty() ? "" : ": " + why));
}

void Lowering::only(std::initializer_list<std::string_view> allowed) const {
  for (size_t i = 1; i < instruction_->parts.size(); ++i) {
    const std::string_view part = instruction_->parts[i];
    if (std::find(allowed.begin(), allowed.end(), part) == allowed.end()) {
      unmodelled("modifier ." + std::string(part));
    }
  }
}

int64_t Lowering::immediate(const Operand& operand) const {
  if (operand.kind != Operand::kImmediate) unmodelled("an immediate is expected");
  return operand.value;
}

Type Lowering::register_type(const Operand& operand) const {
  return operand.kind == Operand::kRegister ? kernel_.registers[operand.index].type : Type::kNone;
}

uint32_t Lowering::label_target(const Operand& operand) const {
  if (operand.kind != Operand::kLabel) unmodelled("a label is expected");
  return kernel_.labels[operand.index].target;
}

const std::string& Lowering::symbol_name(const Operand& operand) const {
  if (operand.kind != Operand::kSymbol) unmodelled("a symbol is expected");
  return module_.symbols[operand.index].name;
}

Space Lowering::symbol_space(const Operand& operand) const {
  const Operand& base = operand.kind == Operand::kAddress ? operand.parts[0] : operand;
  return base.kind == Operand::kSymbol ? module_.symbols[base.index].space : Space::kFunction;
}

bool Lowering::is_kernel_parameter(const Operand& operand) const {
  if (operand.kind != Operand::kAddress) return false;
  const Operand& base = operand.parts[0];
  return base.kind == Operand::kSymbol && std::find(kernel_.params.begin(), kernel_.params.end(),
                                                    base.index) != kernel_.params.end();
}

uint64_t Lowering::symbol_param_offset(const Operand& operand, uint64_t bytes) const {
  const Operand& base = operand.parts[0];
  const uint64_t offset = module_.symbols[base.index].offset + static_cast<uint64_t>(base.value) +
                          static_cast<uint64_t>(operand.value);
  if (offset > kernel_.param_bytes || bytes > kernel_.param_bytes - offset) {
    unmodelled(std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
               " of parameters of " + std::to_string(kernel_.param_bytes) + " bytes");
  }
  return offset;
}

}  // namespace fa4::emulator
