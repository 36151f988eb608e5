/* Counts the heap allocations of a program that links allocations.c, including those of its libraries: allocations.c
 * replaces malloc and its relatives. */
#ifndef HV_TESTS_ALLOCATIONS_H
#define HV_TESTS_ALLOCATIONS_H

#include <stdbool.h>

/* False if the program is built with a sanitizer, which has its own allocator: then nothing is counted. */
bool allocations_counted(void);

/* Calls so far of malloc, calloc, realloc, posix_memalign, aligned_alloc and memalign, in all threads. */
long allocations_count(void);

/* Those of them that the program's own code called, not a shared library: MPI allocates at any moment while it makes
 * progress. */
long allocations_own_count(void);

#endif
