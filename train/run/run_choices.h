/* The algorithms that the device chose in a run (hv_device_write_choices), kept in RUN/device-choices-<device>.txt so
 * that a resumed run computes the same bytes. Every rank reads the file, one writes it. */
#ifndef HV_TRAIN_RUN_RUN_CHOICES_H
#define HV_TRAIN_RUN_RUN_CHOICES_H

#include "core/tensor/comm.h"

/* Before anything is computed. A run without the file, or with one of another card or library, is no error; the latter
 * is a warning in the log. */
HV_NODISCARD hv_status hv_run_choices_load(const char *run, hv_device *device);

/* Copies the choices of the first rank's device to all ranks; all call it. */
HV_NODISCARD hv_status hv_run_choices_share(hv_comm *comm, hv_device *device);

/* Does nothing if the device makes no choices. */
HV_NODISCARD hv_status hv_run_choices_save(const char *run, const hv_device *device);

#endif
