/* How much memory of this machine a process may still take. */
#ifndef HV_BASE_HOST_MEMORY_H
#define HV_BASE_HOST_MEMORY_H

#include <stddef.h>

/* Bytes that can be had without swapping, by /proc/meminfo, by the limits of the process's control groups (as a batch
 * system or a container sets them) and by its address space; SIZE_MAX where the system does not tell. */
size_t hv_host_memory_available(void);

/* The part of it that control groups leave, of version 1 or 2. `root` stands before /proc and /sys: "" but in tests. */
size_t hv_host_groups_available(const char *root);

/* Bytes of address space that the process's limit (RLIMIT_AS, `ulimit -v`) leaves; SIZE_MAX without a limit. */
size_t hv_host_address_space_left(void);

#endif
