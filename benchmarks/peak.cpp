// The most that one core of this machine does, as JSON on standard output. Compiled where it runs,
// with its own instruction set (see peak.py). Every number is the best of several short runs.
//
// Usage: peak SECONDS_EACH FLOATS
// SECONDS_EACH: of one run of arithmetic; FLOATS: of each array that is streamed.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kRuns = 5;
// Independent sums: enough to fill two units of four or five cycles latency, few enough that they
// and both factors stay in sixteen registers.
constexpr int kSums = 12;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;
typedef float Vector __attribute__((vector_size(kVectorBytes)));

volatile float sink;  // keeps results alive

double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Repeat body(count), which does `work` a count, for about `seconds` a run; return work a second.
template <class Body>
double best_rate(double seconds, double work, Body body) {
  std::int64_t count = 1000;
  for (;;) {
    const double start = now();
    body(count);
    if (now() - start > seconds) break;
    count *= 2;
  }
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    const double start = now();
    body(count);
    best = std::max(best, work * static_cast<double>(count) / (now() - start));
  }
  return best;
}

void fma(std::int64_t count) {
  Vector sums[kSums], a, b;
  for (int lane = 0; lane < kLanes; ++lane) a[lane] = 0.999f, b[lane] = 1e-3f;
  for (int s = 0; s < kSums; ++s) sums[s] = a * static_cast<float>(s);
  for (std::int64_t i = 0; i < count; ++i)
    for (int s = 0; s < kSums; ++s) sums[s] = sums[s] * a + b;
  for (int s = 0; s < kSums; ++s) sink = sums[s][0];
}

#if defined(__AVX512BF16__)
void dot_bf16(std::int64_t count) {
  __m512 sums[kSums];
  for (int s = 0; s < kSums; ++s) sums[s] = _mm512_set1_ps(static_cast<float>(s));
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80);  // 1.0
  for (std::int64_t i = 0; i < count; ++i)
    for (int s = 0; s < kSums; ++s) sums[s] = _mm512_dpbf16_ps(sums[s], a, a);
  for (int s = 0; s < kSums; ++s) sink = _mm512_cvtss_f32(sums[s]);
}
#endif

#if defined(__AMX_BF16__) && defined(__linux__)
// Linux gives tiles only to a process that asks.
bool allowed_tiles() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

void amx_bf16(std::int64_t count) {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) static float tile[16 * 16];
  _tile_loadconfig(&config);
  // the intrinsics are macros that take literal tile numbers and are whole statements
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, tile, 64);
  _tile_loadd(5, tile, 64);
  _tile_loadd(6, tile, 64);
  _tile_loadd(7, tile, 64);
  for (std::int64_t i = 0; i < count; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, tile, 64);
  sink = tile[0];
  _tile_release();
}
#endif

using Array = std::vector<float>;

double read_rate(const Array& from) {
  constexpr int kStreams = 8;
  const auto* at = reinterpret_cast<const Vector*>(from.data());
  const std::size_t vectors = from.size() / kLanes / kStreams * kStreams;
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    Vector sums[kStreams] = {};
    const double start = now();
    for (std::size_t i = 0; i < vectors; i += kStreams)
      for (int s = 0; s < kStreams; ++s) {
        Vector v;
        __builtin_memcpy(&v, at + i + s, sizeof v);
        sums[s] += v;
      }
    best = std::max(best, static_cast<double>(vectors) * kVectorBytes / (now() - start));
    for (int s = 0; s < kStreams; ++s) sink = sums[s][0];
  }
  return best;
}

// Counts the two arrays that are read and the one that is written.
double triad_rate(Array& to, const Array& a, const Array& b) {
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    float* __restrict out = to.data();
    const double start = now();
    for (std::size_t i = 0; i < to.size(); ++i) out[i] = a[i] + 3.0f * b[i];
    best = std::max(best, 3.0 * sizeof(float) * static_cast<double>(to.size()) / (now() - start));
    sink = out[to.size() / 2];
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const double seconds = std::atof(argv[1]);
  const auto floats = static_cast<std::size_t>(std::atoll(argv[2]));
  std::printf("{\"core_fma_gflops\": %.6g", best_rate(seconds, 2e-9 * kSums * kLanes, fma));
#if defined(__AVX512BF16__)
  std::printf(", \"core_dot_bf16_gflops\": %.6g", best_rate(seconds, 2e-9 * kSums * 32, dot_bf16));
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
  if (allowed_tiles())
    std::printf(", \"core_amx_bf16_gflops\": %.6g",
                best_rate(seconds, 2e-9 * 4 * 16 * 16 * 32, amx_bf16));
#endif
  Array a(floats, 1.0f), b(floats, 2.0f), c(floats, 0.0f);
  std::printf(", \"core_read_gbytes\": %.6g", read_rate(a) / 1e9);
  std::printf(", \"core_triad_gbytes\": %.6g}\n", triad_rate(c, a, b) / 1e9);
  return 0;
}
