// What makes the kernels' signs, as host functions for tests/cuda/test_signs.py.
#include "numbers.cuh"
#include "philox.cuh"

using namespace pntk::cuda;

extern "C" __attribute__((visibility("default"))) void philox_words(
    std::uint64_t seed, std::uint64_t stream, std::uint64_t block, std::int64_t blocks,
    std::uint32_t* to) {
  for (std::int64_t i = 0; i < blocks; ++i) {
    const uint4 words = philox_block(seed, stream, block + static_cast<std::uint64_t>(i));
    to[4 * i] = words.x, to[4 * i + 1] = words.y, to[4 * i + 2] = words.z, to[4 * i + 3] = words.w;
  }
}

extern "C" __attribute__((visibility("default"))) void signs_of_words(
    const std::uint32_t* words, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; ++i)
    to[i] = flip(1.0f, sign_bit(words[i / 32], static_cast<int>(i % 32)));
}
