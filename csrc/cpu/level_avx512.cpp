#define PNTK_LEVEL avx512
#define PNTK_LANES 16
#include "dense_kernels.h"
#include "hadamard_kernels.h"
#include "levels.h"
#include "philox_kernels.h"
#include "sums_kernels.h"

namespace pntk {

const Level kAvx512{"avx512", avx512::kLanes, &kAvx2, avx512::philox_batch,
                    avx512::kHadamardKernels, avx512::dense::kKernels,
                    avx512::norm_sums_sample};

}  // namespace pntk
