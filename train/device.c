#include "train/device.h"

#include <string.h>

#include "core/cpu/cpu.h"

hv_status hv_train_open_device(const char *name, int64_t threads, int32_t index, hv_device **out) {
  hv_device_options options = {.index = index, .threads = (int)threads};
  if (!name || strcmp(name, "cpu") == 0) return hv_cpu_device_open(&options, out);
  return hv_device_load(name, &options, out);
}
