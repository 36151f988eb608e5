#include "core/base/log.h"

#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static _Atomic int log_level = HV_LOG_INFO;

void hv_log_set_level(hv_log_level level) {
  atomic_store(&log_level, (int)level);
}

void hv_log(hv_log_level level, const char *format, ...) {
  static const char *const names[] = {"debug", "info", "warning", "error"};
  if ((int)level < atomic_load(&log_level)) return;
  char line[4096];
  int used = 0;
  if (isatty(STDERR_FILENO)) {
    if (level != HV_LOG_INFO) used = snprintf(line, sizeof line, "%s: ", names[level]);
  } else {
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    used = (int)strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%SZ ", &utc);
    used += snprintf(line + used, sizeof line - (size_t)used, "%s: ", names[level]);
  }
  va_list args;
  va_start(args, format);
  vsnprintf(line + used, sizeof line - (size_t)used, format, args);
  va_end(args);
  fprintf(stderr, "%s\n", line);
}
