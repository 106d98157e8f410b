// Philox4x32-10 words and the +1/-1 signs made of their bits.
// Mapping of (seed, stream, index) to bits: docs/adr/0002-random-bits.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pntk {

constexpr std::size_t kBlockWords = 4;
constexpr std::size_t kBlockBits = 128;

struct Level;

// Writes count words of the stream, from word `skip` of block `block` on. Needs
// skip < kBlockWords; a stream ends after block 2^64 - 1 and would start again from there.
template <typename Word>
void philox_words(const Level&, std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                  std::size_t skip, std::size_t count, Word* out);

// Writes the signs of count bits, from bit `skip` of block `block` on: +1 for 0, -1 for 1.
// Needs skip < kBlockBits.
template <typename Sign>
void philox_signs(const Level&, std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                  std::size_t skip, std::size_t count, Sign* out);

}  // namespace pntk
