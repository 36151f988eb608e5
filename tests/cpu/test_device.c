/* The CPU device apart from the accuracy of its operations: the same bytes with any number of threads, no allocation in
 * a repeated call (malloc and its relatives are replaced and counted), as many threads as asked for, and errors that
 * are reported. */
#include <dirent.h>
#include <omp.h>
#include <pthread.h>
#include <sys/resource.h>

#include "core/base/host_memory.h"
#include "core/cpu/cpu.h"
#include "tests/check.h"
#include "tests/cpu/op_cases.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 0
/* Let an impossible allocation fail, as without the sanitizer, instead of ending the program. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
  return "allocator_may_return_null=1";
}
#else
#define COUNTS_ALLOCATIONS 1

/* Every allocation of the process, by whichever library, goes through the functions below. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static int allocations;

void *malloc(size_t size) {
  __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
  return __libc_malloc(size);
}
void *calloc(size_t count, size_t size) {
  __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
  return __libc_calloc(count, size);
}
void *realloc(void *memory, size_t size) {
  __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
  return __libc_realloc(memory, size);
}
void *aligned_alloc(size_t alignment, size_t size) {
  __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
  return __libc_memalign(alignment, size);
}
int posix_memalign(void **out, size_t alignment, size_t size) {
  __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
  *out = __libc_memalign(alignment, size);
  return *out ? 0 : 12;
}

static int before, repeated;

static void start_counting(void) {
  before = allocations;
}

static void stop_counting(const char *op) {
  if (allocations != before) fail_msg("a repeated %s allocates %d times", op, allocations - before);
  repeated++;
}
#endif

static hv_device *open_cpu(int threads) {
  hv_device *device;
  assert_ok(hv_cpu_device_open(&(hv_device_options){.threads = threads}, &device));
  return device;
}

static void allocates_nothing(void **state) {
  (void)state;
#if COUNTS_ALLOCATIONS
  static const hv_dtype dtypes[] = {HV_F32, HV_BF16, HV_F64};
  void *volatile block = malloc(1);
  assert_true(allocations > 0);
  free(block);
  for (int threads = 1; threads <= 2; threads++) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
      hv_device *device = open_cpu(threads), *other = open_cpu(threads);
      op_env env;
      op_env_open(&env, device, other, dtypes[i], 1);
      env.before_second = start_counting;
      env.after_second = stop_counting;
      op_run_cases(&env, 3, 1);
      op_env_close(&env);
      hv_device_close(device);
      hv_device_close(other);
    }
  }
  assert_true(repeated > 100);
#else
  skip();
#endif
}

static uint64_t digest_of(hv_dtype dtype, int threads) {
  hv_device *device = open_cpu(threads), *other = open_cpu(1);
  op_env env;
  op_env_open(&env, device, other, dtype, 1);
  op_run_cases(&env, 2, 100);
  uint64_t digest = env.digest;
  op_env_close(&env);
  hv_device_close(device);
  hv_device_close(other);
  return digest;
}

static void same_bytes_with_any_number_of_threads(void **state) {
  (void)state;
  static const hv_dtype dtypes[] = {HV_F32, HV_BF16, HV_F64};
  for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
    uint64_t one = digest_of(dtypes[i], 1);
    assert_true(one == digest_of(dtypes[i], 2));
    assert_true(one == digest_of(dtypes[i], 3));
  }
}

static int threads_of_process(void) {
  DIR *tasks = opendir("/proc/self/task");
  assert_non_null(tasks);
  int count = 0;
  for (const struct dirent *entry; (entry = readdir(tasks));) count += entry->d_name[0] != '.';
  closedir(tasks);
  return count;
}

static void multiply(hv_device *device, int64_t rows, int64_t cols) {
  enum { DEPTH = 512 };
  float *operands = calloc((size_t)(rows * DEPTH + cols * DEPTH + rows * cols), sizeof *operands);
  assert_non_null(operands);
  hv_stream *stream;
  assert_ok(hv_stream_open(device, &stream));
  hv_linear_args args = {.x = hv_tensor_make(operands, HV_F32, rows, DEPTH)};
  args.weight = hv_tensor_make(operands + rows * DEPTH, HV_F32, cols, DEPTH);
  args.y = hv_tensor_make(operands + (rows + cols) * DEPTH, HV_F32, rows, cols);
  hv_linear(stream, &args);
  assert_ok(hv_stream_synchronize(stream));
  hv_stream_close(stream);
  free(operands);
}

static void *multiply_alone(void *device) {
  multiply(device, 64, 64);
  return NULL;
}

/* By default the device uses as many threads as OpenMP would. A product of a single tile starts no threads, from
 * whichever thread it is called, although OpenBLAS would start some. */
static void threads_as_asked(void **state) {
  (void)state;
  enum { THREADS = 3 };
  int outside = omp_get_max_threads(), at_first = threads_of_process();
  pthread_t thread;
  hv_device *device;
  omp_set_num_threads(THREADS);
  assert_ok(hv_cpu_device_open_with(NULL, HV_CPU_BASELINE, &device));
  assert_int_equal(omp_get_max_threads(), THREADS);
  multiply_alone(device);
  assert_int_equal(pthread_create(&thread, NULL, multiply_alone, device), 0);
  assert_int_equal(pthread_join(thread, NULL), 0);
  for (int i = 0; i < 1000 && threads_of_process() > at_first; i++) usleep(1000); /* it may stay listed for a while */
  assert_int_equal(threads_of_process(), at_first);
  multiply(device, 512, 4096);
  assert_true(threads_of_process() >= THREADS);
  assert_int_equal(omp_get_max_threads(), THREADS);
  hv_device_close(device);
  omp_set_num_threads(outside);
}

/* HVLA_CPU_INSTRUCTIONS limits the instructions that are used; an unknown value is an error. */
static void environment_limits_instructions(void **state) {
  (void)state;
  hv_device *device, *baseline;
  assert_int_equal(setenv("HVLA_CPU_INSTRUCTIONS", "baseline", 1), 0);
  assert_ok(hv_cpu_device_open(NULL, &device));
  assert_ok(hv_cpu_device_open_with(NULL, HV_CPU_BASELINE, &baseline));
  assert_ptr_equal(device->ops, baseline->ops);
  hv_device_close(device);
  hv_device_close(baseline);
  assert_int_equal(setenv("HVLA_CPU_INSTRUCTIONS", "mmx", 1), 0);
  assert_error(hv_cpu_device_open(NULL, &device), "HVLA_CPU_INSTRUCTIONS", "mmx", "avx512");
  assert_int_equal(unsetenv("HVLA_CPU_INSTRUCTIONS"), 0);
}

enum { TOKENS = 12, HEAD = 8, HEADS = 2, COLS = HEADS * HEAD, OPERANDS = 8 };

/* Computes the gradients of one causal segment in `dtype` with respect to q, k and v before their rotation, rounded to
 * bf16. The inputs are the same numbers in any dtype. */
static void rotated_gradients(hv_stream *stream, hv_dtype dtype, uint16_t gradients[3][TOKENS * COLS]) {
  static float memory[OPERANDS][TOKENS * COLS];
  hv_tensor t[OPERANDS]; /* q, k, v, out, dout, dq, dk, dv */
  for (int i = 0; i < OPERANDS; i++) {
    float values[TOKENS * COLS];
    for (int j = 0; j < TOKENS * COLS; j++) values[j] = (float)((i * 29 + j * 37) % 64 - 32) / 32;
    hv_dtype_convert(dtype, memory[i], HV_F32, values, TOKENS * COLS);
    t[i] = hv_tensor_make(memory[i], dtype, TOKENS, COLS);
  }
  float lse[TOKENS * HEADS], row_dot[TOKENS * HEADS], cos_sin[HEAD] = {0.8f, 0.6f, 0.28f, 1, 0.6f, 0.8f, 0.96f, 0};
  for (int i = 0; i < TOKENS * HEADS; i++) lse[i] = 2;
  int32_t positions[TOKENS] = {0};
  hv_segment segment = {.q_rows = TOKENS, .own_rows = TOKENS};
  hv_key_group group = {.key_rows = TOKENS, .segment_count = 1};
  hv_tensor list = hv_tensor_make(positions, HV_I32, 1, TOKENS);
  hv_attention_backward_args args = {.q = t[0], .k = t[1], .v = t[2], .out = t[3], .dout = t[4]};
  args.lse = hv_tensor_make(lse, HV_F32, TOKENS, HEADS);
  args.row_dot = hv_tensor_make(row_dot, HV_F32, TOKENS, HEADS);
  args.segments = hv_tensor_make(&segment, HV_I32, 1, 6);
  args.key_groups = hv_tensor_make(&group, HV_I32, 1, 4);
  args.cos_sin = hv_tensor_make(cos_sin, HV_F32, 1, HEAD);
  args.q_positions = args.k_positions = list;
  args.num_heads = args.num_kv_heads = HEADS;
  args.head_dim = HEAD;
  args.max_q_rows = args.max_key_rows = args.max_group_rows = TOKENS;
  args.causal = true;
  args.scale = 0.5;
  args.dq = t[5];
  args.dk = t[6];
  args.dv = t[7];
  hv_attention_backward(stream, &args);
  assert_ok(hv_stream_synchronize(stream));
  for (int i = 0; i < 3; i++) hv_dtype_convert(HV_BF16, gradients[i], dtype, memory[5 + i], TOKENS * COLS);
}

/* Gradients in bf16 must equal those in F32 rounded once. If they were rounded before the rotation too, they would
 * differ. */
static void rotated_gradients_are_rounded_once(void **state) {
  (void)state;
  hv_device *device = open_cpu(1);
  hv_stream *stream;
  static uint16_t rounded[3][TOKENS * COLS], stored[3][TOKENS * COLS];
  assert_ok(hv_stream_open(device, &stream));
  rotated_gradients(stream, HV_F32, rounded);
  rotated_gradients(stream, HV_BF16, stored);
  for (int i = 2; i >= 0; i--) assert_memory_equal(rounded[i], stored[i], sizeof rounded[i]);
  hv_stream_close(stream);
  hv_device_close(device);
}

static void wrong_operands_surface(void **state) {
  (void)state;
  hv_device *device = open_cpu(1);
  hv_stream *stream;
  assert_ok(hv_stream_open(device, &stream));
  float x[6] = {0}, y[4] = {9, 9, 9, 9};
  hv_linear_args args = {.x = hv_tensor_make(x, HV_F32, 2, 3), .weight = hv_tensor_make(x, HV_F32, 2, 2)};
  args.y = hv_tensor_make(y, HV_F32, 2, 2);
  hv_linear(stream, &args);
  hv_fill(stream, &(hv_fill_args){.dst = {.dtype = HV_F32, .rows = 1, .cols = 1, .row_stride = 1}});
  assert_error(hv_stream_synchronize(stream), "linear", "weight", "[2, 2]", "[2, 3]");
  assert_true(y[0] == 9);
  assert_ok(hv_stream_synchronize(stream));
  hv_stream_close(stream);
  hv_device_close(device);
}

static void impossible_memory_is_refused(void **state) {
  (void)state;
  hv_device *device = open_cpu(1);
  void *memory;
  assert_error(hv_device_allocate(device, HV_MEMORY_WORKSPACE, SIZE_MAX / 4, "the weights", &memory), "out of memory",
               "the weights", "held by this process", "total");
  assert_error(hv_device_allocate(device, HV_MEMORY_WORKSPACE, SIZE_MAX, "the weights", &memory), "out of memory",
               "the weights");
  hv_device_close(device);
  assert_error(hv_cpu_device_open(&(hv_device_options){.threads = -1}, &device), "-1 threads");
}

/* With too little address space, OpenBLAS would retry the allocation of its buffer for ever. */
static void a_small_address_space_is_told(void **state) {
  (void)state;
  struct rlimit old, tight;
  hv_device *device;
  hv_device_options options = {.threads = 4};
  assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
  tight = (struct rlimit){.rlim_cur = (rlim_t)1 << 46, .rlim_max = old.rlim_max};
  assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
  tight.rlim_cur -= hv_host_address_space_left();
  tight.rlim_cur += (rlim_t)256 << 20;
  assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
  hv_status status = hv_cpu_device_open(&options, &device);
  assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
  assert_error(status, "4 threads", "512 MB of address space", "ulimit -v");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(threads_as_asked), /* first, because the others start threads */
      cmocka_unit_test(allocates_nothing),
      cmocka_unit_test(same_bytes_with_any_number_of_threads),
      cmocka_unit_test(environment_limits_instructions),
      cmocka_unit_test(rotated_gradients_are_rounded_once),
      cmocka_unit_test(wrong_operands_surface),
      cmocka_unit_test(impossible_memory_is_refused),
      cmocka_unit_test(a_small_address_space_is_told),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
