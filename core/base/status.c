#include "core/base/status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct hv_failure {
  hv_code code;
  bool is_static;
  char *message;
};

static char out_of_memory_text[] = "out of memory";
static struct hv_failure out_of_memory = {HV_ERR_MEMORY, true, out_of_memory_text};

/* The formatted text on the heap, or NULL without memory. */
static char *format_text(const char *format, va_list args) {
  va_list measure;
  va_copy(measure, args);
  int length = vsnprintf(NULL, 0, format, measure);
  va_end(measure);
  if (length < 0) return NULL;
  char *text = malloc((size_t)length + 1);
  if (text) vsnprintf(text, (size_t)length + 1, format, args);
  return text;
}

/* Takes ownership of `message`. */
static hv_status make_error(hv_code code, char *message) {
  if (!message) return &out_of_memory;
  struct hv_failure *error = malloc(sizeof *error);
  if (!error) {
    free(message);
    return &out_of_memory;
  }
  *error = (struct hv_failure){.code = code, .is_static = false, .message = message};
  return error;
}

hv_status hv_error(hv_code code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  char *message = format_text(format, args);
  va_end(args);
  return make_error(code, message);
}

/* "<first>: <second>" on the heap; frees `first`. */
static char *join_text(char *first, const char *second) {
  if (!first) return NULL;
  size_t size = strlen(first) + strlen(second) + 3;
  char *text = malloc(size);
  if (text) snprintf(text, size, "%s: %s", first, second);
  free(first);
  return text;
}

hv_status hv_error_errno(int errnum, const char *format, ...) {
  va_list args;
  va_start(args, format);
  char *message = format_text(format, args);
  va_end(args);
  char reason[128];
  const char *text = strerror_r(errnum, reason, sizeof reason); /* the GNU form, which always gives a text */
  return make_error(HV_ERR_IO, join_text(message, text));
}

hv_status hv_error_context(hv_status status, const char *format, ...) {
  if (!status || status->is_static) return status;
  va_list args;
  va_start(args, format);
  char *context = format_text(format, args);
  va_end(args);
  char *message = join_text(context, status->message);
  if (message) {
    free(status->message);
    status->message = message;
  }
  return status;
}

hv_status hv_error_memory(const char *what) {
  return hv_error(HV_ERR_MEMORY, "out of memory for %s", what);
}

hv_code hv_status_code(hv_status status) {
  return status->code;
}

const char *hv_status_message(hv_status status) {
  return status ? status->message : "";
}

void hv_status_free(hv_status status) {
  if (!status || status->is_static) return;
  free(status->message);
  free(status);
}

int hv_status_exit_code(hv_status status) {
  if (!status) return 0;
  return status->code == HV_ERR_NO ? 1 : 2;
}

hv_status hv_status_first(hv_status first, hv_status second) {
  if (!first) return second;
  hv_status_free(second);
  return first;
}
