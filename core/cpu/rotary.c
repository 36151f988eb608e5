#include "core/cpu/kernel.h"

static void rotate_row(const hv_rotary_args *a, const hv_tensor *from, int64_t row, const hv_tensor *to, int64_t to_row,
                       const real *cos_sin) {
  int64_t half = a->cos_sin.cols / 2, rest = a->head_dim - 2 * half;
  real buffer[2][HV_CHUNK];
  for (int64_t head = 0; head < from->cols; head += a->head_dim) {
    const real *x = load(from, row, head, a->head_dim, buffer[0]);
    real *y = target(to, to_row, head, buffer[1]);
    rotate(x, cos_sin, half, a->inverse ? -1 : 1, y);
    if (rest > 0 && y != x) memcpy(y + 2 * half, x + 2 * half, (size_t)rest * sizeof *y);
    store(to, to_row, head, a->head_dim, y);
  }
}

static void rotary_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_rotary_args *a = context;
  int64_t rotary_dim = a->cos_sin.cols;
  real buffer[HV_CHUNK];
  for (int64_t row = first; row < last; row++) {
    const real *cos_sin = load(&a->cos_sin, int_list(&a->positions)[row], 0, rotary_dim, buffer);
    int64_t kv_row = hv_present(a->kv_rows) ? int_list(&a->kv_rows)[row] : row;
    if (hv_present(a->q)) rotate_row(a, &a->q, row, &a->q_out, row, cos_sin);
    if (hv_present(a->k)) rotate_row(a, &a->k, row, &a->k_out, kv_row, cos_sin);
    if (hv_present(a->v)) {
      void *to = element(&a->v_out, kv_row, 0), *from = element(&a->v, row, 0);
      if (to != from) memcpy(to, from, (size_t)a->v.cols * hv_dtype_size(a->v.dtype));
    }
  }
}

void HV_KERNEL(rotary)(hv_cpu_pool *pool, const hv_rotary_args *args) {
  int64_t width = (hv_present(args->q) ? args->q.cols : 0) + (hv_present(args->k) ? 2 * args->k.cols : 0);
  hv_cpu_for(pool, args->positions.cols, hv_cpu_grain(width), rotary_rows, args);
}
