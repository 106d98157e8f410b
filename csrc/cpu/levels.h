// The instruction sets that kernels are compiled for, and which of them runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "dense_call.h"
#include "hadamard_call.h"
#include "sums.h"

namespace pntk {

constexpr std::size_t kPhiloxLanes = 32;  // Philox blocks that a level makes together

struct Level {
  const char* name;
  int lanes;              // floats a vector
  const Level* narrower;  // for tiles with fewer columns than lanes; null where none can be
  void (*philox)(std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                 std::uint32_t* words);  // 4 * kPhiloxLanes words
  HadamardKernels hadamard;
  DenseKernels dense;
  void (*norm_sums)(const NormSums&, std::int64_t sample);
};

// The level that runs: the widest that the processor has, not above PNTK_CPU_LEVEL. Throws
// std::invalid_argument where that names no level.
const Level& current_level();

// All levels that were compiled, narrowest first; and whether this processor has one.
const Level* const* compiled_levels(std::size_t* count);
bool supported(const Level& level);

// The supported level of this name, or null. One more than above, for tests alone: "amx-emulated"
// computes as "amx" does, without its instructions.
const Level* find_level(const std::string& name);

extern const Level kPortable;
#if defined(__x86_64__) || defined(_M_X64)
#define PNTK_X86 1
extern const Level kAvx2;
extern const Level kAvx512;
extern const DenseKernels kAmxDense, kAmxEmulatedDense;  // empty where the compiler has no AMX
#endif

}  // namespace pntk
