#include "tests/allocations.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

static atomic_long count, own_count;

long allocations_count(void) {
  return atomic_load(&count);
}

long allocations_own_count(void) {
  return atomic_load(&own_count);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

bool allocations_counted(void) {
  return false;
}

#else

/* glibc's own implementations of the functions that are replaced here. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t members, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size);
void *calloc(size_t members, size_t size);
void *realloc(void *memory, size_t size);
void *memalign(size_t alignment, size_t size);
void *aligned_alloc(size_t alignment, size_t size);
int posix_memalign(void **out, size_t alignment, size_t size);

/* Defined by the linker: the program's own code lies between them. */
extern const char __executable_start, etext;

bool allocations_counted(void) {
  return true;
}

static void enter(const void *caller) {
  const char *at = caller;
  atomic_fetch_add(&count, 1);
  if (at >= &__executable_start && at < &etext) atomic_fetch_add(&own_count, 1);
}

void *malloc(size_t size) {
  enter(__builtin_return_address(0));
  return __libc_malloc(size);
}

void *calloc(size_t members, size_t size) {
  enter(__builtin_return_address(0));
  return __libc_calloc(members, size);
}

void *realloc(void *memory, size_t size) {
  enter(__builtin_return_address(0));
  return __libc_realloc(memory, size);
}

void *memalign(size_t alignment, size_t size) {
  enter(__builtin_return_address(0));
  return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
  enter(__builtin_return_address(0));
  return __libc_memalign(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size) {
  enter(__builtin_return_address(0));
  *out = __libc_memalign(alignment, size);
  return *out ? 0 : ENOMEM;
}

#endif
