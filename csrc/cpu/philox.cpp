#include "philox.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "levels.h"

namespace pntk {
namespace {

constexpr std::size_t kBatchWords = kBlockWords * kPhiloxLanes;
constexpr std::size_t kBatchBits = kBlockBits * kPhiloxLanes;

// Signs of the 8 bits of every byte, so that 8 signs cost one load and one store.
template <typename Sign>
struct SignTable {
  std::array<std::array<Sign, 8>, 256> rows;

  SignTable() {
    for (unsigned byte = 0; byte < 256; ++byte)
      for (unsigned bit = 0; bit < 8; ++bit)
        rows[byte][bit] = static_cast<Sign>((byte >> bit) & 1u ? -1 : 1);
  }
};

// Signs of bits [from, to) of a batch.
template <typename Sign>
void expand(const std::uint32_t* words, std::size_t from, std::size_t to, Sign* out) {
  static const SignTable<Sign> table;
  const auto sign = [words](std::size_t n) {
    return static_cast<Sign>((words[n / 32] >> (n % 32)) & 1u ? -1 : 1);
  };
  while (from < to && from % 32 != 0) *out++ = sign(from++);
  for (; from + 32 <= to; from += 32) {
    const std::uint32_t word = words[from / 32];
    for (int shift = 0; shift < 32; shift += 8, out += 8)
      std::memcpy(out, table.rows[(word >> shift) & 0xFFu].data(), 8 * sizeof(Sign));
  }
  while (from < to) *out++ = sign(from++);
}

}  // namespace

template <typename Word>
void philox_words(const Level& level, std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                  std::size_t skip, std::size_t count, Word* out) {
  std::uint32_t words[kBatchWords];
  for (; count > 0; block += kPhiloxLanes, skip = 0) {
    const std::size_t taken = std::min(count, kBatchWords - skip);
    level.philox(seed, stream, block, words);
    std::copy_n(words + skip, taken, out);
    out += taken;
    count -= taken;
  }
}

template <typename Sign>
void philox_signs(const Level& level, std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                  std::size_t skip, std::size_t count, Sign* out) {
  std::uint32_t words[kBatchWords];
  for (; count > 0; block += kPhiloxLanes, skip = 0) {
    const std::size_t taken = std::min(count, kBatchBits - skip);
    level.philox(seed, stream, block, words);
    expand(words, skip, skip + taken, out);
    out += taken;
    count -= taken;
  }
}

template void philox_words(const Level&, std::uint64_t, std::uint64_t, std::uint64_t, std::size_t,
                           std::size_t, std::uint32_t*);
template void philox_words(const Level&, std::uint64_t, std::uint64_t, std::uint64_t, std::size_t,
                           std::size_t, std::int64_t*);
template void philox_signs(const Level&, std::uint64_t, std::uint64_t, std::uint64_t, std::size_t,
                           std::size_t, float*);
template void philox_signs(const Level&, std::uint64_t, std::uint64_t, std::uint64_t, std::size_t,
                           std::size_t, double*);
template void philox_signs(const Level&, std::uint64_t, std::uint64_t, std::uint64_t, std::size_t,
                           std::size_t, std::int8_t*);

}  // namespace pntk
