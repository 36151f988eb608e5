/* The gradient's norm, clipping, AdamW, and averages of the parameters. */
#include "core/cpu/kernel.h"
#include "core/cpu/vector_math.h"
#include "core/tensor/moments.h"

static double square_sums(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_sum_squares_args *a = context;
  real buffer[HV_CHUNK];
  double total = 0;
  for (int64_t i = first; i < last; i++) {
    int64_t col = i * HV_CHUNK, count = min_i64(HV_CHUNK, a->x.cols - col);
    const real *x = load(&a->x, 0, col, count, buffer);
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; j++) sum += x[j] * x[j];
    total += (double)sum;
  }
  return total;
}

void HV_KERNEL(sum_squares)(hv_cpu_pool *pool, const hv_sum_squares_args *args) {
  double sum = hv_cpu_sum(pool, chunks_of(args->x.cols), HV_CHUNK, square_sums, args);
  store_one(&args->y, 0, 0, load_one(&args->y, 0, 0) + (real)sum);
}

void HV_KERNEL(clip_factor)(hv_cpu_pool *pool, const hv_clip_factor_args *args) {
  (void)pool;
  real norm = real_sqrt(load_one(&args->sum_squares, 0, 0)), max_norm = (real)args->max_norm;
  real factor = max_norm / (norm + (real)1e-6);
  if (max_norm == 0 || factor > 1) factor = 1;
  if (!isfinite(norm)) factor = -1;
  store_one(&args->norm, 0, 0, norm);
  store_one(&args->dynamic, 0, 3, factor);
}

/* The coefficients of one update. */
typedef struct adamw_context {
  const hv_adamw_args *args;
  real lr, correction1, correction2, gradient_factor, beta1, beta2, eps;
  real rest1, rest2; /* 1 − β1, 1 − β2, subtracted in double */
  uint32_t update;   /* its number, t */
} adamw_context;

/* The master value of a BF16 parameter, and back: rounded to nearest, halves away from zero, so that the remainder
 * always fits a signed 16-bit number. */
static float master_value(uint16_t high, int16_t low) {
  uint32_t bits = ((uint32_t)high << 16) + (uint32_t)(int32_t)low;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static void split_master(float value, uint16_t *high, int16_t *low) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  *high = (uint16_t)((bits + 0x8000u) >> 16);
  *low = (int16_t)(uint16_t)bits;
}

static void load_master(const hv_tensor *param, const hv_tensor *remainder, int64_t first, int64_t count, real *p) {
  const uint16_t *high = element(param, 0, first);
  const int16_t *low = element(remainder, 0, first);
#pragma omp simd
  for (int64_t j = 0; j < count; j++) p[j] = (real)master_value(high[j], low[j]);
}

static void store_master(const hv_tensor *param, const hv_tensor *remainder, int64_t first, int64_t count,
                         const real *p) {
  uint16_t *high = element(param, 0, first);
  int16_t *low = element(remainder, 0, first);
#pragma omp simd
  for (int64_t j = 0; j < count; j++) split_master((float)p[j], &high[j], &low[j]);
}

/* Updates `count` elements from `first` on, which lie in the range, and their moments. */
static void update(const adamw_context *c, int64_t first, int64_t count, const hv_adamw_range *range, real *m,
                   real *v) {
  const hv_adamw_args *a = c->args;
  real grad_buffer[HV_CHUNK], master[HV_CHUNK];
  bool split = hv_present(a->remainder);
  /* All but split parameters are stored as `real`. */
  real *p = split ? master : element(&a->param, 0, first);
  const real *grad = load(&a->grad, 0, first, count, grad_buffer);
  real lr = c->lr * (real)range->rate, keep = range->decay ? 1 - lr * (real)a->weight_decay : 1;
  if (split) load_master(&a->param, &a->remainder, first, count, p);
#pragma omp simd
  for (int64_t j = 0; j < count; j++) {
    real g = c->gradient_factor * grad[j];
    m[j] = c->beta1 * m[j] + c->rest1 * g;
    v[j] = c->beta2 * v[j] + c->rest2 * g * g;
    p[j] = p[j] * keep - lr * (m[j] / c->correction1) / (real_sqrt(v[j] / c->correction2) + c->eps);
  }
  if (split) store_master(&a->param, &a->remainder, first, count, p);
}

static void adamw_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const adamw_context *c = context;
  const hv_tensor *ranges = &c->args->ranges;
  int64_t begin = first * HV_CHUNK, end = last * HV_CHUNK;
  for (int64_t i = 0; i < ranges->rows; i++) {
    const hv_adamw_range *range = element(ranges, i, 0);
    int64_t from = max_i64(begin, range->first), to = min_i64(end, range->end);
    for (; from < to; from += HV_CHUNK) {
      real *m = element(&c->args->moment1, 0, from), *v = element(&c->args->moment2, 0, from);
      update(c, from, min_i64(HV_CHUNK, to - from), range, m, v);
    }
  }
}

static void decode_moments(const hv_adamw_args *a, int64_t block, real *m, real *v) {
  const int8_t *code1 = element(&a->moment1, 0, block * HV_MOMENT_BLOCK);
  const uint8_t *code2 = element(&a->moment2, 0, block * HV_MOMENT_BLOCK);
  float scale1 = ((const float *)a->moment1_scale.data)[block], scale2 = ((const float *)a->moment2_scale.data)[block];
#pragma omp simd
  for (int j = 0; j < HV_MOMENT_BLOCK; j++) {
    real root_v = (real)hv_moment2_decode(code2[j], scale2);
    m[j] = (real)hv_moment1_decode(code1[j], scale1);
    v[j] = root_v * root_v;
  }
}

static void encode_moments(const adamw_context *c, int64_t block, const real *m, const real *v) {
  const hv_adamw_args *a = c->args;
  int8_t *code1 = element(&a->moment1, 0, block * HV_MOMENT_BLOCK);
  uint8_t *code2 = element(&a->moment2, 0, block * HV_MOMENT_BLOCK);
  float root_v[HV_MOMENT_BLOCK], scale1 = 0, scale2 = 0;
#pragma omp simd reduction(max : scale1, scale2)
  for (int j = 0; j < HV_MOMENT_BLOCK; j++) {
    float size = fabsf((float)m[j]);
    root_v[j] = (float)real_sqrt(v[j]);
    scale1 = size > scale1 ? size : scale1;
    scale2 = root_v[j] > scale2 ? root_v[j] : scale2;
  }
#pragma omp simd
  for (int j = 0; j < HV_MOMENT_BLOCK; j++) {
    float dither = hv_moment_dither(c->update, (uint32_t)j);
    code1[j] = hv_moment1_encode((float)m[j], scale1, dither);
    code2[j] = hv_moment2_encode(root_v[j], scale2, dither);
  }
  ((float *)a->moment1_scale.data)[block] = scale1;
  ((float *)a->moment2_scale.data)[block] = scale2;
}

/* Updates one block of moments in 8 bits; elements outside the ranges hold codes of 0. */
static void update_block(const adamw_context *c, int64_t block) {
  const hv_tensor *ranges = &c->args->ranges;
  int64_t begin = block * HV_MOMENT_BLOCK, end = begin + HV_MOMENT_BLOCK;
  real m[HV_MOMENT_BLOCK], v[HV_MOMENT_BLOCK];
  bool any = false;
  for (int64_t i = 0; i < ranges->rows; i++) {
    const hv_adamw_range *range = element(ranges, i, 0);
    int64_t from = max_i64(begin, range->first), to = min_i64(end, range->end);
    if (from >= to) continue;
    if (!any) decode_moments(c->args, block, m, v);
    any = true;
    update(c, from, to - from, range, m + (from - begin), v + (from - begin));
  }
  if (any) encode_moments(c, block, m, v);
}

static void adamw_blocks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  for (int64_t block = first; block < last; block++) update_block(context, block);
}

void HV_KERNEL(adamw)(hv_cpu_pool *pool, const hv_adamw_args *args) {
  adamw_context c = {.args = args, .beta1 = (real)args->beta1, .beta2 = (real)args->beta2, .eps = (real)args->eps};
  c.rest1 = (real)(1 - args->beta1);
  c.rest2 = (real)(1 - args->beta2);
  c.lr = load_one(&args->dynamic, 0, 0);
  c.correction1 = load_one(&args->dynamic, 0, 1);
  c.correction2 = load_one(&args->dynamic, 0, 2);
  c.gradient_factor = load_one(&args->dynamic, 0, 3);
  c.update = (uint32_t)load_one(&args->dynamic, 0, 4);
  if (c.gradient_factor < 0) return;
  if (hv_present(args->moment1_scale)) {
    int64_t blocks = args->param.cols / HV_MOMENT_BLOCK;
    hv_cpu_for(pool, blocks, hv_cpu_grain(16 * HV_MOMENT_BLOCK), adamw_blocks, &c);
    return;
  }
  hv_cpu_for(pool, chunks_of(args->param.cols), hv_cpu_grain(8 * HV_CHUNK), adamw_chunks, &c);
}

/* The coefficients of one step of an average. */
typedef struct average_context {
  const hv_average_args *args;
  real weight;
} average_context;

static void average_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const average_context *c = context;
  const hv_average_args *a = c->args;
  real master[HV_CHUNK];
  for (int64_t i = first; i < last; i++) {
    int64_t col = i * HV_CHUNK, count = min_i64(HV_CHUNK, a->param.cols - col);
    real *average = element(&a->average, 0, col);
    const real *p = master;
    if (hv_present(a->remainder)) {
      load_master(&a->param, &a->remainder, col, count, master);
    } else {
      p = element(&a->param, 0, col);
    }
#pragma omp simd
    for (int64_t j = 0; j < count; j++) average[j] += c->weight * (p[j] - average[j]);
  }
}

void HV_KERNEL(average)(hv_cpu_pool *pool, const hv_average_args *args) {
  average_context c = {.args = args, .weight = load_one(&args->weight, 0, 0)};
  if (load_one(&args->factor, 0, 0) < 0) return;
  hv_cpu_for(pool, chunks_of(args->param.cols), hv_cpu_grain(2 * HV_CHUNK), average_chunks, &c);
}

static void exchange_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_exchange_args *a = context;
  real values[HV_CHUNK];
  for (int64_t i = first; i < last; i++) {
    int64_t col = i * HV_CHUNK, count = min_i64(HV_CHUNK, a->param.cols - col);
    size_t size = (size_t)count * sizeof(real);
    real *average = element(&a->average, 0, col);
    if (hv_present(a->remainder)) {
      load_master(&a->param, &a->remainder, col, count, values);
      store_master(&a->param, &a->remainder, col, count, average);
    } else {
      memcpy(values, element(&a->param, 0, col), size);
      memcpy(element(&a->param, 0, col), average, size);
    }
    memcpy(average, values, size);
  }
}

void HV_KERNEL(exchange)(hv_cpu_pool *pool, const hv_exchange_args *args) {
  hv_cpu_for(pool, chunks_of(args->param.cols), hv_cpu_grain(2 * HV_CHUNK), exchange_chunks, args);
}
