// Statements of a kernel's body.
#include "csrc/emulator/ptx/parser.h"

#include <utility>

namespace fa4::emulator::ptx {

namespace {

constexpr size_t kMostScopes = 256;

/// "a.b::c.d": "a", "b::c", "d".
std::vector<std::string_view> split(std::string_view opcode) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= opcode.size();) {
    const size_t end = std::min(opcode.find('.', begin), opcode.size());
    parts.push_back(opcode.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

Module module_of(std::string_view text) {
  Module module;
  module.text = text;
  return module;
}

bool starts_opcode(const Token& token) {
  return token.kind == TokenKind::kWord && token.text[0] >= 'a' && token.text[0] <= 'z';
}

}  // namespace

Parser::Parser(std::string_view text, std::string_view file)
    : module_(module_of(text)),
      reader_(module_.text, file),
      opcode_texts_(std::make_shared<std::deque<std::string>>()) {
  module_.files.emplace_back();
}

Status Parser::run(Module* result) {
  while (reader_.token().kind != TokenKind::kEnd) {
    if (!module_statement()) return reader_.status();
  }
  if (module_.target.empty()) {
    reader_.fail(reader_.token(), "module", ".version and .target");
    return reader_.status();
  }
  if (!check_references()) return reader_.status();
  module_.opcodes = std::move(opcode_texts_);
  *result = std::move(module_);
  return {};
}

bool Parser::body() {
  const size_t outer = scopes_.depth();
  if (!scope()) return false;
  while (scopes_.depth() > outer) {
    if (!statement()) return false;
  }
  return resolve_labels();
}

bool Parser::scope() {
  if (scopes_.depth() >= kMostScopes) {
    return reader_.fail(reader_.token(), "nesting of scopes", "at most 256 levels");
  }
  if (!reader_.expect('{', "body")) return false;
  scopes_.enter();
  labels_.enter();
  return true;
}

bool Parser::statement() {
  if (reader_.accept(';')) return true;
  if (reader_.token().is('{')) return scope();
  if (reader_.accept('}')) {
    scopes_.leave();
    labels_.leave();
    return true;
  }
  if (reader_.token().is('@')) return guarded_instruction();
  if (reader_.token().kind != TokenKind::kWord) {
    return reader_.fail(reader_.token(), "statement", "an instruction, label or directive");
  }
  const Token word = reader_.take();
  if (word.is_directive()) return directive(word);
  if (reader_.accept(':')) return label(word);
  return instruction(word, {});
}

bool Parser::directive(const Token& word) {
  if (word.text == ".reg") return registers();
  if (word.text == ".loc") return location();
  if (word.text == ".pragma") return pragma();
  if (word.text == ".file") return file_directive();
  if (word.text == ".shared") return variables(Space::kShared, false);
  if (word.text == ".local") return variables(Space::kLocal, false);
  if (word.text == ".param") return variables(Space::kParam, false);
  if (word.text == ".global") return variables(Space::kGlobal, false);
  if (word.text == ".const") return variables(Space::kConst, false);
  if (word.text == ".extern" && reader_.accept(".shared")) return variables(Space::kShared, true);
  return reader_.fail(word, "directive in a kernel",
                      ".reg, .shared, .local, .param, .global, .const, .extern .shared, .loc, "
                      ".file or .pragma");
}

/// .loc FILE LINE COLUMN [, function_name LABEL[+N], inlined_at FILE LINE COLUMN]
bool Parser::location() {
  constexpr uint64_t kLimit = UINT32_MAX;
  uint64_t file = 0, line = 0, unused = 0;
  if (!reader_.integer(kLimit, "file of .loc", &file)) return false;
  if (!reader_.integer(kLimit, "line of .loc", &line)) return false;
  if (!reader_.integer(kLimit, "column of .loc", &unused)) return false;
  place_.source_file = static_cast<uint32_t>(file);
  place_.source_line = static_cast<uint32_t>(line);
  if (!reader_.accept(',')) return true;
  if (!reader_.accept("function_name")) {
    return reader_.fail(reader_.token(), ".loc", "function_name");
  }
  if (reader_.token().kind != TokenKind::kWord) {
    return reader_.fail(reader_.token(), "function_name of .loc", "a label");
  }
  reader_.take();
  if (reader_.accept('+') && !reader_.integer(UINT64_MAX, "function_name of .loc", &unused)) {
    return false;
  }
  if (!reader_.expect(',', ".loc")) return false;
  if (!reader_.accept("inlined_at")) return reader_.fail(reader_.token(), ".loc", "inlined_at");
  for (int i = 0; i < 3; ++i) {
    if (!reader_.integer(kLimit, "inlined_at of .loc", &unused)) return false;
  }
  return true;
}

bool Parser::label(const Token& name) {
  if (reader_.accept(".branchtargets")) return branch_targets(name);
  if (reader_.token().is(".callprototype") || reader_.token().is(".calltargets")) {
    return reader_.fail(reader_.token(), "indirect call, which is not modelled",
                        "direct calls of declared functions");
  }
  const auto target = static_cast<uint32_t>(kernel_->instructions.size());
  if (labels_.define(name.text, name.line, target)) return true;
  return reader_.fail(name, "label", "a name that its scope does not have yet");
}

bool Parser::branch_targets(const Token& name) {
  std::vector<uint32_t> targets;
  do {
    if (reader_.token().kind != TokenKind::kWord) {
      return reader_.fail(reader_.token(), ".branchtargets", "a label");
    }
    const Token target = reader_.take();
    targets.push_back(labels_.use(target.text, target.line));
  } while (reader_.accept(','));
  if (!reader_.expect(';', ".branchtargets")) return false;
  if (labels_.define_table(name.text, name.line, std::move(targets))) return true;
  return reader_.fail(name, "label", "a name that its scope does not have yet");
}

bool Parser::guarded_instruction() {
  reader_.take();
  Instruction instruction;
  instruction.guarded = true;
  instruction.guard_negated = reader_.accept('!');
  const Token& token = reader_.token();
  const auto found =
      token.kind == TokenKind::kWord ? scopes_.find(token.text, &kernel_->registers) : std::nullopt;
  if (!found || found->kind != Name::kRegister ||
      kernel_->registers[found->index].type != Type::kPred) {
    return reader_.fail(token, "guard", "a declared predicate register");
  }
  instruction.guard = found->index;
  reader_.take();
  const Token word = reader_.take();
  return this->instruction(word, std::move(instruction));
}

const Parser::Opcode* Parser::opcode(const Token& word) {
  // Modifiers may stand apart from the opcode: add .s32.
  std::string joined;
  while (reader_.token().is_directive()) {
    if (joined.empty()) joined = word.text;
    joined += reader_.take().text;
  }
  const std::string_view text = joined.empty() ? word.text : joined;
  const auto found = opcodes_.find(text);
  if (found != opcodes_.end()) return &found->second;
  Opcode opcode;
  opcode.text = opcode_texts_->emplace_back(text);
  opcode.parts = split(opcode.text);
  opcode.is_call = opcode.parts[0] == "call";
  opcode.is_indexed = opcode.parts[0] == "brx";
  opcode.is_branch = opcode.is_indexed || opcode.parts[0] == "bra";
  return &opcodes_.emplace(opcode.text, std::move(opcode)).first->second;
}

bool Parser::instruction(const Token& word, Instruction instruction) {
  if (!starts_opcode(word)) return reader_.fail(word, "statement", "an opcode, label or directive");
  const Opcode& opcode = *this->opcode(word);
  instruction.place = place_;
  instruction.place.line = word.line;
  instruction.opcode = opcode.text;
  instruction.parts = opcode.parts;
  if (!reader_.token().is(';')) {
    instruction.operands.reserve(4);
    do {
      if (!operand(opcode, &instruction.operands.emplace_back())) return false;
    } while (reader_.accept(','));
  }
  if (!reader_.accept(';')) return reader_.fail(reader_.token(), "operands", "',' or ';'");
  if (opcode.is_call && !check_call(word, instruction)) return false;
  if (opcode.is_branch) {
    const bool complete = instruction.operands.size() == (opcode.is_indexed ? 2u : 1u);
    if (!complete || instruction.operands.back().kind != Operand::kLabel) {
      return reader_.fail(word, "operands of a branch",
                          opcode.is_indexed ? "an index and a .branchtargets name" : "one label");
    }
    branches_.push_back(static_cast<uint32_t>(kernel_->instructions.size()));
  }
  kernel_->instructions.push_back(std::move(instruction));
  return true;
}

/// call [(result),] function [, (arguments)]
bool Parser::check_call(const Token& word, const Instruction& instruction) {
  const std::vector<Operand>& operands = instruction.operands;
  const size_t callee = !operands.empty() && operands[0].kind == Operand::kGroup ? 1 : 0;
  const bool shaped =
      operands.size() == callee + 1 ||
      (operands.size() == callee + 2 && operands[callee + 1].kind == Operand::kGroup);
  if (shaped && operands[callee].kind == Operand::kSymbol &&
      module_.symbols[operands[callee].index].space == Space::kFunction) {
    return true;
  }
  return reader_.fail(
      word, "operands of a call",
      "[(result),] declared function [, (arguments)]; indirect calls are not modelled");
}

bool Parser::resolve_labels() {
  labels_.number(&kernel_->labels);
  for (const uint32_t index : branches_) {
    Instruction& instruction = kernel_->instructions[index];
    if (!resolve_label(instruction, &instruction.operands.back())) return false;
  }
  return true;
}

bool Parser::resolve_label(const Instruction& instruction, Operand* operand) {
  const Labels::Entry& entry = labels_.resolve(operand->index);
  const bool indexed = instruction.parts[0] == "brx";
  const auto wanted = indexed ? Labels::Entry::kTable : Labels::Entry::kLabel;
  if (entry.state != wanted) {
    return reader_.fail(instruction.place.line, "target of a branch", entry.name,
                        indexed ? "the name of a .branchtargets list" : "a label of the kernel");
  }
  if (!indexed) {
    operand->index = entry.index;
    return true;
  }
  *operand = {};
  operand->kind = Operand::kGroup;
  for (const uint32_t provisional : entry.targets) {
    const Labels::Entry& target = labels_.resolve(provisional);
    if (target.state != Labels::Entry::kLabel) {
      return reader_.fail(entry.line, ".branchtargets", target.name, "a label of the kernel");
    }
    Operand& part = operand->parts.emplace_back();
    part.kind = Operand::kLabel;
    part.index = target.index;
  }
  return true;
}

Status parse(std::string_view text, std::string_view file, Module* result) {
  return Parser(text, file).run(result);
}

}  // namespace fa4::emulator::ptx
