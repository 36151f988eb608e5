/* What the parts of the policy share: policy.c (opening), policy_predict.c (a prediction) and policy_forward.c (what it
 * computes). */
#ifndef HV_HYBRIDVLA_POLICY_STATE_H
#define HV_HYBRIDVLA_POLICY_STATE_H

#include "core/hybridvla/parts.h"
#include "core/hybridvla/policy.h"
#include "core/hybridvla/policy_passes.h"
#include "core/hybridvla/schedule.h"

/* All inputs and results of a prediction lie in one block on the host, and in a copy at the same byte offsets on the
 * device: one upload takes all inputs there. */
typedef struct hv_policy_block {
  size_t images, state, text_ids, text_rows, markers, ar_noise, ar_timestep, step_noise, seed_step, sample;
  size_t all_timesteps, coefficients, tables;
  size_t x, ids, probabilities; /* the results, which come last, so that one download brings them */
  size_t bytes;
} hv_policy_block;

/* Which draws the caller gave. */
typedef struct hv_given_draws {
  bool noise, ar_noise, ar_timestep, step_noise;
} hv_given_draws;

/* The pieces of a prediction, in order. Where predictions are recorded and there are two towers, the second runs on a
 * stream of its own beside the first, since one tower's kernels leave most of a card idle. The events that order the
 * two streams lie between pieces, since a recording cannot hold them. */
typedef enum hv_policy_piece {
  HV_PIECE_INPUTS,
  HV_PIECE_SECOND_TOWER,
  HV_PIECE_FIRST_TOWER,
  HV_PIECE_PASSES, /* and the projector before them */
  HV_POLICY_PIECES
} hv_policy_piece;

/* A prediction with a prompt of this length and these draws queues the same work every time: the second one is
 * recorded, and later ones replay it. */
typedef struct hv_policy_recording {
  int32_t prompt_count; /* 0: the entry is free */
  hv_given_draws given;
  hv_recording *pieces[HV_POLICY_PIECES];
  bool recorded; /* false: there has been one prediction, not recorded */
  int64_t last_use;
} hv_policy_recording;

enum {
  HV_POLICY_RECORDINGS = 8,     /* kept at most; the least recently used is replaced */
  HV_POLICY_LOST_RECORDINGS = 3 /* failures in a row after which no more recordings are tried */
};

struct hv_policy {
  hv_model_parts *parts;
  hv_policy_options options;
  bool planning; /* on a plan device, which computes nothing and counts work */
  hv_stream *stream;
  hv_stream *side;                      /* the second tower's; NULL: `stream` */
  hv_event *inputs_ready, *tower_ready; /* of `stream` and of `side`, where there is one */
  hv_arena memory, scratch, side_scratch;

  bool denoises, decodes;
  hv_branch_shape shape;
  int32_t num_stages, num_passes;
  hv_sampler_stage *stages; /* [diffusion_steps] */
  hv_pass *passes;
  hv_policy_work *work; /* [1 + num_passes] */

  hv_policy_block at;
  char *host;      /* [at.bytes] */
  hv_tensor block; /* U8 [1, at.bytes] */
  float *decoded;  /* [H A]: the bin centres of the tokens */

  hv_kv_cache_layer *cache; /* [num_hidden_layers] */
  hv_tensor timestep_table; /* T [diffusion_steps, D]: every timestep embedded */
  hv_tensor x_cast;         /* T [H, A]: x as the network reads it */
  hv_tensor features;       /* T [image rows, vision width]: the towers' output */
  hv_tensor rows_a, rows_b; /* T [rows of the largest pass, D]: a layer's input and output, by turns */
  hv_tensor token_states;   /* T [H A, D]: the hidden state from which each action token was chosen */

  bool *met; /* [max_prompt + 1]: whether there was a prediction with so many prompt tokens */
  hv_policy_recording recordings[HV_POLICY_RECORDINGS];
  int64_t preparations;    /* of the model's constants, at the address of which the recordings read them */
  int32_t lost_recordings; /* failed recordings in a row */
  int64_t predictions;     /* so far */
};

static inline int32_t hv_policy_image_rows(const hv_config *config) {
  return config->num_cameras * hv_config_patches(config);
}

static inline int32_t hv_policy_prefix_rows(const hv_config *config, int32_t prompt) {
  return prompt + hv_policy_image_rows(config) + 1 + (config->state_dim ? 1 : 0);
}

/* A view into the device's copy of the block. */
static inline hv_tensor hv_policy_in_block(const hv_policy *policy, size_t offset, hv_dtype dtype, int64_t rows,
                                           int64_t cols) {
  return hv_tensor_make((char *)policy->block.data + offset, dtype, rows, cols);
}

static inline hv_tensor hv_policy_in_tables(const hv_policy *policy, int32_t start, int64_t rows, int64_t cols) {
  return hv_policy_in_block(policy, policy->at.tables + (size_t)start * sizeof(int32_t), HV_I32, rows, cols);
}

static inline hv_tensor hv_policy_action(const hv_policy *policy, size_t offset) {
  const hv_config *config = &policy->parts->config;
  return hv_policy_in_block(policy, offset, HV_F32, config->action_chunk, config->action_dim);
}

/* Queues a prediction from the filled block, and waits for it. */
HV_NODISCARD hv_status hv_policy_run(hv_policy *policy, int32_t prompt_count, hv_given_draws given,
                                     hv_policy_result *out);

/* Whether repeated predictions are recorded. */
bool hv_policy_may_record(const hv_policy *policy);
void hv_policy_forget_recordings(hv_policy *policy);

/* Runs one tower: images to its columns of `features`. */
void hv_policy_run_tower(hv_policy *policy, int32_t tower, hv_arena *scratch, hv_stream *stream);

/* Runs the projector: features to image tokens, in their rows of the first pass. */
void hv_policy_project_images(hv_policy *policy);

/* Runs one pass: embeds its rows, runs all layers and the heads, and does a step of the sampler, chooses an action
 * token, or both. */
void hv_policy_run_pass(hv_policy *policy, const hv_pass *pass);

/* Fills timestep_table; the block's constants are on the device. */
void hv_policy_embed_timesteps(hv_policy *policy);

#endif
