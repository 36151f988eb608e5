/* The devices that tests take as names on their command lines: cpu, which is linked, and the modules emu, ptx and cuda.
 */
#ifndef HV_TESTS_DEVICE_H
#define HV_TESTS_DEVICE_H

#include "core/cpu/cpu.h"
#include "tests/check.h"

/* Opens the named device. `threads`: threads of the CPU device, 0 for as many as there are processors. */
static inline hv_status open_device(const char *name, int threads, hv_device **out) {
  hv_device_options options = {.threads = threads};
  if (strcmp(name, "cpu") == 0) return hv_cpu_device_open(&options, out);
  return hv_device_load(name, &options, out);
}

/* Ends the program, as skipped or failed (end_without_card), if `name` is cuda and the card cannot be used. */
static inline void need_card(const char *name) {
  hv_device *device;
  if (strcmp(name, "cuda") != 0) return;
  hv_status status = open_device(name, 0, &device);
  if (status) end_without_card(status);
  hv_device_close(device);
}

#endif
