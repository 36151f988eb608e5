/* The device under test: the program's first argument, by default "emu". */
#ifndef HV_TESTS_CUDA_UNDER_TEST_H
#define HV_TESTS_CUDA_UNDER_TEST_H

#include "tests/cpu/op_env.h"
#include "tests/device.h"

static const char *under_test = "emu";

/* Call first in main. Ends the program as skipped if a card is asked for and there is none. */
static inline void choose_device(int argc, char **argv) {
  if (argc > 1) under_test = argv[1];
  need_card(under_test);
}

/* Opens the device under test and the CPU device; close_both closes them. `order` is the emulator's seed for the order
 * of blocks and threads. */
static inline void open_both(op_env *env, hv_dtype dtype, const char *order) {
  hv_device *device, *cpu;
  assert_int_equal(setenv("HVLA_EMU_SEED", order, 1), 0);
  assert_ok(hv_device_load(under_test, &(hv_device_options){.index = 0}, &device));
  assert_ok(hv_cpu_device_open(NULL, &cpu));
  op_env_open(env, device, cpu, dtype, 1);
}

static inline void close_both(op_env *env) {
  op_env_close(env);
  hv_device_close(env->device[0]);
  hv_device_close(env->device[1]);
}

#endif
