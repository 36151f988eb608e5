/* fp32 products on the matrix unit (AMX), which multiplies bf16 parts, are as exact as OpenBLAS's in fp32, whatever the
 * operands: the errors of both against sums in double are compared. */
#include <cblas.h>
#include <math.h>

#include "core/base/random.h"
#include "core/cpu/cpu.h"
#include "core/cpu/tile_product.h"
#include "tests/check.h"

enum { M = 75, N = 101, K = 333 };

static float a[M * K], b[N * K], c[M * N], other[M * N];
static uint16_t a_bf16[M * K], b_bf16[N * K];
static uint64_t draws;

static float normal(void) {
  uint64_t draw = draws++;
  return hv_random_normal(1, 0, draw >> 32, draw, 0, 0);
}

static float uniform(void) {
  uint64_t draw = draws++;
  return hv_random_uniform(1, 0, draw >> 32, draw, 0, 0);
}

static void fill_normal(void) {
  for (int i = 0; i < M * K; i++) a[i] = normal();
  for (int i = 0; i < N * K; i++) b[i] = normal();
}

/* c = alpha a b + beta c with a [M, K] and b [N, K]. */
static void run(float alpha, float beta) {
  void *scratch = malloc(hv_tile_product_scratch(M, N));
  assert_non_null(scratch);
  hv_tile_product(alpha, hv_tensor_make(a, HV_F32, M, K), false, hv_tensor_make(b, HV_F32, N, K), true, beta, c, N,
                  scratch);
  free(scratch);
}

/* The largest error of the results, in units of 2^-24 Σ |a b|. */
static double worst_error(const float *result) {
  double worst = 0;
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < N; j++) {
      double sum = 0, size = 0;
      for (int p = 0; p < K; p++) {
        double product = (double)a[i * K + p] * (double)b[j * K + p];
        sum += product;
        size += fabs(product);
      }
      double error = fabs((double)result[i * N + j] - sum) / size * 0x1p24;
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

static void compare_with_openblas(const char *what) {
  run(1, 0);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, M, N, K, 1, a, K, b, K, 0, other, N);
  double tiles = worst_error(c), openblas = worst_error(other);
  printf("%s: error %.2f units, OpenBLAS %.2f\n", what, tiles, openblas);
  assert_true(tiles <= 1.5 || tiles <= openblas);
}

static void random_numbers(void **state) {
  (void)state;
  fill_normal();
  compare_with_openblas("normal numbers");
}

static void wide_scales(void **state) {
  (void)state;
  fill_normal();
  for (int i = 0; i < M * K; i++) a[i] = ldexpf(a[i], (int)(80 * uniform()) - 40);
  for (int i = 0; i < N * K; i++) b[i] = ldexpf(b[i], (int)(80 * uniform()) - 40);
  compare_with_openblas("scales from 2^-40 to 2^40");
}

static void cancelling_sums(void **state) {
  (void)state;
  fill_normal();
  for (int i = 0; i < M; i++) {
    for (int p = 1; p < K; p += 2) a[i * K + p] = -a[i * K + p - 1] * (1 + 0x1p-18f * normal());
  }
  for (int j = 0; j < N; j++) {
    for (int p = 1; p < K; p += 2) b[j * K + p] = b[j * K + p - 1];
  }
  compare_with_openblas("cancelling sums");
}

/* The remainders of these numbers are as large as possible and all of one sign, so that the parts that are left out add
 * up. */
static void largest_remainders(void **state) {
  (void)state;
  for (int i = 0; i < M * K; i++) a[i] = 0x1.007f7ep0f;
  for (int i = 0; i < N * K; i++) b[i] = 0x1.007f7ep0f;
  compare_with_openblas("largest remainders");
}

/* Every sum fits into fp32's 24 bits, and each number needs two bf16 parts. */
static void whole_numbers_are_exact(void **state) {
  (void)state;
  for (int i = 0; i < M * K; i++) a[i] = (float)(int)(400 * uniform() - 200);
  for (int i = 0; i < N * K; i++) b[i] = (float)(int)(400 * uniform() - 200);
  for (int i = 0; i < M * K; i += 7) a[i] *= 2 - 0x1p-2f;
  run(1, 0);
  assert_true(worst_error(c) == 0);
}

static void numbers_at_the_ends(void **state) {
  (void)state;
  fill_normal();
  for (int i = 0; i < M * K; i++) a[i] = i % 3 ? ldexpf(a[i], 120) : copysignf(0x1.fffffep+127f, a[i]);
  for (int i = 0; i < N * K; i++) b[i] = ldexpf(b[i], -90);
  compare_with_openblas("the largest fp32 numbers");
}

/* NaN and infinities affect their own row or column of the result, and no other. */
static void not_finite_stays_not_finite(void **state) {
  (void)state;
  const uint32_t odd_nan = 0x7fffffff;
  float nan_of_ones;
  memcpy(&nan_of_ones, &odd_nan, sizeof odd_nan);
  fill_normal();
  a[3 * K + 5] = NAN;
  a[20 * K + K - 1] = INFINITY;
  a[74 * K + 100] = nan_of_ones;
  b[0 * K + 7] = -INFINITY;
  b[100 * K + 200] = NAN;
  run(1, 0);
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < N; j++) {
      bool touched = i == 3 || i == 20 || i == 74 || j == 0 || j == 100;
      if ((bool)isfinite(c[i * N + j]) == touched) fail_msg("row %d, column %d is %g", i, j, (double)c[i * N + j]);
    }
  }
}

static void scales_and_adds(void **state) {
  (void)state;
  fill_normal();
  run(1, 0);
  memcpy(other, c, sizeof c);
  for (int i = 0; i < M * N; i++) c[i] = (float)i;
  run(0.75f, 0.5f);
  for (int i = 0; i < M * N; i++) {
    if (c[i] != fmaf(0.5f, (float)i, 0.75f * other[i])) fail_msg("element %d is %g", i, (double)c[i]);
  }
  for (int i = 0; i < M * N; i++) c[i] = NAN; /* c must not be read if beta is 0 */
  run(1, 0);
  assert_memory_equal(c, other, sizeof c);
}

/* Operands stored plainly, transposed and with gaps, and as bf16 if that is exact, give the same bits. */
static void every_layout(void **state) {
  (void)state;
  enum { GAP = 3 };
  static float a_turned[K * (M + GAP)], b_turned[K * (N + GAP)];
  fill_normal();
  for (int i = 0; i < M * K; i++) a[i] = hv_bf16_to_float(a_bf16[i] = hv_bf16_from_float(a[i]));
  for (int i = 0; i < N * K; i++) b[i] = hv_bf16_to_float(b_bf16[i] = hv_bf16_from_float(b[i]));
  memset(a_turned, 0xff, sizeof a_turned);
  memset(b_turned, 0xff, sizeof b_turned);
  for (int p = 0; p < K; p++) {
    for (int i = 0; i < M; i++) a_turned[p * (M + GAP) + i] = a[i * K + p];
    for (int j = 0; j < N; j++) b_turned[p * (N + GAP) + j] = b[j * K + p];
  }
  const hv_tensor left[] = {hv_tensor_make(a, HV_F32, M, K),
                            hv_tensor_make(a_bf16, HV_BF16, M, K),
                            {.data = a_turned, .dtype = HV_F32, .rows = K, .cols = M, .row_stride = M + GAP}};
  const hv_tensor right[] = {hv_tensor_make(b, HV_F32, N, K),
                             hv_tensor_make(b_bf16, HV_BF16, N, K),
                             {.data = b_turned, .dtype = HV_F32, .rows = K, .cols = N, .row_stride = N + GAP}};
  void *scratch = malloc(hv_tile_product_scratch(M, N));
  assert_non_null(scratch);
  run(1, 0);
  memcpy(other, c, sizeof c);
  for (int i = 0; i < 9; i++) {
    memset(c, 0xff, sizeof c); /* NaN */
    hv_tile_product(1, left[i / 3], i / 3 == 2, right[i % 3], i % 3 != 2, 0, c, N, scratch);
    for (int j = 0; j < M * N; j++) {
      if (c[j] != other[j]) fail_msg("operands stored in way %d and way %d differ", i / 3, i % 3);
    }
  }
  free(scratch);
}

int main(void) {
  hv_device *device;
  hv_status status = hv_cpu_device_open_with(NULL, HV_CPU_AMX, &device);
  if (status) {
    printf("skipped: no matrix unit (%s)\n", hv_status_message(status));
    hv_status_free(status);
    return SKIPPED;
  }
  hv_device_close(device);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(random_numbers),      cmocka_unit_test(wide_scales),
      cmocka_unit_test(cancelling_sums),     cmocka_unit_test(largest_remainders),
      cmocka_unit_test(numbers_at_the_ends), cmocka_unit_test(whole_numbers_are_exact),
      cmocka_unit_test(scales_and_adds),     cmocka_unit_test(not_finite_stays_not_finite),
      cmocka_unit_test(every_layout),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
