/* Faults planted in kernels and in the use of streams: the emulator must report each one, or make it show in the
 * results, and must not complain about the same code without the fault. */
#include <sys/wait.h>
#include <unistd.h>

#include "tests/cuda/bench.h"

enum { THREADS = 128 };

/* The stream's next synchronisation must fail with a message that contains `text`. */
static void expect_fault(bench *b, const char *text) {
  hv_status status = hv_stream_synchronize(b->stream);
  if (!status) fail_msg("the fault was not found: \"%s\" was expected", text);
  if (!strstr(hv_status_message(status), text)) {
    fail_msg("\"%s\" was expected, the message is: %s", text, hv_status_message(status));
  }
  hv_status_free(status);
}

/* Every thread reads what its right neighbour wrote. */
static __global__ void neighbour_kernel(float *out, bool barrier) {
  hv_shared<float> x = hv_shared_at<float>(0);
  int i = (int)threadIdx.x;
  x[i] = (float)i;
  if (barrier) __syncthreads();
  out[i] = x[(i + 1) % THREADS];
}

static void missing_barrier(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, THREADS);
  HV_LAUNCH(neighbour_kernel, dim3(1), dim3(THREADS), THREADS * sizeof(float), b.stream, out, true);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(neighbour_kernel, dim3(1), dim3(THREADS), THREADS * sizeof(float), b.stream, out, false);
  hv_status status = hv_stream_synchronize(b.stream);
  assert_non_null(status);
  const char *message = hv_status_message(status);
  assert_non_null(strstr(message, "neighbour_kernel"));
  assert_true(strstr(message, "with no barrier between") || strstr(message, "no thread has written"));
  hv_status_free(status);
  bench_close(&b);
}

/* A tile is used twice: the second write must wait until all threads have read. */
static __global__ void reuse_kernel(float *out, bool barrier) {
  hv_shared<float> x = hv_shared_at<float>(0);
  int i = (int)threadIdx.x;
  float sum = 0;
  for (int round = 0; round < 2; round++) {
    x[i] = (float)(i + round);
    __syncthreads();
    sum += x[THREADS - 1 - i];
    if (barrier) __syncthreads();
  }
  out[i] = sum;
}

static void race_on_a_reused_tile(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, THREADS);
  HV_LAUNCH(reuse_kernel, dim3(4), dim3(THREADS), THREADS * sizeof(float), b.stream, out, true);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(reuse_kernel, dim3(4), dim3(THREADS), THREADS * sizeof(float), b.stream, out, false);
  expect_fault(&b, "with no barrier between");
  bench_close(&b);
}

static __global__ void same_place_kernel(bool one) {
  hv_shared<int> x = hv_shared_at<int>(0);
  if (!one || threadIdx.x == 5) x[0] = (int)threadIdx.x;
}

static void race_of_two_writers(void **) {
  bench b = bench_open();
  HV_LAUNCH(same_place_kernel, dim3(1), dim3(THREADS), sizeof(int), b.stream, true);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(same_place_kernel, dim3(1), dim3(THREADS), sizeof(int), b.stream, false);
  expect_fault(&b, "wrote, with no barrier between");
  bench_close(&b);
}

/* A barrier of one warp orders the accesses of that warp, and of no other. */
static __global__ void warp_barrier_kernel(float *out, int distance) {
  hv_shared<float> x = hv_shared_at<float>(0);
  int i = (int)threadIdx.x;
  x[i] = (float)i;
  __syncwarp();
  out[i] = x[i ^ distance];
}

static void barrier_of_a_warp(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, THREADS);
  HV_LAUNCH(warp_barrier_kernel, dim3(1), dim3(THREADS), THREADS * sizeof(float), b.stream, out, 1);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(warp_barrier_kernel, dim3(1), dim3(THREADS), THREADS * sizeof(float), b.stream, out, 32);
  hv_status status = hv_stream_synchronize(b.stream);
  assert_non_null(status);
  hv_status_free(status);
  bench_close(&b);
}

/* A tile fetched asynchronously: each thread fetches eight elements and reads its neighbour's. */
static __global__ void fetch_kernel(const hv_bf16 *in, float *out, bool wait, bool barrier) {
  hv_shared<hv_bf16> x = hv_shared_at<hv_bf16>(0);
  int i = (int)threadIdx.x;
  hv_copy_async(x + 8 * i, in + 8 * i, true);
  hv_copy_commit();
  if (wait) hv_copy_wait<0>();
  if (barrier) __syncthreads();
  out[i] = hv_to_float(x[(8 * i + 8) % (8 * THREADS)]);
}

static void missing_wait_for_a_copy(void **) {
  bench b = bench_open();
  hv_bf16 values[8 * THREADS];
  for (int i = 0; i < 8 * THREADS; i++) values[i] = hv_round_bf16((float)i);
  hv_bf16 *in = bench_upload(&b, values, 8 * THREADS);
  float *out = bench_memory<float>(&b, THREADS), got[THREADS];
  size_t shared = 8 * THREADS * sizeof(hv_bf16);
  HV_LAUNCH(fetch_kernel, dim3(1), dim3(THREADS), shared, b.stream, in, out, true, true);
  bench_download(&b, got, out, THREADS);
  for (int i = 0; i < THREADS; i++) assert_float_equal(got[i], hv_to_float(values[(8 * i + 8) % (8 * THREADS)]), 0);
  HV_LAUNCH(fetch_kernel, dim3(1), dim3(THREADS), shared, b.stream, in, out, false, true);
  expect_fault(&b, "yet to reach");
  HV_LAUNCH(fetch_kernel, dim3(1), dim3(THREADS), shared, b.stream, in, out, true, false);
  hv_status status = hv_stream_synchronize(b.stream);
  assert_non_null(status);
  hv_status_free(status);
  bench_close(&b);
}

/* Two copies are under way: waiting for all but one group leaves the second one unfinished. */
static __global__ void stages_kernel(const hv_bf16 *in, float *out, int stage) {
  hv_shared<hv_bf16> x = hv_shared_at<hv_bf16>(0);
  for (int i = 0; i < 2; i++) {
    hv_copy_async(x + 8 * i, in + 8 * i, true);
    hv_copy_commit();
  }
  hv_copy_wait<1>();
  out[0] = hv_to_float(x[8 * stage]);
}

static void wait_for_the_wrong_copy(void **) {
  bench b = bench_open();
  hv_bf16 values[16] = {};
  hv_bf16 *in = bench_upload(&b, values, 16);
  float *out = bench_memory<float>(&b, 1);
  HV_LAUNCH(stages_kernel, dim3(1), dim3(1), 32, b.stream, in, out, 0);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(stages_kernel, dim3(1), dim3(1), 32, b.stream, in, out, 1);
  expect_fault(&b, "yet to reach");
  bench_close(&b);
}

static __global__ void partial_barrier_kernel(int limit) {
  if ((int)threadIdx.x >= limit) return;
  __syncthreads();
}

static void barrier_that_some_skip(void **) {
  bench b = bench_open();
  HV_LAUNCH(partial_barrier_kernel, dim3(1), dim3(THREADS), 0, b.stream, THREADS);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(partial_barrier_kernel, dim3(1), dim3(THREADS), 0, b.stream, THREADS - 3);
  expect_fault(&b, "barrier that only 125 of 128 threads reach");
  bench_close(&b);
}

static __global__ void partial_shuffle_kernel(float *out, int lanes) {
  if ((int)threadIdx.x < lanes) out[threadIdx.x] = hv_warp_sum(1.0f);
}

static void shuffle_that_some_lanes_skip(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, 32);
  HV_LAUNCH(partial_shuffle_kernel, dim3(1), dim3(32), 0, b.stream, out, 32);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(partial_shuffle_kernel, dim3(1), dim3(32), 0, b.stream, out, 31);
  expect_fault(&b, "not all lanes of its mask reach");
  bench_close(&b);
}

static __global__ void shared_index_kernel(float *out, int index) {
  hv_shared<float> x = hv_shared_at<float>(0);
  x[(int)threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = x[index];
}

static void access_outside_shared_memory(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, 1);
  HV_LAUNCH(shared_index_kernel, dim3(1), dim3(32), 32 * sizeof(float), b.stream, out, 31);
  assert_ok(hv_stream_synchronize(b.stream));
  HV_LAUNCH(shared_index_kernel, dim3(1), dim3(32), 32 * sizeof(float), b.stream, out, 32);
  expect_fault(&b, "outside its 128 bytes");
  bench_close(&b);
}

static __global__ void some_written_kernel(float *out, int written) {
  hv_shared<float> x = hv_shared_at<float>(0);
  if ((int)threadIdx.x < written) x[(int)threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = x[(int)threadIdx.x];
}

static void uninitialised_shared_memory(void **) {
  bench b = bench_open();
  float *out = bench_memory<float>(&b, 32);
  HV_LAUNCH(some_written_kernel, dim3(1), dim3(32), 32 * sizeof(float), b.stream, out, 32);
  assert_ok(hv_stream_synchronize(b.stream));
  /* What an earlier block or launch left in shared memory does not count as written. */
  HV_LAUNCH(some_written_kernel, dim3(1), dim3(32), 32 * sizeof(float), b.stream, out, 31);
  expect_fault(&b, "which no thread has written");
  bench_close(&b);
}

static __global__ void copy_kernel(const float *in, float *out, int count) {
  int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) out[i] = in[i];
}

static void uninitialised_device_memory(void **) {
  bench b = bench_open();
  float *in = bench_memory<float>(&b, 64), *out = bench_memory<float>(&b, 64), got[64];
  HV_LAUNCH(copy_kernel, dim3(2), dim3(32), 0, b.stream, in, out, 64);
  bench_download(&b, got, out, 64);
  for (int i = 0; i < 64; i++) assert_true(isnan(got[i]));
  bench_close(&b);
}

/* A write one element past an allocation. AddressSanitizer ends the process then, so it happens in a child process. */
static void access_outside_device_memory(void **) {
  fflush(NULL);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    bench b = bench_open_threads(1); /* one thread, because OpenMP's do not survive a fork */
    const float zeros[65] = {};
    float *in = bench_upload(&b, zeros, 65), *out = bench_memory<float>(&b, 64);
    HV_LAUNCH(copy_kernel, dim3(3), dim3(32), 0, b.stream, (const float *)in, out, 65);
    hv_status status = hv_stream_synchronize(b.stream);
    _exit(status && strstr(hv_status_message(status), "written outside an allocation") ? 42 : 0);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
#ifdef __SANITIZE_ADDRESS__
  assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
#else
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 42);
#endif
}

/* One stream writes what another reads. Without the event, the emulator runs the reader first, which then reads NaN. */
static void forgotten_event(void **) {
  for (int with_event = 0; with_event < 2; with_event++) {
    bench b = bench_open();
    hv_stream *producer;
    hv_event *event;
    assert_ok(hv_stream_open(b.device, &producer));
    assert_ok(hv_event_open(b.device, &event));
    float values[32], got[32];
    for (int i = 0; i < 32; i++) values[i] = (float)i;
    float *between = bench_memory<float>(&b, 32), *out = bench_memory<float>(&b, 32);
    hv_upload(producer, between, values, sizeof values);
    hv_event_record(producer, event);
    if (with_event) hv_event_wait(b.stream, event);
    HV_LAUNCH(copy_kernel, dim3(1), dim3(32), 0, b.stream, (const float *)between, out, 32);
    bench_download(&b, got, out, 32);
    for (int i = 0; i < 32; i++) {
      if (with_event) {
        assert_float_equal(got[i], values[i], 0);
      } else {
        assert_true(isnan(got[i]));
      }
    }
    assert_ok(hv_stream_synchronize(producer));
    hv_event_close(b.device, event);
    hv_stream_close(producer);
    bench_close(&b);
  }
}

/* Two streams without any order between them use the same memory. If the emulator runs them one after the other,
 * nothing shows; if it interleaves them, results are wrong. */
static void memory_shared_by_streams(void **) {
  for (int in_turns = 0; in_turns < 2; in_turns++) {
    assert_int_equal(setenv("HVLA_EMU_INTERLEAVE", in_turns ? "1" : "0", 1), 0);
    bench b = bench_open();
    hv_stream *streams[2] = {b.stream, nullptr};
    assert_ok(hv_stream_open(b.device, &streams[1]));
    float values[2][32], got[2][32];
    const float *in[2];
    float *out[2], *between = bench_memory<float>(&b, 32);
    for (int s = 0; s < 2; s++) {
      for (int i = 0; i < 32; i++) values[s][i] = (float)(s + 1);
      in[s] = bench_upload(&b, values[s], 32);
      out[s] = bench_memory<float>(&b, 32);
    }
    bool mixed = false;
    for (int round = 0; round < 16; round++) {
      for (int s = 0; s < 2; s++) {
        HV_LAUNCH(copy_kernel, dim3(1), dim3(32), 0, streams[s], in[s], between, 32);
        HV_LAUNCH(copy_kernel, dim3(1), dim3(32), 0, streams[s], (const float *)between, out[s], 32);
        hv_download(streams[s], got[s], out[s], sizeof got[s]);
      }
      for (int s = 0; s < 2; s++) assert_ok(hv_stream_synchronize(streams[s]));
      for (int s = 0; s < 2; s++) mixed |= got[s][0] != values[s][0];
    }
    assert_int_equal(mixed, in_turns);
    hv_stream_close(streams[1]);
    bench_close(&b);
  }
  assert_int_equal(unsetenv("HVLA_EMU_INTERLEAVE"), 0);
}

/* The host overwrites memory before its upload has run: the stream uploads the new values. */
static void host_memory_reused_too_early(void **) {
  bench b = bench_open();
  float value = 1, got;
  float *memory = bench_memory<float>(&b, 1);
  hv_upload(b.stream, memory, &value, sizeof value);
  value = 2;
  bench_download(&b, &got, memory, 1);
  assert_float_equal(got, 2, 0);
  bench_close(&b);
}

/* All blocks write the same element of device memory. The last one wins; which one that is depends on the seed. */
static __global__ void last_block_kernel(int *out) {
  if (threadIdx.x == 0) *out = (int)blockIdx.x;
}

static void order_of_blocks_depends_on_the_seed(void **) {
  int first = -1;
  bool differs = false;
  for (int i = 0; i < 8; i++) {
    bench b = bench_open();
    int *out = bench_memory<int>(&b, 1), got;
    for (int launch = 0; launch <= i; launch++) HV_LAUNCH(last_block_kernel, dim3(64), dim3(32), 0, b.stream, out);
    bench_download(&b, &got, out, 1);
    if (first < 0) first = got;
    differs |= got != first;
    bench_close(&b);
  }
  assert_true(differs);
}

/* Adds values that are fetched possibly before earlier launches are over (`ahead`) to the results of those launches. */
enum early_fault { NO_FAULT, NEVER_WAITS, STORES_BEFORE, LOADS_BEFORE };
static __global__ void early_kernel(const hv_bf16 *ahead, const float *in, float *out, early_fault fault) {
  hv_shared<hv_bf16> x = hv_shared_at<hv_bf16>(0);
  int i = (int)threadIdx.x;
  hv_let_next_begin();
  hv_copy_async(x + 8 * i, ahead + 8 * i, true);
  hv_copy_commit();
  float before = fault == LOADS_BEFORE ? hv_load<1>(in + i).at[0] : 0;
  if (fault == STORES_BEFORE) hv_store(out + i, hv_vec<float, 1>{{before}});
  if (fault != NEVER_WAITS) hv_wait_for_previous();
  hv_copy_wait<0>();
  out[i] = in[i] + hv_to_float(x[8 * i]);
}

static __global__ void fill_kernel(hv_bf16 *to) {
  to[threadIdx.x] = hv_round_bf16(1.0f);
}

typedef struct early_case {
  bench b;
  hv_bf16 *weights;
  float *in, *between, *out;
} early_case;

/* Records a copy followed by early_kernel, if `filled` after a launch that writes the weights, and replays it twice. */
static void replay_early(early_case *c, bool filled, hv_ahead ahead, early_fault fault) {
  hv_recording *recording;
  assert_ok(hv_stream_record_begin(c->b.stream));
  if (filled) HV_LAUNCH(fill_kernel, dim3(1), dim3(8 * 32), 0, c->b.stream, c->weights);
  HV_LAUNCH(copy_kernel, dim3(1), dim3(32), 0, c->b.stream, (const float *)c->in, c->between, 32);
  HV_LAUNCH_EARLY(early_kernel, ahead, dim3(1), dim3(32), 8 * 32 * sizeof(hv_bf16), c->b.stream,
                  (const hv_bf16 *)c->weights, (const float *)c->between, c->out, fault);
  assert_ok(hv_stream_record_end(c->b.stream, &recording));
  for (int i = 0; i < 2; i++) hv_stream_replay(c->b.stream, recording);
  hv_status status = hv_stream_synchronize(c->b.stream);
  hv_recording_close(c->b.device, recording);
  hv_stream_fail(c->b.stream, status);
}

static void launches_that_begin_early(void **) {
  early_case c = {};
  c.b = bench_open();
  hv_bf16 weights[8 * 32];
  float values[32], got[32];
  for (int i = 0; i < 8 * 32; i++) weights[i] = hv_round_bf16((float)(i % 16));
  for (int i = 0; i < 32; i++) values[i] = (float)i;
  c.weights = bench_upload(&c.b, weights, 8 * 32);
  c.in = bench_upload(&c.b, values, 32);
  c.between = bench_memory<float>(&c.b, 32);
  c.out = bench_memory<float>(&c.b, 32);
  hv_ahead all = {c.weights, sizeof weights}, some = {c.weights, sizeof weights - 2};
  replay_early(&c, false, all, NO_FAULT);
  bench_download(&c.b, got, c.out, 32);
  for (int i = 0; i < 32; i++) assert_float_equal(got[i], values[i] + (float)(8 * i % 16), 0);
  replay_early(&c, false, some, NO_FAULT);
  expect_fault(&c.b, "before it has waited");
  replay_early(&c, false, hv_ahead{}, NO_FAULT);
  expect_fault(&c.b, "before it has waited");
  replay_early(&c, false, all, LOADS_BEFORE);
  expect_fault(&c.b, "before it has waited");
  replay_early(&c, false, all, STORES_BEFORE);
  expect_fault(&c.b, "before it has waited");
  replay_early(&c, false, all, NEVER_WAITS);
  expect_fault(&c.b, "returns without having waited");
  replay_early(&c, true, all, NO_FAULT);
  expect_fault(&c.b, "what was recorded before it writes there");
  bench_close(&c.b);
}

/* After anything but a launch, and outside of a recording, a launch begins only when everything before it is over:
 * loading before waiting is then no fault. */
static void launches_that_do_not_begin_early(void **) {
  bench b = bench_open();
  hv_bf16 weights[8 * 32] = {};
  float values[32] = {};
  hv_bf16 *ahead = bench_upload(&b, weights, 8 * 32);
  float *in = bench_upload(&b, values, 32), *out = bench_memory<float>(&b, 32);
  hv_ahead nothing = {};
  size_t shared = sizeof weights;
  void *host;
  assert_ok(hv_device_allocate_host(b.device, sizeof values, "values", &host));
  memcpy(host, values, sizeof values);
  for (int i = 0; i < 2; i++) {
    HV_LAUNCH_EARLY(early_kernel, nothing, dim3(1), dim3(32), shared, b.stream, (const hv_bf16 *)ahead,
                    (const float *)in, out, LOADS_BEFORE);
  }
  hv_recording *recording;
  assert_ok(hv_stream_record_begin(b.stream));
  for (int i = 0; i < 2; i++) {
    HV_LAUNCH_EARLY(early_kernel, nothing, dim3(1), dim3(32), shared, b.stream, (const hv_bf16 *)ahead,
                    (const float *)in, out, LOADS_BEFORE);
    hv_upload(b.stream, in, host, sizeof values);
  }
  assert_ok(hv_stream_record_end(b.stream, &recording));
  hv_stream_replay(b.stream, recording);
  assert_ok(hv_stream_synchronize(b.stream));
  hv_recording_close(b.device, recording);
  hv_device_release_host(b.device, host);
  bench_close(&b);
}

static void launches_that_no_card_takes(void **) {
  bench b = bench_open();
  HV_LAUNCH(same_place_kernel, dim3(1), dim3(1056), 4, b.stream, true);
  expect_fault(&b, "a block of 1056");
  HV_LAUNCH(same_place_kernel, dim3(1), dim3(32), HV_SHARED_LIMIT + 1, b.stream, true);
  expect_fault(&b, "bytes of shared memory");
  HV_LAUNCH(same_place_kernel, dim3(1, 65536), dim3(32), 4, b.stream, true);
  expect_fault(&b, "a grid of");
  HV_LAUNCH(same_place_kernel, dim3(0), dim3(32), 4, b.stream, false);
  assert_ok(hv_stream_synchronize(b.stream));
  bench_close(&b);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(missing_barrier),
      cmocka_unit_test(race_on_a_reused_tile),
      cmocka_unit_test(race_of_two_writers),
      cmocka_unit_test(barrier_of_a_warp),
      cmocka_unit_test(missing_wait_for_a_copy),
      cmocka_unit_test(wait_for_the_wrong_copy),
      cmocka_unit_test(barrier_that_some_skip),
      cmocka_unit_test(shuffle_that_some_lanes_skip),
      cmocka_unit_test(access_outside_shared_memory),
      cmocka_unit_test(uninitialised_shared_memory),
      cmocka_unit_test(uninitialised_device_memory),
      cmocka_unit_test(access_outside_device_memory),
      cmocka_unit_test(forgotten_event),
      cmocka_unit_test(memory_shared_by_streams),
      cmocka_unit_test(host_memory_reused_too_early),
      cmocka_unit_test(order_of_blocks_depends_on_the_seed),
      cmocka_unit_test(launches_that_begin_early),
      cmocka_unit_test(launches_that_do_not_begin_early),
      cmocka_unit_test(launches_that_no_card_takes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
