/* What is known of each piece of a block's shared memory: who wrote and read it last, and when, counted in barriers.
 * Two accesses are ordered when they are one thread's, or a barrier of the block lies between, or both threads are of
 * one warp and a barrier of that warp lies between. */
#ifndef HV_CUDA_EMU_SHADOW_H
#define HV_CUDA_EMU_SHADOW_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

enum { HV_SHADOW_BYTES = 4 /* of one piece, the least that a thread may write at once */ };

typedef struct hv_shadow_cell hv_shadow_cell;

typedef struct hv_shadow {
  hv_shadow_cell *cells;
  uint32_t *warp_epochs; /* how many barriers each warp has had in this block */
  int warps;
  uint32_t time;  /* how many barriers there have been, in all blocks that ran here */
  uint32_t begin; /* the time at which this block began: what was noted before is another block's */
} hv_shadow;

typedef struct hv_shadow_access {
  int thread, warp;
  size_t offset, bytes;
} hv_shadow_access;

HV_NODISCARD hv_status hv_shadow_open(size_t shared_bytes, int warps, hv_shadow *out);
void hv_shadow_close(hv_shadow *shadow);

void hv_shadow_begin(hv_shadow *shadow); /* a new block */
void hv_shadow_barrier(hv_shadow *shadow);
void hv_shadow_warp_barrier(hv_shadow *shadow, int warp);
void hv_shadow_flight(hv_shadow *shadow, size_t offset, size_t bytes, bool in_flight);

/* Notes an access. False where it is at fault: then, at once, the other two say how. */
bool hv_shadow_read(hv_shadow *shadow, const hv_shadow_access *access);
bool hv_shadow_write(hv_shadow *shadow, const hv_shadow_access *access);
void hv_shadow_describe_read(hv_shadow *shadow, const hv_shadow_access *access, char *text, size_t text_bytes);
void hv_shadow_describe_write(hv_shadow *shadow, const hv_shadow_access *access, char *text, size_t text_bytes);

#endif
