// A float vector of one level's width, in the namespace PNTK_LEVEL of the file that includes this.
//
// Everything a kernel needs beyond + - *: loads, broadcasts, sign flips by bits, and the exchanges
// of a Walsh-Hadamard transform. Lanes: 16 (AVX-512), 8 (AVX2 with FMA), or 4 (the vector
// extensions of GCC and Clang, which any processor has).
//
// What includes this may not instantiate a template of the standard library: its code would carry
// this level's instructions, and the linker could give it to another level.
#pragma once

#include <cstdint>
#include <cstring>

#if PNTK_LANES > 4
#include <immintrin.h>
#endif

#if !defined(PNTK_LEVEL) || !defined(PNTK_LANES)
#error "define PNTK_LEVEL and PNTK_LANES before including simd.h"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels read random words as bytes, low ones first"
#endif

#define PNTK_INLINE inline __attribute__((always_inline))

namespace pntk {
namespace PNTK_LEVEL {
namespace {

#if PNTK_LANES == 16

constexpr int kLanes = 16;
using Vec = __m512;

PNTK_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
PNTK_INLINE void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
PNTK_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
PNTK_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }

// Sign bits of the lanes of vector v of a row of bits; reads whole 32-bit words.
using Signs = __m512i;
PNTK_INLINE Signs signs(const std::uint8_t* row, int v) {
  std::uint32_t word;
  std::memcpy(&word, row + v / 2 * 4, sizeof word);
  const __m512i up = v % 2 == 0 ? _mm512_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20,
                                                    19, 18, 17, 16)
                                : _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2,
                                                    1, 0);
  return _mm512_sllv_epi32(_mm512_set1_epi32(static_cast<int>(word)), up);
}

// x with the lanes negated whose sign bit is set.
PNTK_INLINE Vec flip(Vec x, Signs signs) {
  constexpr int kXorAnd = 0x78;  // x ^ (signs & mask)
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(x), signs,
                                                       _mm512_set1_epi32(INT32_MIN), kXorAnd));
}

// The same for the vector that starts at any lane; reads no more than its bits.
PNTK_INLINE Vec flip_at(Vec x, const std::uint8_t* row, std::int64_t lane) {
  std::uint16_t mask;
  std::memcpy(&mask, row + lane / 8, sizeof mask);
  const __m512i raw = _mm512_castps_si512(x);
  return _mm512_castsi512_ps(_mm512_mask_xor_epi32(raw, mask, raw, _mm512_set1_epi32(INT32_MIN)));
}

// Lane i of the result is lane i ^ Distance of x.
template <int Distance>
PNTK_INLINE Vec exchange(Vec x) {
  if constexpr (Distance == 1) return _mm512_permute_ps(x, 0xB1);
  if constexpr (Distance == 2) return _mm512_permute_ps(x, 0x4E);
  if constexpr (Distance == 4) return _mm512_shuffle_f32x4(x, x, 0xB1);
  if constexpr (Distance == 8) return _mm512_shuffle_f32x4(x, x, 0x4E);
}

// Lanes i with (i & Distance) come from lane i ^ Distance of other, the rest from x; and the
// reverse with Upper false.
template <int Distance, bool Upper>
PNTK_INLINE Vec merge(Vec x, Vec other) {
  constexpr __mmask16 odd = Distance == 1 ? 0xAAAA : Distance == 2 ? 0xCCCC
                            : Distance == 4 ? 0xF0F0 : 0xFF00;
  return _mm512_mask_mov_ps(x, Upper ? odd : static_cast<__mmask16>(~odd),
                            exchange<Distance>(other));
}

#elif PNTK_LANES == 8

constexpr int kLanes = 8;
using Vec = __m256;

PNTK_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
PNTK_INLINE void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
PNTK_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
PNTK_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

using Signs = __m256i;
PNTK_INLINE Signs signs(const std::uint8_t* row, int v) {
  const __m256i up = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  const __m256i moved = _mm256_sllv_epi32(_mm256_set1_epi32(row[v]), up);
  return _mm256_and_si256(moved, _mm256_set1_epi32(INT32_MIN));
}

PNTK_INLINE Vec flip(Vec x, Signs signs) {
  return _mm256_xor_ps(x, _mm256_castsi256_ps(signs));
}

PNTK_INLINE Vec flip_at(Vec x, const std::uint8_t* row, std::int64_t lane) {
  return flip(x, signs(row + lane / 8, 0));
}

template <int Distance>
PNTK_INLINE Vec exchange(Vec x) {
  if constexpr (Distance == 1) return _mm256_permute_ps(x, 0xB1);
  if constexpr (Distance == 2) return _mm256_permute_ps(x, 0x4E);
  if constexpr (Distance == 4) return _mm256_permute2f128_ps(x, x, 0x01);
}

template <int Distance, bool Upper>
PNTK_INLINE Vec merge(Vec x, Vec other) {
  constexpr int odd = Distance == 1 ? 0xAA : Distance == 2 ? 0xCC : 0xF0;
  return _mm256_blend_ps(x, exchange<Distance>(other), Upper ? odd : 0xFF & ~odd);
}

#else

constexpr int kLanes = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef std::uint32_t VecBits __attribute__((vector_size(16)));

PNTK_INLINE Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
PNTK_INLINE void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
PNTK_INLINE Vec broadcast(float x) { return Vec{x, x, x, x}; }
PNTK_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }

using Signs = VecBits;
PNTK_INLINE Signs signs(const std::uint8_t* row, int v) {
  const auto n = static_cast<std::uint32_t>(row[v / 2] >> (v % 2 * 4));
  return VecBits{n << 31, n << 30, n << 29, n << 28} & 0x80000000u;
}

PNTK_INLINE Vec flip(Vec x, Signs signs) {
  VecBits raw;
  std::memcpy(&raw, &x, sizeof raw);
  raw ^= signs;
  std::memcpy(&x, &raw, sizeof x);
  return x;
}

PNTK_INLINE Vec flip_at(Vec x, const std::uint8_t* row, std::int64_t lane) {
  return flip(x, signs(row + lane / 8, static_cast<int>(lane % 8 / 4)));
}

template <int Distance>
PNTK_INLINE Vec exchange(Vec x) {
  if constexpr (Distance == 1) return Vec{x[1], x[0], x[3], x[2]};
  if constexpr (Distance == 2) return Vec{x[2], x[3], x[0], x[1]};
}

template <int Distance, bool Upper>
PNTK_INLINE Vec merge(Vec x, Vec other) {
  const Vec moved = exchange<Distance>(other);
  for (int i = 0; i < kLanes; ++i)
    if (((i & Distance) != 0) == Upper) x[i] = moved[i];
  return x;
}

#endif

// +1 in lanes without Distance, -1 in lanes with it.
template <int Distance>
PNTK_INLINE Vec alternating() {
  float signs[kLanes];
  for (int i = 0; i < kLanes; ++i) signs[i] = i & Distance ? -1.0f : 1.0f;
  return load(signs);
}

// Rows i and lanes i of a square block change places.
template <int Distance = 1>
PNTK_INLINE void transpose(Vec (&x)[kLanes]) {
  if constexpr (Distance < kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      if (i & Distance) continue;
      const Vec upper = merge<Distance, true>(x[i], x[i + Distance]);
      x[i + Distance] = merge<Distance, false>(x[i + Distance], x[i]);
      x[i] = upper;
    }
    transpose<2 * Distance>(x);
  }
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
