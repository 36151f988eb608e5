/* Counts every allocation of the program that links allocations.c, libraries included. */
#ifndef HV_TESTS_ALLOCATIONS_H
#define HV_TESTS_ALLOCATIONS_H

#include <stdbool.h>

/* False where a sanitizer has its own allocator: then there is nothing to count. */
bool allocations_counted(void);

/* Calls so far of malloc, calloc, realloc, posix_memalign, aligned_alloc and memalign, in all threads. */
long allocations_count(void);

/* Of them, those that the program's own code made, and not a shared library: MPI's progress allocates when it likes. */
long allocations_own_count(void);

#endif
