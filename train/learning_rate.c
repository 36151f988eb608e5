#include "train/learning_rate.h"

#include <math.h>

double hv_learning_rate_at(const hv_learning_rate *schedule, int64_t step) {
  if (step < schedule->warmup_steps) {
    return schedule->peak * (double)(step + 1) / (double)schedule->warmup_steps;
  }
  if (schedule->decay == HV_DECAY_CONSTANT) return schedule->peak;
  double span = (double)(schedule->total_steps - 1 - schedule->warmup_steps);
  double progress = span > 0 ? (double)(step - schedule->warmup_steps) / span : 1.0;
  if (progress > 1.0) progress = 1.0;
  double ratio = schedule->final_ratio + (1.0 - schedule->final_ratio) * 0.5 * (1.0 + cos(M_PI * progress));
  return schedule->peak * ratio;
}
