// Shared memory, asynchronous copies into it, and the loop over blocks.
#pragma once

#include "fibers.h"

namespace pntk::cuda::emulator {

constexpr std::size_t kMostShared = 227 * 1024;
constexpr std::size_t kGuard = 4096;  // after what a kernel asked for
constexpr unsigned char kPoison = 0xFF;  // NaN in every type
constexpr unsigned char kGuardByte = 0xA5;

struct alignas(1024) Arena {
  unsigned char bytes[kMostShared + kGuard];
};
inline Arena arena;
inline std::size_t shared_bytes = 0;

inline unsigned char* dynamic_shared() { return arena.bytes; }

inline std::uint32_t shared_address(const void* shared) {
  const auto offset = static_cast<const unsigned char*>(shared) - arena.bytes;
  if (offset < 0 || static_cast<std::size_t>(offset) > shared_bytes)
    fail("an address outside of the dynamic shared memory");
  return static_cast<std::uint32_t>(offset);
}

// 16 bytes of dynamic or static shared memory: aligned, and within.
inline void check16(const char* what, const void* shared) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16)
    fail(std::string(what) + ": a shared memory address that is no multiple of 16");
  const auto offset = static_cast<const unsigned char*>(shared) - arena.bytes;
  if (0 <= offset && offset < static_cast<std::ptrdiff_t>(sizeof arena) &&
      static_cast<std::size_t>(offset) + 16 > shared_bytes)
    fail(std::string(what) + ": outside of the dynamic shared memory");
}

// ---- cp.async ----------------------------------------------------------------------------------

// What is there is lost with the issue, and the numbers come with the wait.
inline void cp_async16(void* shared, const void* global, bool valid) {
  check16("cp_async16", shared);
  if (reinterpret_cast<std::uintptr_t>(global) % 16)
    fail("cp_async16: a global address that is no multiple of 16");
  std::memset(shared, kPoison, 16);
  current->copies.push_back({shared, valid ? global : nullptr});
}

inline void cp_async_commit() {
  current->groups.push_back(std::move(current->copies));
  current->copies.clear();
}

template <int N>
void cp_async_wait() {
  auto& groups = current->groups;
  for (; groups.size() > N; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      if (copy.global)
        std::memcpy(copy.shared, copy.global, 16);
      else
        std::memset(copy.shared, 0, 16);
    }
}

// ---- blocks ------------------------------------------------------------------------------------

inline void make_fiber(int index) {
  auto fiber = std::make_unique<Fiber>();
  fiber->index = index;
  fiber->stack.reset(new char[kStack]);
  getcontext(&fiber->first);
  fiber->first.uc_stack.ss_sp = fiber->stack.get();
  fiber->first.uc_stack.ss_size = kStack;
  fiber->first.uc_link = nullptr;
  makecontext(&fiber->first, fiber_main, 0);
  fibers.push_back(std::move(fiber));
}

inline std::string waiting_for() {
  std::string text;
  const auto add = [&](const Group& group) {
    if (group.arrived > 0)
      text += "; " + std::to_string(group.arrived) + " are at " +
              described(group.name, group.number);
  };
  for (const Group& group : block.barriers) add(group);
  for (const Group& group : block.warps) add(group);
  for (const Warpgroup& each : block.warpgroups) add(each.group);
  return text;
}

__attribute__((noinline)) inline void schedule() {
  if (_setjmp(scheduler) == 0) resume_next();
}

inline void reset_groups() {
  const auto reset = [](Group& group) { group.arrived = 0, group.waiting.clear(); };
  for (Group& group : block.barriers) reset(group);
  for (Group& group : block.warps) reset(group);
  for (Warpgroup& each : block.warpgroups) {
    reset(each.group);
    each.fenced = false, each.issued.clear(), each.committed.clear();
  }
}

inline void run_block() {
  reset_groups();
  std::memset(arena.bytes, kPoison, shared_bytes);
  std::memset(arena.bytes + shared_bytes, kGuardByte, kGuard);
  block.live = block.threads;
  std::vector<Fiber*> all;
  for (int i = 0; i < block.threads; ++i) {
    const unsigned at = static_cast<unsigned>(i);
    fibers[i]->thread = {at % block.size.x, at / block.size.x % block.size.y,
                         at / (block.size.x * block.size.y)};
    all.push_back(fibers[i].get());
  }
  failure = nullptr;
  make_ready(all);
  schedule();
  current = nullptr;
  if (failure) std::rethrow_exception(failure);
  if (block.live > 0)
    fail("deadlock: " + std::to_string(block.live) + " threads wait" + waiting_for());
  for (std::size_t i = 0; i < kGuard; ++i)
    if (arena.bytes[shared_bytes + i] != kGuardByte)
      fail("writes beyond its " + std::to_string(shared_bytes) + " bytes of shared memory");
  for (const Group& group : block.barriers)
    if (group.arrived > 0)
      fail("ends with threads arrived at " + described(group.name, group.number));
}

// Runs kernel() once a thread. Throws std::runtime_error for what a GPU would hang or trap at.
inline void run(const char* what, dim3 grid, dim3 size, std::size_t shared,
                std::function<void()> kernel) {
  const std::lock_guard<std::mutex> locked(lock);
  block.kernel = what, block.size = size, block.index = {0, 0, 0};
  block.threads = static_cast<int>(size.x * size.y * size.z);
  if (block.threads % kWarp || block.threads == 0 || block.threads > kMostThreads)
    fail(std::to_string(block.threads) + " threads a block; expected whole warps, up to 1024");
  if (grid.y > 65535 || grid.z > 65535 || grid.x > 0x7FFFFFFFu)
    fail("the grid has more than 2^31 - 1 blocks along x, or 65535 along y or z");
  if (shared > kMostShared) fail(std::to_string(shared) + " bytes of shared memory are too many");
  shared_bytes = shared;
  body = std::move(kernel);
  while (static_cast<int>(fibers.size()) < block.threads)
    make_fiber(static_cast<int>(fibers.size()));
  try {
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) block.index = {x, y, z}, run_block();
  } catch (...) {
    ready.clear(), fibers.clear(), failure = nullptr, current = nullptr;  // stopped anywhere
    throw;
  }
}

}  // namespace pntk::cuda::emulator
