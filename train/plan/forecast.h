/* What a training step of a configuration will need and take, found by running steps on the plan device as one rank of
 * many: memory by kind, as a run's own account will show it, and time on a machine described by a few rates. Reads no
 * data and needs no card; on the host it takes memory for the batches alone.
 */
#ifndef HV_TRAIN_PLAN_FORECAST_H
#define HV_TRAIN_PLAN_FORECAST_H

#include "core/tensor/plan_comm.h"
#include "train/config.h"

typedef struct hv_forecast_options {
  int32_t ranks;
  int32_t prompt;                  /* tokens of the longest prompt, <s> included */
  const char *device;              /* "cuda", "cpu", …: the memory that the device itself takes is counted */
  double flops_per_s, bytes_per_s; /* hv_plan_machine */
  hv_plan_links links;
} hv_forecast_options;

/* An H100 with NVLink in machines of eight: rates of one card as measured (docs/scaling.md names the sources), links as
 * their makers state them. `dtype` is that of the parameters. */
hv_forecast_options hv_forecast_h100(int32_t ranks, hv_dtype dtype);

typedef struct hv_forecast {
  hv_memory_use memory;   /* of each rank's device, at the peak */
  size_t unseen_bytes;    /* the part of it that CUDA and NCCL hold, which a run's own account does not show */
  double step_seconds;    /* from one step to the next */
  double compute_seconds; /* the part of it in which the device computes; the rest is waiting for other ranks */
  double model_flops;     /* of matrix products of one rank's part of a step, without recomputation */
  double samples_per_s;   /* of all ranks */
  hv_plan_traffic traffic[HV_COLLECTIVES]; /* of one step */
} hv_forecast;

/* hv_forecast.unseen_bytes. */
size_t hv_forecast_unseen_bytes(const hv_forecast_options *options);

/* `config` has a batch that the ranks can share (hv_train_config_check_ranks). */
HV_NODISCARD hv_status hv_forecast_make(const hv_train_config *config, const hv_config *model,
                                        const hv_forecast_options *options, hv_forecast *out);

#endif
