/* Compiled without contraction, as core/base/random.h asks. */
#include "core/base/random.h"
#include "core/cpu/kernel.h"

static uint64_t key_of(const hv_tensor *seed_step, int32_t domain) {
  const int64_t *values = seed_step->data;
  return hv_random_key((uint64_t)values[0], domain, (uint64_t)values[1]);
}

static void normal_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_draw_normal_args *a = context;
  const int64_t *samples = a->samples.data;
  uint64_t key = key_of(&a->seed_step, a->domain);
  for (int64_t row = first; row < last; row++) {
    uint64_t sample = (uint64_t)samples[row / a->branches];
    uint32_t branch = (uint32_t)(row % a->branches);
    for (int64_t col = 0; col < a->y.cols; col += 4) {
      float normals[4];
      real values[4];
      hv_random_normals(key, sample, branch, (uint32_t)(col / 4), normals);
      for (int j = 0; j < 4; j++) values[j] = normals[j];
      store(&a->y, row, col, min_i64(4, a->y.cols - col), values);
    }
  }
}

void HV_KERNEL(draw_normal)(hv_cpu_pool *pool, const hv_draw_normal_args *args) {
  hv_cpu_for(pool, args->y.rows, hv_cpu_grain(50 * args->y.cols), normal_rows, args);
}

static void below_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_draw_below_args *a = context;
  const int64_t *seed_step = a->seed_step.data, *samples = a->samples.data;
  for (int64_t row = first; row < last; row++) {
    ((int32_t *)a->y.data)[row] = (int32_t)hv_random_below((uint64_t)seed_step[0], a->domain, (uint64_t)seed_step[1],
                                                           (uint64_t)samples[row / a->branches],
                                                           (uint32_t)(row % a->branches), 0, (uint32_t)a->limit);
  }
}

void HV_KERNEL(draw_below)(hv_cpu_pool *pool, const hv_draw_below_args *args) {
  hv_cpu_for(pool, args->y.cols, hv_cpu_grain(100), below_rows, args);
}
