// The levels of the normal table, computed by pntk/projection/quantiles.py and tested against it.
#include "dense_call.h"

namespace pntk {
namespace {

constexpr int kUpper[128] = {
    0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 13, 13, 14, 15, 16, 17, 18, 19, 20, 20, 21, 22, 23,
    24, 25, 26, 27, 28, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 43, 44, 45,
    46, 47, 48, 49, 50, 51, 52, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 67, 68, 69, 70, 71,
    72, 74, 75, 76, 77, 79, 80, 81, 83, 84, 85, 87, 88, 90, 91, 93, 94, 96, 97, 99, 100, 102, 104,
    106, 107, 109, 111, 113, 115, 117, 119, 121, 124, 126, 128, 131, 134, 136, 139, 142, 146, 149,
    153, 157, 162, 166, 172, 178, 185, 194, 206, 222, 254};

constexpr NormalLevels both_halves() {
  NormalLevels levels{};
  for (int t = 0; t < 128; ++t) {
    levels.at[128 + t] = static_cast<float>(kUpper[t]);
    levels.at[127 - t] = static_cast<float>(-kUpper[t]);
  }
  return levels;
}

}  // namespace

alignas(64) constexpr NormalLevels kNormalLevels = both_halves();

}  // namespace pntk
