#include "train/run/best.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

hv_best hv_best_make(const char *metric) {
  hv_best best = {.step = -1};
  snprintf(best.metric, sizeof best.metric, "%s", metric);
  return best;
}

bool hv_best_resume(hv_best *best, const hv_best *found) {
  uint64_t measured = best->measured;
  if (strcmp(best->metric, found->metric) != 0) return false;
  if (measured && found->measured && measured != found->measured) return false;
  *best = *found;
  if (measured) best->measured = measured;
  return true;
}

bool hv_best_take(hv_best *best, int64_t step, double figure) {
  if (!isfinite(figure) || (best->step >= 0 && figure >= best->figure)) {
    best->since += step > 0; /* the validation before the first step does not count */
    return false;
  }
  best->step = step;
  best->figure = figure;
  best->since = 0;
  return true;
}

bool hv_best_is_stale(const hv_best *best, int64_t patience) {
  return patience > 0 && best->since >= patience;
}
