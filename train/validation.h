/* How well a model in training does on episodes it has not seen. Deterministic: the same parameters give the same
 * figures, whatever the step. */
#ifndef HV_TRAIN_VALIDATION_H
#define HV_TRAIN_VALIDATION_H

#include "train/run/run_data.h"
#include "train/watch/progress.h"

enum { HV_MAX_ERROR_DIMS = 64 };

/* Who is measured. */
typedef enum hv_predictor {
  HV_PREDICT_DIFFUSION,
  HV_PREDICT_AUTOREGRESSIVE,
  HV_PREDICT_ENSEMBLE,
  HV_PREDICT_MEAN_ACTION, /* always the mean action of the training split, whose grippers are not snapped */
  HV_PREDICTORS,
} hv_predictor;

/* "diffusion", "autoregressive", "ensemble", "mean_action". */
const char *hv_predictor_name(hv_predictor predictor);

/* Mean absolute errors in normalised units, of what a robot would do: values clipped to [−1, 1], grippers snapped;
 * steps past an episode's end are left out. NaN where a prediction is not finite, of which a robot gets none. */
typedef struct hv_validation {
  int64_t frames;                       /* that were measured, each with one prediction */
  int64_t not_finite;                   /* of the predictions */
  double loss, loss_diffusion, loss_ce; /* means over the frames, with K draws of noise each */
  bool present[HV_PREDICTORS];          /* a model without a head has no figures for it */
  double error[HV_PREDICTORS];          /* mean over all dimensions */
  double dims[HV_PREDICTORS][HV_MAX_ERROR_DIMS];
  int32_t action_dim;
  double ensemble_rate; /* how often the ensemble averaged both heads */
} hv_validation;

/* A figure by which runs are judged: the smaller the better. */
typedef enum hv_held_out_metric {
  HV_METRIC_LOSS,
  HV_METRIC_DIFFUSION,
  HV_METRIC_AUTOREGRESSIVE,
  HV_METRIC_ENSEMBLE,
} hv_held_out_metric;

/* The figure; NaN where a model without that head has none. */
double hv_held_out_figure(const hv_validation *held_out, hv_held_out_metric metric);

/* HV_ERR_INPUT where a model has too many action dimensions to be measured. */
HV_NODISCARD hv_status hv_validation_check(const hv_config *model);

/* Measures the held-out split of `data`, which must have one; `progress` (NULL: nobody) shows how far it is. Ranks
 * predict every size-th frame each, wait for one another at every one, and all get the figures of the whole. A batch
 * that one cannot read is an error of all. */
HV_NODISCARD hv_status hv_validate(hv_trainer *trainer, const hv_run_data *data, hv_progress *progress,
                                   hv_validation *out);

#endif
