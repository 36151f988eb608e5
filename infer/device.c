#include "infer/device.h"

#include <string.h>

#include "core/cpu/cpu.h"

hv_status hv_infer_open_device(const char *name, int threads, hv_device **out) {
  enum { MOST_THREADS = 4096 };
  if (threads < 0 || threads > MOST_THREADS) {
    return hv_error(HV_ERR_INPUT, "threads is %d; 0 (as many as there are processors) to %d are possible", threads,
                    MOST_THREADS);
  }
  hv_device_options options = {.threads = threads};
  if (!name || strcmp(name, "cpu") == 0) return hv_cpu_device_open(&options, out);
  return hv_device_load(name, &options, out);
}

hv_status hv_infer_parse_dtype(const char *name, const hv_device *device, hv_dtype *out) {
  if (!name || strcmp(name, "auto") == 0) {
    *out = strcmp(device->name, "cpu") == 0 ? HV_F32 : HV_BF16;
    return HV_OK;
  }
  if (strcmp(name, "fp32") == 0) {
    *out = HV_F32;
  } else if (strcmp(name, "bf16") == 0) {
    *out = HV_BF16;
  } else {
    return hv_error(HV_ERR_INPUT, "dtype %s: fp32 and bf16 are possible; %s", name, HV_FP16_IS);
  }
  return HV_OK;
}
