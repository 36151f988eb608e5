/* One training step, and what it works on: a model with its gradients, an optimizer, two sequences (double buffering:
 * one is built and uploaded while the device uses the other) and one arena. Everything is allocated by hv_trainer_open;
 * a step allocates nothing. Used by one thread.
 *
 * On several ranks each trains on its part of every batch, and all make the same calls: a step sums gradients and
 * losses over ranks, so that all ranks end it with the same parameters and the same result.
 */
#ifndef HV_TRAIN_TRAINER_H
#define HV_TRAIN_TRAINER_H

#include "core/hybridvla/model.h"
#include "core/io/model_directory.h"
#include "train/ema.h"
#include "train/optimizer.h"
#include "train/spike_rule.h"

/* The source of batches: `next` returns this rank's next micro-batch, with the divisors of the whole batch set. A batch
 * stays valid until it is released. */
typedef struct hv_batch_source {
  hv_status (*next)(struct hv_batch_source *source, const hv_batch **out);
  void (*release)(struct hv_batch_source *source, const hv_batch *batch);
} hv_batch_source;

/* A source that gives one batch again and again. */
typedef struct hv_fixed_source {
  hv_batch_source source; /* first: what the trainer is given */
  const hv_batch *batch;  /* not owned */
} hv_fixed_source;

hv_fixed_source hv_fixed_source_make(const hv_batch *batch);

typedef struct hv_trainer_options {
  const hv_config *config; /* copied */
  hv_dtype dtype;
  hv_dtype gradients;        /* of parameters: F32, or `dtype` */
  hv_sequence_limits limits; /* samples: of one micro-batch */
  int32_t parts;             /* micro-batches of this rank in one step, >= 1 */
  const char *const *freeze; /* patterns of parameter names */
  int freeze_count;
  const char *const *rate_patterns; /* hv_params_scale_rates */
  const double *rate_factors;
  size_t rate_count;
  hv_recomputation recompute;
  hv_loss_weights weights;
  hv_optimizer_settings optimizer;
  hv_spike_settings spikes;
  bool no_update;   /* gradients are computed, but there is no optimizer: for benchmarks */
  double ema_decay; /* of the moving average of the parameters; 0: none is kept */
  uint64_t seed;
  hv_comm *comm; /* the ranks that train together, outlives the trainer; NULL: this process alone */
  hv_sharding sharding;
  hv_trace *trace; /* outlives the trainer; NULL: none */
} hv_trainer_options;

enum { HV_TRAINER_NUMBERS = 6 };

/* Fields are the trainer's; others may read them between steps. */
typedef struct hv_trainer {
  hv_device *device; /* not owned */
  hv_comm *comm;     /* not owned; NULL: one rank */
  hv_trace *trace;   /* not owned; NULL: none */
  hv_stream *stream;
  hv_stream *uploads; /* copies of batches, beside `stream` */
  hv_model *model;
  hv_params *params;       /* the model's */
  hv_optimizer *optimizer; /* NULL with no_update, which hv_trainer_step does not allow */
  hv_ema *ema;             /* NULL: none */
  hv_sequence *sequences[2];
  int current; /* index of the one that is used next */
  bool built;  /* whether that one holds a batch, whose upload has been queued */
  hv_arena arena;
  double matrix_flops; /* of one micro-batch, forward and backward without recomputation, from the plan device */
  hv_sequence_limits limits;
  int32_t parts;
  hv_loss_weights weights;
  uint64_t seed;
  int64_t step;        /* completed steps */
  int64_t samples;     /* samples that they consumed, over all ranks */
  int64_t skipped;     /* steps in a row, up to the newest; to resume, a caller sets step, samples and skipped */
  int64_t total_steps; /* set by the caller: the last of so many steps reads no batch ahead; 0: every step does */
  float (*losses)[2];  /* [parts]: noise loss and cross-entropy of each on this rank; page-locked */
  hv_spike_settings spikes;
  hv_spike_means means;
  /* For the caller: hv_trainer_step replaces them by their sums over ranks. */
  double numbers[HV_TRAINER_NUMBERS];
} hv_trainer;

/* Opens a trainer. hv_trainer_initialize must then fill the parameters, and hv_ema_reset the average. */
HV_NODISCARD hv_status hv_trainer_open(hv_device *device, const hv_trainer_options *options, hv_trainer **out);
void hv_trainer_close(hv_trainer *trainer); /* NULL is allowed */

/* Values: those of an open model directory, or, with NULL, random ones made from the seed. Tensors of the directory
 * that the model does not know are listed in `unexpected` (optional). */
HV_NODISCARD hv_status hv_trainer_initialize(hv_trainer *trainer, const hv_model_directory *directory,
                                             hv_text *unexpected);

typedef struct hv_step_result {
  double loss, loss_diffusion, loss_ce; /* before the update; the parts unweighted */
  double grad_norm;                     /* before clipping */
  hv_skip_reason skipped;               /* nothing was updated */
  double own_seconds; /* with several ranks: what this one took before it waited for the others' gradients; with
                         parallel.sharding "parameters" this includes waits for values */
} hv_step_result;

/* One optimizer step: forward and backward over `parts` batches, clipping, AdamW, the moving average. The update is
 * skipped if a gradient is not finite or `spikes` rules it out. Waits for the device and for the other ranks. If one of
 * several ranks cannot read a batch, all return an error together (hv_comm_all_know), and nothing was updated. */
HV_NODISCARD hv_status hv_trainer_step(hv_trainer *trainer, hv_batch_source *source, double learning_rate,
                                       hv_step_result *out);

/* Reads and uploads the batch with which the next step begins, unless that was done already. */
HV_NODISCARD hv_status hv_trainer_read_ahead(hv_trainer *trainer, hv_batch_source *source);

/* Before the first step: one pass over the run's next batch, with accumulation two, in which the first rank's device
 * measures algorithms (hv_device_measure_choices); the results are discarded. All ranks call it. If the device has
 * nothing to measure, or its results are watched, *measured is false and nothing was done. */
HV_NODISCARD hv_status hv_trainer_measure_choices(hv_trainer *trainer, hv_batch_source *source, bool *measured);

/* Samples of one step, on all ranks. */
int64_t hv_trainer_batch(const hv_trainer *trainer);

/* The sequence that holds no batch of the run, free to use between two steps; it holds what `limits` say. */
hv_sequence *hv_trainer_idle_sequence(hv_trainer *trainer);

#endif
