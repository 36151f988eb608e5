#include "core/hybridvla/schedule.h"

#include <math.h>

/* The continuous curve alpha_bar(u), u in [0, 1]. */
static double curve(double u) {
  double c = cos((u + 0.008) / 1.008 * (M_PI / 2));
  return c * c;
}

static double beta_at(int32_t steps, int32_t t) {
  return fmin(1.0 - curve((double)(t + 1) / steps) / curve((double)t / steps), 0.999);
}

void hv_schedule_alpha_bar(int32_t steps, double *alpha_bar) {
  double product = 1.0;
  for (int32_t t = 0; t < steps; t++) {
    product *= 1.0 - beta_at(steps, t);
    alpha_bar[t] = product;
  }
}

/* Entries of range(0, steps, stride). */
static int32_t kept_count(int32_t steps, int32_t stride) {
  return (steps + stride - 1) / stride;
}

/* The smallest stride that keeps exactly n timesteps; 0: none does. */
static int32_t stride_for(int32_t steps, int32_t n) {
  for (int32_t stride = 1; stride <= steps; stride++) {
    if (kept_count(steps, stride) == n) return stride;
    if (kept_count(steps, stride) < n) return 0;
  }
  return 0;
}

static hv_status impossible_count(int32_t steps, int32_t n) {
  if (n < 1) return hv_error(HV_ERR_INPUT, "DDIM with %d steps: 1 … %d are possible", n, steps);
  if (n > steps)
    return hv_error(HV_ERR_INPUT, "DDIM with %d of %d diffusion steps: at most %d are possible", n, steps, steps);
  int32_t below = n - 1, above = n + 1;
  while (!stride_for(steps, below)) below--;
  while (!stride_for(steps, above)) above++;
  return hv_error(HV_ERR_INPUT, "DDIM with %d of %d diffusion steps: no stride gives that many; %d and %d are possible",
                  n, steps, below, above);
}

/* From timestep t to one where alpha_bar is `previous`, by way of the predicted x0; eta 0. */
static hv_sampler_stage ddim_stage(int32_t t, double bar, double previous) {
  return (hv_sampler_stage){
      .timestep = t,
      .x_factor = sqrt(previous / bar),
      .eps_factor = sqrt(1.0 - previous) - sqrt(previous) * sqrt(1.0 - bar) / sqrt(bar),
  };
}

hv_status hv_schedule_check_ddim(int32_t steps, int32_t n) {
  if (steps < 1 || steps > HV_MAX_DIFFUSION_STEPS)
    return hv_error(HV_ERR_INPUT, "%d diffusion steps: 1 … %d are possible", steps, HV_MAX_DIFFUSION_STEPS);
  return n == 1 || (n > 1 && stride_for(steps, n)) ? HV_OK : impossible_count(steps, n);
}

hv_status hv_schedule_ddim(int32_t steps, int32_t n, hv_sampler_stage *out) {
  double alpha_bar[HV_MAX_DIFFUSION_STEPS];
  HV_TRY(hv_schedule_check_ddim(steps, n));
  hv_schedule_alpha_bar(steps, alpha_bar);
  if (n == 1) {
    out[0] = ddim_stage(steps / 2, alpha_bar[steps / 2], 1.0);
    return HV_OK;
  }
  int32_t stride = stride_for(steps, n);
  for (int32_t i = 0; i < n; i++) {
    int32_t t = (n - 1 - i) * stride;
    out[i] = ddim_stage(t, alpha_bar[t], t ? alpha_bar[t - stride] : 1.0);
  }
  return HV_OK;
}

void hv_schedule_ddpm(int32_t steps, hv_sampler_stage *out) {
  double bar = 1.0;
  for (int32_t t = 0; t < steps; t++) {
    double beta = beta_at(steps, t), previous = bar;
    bar *= 1.0 - beta;
    /* The posterior mean with x0 put in: 1 / sqrt(alpha) (x − beta / sqrt(1 − alpha_bar) eps). */
    out[steps - 1 - t] = (hv_sampler_stage){
        .timestep = t,
        .x_factor = 1.0 / sqrt(1.0 - beta),
        .eps_factor = -beta / (sqrt(1.0 - beta) * sqrt(1.0 - bar)),
        .noise_factor = t ? sqrt(beta * (1.0 - previous) / (1.0 - bar)) : 0.0,
    };
  }
}
