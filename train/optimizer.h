/* AdamW over the parameter groups of a model: global-norm clipping, decoupled weight decay (never on biases, norms and
 * LayerScale: hv_param.decay), learning rates by parameter (hv_param.rate), steps with a gradient that is not finite
 * are skipped.
 *
 * Moments are held for what this rank owns of each trainable group (hv_group_owned), in F32 or in 8 bits
 * (core/tensor/moments.h); BF16 parameters carry 16-bit remainders that restore their F32 master values (ops.h, adamw).
 * What changes from step to step is uploaded as five numbers (hv_adamw_args.dynamic).
 */
#ifndef HV_TRAIN_OPTIMIZER_H
#define HV_TRAIN_OPTIMIZER_H

#include "core/nn/params.h"

typedef enum hv_moment_format {
  HV_MOMENTS_F32,
  HV_MOMENTS_INT8, /* but F32 for groups with an embedding table: rows without a token in the batch have gradients of 0,
                      so its moments are the most uneven (section 2.3 of the paper that moments.h names) */
} hv_moment_format;

typedef struct hv_optimizer_settings {
  double beta1, beta2, eps, weight_decay;
  double max_norm; /* of all gradients together; 0: not clipped */
  hv_moment_format moments;
} hv_optimizer_settings;

typedef struct hv_optimizer hv_optimizer;

/* Allocates everything; parameters and gradients must be allocated before, and outlive it. HV_ERR_INPUT if no parameter
 * is trainable, or if 8-bit moments are sharded over so many ranks that a share does not consist of whole blocks. */
HV_NODISCARD hv_status hv_optimizer_open(hv_params *params, const hv_optimizer_settings *settings, hv_stream *stream,
                                         hv_optimizer **out);
void hv_optimizer_close(hv_optimizer *optimizer); /* NULL is allowed */

/* hv_optimizer_step queues one update from the gradients, and on several ranks the all-gather of the values. Allocates
 * nothing. Then synchronise the stream, and call hv_optimizer_finish before the next step: it returns the gradients'
 * norm (before clipping) and whether the update was skipped, and else counts the update. */
void hv_optimizer_step(hv_optimizer *optimizer, double learning_rate, hv_stream *stream);
void hv_optimizer_finish(hv_optimizer *optimizer, double *norm, bool *skipped);

/* The two halves of hv_optimizer_step, for a caller that decides in between whether to update (all ranks must decide
 * alike): after hv_optimizer_measure and a synchronisation, hv_optimizer_norm returns the gradients' norm. Without the
 * update, do not call hv_optimizer_finish. */
void hv_optimizer_measure(hv_optimizer *optimizer, double learning_rate, hv_stream *stream);
void hv_optimizer_update(hv_optimizer *optimizer, hv_stream *stream);
double hv_optimizer_norm(const hv_optimizer *optimizer);

/* On the device, S [1, 1]: the gradient factor of the latest step queued; negative where the step was skipped. */
hv_tensor hv_optimizer_factor(const hv_optimizer *optimizer);

/* Updates made so far: the t of the bias corrections. */
int64_t hv_optimizer_updates(const hv_optimizer *optimizer);
void hv_optimizer_set_updates(hv_optimizer *optimizer, int64_t updates);

/* For checkpoints: this rank's state of one group, in the form of hv_adamw_args. All absent if the group is frozen, the
 * scales if moments are F32, the remainder if parameters are not BF16. */
typedef struct hv_optimizer_state {
  hv_tensor moment1, moment2;             /* [1, owned count] */
  hv_tensor moment1_scale, moment2_scale; /* [1, owned count / HV_MOMENT_BLOCK] */
  hv_tensor remainder;                    /* [1, owned count] */
} hv_optimizer_state;
hv_optimizer_state hv_optimizer_group_state(const hv_optimizer *optimizer, hv_group_id group);

/* Waits for the stream, and gives a trainable parameter's master values in F32; on one rank. */
HV_NODISCARD hv_status hv_optimizer_read_master(const hv_optimizer *optimizer, hv_param_id id, float *values,
                                                hv_stream *stream);

#endif
