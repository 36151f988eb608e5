/* The op table of one device: test_ops [DEVICE [REPEATS [MAX_SIZE]]], by default cpu 8 300; what is cheaper than
 * attention is repeated three times as often. The devices cpu-avx512 and cpu-baseline are the CPU without its matrix
 * unit, and without wider vectors besides. */
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

static void run(hv_dtype dtype) {
  hv_device *device = must_device(settings.device), *cpu = must_device("cpu");
  op_env env;
  op_env_open(&env, device, cpu, dtype, 1);
  env.max_size = settings.max_size;
  op_run_cases(&env, getenv("HVLA_OP"), settings.repeats, 3 * settings.repeats, 1);
  op_env_close(&env);
  hv_device_close(device);
  hv_device_close(cpu);
}

static void fp32(void **state) {
  (void)state;
  run(HV_F32);
}

static void bf16(void **state) {
  (void)state;
  run(HV_BF16);
}

static void fp64(void **state) {
  (void)state;
  if (strncmp(settings.device, "cpu", 3) != 0) skip();
  run(HV_F64);
}

/* A card, or instructions of the processor, that the device needs and this machine lacks. */
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
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(fp64),
      cmocka_unit_test(fp32),
      cmocka_unit_test(bf16),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
