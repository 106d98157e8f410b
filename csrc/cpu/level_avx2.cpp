#define PNTK_LEVEL avx2
#define PNTK_LANES 8
#include "dense_kernels.h"
#include "hadamard_kernels.h"
#include "levels.h"
#include "philox_kernels.h"
#include "sums_kernels.h"

namespace pntk {

const Level kAvx2{"avx2", avx2::kLanes, nullptr, avx2::philox_batch,
                  avx2::kHadamardKernels, avx2::dense::kKernels,
                  avx2::norm_sums_sample};

}  // namespace pntk
