#include "core/base/log.h"

#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "core/base/text.h"

static _Atomic int log_level = HV_LOG_INFO;

void hv_log_set_level(hv_log_level level) {
  atomic_store(&log_level, (int)level);
}

/* Adds what comes before a message: time and level, or on a terminal the level unless it is info. */
static void add_start(hv_log_level level, hv_text *line) {
  static const char *const names[] = {"debug", "info", "warning", "error"};
  if (!isatty(STDERR_FILENO)) {
    char when[32];
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
    hv_text_add(line, "%s %s: ", when, names[level]);
  } else if (level != HV_LOG_INFO) {
    hv_text_add(line, "%s: ", names[level]);
  }
}

void hv_log(hv_log_level level, const char *format, ...) {
  if ((int)level < atomic_load(&log_level)) return;
  hv_text line = {0};
  va_list args;
  add_start(level, &line);
  va_start(args, format);
  hv_text_add_list(&line, format, args);
  va_end(args);
  hv_text_add(&line, "\n");
  if (!line.failed) {
    fputs(hv_text_string(&line), stderr);
  } else { /* without memory, in pieces */
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputs("\n", stderr);
  }
  hv_text_free(&line);
}
