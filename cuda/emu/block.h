/* Runs blocks of emulated CUDA threads: fibers that take turns in a seeded order and stop at barriers and warp-wide
 * operations, shared memory of which every access is checked, and asynchronous copies that land as late as possible.
 *
 * Faults that are found, and reported with kernel, block and thread:
 * - two accesses to shared memory, one of them a write, with no barrier between (a race);
 * - a read of shared memory that nothing wrote, or that an asynchronous copy has yet to reach; an access outside it;
 * - a barrier or a warp-wide operation that not all of its threads reach;
 * - in a launch that begins early: a thread that never waits for the launches before it; hv_load, hv_store and
 *   asynchronous copies before that wait, unless they are copies from the memory that may be read ahead.
 * The first fault of a launch is kept. A block in which no thread can go on is abandoned. */
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
  HV_EMU_SHARED_BYTES = 99 << 10 /* of a block, at most, as on the cards that offer least (compute capability 8.9) */
};

typedef struct hv_emu_launch {
  const char *name; /* the kernel, for messages */
  dim3 grid, block;
  size_t shared_bytes;
  void (*run)(const void *arguments); /* runs one thread */
  const void *arguments;
  uint64_t seed; /* of the order of blocks and threads */
  bool early;    /* begins before the launches before it have ended */
  const void *ahead;
  size_t ahead_bytes; /* of memory that it may read before it waits for them */
} hv_emu_launch;

/* The system threads that run blocks, with the fibers' stacks and shared memory of each. */
typedef struct hv_emu_workers hv_emu_workers;

HV_NODISCARD hv_status hv_emu_workers_open(int count, hv_emu_workers **out);
void hv_emu_workers_close(hv_emu_workers *workers);

/* Runs a whole grid; the first fault found is the error (HV_ERR_DEVICE). */
HV_NODISCARD hv_status hv_emu_run(hv_emu_workers *workers, const hv_emu_launch *launch);

/* The rest is for the emulated intrinsics, and called by running threads only. */

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

/* Check an access of the running thread to shared memory. False: it is outside, and must not be carried out. */
bool hv_emu_shared_read(const void *address, size_t bytes);
bool hv_emu_shared_write(void *address, size_t bytes);

/* Checks that the running thread has waited for the launches before, as an access to device memory requires. */
void hv_emu_device_access(const void *address);
void hv_emu_wait_for_previous(void);

void hv_emu_barrier(void);

/* A warp-wide operation of the lanes of `mask`: the last to arrive calls combine(operands, mask), operands[lane] being
 * what that lane passed. Lanes that pass different masks or functions are a fault. `orders_memory`: accesses to shared
 * memory before the operation are ordered before those after it, as by __syncwarp. */
typedef void (*hv_emu_combine)(void *const operands[HV_EMU_WARP], uint32_t mask);
void hv_emu_meet(uint32_t mask, hv_emu_combine combine, void *operand, bool orders_memory);

/* Asynchronous copies to shared memory (cp.async), which land only when waited for; `from` NULL writes zeros. */
void hv_emu_copy_issue(void *to, const void *from, size_t bytes);
void hv_emu_copy_commit(void);
void hv_emu_copy_wait(int groups_left);

#endif
