/* Tells clang's analyzer that an error which was just made is not NULL: it sees one file at a time and ignores
 * returns_nonnull. clang_tidy.sh includes this before every file; nothing that runs is compiled with it. */
#ifndef HV_LINT_ANALYZER_H
#define HV_LINT_ANALYZER_H

#include "core/base/status.h"

static inline hv_status hv_lint_error(hv_status made) {
  if (!made) __builtin_unreachable();
  return made;
}

static inline hv_status hv_lint_first(hv_status first, hv_status second) {
  if (!first) return second;
  hv_status_free(second);
  return first;
}

/* Adding context keeps an error an error, and success a success. */
static inline hv_status hv_lint_context(hv_status status, const char *format, ...) {
  (void)format;
  return status;
}

#define hv_error(...) hv_lint_error(hv_error(__VA_ARGS__))
#define hv_error_errno(...) hv_lint_error(hv_error_errno(__VA_ARGS__))
#define hv_error_memory(...) hv_lint_error(hv_error_memory(__VA_ARGS__))
#define hv_error_context(...) hv_lint_context(__VA_ARGS__)
#define hv_status_first(...) hv_lint_first(__VA_ARGS__)

#endif
