#include "train/spike_rule.h"

const char *hv_skip_reason_name(hv_skip_reason reason) {
  static const char *const names[] = {"", "not_finite", "loss_spike", "grad_norm_spike"};
  return names[reason];
}

hv_skip_reason hv_spike_judge(const hv_spike_settings *settings, const hv_spike_means *means, double loss,
                              double grad_norm) {
  if (settings->factor <= 0 || means->steps < settings->window) return HV_SKIP_NONE;
  if (loss > settings->factor * means->loss) return HV_SKIP_LOSS;
  if (grad_norm > settings->factor * means->grad_norm) return HV_SKIP_GRAD_NORM;
  return HV_SKIP_NONE;
}

void hv_spike_add(const hv_spike_settings *settings, hv_spike_means *means, double loss, double grad_norm) {
  means->steps++;
  /* A plain mean until the window is full. */
  double span = (double)(means->steps < settings->window ? means->steps : settings->window);
  means->loss += (loss - means->loss) / span;
  means->grad_norm += (grad_norm - means->grad_norm) / span;
}
