#include "infer/byte_progress.h"

#include <stdio.h>
#include <unistd.h>

#include "core/base/clock.h"

static const double REDRAW_SECONDS = 0.2;

hv_byte_progress hv_byte_progress_make(const char *what, double total_bytes) {
  double now = hv_clock_seconds();
  return (hv_byte_progress){
      .what = what, .total = total_bytes, .started = now, .last_shown = now, .terminal = isatty(STDERR_FILENO) == 1};
}

void hv_byte_progress_add(hv_byte_progress *progress, size_t bytes) {
  progress->done += (double)bytes;
  if (!progress->terminal) return;
  double now = hv_clock_seconds(), seconds = now - progress->started;
  if (now - progress->last_shown < REDRAW_SECONDS) return;
  progress->last_shown = now;
  progress->shown = true;
  fprintf(stderr, "\r\033[K%s %.2f of %.2f GB, %.0f MB/s", progress->what, 1e-9 * progress->done,
          1e-9 * progress->total, 1e-6 * progress->done / seconds);
  fflush(stderr);
}

void hv_byte_progress_clear(hv_byte_progress *progress) {
  if (!progress->shown) return;
  fprintf(stderr, "\r\033[K");
  fflush(stderr);
  progress->shown = false;
}
