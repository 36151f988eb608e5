/* A model that is small enough to check its gradients by differences, with two different vision towers, and batches of
 * random values for it. */
#ifndef TESTS_HYBRIDVLA_TINY_MODEL_H
#define TESTS_HYBRIDVLA_TINY_MODEL_H

#include "core/hybridvla/model.h"

/* Two towers (one with class token, registers and LayerScale; one without, or in CLIP's order of norms if `clip`), two
 * cameras, grouped-query heads, two decoder layers, a chunk of 2 steps. */
hv_config tiny_config(hv_objective objective, bool clip);

typedef struct tiny_batch {
  hv_batch batch; /* points into the arrays below */
  uint8_t *images, *mask;
  int32_t *prompt_ids, *timesteps;
  float *state, *actions, *noise;
  int64_t *sample_ids;
} tiny_batch;

/* A batch of `samples` samples with `branches` branches each, prompts of different lengths, and one action step masked.
 */
tiny_batch tiny_batch_make(const hv_config *config, int32_t samples, int32_t branches, uint64_t seed);

/* The same samples and draws, as samples · branches whole sequences with one branch each. */
tiny_batch tiny_batch_repeat(const hv_config *config, const tiny_batch *from, int32_t branches);

/* Samples [first, first + count) of a batch. The part shares the arrays of the original; free only that. */
hv_batch tiny_batch_part(const hv_config *config, const tiny_batch *from, int32_t branches, int32_t first,
                         int32_t count);
void tiny_batch_free(tiny_batch *batch);

/* A model on the CPU whose parameters are all random (norms near 1), with its stream, arena and one sequence. Any error
 * in the functions below fails the running test. */
typedef struct tiny_run {
  hv_device *device;
  hv_stream *stream;
  hv_model *model;
  hv_sequence *sequence;
  hv_arena arena;
  hv_model_activations activations;
  double loss_diffusion, loss_ce;
} tiny_run;

tiny_run tiny_run_open(const hv_config *config, hv_dtype dtype, int32_t max_samples, int32_t branches,
                       const char *const *frozen, int frozen_count);
void tiny_run_close(tiny_run *run);

/* Runs forward and, if `training`, backward; gradients start at zero unless `accumulate`. Returns the sum of the
 * losses. */
double tiny_run_step(tiny_run *run, const hv_batch *batch, bool training, bool accumulate);

/* One parameter's values or gradient in double, on the heap. */
double *tiny_run_values(tiny_run *run, hv_param_id id);
double *tiny_run_gradient(tiny_run *run, hv_param_id id);

#endif
