#define PNTK_LEVEL avx2
#include "hadamard_kernels.h"
#include "levels.h"
#include "philox_kernels.h"

namespace pntk {

const Level kAvx2{"avx2", avx2::kLanes, nullptr, avx2::philox_batch, avx2::kHadamardKernels};

}  // namespace pntk
