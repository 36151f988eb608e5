#include "cuda/emu/shadow.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEVERAL = 0xffff /* more than one thread, or warp */ };

struct hv_shadow_cell {
  uint32_t written_block, flight_block; /* 0: never */
  uint32_t write_barrier, write_warp_epoch;
  uint32_t read_barrier, read_warp_epoch; /* the latest, where several threads read */
  uint16_t writer, writer_warp, reader, reader_warp;
};

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
  shadow->block++;
  shadow->barrier++;
  memset(shadow->warp_epochs, 0, (size_t)shadow->warps * sizeof *shadow->warp_epochs);
}

void hv_shadow_barrier(hv_shadow *shadow) {
  shadow->barrier++;
}

void hv_shadow_warp_barrier(hv_shadow *shadow, int warp) {
  shadow->warp_epochs[warp]++;
}

static hv_shadow_cell *first_cell(hv_shadow *shadow, size_t offset) {
  return &shadow->cells[offset / HV_SHADOW_BYTES];
}

static size_t cells_of(size_t offset, size_t bytes) {
  return (offset + bytes + HV_SHADOW_BYTES - 1) / HV_SHADOW_BYTES - offset / HV_SHADOW_BYTES;
}

void hv_shadow_flight(hv_shadow *shadow, size_t offset, size_t bytes, bool in_flight) {
  hv_shadow_cell *cell = first_cell(shadow, offset);
  for (size_t i = 0; i < cells_of(offset, bytes); i++) cell[i].flight_block = in_flight ? shadow->block : 0;
}

static bool ordered_after_write(const hv_shadow *s, const hv_shadow_cell *c, const hv_shadow_access *a) {
  return c->write_barrier != s->barrier || c->writer == a->thread ||
         (c->writer_warp == a->warp && c->write_warp_epoch < s->warp_epochs[a->warp]);
}

static bool ordered_after_reads(const hv_shadow *s, const hv_shadow_cell *c, const hv_shadow_access *a) {
  return c->read_barrier != s->barrier || c->reader == a->thread ||
         (c->reader_warp == a->warp && c->read_warp_epoch < s->warp_epochs[a->warp]);
}

bool hv_shadow_read(hv_shadow *s, const hv_shadow_access *a, char *text, size_t text_bytes) {
  hv_shadow_cell *c = first_cell(s, a->offset);
  for (size_t i = cells_of(a->offset, a->bytes); i > 0; i--, c++) {
    if (c->flight_block == s->block) {
      snprintf(text, text_bytes,
               "reads shared memory at offset %zu, which an asynchronous copy has yet to reach: no wait "
               "for the copy between",
               a->offset);
      return false;
    }
    if (c->written_block != s->block) {
      snprintf(text, text_bytes, "reads shared memory at offset %zu, which no thread has written", a->offset);
      return false;
    }
    if (!ordered_after_write(s, c, a)) {
      snprintf(text, text_bytes,
               "reads shared memory at offset %zu, which thread %d of the block wrote, with no barrier "
               "between",
               a->offset, c->writer);
      return false;
    }
    if (c->read_barrier == s->barrier && c->reader != a->thread) {
      c->reader = SEVERAL;
      if (c->reader_warp != a->warp) c->reader_warp = SEVERAL;
    } else {
      c->reader = (uint16_t)a->thread;
      c->reader_warp = (uint16_t)a->warp;
    }
    c->read_barrier = s->barrier;
    c->read_warp_epoch = s->warp_epochs[a->warp];
  }
  return true;
}

bool hv_shadow_write(hv_shadow *s, const hv_shadow_access *a, char *text, size_t text_bytes) {
  hv_shadow_cell *c = first_cell(s, a->offset);
  for (size_t i = cells_of(a->offset, a->bytes); i > 0; i--, c++) {
    if (c->flight_block == s->block) {
      snprintf(text, text_bytes, "writes shared memory at offset %zu, which an asynchronous copy has yet to reach",
               a->offset);
      return false;
    }
    bool reads = ordered_after_reads(s, c, a);
    if (!reads || (c->written_block == s->block && !ordered_after_write(s, c, a))) {
      int other = reads ? c->writer : c->reader;
      char who[48];
      snprintf(who, sizeof who, other == SEVERAL ? "several threads" : "thread %d of the block", other);
      snprintf(text, text_bytes, "writes shared memory at offset %zu, which %s %s, with no barrier between", a->offset,
               who, reads ? "wrote" : "read");
      return false;
    }
    c->written_block = s->block;
    c->write_barrier = s->barrier;
    c->write_warp_epoch = s->warp_epochs[a->warp];
    c->writer = (uint16_t)a->thread;
    c->writer_warp = (uint16_t)a->warp;
  }
  return true;
}
