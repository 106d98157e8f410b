#include "levels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#ifdef PNTK_X86
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pntk {
namespace {

#ifdef PNTK_X86
Level with_dense(Level level, const char* name, const DenseKernels& dense) {
  level.name = name;
  level.dense = dense;
  return level;
}
const Level kAmx = with_dense(kAvx512, "amx", kAmxDense);
const Level kAmxEmulated = with_dense(kAvx512, "amx-emulated", kAmxEmulatedDense);

// What the AMX kernels use apart from tiles.
bool amx_vectors() {
  unsigned a, b, c, d;
  constexpr unsigned kBf16 = 1u << 5, kVbmi = 1u << 1, kGfni = 1u << 8;
  return kAmxDense.rademacher != nullptr && supported(kAvx512) &&
         __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & kVbmi) && (c & kGfni) &&
         __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kBf16);
}

// The processor has tiles, and the kernel lets this process use them.
bool amx_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  unsigned a, b, c, d;
  constexpr unsigned kTile = 1u << 24, kTileBf16 = 1u << 22;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) && (d & kTileBf16) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const Level* const kLevels[] = {
    &kPortable,
#ifdef PNTK_X86
    &kAvx2,
    &kAvx512,
    &kAmx,  // last, because not every compiler has it
#endif
};

std::size_t count_levels() {
  constexpr std::size_t kCount = sizeof kLevels / sizeof *kLevels;
#ifdef PNTK_X86
  if (kAmxDense.rademacher == nullptr) return kCount - 1;
#endif
  return kCount;
}

const Level& choose() {
  const char* set = std::getenv("PNTK_CPU_LEVEL");
  const std::string cap = set == nullptr ? "" : set;
  const Level* best = &kPortable;
  for (std::size_t i = 0; i < count_levels(); ++i) {
    if (supported(*kLevels[i])) best = kLevels[i];
    if (cap == kLevels[i]->name) return *best;
  }
  if (cap.empty()) return *best;
  std::string known;
  for (std::size_t i = 0; i < count_levels(); ++i)
    known += std::string(known.empty() ? "" : ", ") + kLevels[i]->name;
  throw std::invalid_argument("PNTK_CPU_LEVEL is '" + cap + "'; set it to one of " + known +
                              ", or not at all");
}

}  // namespace

const Level& current_level() {
  static const Level& level = choose();
  return level;
}

const Level* const* compiled_levels(std::size_t* count) {
  *count = count_levels();
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
  if (&level == &kAmx) {
    static const bool found = amx_vectors() && amx_tiles();
    return found;
  }
  if (&level == &kAmxEmulated) return amx_vectors();
#endif
  return &level == &kPortable;
}

const Level* find_level(const std::string& name) {
#ifdef PNTK_X86
  if (name == kAmxEmulated.name) return supported(kAmxEmulated) ? &kAmxEmulated : nullptr;
#endif
  for (std::size_t i = 0; i < count_levels(); ++i)
    if (name == kLevels[i]->name) return supported(*kLevels[i]) ? kLevels[i] : nullptr;
  return nullptr;
}

}  // namespace pntk
