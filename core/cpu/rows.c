/* Rows moved, summed and converted. */
#include "core/cpu/kernel.h"

static void copy_chunk(const hv_tensor *src, int64_t src_row, const hv_tensor *dst, int64_t dst_row, int64_t col,
                       int64_t count) {
  real buffer[HV_CHUNK];
  if (src->dtype == dst->dtype) {
    memmove(element(dst, dst_row, col), element(src, src_row, col), (size_t)count * hv_dtype_size(src->dtype));
  } else {
    store(dst, dst_row, col, count, load(src, src_row, col, count, buffer));
  }
}

static void copy_row(const hv_tensor *src, int64_t src_row, const hv_tensor *dst, int64_t dst_row) {
  for (int64_t col = 0; col < src->cols; col += HV_CHUNK) {
    copy_chunk(src, src_row, dst, dst_row, col, min_i64(HV_CHUNK, src->cols - col));
  }
}

static int64_t listed(const hv_tensor *list, int64_t index) {
  return hv_present(*list) ? int_list(list)[index] : index;
}

static void gather(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_gather_rows_args *a = context;
  for (int64_t i = first; i < last; i++) copy_row(&a->src, listed(&a->src_rows, i), &a->dst, listed(&a->dst_rows, i));
}

void HV_KERNEL(gather_rows)(hv_cpu_pool *pool, const hv_gather_rows_args *args) {
  hv_cpu_for(pool, args->count, hv_cpu_grain(args->src.cols), gather, args);
}

static void scatter_row(const hv_scatter_add_rows_args *a, int64_t index, int64_t col, int64_t count) {
  const int32_t *offsets = int_list(&a->offsets), *src_rows = int_list(&a->src_rows);
  int64_t dst_row = int_list(&a->dst_rows)[index];
  real sum[HV_CHUNK], buffer[HV_CHUNK];
  memset(sum, 0, sizeof sum);
  for (int64_t i = offsets[index]; i < offsets[index + 1]; i++) {
    const real *src = load(&a->src, src_rows[i], col, count, buffer);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) sum[j] += src[j];
  }
  const real *old = load(&a->dst, dst_row, col, count, buffer);
#pragma omp simd
  for (int64_t j = 0; j < count; j++) sum[j] += old[j];
  store(&a->dst, dst_row, col, count, sum);
}

static void scatter(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_scatter_add_rows_args *a = context;
  int64_t chunks = chunks_of(a->src.cols);
  for (int64_t i = first; i < last; i++) {
    int64_t col = i % chunks * HV_CHUNK;
    scatter_row(a, i / chunks, col, min_i64(HV_CHUNK, a->src.cols - col));
  }
}

void HV_KERNEL(scatter_add_rows)(hv_cpu_pool *pool, const hv_scatter_add_rows_args *args) {
  int64_t chunks = chunks_of(args->src.cols);
  hv_cpu_for(pool, args->dst_rows.cols * chunks, hv_cpu_grain(3 * HV_CHUNK), scatter, args);
}

static void convert(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_convert_args *a = context;
  int64_t chunks = chunks_of(a->src.cols);
  for (int64_t i = first; i < last; i++) {
    int64_t col = i % chunks * HV_CHUNK;
    copy_chunk(&a->src, i / chunks, &a->dst, i / chunks, col, min_i64(HV_CHUNK, a->src.cols - col));
  }
}

void HV_KERNEL(convert)(hv_cpu_pool *pool, const hv_convert_args *args) {
  hv_cpu_for(pool, args->src.rows * chunks_of(args->src.cols), hv_cpu_grain(HV_CHUNK), convert, args);
}

/* The value as `dtype` stores it. */
static void encode(hv_dtype dtype, double value, void *out) {
  float f = (float)value;
  uint16_t half;
  int16_t i16 = 0;
  int32_t i32 = 0;
  int64_t i64 = 0;
  uint8_t u8 = 0;
  int8_t i8 = 0;
  switch (dtype) {
  case HV_F32: memcpy(out, &f, sizeof f); break;
  case HV_F64: memcpy(out, &value, sizeof value); break;
  case HV_BF16: half = hv_bf16_from_float(f), memcpy(out, &half, sizeof half); break;
  case HV_F16: half = hv_f16_from_float(f), memcpy(out, &half, sizeof half); break;
  case HV_I16: i16 = (int16_t)value, memcpy(out, &i16, sizeof i16); break;
  case HV_I32: i32 = (int32_t)value, memcpy(out, &i32, sizeof i32); break;
  case HV_I64: i64 = (int64_t)value, memcpy(out, &i64, sizeof i64); break;
  case HV_BOOL:
  case HV_U8: u8 = (uint8_t)value, memcpy(out, &u8, sizeof u8); break;
  case HV_I8: i8 = (int8_t)value, memcpy(out, &i8, sizeof i8); break;
  }
}

static void fill(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_fill_args *a = context;
  int64_t chunks = chunks_of(a->dst.cols);
  size_t size = hv_dtype_size(a->dst.dtype);
  char pattern[HV_CHUNK * sizeof(double)];
  for (size_t j = 0; j < HV_CHUNK; j++) encode(a->dst.dtype, a->value, pattern + j * size);
  for (int64_t i = first; i < last; i++) {
    int64_t col = i % chunks * HV_CHUNK;
    memcpy(element(&a->dst, i / chunks, col), pattern, (size_t)min_i64(HV_CHUNK, a->dst.cols - col) * size);
  }
}

void HV_KERNEL(fill)(hv_cpu_pool *pool, const hv_fill_args *args) {
  int64_t chunks = chunks_of(args->dst.cols);
  hv_cpu_for(pool, args->dst.rows * chunks, hv_cpu_grain(HV_CHUNK / 2), fill, args);
}
