/* Shared by the attention kernels. Each of their blocks works on one tile of rows; a kernel makes the list of tiles
 * from the tables of segments and key groups (attention_plan.cu), since the host does not read those tables. */
#ifndef HV_CUDA_ATTENTION_H
#define HV_CUDA_ATTENTION_H

#include "core/tensor/ops.h"
#include "cuda/elementwise.h"

enum {
  HV_ATTENTION_ROWS = 64,    /* of a tile: query rows in the forward pass and for dq, key rows for dk and dv */
  HV_ATTENTION_THREADS = 128 /* four warps, 16 rows each */
};

/* Rows [row, row + rows) of q, from neighbouring segments with one prefix: their scores against the prefix are one
 * product. Or rows of k and v, with the segments that see any of them. rows is 0 for a tile of the grid that is not
 * needed: the host launches as many as there may be. */
struct hv_attention_tile {
  int32_t first_segment, segment_count;
  int32_t row, rows;
};

static __device__ __forceinline__ hv_segment hv_segment_at(hv_rows<const int32_t> segments, int i) {
  const int32_t *s = segments.at(i, 0);
  return {s[0], s[1], s[2], s[3], s[4], s[5]};
}

/* The most tiles that `runs` segments or groups of at most max_rows rows each, `rows` in all, can need. */
int64_t hv_attention_tile_count(int64_t runs, int64_t rows, int64_t max_rows);

/* Queue the kernel that writes the list of tiles; `tiles` is device memory for `count` of them, the number above. */
void hv_attention_plan_queries(hv_stream *stream, hv_tensor segments, int64_t count, hv_attention_tile *tiles);
void hv_attention_plan_keys(hv_stream *stream, hv_tensor key_groups, int64_t count, hv_attention_tile *tiles);

/* Whether every head's rows can be moved 16 bytes at a time. */
template <typename... Tensors> static inline bool hv_attention_is_wide(int32_t head_dim, Tensors... tensors) {
  return head_dim % HV_WIDE == 0 && hv_are_wide(tensors...);
}

/* Calls f with hv_width<D>, D being the number of columns that a head is padded to. */
template <typename F> static inline void hv_with_head_columns(hv_stream *stream, int32_t head_dim, F f) {
  if (head_dim <= 64) {
    f(hv_width<64>{});
  } else if (head_dim <= 80) {
    f(hv_width<80>{});
  } else if (head_dim <= 96) {
    f(hv_width<96>{});
  } else if (head_dim <= 128) {
    f(hv_width<128>{});
  } else {
    hv_stream_fail(stream, hv_error(HV_ERR_DEVICE,
                                    "attention with %d dimensions per head: this device takes at most 128", head_dim));
  }
}

#endif
