#include "tests/cpu/layout.h"

static int32_t larger(int32_t a, int32_t b) {
  return a > b ? a : b;
}

void layout_add_segment(layout *l, int32_t q_rows, int32_t prefix_start, int32_t prefix_rows, int32_t own_start,
                        int32_t own_rows) {
  l->segment[l->segments++] = (hv_segment){l->query_rows, q_rows, prefix_start, prefix_rows, own_start, own_rows};
  l->query_rows += q_rows;
  l->max_q_rows = larger(l->max_q_rows, q_rows);
  l->max_key_rows = larger(l->max_key_rows, prefix_rows + own_rows);
}

int32_t layout_add_group(layout *l, int32_t rows, int32_t first_segment, int32_t segments) {
  int32_t start = l->key_rows;
  l->group[l->groups++] = (hv_key_group){start, rows, first_segment, segments};
  l->key_rows += rows;
  l->max_group_rows = larger(l->max_group_rows, rows);
  return start;
}

static int32_t rows_up_to(op_env *env, int64_t most) {
  return (int32_t)(1 + op_below(env, most < env->max_size ? most : env->max_size));
}

static void add_images(op_env *env, layout *l) {
  int64_t images = 1 + op_below(env, 4);
  for (int64_t i = 0; i < images; i++) {
    int32_t rows = rows_up_to(env, 200), start = layout_add_group(l, rows, l->segments, 1);
    layout_add_segment(l, rows, 0, 0, start, rows);
  }
}

static void add_equal_images(op_env *env, layout *l) {
  int64_t images = 1 + op_below(env, 4);
  int32_t rows = rows_up_to(env, 200);
  for (int64_t i = 0; i < images; i++)
    layout_add_segment(l, rows, 0, 0, layout_add_group(l, rows, l->segments, 1), rows);
}

static void add_samples(op_env *env, layout *l, bool prefix_queries) {
  int64_t samples = 1 + op_below(env, 3);
  for (int64_t i = 0; i < samples; i++) {
    int32_t branches = (int32_t)op_below(env, 5), prefix = rows_up_to(env, 300), first = l->segments;
    int32_t start = layout_add_group(l, prefix, first, branches + 1);
    layout_add_segment(l, prefix_queries ? prefix : 0, 0, 0, start, prefix);
    for (int32_t branch = 0; branch < branches; branch++) {
      int32_t rows = rows_up_to(env, 20), own = layout_add_group(l, rows, l->segments, 1);
      layout_add_segment(l, rows, start, prefix, own, rows);
    }
  }
}

static void add_cached(op_env *env, layout *l) {
  int32_t old = rows_up_to(env, 250), fresh = rows_up_to(env, 10);
  int32_t start = layout_add_group(l, old + fresh, l->segments, 1);
  layout_add_segment(l, fresh, 0, 0, start, old + fresh);
  int32_t prefix = rows_up_to(env, 250), cached = layout_add_group(l, prefix, l->segments, 3);
  for (int i = 0; i < 3; i++) {
    int32_t rows = rows_up_to(env, 12), own = layout_add_group(l, rows, l->segments, 1);
    layout_add_segment(l, rows, cached, prefix, own, rows);
  }
}

void make_layout(op_env *env, layout_kind kind, layout *out) {
  *out = (layout){.causal = kind != LAYOUT_IMAGES && kind != LAYOUT_UNIFORM, .uniform = kind == LAYOUT_UNIFORM};
  do {
    if (kind == LAYOUT_IMAGES) {
      add_images(env, out);
    } else if (kind == LAYOUT_UNIFORM) {
      add_equal_images(env, out);
    } else if (kind == LAYOUT_CACHED) {
      add_cached(env, out);
    } else {
      add_samples(env, out, kind == LAYOUT_PACKED);
    }
  } while (out->query_rows == 0);
  if (!out->uniform && op_coin(env)) {
    layout_add_group(out, 3, 0, 0);
    out->query_rows += 2;
  }
}
