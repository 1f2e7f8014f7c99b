// The file scope: header, functions, kernels and their directives.
#include <algorithm>
#include <charconv>
#include <iterator>
#include <utility>

#include "csrc/emulator/ptx/parser.h"

namespace fa4::emulator::ptx {

namespace {

constexpr uint64_t kMostParamBytes = 32764;  // of a kernel, PTX 8.1

struct DirectiveRow {
  const char* name;
  bool has_number;
};

// Directives of a kernel that change nothing that is modelled.
constexpr DirectiveRow kIgnored[] = {
    {".minnctapersm", true},         {".maxnctapersm", true}, {".maxclusterrank", true},
    {".blocksareclusters", false},   {".noreturn", false},    {".abi_preserve", true},
    {".abi_preserve_control", true},
};

bool read_version(std::string_view text, int* major, int* minor) {
  const char* const end = text.data() + text.size();
  const auto [dot, error] = std::from_chars(text.data(), end, *major);
  if (error != std::errc() || dot == end || *dot != '.') return false;
  const auto [stop, minor_error] = std::from_chars(dot + 1, end, *minor);
  return minor_error == std::errc() && stop == end;
}

}  // namespace

bool Parser::module_statement() {
  if (reader_.accept(';')) return true;
  const Token word = reader_.token();
  if (!word.is_directive()) return reader_.fail(word, "statement of the module", "a directive");
  if (word.text == ".version") return version();
  if (module_.version_major == 0) return reader_.fail(word, "first directive", ".version");
  if (word.text == ".target") return target();
  if (module_.target.empty()) return reader_.fail(word, "second directive", ".target");
  if (word.text == ".address_size") return address_size();
  if (reader_.accept(".file")) return file_directive();
  if (reader_.accept(".section")) return section();
  if (reader_.accept(".pragma")) return pragma();
  if (reader_.accept(".loc")) return location();
  const bool is_extern = linkage();
  if (reader_.accept(".entry")) return kernel();
  if (reader_.accept(".func")) return function(is_extern);
  if (reader_.accept(".global")) return variables(Space::kGlobal, is_extern);
  if (reader_.accept(".const")) return variables(Space::kConst, is_extern);
  if (reader_.accept(".shared")) return variables(Space::kShared, is_extern);
  if (reader_.accept(".local")) return variables(Space::kLocal, is_extern);
  return reader_.fail(reader_.token(), "directive of the module",
                      ".entry, .func, .global, .const, .shared, .local, .file, .section or "
                      ".pragma; aliases and textures are not modelled");
}

bool Parser::version() {
  reader_.take();
  const Token& token = reader_.token();
  int major = 0, minor = 0;
  const bool number = token.kind == TokenKind::kFloat && read_version(token.text, &major, &minor);
  if (!number || major < 8 || major > 9) {
    return reader_.fail(token, "PTX version", "8.x or 9.x");
  }
  module_.version_major = major;
  module_.version_minor = minor;
  reader_.take();
  return true;
}

bool Parser::target() {
  reader_.take();
  const Token& token = reader_.token();
  if (token.kind != TokenKind::kWord || token.text.substr(0, 3) != "sm_") {
    return reader_.fail(token, "target", "an architecture such as sm_100a");
  }
  module_.target = reader_.take().text;
  while (reader_.accept(',')) {
    if (reader_.token().kind != TokenKind::kWord) {
      return reader_.fail(reader_.token(), "option of .target", "a word such as debug");
    }
    reader_.take();
  }
  return true;
}

bool Parser::address_size() {
  reader_.take();
  const Token token = reader_.token();
  uint64_t bits = 0;
  if (!reader_.integer(UINT32_MAX, "address size", &bits)) return false;
  return bits == 64 || reader_.fail(token, "address size", "64");
}

/// .file NUMBER "name" [, timestamp, size]
bool Parser::file_directive() {
  constexpr uint64_t kMostFiles = 1 << 16;
  uint64_t number = 0, unused = 0;
  if (!reader_.integer(kMostFiles, "number of .file", &number)) return false;
  if (reader_.token().kind != TokenKind::kString) {
    return reader_.fail(reader_.token(), "name of .file", "a string");
  }
  if (module_.files.size() <= number) module_.files.resize(number + 1);
  const std::string_view name = reader_.take().text;
  if (number != 0) module_.files[number] = name;
  while (reader_.accept(',')) {
    if (!reader_.integer(UINT64_MAX, "time or size of .file", &unused)) return false;
  }
  return true;
}

/// Debug information, which is skipped.
bool Parser::section() {
  while (reader_.token().kind == TokenKind::kWord) reader_.take();
  return reader_.expect('{', ".section") && reader_.skip_to_close('{', '}');
}

bool Parser::pragma() {
  do {
    if (reader_.token().kind != TokenKind::kString) {
      return reader_.fail(reader_.token(), ".pragma", "a string");
    }
    reader_.take();
  } while (reader_.accept(','));
  return reader_.expect(';', ".pragma");
}

/// Skips the linkage; true: it is .extern.
bool Parser::linkage() {
  bool is_extern = false;
  for (;;) {
    if (reader_.accept(".extern")) {
      is_extern = true;
    } else if (!reader_.accept(".visible") && !reader_.accept(".weak") &&
               !reader_.accept(".common") && !reader_.accept(".internal")) {
      return is_extern;
    }
  }
}

/// .func [.attribute(..)] [(result)] name [(parameters)] [directives] ;
bool Parser::function(bool is_extern) {
  if (reader_.accept(".attribute")) {
    if (!reader_.expect('(', ".attribute") || !reader_.skip_to_close('(', ')')) return false;
  }
  if (reader_.accept('(') && !reader_.skip_to_close('(', ')')) return false;
  const Token name = reader_.token();
  if (name.kind != TokenKind::kWord || name.is_directive()) {
    return reader_.fail(name, "function", "a name");
  }
  reader_.take();
  if (reader_.accept('(') && !reader_.skip_to_close('(', ')')) return false;
  while (reader_.token().is_directive() || reader_.token().kind == TokenKind::kInteger) {
    reader_.take();
  }
  if (reader_.token().is('{')) {
    return reader_.fail(name, "function with a body; device functions are not modelled",
                        "only declarations: inline the function into its kernels");
  }
  if (!reader_.expect(';', "function declaration")) return false;
  Symbol symbol;
  symbol.name = name.text;
  symbol.space = Space::kFunction;
  symbol.is_extern = is_extern;
  uint32_t index = 0;
  return add_symbol(std::move(symbol), name, &index);
}

bool Parser::kernel() {
  const Token name = reader_.token();
  if (name.kind != TokenKind::kWord || name.is_directive()) {
    return reader_.fail(name, "kernel", "a name");
  }
  const auto same = [&](const Kernel& other) { return other.name == name.text; };
  if (std::any_of(module_.kernels.begin(), module_.kernels.end(), same)) {
    return reader_.fail(name, "kernel", "a name that the module does not have yet");
  }
  reader_.take();
  kernel_ = &module_.kernels.emplace_back();
  kernel_->name = name.text;
  kernel_->place.line = name.line;
  place_ = {};
  labels_ = {};
  branches_.clear();
  declared_registers_ = 0;
  scopes_.enter();
  if (reader_.accept('(') && !kernel_parameters(kernel_)) return false;
  if (!kernel_directives(kernel_) || !body()) return false;
  scopes_.leave();
  kernel_ = nullptr;
  return true;
}

bool Parser::kernel_parameters(Kernel* kernel) {
  if (reader_.accept(')')) return true;
  do {
    const Token first = reader_.token();
    if (!reader_.accept(".param")) return reader_.fail(first, "kernel parameter", ".param");
    Specifiers specifiers;
    specifiers.space = Space::kParam;
    specifiers.is_kernel_param = true;
    uint32_t index = 0;
    if (!this->specifiers(&specifiers) || !variable(specifiers, &index)) return false;
    Symbol& symbol = module_.symbols[index];
    symbol.offset = (kernel->param_bytes + symbol.align - 1) / symbol.align * symbol.align;
    kernel->param_bytes = symbol.offset + symbol.bytes;
    kernel->params.push_back(index);
    if (kernel->param_bytes > kMostParamBytes) {
      return reader_.fail(first.line, "kernel parameters",
                          std::to_string(kernel->param_bytes) + " bytes", "at most 32764 bytes");
    }
  } while (reader_.accept(','));
  return reader_.expect(')', "kernel parameters");
}

bool Parser::kernel_directives(Kernel* kernel) {
  while (reader_.token().is_directive()) {
    const Token word = reader_.take();
    uint64_t number = 0;
    const auto ignored =
        std::find_if(std::begin(kIgnored), std::end(kIgnored),
                     [&](const DirectiveRow& row) { return word.text == row.name; });
    if (word.text == ".maxntid") {
      if (!extents(&kernel->max_threads)) return false;
    } else if (word.text == ".reqntid") {
      if (!extents(&kernel->required_threads)) return false;
    } else if (word.text == ".reqnctapercluster") {
      if (!extents(&kernel->cluster)) return false;
    } else if (word.text == ".explicitcluster") {
      kernel->explicit_cluster = true;
    } else if (word.text == ".maxnreg") {
      if (!reader_.integer(UINT32_MAX, ".maxnreg", &number)) return false;
      kernel->max_registers = static_cast<uint32_t>(number);
    } else if (word.text == ".pragma") {
      if (!pragma()) return false;
    } else if (ignored == std::end(kIgnored)) {
      return reader_.fail(word, "directive of a kernel", "a performance directive or '{'");
    } else if (ignored->has_number && !reader_.integer(UINT32_MAX, word.text, &number)) {
      return false;
    }
  }
  return true;
}

/// X [, Y [, Z]]; what is left out is 1.
bool Parser::extents(std::array<uint32_t, 3>* result) {
  *result = {1, 1, 1};
  for (uint32_t& extent : *result) {
    const Token token = reader_.token();
    uint64_t number = 0;
    if (!reader_.integer(UINT32_MAX, "extent", &number)) return false;
    if (number == 0) return reader_.fail(token, "extent", "at least 1");
    extent = static_cast<uint32_t>(number);
    if (!reader_.accept(',')) break;
  }
  return true;
}

/// Initialisers may name symbols that follow them.
bool Parser::check_references() {
  for (const Token& name : references_) {
    if (scopes_.own(name.text) == nullptr) {
      return reader_.fail(name, "initialiser", "a symbol of the module");
    }
  }
  return true;
}

}  // namespace fa4::emulator::ptx
