/* `hvla-train bench`: how fast training steps run. */
#ifndef HV_TRAIN_PLAN_BENCH_H
#define HV_TRAIN_PLAN_BENCH_H

#include <jansson.h>

#include "train/config.h"

typedef struct hv_bench_options {
  int64_t batch;   /* 0: the configuration's micro-batch */
  int64_t steps;   /* measured steps, after one for warm-up */
  bool optimizer;  /* includes the update; else forward and backward only */
  hv_trace *trace; /* the trace to write; NULL: none */
} hv_bench_options;

/* Times steps on random values and inputs. *out, owned by the caller:
 *   samples_per_s, ms {min, median, max}, tokens_per_sample, model_tflops (necessary matrix-product work over the
 * median time), speed_of_light, peak_memory_bytes (device memory of parameters, gradients, activations and, with the
 *   optimizer, moments), stages (median ms of each), and what was run. */
HV_NODISCARD hv_status hv_bench(const hv_train_config *config, hv_device *device, const hv_bench_options *options,
                                json_t **out);

#endif
