// Variables with their initialisers, and registers.
#include <algorithm>
#include <bit>
#include <utility>

#include "csrc/emulator/ptx/parser.h"

namespace fa4::emulator::ptx {

namespace {

constexpr uint64_t kMostBytes = uint64_t{1} << 40;  // of a variable; keeps products within 64 bits
constexpr uint64_t kMostAlign = 1 << 16;
constexpr uint64_t kMostRegisters = 1 << 20;  // that the ranges of a kernel declare
constexpr size_t kMostDimensions = 16;
constexpr uint64_t kMostInitial = 64 << 20;          // bytes of all initialisers
constexpr uint64_t kMostGlobal = uint64_t{4} << 30;  // bytes of all .global and .const variables

bool is_space(std::string_view word) {
  return word == ".global" || word == ".const" || word == ".shared" || word == ".local";
}

/// The literal's value; integers count as numbers.
double as_double(const Operand& number) {
  if (!number.is_float) return static_cast<double>(number.value);
  if (number.float_bits == 64) return std::bit_cast<double>(number.value);
  return std::bit_cast<float>(static_cast<uint32_t>(number.value));
}

uint64_t initial_bits(const Operand& number, Type type) {
  if (type == Type::kF64) return std::bit_cast<uint64_t>(as_double(number));
  if (type != Type::kF32) return static_cast<uint64_t>(number.value);
  // A 0f literal is kept bit for bit, which a way through double does not promise for a NaN.
  if (number.is_float && number.float_bits == 32) return static_cast<uint32_t>(number.value);
  return std::bit_cast<uint32_t>(static_cast<float>(as_double(number)));
}

}  // namespace

bool Parser::variables(Space space, bool is_extern) {
  Specifiers specifiers;
  specifiers.space = space;
  specifiers.is_extern = is_extern;
  if (!this->specifiers(&specifiers)) return false;
  do {
    uint32_t index = 0;
    if (!variable(specifiers, &index)) return false;
    if (kernel_ != nullptr) kernel_->symbols.push_back(index);
  } while (reader_.accept(','));
  return reader_.expect(';', "variable");
}

bool Parser::specifiers(Specifiers* result) {
  while (reader_.token().is_directive()) {
    if (!specifier(reader_.take(), result)) return false;
  }
  if (result->type != Type::kNone && result->type != Type::kPred) return true;
  return reader_.fail(reader_.token(), "type of a variable before this",
                      "a type such as .b32 (not .pred, textures or samplers)");
}

bool Parser::specifier(const Token& word, Specifiers* result) {
  const std::string_view text = word.text;
  if (text == ".align") {
    const Token number = reader_.token();
    uint64_t align = 0;
    if (!reader_.integer(kMostAlign, ".align", &align)) return false;
    if (!std::has_single_bit(align)) return reader_.fail(number, ".align", "a power of two");
    // .ptr .align tells about the memory that a parameter points to.
    if (!result->is_pointer) result->align = static_cast<uint32_t>(align);
    return true;
  }
  if (text == ".attribute") {
    return reader_.expect('(', ".attribute") && reader_.skip_to_close('(', ')');
  }
  if (text == ".v2" || text == ".v4" || text == ".v8") {
    result->elements = static_cast<uint32_t>(text[2] - '0');
    return true;
  }
  if (result->is_kernel_param && text == ".ptr") {
    result->is_pointer = true;
    return true;
  }
  if (result->is_pointer && is_space(text)) return true;
  const Type type = type_named(text.substr(1));
  if (type == Type::kNone || result->type != Type::kNone) {
    return reader_.fail(word, "variable", "one type, .align, .v2, .v4 or .attribute");
  }
  result->type = type;
  return true;
}

bool Parser::variable(const Specifiers& specifiers, uint32_t* index) {
  const Token name = reader_.token();
  if (name.kind != TokenKind::kWord) return reader_.fail(name, "variable", "a name");
  reader_.take();
  Symbol symbol;
  symbol.name = name.text;
  symbol.space = specifiers.space;
  symbol.type = specifiers.type;
  symbol.is_extern = specifiers.is_extern;
  symbol.align = specifiers.align != 0
                     ? specifiers.align
                     : specifiers.elements * static_cast<uint32_t>(type_bytes(specifiers.type));
  Initialiser state;
  state.symbol = &symbol;
  bool open = false;
  std::vector<uint64_t> dims;
  if (!dimensions(&dims, &open)) return false;
  if (!layout(specifiers, &dims, &state)) return false;
  if (reader_.accept('=')) {
    const bool initialisable =
        (symbol.space == Space::kGlobal || symbol.space == Space::kConst) && !symbol.is_extern;
    if (!initialisable) {
      return reader_.fail(name, "initialiser", "a .global or .const variable that is not extern");
    }
    if (!(reader_.token().is('{') ? initialiser(&state, 0) : initial_value(&state))) return false;
    // The last row counts whole.
    if (open)
      state.limit = (state.end + state.strides[0] - 1) / state.strides[0] * state.strides[0];
  }
  if (open && !symbol.is_extern && state.end == 0) {
    return reader_.fail(name, "array of unknown size", "a size, an initialiser or .extern");
  }
  initial_bytes_ += symbol.initial.size();
  symbol.bytes = open && symbol.is_extern ? 0 : state.limit;
  if (symbol.space == Space::kGlobal || symbol.space == Space::kConst) {
    global_bytes_ += symbol.bytes;
    if (global_bytes_ > kMostGlobal) {
      return reader_.fail(name, "size of this and earlier variables", "at most 4 GiB");
    }
  }
  return add_symbol(std::move(symbol), name, index);
}

/// [4][] ...; 0 stands for an open first extent.
bool Parser::dimensions(std::vector<uint64_t>* result, bool* open) {
  while (reader_.accept('[')) {
    if (result->size() == kMostDimensions) {
      return reader_.fail(reader_.token(), "dimensions of an array", "at most 16");
    }
    uint64_t extent = 0;
    if (result->empty() && reader_.token().is(']')) {
      *open = true;
    } else {
      const Token token = reader_.token();
      if (!reader_.integer(kMostBytes, "extent of an array", &extent)) return false;
      if (extent == 0) return reader_.fail(token, "extent of an array", "at least 1");
    }
    result->push_back(extent);
    if (!reader_.expect(']', "extent of an array")) return false;
  }
  return true;
}

/// Strides and size of the array.
bool Parser::layout(const Specifiers& specifiers, std::vector<uint64_t>* dims,
                    Initialiser* result) {
  const bool open = !dims->empty() && dims->front() == 0;
  if (specifiers.elements > 1) dims->push_back(specifiers.elements);
  uint64_t bytes = static_cast<uint64_t>(type_bytes(specifiers.type));
  result->strides.resize(dims->size());
  for (size_t i = dims->size(); i-- > 0;) {
    result->strides[i] = bytes;
    if (i == 0 && open) break;
    const uint64_t extent = (*dims)[i];
    if (extent != 0 && bytes > kMostBytes / extent) {
      return reader_.fail(reader_.token(), "size of the variable before this",
                          "at most 2^40 bytes");
    }
    bytes *= extent;
  }
  result->limit = open ? kMostBytes : bytes;
  return true;
}

/// { value or { ... }, ... } of dimension `level`.
bool Parser::initialiser(Initialiser* state, size_t level) {
  const Token brace = reader_.take();
  if (level >= state->strides.size()) {
    return reader_.fail(brace, "initialiser",
                        "braces nested no deeper than the array's dimensions");
  }
  if (reader_.accept('}')) return true;
  do {
    if (!reader_.token().is('{')) {
      if (!initial_value(state)) return false;
      continue;
    }
    const uint64_t begin = state->cursor;
    if (!initialiser(state, level + 1)) return false;
    if (state->cursor > begin + state->strides[level]) {
      return reader_.fail(reader_.token(), "initialiser before this",
                          "at most one row of the array");
    }
    state->cursor = begin + state->strides[level];
    if (state->cursor > state->limit) {
      return reader_.fail(brace, "initialiser", "no more values than the variable holds");
    }
    state->end = std::max(state->end, state->cursor);
  } while (reader_.accept(','));
  return reader_.expect('}', "initialiser");
}

/// A number or the address of a symbol.
bool Parser::initial_value(Initialiser* state) {
  const Token first = reader_.token();
  const uint64_t bytes = static_cast<uint64_t>(type_bytes(state->symbol->type));
  if (state->limit - std::min(state->cursor, state->limit) < bytes) {
    return reader_.fail(first, "initialiser", "no more values than the variable holds");
  }
  if (initial_bytes_ + state->cursor + bytes > kMostInitial) {
    return reader_.fail(first, "initialiser", "at most 64 MiB in all of the module");
  }
  state->symbol->initial.resize(state->cursor + bytes);
  const bool done =
      first.kind == TokenKind::kWord ? initial_reference(state) : initial_number(state);
  state->cursor += bytes;
  state->end = std::max(state->end, state->cursor);
  return done;
}

bool Parser::initial_number(Initialiser* state) {
  const Token first = reader_.token();
  const Type type = state->symbol->type;
  Operand number;
  if (!constant(&number)) return false;
  if (number.is_float && type != Type::kF32 && type != Type::kF64) {
    return reader_.fail(first, "initialiser", "an integer for a variable that is not .f32 or .f64");
  }
  const uint64_t bits = initial_bits(number, type);
  const int bytes = std::min(type_bytes(type), 8);
  for (int i = 0; i < bytes; ++i) {
    state->symbol->initial[state->cursor + i] = static_cast<uint8_t>(bits >> (8 * i));
  }
  return true;
}

/// name, name+4, generic(name), generic(name)+4
bool Parser::initial_reference(Initialiser* state) {
  const Token first = reader_.take();
  Token name = first;
  if (first.text == "generic" && reader_.accept('(')) {
    name = reader_.take();
    if (!reader_.expect(')', "generic()")) return false;
  }
  if (name.kind != TokenKind::kWord || type_bytes(state->symbol->type) != 8) {
    return reader_.fail(name, "initialiser", "a number; addresses only as elements of 8 bytes");
  }
  Symbol::Reference reference{state->cursor, std::string(name.text), 0};
  if (!terms(&reference.offset)) return false;
  state->symbol->references.push_back(std::move(reference));
  references_.push_back(name);
  return true;
}

/// Adds to the innermost scope. Declarations of one name may repeat where all but one are extern.
bool Parser::add_symbol(Symbol symbol, const Token& name, uint32_t* index) {
  const auto next = static_cast<uint32_t>(module_.symbols.size());
  const Name* const known = scopes_.own(name.text);
  if (known == nullptr && scopes_.declare(name.text, {Name::kSymbol, next})) {
    *index = next;
    module_.symbols.push_back(std::move(symbol));
    return true;
  }
  if (known != nullptr && known->kind == Name::kSymbol) {
    Symbol& other = module_.symbols[known->index];
    const bool function = symbol.space == Space::kFunction;
    if (other.space == symbol.space && (other.is_extern || symbol.is_extern || function)) {
      *index = known->index;
      if (other.is_extern && !symbol.is_extern) other = std::move(symbol);
      return true;
    }
  }
  return reader_.fail(name, "declaration", "a name that its scope does not have yet");
}

/// .reg .b32 %r<10>, x, y;
bool Parser::registers() {
  const Token word = reader_.token();
  const Type type = word.is_directive() ? type_named(word.text.substr(1)) : Type::kNone;
  if (type == Type::kNone) {
    return reader_.fail(word, "type of .reg", "a scalar type such as .b32 or .pred");
  }
  reader_.take();
  do {
    const Token name = reader_.token();
    if (name.kind != TokenKind::kWord || name.is_directive()) {
      return reader_.fail(name, "register", "a name");
    }
    reader_.take();
    if (reader_.accept('<')) {
      if (!register_range(name, type)) return false;
      continue;
    }
    const auto index = static_cast<uint32_t>(kernel_->registers.size());
    if (!scopes_.declare(name.text, {Name::kRegister, index})) {
      return reader_.fail(name, "register", "a name that its scope does not have yet");
    }
    kernel_->registers.push_back({type, std::string(name.text)});
  } while (reader_.accept(','));
  return reader_.expect(';', ".reg");
}

/// What follows "%r<".
bool Parser::register_range(const Token& prefix, Type type) {
  uint64_t count = 0;
  if (!reader_.integer(kMostRegisters, "number of registers", &count)) return false;
  if (!reader_.expect('>', "number of registers")) return false;
  declared_registers_ += count;
  if (declared_registers_ > kMostRegisters) {
    return reader_.fail(prefix, "registers of the kernel, from this declaration on",
                        "at most " + std::to_string(kMostRegisters));
  }
  if (scopes_.declare_range(prefix.text, type, static_cast<uint32_t>(count))) return true;
  return reader_.fail(prefix, "registers", "names that their scope does not have yet");
}

}  // namespace fa4::emulator::ptx
