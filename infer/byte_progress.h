/* How far a long piece of work has come: one line in place on a terminal's standard error, nothing anywhere else. */
#ifndef HV_INFER_BYTE_PROGRESS_H
#define HV_INFER_BYTE_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct hv_byte_progress {
  const char *what; /* "writing"; outlives the progress */
  double total, done, started, last_shown;
  bool terminal, shown;
} hv_byte_progress;

hv_byte_progress hv_byte_progress_make(const char *what, double total_bytes);
void hv_byte_progress_add(hv_byte_progress *progress, size_t bytes);
void hv_byte_progress_clear(hv_byte_progress *progress); /* clears the line, before a message or at the end */

#endif
