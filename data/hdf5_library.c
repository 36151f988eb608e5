#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/base/text.h"
#include "data/hdf5_internal.h"

enum { WHAT_SIZE = 512 /* of an error's middle part */ };

static pthread_mutex_t library_lock = PTHREAD_MUTEX_INITIALIZER;

void hv_hdf5_enter(void) {
  pthread_mutex_lock(&library_lock);
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

void hv_hdf5_leave(void) {
  pthread_mutex_unlock(&library_lock);
}

/* Of a failed system call the library says "file read failed: time = …, filename = …, errno = 5, error message =
 * 'Input/output error', buf = 0x5…, …". Only the error message of these fields is kept. */
static void add_reason(hv_text *reason, const char *said) {
  static const char key[] = "error message = '";
  const char *what = strstr(said, ": "), *message = what ? strstr(what, key) : NULL;
  const char *end = message ? strchr(message + strlen(key), '\'') : NULL;
  if (!end) {
    hv_text_add(reason, "%s", said);
    return;
  }
  message += strlen(key);
  hv_text_add(reason, "%.*s: %.*s", (int)(what - said), said, (int)(end - message), message);
}

static herr_t keep_innermost(unsigned depth, const H5E_error2_t *error, void *argument) {
  if (depth == 0 && error->desc) add_reason(argument, error->desc);
  return 0;
}

hv_status hv_hdf5_error(const hv_hdf5 *file, const char *object, const char *format, ...) {
  hv_text reason = {0};
  char what[WHAT_SIZE];
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_innermost, &reason);
  H5Eclear2(H5E_DEFAULT);
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof what, format, args);
  va_end(args);
  hv_status status = hv_error(HV_ERR_INPUT, "%s: %s: %s%s%s", file->path, object, what, reason.length ? ": " : "",
                              hv_text_string(&reason));
  hv_text_free(&reason);
  return status;
}

hv_status hv_hdf5_bad(const hv_hdf5 *file, const char *object, const char *format, ...) {
  char what[WHAT_SIZE];
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof what, format, args);
  va_end(args);
  return hv_error(HV_ERR_INPUT, "%s: %s: %s", file->path, object, what);
}
