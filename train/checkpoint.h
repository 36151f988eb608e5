/* Training state on disk: RUN/checkpoints/step-N/, complete or absent.
 *
 *   state.json            where the run stands, and how many ranks wrote
 *   training.safetensors  of every parameter group: values, and where it is trained moment1, moment2 and (BF16)
 *                         remainder
 *   training-00001-of-00004.safetensors, …  instead of it: each of several ranks writes its part of every one of these,
 *                         as many elements as the others, whatever it keeps in memory
 *
 * Written into step-N.tmp beside it, synced, renamed: a directory called step-N is whole. Any number of ranks can read
 * what any other number wrote. Every random draw is a function of the seed and the step, so there is no generator to
 * keep. On several ranks, save and load are calls that all make; the others are for one of them.
 */
#ifndef HV_TRAIN_CHECKPOINT_H
#define HV_TRAIN_CHECKPOINT_H

#include "core/base/text.h"
#include "train/optimizer.h"

typedef struct hv_run_position {
  int64_t step;    /* optimizer steps done, skipped ones included */
  int64_t updates; /* those that changed the parameters */
  int64_t samples; /* of the training split's order that were consumed */
  int64_t seed;
} hv_run_position;

/* Writes RUN/checkpoints/step-<position.step>; after an error it is absent, or what it was before. Waits for the
 * stream. */
HV_NODISCARD hv_status hv_checkpoint_save(const char *run, const hv_run_position *position, const hv_params *params,
                                          const hv_optimizer *optimizer, hv_stream *stream);

/* The newest checkpoint that is whole, *step = -1 where there is none. Damaged ones that are newer are named in
 * `damaged`, one a line. */
HV_NODISCARD hv_status hv_checkpoint_find(const char *run, int64_t *step, hv_text *damaged);

/* Reads it into parameters and optimizer. One that belongs to another model or dtype is HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_checkpoint_load(const char *run, int64_t step, hv_params *params, hv_optimizer *optimizer,
                                          hv_stream *stream, hv_run_position *out);

/* Removes all but the newest `keep`, and what was left half-written. */
HV_NODISCARD hv_status hv_checkpoint_prune(const char *run, int64_t keep);

/* Whether the directory holds any checkpoint. */
HV_NODISCARD hv_status hv_checkpoint_any(const char *run, bool *out);

#endif
