/* All operations of one device against plain loops and the CPU device in double (op_env.h), one test for each case and
 * dtype: test_ops [DEVICE [REPEATS [MAX_SIZE]]], by default cpu 8 300. Cases other than attention are repeated three
 * times as often. If HVLA_OP is set in the environment, only cases whose name contains it run. The devices cpu-avx512
 * and cpu-baseline are the CPU without its matrix unit, and without AVX-512 as well. */
#include "tests/cpu/op_cases.h"
#include "tests/device.h"

static struct {
  const char *device;
  int repeats;
  int64_t max_size;
} settings = {"cpu", 8, 300};

static hv_status try_device(const char *name, hv_device **out) {
  if (strcmp(name, "cpu-avx512") == 0) return hv_cpu_device_open_with(NULL, HV_CPU_AVX512, out);
  if (strcmp(name, "cpu-baseline") == 0) return hv_cpu_device_open_with(NULL, HV_CPU_BASELINE, out);
  return open_device(name, 0, out);
}

static hv_device *must_device(const char *name) {
  hv_device *device;
  assert_ok(try_device(name, &device));
  return device;
}

/* Shared by the tests of a dtype; opened again after a failed test, which may have left it in any state. */
static struct {
  hv_device *device, *cpu;
  op_env env;
  bool usable;
} shared;

static void close_shared(void) {
  if (!shared.device) return;
  op_env_close(&shared.env);
  hv_device_close(shared.device);
  hv_device_close(shared.cpu);
  shared.device = NULL;
}

static void open_shared(hv_dtype dtype) {
  close_shared();
  shared.device = must_device(settings.device);
  shared.cpu = must_device("cpu");
  op_env_open(&shared.env, shared.device, shared.cpu, dtype, 1);
  shared.env.max_size = settings.max_size;
}

typedef struct op_test {
  const op_case *operation;
  hv_dtype dtype;
  int repeats;
  char name[64];
} op_test;

static void run(void **state) {
  const op_test *test = *state;
  if (!shared.usable || shared.env.dtype != test->dtype) open_shared(test->dtype);
  shared.usable = false;
  op_run_case(&shared.env, test->operation, test->repeats, 1);
  shared.usable = true;
}

enum { MOST_TESTS = 256 };
static op_test tests[MOST_TESTS];
static size_t test_count;

static void add_tests(hv_dtype dtype, const char *filter) {
  for (size_t list = 0; list < sizeof op_case_lists / sizeof op_case_lists[0]; list++) {
    int times = op_case_lists[list] == op_attention_cases ? 1 : 3;
    for (const op_case *c = op_case_lists[list]; c->name; c++) {
      if (filter && !strstr(c->name, filter)) continue;
      assert_true(test_count < MOST_TESTS);
      op_test *test = &tests[test_count++];
      *test = (op_test){.operation = c, .dtype = dtype, .repeats = times * settings.repeats};
      snprintf(test->name, sizeof test->name, "%s, %s", c->name, hv_dtype_name(dtype));
    }
  }
}

static int run_all(void) {
  struct CMUnitTest units[MOST_TESTS];
  for (size_t i = 0; i < test_count; i++) {
    units[i] = (struct CMUnitTest){.name = tests[i].name, .test_func = run, .initial_state = &tests[i]};
  }
  int failed = _cmocka_run_group_tests("operations", units, test_count, NULL, NULL);
  close_shared();
  return failed;
}

/* Whether this machine lacks the card, or the processor instructions, that the device needs. */
static bool lacks_hardware(void) {
  hv_device *device;
  bool card = strcmp(settings.device, "cuda") == 0;
  if (!card && strcmp(settings.device, "cpu-avx512") != 0) return false;
  hv_status status = try_device(settings.device, &device);
  if (!status) {
    hv_device_close(device);
    return false;
  }
  printf("skipped: no %s (%s)\n", card ? "GPU" : "AVX-512", hv_status_message(status));
  hv_status_free(status);
  return true;
}

int main(int argc, char **argv) {
  if (argc > 1) settings.device = argv[1];
  if (lacks_hardware()) return SKIPPED;
  if (argc > 2) settings.repeats = (int)strtol(argv[2], NULL, 10);
  if (argc > 3) settings.max_size = strtol(argv[3], NULL, 10);
  const char *filter = getenv("HVLA_OP");
  if (strncmp(settings.device, "cpu", 3) == 0) add_tests(HV_F64, filter);
  add_tests(HV_F32, filter);
  add_tests(HV_BF16, filter);
  return run_all();
}
