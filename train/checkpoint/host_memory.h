/* How much memory of this machine a process may still take. */
#ifndef HV_TRAIN_CHECKPOINT_HOST_MEMORY_H
#define HV_TRAIN_CHECKPOINT_HOST_MEMORY_H

#include <stddef.h>

/* Bytes that can be had without swapping, by /proc/meminfo and by the limits of the process's control groups (as a
 * batch system or a container sets them); SIZE_MAX where the system does not tell. */
size_t hv_host_memory_available(void);

#endif
