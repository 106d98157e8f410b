// Random signs times gradients by table, with samples in lanes.
//
// The 32 coordinates of a word are cut into a few groups, and the sums of a group under all its
// signs go to a table in L1, one vector an entry. A word then costs one load and one add for each
// group, instead of 32 multiply-adds. Tables in registers, which AVX-512 can permute by bits of the
// word, took as long on Zen 5: a permutation a cycle.
#pragma once

#include "dense_panel.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {
namespace dense {

constexpr int kWordBits = 32;
constexpr i64 kStripWords = 1 << 14;  // made at a time, for all samples of a task

// Write table[n] = sum over i < Bits of (bit i of n ? -x[i] : x[i]).
template <int Bits>
inline void sign_sums(const Vec* x, Vec* table) {
  constexpr int kLow = Bits / 2, kHigh = Bits - kLow;
  Vec low[1 << kLow] = {x[0], -x[0]};
  for (int bit = 1; bit < kLow; ++bit)
    for (int n = 0; n < 1 << bit; ++n) {
      low[n + (1 << bit)] = low[n] - x[bit];
      low[n] = low[n] + x[bit];
    }
  for (int high = 0; high < 1 << kHigh; ++high) {
    Vec sum = high & 1 ? -x[kLow] : x[kLow];
    for (int bit = 1; bit < kHigh; ++bit)
      sum = high >> bit & 1 ? sum - x[kLow + bit] : sum + x[kLow + bit];
    for (int n = 0; n < 1 << kLow; ++n) table[(high << kLow) + n] = low[n] + sum;
  }
}

// The tables of groups of coordinates of these sizes, one behind the other.
template <int First, int... Bits>
struct SignTables;

template <int First>
struct SignTables<First> {
  static constexpr i64 kVectors = 0;
  static void make(const Vec*, Vec*) {}
  static PNTK_INLINE Vec add(Vec sum, const Vec*, std::uint32_t) { return sum; }
};

template <int First, int Bits, int... Rest>
struct SignTables<First, Bits, Rest...> {
  using Others = SignTables<First + Bits, Rest...>;
  static constexpr i64 kVectors = (1 << Bits) + Others::kVectors;

  static void make(const Vec* x, Vec* table) {
    sign_sums<Bits>(x, table);
    Others::make(x + Bits, table + (1 << Bits));
  }

  static PNTK_INLINE Vec add(Vec sum, const Vec* table, std::uint32_t word) {
    constexpr std::uint32_t kBytes = sizeof(Vec);
    constexpr std::uint32_t kMask = ((1u << Bits) - 1) * kBytes;
    // in bytes, which saves a shift
    const std::uint32_t at = (First == 0 ? word * kBytes : word / ((1u << First) / kBytes)) & kMask;
    const auto* entry = reinterpret_cast<const Vec*>(reinterpret_cast<const char*>(table) + at);
    return Others::add(sum + *entry, table + (1 << Bits), word);
  }
};

// 28 KiB of AVX-512 vectors: the most that fits into an L1 of 32 KiB.
using Tables = SignTables<0, 7, 7, 6, 6, 6>;

void rademacher(const DenseTask& task) {
  const i64 width = round_up(task.entries, kDenseGroup);
  const i64 groups = (task.samples + kLanes - 1) / kLanes;
  const i64 rows = (task.last - task.first + kWordBits - 1) / kWordBits;
  const i64 strip = larger(1, kStripWords / width);
  float* sums = scratch(groups * width * kLanes + (Tables::kVectors + kWordBits) * kLanes +
                        strip * width);
  auto* table = reinterpret_cast<Vec*>(sums + groups * width * kLanes);
  Vec* panel = table + Tables::kVectors;
  auto* words = reinterpret_cast<std::uint32_t*>(panel + kWordBits);
  fill_zeros(sums, groups * width * kLanes);
  for (i64 start = 0; start < rows; start += strip) {
    const i64 end = smaller(rows, start + strip);
    for (i64 row = start; row < end; ++row)
      row_words(*task.map, task.first / kWordBits + row, task.entry, width,
                words + (row - start) * width);
    for (i64 g = 0; g < groups; ++g) {
      auto* sum = reinterpret_cast<Vec*>(sums + g * width * kLanes);
      for (i64 row = start; row < end; ++row) {
        pack_samples(task, g * kLanes, task.first + row * kWordBits, kWordBits,
                     reinterpret_cast<float*>(panel), kLanes);
        Tables::make(panel, table);
        const std::uint32_t* word = words + (row - start) * width;
        for (i64 j = 0; j < task.entries; j += 2) {  // loads are what limits this
          std::uint64_t two;
          std::memcpy(&two, word + j, sizeof two);
          sum[j] = Tables::add(sum[j], table, static_cast<std::uint32_t>(two));
          sum[j + 1] = Tables::add(sum[j + 1], table, static_cast<std::uint32_t>(two >> 32));
        }
      }
    }
  }
  for (i64 g = 0; g < groups; ++g)
    unpack_sums(task, g * kLanes, sums + g * width * kLanes, kLanes);
}

}  // namespace dense
}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
