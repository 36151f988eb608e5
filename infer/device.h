/* Opening the device that a person or a program names. */
#ifndef HV_INFER_DEVICE_H
#define HV_INFER_DEVICE_H

#include "core/tensor/device.h"

/* "cpu" (NULL too), or a device module by its name. `threads` of the CPU; 0: as many as there are processors. */
HV_NODISCARD hv_status hv_infer_open_device(const char *name, int threads, hv_device **out);

/* "fp32", "bf16"; NULL or "auto": fp32 on the CPU, bf16 elsewhere. */
HV_NODISCARD hv_status hv_infer_parse_dtype(const char *name, const hv_device *device, hv_dtype *out);

#endif
