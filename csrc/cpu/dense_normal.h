// Levels of the normal table times gradients, with samples in lanes. An entry of P is looked up by
// its byte and broadcast, so that no panel of P is made; multiply-adds run at nearly the full rate.
#pragma once

#include "dense_panel.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {
namespace dense {

constexpr i64 kWordBytes = 4;
constexpr i64 kPanelRows = 16;      // of words, summed while a panel of gradients is in L1
constexpr i64 kPanelEntries = 192;  // words of these at a time; a multiple of every Entries below

// sums[j] += levels[bytes of word j] * gradients, for the words of `rows` rows.
template <int Vectors, int Entries>
PNTK_INLINE void add_levels(const std::uint8_t* bytes, const float* panel, i64 rows, float* sums) {
  constexpr i64 kWidth = Vectors * kLanes;
  Vec sum[Entries][Vectors];
  for (int j = 0; j < Entries; ++j)
    for (int v = 0; v < Vectors; ++v) sum[j][v] = broadcast(0.0f);
  for (i64 row = 0; row < rows; ++row, bytes += kPanelEntries * kWordBytes)
    for (int byte = 0; byte < kWordBytes; ++byte, panel += kWidth) {
      Vec level[Entries];
      for (int j = 0; j < Entries; ++j)
        level[j] = broadcast(kNormalLevels.at[bytes[j * kWordBytes + byte]]);
      for (int v = 0; v < Vectors; ++v) {
        const Vec x = load(panel + v * kLanes);
        for (int j = 0; j < Entries; ++j) sum[j][v] = fma(level[j], x, sum[j][v]);
      }
    }
  for (int j = 0; j < Entries; ++j)
    for (int v = 0; v < Vectors; ++v) {
      float* to = sums + j * kWidth + v * kLanes;
      store(to, load(to) + sum[j][v]);  // sums of sums: far less rounding than one long sum
    }
}

// One task, Vectors * kLanes samples at a time.
template <int Vectors, int Entries>
void normal_panels(const DenseTask& task) {
  static_assert(kPanelEntries % Entries == 0, "");
  constexpr i64 kWidth = Vectors * kLanes, kCoordinates = kPanelRows * kWordBytes;
  const i64 width = round_up(task.entries, kPanelEntries);
  const i64 groups = (task.samples + kWidth - 1) / kWidth;
  float* sums = scratch(groups * (width + kCoordinates) * kWidth + kPanelRows * kPanelEntries);
  float* panels = sums + groups * width * kWidth;
  auto* words = reinterpret_cast<std::uint32_t*>(panels + groups * kCoordinates * kWidth);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(words);
  fill_zeros(sums, groups * width * kWidth);
  for (i64 first = task.first; first < task.last; first += kCoordinates) {
    const i64 left = smaller(kCoordinates, task.last - first);
    const i64 rows = (left + kWordBytes - 1) / kWordBytes;
    for (i64 g = 0; g < groups; ++g)
      for (int v = 0; v < Vectors; ++v)
        pack_samples(task, g * kWidth + v * kLanes, first, kCoordinates,
                     panels + g * kCoordinates * kWidth + v * kLanes, kWidth);
    for (i64 entry = 0; entry < task.entries; entry += kPanelEntries) {
      const i64 entries = smaller(kPanelEntries, task.entries - entry);
      for (i64 row = 0; row < rows; ++row)
        row_words(*task.map, first / kWordBytes + row, task.entry + entry,
                  round_up(entries, kDenseGroup), words + row * kPanelEntries);
      for (i64 g = 0; g < groups; ++g)
        for (i64 j = 0; j < entries; j += Entries)
          add_levels<Vectors, Entries>(bytes + j * kWordBytes, panels + g * kCoordinates * kWidth,
                                       rows, sums + (g * width + entry + j) * kWidth);
    }
  }
  for (i64 g = 0; g < groups; ++g)
    for (int v = 0; v < Vectors; ++v)
      if (g * kWidth + v * kLanes < task.samples)
        unpack_sums(task, g * kWidth + v * kLanes, sums + g * width * kWidth + v * kLanes, kWidth);
}

void normal(const DenseTask& task) {
  constexpr bool kManyRegisters = kLanes == 16;  // 32 vectors, or else 16
  if (task.samples <= kLanes) normal_panels<1, kManyRegisters ? 12 : 6>(task);
  else if (task.samples <= 2 * kLanes) normal_panels<2, kManyRegisters ? 8 : 4>(task);
  else normal_panels<4, kManyRegisters ? 6 : 3>(task);
}

}  // namespace dense
}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
