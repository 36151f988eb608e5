/* Random tables of segments and key groups (core/tensor/ops.h) for tests of attention. */
#ifndef HV_TESTS_CPU_LAYOUT_H
#define HV_TESTS_CPU_LAYOUT_H

#include "tests/cpu/op_env.h"

typedef enum layout_kind {
  LAYOUT_IMAGES,        /* each segment sees its own rows, not causal */
  LAYOUT_UNIFORM,       /* the same, with images of one size and no unused rows */
  LAYOUT_PACKED,        /* packed samples: a prefix and branches that share it */
  LAYOUT_BRANCHES_ONLY, /* the same keys, but only branches have queries */
  LAYOUT_CACHED,        /* few queries over many earlier rows of their own, and branches over a cached prefix */
} layout_kind;

enum { LAYOUT_MAX_SEGMENTS = 128 };

typedef struct layout {
  hv_segment segment[LAYOUT_MAX_SEGMENTS];
  hv_key_group group[LAYOUT_MAX_SEGMENTS];
  int32_t segments, groups;
  int32_t query_rows, key_rows; /* rows of the matrices, including some that no segment uses */
  int32_t max_q_rows, max_key_rows, max_group_rows;
  bool causal, uniform;
} layout;

/* Adds a segment whose queries are the next `q_rows` rows. */
void layout_add_segment(layout *l, int32_t q_rows, int32_t prefix_start, int32_t prefix_rows, int32_t own_start,
                        int32_t own_rows);

/* Adds a group of the next `rows` key rows, which these segments see; returns its first row. */
int32_t layout_add_group(layout *l, int32_t rows, int32_t first_segment, int32_t segments);

/* Makes a random layout. Every key row is in exactly one key group, unused rows in a group without segments. */
void make_layout(op_env *env, layout_kind kind, layout *out);

#endif
