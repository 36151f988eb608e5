/* An arena: one block of device memory from which tensors are taken one after the other, and released together.
 *
 * A step takes its saved activations and scratch from one arena. Sized once, by running the same step on the plan
 * device (hv_arena_for_plan), it makes a steady-state step free of allocations. Asking for more than the block holds is
 * remembered and reported by hv_arena_status; the tensors handed out from then on overlap and may reach beyond
 * the block, so a caller that cannot vouch for the size checks the status before queueing work. Not thread-safe.
 */
#ifndef HV_TENSOR_ARENA_H
#define HV_TENSOR_ARENA_H

#include "core/tensor/device.h"

typedef struct hv_arena {
  hv_device *device;
  char *base;
  size_t capacity, used, peak;
  bool overflow;
} hv_arena;

/* `kind` and `what` are those of hv_device_allocate. */
HV_NODISCARD hv_status hv_arena_open(hv_device *device, hv_memory_kind kind, size_t capacity, const char *what,
                                     hv_arena *out);

/* An arena without memory and without a limit, for measuring `peak`; on a plan device work may be queued on its
 * tensors. Needs no closing. */
hv_arena hv_arena_for_plan(hv_device *plan);

void hv_arena_close(hv_arena *arena);

/* A tensor without gaps whose data is aligned to 256 bytes; contents undefined. */
hv_tensor hv_arena_take(hv_arena *arena, hv_dtype dtype, int64_t rows, int64_t cols);

static inline size_t hv_arena_mark(const hv_arena *arena) {
  return arena->used;
}
/* Gives back all that was taken since the mark. */
static inline void hv_arena_release(hv_arena *arena, size_t mark) {
  arena->used = mark;
}

HV_NODISCARD hv_status hv_arena_status(const hv_arena *arena);

#endif
