// Runs of Philox words in registers: 64-bit lanes, of which the low halves count, so that a product
// needs no repacking. The high halves hold what is left of earlier products.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
#pragma once

#include <cstdint>

#include "philox_kernels.h"
#include "simd.h"

#if PNTK_LANES == 4 && defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pntk {
namespace PNTK_LEVEL {
namespace {

#if PNTK_LANES == 16

using Wide = __m512i;
PNTK_INLINE Wide wide(std::uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
PNTK_INLINE Wide wide_add(Wide a, Wide b) { return _mm512_add_epi64(a, b); }
PNTK_INLINE Wide low_product(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
PNTK_INLINE Wide high_half(Wide a) { return _mm512_srli_epi64(a, 32); }
PNTK_INLINE Wide xor_three(Wide a, Wide b, Wide c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
PNTK_INLINE Wide low_halves(Wide a, Wide b) {
  return _mm512_mask_shuffle_epi32(a, 0xAAAA, b, _MM_PERM_CCAA);
}
PNTK_INLINE Wide even_lanes(Wide a, Wide b) { return _mm512_unpacklo_epi64(a, b); }
PNTK_INLINE Wide odd_lanes(Wide a, Wide b) { return _mm512_unpackhi_epi64(a, b); }
PNTK_INLINE void store_words(std::uint32_t* to, Wide a) { _mm512_storeu_si512(to, a); }

#elif PNTK_LANES == 8

using Wide = __m256i;
PNTK_INLINE Wide wide(std::uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
PNTK_INLINE Wide wide_add(Wide a, Wide b) { return _mm256_add_epi64(a, b); }
PNTK_INLINE Wide low_product(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
PNTK_INLINE Wide high_half(Wide a) { return _mm256_srli_epi64(a, 32); }
PNTK_INLINE Wide xor_three(Wide a, Wide b, Wide c) {
  return _mm256_xor_si256(a, _mm256_xor_si256(b, c));
}
PNTK_INLINE Wide low_halves(Wide a, Wide b) {
  return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA);
}
PNTK_INLINE Wide even_lanes(Wide a, Wide b) { return _mm256_unpacklo_epi64(a, b); }
PNTK_INLINE Wide odd_lanes(Wide a, Wide b) { return _mm256_unpackhi_epi64(a, b); }
PNTK_INLINE void store_words(std::uint32_t* to, Wide a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a);
}

#else

typedef std::uint64_t Wide __attribute__((vector_size(16)));
PNTK_INLINE Wide wide(std::uint64_t x) { return Wide{x, x}; }
PNTK_INLINE Wide wide_add(Wide a, Wide b) { return a + b; }
PNTK_INLINE Wide low_product(Wide a, Wide b) {
#if defined(__SSE2__)
  return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}
PNTK_INLINE Wide high_half(Wide a) { return a >> 32; }
PNTK_INLINE Wide xor_three(Wide a, Wide b, Wide c) { return a ^ b ^ c; }
PNTK_INLINE Wide low_halves(Wide a, Wide b) { return (a & 0xFFFFFFFFu) | (b << 32); }
PNTK_INLINE Wide even_lanes(Wide a, Wide b) { return Wide{a[0], b[0]}; }
PNTK_INLINE Wide odd_lanes(Wide a, Wide b) { return Wide{a[1], b[1]}; }
PNTK_INLINE void store_words(std::uint32_t* to, Wide a) { std::memcpy(to, &a, sizeof a); }

#endif

constexpr int kWideLanes = sizeof(Wide) / 8;

// Blocks of the lanes, in such an order that even lanes of a result come before odd ones.
PNTK_INLINE Wide lane_blocks() {
  std::uint64_t blocks[kWideLanes];
  for (int i = 0; i < kWideLanes; ++i)
    blocks[i] = static_cast<std::uint64_t>(i / 2 + i % 2 * (kWideLanes / 2));
  Wide x;
  std::memcpy(&x, blocks, sizeof x);
  return x;
}

// Write the words of Count * kWideLanes blocks, in the order of the stream.
template <int Count>
PNTK_INLINE void make_words(std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                            std::uint32_t* to) {
  Wide c0[Count], c1[Count], c2[Count], c3[Count];
  for (int i = 0; i < Count; ++i) {
    c0[i] = wide_add(wide(block + static_cast<std::uint64_t>(i * kWideLanes)), lane_blocks());
    c1[i] = high_half(c0[i]);
    c2[i] = wide(stream);
    c3[i] = wide(stream >> 32);
  }
  auto key0 = static_cast<std::uint32_t>(seed);
  auto key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < kRounds; ++round, key0 += kWeyl0, key1 += kWeyl1)
    for (int i = 0; i < Count; ++i) {
      const Wide product0 = low_product(c0[i], wide(kMultiplier0));
      const Wide product1 = low_product(c2[i], wide(kMultiplier1));
      c0[i] = xor_three(high_half(product1), c1[i], wide(key0));
      c1[i] = product1;
      c2[i] = xor_three(high_half(product0), c3[i], wide(key1));
      c3[i] = product0;
    }
  for (int i = 0; i < Count; ++i, to += 4 * kWideLanes) {
    const Wide first = low_halves(c0[i], c1[i]), second = low_halves(c2[i], c3[i]);
    store_words(to, even_lanes(first, second));
    store_words(to + 2 * kWideLanes, odd_lanes(first, second));
  }
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
