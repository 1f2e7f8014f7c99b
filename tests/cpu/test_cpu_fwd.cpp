// Forward of the CPU backend against the definition in double precision.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "tests/cpu/cases.h"

namespace fa4::test {
namespace {

// clang-format off

std::vector<Case> forward_cases() {
  std::vector<Case> cases = shared_cases();
  for (int64_t page : {1, 3, 16, 64, 100}) {
    const int64_t capacity = 3 * page * (page < 16 ? 20 : 1);
    cases.push_back({.name = "paged", .batch = 3, .seqlen_q = 5, .seqlen_k = capacity, .heads_q = 4,
                     .heads_k = 2, .head_dim = 32, .head_dim_v = 40, .causal = true,
                     .used_k = {static_cast<int32_t>(page + 1), 0, static_cast<int32_t>(capacity)},
                     .page_size = page,
                     .layout = page == 16 ? Layout::kGaps : Layout::kRowMajor});
  }
  cases.push_back({.name = "paged_packed_bf16", .dtype = kBF16, .batch = 3, .seqlen_q = 20,
                   .seqlen_k = 96, .heads_q = 2, .heads_k = 2, .lengths_q = {20, 0, 7},
                   .used_k = {33, 96, 50}, .page_size = 16});
  cases.push_back({.name = "paged_all_used", .batch = 2, .seqlen_q = 3, .seqlen_k = 64,
                   .page_size = 32});
  for (int64_t splits : {0, 2, 3, 7, 200}) {
    cases.push_back({.name = "splits", .batch = 2, .seqlen_q = 20, .seqlen_k = 333, .heads_q = 4,
                     .heads_k = 2, .causal = true, .sink = true, .num_splits = splits});
    cases.push_back({.name = "splits_empty_rows", .dtype = kF16, .batch = 2, .seqlen_q = 200,
                     .seqlen_k = 100, .heads_q = 2, .causal = true, .num_splits = splits});
    cases.push_back({.name = "splits_decode", .dtype = kBF16, .batch = 2, .seqlen_q = 1,
                     .seqlen_k = 1500, .heads_q = 8, .heads_k = 2, .head_dim = 64, .head_dim_v = 64,
                     .used_k = {1500, 3}, .num_splits = splits});
    cases.push_back({.name = "splits_packed_window", .batch = 3, .seqlen_q = 90, .seqlen_k = 260,
                     .heads_q = 2, .window_left = 60, .window_right = 10, .softcap = 3.0f,
                     .lengths_q = {4, 90, 0}, .lengths_k = {260, 100, 30}, .num_splits = splits});
  }
  return cases;
}

// clang-format on

class Fwd : public testing::TestWithParam<Case> {};

TEST_P(Fwd, MatchesTheDefinition) {
  Data data(GetParam());
  const Status status = cpu::fwd(data.fwd_params(), with_threads(2));
  ASSERT_TRUE(status.ok()) << status.message;
  const FwdResult expected = reference_fwd(data);
  EXPECT_EQ(compare(data.out, expected.out, arithmetic_error(data.spec)), "") << "out";
  EXPECT_EQ(compare(data.lse, expected.lse, arithmetic_error(data.spec)), "") << "lse";
}

TEST_P(Fwd, SameBitsForAnyNumberOfThreads) {
  Data data(GetParam());
  ASSERT_TRUE(cpu::fwd(data.fwd_params(), with_threads(1)).ok());
  const auto expected = bytes({&data.out, &data.lse});
  for (int threads : {2, 3, 4}) {
    Data again(GetParam());
    ASSERT_TRUE(cpu::fwd(again.fwd_params(), with_threads(threads)).ok());
    EXPECT_EQ(bytes({&again.out, &again.lse}), expected) << threads << " threads";
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Fwd, testing::ValuesIn(forward_cases()),
                         case_name<testing::TestParamInfo<Case>>);

TEST(FwdThreads, OwnThreadsGiveTheSameBits) {
  const Case spec{.batch = 2, .seqlen_q = 300, .seqlen_k = 300, .heads_q = 4, .causal = true};
  Data data(spec), again(spec);
  ASSERT_TRUE(cpu::fwd(data.fwd_params(), with_threads(1)).ok());
  Context context;
  context.num_threads = 3;
  ASSERT_TRUE(cpu::fwd(again.fwd_params(), context).ok());
  EXPECT_EQ(bytes({&again.out, &again.lse}), bytes({&data.out, &data.lse}));
}

/// Sets one element of a tensor's row to NaN and counts the rows of out, of all heads, that show
/// it.
std::vector<bool> rows_with_nan(Data& data, Tensor& tensor, int64_t row, double value) {
  tensor.set(0, row, 0, 3, value);
  EXPECT_TRUE(cpu::fwd(data.fwd_params(), Context{}).ok());
  std::vector<bool> rows;
  for (int64_t r = 0; r < data.out.rows; ++r) {
    bool any = false;
    for (int64_t i = 0; i < data.out.dim; ++i) any = any || std::isnan(data.out.get(0, r, 0, i));
    rows.push_back(any);
  }
  return rows;
}

/// The rows that see a key of a window of 40 keys to the left.
std::vector<bool> rows_that_see(int64_t key, int64_t rows) {
  std::vector<bool> seen;
  for (int64_t r = 0; r < rows; ++r) seen.push_back(r >= key && r <= key + 40);
  return seen;
}

TEST(FwdNaN, InUsedRowsReachesExactlyTheRowsThatSeeIt) {
  for (int64_t rows : {6, 200}) {
    for (int64_t key : {rows / 3, rows - 1}) {
      const Case spec{.seqlen_q = rows, .seqlen_k = rows, .causal = true, .window_left = 40};
      Data k(spec), v(spec), infinite(spec), q(spec);
      EXPECT_EQ(rows_with_nan(k, k.k, key, std::nan("")), rows_that_see(key, rows)) << key;
      EXPECT_EQ(rows_with_nan(v, v.v, key, std::nan("")), rows_that_see(key, rows)) << key;
      std::vector<bool> only(rows, false);
      EXPECT_EQ(rows_with_nan(infinite, infinite.v, key, kInfinity), only) << key;
      only[key] = true;
      EXPECT_EQ(rows_with_nan(q, q.q, key, std::nan("")), only) << key;
    }
  }
}

TEST(FwdNaN, AsTheOnlyKeyShowsInSpiteOfASink) {
  Data data({.seqlen_q = 20, .seqlen_k = 1, .sink = true});
  data.k.set(0, 0, 0, 0, std::nan(""));
  ASSERT_TRUE(cpu::fwd(data.fwd_params(), Context{}).ok());
  for (int64_t row = 0; row < 20; ++row) {
    EXPECT_TRUE(std::isnan(data.out.get(0, row, 0, 0)));
    EXPECT_TRUE(std::isnan(data.lse.get(0, row, 0)));
  }
}

TEST(FwdLargeScores, KeepVeryNegativeLse) {
  Data data({.seqlen_q = 30, .seqlen_k = 50, .head_dim = 8, .head_dim_v = 8});
  for (int64_t i = 0; i < 8; ++i) {
    for (int64_t row = 0; row < 30; ++row) data.q.set(0, row, 0, i, 30.0 + row);
    for (int64_t key = 0; key < 50; ++key) data.k.set(0, key, 0, i, -40.0 + 0.01 * (key % 7));
  }
  ASSERT_TRUE(cpu::fwd(data.fwd_params(), Context{}).ok());
  const FwdResult expected = reference_fwd(data);
  EXPECT_LT(data.lse.get(0, 0, 0), -3000.0);
  EXPECT_EQ(compare(data.lse, expected.lse, 1e-6), "");
  EXPECT_EQ(compare(data.out, expected.out, 1e-3), "");
}

/// Keys 2^31 elements apart in memory that is reserved and never filled.
TEST(FwdStrides, BeyondThirtyTwoBits) {
  constexpr int64_t kStride = (int64_t{1} << 31) + 8;
  constexpr int64_t kKeys = 3, kDim = 16;
  const size_t bytes_reserved = kKeys * kStride * sizeof(uint16_t);
  void* far = mmap(nullptr, bytes_reserved, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (far == MAP_FAILED) GTEST_SKIP() << "12 GB of address space are not to be had";
  for (int64_t rows : {2, 40}) {
    const Case spec{.dtype = kBF16, .seqlen_q = rows, .seqlen_k = kKeys};
    Data near(spec), spread(spec);
    for (int64_t key = 0; key < kKeys; ++key) {
      for (int64_t i = 0; i < kDim; ++i) {
        write(kBF16, near.k.get(0, key, 0, i), far, key * kStride + i);
      }
    }
    FwdParams params = spread.fwd_params();
    params.k = {far, {0, kStride, 0}};
    ASSERT_TRUE(cpu::fwd(near.fwd_params(), Context{}).ok());
    ASSERT_TRUE(cpu::fwd(params, Context{}).ok());
    EXPECT_EQ(bytes({&spread.out, &spread.lse}), bytes({&near.out, &near.lse}));
  }
  munmap(far, bytes_reserved);
}

struct BadContents {
  const char* what;
  void (*spoil)(Data& data, FwdParams& params);
  const char* message;
};

// clang-format off
const BadContents kBadContents[] = {
    {"first offset", [](Data& d, FwdParams&) { d.cu_q[0] = 1; },
     "cu_seqlens_q: must start at 0, got 1 at index 0"},
    {"falling offsets", [](Data& d, FwdParams&) { d.cu_k[2] = 3; },
     "cu_seqlens_k: must not decrease from 4, got 3 at index 2"},
    {"negative offsets", [](Data& d, FwdParams&) { d.cu_q[1] = -2; },
     "cu_seqlens_q: must not decrease from 0, got -2 at index 1"},
    {"offset past the rows", [](Data& d, FwdParams& p) { d.cu_k[2] = 99; p.seqlen_k = 1000; },
     "cu_seqlens_k: must not exceed the 12 rows of the tensor, got 99 at index 2"},
    {"length over the bound", [](Data&, FwdParams& p) { p.seqlen_q = 2; },
     "cu_seqlens_q: must have lengths of at most max_seqlen = 2, got 3 at index 1"},
    {"negative seqused", [](Data& d, FwdParams&) { d.spec.used_k[1] = -1; },
     "seqused_k: must lie in [0, 5], the rows present, got -1 at index 1"},
    {"seqused over the rows", [](Data& d, FwdParams&) { d.spec.used_q[0] = 4; },
     "seqused_q: must lie in [0, 3], the rows present, got 4 at index 0"},
};
// clang-format on

TEST(FwdErrors, ContentsAreCheckedBeforeAnythingIsWritten) {
  const Case spec{.batch = 2,
                  .seqlen_q = 5,
                  .seqlen_k = 5,
                  .lengths_q = {3, 5},
                  .lengths_k = {4, 5},
                  .used_q = {3, 5},
                  .used_k = {4, 5}};
  for (const BadContents& bad : kBadContents) {
    Data data(spec);
    const auto before = bytes({&data.out, &data.lse});
    FwdParams params = data.fwd_params();
    bad.spoil(data, params);
    const Status status = cpu::fwd(params, Context{});
    EXPECT_EQ(status.code, Code::kInvalidValue) << bad.what;
    EXPECT_EQ(status.message, bad.message) << bad.what;
    EXPECT_EQ(bytes({&data.out, &data.lse}), before) << bad.what;
  }
}

TEST(FwdErrors, UsedPagesMustExist) {
  for (int32_t page : {-1, 100}) {
    Data data({.batch = 2, .seqlen_q = 1, .seqlen_k = 12, .used_k = {12, 5}, .page_size = 4});
    data.page_table[4] = page;
    const Status status = cpu::fwd(data.fwd_params(), Context{});
    EXPECT_EQ(status.code, Code::kInvalidValue);
    EXPECT_EQ(status.message, "page_table: used entries must lie in [0, 8), got " +
                                  std::to_string(page) + " at index (1, 1)");
  }
}

}  // namespace
}  // namespace fa4::test
