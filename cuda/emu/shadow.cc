#include "cuda/emu/shadow.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The last access to a piece, in one word, since every access looks at it: the time in the upper half; below it two
 * flags, the thread (10 bits) and its warp's epoch (20 bits). */
typedef uint64_t stamp;

static constexpr stamp IN_FLIGHT = 1u << 31;     /* of a write: by an asynchronous copy that has not landed */
static constexpr stamp SEVERAL_WARPS = 1u << 31; /* of reads since the last barrier: the thread is the latest */
static constexpr stamp SEVERAL_THREADS = 1u << 30;
enum { THREAD_SHIFT = 20, THREAD_MASK = 0x3ff, LAST_EPOCH = 0xfffff, WARP = 32 };

struct hv_shadow_cell {
  stamp write, read;
};

static inline stamp stamp_of(const hv_shadow *s, const hv_shadow_access *a) {
  return (stamp)s->time << 32 | (stamp)a->thread << THREAD_SHIFT | s->warp_epochs[a->warp];
}
static inline uint32_t time_of(stamp x) {
  return (uint32_t)(x >> 32);
}
static inline int thread_of(stamp x) {
  return (int)(x >> THREAD_SHIFT) & THREAD_MASK;
}
static inline uint32_t epoch_of(stamp x) {
  return (uint32_t)x & LAST_EPOCH;
}
/* Times may wrap around. */
static inline bool of_this_block(const hv_shadow *s, stamp x) {
  return time_of(x) - s->begin <= s->time - s->begin;
}

hv_status hv_shadow_open(size_t shared_bytes, int warps, hv_shadow *out) {
  *out = hv_shadow{};
  out->cells = (hv_shadow_cell *)calloc(shared_bytes / HV_SHADOW_BYTES + 1, sizeof(hv_shadow_cell));
  out->warp_epochs = (uint32_t *)calloc((size_t)warps, sizeof *out->warp_epochs);
  out->warps = warps;
  if (!out->cells || !out->warp_epochs) {
    hv_shadow_close(out);
    return hv_error_memory("the record of shared memory");
  }
  return HV_OK;
}

void hv_shadow_close(hv_shadow *shadow) {
  free(shadow->cells);
  free(shadow->warp_epochs);
  *shadow = hv_shadow{};
}

void hv_shadow_begin(hv_shadow *shadow) {
  shadow->begin = ++shadow->time;
  memset(shadow->warp_epochs, 0, (size_t)shadow->warps * sizeof *shadow->warp_epochs);
}

void hv_shadow_barrier(hv_shadow *shadow) {
  shadow->time++;
}

void hv_shadow_warp_barrier(hv_shadow *shadow, int warp) {
  if (shadow->warp_epochs[warp]++ < LAST_EPOCH) return;
  /* Overflow: treated as a barrier of the block, so a race may be missed but none is invented. */
  shadow->warp_epochs[warp] = 0;
  shadow->time++;
}

static hv_shadow_cell *first_cell(hv_shadow *shadow, size_t offset) {
  return &shadow->cells[offset / HV_SHADOW_BYTES];
}

static size_t cells_of(size_t offset, size_t bytes) {
  return (offset + bytes + HV_SHADOW_BYTES - 1) / HV_SHADOW_BYTES - offset / HV_SHADOW_BYTES;
}

void hv_shadow_flight(hv_shadow *shadow, size_t offset, size_t bytes, bool in_flight) {
  hv_shadow_cell *cell = first_cell(shadow, offset);
  for (size_t i = 0; i < cells_of(offset, bytes); i++) {
    cell[i].write = in_flight ? cell[i].write | IN_FLIGHT : cell[i].write & ~IN_FLIGHT;
  }
}

/* Whether an earlier access, made by one thread, is ordered before this one. */
static inline bool is_ordered(const hv_shadow *s, stamp earlier, const hv_shadow_access *a) {
  return time_of(earlier) != s->time || thread_of(earlier) == a->thread ||
         (thread_of(earlier) / WARP == a->warp && epoch_of(earlier) < s->warp_epochs[a->warp]);
}

static inline bool are_reads_ordered(const hv_shadow *s, stamp reads, const hv_shadow_access *a) {
  if (time_of(reads) != s->time || !(reads & SEVERAL_THREADS)) return is_ordered(s, reads, a);
  return !(reads & SEVERAL_WARPS) && thread_of(reads) / WARP == a->warp && epoch_of(reads) < s->warp_epochs[a->warp];
}

/* The reads so far with `mine` added. */
static inline stamp add_read(stamp reads, stamp mine) {
  if (time_of(reads) != time_of(mine)) return mine;
  stamp marks = reads & (SEVERAL_THREADS | SEVERAL_WARPS);
  if (thread_of(reads) != thread_of(mine)) {
    marks |= SEVERAL_THREADS;
    if (thread_of(reads) / WARP != thread_of(mine) / WARP) marks |= SEVERAL_WARPS;
  }
  return mine | marks;
}

static inline bool may_read(const hv_shadow *s, const hv_shadow_cell *c, const hv_shadow_access *a) {
  return of_this_block(s, c->write) && !(c->write & IN_FLIGHT) && is_ordered(s, c->write, a);
}

static inline bool may_write(const hv_shadow *s, const hv_shadow_cell *c, const hv_shadow_access *a) {
  if (!are_reads_ordered(s, c->read, a)) return false;
  return !of_this_block(s, c->write) || (!(c->write & IN_FLIGHT) && is_ordered(s, c->write, a));
}

bool hv_shadow_read(hv_shadow *s, const hv_shadow_access *a) {
  hv_shadow_cell *c = first_cell(s, a->offset);
  stamp mine = stamp_of(s, a);
  for (size_t i = cells_of(a->offset, a->bytes); i > 0; i--, c++) {
    if (!may_read(s, c, a)) return false;
    c->read = add_read(c->read, mine);
  }
  return true;
}

bool hv_shadow_write(hv_shadow *s, const hv_shadow_access *a) {
  hv_shadow_cell *c = first_cell(s, a->offset);
  stamp mine = stamp_of(s, a);
  for (size_t i = cells_of(a->offset, a->bytes); i > 0; i--, c++) {
    if (!may_write(s, c, a)) return false;
    c->write = mine;
  }
  return true;
}

void hv_shadow_describe_read(hv_shadow *s, const hv_shadow_access *a, char *text, size_t text_bytes) {
  const hv_shadow_cell *c = first_cell(s, a->offset);
  while (may_read(s, c, a)) c++;
  if (!of_this_block(s, c->write)) {
    snprintf(text, text_bytes, "reads shared memory at offset %zu, which no thread has written", a->offset);
  } else if (c->write & IN_FLIGHT) {
    snprintf(text, text_bytes,
             "reads shared memory at offset %zu, which an asynchronous copy has yet to reach: hv_copy_wait "
             "is missing before the read",
             a->offset);
  } else {
    snprintf(text, text_bytes,
             "reads shared memory at offset %zu, which thread %d of the block wrote, with no barrier "
             "between",
             a->offset, thread_of(c->write));
  }
}

void hv_shadow_describe_write(hv_shadow *s, const hv_shadow_access *a, char *text, size_t text_bytes) {
  const hv_shadow_cell *c = first_cell(s, a->offset);
  while (may_write(s, c, a)) c++;
  if (of_this_block(s, c->write) && c->write & IN_FLIGHT) {
    snprintf(text, text_bytes, "writes shared memory at offset %zu, which an asynchronous copy has yet to reach",
             a->offset);
    return;
  }
  bool reads = are_reads_ordered(s, c->read, a);
  char who[48];
  snprintf(who, sizeof who, "thread %d of the block", thread_of(reads ? c->write : c->read));
  if (!reads && c->read & SEVERAL_THREADS) snprintf(who, sizeof who, "several threads");
  snprintf(text, text_bytes, "writes shared memory at offset %zu, which %s %s, with no barrier between", a->offset, who,
           reads ? "wrote" : "read");
}
