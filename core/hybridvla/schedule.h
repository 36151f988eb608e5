/* The diffusion schedule and its samplers: cosine betas, DDIM with eta 0, full DDPM. Host arithmetic in double; a
 * sampler is a list of steps, each a linear combination that hv_sampler_step computes. */
#ifndef HV_HYBRIDVLA_SCHEDULE_H
#define HV_HYBRIDVLA_SCHEDULE_H

#include <stdint.h>

#include "core/base/status.h"
#include "core/hybridvla/config.h"

/* alpha_bar[t], t = 0 … steps − 1, of "squaredcos_cap_v2". */
void hv_schedule_alpha_bar(int32_t steps, double *alpha_bar);

/* One step of a sampler at timestep t: x ← x_factor x + eps_factor eps + noise_factor noise. */
typedef struct hv_sampler_stage {
  int32_t timestep;
  double x_factor, eps_factor, noise_factor;
} hv_sampler_stage;

/* DDIM with n of `steps` timesteps at a fixed stride, in the order in which they run; `out` has room for n. n = 1 takes
 * timestep steps / 2. HV_ERR_INPUT if no stride gives exactly n; the message lists the nearest counts that work. */
HV_NODISCARD hv_status hv_schedule_ddim(int32_t steps, int32_t n, hv_sampler_stage *out);
HV_NODISCARD hv_status hv_schedule_check_ddim(int32_t steps, int32_t n); /* only its errors */

/* All steps of DDPM sampling with the fixed small variance, no noise at t = 0; `out` has room for `steps`. */
void hv_schedule_ddpm(int32_t steps, hv_sampler_stage *out);

#endif
