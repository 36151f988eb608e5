/* What every cmocka test of this project needs: assertions on statuses, temporary folders, small files. Include it
 * instead of cmocka.h. */
#ifndef HV_TESTS_CHECK_H
#define HV_TESTS_CHECK_H

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif
#include <cmocka.h>

#include "core/base/file.h"
#include "core/base/status.h"
#ifdef __cplusplus
}
#endif

enum { SKIPPED = 77 /* the exit code that CTest counts as skipped */ };

/* Fails with the status's message unless the call succeeds. */
#define assert_ok(call)                                                                                                \
  do {                                                                                                                 \
    hv_status assert_status_ = (call);                                                                                 \
    if (assert_status_) fail_msg("%s: %s", #call, hv_status_message(assert_status_));                                  \
  } while (0)

/* Fails unless the call fails with a message that contains every one of the strings. */
#define assert_error(call, ...) check_error((call), (const char *const[]){__VA_ARGS__, NULL}, #call, __FILE__, __LINE__)

static inline void check_error(hv_status status, const char *const *words, const char *call, const char *file,
                               int line) {
  if (!status) {
    print_error("%s succeeded, but should fail\n", call);
    _fail(file, line);
  }
  for (; *words; words++) {
    if (strstr(hv_status_message(status), *words)) continue;
    print_error("the message of %s lacks \"%s\": %s\n", call, *words, hv_status_message(status));
    _fail(file, line);
  }
  hv_status_free(status);
}

/* Ends a program whose device cannot be opened; `why` is the error of opening it, which is freed. The test counts as
 * skipped if this build, the driver or the machine has no card, and as failed if there is one that does not work. */
static inline void end_without_card(hv_status why) {
  static const char *const absent[] = {"needs libhvla-cuda.so", "no CUDA driver is installed",
                                       "CUDA driver is for CUDA", "the driver lists none",
                                       "no CUDA-capable device is detected"};
  bool skipped = false;
  for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++)
    skipped |= strstr(hv_status_message(why), absent[i]) != NULL;
  printf("%s (%s)\n", skipped ? "skipped: no GPU" : "failed: the GPU cannot be used", hv_status_message(why));
  hv_status_free(why);
  exit(skipped ? SKIPPED : 1);
}

/* The larger of two differences; a NaN counts as the largest of all, whereas fmax would ignore it. */
static inline double larger_of(double a, double b) {
  return a >= b || isnan(a) ? a : b;
}

/* For cmocka's setup: puts the path of a fresh temporary folder into *state. remove_folder, for the teardown, removes
 * the folder with everything in it. */
static inline int make_folder(void **state) {
  const char *parent = getenv("TMPDIR");
  char *folder = hv_path_join(parent && *parent ? parent : "/tmp", "hvla-test-XXXXXX");
  if (!folder || !mkdtemp(folder)) return -1;
  *state = folder;
  return 0;
}

static inline int remove_folder(void **state) {
  hv_status status = hv_remove_tree((const char *)*state);
  int failed = status != HV_OK;
  hv_status_free(status);
  free(*state);
  return failed;
}

/* "folder/name" in one of a few static buffers, so that several can be in use at once. */
__attribute__((noinline, unused)) static const char *in_folder(const char *folder, const char *name) {
  static char paths[8][512];
  static int next;
  char *path = paths[next++ % 8];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

static inline void write_text(const char *path, const char *text) {
  assert_ok(hv_write_file_atomic(path, text, strlen(text)));
}

/* Whether two files hold the same bytes; false if both are empty. */
static inline bool same_bytes(const char *a, const char *b) {
  hv_mapping x, y;
  assert_ok(hv_map_file(a, &x));
  assert_ok(hv_map_file(b, &y));
  bool same = x.size == y.size && x.size > 0 && memcmp(x.data, y.data, x.size) == 0;
  hv_unmap(&x);
  hv_unmap(&y);
  return same;
}

/* Names in a folder besides "." and "..". */
static inline int count_entries(const char *path) {
  DIR *folder = opendir(path);
  assert_non_null(folder);
  int count = 0;
  while (readdir(folder)) count++;
  closedir(folder);
  return count - 2;
}

/* A whole file, NUL-terminated, on the heap. (Inlined, it has GCC take `text` for what it points to.) */
__attribute__((noinline, unused)) static char *read_file(const char *path) {
  char *text;
  assert_ok(hv_read_text(path, 1 << 26, &text, NULL));
  return text;
}

#endif
