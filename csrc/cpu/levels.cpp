#include "levels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace pntk {
namespace {

const Level* const kLevels[] = {
    &kPortable,
#ifdef PNTK_X86
    &kAvx2,
    &kAvx512,
#endif
};
constexpr std::size_t kCount = sizeof kLevels / sizeof *kLevels;

const Level& choose() {
  const char* set = std::getenv("PNTK_CPU_LEVEL");
  const std::string cap = set == nullptr ? "" : set;
  const Level* best = &kPortable;
  for (const Level* level : kLevels) {
    if (supported(*level)) best = level;
    if (cap == level->name) return *best;
  }
  if (cap.empty()) return *best;
  std::string known;
  for (const Level* level : kLevels) known += std::string(known.empty() ? "" : ", ") + level->name;
  throw std::invalid_argument("PNTK_CPU_LEVEL is '" + cap + "'; set it to one of " + known +
                              ", or not at all");
}

}  // namespace

const Level& current_level() {
  static const Level& level = choose();
  return level;
}

const Level* const* compiled_levels(std::size_t* count) {
  *count = kCount;
  return kLevels;
}

bool supported(const Level& level) {
#ifdef PNTK_X86
  __builtin_cpu_init();
  if (&level == &kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (&level == &kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           supported(kAvx2);
#endif
  return &level == &kPortable;
}

}  // namespace pntk
