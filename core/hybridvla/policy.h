/* From an observation to an action: images encoded and the prefix prefilled once, then denoising, decoding or both
 * against the same keys and values. hv_policy_open allocates everything; a prediction allocates nothing, except that on
 * a device with graph capture (hv_stream_record_begin) the second prediction of a kind is recorded. One policy serves
 * one thread at a time. */
#ifndef HV_HYBRIDVLA_POLICY_H
#define HV_HYBRIDVLA_POLICY_H

#include "core/hybridvla/model.h"

typedef enum hv_mode { HV_MODE_ENSEMBLE, HV_MODE_DIFFUSION, HV_MODE_AUTOREGRESSIVE } hv_mode;
typedef enum hv_sampler { HV_SAMPLER_DDIM, HV_SAMPLER_DDPM } hv_sampler;
typedef enum hv_ar_condition { HV_AR_NOISE, HV_AR_RANDOM, HV_AR_DENOISED } hv_ar_condition;

typedef struct hv_policy_options {
  hv_mode mode;
  hv_sampler sampler;
  int32_t ddim_steps;
  hv_ar_condition ar_condition;
  int32_t max_prompt; /* tokens, <s> included; longer prompts are an error */
  bool timing;        /* wait between stages and fill the times of hv_policy_result */
  /* On a device that can measure algorithms (hv_device_measure_choices), the first prediction for each number of prompt
   * tokens measures those of its matrix products: it takes longer, and another process may choose, and round,
   * differently. */
  bool measure_algorithms;
} hv_policy_options;

/* Mode ensemble if the model has both heads, else that of its head; DDIM in 4 steps; condition noise; prompts of up to
 * 512 tokens; no timing, nothing measured. */
hv_policy_options hv_policy_default_options(const hv_config *config);

/* Positions of the longest sequence of a prediction. */
int64_t hv_policy_positions(const hv_config *config, int32_t max_prompt);

typedef struct hv_observation {
  const uint8_t *images;     /* [V, S, S, 3] RGB at model resolution, cameras in the model's order */
  const int32_t *prompt_ids; /* <s> and the whole prompt */
  int32_t prompt_count;
  const float *state; /* [state_dim], normalised; NULL where state_dim is 0 */
} hv_observation;

/* Random draws. Those that are NULL are drawn from (seed, step). */
typedef struct hv_policy_draws {
  const float *noise;         /* [H A]: the x from which denoising starts */
  const float *ar_noise;      /* [H A]: x of the autoregressive branch */
  const int32_t *ar_timestep; /* [1], 0 … T − 1 */
  const float *step_noise;    /* [T, H A]: of full DDPM sampling, row t used at timestep t */
  uint64_t seed, step;
} hv_policy_draws;

/* Results in normalised units; arrays belong to the policy and are valid until its next prediction. */
typedef struct hv_policy_result {
  const float *diffusion;      /* [H A], not clipped; NULL where the mode does not compute it */
  const int32_t *tokens;       /* [H A]; NULL likewise */
  const float *confidences;    /* [H A]; NULL likewise */
  const float *autoregressive; /* [H A]: bin centres of the tokens; NULL likewise */
  double confidence;           /* mean of confidences */
  /* With `timing`, else 0: towers and projector; the pass over the prefix, with the first denoising and decoding step
   * in it; later passes that denoise (and may decode in the same pass); passes that only decode. */
  double vision_ms, prefill_ms, denoise_ms, decode_ms;
} hv_policy_result;

typedef struct hv_policy hv_policy;

/* HV_ERR_INPUT for a mode, sampler or condition that the model cannot serve; the message says which it can. The model
 * must have its parameter values, and outlive the policy. Calls hv_model_prepare, so nothing may be running on the
 * model. */
HV_NODISCARD hv_status hv_policy_open(hv_model *model, const hv_policy_options *options, hv_policy **out);
void hv_policy_close(hv_policy *policy); /* NULL is allowed */

/* After a change of the model's parameters, before the next prediction: recomputes what is derived from them, the
 * embedded timesteps. The policy has its own stream, so the stream that changed the parameters must have been
 * synchronised. */
HV_NODISCARD hv_status hv_policy_refresh(hv_policy *policy);

/* The work of one step of a prediction, and the weights that it reads, for a prompt of max_prompt tokens. */
typedef struct hv_policy_work {
  double matrix_flops, weight_bytes;
} hv_policy_work;

/* Entry 0 is vision with the projector, the others are the passes through the decoder. Owned by the policy. */
const hv_policy_work *hv_policy_get_work(const hv_policy *policy, int32_t *count);

HV_NODISCARD hv_status hv_policy_predict(hv_policy *policy, const hv_observation *observation,
                                         const hv_policy_draws *draws, hv_policy_result *out);

/* Which answer an ensemble gives: the mean of both un-normalised actions where confidence > theta (a gripper dimension
 * is 1 only where its mean is > 0.5), else the diffusion action. `gripper[d]` marks the A dimensions that are grippers;
 * returns true where the mean was taken. All [H A]; `out` may be either input. */
bool hv_ensemble(const double *diffusion, const double *autoregressive, double confidence, double theta,
                 int32_t action_chunk, int32_t action_dim, const bool *gripper, double *out);

#endif
