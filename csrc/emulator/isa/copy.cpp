// Asynchronous copies: cp.async, cp.async.bulk with and without tensor maps, cp.reduce, st.async.
#include <algorithm>
#include <cstring>
#include <utility>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/access.h"
#include "csrc/emulator/isa/delivery.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/scalar.h"
#include "csrc/emulator/machine/grid.h"
#include "csrc/emulator/machine/mbarrier.h"
#include "csrc/emulator/tensor/tensor_map.h"

namespace fa4::emulator {

using ptx::Operand;
using ptx::Type;

namespace {

// ---- Into shared memory ------------------------------------------------------------------------------------

class TensorLoad : public Operation {
 public:
  TensorLoad(Cluster& cluster, const TensorMap& map, std::vector<int32_t> coordinates, Delivery to)
      : cluster_(cluster), map_(map), coordinates_(std::move(coordinates)), to_(std::move(to)) {}
  void write() override {
    const uint32_t bytes = box_bytes(map_);
    for (const SharedPlace& target : to_.targets) {
      target.bytes(box_extent(map_));
      load_box(map_, coordinates_.data(), target.cta->shared.base(), target.offset);
    }
    cluster_.statistics.global_load_bytes += bytes;
    to_.signal(bytes);
  }
  std::string name() const override { return "cp.async.bulk.tensor"; }

 private:
  Cluster& cluster_;
  TensorMap map_;
  std::vector<int32_t> coordinates_;
  Delivery to_;
};

/// Bytes from anywhere to shared memory: bulk copies, and st.async, whose data is there from the start.
class ByteCopy : public Operation {
 public:
  ByteCopy(const uint8_t* from, size_t bytes, Delivery to, uint64_t* counter)
      : from_(from), data_(bytes), to_(std::move(to)), counter_(counter) {}
  ByteCopy(std::vector<uint8_t> data, Delivery to, uint64_t* counter)
      : data_(std::move(data)), to_(std::move(to)), counter_(counter) {}
  void read() override {
    if (from_ != nullptr) std::copy_n(from_, data_.size(), data_.begin());
  }
  void write() override {
    for (const SharedPlace& target : to_.targets) {
      uint8_t* const bytes = target.bytes(data_.size());
      if (reduces_) {
        reduce_bytes(bytes, data_.data(), data_.size(), type_, op_);
      } else {
        std::ranges::copy(data_, bytes);
      }
    }
    if (counter_ != nullptr) *counter_ += data_.size();
    to_.signal(static_cast<uint32_t>(data_.size()));
  }
  std::string name() const override { return "cp.async.bulk"; }
  void reduce_as(ElementType type, Reduction op) {
    reduces_ = true;
    type_ = type;
    op_ = op;
  }

 private:
  const uint8_t* from_ = nullptr;
  std::vector<uint8_t> data_;
  Delivery to_;
  uint64_t* counter_;
  bool reduces_ = false;
  ElementType type_ = ElementType::kU8;
  Reduction op_ = Reduction::kAdd;
};

// ---- Out of shared memory: in groups of the issuing thread ---------------------------------------------------

class GroupedCopy : public Operation {
 public:
  explicit GroupedCopy(std::shared_ptr<CopyGroup> group) : group_(std::move(group)) {
    ++group_->pending;
    ++group_->unread;
  }
  void read() final {
    take();
    --group_->unread;
  }
  void write() final {
    put();
    --group_->pending;
  }

 protected:
  virtual void take() = 0;
  virtual void put() = 0;

 private:
  std::shared_ptr<CopyGroup> group_;
};

struct ReductionKind {
  bool reduces = false;
  ElementType type = ElementType::kF32;
  Reduction op = Reduction::kAdd;
};

class TensorStore : public GroupedCopy {
 public:
  TensorStore(std::shared_ptr<CopyGroup> group, Cluster& cluster, const TensorMap& map,
              std::vector<int32_t> coordinates, SharedPlace from)
      : GroupedCopy(std::move(group)),
        cluster_(cluster),
        map_(map),
        coordinates_(std::move(coordinates)),
        from_(from) {}
  void reduce_as(ReductionKind kind) { kind_ = kind; }
  std::string name() const override {
    return kind_.reduces ? "cp.reduce.async.bulk.tensor" : "cp.async.bulk.tensor";
  }

 protected:
  void take() override {
    // The whole of every swizzle pattern that the box touches.
    const uint32_t extent = box_extent(map_);
    from_.bytes(extent);
    begin_ = from_.offset / 1024 * 1024;
    const size_t end =
        std::min<size_t>((from_.offset + extent + 1023) / 1024 * 1024, from_.cta->shared.end());
    const uint8_t* const shared = from_.cta->shared.base();
    data_.assign(shared + begin_, shared + end);
  }
  void put() override {
    const uint8_t* const shared = data_.data() - begin_;
    uint64_t& counter =
        kind_.reduces ? cluster_.statistics.reduce_bytes : cluster_.statistics.global_store_bytes;
    counter += box_bytes(map_);
    if (kind_.reduces) {
      reduce_box(map_, coordinates_.data(), shared, from_.offset, kind_.op);
    } else {
      store_box(map_, coordinates_.data(), shared, from_.offset);
    }
  }

 private:
  Cluster& cluster_;
  TensorMap map_;
  std::vector<int32_t> coordinates_;
  SharedPlace from_;
  ReductionKind kind_;
  uint32_t begin_ = 0;
  std::vector<uint8_t> data_;
};

class ByteStore : public GroupedCopy {
 public:
  ByteStore(std::shared_ptr<CopyGroup> group, Cluster& cluster, uint8_t* to, const uint8_t* from,
            size_t bytes)
      : GroupedCopy(std::move(group)), cluster_(cluster), to_(to), from_(from), data_(bytes) {}
  void reduce_as(ReductionKind kind) { kind_ = kind; }
  std::string name() const override {
    return kind_.reduces ? "cp.reduce.async.bulk" : "cp.async.bulk";
  }

 protected:
  void take() override { std::copy_n(from_, data_.size(), data_.begin()); }
  void put() override {
    if (kind_.reduces) {
      reduce_bytes(to_, data_.data(), data_.size(), kind_.type, kind_.op);
      cluster_.statistics.reduce_bytes += data_.size();
    } else {
      std::ranges::copy(data_, to_);
      cluster_.statistics.global_store_bytes += data_.size();
    }
  }

 private:
  Cluster& cluster_;
  uint8_t* to_;
  const uint8_t* from_;
  std::vector<uint8_t> data_;
  ReductionKind kind_;
};

// ---- Handlers ----------------------------------------------------------------------------------------------

/// Facts about a bulk copy that do not change, in Op::extra.
struct BulkForm {
  bool multicast = false, pair = false, reduces = false;
  int rank = 0;  // of the tensor; 0: plain bytes
  ElementType type = ElementType::kF32;
  Reduction op = Reduction::kAdd;
};
uint32_t encode(const BulkForm& f) {
  return uint32_t{f.multicast} | uint32_t{f.pair} << 1 | uint32_t{f.reduces} << 2 |
         static_cast<uint32_t>(f.rank) << 3 | static_cast<uint32_t>(f.type) << 8 |
         static_cast<uint32_t>(f.op) << 16;
}
BulkForm decode(uint32_t bits) {
  return {(bits & 1) != 0,
          (bits >> 1 & 1) != 0,
          (bits >> 2 & 1) != 0,
          static_cast<int>(bits >> 3 & 7),
          static_cast<ElementType>(bits >> 8 & 0xff),
          static_cast<Reduction>(bits >> 16 & 0xff)};
}

/// The address in place kA, kB or kC, its offset included.
uint64_t value64(const Warp& w, const Op& op, int place, uint32_t lane) {
  const uint64_t base =
      uint64_t{w.source(op.r[place + 1])[lane]} << 32 | w.source(op.r[place])[lane];
  const int64_t offset = place == kA ? op.imm : place == kB ? op.offset_b : op.offset_c;
  return base + static_cast<uint64_t>(offset);
}

uint32_t list_value(const Warp& w, const Op& op, uint32_t index, uint32_t lane) {
  return w.source(w.code->lists[op.list + index])[lane];
}

void submit(Warp& w, const Op& op, std::unique_ptr<Operation> operation) {
  operation->line = op.line;
  w.cta->cluster->agents.submit(std::move(operation));
}

/// The map at a generic address, whose global memory the kernel may touch.
const TensorMap& tensor_map(Warp& w, uint64_t address, int rank) {
  w.cta->cluster->grid->memory.check(address, sizeof(TensorMap), &w.last_range);
  const TensorMap* const map = tensor_map_at(reinterpret_cast<const void*>(address));
  if (map == nullptr) throw Fault("there is no tensor map at " + hex(address));
  if (map->rank != rank) {
    throw Fault("the tensor map has rank " + std::to_string(map->rank) +
                ", the instruction names " + std::to_string(rank) + " dimensions");
  }
  const ByteRange range = reach(*map);
  w.cta->cluster->grid->memory.check(range.begin, range.end - range.begin, &w.last_range);
  return *map;
}

void check_box(const TensorMap& map, uint32_t offset) {
  const std::string problem = box_problem(map, offset);
  if (!problem.empty()) throw Fault("shared memory of a tensor copy: " + problem);
}

void check_coordinates(const std::string& problem) {
  if (!problem.empty()) throw Fault("coordinates of a tensor copy: " + problem);
}

std::vector<int32_t> coordinates(const Warp& w, const Op& op, int rank, uint32_t lane) {
  std::vector<int32_t> result;
  for (int d = 0; d < rank; ++d) {
    result.push_back(static_cast<int32_t>(list_value(w, op, static_cast<uint32_t>(d), lane)));
  }
  return result;
}

/// a: target, b: map, c: barrier; list: coordinates, then the mask of a multicast.
void run_tensor_load(Warp& w, const Op& op) {
  const BulkForm form = decode(op.extra);
  Cluster& cluster = *w.cta->cluster;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    const TensorMap& map = tensor_map(w, value64(w, op, kB, l), form.rank);
    const int mask =
        form.multicast
            ? static_cast<int>(list_value(w, op, static_cast<uint32_t>(form.rank), l) & 0xffff)
            : -1;
    Delivery to = delivery(cluster, value64(w, op, kA, l), value64(w, op, kC, l), mask, form.pair);
    for (const SharedPlace& target : to.targets) check_box(map, target.offset);
    std::vector<int32_t> where = coordinates(w, op, form.rank, l);
    check_coordinates(load_problem(map, where.data()));
    to.tell(w, op, box_extent(map), nullptr);
    submit(w, op, std::make_unique<TensorLoad>(cluster, map, std::move(where), std::move(to)));
  }
}

/// Whether a part of the box lies outside of the tensor.
bool clipped(const TensorMap& map, const std::vector<int32_t>& where) {
  for (size_t d = 0; d < where.size(); ++d) {
    if (where[d] < 0 || int64_t{where[d]} + map.box[d] - 1 > int64_t{map.last[d]}) return true;
  }
  return false;
}

/// a: source in shared memory, b: map.
void run_tensor_store(Warp& w, const Op& op) {
  const BulkForm form = decode(op.extra);
  Cluster& cluster = *w.cta->cluster;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    const TensorMap& map = tensor_map(w, value64(w, op, kB, l), form.rank);
    const SharedPlace from = shared_place(cluster, value64(w, op, kA, l));
    check_box(map, from.offset);
    std::vector<int32_t> where = coordinates(w, op, form.rank, l);
    check_coordinates(store_problem(map, where.data()));
    if (cluster.checker != nullptr)
      cluster.checker->copy_out(w, op, *from.cta, from.offset, box_extent(map),
                                clipped(map, where));
    auto store =
        std::make_unique<TensorStore>(w.bulk_groups[l].open, cluster, map, std::move(where), from);
    if (form.reduces) {
      if (!reduction_defined(map.type, form.op)) {
        throw Fault(
            "cp.reduce.async.bulk.tensor: the reduction is not defined for the map's element type");
      }
      store->reduce_as({true, map.type, form.op});
    }
    submit(w, op, std::move(store));
  }
}

void check_bulk(uint64_t to, uint64_t from, uint32_t bytes) {
  if (bytes % 16 != 0 || to % 16 != 0 || from % 16 != 0) {
    throw Fault("cp.async.bulk: addresses and size must be multiples of 16, got " + hex(to) + ", " +
                hex(from) + " and " + std::to_string(bytes) + " bytes");
  }
}

/// mode of plain bulk copies: from where to where.
enum : uint8_t { kGlobalToShared, kSharedToShared, kSharedToGlobal };

/// a: target, b: source, c: barrier; list: size, then the mask of a multicast.
void run_bulk_copy(Warp& w, const Op& op) {
  const BulkForm form = decode(op.extra);
  Cluster& cluster = *w.cta->cluster;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    const uint64_t to = value64(w, op, kA, l), from = value64(w, op, kB, l);
    const uint32_t bytes = list_value(w, op, 0, l);
    check_bulk(to, from, bytes);
    const bool from_global = op.mode == kGlobalToShared;
    const uint64_t global = from_global ? from : to;
    if (op.mode != kSharedToShared) cluster.grid->memory.check(global, bytes, &w.last_range);
    if (op.mode == kSharedToGlobal) {
      const SharedPlace source = shared_place(cluster, from);
      auto store =
          std::make_unique<ByteStore>(w.bulk_groups[l].open, cluster,
                                      reinterpret_cast<uint8_t*>(to), source.bytes(bytes), bytes);
      if (cluster.checker != nullptr)
        cluster.checker->copy_out(w, op, *source.cta, source.offset, bytes, false);
      if (form.reduces) store->reduce_as({true, form.type, form.op});
      submit(w, op, std::move(store));
      continue;
    }
    const int mask = form.multicast ? static_cast<int>(list_value(w, op, 1, l) & 0xffff) : -1;
    Delivery target = delivery(cluster, to, value64(w, op, kC, l), mask, form.pair);
    for (const SharedPlace& place : target.targets) place.bytes(bytes);
    const SharedPlace shared = from_global ? SharedPlace{} : shared_place(cluster, from);
    const uint8_t* const source =
        from_global ? reinterpret_cast<const uint8_t*>(from) : shared.bytes(bytes);
    target.tell(w, op, bytes, from_global ? nullptr : &shared);
    uint64_t* const counter = from_global ? &cluster.statistics.global_load_bytes
                                          : &cluster.statistics.cluster_copy_bytes;
    auto copy = std::make_unique<ByteCopy>(source, bytes, std::move(target), counter);
    if (form.reduces) copy->reduce_as(form.type, form.op);
    submit(w, op, std::move(copy));
  }
}

/// st.async, red.async. a: target, c: barrier; list: planes of the value; width: bytes of an element.
void run_store_async(Warp& w, const Op& op) {
  const BulkForm form = decode(op.extra);
  Cluster& cluster = *w.cta->cluster;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    std::vector<uint8_t> data(size_t{op.list_count} * 4);
    for (uint32_t k = 0; k < op.list_count; ++k) {
      const uint32_t value = list_value(w, op, k, l);
      std::memcpy(&data[4 * k], &value, 4);
    }
    Delivery to = delivery(cluster, value64(w, op, kA, l), value64(w, op, kC, l), -1, false);
    to.tell(w, op, static_cast<uint32_t>(data.size()), nullptr);
    auto copy = std::make_unique<ByteCopy>(std::move(data), std::move(to),
                                           &cluster.statistics.cluster_copy_bytes);
    if (form.reduces) copy->reduce_as(form.type, form.op);
    submit(w, op, std::move(copy));
  }
}

void run_bulk_commit(Warp& w, const Op&) {
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    CopyGroups& groups = w.bulk_groups[static_cast<uint32_t>(__builtin_ctz(lanes))];
    if (auto* const checker = w.cta->cluster->checker.get())
      groups.number = groups.open->number = checker->last_bulk_copy(w);
    groups.committed.push_back(std::exchange(groups.open, std::make_shared<CopyGroup>()));
  }
}

/// Whether all groups but the `keep` most recent are done, or (reads) have at least read their sources.
bool groups_done(CopyGroups& groups, size_t keep, bool reads) {
  auto& list = groups.committed;
  const size_t waited = list.size() > keep ? list.size() - keep : 0;
  for (size_t i = 0; i < waited; ++i) {
    if ((reads ? list[i]->unread : list[i]->pending) != 0) return false;
  }
  while (!list.empty() && list.size() > keep && list.front()->pending == 0) list.pop_front();
  return true;
}

std::string groups_text(const Warp&, const Op& op, uint32_t) {
  return std::string(op.mode != 0 ? "sources of copies to be read" : "copies to complete") +
         ", all but the " + std::to_string(op.imm) + " latest groups";
}

void run_bulk_wait(Warp& w, const Op& op) {
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    CopyGroups& groups = w.bulk_groups[static_cast<uint32_t>(__builtin_ctz(lanes))];
    const auto keep = static_cast<size_t>(op.imm);
    const size_t waited = groups.committed.size() > keep ? groups.committed.size() - keep : 0;
    // All groups: those too whose sources alone were waited for before, and that are done by now.
    const uint32_t number = keep == 0     ? groups.number
                            : waited == 0 ? 0
                                          : groups.committed[waited - 1]->number;
    if (!groups_done(groups, keep, op.mode != 0)) return w.block();
    if (auto* const checker = w.cta->cluster->checker.get())
      checker->bulk_waited(w, number, op.mode != 0);
  }
}

// ---- Lowering ----------------------------------------------------------------------------------------------

/// The cache policy and other trailing operands do not matter for values.
bool reduction_of(const Lowering& l, Reduction* op) {
  constexpr std::pair<std::string_view, Reduction> kNames[] = {
      {"add", Reduction::kAdd}, {"min", Reduction::kMin}, {"max", Reduction::kMax},
      {"inc", Reduction::kInc}, {"dec", Reduction::kDec}, {"and", Reduction::kAnd},
      {"or", Reduction::kOr},   {"xor", Reduction::kXor}};
  for (const auto& [name, value] : kNames) {
    if (!l.has(name)) continue;
    *op = value;
    return true;
  }
  return false;
}

ElementType element_type(const Lowering& l) {
  switch (l.last_type()) {
    case Type::kF16:
      return ElementType::kF16;
    case Type::kBF16:
      return ElementType::kBF16;
    case Type::kF32:
      return ElementType::kF32;
    case Type::kF64:
      return ElementType::kF64;
    case Type::kU32:
    case Type::kB32:
      return ElementType::kU32;
    case Type::kS32:
      return ElementType::kS32;
    case Type::kU64:
    case Type::kB64:
      return ElementType::kU64;
    case Type::kS64:
      return ElementType::kS64;
    default:
      l.unmodelled("this element type");
  }
}

int tensor_rank(const Lowering& l) {
  constexpr std::pair<std::string_view, int> kRanks[] = {
      {"1d", 1}, {"2d", 2}, {"3d", 3}, {"4d", 4}, {"5d", 5}};
  for (const auto& [name, rank] : kRanks) {
    if (l.has(name)) return rank;
  }
  l.unmodelled("the rank");
}

/// [map, {coordinates}] into place kB and the list.
void reads_map(Lowering& l, Draft& draft, const Operand& operand, int rank) {
  if (operand.kind != Operand::kAddress || operand.parts.size() != 2)
    l.unmodelled("a tensor address is expected");
  if (static_cast<int>(operand.parts[1].parts.size()) != rank)
    l.unmodelled("the number of coordinates");
  if (operand.value != 0) l.unmodelled("an offset to the tensor map");
  l.reads(draft, kB, operand.parts[0], 8);
  l.reads_list(draft, operand.parts[1], 4);
}

/// A second or third address: its offset goes beside it, because Op::imm is the first one's.
void reads_further_address(Lowering& l, Draft& draft, const Operand& operand, int place) {
  const int64_t first = draft.op.imm;
  l.address(draft, operand, place);
  (place == kB ? draft.op.offset_b : draft.op.offset_c) = static_cast<int32_t>(draft.op.imm);
  draft.op.imm = first;
}

void lower_tensor(Lowering& l, BulkForm form) {
  form.rank = tensor_rank(l);
  if (l.has("im2col") || l.has("im2col_no_offs") || l.has("im2col::w") || l.has("tile::gather4") ||
      l.has("tile::scatter4")) {
    l.unmodelled("modes other than tile");
  }
  const bool stores = l.operand(0).parts.size() == 2;
  Draft& draft = l.emit(stores ? run_tensor_store : run_tensor_load, OpClass::kCopy);
  if (stores) {
    reads_map(l, draft, l.operand(0), form.rank);
    l.address(draft, l.operand(1));
  } else {
    l.address(draft, l.operand(0));
    reads_map(l, draft, l.operand(1), form.rank);
    reads_further_address(l, draft, l.operand(2), kC);
    form.multicast = l.has("multicast::cluster");
    form.pair = l.has("cta_group::2");
    if (form.multicast) l.reads_list(draft, l.operand(3), 4);
  }
  draft.op.extra = encode(form);
}

void lower_bulk(Lowering& l) {
  BulkForm form;
  form.reduces = l.part(0) == "cp" && l.has("reduce") && reduction_of(l, &form.op);
  if (l.has("prefetch")) {
    l.emit(no_operation, OpClass::kCopy);
  } else if (l.has("commit_group")) {
    l.emit(run_bulk_commit, OpClass::kCopy);
  } else if (l.has("wait_group")) {
    Draft& draft = l.emit(run_bulk_wait, OpClass::kCopy);
    draft.op.imm = l.immediate(l.operand(0));
    draft.op.mode = l.has("read");
    draft.op.wait_text = groups_text;
  } else if (l.has("tensor")) {
    lower_tensor(l, form);
  } else {
    if (form.reduces) form.type = element_type(l);
    if (form.reduces && !reduction_defined(form.type, form.op))
      l.unmodelled("this reduction of this type");
    if (l.has("cp_mask") || l.has("ignore_oob")) l.unmodelled();
    Draft& draft = l.emit(run_bulk_copy, OpClass::kCopy);
    const bool grouped = l.has("bulk_group");
    // In "a.b" of the opcode the first space is the target's, the second the source's.
    const bool from_global = !grouped && l.has("global");
    draft.op.mode = grouped ? kSharedToGlobal : from_global ? kGlobalToShared : kSharedToShared;
    l.address(draft, l.operand(0));
    reads_further_address(l, draft, l.operand(1), kB);
    l.reads_list(draft, l.operand(2), 4);
    if (!grouped) reads_further_address(l, draft, l.operand(3), kC);
    form.multicast = l.has("multicast::cluster");
    if (form.multicast) l.reads_list(draft, l.operand(4), 4);
    draft.op.extra = encode(form);
  }
}

}  // namespace

void lower_cp_async(Lowering& l);  // copy_async.cpp

void lower_cp(Lowering& l) {
  if (l.has("bulk")) return lower_bulk(l);
  lower_cp_async(l);
}

void lower_store_async(Lowering& l) {
  BulkForm form;
  form.reduces = l.part(0) == "red";
  if (form.reduces) {
    if (!reduction_of(l, &form.op)) l.unmodelled();
    form.type = element_type(l);
    if (!reduction_defined(form.type, form.op)) l.unmodelled("this reduction of this type");
  }
  const int bytes = ptx::type_bytes(l.last_type());
  if (bytes < 4) l.unmodelled();
  Draft& draft = l.emit(run_store_async, OpClass::kCopy);
  l.address(draft, l.operand(0));
  l.reads_list(draft, l.operand(1), bytes);
  reads_further_address(l, draft, l.operand(2), kC);
  draft.op.extra = encode(form);
}

}  // namespace fa4::emulator
