/* A library for LD_PRELOAD that lets one allocation of a program fail, to see how the program ends. It replaces malloc
 * and its relatives, and counts those calls that the program's own code makes: what libraries do without memory is
 * theirs.
 *
 *   FAIL_ALLOCATION_AT     number of the call that fails, from 0; none if absent
 *   FAIL_ALLOCATION_COUNT  a file that receives the number of calls when the program exits */
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* glibc's own implementations of the functions that are replaced here. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t members, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

/* Where the program's code lies; empty until it is known, while the loader starts libraries. */
static const char *code_start, *code_end;
static long failing = -1;
static atomic_long count;

/* Called for the program first. */
static int find_code(struct dl_phdr_info *program, size_t size, void *unused) {
  (void)size, (void)unused;
  for (int i = 0; i < program->dlpi_phnum; i++) {
    const ElfW(Phdr) *segment = &program->dlpi_phdr[i];
    if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X)) continue;
    const char *start = (const char *)(uintptr_t)(program->dlpi_addr + segment->p_vaddr);
    if (!code_start) code_start = start;
    code_end = start + segment->p_memsz;
  }
  return 1; /* the libraries are not asked for */
}

__attribute__((constructor)) static void begin(void) {
  const char *at = getenv("FAIL_ALLOCATION_AT");
  if (at) failing = strtol(at, NULL, 10);
  (void)dl_iterate_phdr(find_code, NULL);
}

__attribute__((destructor)) static void tell_count(void) {
  const char *path = getenv("FAIL_ALLOCATION_COUNT");
  FILE *file = path ? fopen(path, "w") : NULL;
  if (!file) return;
  (void)fprintf(file, "%ld\n", atomic_load(&count));
  (void)fclose(file);
}

static bool fails(const void *caller) {
  const char *at = caller;
  if (at < code_start || at >= code_end || atomic_fetch_add(&count, 1) != failing) return false;
  errno = ENOMEM;
  return true;
}

void *malloc(size_t size) {
  return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t members, size_t size) {
  return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(members, size);
}

void *realloc(void *memory, size_t size) {
  return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(memory, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
  return fails(__builtin_return_address(0)) ? NULL : __libc_memalign(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size) {
  if (fails(__builtin_return_address(0))) return ENOMEM;
  *out = __libc_memalign(alignment, size);
  return *out ? 0 : ENOMEM;
}

char *strndup(const char *text, size_t most) {
  if (fails(__builtin_return_address(0))) return NULL;
  size_t length = strnlen(text, most);
  char *copy = __libc_malloc(length + 1);
  if (!copy) return NULL;
  memcpy(copy, text, length);
  copy[length] = '\0';
  return copy;
}

char *strdup(const char *text) {
  if (fails(__builtin_return_address(0))) return NULL;
  size_t size = strlen(text) + 1;
  char *copy = __libc_malloc(size);
  return copy ? memcpy(copy, text, size) : NULL;
}
