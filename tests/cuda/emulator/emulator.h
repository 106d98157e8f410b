// The emulator: kernels compiled as plain C++, one fiber a thread, blocks one after another.
// What is held to the hardware: fragment layouts, swizzles, alignment, groups of asynchronous
// copies and products, barriers and deadlocks. What is not: time, the memory model within a
// barrier's interval, and polling (a thread runs until it waits for others).
#pragma once

#include "cuda_runtime.h"
// after the types above
#include "fibers.h"
#include "shared.h"
#include "warp.h"
#include "warpgroup.h"
