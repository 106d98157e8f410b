// Memory of one thread that grows to what its largest task needs and is used again.
#pragma once

#include <cstdint>

namespace pntk {

// Return `count` floats, 64-byte aligned, valid until this thread's next call.
float* scratch(std::int64_t count);

}  // namespace pntk
