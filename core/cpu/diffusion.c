/* The diffusion process and its loss. */
#include "core/cpu/kernel.h"
#include "core/cpu/vector_math.h"

static void sinusoid_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  const hv_sinusoid_args *a = context;
  int64_t half = a->y.cols / 2;
  for (int64_t row = first; row < last; row++) {
    real *y = target(&a->y, row, 0, scratch);
    for (int64_t j = 0; j < half; j++) {
      double angle = int_list(&a->timesteps)[row] * exp(-9.21034037197618273607 * (double)j / (double)half);
      y[j] = (real)cos(angle);
      y[half + j] = (real)sin(angle);
    }
    store(&a->y, row, 0, a->y.cols, y);
  }
}

void HV_KERNEL(sinusoid)(hv_cpu_pool *pool, const hv_sinusoid_args *args) {
  if (!hv_cpu_reserve(pool, (size_t)args->y.cols * sizeof(real))) return;
  hv_cpu_for(pool, args->y.rows, hv_cpu_grain(50 * args->y.cols), sinusoid_rows, args);
}

static void q_sample_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_q_sample_args *a = context;
  int64_t chunks = chunks_of(a->y.cols);
  real actions_buffer[HV_CHUNK], noise_buffer[HV_CHUNK], buffer[HV_CHUNK];
  for (int64_t i = first; i < last; i++) {
    int64_t row = i / chunks, col = i % chunks * HV_CHUNK, count = min_i64(HV_CHUNK, a->y.cols - col);
    real alpha_bar = load_one(&a->alpha_bar, 0, int_list(&a->timesteps)[row]);
    real signal = real_sqrt(alpha_bar), spread = real_sqrt(1 - alpha_bar);
    const real *actions = load(&a->actions, row / a->branches, col, count, actions_buffer);
    const real *noise = load(&a->noise, row, col, count, noise_buffer);
    real *y = target(&a->y, row, col, buffer);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) y[j] = signal * actions[j] + spread * noise[j];
    store(&a->y, row, col, count, y);
  }
}

void HV_KERNEL(q_sample)(hv_cpu_pool *pool, const hv_q_sample_args *args) {
  int64_t chunks = chunks_of(args->y.cols);
  hv_cpu_for(pool, args->y.rows * chunks, hv_cpu_grain(min_i64(args->y.cols, HV_CHUNK)), q_sample_chunks, args);
}

static void sampler_step_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_sampler_step_args *a = context;
  int64_t chunks = chunks_of(a->x.cols);
  real c0 = load_one(&a->coefficients, 0, 0), c1 = load_one(&a->coefficients, 0, 1);
  real c2 = load_one(&a->coefficients, 0, 2);
  real x_buffer[HV_CHUNK], eps_buffer[HV_CHUNK], noise_buffer[HV_CHUNK], buffer[HV_CHUNK];
  for (int64_t i = first; i < last; i++) {
    int64_t row = i / chunks, col = i % chunks * HV_CHUNK, count = min_i64(HV_CHUNK, a->x.cols - col);
    const real *old = load(&a->x, row, col, count, x_buffer), *eps = load(&a->eps, row, col, count, eps_buffer);
    real *x = target(&a->x, row, col, buffer);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) x[j] = c0 * old[j] + c1 * eps[j];
    if (hv_present(a->noise)) {
      const real *noise = load(&a->noise, row, col, count, noise_buffer);
#pragma omp simd
      for (int64_t j = 0; j < count; j++) x[j] += c2 * noise[j];
    }
    store(&a->x, row, col, count, x);
    if (hv_present(a->x_cast)) store(&a->x_cast, row, col, count, x);
  }
}

void HV_KERNEL(sampler_step)(hv_cpu_pool *pool, const hv_sampler_step_args *args) {
  int64_t chunks = chunks_of(args->x.cols);
  hv_cpu_for(pool, args->x.rows * chunks, hv_cpu_grain(min_i64(args->x.cols, HV_CHUNK)), sampler_step_chunks, args);
}

static double diffusion_loss_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  const hv_diffusion_loss_args *a = context;
  int64_t cols = a->pred.cols;
  real *pred_buffer = scratch, *noise_buffer = pred_buffer + cols, *buffer = noise_buffer + cols;
  real divisor = load_one(&a->divisor, 0, 0);
  double sum = 0;
  for (int64_t row = first; row < last; row++) {
    real mask = hv_present(a->mask) ? load_one(&a->mask, 0, row) : 1, slope = (real)a->weight * 2 * mask / divisor;
    const real *pred = load(&a->pred, row, 0, cols, pred_buffer), *noise = load(&a->noise, row, 0, cols, noise_buffer);
    for (int64_t j = 0; j < cols; j++) {
      real difference = mask == 0 ? 0 : pred[j] - noise[j];
      sum += (double)(mask * difference) * (double)difference;
      buffer[j] = slope * difference;
    }
    if (hv_present(a->dpred)) store(&a->dpred, row, 0, cols, buffer);
  }
  return sum;
}

void HV_KERNEL(diffusion_loss)(hv_cpu_pool *pool, const hv_diffusion_loss_args *args) {
  if (!hv_cpu_reserve(pool, (size_t)(3 * args->pred.cols) * sizeof(real))) return;
  double sum = hv_cpu_sum(pool, args->pred.rows, 4 * args->pred.cols, diffusion_loss_rows, args);
  double divisor = (double)load_one(&args->divisor, 0, 0);
  store_one(&args->loss, 0, 0, load_one(&args->loss, 0, 0) + (real)(sum / divisor));
}
