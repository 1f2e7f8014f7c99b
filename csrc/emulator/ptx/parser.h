// The parser of PTX. Functions that return bool give false after a recorded error. Nesting is kept
// in Scopes, not on the call stack; the one recursion (initialisers) is bounded by the dimensions.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "csrc/emulator/ptx/module.h"
#include "csrc/emulator/ptx/reader.h"
#include "csrc/emulator/ptx/scopes.h"
#include "flash_attn4/status.h"

namespace fa4::emulator::ptx {

class Parser {
 public:
  Parser(std::string_view text, std::string_view file);
  Status run(Module* result);

 private:
  // An opcode of the file, stored once.
  struct Opcode {
    std::string_view text;
    std::vector<std::string_view> parts;
    bool is_call = false;
    bool is_branch = false;   // bra, brx: names are labels
    bool is_indexed = false;  // brx.idx
  };
  // `.global .align 8 .v2 .b32`: what precedes the name of a variable.
  struct Specifiers {
    Space space = Space::kGlobal;
    bool is_extern = false;
    bool is_kernel_param = false;
    bool is_pointer = false;  // .ptr: what follows describes the memory pointed to
    Type type = Type::kNone;
    uint32_t elements = 1;  // of .v2, .v4
    uint32_t align = 0;     // 0: natural
  };
  // An array that is being initialised.
  struct Initialiser {
    Symbol* symbol = nullptr;
    std::vector<uint64_t> strides;  // bytes of an element of each dimension
    uint64_t limit = 0;             // bytes; of name[] as many as are written
    uint64_t cursor = 0;
    uint64_t end = 0;
  };

  // parser_module.cpp: the file scope.
  bool module_statement();
  bool version();
  bool target();
  bool address_size();
  bool file_directive();
  bool section();
  bool linkage();
  bool function(bool is_extern);
  bool kernel();
  bool kernel_parameters(Kernel* kernel);
  bool kernel_directives(Kernel* kernel);
  bool extents(std::array<uint32_t, 3>* result);
  bool pragma();
  bool check_references();

  // parser_declarations.cpp: variables and registers.
  bool variables(Space space, bool is_extern);
  bool specifiers(Specifiers* result);
  bool specifier(const Token& word, Specifiers* result);
  bool variable(const Specifiers& specifiers, uint32_t* index);
  bool dimensions(std::vector<uint64_t>* result, bool* open);
  bool layout(const Specifiers& specifiers, std::vector<uint64_t>* dims, Initialiser* result);
  bool initialiser(Initialiser* state, size_t level);
  bool initial_value(Initialiser* state);
  bool initial_reference(Initialiser* state);
  bool initial_number(Initialiser* state);
  bool add_symbol(Symbol symbol, const Token& name, uint32_t* index);
  bool registers();
  bool register_range(const Token& prefix, Type type);

  // parser.cpp: statements of a body.
  bool body();
  bool statement();
  bool scope();
  bool directive(const Token& word);
  bool location();
  bool label(const Token& name);
  bool branch_targets(const Token& name);
  bool instruction(const Token& word, Instruction instruction);
  bool guarded_instruction();
  const Opcode* opcode(const Token& word);
  bool check_call(const Token& word, const Instruction& instruction);
  bool resolve_labels();
  bool resolve_label(const Instruction& instruction, Operand* operand);

  // parser_operands.cpp
  bool operand(const Opcode& opcode, Operand* result);
  bool list(const Opcode& opcode, char close, Operand* result);
  bool address(const Opcode& opcode, Operand* result);
  bool value(const Opcode& opcode, Operand* result);
  bool primary(const Opcode& opcode, Operand* result);
  bool number(std::string_view prefix, Operand* result);
  bool name(const Opcode& opcode, Operand* result);
  bool constant(Operand* result);
  std::string operators();
  bool terms(int64_t* value);

  Module module_;
  Reader reader_;
  Scopes scopes_;
  Labels labels_;
  std::shared_ptr<std::deque<std::string>> opcode_texts_;
  std::unordered_map<std::string_view, Opcode> opcodes_;
  std::vector<Token> references_;    // symbols that initialisers name
  uint64_t initial_bytes_ = 0;       // of all initialisers
  uint64_t global_bytes_ = 0;        // of all variables in global memory
  Kernel* kernel_ = nullptr;         // whose body is read
  std::vector<uint32_t> branches_;   // instructions of it with label operands
  uint64_t declared_registers_ = 0;  // by ranges of it
  Place place_;                      // of the last .loc
};

}  // namespace fa4::emulator::ptx
