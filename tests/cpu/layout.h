/* Segment tables for attention. */
#ifndef HV_TESTS_CPU_LAYOUT_H
#define HV_TESTS_CPU_LAYOUT_H

#include "tests/cpu/op_env.h"

typedef enum layout_kind {
  LAYOUT_IMAGES,        /* each segment sees itself, both ways */
  LAYOUT_UNIFORM,       /* the same for images of one size, without unused rows */
  LAYOUT_PACKED,        /* samples one behind the other: a prefix and branches that share it */
  LAYOUT_BRANCHES_ONLY, /* the same keys, queries on the branches alone */
  LAYOUT_CACHED,        /* few new queries over many own rows, and branches over a cached prefix */
} layout_kind;

enum { LAYOUT_MAX_SEGMENTS = 128 };

typedef struct layout {
  hv_segment segment[LAYOUT_MAX_SEGMENTS];
  hv_key_group group[LAYOUT_MAX_SEGMENTS];
  int32_t segments, groups;
  int32_t query_rows, key_rows; /* of the matrices, with some rows that nobody uses */
  int32_t max_q_rows, max_key_rows, max_group_rows;
  bool causal, uniform;
} layout;

/* Adds a segment of the next `q_rows` query rows. */
void layout_add_segment(layout *l, int32_t q_rows, int32_t prefix_start, int32_t prefix_rows, int32_t own_start,
                        int32_t own_rows);

/* Adds a group of the next `rows` key rows, that these segments see; returns the first row. */
int32_t layout_add_group(layout *l, int32_t rows, int32_t first_segment, int32_t segments);

/* A random one. Every key row is in one key group, the unused ones in a group without segments. */
void make_layout(op_env *env, layout_kind kind, layout *out);

#endif
