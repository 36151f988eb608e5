/* A batch as packed token sequences: the prefix of a sample once, its K branches behind it, samples one behind the
 * other without padding. The host computes positions, segments, label rows, gather lists and the losses' divisors into
 * one block, which goes to the device in one copy.
 *
 *   prefix : <s> | V·P image tokens | prompt tokens | <BOD> | state
 *   branch : t | x_1 … x_H | <EOD> | empty | a_1,1 … a_H,A | </s>
 *
 * A branch has its own draw of timestep t and noise: x is the noised action, of H tokens, and a are the action tokens.
 * `empty` (config.token_empty) is the token with which a prompt ends too; a model may have none. With the objective
 * `diffusion` a branch ends after x_H; with `autoregressive` there is one branch, which begins at <EOD>.
 */
#ifndef HV_HYBRIDVLA_SEQUENCE_H
#define HV_HYBRIDVLA_SEQUENCE_H

#include "core/hybridvla/config.h"
#include "core/tensor/trace.h"

/* One batch on the host, from a loader or `hvla-train check`. B samples, V cameras, S pixels a side, H action steps, A
 * action dimensions, K branches. Nothing is owned; the arrays must stay until hv_sequence_build has returned. */
typedef struct hv_batch {
  int32_t samples;           /* B */
  const uint8_t *images;     /* [B, V, S, S, 3] RGB at model resolution, cameras in the model's order */
  const int32_t *prompt_ids; /* [B, prompt_stride]: <s>, prompt …; −1 after the end */
  int32_t prompt_stride;
  const float *state;         /* [B, state_dim], normalised; NULL where state_dim is 0 */
  const float *actions;       /* [B, H, A], normalised */
  const uint8_t *action_mask; /* [B, H], optional; 0: past the end of the episode */
  const float *noise;         /* [B, K, H, A], optional: drawn from (seed, step, sample_ids) when absent */
  const int32_t *timesteps;   /* [B, K], optional, likewise */
  const int64_t *sample_ids;  /* [B], global sample indices; needed where something is drawn */
  /* Divisors of the losses if this batch is a part of a larger one (micro-batches, ranks): the unmasked action values,
   * and the labels, of all branches of the larger one. 0: this batch is the whole. */
  double diffusion_divisor, label_divisor;
} hv_batch;

typedef struct hv_sequence_limits {
  int32_t samples;  /* B at most */
  int32_t branches; /* K */
  int32_t prompt;   /* tokens of a prompt at most, <s> included */
} hv_sequence_limits;

/* Counts of one built batch. */
typedef struct hv_sequence_counts {
  int32_t samples, branches; /* B, K (1 for `autoregressive`) */
  int32_t rows;              /* all tokens */
  int32_t branch_rows;       /* tokens of branches */
  int32_t images;            /* B V */
  int32_t image_rows;        /* B V P */
  int32_t text_rows;         /* tokens that come from the embedding table */
  int32_t text_unique;       /* distinct ids among them */
  int32_t noise_rows;        /* B K H, 0 without diffusion */
  int32_t label_rows;        /* B K (H A + 1), 0 without autoregression */
  int32_t segments, query_segments;
  int32_t max_segment_rows; /* q rows of any segment */
  int32_t max_branch_rows;  /* q rows of any branch */
  int32_t max_key_rows;
} hv_sequence_counts;

/* Device views of a built batch. Token rows count all tokens; compact rows count only those of branches, which alone
 * leave the last layer. */
typedef struct hv_sequence_tables {
  hv_tensor images;                             /* U8 [B V, S S 3] */
  hv_tensor positions;                          /* I32 [1, rows] */
  hv_tensor text_ids, text_rows;                /* I32 [1, text_rows]: row of the embedding table → token row */
  hv_tensor image_rows;                         /* I32 [1, B V P]: token row of each image token */
  hv_tensor state_rows, timestep_rows, x_rows;  /* I32: token rows of the embedded state, t, x */
  hv_tensor segments, key_groups;               /* all layers but the last */
  hv_tensor branch_rows, branch_positions;      /* I32 [1, branch_rows]: token row, position of each compact row */
  hv_tensor identity;                           /* I32 [1, max + 1]: 0, 1, 2, … */
  hv_tensor branch_segments, branch_key_groups; /* the last layer: compact queries, keys of all rows */
  hv_tensor noise_rows, label_rows; /* I32: the compact rows that the noise head and the vocabulary head read */
  hv_tensor labels;                 /* I32 [1, label_rows] */
  hv_tensor text_unique, text_offsets, text_sorted_rows; /* the embedding's gradient: hv_scatter_add_rows */
  hv_tensor state;                                       /* F32 [B, state_dim] */
  hv_tensor actions;                                     /* F32 [B, H A] */
  hv_tensor noise;                                       /* F32 [B K, H A]: given, or drawn by hv_sequence_use */
  hv_tensor noise_mask;                                  /* F32 [1, B K H] */
  hv_tensor timesteps;                                   /* I32 [1, B K] */
  hv_tensor sample_ids;                                  /* I64 [1, B] */
  hv_tensor seed_step;                                   /* I64 [1, 2] */
  hv_tensor diffusion_divisor, label_divisor;            /* F32 [1, 1] */
} hv_sequence_tables;

typedef struct hv_sequence hv_sequence;

/* Allocates page-locked host memory and device memory for batches within the limits; HV_ERR_INPUT if they allow more
 * tokens than 32 bits count. A sequence holds one batch: to upload one while another is used, open two. */
HV_NODISCARD hv_status hv_sequence_open(const hv_config *config, hv_device *device, const hv_sequence_limits *limits,
                                        hv_sequence **out);
void hv_sequence_close(hv_sequence *sequence);

/* Checks the batch (HV_ERR_INPUT names the tensor, the sample and what would be right) and builds the tables on the
 * host, after waiting until the upload of the batch before has finished. `seed` and `step` key the draws. Allocates
 * nothing. */
HV_NODISCARD hv_status hv_sequence_build(hv_sequence *sequence, const hv_batch *batch, uint64_t seed, uint64_t step);

/* Queues the copy to the device. The stream may differ from the one that uses the batch: events make the copy wait for
 * hv_sequence_done of the batch before, and hv_sequence_use wait for the copy. */
void hv_sequence_upload(hv_sequence *sequence, hv_stream *stream);

/* Begin and end the use of the uploaded batch by `stream`. hv_sequence_use also queues the draws of noise and timesteps
 * that the batch did not give. */
void hv_sequence_use(hv_sequence *sequence, hv_stream *stream);
void hv_sequence_done(hv_sequence *sequence, hv_stream *stream);

/* Enters uploads in a trace, which outlives the sequence. */
void hv_sequence_trace(hv_sequence *sequence, hv_trace *trace);

/* The counts of the largest batch within the limits. */
hv_sequence_counts hv_sequence_largest(const hv_config *config, const hv_sequence_limits *limits);

const hv_sequence_counts *hv_sequence_get_counts(const hv_sequence *sequence);
const hv_sequence_tables *hv_sequence_get_tables(const hv_sequence *sequence);

/* For planning, on the plan device: sets the counts of hv_sequence_largest, without any values. */
void hv_sequence_build_largest(hv_sequence *sequence);

/* Counts the unmasked action values and the labels that a batch adds to the divisors of the losses. */
void hv_batch_count(const hv_config *config, const hv_batch *batch, int32_t branches, double *diffusion,
                    double *labels);

#endif
