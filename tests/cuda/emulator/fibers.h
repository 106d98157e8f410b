// The threads of a block as fibers of one system thread, and what they wait for.
#pragma once

#include <csetjmp>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <ucontext.h>
#include <vector>

#include "cuda_runtime.h"

namespace pntk::cuda::emulator {

struct Copy {
  void* shared;
  const void* global;  // null: zeros
};

struct Fiber {
  uint3 thread{};
  int index = 0;  // thread, counted along x first
  bool started = false;
  std::jmp_buf context;
  ucontext_t first;
  std::unique_ptr<char[]> stack;
  std::vector<Copy> copies;             // issued, not committed
  std::deque<std::vector<Copy>> groups;  // committed, not waited for
};

// Threads that wait for one another: of a barrier, a warp or a warpgroup.
struct Group {
  const char* name = "";  // what they wait at, and which of these
  int number = 0;
  int arrived = 0;
  std::vector<Fiber*> waiting;
  void* operands[128];  // by lane, of warps and warpgroups
};

struct Product {  // an m64 product of a warpgroup, not waited for
  std::function<void()> compute;
};

struct Warpgroup {
  Group group;
  bool fenced = false;
  std::vector<Product> issued;
  std::deque<std::vector<Product>> committed;
};

constexpr int kWarp = 32, kWarpgroup = 128, kMostThreads = 1024, kBarriers = 16;
constexpr std::size_t kStack = 256 * 1024;  // touched only as far as a kernel reaches

struct Block {
  std::string kernel;
  uint3 index{};
  dim3 size;
  int threads = 0, live = 0;
  Group barriers[kBarriers];
  int expected[kBarriers];
  Group warps[kMostThreads / kWarp];
  Warpgroup warpgroups[kMostThreads / kWarpgroup];
};

inline std::mutex lock;  // one kernel at a time
inline Fiber* current = nullptr;
inline Block block;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Fiber*> ready;
inline std::function<void()> body;
inline std::exception_ptr failure;
inline std::jmp_buf scheduler;
inline std::uint32_t random_state = 1;

[[noreturn]] inline void fail(const std::string& what) {
  throw std::runtime_error(block.kernel + ", block " + std::to_string(block.index.x) + "," +
                           std::to_string(block.index.y) + "," + std::to_string(block.index.z) +
                           (current ? ", thread " + std::to_string(current->index) : "") + ": " +
                           what);
}

inline void fiber_main();

// Continues with a thread that is ready, or with the scheduler where none is. Does not return.
[[noreturn]] inline void resume_next() {
  if (failure || ready.empty()) _longjmp(scheduler, 1);
  current = ready.back();
  ready.pop_back();
  if (current->started) _longjmp(current->context, 1);
  current->started = true;
  setcontext(&current->first);
  std::abort();
}

__attribute__((noinline)) inline void suspend(Fiber& self) {
  if (_setjmp(self.context) == 0) resume_next();
}

// Threads run in an order of no meaning, so that a missing barrier shows.
inline void make_ready(std::vector<Fiber*>& waiting) {
  for (std::size_t i = waiting.size(); i > 1; --i) {
    random_state = random_state * 1664525u + 1013904223u;
    std::swap(waiting[i - 1], waiting[(random_state >> 8) % i]);
  }
  ready.insert(ready.end(), waiting.begin(), waiting.end());
  waiting.clear();
}

inline void release(Group& group) {
  group.arrived = 0;
  make_ready(group.waiting);
}

inline void check_syncthreads() {
  Group& all = block.barriers[0];
  if (all.arrived == 0 || all.arrived < block.live) return;
  release(all);
}

inline void fiber_main() {
  for (;;) {
    try {
      body();
      current->copies.clear();
      current->groups.clear();
      --block.live;
      check_syncthreads();  // which waits for threads that have not returned
    } catch (...) {
      failure = std::current_exception();
    }
    suspend(*current);
  }
}

inline std::string described(const char* name, int number) {
  return number ? name + (" " + std::to_string(number)) : name;
}

inline void join(Group& group, const char* name, int number = 0) {
  if (group.arrived > 0 && (group.number != number || std::strcmp(group.name, name) != 0))
    fail("is at " + described(name, number) + " while others wait at " +
         described(group.name, group.number));
  group.name = name, group.number = number;
  ++group.arrived;
}

inline void wait(Group& group) {
  Fiber& self = *current;
  group.waiting.push_back(&self);
  suspend(self);
}

// ---- barriers ----------------------------------------------------------------------------------

inline void syncthreads(int line) {
  Group& all = block.barriers[0];
  join(all, "__syncthreads in line", line);
  if (all.arrived == block.live)
    release(all);
  else
    wait(all);
}

inline bool named_barrier_join(int id, int threads) {
  if (id < 1 || id >= kBarriers || threads <= 0 || threads % kWarp || threads > block.threads)
    fail("barrier " + std::to_string(id) + " of " + std::to_string(threads) +
         " threads; expected 1 to 15, whole warps of the block");
  Group& group = block.barriers[id];
  if (group.arrived > 0 && block.expected[id] != threads)
    fail("barrier " + std::to_string(id) + " waits for " + std::to_string(block.expected[id]) +
         " threads, not " + std::to_string(threads));
  block.expected[id] = threads;
  join(group, "barrier", id);
  if (group.arrived < threads) return false;
  release(group);
  return true;
}

inline void named_barrier_sync(int id, int threads) {
  if (!named_barrier_join(id, threads)) wait(block.barriers[id]);
}

inline void named_barrier_arrive(int id, int threads) {
  named_barrier_join(id, threads);
}

// ---- what a warp or a warpgroup does together --------------------------------------------------

// Every lane gives its operands; the last to come computes for all.
template <typename Operands, typename Compute>
void together(Group& group, const char* name, int lane, int lanes, Operands& mine,
              Compute compute) {
  join(group, name);
  group.operands[lane] = &mine;
  if (group.arrived < lanes) return wait(group);
  compute(reinterpret_cast<Operands* const*>(group.operands));
  release(group);
}

inline int lane() { return current->index % kWarp; }
inline Group& warp() { return block.warps[current->index / kWarp]; }
inline Warpgroup& warpgroup() { return block.warpgroups[current->index / kWarpgroup]; }

}  // namespace pntk::cuda::emulator

#define threadIdx (::pntk::cuda::emulator::current->thread)
#define blockIdx (::pntk::cuda::emulator::block.index)
#define blockDim (::pntk::cuda::emulator::block.size)

inline void __syncthreads(int line = __builtin_LINE()) {
  ::pntk::cuda::emulator::syncthreads(line);
}
