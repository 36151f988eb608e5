/* A block of emulated CUDA threads: fibers that run in a seeded order and stop at barriers and warp-wide operations,
 * shared memory whose every access is checked, and asynchronous copies that land at the last moment.
 *
 * What is found and reported, each with kernel, block and thread: two accesses to shared memory, one of them a write,
 * with no barrier between; a read of shared memory that nothing wrote, or that an asynchronous copy has yet to reach;
 * an access outside shared memory; a barrier or a warp-wide operation that not all its threads reach; in a launch that
 * may begin early, a thread that does not wait for the launches before it, and wide accesses (hv_load, hv_store) and
 * asynchronous copies that come before the wait and are not what such a launch may read ahead. The first fault of a
 * launch is kept. A block that cannot go on is abandoned.
 */
#ifndef HV_CUDA_EMU_BLOCK_H
#define HV_CUDA_EMU_BLOCK_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum {
  HV_EMU_WARP = 32,
  HV_EMU_MAX_THREADS = 1024,     /* of a block */
  HV_EMU_SHARED_BYTES = 99 << 10 /* of a block at most: what the smallest card offers (compute capability 8.9) */
};

typedef struct hv_emu_launch {
  const char *name; /* the kernel, for messages */
  dim3 grid, block;
  size_t shared_bytes;
  void (*run)(const void *arguments); /* one thread */
  const void *arguments;
  uint64_t seed; /* of the order of blocks and threads */
  bool early;    /* may begin before the launches before it are over */
  const void *ahead;
  size_t ahead_bytes; /* what it may read until it waits for them */
} hv_emu_launch;

/* The threads of the system that run blocks, with their stacks and shared memory. */
typedef struct hv_emu_workers hv_emu_workers;

HV_NODISCARD hv_status hv_emu_workers_open(int count, hv_emu_workers **out);
void hv_emu_workers_close(hv_emu_workers *workers);

/* Runs a whole grid; the first fault found is the error (HV_ERR_DEVICE). */
HV_NODISCARD hv_status hv_emu_run(hv_emu_workers *workers, const hv_emu_launch *launch);

/* What follows is for the emulated intrinsics, called by running threads. */

typedef struct hv_emu_indices {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  bool waited; /* for the launches before this one */
} hv_emu_indices;

const hv_emu_indices *hv_emu_here(void);
int hv_emu_lane(void);
unsigned char *hv_emu_shared_base(void);

/* Reports a fault of the running thread. */
void hv_emu_fault(const char *format, ...) HV_PRINTF(1, 2);

/* Checks an access of the running thread to shared memory. False: outside, and not to be carried out. */
bool hv_emu_shared_read(const void *address, size_t bytes);
bool hv_emu_shared_write(void *address, size_t bytes);

/* Checks an access to device memory: that the running thread has waited for the launches before. */
void hv_emu_device_access(const void *address);
void hv_emu_wait_for_previous(void);

void hv_emu_barrier(void);

/* All lanes of `mask` meet: the last to arrive calls combine(operands, mask), where operands[lane] is what that lane
 * passed. Lanes that pass different masks or functions do not meet. `orders_memory`: accesses to shared memory before
 * the meeting are ordered with those after it. */
typedef void (*hv_emu_combine)(void *const operands[HV_EMU_WARP], uint32_t mask);
void hv_emu_meet(uint32_t mask, hv_emu_combine combine, void *operand, bool orders_memory);

/* Copies to shared memory that land when waited for; `from` NULL writes zeros. */
void hv_emu_copy_issue(void *to, const void *from, size_t bytes);
void hv_emu_copy_commit(void);
void hv_emu_copy_wait(int groups_left);

#endif
