// The matrix tiles of AMX: eight of 16 rows of 64 bytes. Once the instructions, and once plain C++
// that does the same, for tests on other processors.
//
// A product adds a [16 x 32] b [32 x 16] to c, in float32 from pairs of bfloat16. Row r of b holds
// rows 2r and 2r + 1 of the matrix as pairs; denormal numbers count as zeros.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef PNTK_LEVEL
#error "define PNTK_LEVEL before including dense_tile.h"
#endif

namespace pntk {
namespace PNTK_LEVEL {
namespace {
namespace dense {

constexpr int kTileRows = 16, kTileBytes = 1024, kRowBytes = 64;

// Tiles of the processor: a thread sets them up, and gives them back when it is done.
class Tiles {
 public:
  void begin() {
    struct alignas(64) {
      std::uint8_t palette, start_row, reserved[14];
      std::uint16_t row_bytes[16];
      std::uint8_t rows[16];
    } config{};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = kRowBytes, config.rows[i] = kTileRows;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  void end() { asm volatile("tilerelease" ::); }

  template <int I>
  void load(const void* from) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(I) : "memory");
  }
  template <int I>
  void store(void* to) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(I) : "memory");
  }
  template <int C, int A, int B>
  void add_product() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

 private:
  static constexpr std::int64_t stride = kRowBytes;
};

class EmulatedTiles {
 public:
  void begin() {}
  void end() {}
  template <int I>
  void load(const void* from) {
    std::memcpy(tiles[I], from, kTileBytes);
  }
  template <int I>
  void store(void* to) {
    std::memcpy(to, tiles[I], kTileBytes);
  }
  template <int C, int A, int B>
  void add_product() {
    float low_b[kTileRows][16], high_b[kTileRows][16];
    for (int r = 0; r < kTileRows; ++r)
      for (int n = 0; n < 16; ++n)
        low_b[r][n] = low(tiles[B][r][n]), high_b[r][n] = high(tiles[B][r][n]);
    for (int m = 0; m < kTileRows; ++m) {
      float even[16] = {}, odd[16] = {};
      for (int r = 0; r < kTileRows; ++r) {
        const float low_a = low(tiles[A][m][r]), high_a = high(tiles[A][m][r]);
        for (int n = 0; n < 16; ++n) {
          even[n] += low_a * low_b[r][n];
          odd[n] += high_a * high_b[r][n];
        }
      }
      for (int n = 0; n < 16; ++n) {
        const float sum = flushed(as_float(tiles[C][m][n]) + flushed(even[n] + odd[n]));
        std::memcpy(&tiles[C][m][n], &sum, sizeof sum);
      }
    }
  }

 private:
  static float as_float(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
  static float flushed(float x) { return x < 0x1p-126f && x > -0x1p-126f ? 0.0f : x; }
  static float low(std::uint32_t pair) { return flushed(as_float(pair << 16)); }
  static float high(std::uint32_t pair) { return flushed(as_float(pair & 0xFFFF0000u)); }

  std::uint32_t tiles[8][kTileRows][16];
};

}  // namespace dense
}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
