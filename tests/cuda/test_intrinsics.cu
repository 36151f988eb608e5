/* Every intrinsic that kernels use, against plain loops: in the emulator, and compiled by nvcc on a card (skipped if
 * there is none). Since both agree with the same loops, the emulator agrees with the card. */
#include "tests/cuda/bench.h"

enum { M = 16, N = 8, K = 16 };

/* Multiplies whole matrices; the fragments are filled by hand, as hv_mma's contract says. */
static __global__ void fragments_kernel(const float *a, const float *b, float *c) {
  int g = (int)threadIdx.x / 4, t = (int)threadIdx.x % 4 * 2;
  uint32_t x[4], y[2];
  for (int i = 0; i < 4; i++) {
    const float *p = a + (g + i % 2 * 8) * K + t + i / 2 * 8;
    x[i] = hv_pack_bf16(p[0], p[1]);
  }
  for (int i = 0; i < 2; i++) y[i] = hv_pack_bf16(b[(t + i * 8) * N + g], b[(t + i * 8 + 1) * N + g]);
  float d[4];
  for (int i = 0; i < 4; i++) d[i] = c[(g + i / 2 * 8) * N + t + i % 2];
  hv_mma(d, x, y);
  for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * N + t + i % 2] = d[i];
}

static __device__ void fill(hv_shared<hv_bf16> to, const float *from, int count) {
  hv_shared<uint32_t> pairs = hv_shared_cast<uint32_t>(to);
  for (int i = (int)threadIdx.x; i < count / 2; i += HV_WARP) pairs[i] = hv_pack_bf16(from[2 * i], from[2 * i + 1]);
}

/* The same, with fragments loaded by ldmatrix: a as it is, b transposed. */
static __global__ void ldmatrix_kernel(const float *a, const float *b, float *c) {
  hv_shared<hv_bf16> as = hv_shared_at<hv_bf16>(0), bs = hv_shared_at<hv_bf16>(M * K * sizeof(hv_bf16));
  int lane = (int)threadIdx.x;
  fill(as, a, M * K);
  fill(bs, b, K * N);
  __syncwarp();
  uint32_t x[4], y[4];
  hv_ldmatrix_x4(x, as + lane % 16 * K + lane / 16 * 8);
  hv_ldmatrix_x4_trans(y, bs + lane % 16 * N);
  float d[4] = {};
  hv_mma(d, x, {y[0], y[1]});
  int g = lane / 4, t = lane % 4 * 2;
  for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * N + t + i % 2] += d[i];
}

/* If b is given by the rows of its transpose, ldmatrix need not transpose. */
static __global__ void ldmatrix_plain_kernel(const float *a, const float *b_transposed, float *c) {
  hv_shared<hv_bf16> as = hv_shared_at<hv_bf16>(0), bs = hv_shared_at<hv_bf16>(M * K * sizeof(hv_bf16));
  int lane = (int)threadIdx.x;
  fill(as, a, M * K);
  fill(bs, b_transposed, K * N);
  __syncwarp();
  uint32_t x[4], y[4];
  hv_ldmatrix_x4(x, as + lane % 16 * K + lane / 16 * 8);
  hv_ldmatrix_x4(y, bs + lane % 8 * K + lane / 8 % 2 * 8);
  float d[4] = {};
  hv_mma(d, x, {y[0], y[1]});
  int g = lane / 4, t = lane % 4 * 2;
  for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * N + t + i % 2] += d[i];
}

static void mma_and_ldmatrix(void **) {
  float a[M * K], b[K * N], b_transposed[K * N], c[M * N], expected[M * N] = {}, got[M * N];
  for (int i = 0; i < M * K; i++) a[i] = (float)((i * 37 + 11) % 17 - 8);
  for (int i = 0; i < K * N; i++) b[i] = (float)((i * 23 + 5) % 13 - 6);
  for (int i = 0; i < M * N; i++) c[i] = (float)(i % 7);
  for (int k = 0; k < K; k++) {
    for (int j = 0; j < N; j++) b_transposed[j * K + k] = b[k * N + j];
  }
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < N; j++) {
      expected[i * N + j] = c[i * N + j];
      for (int k = 0; k < K; k++) expected[i * N + j] += a[i * K + k] * b[k * N + j];
    }
  }
  bench card = bench_open();
  float *da = bench_upload(&card, a, M * K), *db = bench_upload(&card, b, K * N);
  float *dt = bench_upload(&card, b_transposed, K * N);
  size_t shared = (M * K + K * N) * sizeof(hv_bf16);
  for (int way = 0; way < 3; way++) {
    float *dc = bench_upload(&card, c, M * N);
    if (way == 0) HV_LAUNCH(fragments_kernel, dim3(1), dim3(32), 0, card.stream, da, db, dc);
    if (way == 1) HV_LAUNCH(ldmatrix_kernel, dim3(1), dim3(32), shared, card.stream, da, db, dc);
    if (way == 2) HV_LAUNCH(ldmatrix_plain_kernel, dim3(1), dim3(32), shared, card.stream, da, dt, dc);
    bench_download(&card, got, dc, M * N);
    assert_memory_equal(got, expected, sizeof got);
  }
  bench_close(&card);
}

enum { SHUFFLES = 9 };

static __global__ void shuffles_kernel(int *out) {
  int lane = (int)threadIdx.x, *to = out + lane * SHUFFLES;
  to[0] = __shfl_sync(HV_FULL_MASK, lane, 5);
  to[1] = __shfl_sync(HV_FULL_MASK, lane, 3, 8);
  to[2] = __shfl_xor_sync(HV_FULL_MASK, lane, 16);
  to[3] = __shfl_up_sync(HV_FULL_MASK, lane, 3u);
  to[4] = __shfl_down_sync(HV_FULL_MASK, lane, 3u, 8);
  to[5] = (int)__ballot_sync(HV_FULL_MASK, lane % 3 == 0);
  to[6] = __any_sync(HV_FULL_MASK, lane == 31);
  to[7] = __all_sync(HV_FULL_MASK, lane != 31);
  /* The two halves of a warp take different branches. */
  uint32_t half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  if (lane < 16) {
    to[8] = __shfl_sync(half, lane, 2);
  } else {
    to[8] = __shfl_xor_sync(half, 100 + lane, 1);
  }
}

static void shuffles_and_votes(void **) {
  bench b = bench_open();
  int *out = bench_memory<int>(&b, 32 * SHUFFLES), got[32 * SHUFFLES];
  HV_LAUNCH(shuffles_kernel, dim3(1), dim3(32), 0, b.stream, out);
  bench_download(&b, got, out, 32 * SHUFFLES);
  for (int lane = 0; lane < 32; lane++) {
    const int *at = got + lane * SHUFFLES;
    assert_int_equal(at[0], 5);
    assert_int_equal(at[1], lane / 8 * 8 + 3);
    assert_int_equal(at[2], lane ^ 16);
    assert_int_equal(at[3], lane < 3 ? lane : lane - 3);
    assert_int_equal(at[4], lane % 8 > 4 ? lane : lane + 3);
    assert_int_equal((unsigned)at[5], 0x49249249u);
    assert_int_equal(at[6], 1);
    assert_int_equal(at[7], 0);
    assert_int_equal(at[8], lane < 16 ? 2 : 100 + (lane ^ 1));
  }
  bench_close(&b);
}

static __global__ void block_sum_kernel(float *out) {
  hv_shared<float> scratch = hv_shared_at<float>(0);
  float x = (float)threadIdx.x;
  out[2 * threadIdx.x] = hv_block_sum(x, scratch);
  out[2 * threadIdx.x + 1] = hv_block_sum(-x, scratch);
}

static void block_sums(void **) {
  bench b = bench_open();
  enum { THREADS = 160 };
  float *out = bench_memory<float>(&b, 2 * THREADS), got[2 * THREADS];
  HV_LAUNCH(block_sum_kernel, dim3(1), dim3(THREADS), 32 * sizeof(float), b.stream, out);
  bench_download(&b, got, out, 2 * THREADS);
  for (int i = 0; i < THREADS; i++) {
    assert_float_equal(got[2 * i], THREADS * (THREADS - 1) / 2, 0);
    assert_float_equal(got[2 * i + 1], -THREADS * (THREADS - 1) / 2, 0);
  }
  bench_close(&b);
}

static __global__ void conversions_kernel(const float *in, float *out, int count) {
  for (int i = (int)threadIdx.x; i < count; i += (int)blockDim.x) out[i] = hv_to_float(hv_from_float<hv_bf16>(in[i]));
}

static float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

/* Conversions round as on the host (core/tensor/dtype.h). */
static void conversions(void **) {
  enum { COUNT = 4096 };
  static float in[COUNT], got[COUNT];
  uint32_t bits = 12345;
  for (int i = 0; i < COUNT; i++) {
    bits = bits * 1664525u + 1013904223u;
    in[i] = float_of(bits);
  }
  in[0] = INFINITY;
  in[1] = -0.0f;
  in[2] = 3.4e38f;
  in[3] = float_of(0x3f808000u); /* a tie, rounds to even */
  in[4] = float_of(0x3f818000u);
  bench b = bench_open();
  float *from = bench_upload(&b, in, COUNT), *out = bench_memory<float>(&b, COUNT);
  HV_LAUNCH(conversions_kernel, dim3(1), dim3(64), 0, b.stream, (const float *)from, out, (int)COUNT);
  bench_download(&b, got, out, COUNT);
  for (int i = 0; i < COUNT; i++) {
    if (isnan(in[i])) {
      assert_true(isnan(got[i]));
    } else {
      assert_int_equal(bits_of(got[i]), (uint32_t)hv_bf16_from_float(in[i]) << 16);
    }
  }
  bench_close(&b);
}

/* Waits for all but N groups; parts that are not valid are filled with zeros. */
static __global__ void copies_kernel(const hv_bf16 *in, float *out) {
  hv_shared<hv_bf16> x = hv_shared_at<hv_bf16>(0);
  int lane = (int)threadIdx.x;
  for (int stage = 0; stage < 3; stage++) {
    hv_copy_async(x + (stage * 32 + lane) * 8, in + lane * 8, lane != 7 && stage != 2);
    hv_copy_commit();
  }
  hv_copy_wait<2>();
  __syncthreads();
  out[lane] = hv_to_float(x[lane * 8 + 1]);
  hv_copy_wait<0>();
  __syncthreads();
  out[32 + lane] = hv_to_float(x[(32 + (lane ^ 1)) * 8 + 2]);
  out[64 + lane] = hv_to_float(x[(64 + lane) * 8]);
}

static void asynchronous_copies(void **) {
  hv_bf16 in[32 * 8];
  for (int i = 0; i < 32 * 8; i++) in[i] = {hv_bf16_from_float((float)i)};
  float got[96];
  bench b = bench_open();
  hv_bf16 *from = bench_upload(&b, in, 32 * 8);
  float *out = bench_memory<float>(&b, 96);
  HV_LAUNCH(copies_kernel, dim3(1), dim3(32), 3 * 32 * 16, b.stream, (const hv_bf16 *)from, out);
  bench_download(&b, got, out, 96);
  for (int lane = 0; lane < 32; lane++) {
    int other = lane ^ 1;
    assert_float_equal(got[lane], lane == 7 ? 0 : lane * 8 + 1, 0);
    assert_float_equal(got[32 + lane], other == 7 ? 0 : other * 8 + 2, 0);
    assert_float_equal(got[64 + lane], 0, 0);
  }
  bench_close(&b);
}

/* A matrix product by mma of numbers whose sums are not exact. */
static void mma_on_random_numbers(void **) {
  float a[M * K], b[K * N], c[M * N] = {}, got[M * N];
  uint32_t bits = 2024;
  auto next = [&]() {
    bits = bits * 1664525u + 1013904223u;
    return hv_bf16_to_float(hv_bf16_from_float((float)(int32_t)bits * 0x1p-31f));
  };
  for (int i = 0; i < M * K; i++) a[i] = next();
  for (int i = 0; i < K * N; i++) b[i] = next();
  bench card = bench_open();
  float *da = bench_upload(&card, a, M * K), *db = bench_upload(&card, b, K * N), *dc = bench_upload(&card, c, M * N);
  HV_LAUNCH(fragments_kernel, dim3(1), dim3(32), 0, card.stream, da, db, dc);
  bench_download(&card, got, dc, M * N);
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < N; j++) {
      double sum = 0, size = 0;
      for (int k = 0; k < K; k++) {
        sum += (double)a[i * K + k] * b[k * N + j];
        size += fabs((double)a[i * K + k] * b[k * N + j]);
      }
      assert_true(fabs(got[i * N + j] - sum) <= 2e-6 * size);
    }
  }
  bench_close(&card);
}

static __global__ void fast_powers_kernel(const float *in, float *out, int count) {
  for (int i = (int)threadIdx.x; i < count; i += (int)blockDim.x) out[i] = hv_exp2_fast(in[i]);
}

/* By PTX ("Floating Point Instructions: ex2") the error is at most 2 ulp of the correctly rounded power, which is
 * computed in double here. Also special values, which attention meets in masked rows. */
static void fast_powers(void **) {
  enum { COUNT = 2048, SPECIAL = 4 };
  static const float special[SPECIAL][2] = {{-INFINITY, 0}, {-0.0f, 1}, {-127.5f, 0} /* subnormal */, {128, INFINITY}};
  static float in[COUNT + SPECIAL + 1], got[COUNT + SPECIAL + 1];
  for (int i = 0; i < COUNT; i++) in[i] = -80.0f + 0.0731f * (float)i;
  for (int i = 0; i < SPECIAL; i++) in[COUNT + i] = special[i][0];
  in[COUNT + SPECIAL] = NAN;
  bench b = bench_open();
  float *from = bench_upload(&b, in, COUNT + SPECIAL + 1), *out = bench_memory<float>(&b, COUNT + SPECIAL + 1);
  HV_LAUNCH(fast_powers_kernel, dim3(1), dim3(64), 0, b.stream, (const float *)from, out, COUNT + SPECIAL + 1);
  bench_download(&b, got, out, COUNT + SPECIAL + 1);
  for (int i = 0; i < COUNT; i++) {
    float nearest = (float)exp2((double)in[i]);
    assert_true(fabsf(got[i] - nearest) <= 2 * (nextafterf(nearest, INFINITY) - nearest));
  }
  for (int i = 0; i < SPECIAL; i++) assert_true(got[COUNT + i] == special[i][1]);
  assert_true(isnan(got[COUNT + SPECIAL]));
  bench_close(&b);
}

#ifdef __CUDACC__
static void need_card(void) {
  hv_device *device;
  hv_status status = hv_device_module_open(nullptr, &device);
  if (status) end_without_card(status);
  hv_device_close(device);
}
#else
static void need_card(void) {}
#endif

int main(void) {
  need_card();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(mma_and_ldmatrix),    cmocka_unit_test(shuffles_and_votes),
      cmocka_unit_test(block_sums),          cmocka_unit_test(conversions),
      cmocka_unit_test(asynchronous_copies), cmocka_unit_test(mma_on_random_numbers),
      cmocka_unit_test(fast_powers),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
