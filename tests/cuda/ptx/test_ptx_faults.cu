/* Faults planted in kernels and around them: the PTX machine must report each one, and must not complain about the same
 * code without the fault. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/cuda/bench.h"

enum { THREADS = 64 };

/* The stream's next synchronisation must fail, with a message that names the kernel and the fault. */
static void expect_fault(bench *b, const char *kernel, const char *text) {
  hv_status status = hv_stream_synchronize(b->stream);
  if (!status) fail_msg("the fault was not found: \"%s\" was expected", text);
  const char *message = hv_status_message(status);
  if (!strstr(message, text) || !strstr(message, kernel)) {
    fail_msg("\"%s\" of %s was expected, the message is: %s", text, kernel, message);
  }
  hv_status_free(status);
  assert_ok(hv_stream_synchronize(b->stream)); /* it is told once */
}

static __global__ void device_memory_kernel(float *out, int from) {
  out[(int)threadIdx.x + from] = 1;
}

static void outside_of_device_memory(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, THREADS);
  HV_LAUNCH(device_memory_kernel, dim3(1), dim3(THREADS), 0, b.stream, out, 0);
  assert_ok(hv_stream_synchronize(b.stream));
  for (int wrong = -1; wrong <= 1; wrong += 2) {
    HV_LAUNCH(device_memory_kernel, dim3(1), dim3(THREADS), 0, b.stream, out, wrong);
    expect_fault(&b, "device_memory_kernel", "not in allocated device memory");
  }
  static float of_the_host[THREADS];
  HV_LAUNCH(device_memory_kernel, dim3(1), dim3(THREADS), 0, b.stream, of_the_host, 0);
  expect_fault(&b, "device_memory_kernel", "not in allocated device memory");
  bench_close(&b);
}

static __global__ void vector_kernel(float *out, int from) {
  hv_store<4>(out + 4 * threadIdx.x + from, hv_vec<float, 4>{{1, 2, 3, 4}});
}

static void misaligned(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, 4 * THREADS + 4);
  HV_LAUNCH(vector_kernel, dim3(1), dim3(THREADS), 0, b.stream, out, 4);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(vector_kernel, dim3(1), dim3(THREADS), 0, b.stream, out, 2);
  expect_fault(&b, "vector_kernel", "a misaligned address of device memory");
  bench_close(&b);
}

static __global__ void shared_kernel(float *out) {
  hv_shared<float> x = hv_shared_at<float>(0);
  x[threadIdx.x] = (float)threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = x[THREADS - 1 - threadIdx.x];
}

static void outside_of_shared_memory(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, THREADS);
  HV_LAUNCH(shared_kernel, dim3(1), dim3(THREADS), THREADS * sizeof(float), b.stream, out);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(shared_kernel, dim3(1), dim3(THREADS), (THREADS - 1) * sizeof(float), b.stream, out);
  expect_fault(&b, "shared_kernel", "outside of shared memory");
  bench_close(&b);
}

/* Threads copy a row each and read it. */
static __global__ void copy_kernel(const hv_bf16 *from, uint16_t *out, bool wait) {
  hv_shared<hv_bf16> row = hv_shared_at<hv_bf16>(16 * threadIdx.x);
  hv_copy_async(row, from + 8 * threadIdx.x, true);
  hv_copy_commit();
  if (wait) hv_copy_wait<0>();
  out[threadIdx.x] = row[3].bits;
  hv_copy_wait<0>();
}

static void missing_wait_for_a_copy(void **) {
  bench b = bench_open();
  hv_bf16 *from = bench_memory<hv_bf16>(&b, 8 * THREADS);
  uint16_t *out = bench_memory<uint16_t>(&b, THREADS), numbers[8 * THREADS], found[THREADS];
  for (int i = 0; i < 8 * THREADS; i++) numbers[i] = (uint16_t)i;
  hv_upload(b.stream, from, numbers, sizeof numbers);
  for (int wait = 0; wait < 2; wait++) {
    HV_LAUNCH(copy_kernel, dim3(1), dim3(THREADS), 16 * THREADS, b.stream, from, out, wait != 0);
    hv_download(b.stream, found, out, sizeof found);
    assert_ok(hv_stream_synchronize(b.stream));
    for (int i = 0; i < THREADS; i++) assert_int_equal(found[i], wait ? 8 * i + 3 : 0xffff);
  }
  bench_close(&b);
}

static __global__ void lost_copy_kernel(const hv_bf16 *from) {
  hv_copy_async(hv_shared_at<hv_bf16>(16 * threadIdx.x), from, true);
}

static void copies_that_nobody_waits_for(void **) {
  bench b = bench_open();
  hv_bf16 *from = bench_memory<hv_bf16>(&b, 8);
  HV_LAUNCH(lost_copy_kernel, dim3(1), dim3(THREADS), 16 * THREADS, b.stream, from);
  expect_fault(&b, "lost_copy_kernel", "before a copy to shared memory landed");
  bench_close(&b);
}

static __global__ void lanes_kernel(float *out, bool apart) {
  float x = (float)threadIdx.x;
  if (apart && threadIdx.x % 2) {
    x += 1;
    x = __shfl_xor_sync(HV_FULL_MASK, x, 2);
    x *= 3;
  } else {
    x = __shfl_xor_sync(HV_FULL_MASK, x, 1);
  }
  out[threadIdx.x] = x;
}

static void lanes_apart(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, THREADS);
  HV_LAUNCH(lanes_kernel, dim3(1), dim3(THREADS), 0, b.stream, out, false);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(lanes_kernel, dim3(1), dim3(THREADS), 0, b.stream, out, true);
  expect_fault(&b, "lanes_kernel", "lanes meet at different instructions");
  bench_close(&b);
}

/* The first warp waits for the block, the second for lanes that have gone to the barrier. */
static __global__ void barrier_kernel(float *out, bool apart) {
  float x = (float)threadIdx.x;
  if (!apart || threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = __shfl_xor_sync(HV_FULL_MASK, x, 1);
}

static void barrier_that_not_all_reach(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, THREADS);
  HV_LAUNCH(barrier_kernel, dim3(1), dim3(THREADS), 0, b.stream, out, false);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(barrier_kernel, dim3(1), dim3(THREADS), 0, b.stream, out, true);
  expect_fault(&b, "barrier_kernel", "wait for each other");
  bench_close(&b);
}

static void launches_that_are_too_large(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, THREADS);
  HV_LAUNCH(shared_kernel, dim3(1), dim3(2048), 0, b.stream, out);
  hv_status status = hv_stream_synchronize(b.stream);
  assert_non_null(status);
  assert_non_null(strstr(hv_status_message(status), "cannot launch shared_kernel"));
  hv_status_free(status);
  bench_close(&b);
}

static void touched_by_the_host(void **) {
  bench b = bench_open();
  volatile float *out = bench_memory<float>(&b, THREADS);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    (void)signal(SIGSEGV, SIG_DFL); /* not cmocka's */
    out[0] = 1;
    _exit(0);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFSIGNALED(status));
  assert_int_equal(WTERMSIG(status), SIGSEGV);
  bench_close(&b);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(outside_of_device_memory),     cmocka_unit_test(misaligned),
      cmocka_unit_test(outside_of_shared_memory),     cmocka_unit_test(missing_wait_for_a_copy),
      cmocka_unit_test(copies_that_nobody_waits_for), cmocka_unit_test(lanes_apart),
      cmocka_unit_test(barrier_that_not_all_reach),   cmocka_unit_test(launches_that_are_too_large),
      cmocka_unit_test(touched_by_the_host),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
