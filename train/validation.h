/* How well a model in training does on episodes it has not seen. Deterministic: the same parameters give the same
 * figures, whatever the step. */
#ifndef HV_TRAIN_VALIDATION_H
#define HV_TRAIN_VALIDATION_H

#include "train/run/run_data.h"
#include "train/watch/progress.h"

enum { HV_MAX_ERROR_DIMS = 64 };

/* What is measured: a way to predict actions. */
typedef enum hv_predictor {
  HV_PREDICT_DIFFUSION,
  HV_PREDICT_AUTOREGRESSIVE,
  HV_PREDICT_ENSEMBLE,
  HV_PREDICT_MEAN_ACTION, /* the baseline: always the mean action of the training split, with grippers not snapped */
  HV_PREDICTORS,
} hv_predictor;

/* "diffusion", "autoregressive", "ensemble", "mean_action". */
const char *hv_predictor_name(hv_predictor predictor);

/* Mean absolute errors in normalised units, of what a robot would do: values are clipped to [−1, 1], grippers snapped;
 * steps past an episode's end are left out. NaN if a prediction is not finite, which a robot would not be given. */
typedef struct hv_validation {
  int64_t frames;                       /* that were measured, each with one prediction */
  int64_t not_finite;                   /* of the predictions */
  double loss, loss_diffusion, loss_ce; /* means over the frames, with K draws of noise each */
  bool present[HV_PREDICTORS];          /* false for a predictor whose head the model lacks */
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

/* Measures the held-out split of `data`, which must have one; `progress` (or NULL) shows how far it is. Of R ranks each
 * predicts every R-th frame; ranks wait for one another at every frame, and all get the figures of the whole split. A
 * batch that one rank cannot read is an error of all. */
HV_NODISCARD hv_status hv_validate(hv_trainer *trainer, const hv_run_data *data, hv_progress *progress,
                                   hv_validation *out);

#endif
