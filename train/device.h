/* Opening the device that a person or a configuration names. */
#ifndef HV_TRAIN_DEVICE_H
#define HV_TRAIN_DEVICE_H

#include "core/tensor/device.h"

/* "cpu" (NULL too), or a device module by its name. `threads` of the CPU, 0: one a processor; `index`: which card. */
HV_NODISCARD hv_status hv_train_open_device(const char *name, int64_t threads, int32_t index, hv_device **out);

#endif
