/* What the attention kernels share: blocks of queries against blocks of keys of one head. */
#ifndef HV_CPU_ATTENTION_H
#define HV_CPU_ATTENTION_H

#include "core/cpu/kernel.h"

enum { HV_QUERY_BLOCK = 64, HV_KEY_BLOCK = 128 };

static inline const hv_segment *segment_at(const hv_tensor *segments, int64_t index) {
  return (const hv_segment *)element(segments, index, 0);
}

/* Rows [row, row + rows) of one head. */
static inline hv_tensor head_rows(hv_tensor t, int64_t row, int64_t rows, int64_t head, int64_t head_dim) {
  return hv_tensor_cols(hv_tensor_rows(t, row, rows), head * head_dim, head_dim);
}

/* How many keys of a block that starts `first` rows into a segment's own rows query i of the segment sees. */
static inline int64_t visible_own(const hv_segment *s, bool causal, int64_t query, int64_t first, int64_t keys) {
  if (!causal) return keys;
  int64_t seen = s->own_rows - s->q_rows + query + 1 - first;
  return seen < 0 ? 0 : min_i64(seen, keys);
}

#endif
