/* How much memory of this machine a process may still take. */
#ifndef HV_BASE_HOST_MEMORY_H
#define HV_BASE_HOST_MEMORY_H

#include <stddef.h>

/* Bytes that can be allocated without swapping: the least of what /proc/meminfo, the process's control groups (limits
 * of a batch system or a container) and its address space leave; SIZE_MAX if the system does not tell. */
size_t hv_host_memory_available(void);

/* What control groups (version 1 or 2) leave. `root` is put before /proc and /sys: "" except in tests. */
size_t hv_host_groups_available(const char *root);

/* Bytes of address space that the process's limit (RLIMIT_AS, `ulimit -v`) leaves; SIZE_MAX without a limit. */
size_t hv_host_address_space_left(void);

#endif
