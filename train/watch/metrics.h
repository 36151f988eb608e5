/* What a run leaves in RUN/metrics.jsonl, one JSON object a line (docs/training.md), and the same figures as
 * TensorBoard's event files in RUN/tensorboard/: figures of steps as "train/loss", …, of the held-out split as
 * "held_out/loss", "held_out/error_diffusion", "held_out/error_diffusion_dims/0", …. */
#ifndef HV_TRAIN_WATCH_METRICS_H
#define HV_TRAIN_WATCH_METRICS_H

#include "train/trainer.h"
#include "train/validation.h"
#include "train/watch/pace.h"

typedef struct hv_metrics_line {
  int64_t step; /* steps done */
  double epoch;
  hv_step_result result; /* of that step */
  double learning_rate, samples_per_s;
  double model_flops;    /* matrix-product operations a second of each rank's device; 0: not known yet */
  double speed_of_light; /* model_flops over the device's best rate; 0: not known yet */
  double memory_bytes;   /* the first rank's device, peak so far */
  const hv_pace *pace;   /* NULL if not measured at this step, like held_out */
  const hv_validation *held_out;
  json_t *suspects; /* of a skipped step: hv_suspects_describe; not owned, may be NULL */
} hv_metrics_line;

typedef struct hv_metrics hv_metrics;

/* Opens metrics.jsonl for appending after dropping every line of a later step than `step` (and a last line that was cut
 * off); step 0 begins a new file. With `tensorboard`, begins an event file in which later steps' figures are void. */
HV_NODISCARD hv_status hv_metrics_open(const char *run, int64_t step, bool tensorboard, hv_metrics **out);
/* A number that is not finite is written as null. */
HV_NODISCARD hv_status hv_metrics_write(hv_metrics *metrics, const hv_metrics_line *line);
void hv_metrics_close(hv_metrics *metrics); /* NULL is allowed */

#endif
