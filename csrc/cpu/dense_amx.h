// Dense projections with matrix tiles: gradients in bfloat16, once or as the sum of two numbers,
// times entries of P made in the tiles' own layout. All entries are exact in bfloat16.
//
// The next tile of P is made while the processor multiplies the present one, and the words of the
// next 64 entries along with it.
#pragma once

#include "dense_panel.h"
#include "dense_tile.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {
namespace dense {

constexpr i64 kDepth = 32;  // coordinates of a tile

PNTK_INLINE void store_row(void* tile, int row, __m512i x) {
  _mm512_storeu_si512(static_cast<char*>(tile) + row * kRowBytes, x);
}

constexpr int kAndOr = 0xEA;  // ternary logic: (a & b) | c

// A tile's row r holds the signs of coordinates r and r + 16, which are bits 15 and 31 of the word
// after one shift.
struct SignTiles {
  static constexpr i64 kRows = 1;  // of words, for one tile
  static constexpr i64 kSteps = 8;  // tiles of P on top of each other, while gradients are in L1

  explicit SignTiles(const DenseTask&) {}

  template <int Row = 0>
  PNTK_INLINE void make(const std::uint32_t* words, void* tile) const {
    const __m512i moved = _mm512_slli_epi32(_mm512_loadu_si512(words), 15 - Row);
    store_row(tile, Row, _mm512_ternarylogic_epi32(moved, _mm512_set1_epi32(INT32_MIN | 0x8000),
                                                   _mm512_set1_epi32(0x3F803F80), kAndOr));
    if constexpr (Row < kTileRows - 1) make<Row + 1>(words, tile);
  }

  // The first and second coordinates of the pairs, of 32 coordinates in order.
  static void pairs(Vec (&)[2]) {}
};

// Word row m of eight has coordinates 4m to 4m + 3: bytes 0 and 2 go to row 2m, 1 and 3 to 2m + 1.
struct LevelTiles {
  static constexpr i64 kRows = 8;
  static constexpr i64 kSteps = 4;

  // Bytes of the upper levels as bfloat16. The lower levels are the same with the sign set, in the
  // opposite order.
  explicit LevelTiles(const DenseTask&) {
    std::uint8_t bytes[2][128];
    for (int t = 0; t < 128; ++t) {
      std::uint32_t bits;
      std::memcpy(&bits, &kNormalLevels.at[128 + t], sizeof bits);
      bytes[0][t] = static_cast<std::uint8_t>(bits >> 16);
      bytes[1][t] = static_cast<std::uint8_t>(bits >> 24);
    }
    for (int i = 0; i < 2; ++i) {
      low[i] = _mm512_loadu_si512(bytes[0] + 64 * i);
      high[i] = _mm512_loadu_si512(bytes[1] + 64 * i);
    }
  }

  PNTK_INLINE void make(const std::uint32_t* words, void* tile) const {
    // bit i of a byte becomes bit i ^ bit 7 ^ 1, and bit 7 its opposite: an index, and the sign
    const __m512i fold = _mm512_set1_epi64(static_cast<long long>(0x8182848890A0C080u));
    const __m512i lower = _mm512_set1_epi16(0x00FF), upper = _mm512_set1_epi16(-0x0100);
    for (int m = 0; m < kRows; ++m) {
      const __m512i word = _mm512_loadu_si512(words + m * kDenseGroup);
      const __m512i index = _mm512_gf2p8affine_epi64_epi8(word, fold, 0xFF);
      const __m512i l = _mm512_permutex2var_epi8(low[0], index, low[1]);
      const __m512i unsigned_h = _mm512_permutex2var_epi8(high[0], index, high[1]);
      const __m512i h = _mm512_ternarylogic_epi32(index, _mm512_set1_epi8(INT8_MIN), unsigned_h,
                                                  kAndOr);
      store_row(tile, 2 * m, _mm512_ternarylogic_epi32(l, lower, _mm512_slli_epi16(h, 8), kAndOr));
      store_row(tile, 2 * m + 1,
                _mm512_ternarylogic_epi32(h, upper, _mm512_srli_epi16(l, 8), kAndOr));
    }
  }

  static void pairs(Vec (&x)[2]) {
    const __m512i first =
        _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
    const Vec low_coordinates = x[0];
    x[0] = _mm512_permutex2var_ps(low_coordinates, first, x[1]);
    x[1] = _mm512_permutex2var_ps(low_coordinates, second, x[1]);
  }

 private:
  __m512i low[2], high[2];
};

// Round to bfloat16; what is lost remains in x.
PNTK_INLINE __m512i round_off(Vec& x) {
  const __m512i bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
  x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
  return bits;
}

// Write 32 coordinates of 16 samples as tiles, one for each pass, `stride` bytes apart.
template <typename Entries, int Passes>
inline void pack_tiles(const DenseTask& task, i64 sample, i64 first, char* to, i64 stride) {
  const i64 there = larger(0, smaller(kDepth, task.last - first));
  const auto mask = static_cast<std::uint32_t>((std::uint64_t{1} << there) - 1);
  for (int row = 0; row < kTileRows; ++row) {
    Vec x[2] = {broadcast(0.0f), broadcast(0.0f)};
    if (sample + row < task.samples) {
      const float* from = task.gradient + (sample + row) * task.map->size + first;
      for (int i = 0; i < 2; ++i)
        x[i] = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16 * i), from + 16 * i);
    }
    Entries::pairs(x);
    for (int pass = 0; pass < Passes; ++pass) {
      const __m512i even = round_off(x[0]), odd = round_off(x[1]);
      store_row(to + pass * stride, row, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
  }
}

// sums += gradients * P for one tile of P. Tiles 0 to SampleTiles - 1 hold sums, 4 P, 5 gradients.
template <int SampleTiles, int Passes, int Next = 0, typename Unit>
PNTK_INLINE void add_products(Unit& unit, const char* gradients) {
  constexpr int kCount = SampleTiles * Passes;
  if constexpr (Next < kCount) {
    constexpr int kGradients = 5 + Next % 3;
    unit.template load<kGradients>(gradients + Next * kTileBytes);
    unit.template add_product<Next % SampleTiles, kGradients, 4>();
    add_products<SampleTiles, Passes, Next + 1>(unit, gradients);
  }
}

template <int SampleTiles, typename Unit>
PNTK_INLINE void load_sums(Unit& unit, const char* from) {
  if constexpr (SampleTiles > 0) {
    unit.template load<SampleTiles - 1>(from + (SampleTiles - 1) * kTileBytes);
    load_sums<SampleTiles - 1>(unit, from);
  }
}

template <int SampleTiles, typename Unit>
PNTK_INLINE void store_sums(Unit& unit, char* to) {
  if constexpr (SampleTiles > 0) {
    unit.template store<SampleTiles - 1>(to + (SampleTiles - 1) * kTileBytes);
    store_sums<SampleTiles - 1>(unit, to);
  }
}

// Words of a few rows and 64 entries, made half a row at a time.
struct WordPanel {
  const DenseMap* map;
  i64 row, entry;
  std::uint32_t* words;

  PNTK_INLINE void make_halves(i64 from, i64 to) const {
    static_assert(4 * kWideLanes == kDenseGroup / 2, "a vector of blocks is half a row of words");
    const i64 row_blocks = round_up(map->proj_dim, 4) / 4;
    for (i64 half = from; half < to; ++half)
      make_words<1>(map->seed, map->stream,
                    static_cast<std::uint64_t>((row + half / 2) * row_blocks + entry / 4 +
                                               half % 2 * kWideLanes),
                    words + half * (kDenseGroup / 2));
  }
};

template <typename Unit, typename Entries, int SampleTiles, int Passes>
void project_tiles(const DenseTask& task) {
  constexpr i64 kSteps = Entries::kSteps == 8 ? 8 / Passes : Entries::kSteps;
  constexpr i64 kTilesOfGroup = kDenseGroup / kTileRows, kSlots = kTilesOfGroup * kSteps;
  constexpr i64 kHalves = 2 * Entries::kRows * kSteps;  // of rows of words, made in kSlots slots
  constexpr i64 kStepBytes = SampleTiles * Passes * kTileBytes;
  constexpr i64 kWordsOfGroup = kSteps * Entries::kRows * kDenseGroup;
  const i64 tiles = (task.entries + kTileRows - 1) / kTileRows;
  const i64 sums_bytes = tiles * SampleTiles * kTileBytes;
  char* sums = reinterpret_cast<char*>(
      scratch((sums_bytes + kSteps * kStepBytes + 2 * kTileBytes) / 4 + 2 * kWordsOfGroup));
  char* gradients = sums + sums_bytes;
  char* entries[2];
  entries[0] = gradients + kSteps * kStepBytes;
  entries[1] = entries[0] + kTileBytes;
  auto* words = reinterpret_cast<std::uint32_t*>(entries[1] + kTileBytes);
  fill_zeros(reinterpret_cast<float*>(sums), sums_bytes / 4);
  const Entries made(task);
  Unit unit;
  unit.begin();
  const auto group_words = [&](i64 group) { return words + group % 2 * kWordsOfGroup; };
  const auto make_entries = [&](i64 n) {  // tile n of P: its step is n % kSteps
    const i64 tile = n / kSteps, row = n % kSteps * Entries::kRows;
    made.make(group_words(tile / kTilesOfGroup) + row * kDenseGroup +
                  tile % kTilesOfGroup * kTileRows,
              entries[n % 2]);
  };
  for (i64 first = task.first; first < task.last; first += kSteps * kDepth) {
    const auto panel = [&](i64 group) {
      return WordPanel{task.map, first / kDepth * Entries::kRows, task.entry + group * kDenseGroup,
                       group_words(group)};
    };
    for (i64 step = 0; step < kSteps; ++step)
      for (i64 i = 0; i < SampleTiles; ++i)
        pack_tiles<Entries, Passes>(task, i * kTileRows, first + step * kDepth,
                                    gradients + step * kStepBytes + i * kTileBytes,
                                    SampleTiles * kTileBytes);
    panel(0).make_halves(0, kHalves);
    make_entries(0);
    for (i64 tile = 0, n = 0; tile < tiles; ++tile) {
      const i64 next_group = tile / kTilesOfGroup + 1;
      const bool more_groups = next_group * kTilesOfGroup < tiles;
      char* sum = sums + tile * SampleTiles * kTileBytes;
      load_sums<SampleTiles>(unit, sum);
      for (i64 step = 0; step < kSteps; ++step, ++n) {
        const i64 slot = n % kSlots;
        unit.template load<4>(entries[n % 2]);
        add_products<SampleTiles, Passes>(unit, gradients + step * kStepBytes);
        if (more_groups)
          panel(next_group).make_halves(slot * kHalves / kSlots, (slot + 1) * kHalves / kSlots);
        if (n + 1 < tiles * kSteps) make_entries(n + 1);
      }
      store_sums<SampleTiles>(unit, sum);
    }
  }
  unit.end();
  for (i64 tile = 0; tile < tiles; ++tile) {
    const i64 there = smaller(kTileRows, task.entries - tile * kTileRows);
    const auto mask = static_cast<__mmask16>((1u << there) - 1);
    const char* row = sums + tile * SampleTiles * kTileBytes;
    for (i64 s = 0; s < task.samples; ++s, row += kRowBytes)
      _mm512_mask_storeu_ps(task.sums + s * task.entries + tile * kTileRows, mask,
                            load(reinterpret_cast<const float*>(row)));
  }
}

template <typename Unit, typename Entries, int Passes>
void project_samples(const DenseTask& task) {
  if (task.samples <= kTileRows) project_tiles<Unit, Entries, 1, Passes>(task);
  else if (task.samples <= 2 * kTileRows) project_tiles<Unit, Entries, 2, Passes>(task);
  else project_tiles<Unit, Entries, 4, Passes>(task);
}

// Two numbers of eight bits each have nearly all of a float32: with one, its error is the rounding
// of the gradient.
template <typename Unit, typename Entries>
void project(const DenseTask& task) {
  if (task.map->bf16) project_samples<Unit, Entries, 1>(task);
  else project_samples<Unit, Entries, 2>(task);
}

template <typename Unit>
constexpr DenseKernels kTileKernels{project<Unit, SignTiles>, project<Unit, LevelTiles>};

}  // namespace dense
}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
