// Which family lowers an instruction.
#include <array>
#include <string_view>
#include <unordered_map>

#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/lanes.h"
#include "csrc/emulator/isa_choice.h"
#include "csrc/emulator/lower/lowering.h"

namespace fa4::emulator {

const LaneHandlers& lanes() {
  static const LaneHandlers& chosen = [&]() -> const LaneHandlers& {
    switch (host_isa()) {
#if defined(__x86_64__)
      case Isa::kAvx512:
        return kLanesAvx512;
      case Isa::kAvx2:
        return kLanesAvx2;
#endif
      default:
        return kLanesBaseline;
    }
  }();
  return chosen;
}

namespace {

using LowerFunction = void (*)(Lowering&);

/// A family's function, and the modifiers its forms may carry besides types. What is not listed is not
/// modelled: no modifier is passed over unseen.
struct Family {
  LowerFunction lower;
  std::string_view modifiers;
};

constexpr std::string_view kNone = "";
constexpr std::string_view kFloat = "rn rz rm rp ftz sat NaN relu xorsign abs cc";
constexpr std::string_view kProduct = "lo hi wide rn rz rm rp ftz sat relu cc";
constexpr std::string_view kApprox = "approx full rn rz rm rp ftz noftz";
constexpr std::string_view kCompare =
    "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan and or xor ftz";
constexpr std::string_view kSpaces =
    "to global shared shared::cta shared::cluster local const param param::entry param::func";
constexpr std::string_view kMemory =
    "weak relaxed acquire release acq_rel volatile mmio cta cluster gpu sys global shared "
    "shared::cta "
    "shared::cluster local param param::entry param::func const ca cg cs lu cv wb wt nc v2 v4 v8 "
    "unified async mbarrier::complete_tx::bytes";
constexpr std::string_view kAtomic =
    "relaxed acquire release acq_rel cta cluster gpu sys global shared shared::cta shared::cluster "
    "add min "
    "max inc dec and or xor exch cas noftz v2 v4 v8 async weak mbarrier::complete_tx::bytes";
constexpr std::string_view kBarrier =
    "cta sync arrive wait red popc and or aligned warp cluster relaxed release acquire";
constexpr std::string_view kMbarrier =
    "init inval arrive arrive_drop expect_tx complete_tx test_wait try_wait pending_count parity "
    "noComplete "
    "shared shared::cta shared::cluster relaxed release acquire cta cluster";
constexpr std::string_view kCopy =
    "async bulk tensor reduce 1d 2d 3d 4d 5d tile im2col im2col_no_offs im2col::w tile::gather4 "
    "tile::scatter4 shared shared::cta shared::cluster global mbarrier::complete_tx::bytes "
    "multicast::cluster bulk_group cta_group::1 cta_group::2 commit_group wait_group wait_all read "
    "prefetch "
    "L2 ca cg mbarrier arrive noinc add min max inc dec and or xor noftz cp_mask ignore_oob";
constexpr std::string_view kLaunchControl =
    "try_cancel query_cancel async shared::cta mbarrier::complete_tx::bytes "
    "multicast::cluster::all "
    "is_canceled get_first_ctaid get_first_ctaid::x get_first_ctaid::y get_first_ctaid::z v4";
constexpr std::string_view kTcgen05 =
    "alloc dealloc relinquish_alloc_permit ld st wait::ld wait::st fence::before_thread_sync "
    "fence::after_thread_sync mma commit cta_group::1 cta_group::2 kind::f16 sync aligned "
    "shared::cta "
    "shared::cluster 32x32b 16x64b 16x128b 16x256b 16x32bx2 x1 x2 x4 x8 x16 x32 x64 x128 "
    "mbarrier::arrive::one multicast::cluster collector::a::fill collector::a::use "
    "collector::a::lastuse "
    "collector::a::discard";
constexpr std::string_view kMatrix = "sync aligned m8n8 x1 x2 x4 trans shared shared::cta";
constexpr std::string_view kMma = "sync aligned m16n8k16 row col";
constexpr std::string_view kOrdering =
    "sc acq_rel acquire release proxy async async::generic alias tensormap::generic global "
    "shared::cta "
    "shared::cluster sync_restrict::shared::cta::cluster sync_restrict::shared::cluster::cluster "
    "mbarrier_init cluster cta gl gpu sys";
constexpr std::string_view kHints =
    "global local L1 L2 L2::evict_last L2::evict_normal tensormap const param launch_dependents "
    "wait";

const std::unordered_map<std::string_view, Family>& families() {
  static const std::unordered_map<std::string_view, Family> kTable = {
      {"add", {lower_add, kFloat}},
      {"sub", {lower_add, kFloat}},
      {"addc", {lower_carry, "cc"}},
      {"subc", {lower_carry, "cc"}},
      {"mul", {lower_mul, kProduct}},
      {"mul24", {lower_mul, "lo hi"}},
      {"mad", {lower_mad, kProduct}},
      {"mad24", {lower_mad, "lo hi"}},
      {"div", {lower_division, kApprox}},
      {"rem", {lower_division, kNone}},
      {"min", {lower_minmax, kFloat}},
      {"max", {lower_minmax, kFloat}},
      {"neg", {lower_negation, "ftz"}},
      {"abs", {lower_negation, "ftz"}},
      {"and", {lower_logic, kNone}},
      {"or", {lower_logic, kNone}},
      {"xor", {lower_logic, kNone}},
      {"not", {lower_logic, kNone}},
      {"cnot", {lower_logic, kNone}},
      {"shl", {lower_shift, kNone}},
      {"shr", {lower_shift, kNone}},
      {"shf", {lower_shift, "l r wrap clamp"}},
      {"bfe", {lower_bits, kNone}},
      {"bfi", {lower_bits, kNone}},
      {"bfind", {lower_bits, "shiftamt"}},
      {"popc", {lower_bits, kNone}},
      {"clz", {lower_bits, kNone}},
      {"brev", {lower_bits, kNone}},
      {"prmt", {lower_bits, kNone}},
      {"lop3", {lower_bits, "and or"}},
      {"sad", {lower_bits, kNone}},
      {"bmsk", {lower_bits, "clamp wrap"}},
      {"dp4a", {lower_bits, kNone}},
      {"setp", {lower_setp, kCompare}},
      {"selp", {lower_selp, kNone}},
      {"fma", {lower_fma, kFloat}},
      {"ex2", {lower_approx, kApprox}},
      {"lg2", {lower_approx, kApprox}},
      {"rcp", {lower_approx, kApprox}},
      {"rsqrt", {lower_approx, kApprox}},
      {"sqrt", {lower_approx, kApprox}},
      {"sin", {lower_approx, kApprox}},
      {"cos", {lower_approx, kApprox}},
      {"tanh", {lower_approx, kApprox}},
      {"copysign", {lower_copysign, kNone}},
      {"mov", {lower_mov, kNone}},
      {"cvt", {lower_cvt, "rn rz rm rp rni rzi rmi rpi ftz sat relu satfinite"}},
      {"cvta", {lower_cvta, kSpaces}},
      {"isspacep", {lower_cvta, kSpaces}},
      {"mapa", {lower_cvta, kSpaces}},
      {"getctarank", {lower_cvta, kSpaces}},
      {"bra", {lower_branch, "uni"}},
      {"brx", {lower_branch, "idx uni"}},
      {"ret", {lower_exit, "uni"}},
      {"exit", {lower_exit, kNone}},
      {"call", {lower_call, "uni"}},
      {"trap", {lower_trap, kNone}},
      {"brkpt", {lower_trap, kNone}},
      {"ld", {lower_load, kMemory}},
      {"ldu", {lower_load, kMemory}},
      {"st", {lower_store, kMemory}},
      {"atom", {lower_atomic, kAtomic}},
      {"red", {lower_atomic, kAtomic}},
      {"shfl", {lower_shfl, "sync up down bfly idx"}},
      {"vote", {lower_vote, "sync all any uni ballot pred"}},
      {"redux", {lower_redux, "sync add min max and or xor abs NaN"}},
      {"elect", {lower_elect, "sync"}},
      {"match", {lower_match, "any all sync"}},
      {"activemask", {lower_activemask, kNone}},
      {"ldmatrix", {lower_ldmatrix, kMatrix}},
      {"stmatrix", {lower_stmatrix, kMatrix}},
      {"movmatrix", {lower_movmatrix, kMatrix}},
      {"mma", {lower_mma, kMma}},
      {"bar", {lower_barrier, kBarrier}},
      {"barrier", {lower_barrier, kBarrier}},
      {"setmaxnreg", {lower_setmaxnreg, "inc dec sync aligned"}},
      {"mbarrier", {lower_mbarrier, kMbarrier}},
      {"cp", {lower_cp, kCopy}},
      {"clusterlaunchcontrol", {lower_cluster_launch, kLaunchControl}},
      {"tcgen05", {lower_tcgen05, kTcgen05}},
      {"wgmma", {lower_wgmma, "mma_async fence commit_group wait_group sync aligned"}},
      // Ordering and hints: no effect on values.
      {"fence", {lower_nothing, kOrdering}},
      {"membar", {lower_nothing, kOrdering}},
      {"prefetch", {lower_nothing, kHints}},
      {"prefetchu", {lower_nothing, kHints}},
      {"discard", {lower_nothing, kHints}},
      {"applypriority", {lower_nothing, kHints}},
      {"griddepcontrol", {lower_nothing, kHints}},
      {"nanosleep", {lower_nothing, kNone}},
      {"pmevent", {lower_nothing, "mask"}},
      {"createpolicy", {lower_createpolicy, "fractional range cvt L2 global"}},
  };
  return kTable;
}

/// Whether `word` is one of the words of a list separated by blanks.
bool holds_word(std::string_view list, std::string_view word) {
  for (size_t at = list.find(word); at != std::string_view::npos; at = list.find(word, at + 1)) {
    const size_t end = at + word.size();
    const bool whole = (at == 0 || list[at - 1] == ' ') && (end == list.size() || list[end] == ' ');
    if (whole) return true;
  }
  return false;
}

/// Cache hints are the same wherever they stand; the shape of a wgmma is its family's business.
bool is_hint(std::string_view part) {
  return part.substr(0, 4) == "L1::" || part.substr(0, 4) == "L2::";
}

bool is_wgmma_shape(std::string_view family, std::string_view part) {
  return family == "wgmma" && part.substr(0, 4) == "m64n";
}

}  // namespace

void lower_instruction(Lowering& l) {
  const std::string_view name = l.part(0);
  const auto found = families().find(name);
  if (found == families().end()) l.unmodelled();
  const Family& family = found->second;
  for (size_t i = 1; !l.part(i).empty(); ++i) {
    const std::string_view part = l.part(i);
    const bool known = ptx::type_named(part) != ptx::Type::kNone || is_hint(part) ||
                       holds_word(family.modifiers, part) || is_wgmma_shape(name, part);
    if (!known) l.unmodelled("modifier ." + std::string(part));
  }
  family.lower(l);
}

}  // namespace fa4::emulator
