#include "philox.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace pntk {
namespace {

// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
constexpr std::uint32_t kMultiplier0 = 0xD2511F53u;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57u;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;

// Blocks made together: wide enough for any vector unit, small enough to stay in L1.
constexpr std::size_t kLanes = 32;
constexpr std::size_t kBatchWords = kBlockWords * kLanes;
constexpr std::size_t kBatchBits = kBlockBits * kLanes;

// Words of blocks [block, block + kLanes), in the order of the stream.
void philox_batch(std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                  std::uint32_t* words) {
  std::uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) {
    c0[i] = static_cast<std::uint32_t>(block + i);
    c1[i] = static_cast<std::uint32_t>((block + i) >> 32);
    c2[i] = static_cast<std::uint32_t>(stream);
    c3[i] = static_cast<std::uint32_t>(stream >> 32);
  }
  auto key0 = static_cast<std::uint32_t>(seed);
  auto key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    for (std::size_t i = 0; i < kLanes; ++i) {
      const std::uint64_t product0 = std::uint64_t{kMultiplier0} * c0[i];
      const std::uint64_t product1 = std::uint64_t{kMultiplier1} * c2[i];
      c0[i] = static_cast<std::uint32_t>(product1 >> 32) ^ c1[i] ^ key0;
      c1[i] = static_cast<std::uint32_t>(product1);
      c2[i] = static_cast<std::uint32_t>(product0 >> 32) ^ c3[i] ^ key1;
      c3[i] = static_cast<std::uint32_t>(product0);
    }
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  for (std::size_t i = 0; i < kLanes; ++i) {
    words[4 * i] = c0[i];
    words[4 * i + 1] = c1[i];
    words[4 * i + 2] = c2[i];
    words[4 * i + 3] = c3[i];
  }
}

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
void philox_words(std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                  std::size_t skip, std::size_t count, Word* out) {
  std::uint32_t words[kBatchWords];
  for (; count > 0; block += kLanes, skip = 0) {
    const std::size_t taken = std::min(count, kBatchWords - skip);
    philox_batch(seed, stream, block, words);
    std::copy_n(words + skip, taken, out);
    out += taken;
    count -= taken;
  }
}

template <typename Sign>
void philox_signs(std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                  std::size_t skip, std::size_t count, Sign* out) {
  std::uint32_t words[kBatchWords];
  for (; count > 0; block += kLanes, skip = 0) {
    const std::size_t taken = std::min(count, kBatchBits - skip);
    philox_batch(seed, stream, block, words);
    expand(words, skip, skip + taken, out);
    out += taken;
    count -= taken;
  }
}

template void philox_words(std::uint64_t, std::uint64_t, std::uint64_t, std::size_t,
                           std::size_t, std::uint32_t*);
template void philox_words(std::uint64_t, std::uint64_t, std::uint64_t, std::size_t,
                           std::size_t, std::int64_t*);
template void philox_signs(std::uint64_t, std::uint64_t, std::uint64_t, std::size_t,
                           std::size_t, float*);
template void philox_signs(std::uint64_t, std::uint64_t, std::uint64_t, std::size_t,
                           std::size_t, double*);
template void philox_signs(std::uint64_t, std::uint64_t, std::uint64_t, std::size_t,
                           std::size_t, std::int8_t*);

}  // namespace pntk
