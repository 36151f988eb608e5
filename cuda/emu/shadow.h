/* The record of accesses to a block's shared memory, by which races are found: for each piece of 4 bytes, who wrote and
 * read it last, and when, in numbers of barriers. Two accesses are ordered if they are one thread's, or a barrier of
 * the block lies between, or both threads are of one warp and a __syncwarp of the full warp lies between. */
#ifndef HV_CUDA_EMU_SHADOW_H
#define HV_CUDA_EMU_SHADOW_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

enum { HV_SHADOW_BYTES = 4 /* of one piece: the least that a thread may write at once */ };

typedef struct hv_shadow_cell hv_shadow_cell;

typedef struct hv_shadow {
  hv_shadow_cell *cells;
  uint32_t *warp_epochs; /* __syncwarps of each warp in this block */
  int warps;
  uint32_t time;  /* barriers so far, in all blocks that used this record */
  uint32_t begin; /* the time at which this block began: older entries are of other blocks */
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
/* Marks the target of an asynchronous copy, and removes the mark. */
void hv_shadow_flight(hv_shadow *shadow, size_t offset, size_t bytes, bool in_flight);

/* Record an access. False if it is a fault: a call of hv_shadow_describe_… at once then says which. */
bool hv_shadow_read(hv_shadow *shadow, const hv_shadow_access *access);
bool hv_shadow_write(hv_shadow *shadow, const hv_shadow_access *access);
void hv_shadow_describe_read(hv_shadow *shadow, const hv_shadow_access *access, char *text, size_t text_bytes);
void hv_shadow_describe_write(hv_shadow *shadow, const hv_shadow_access *access, char *text, size_t text_bytes);

#endif
