#include "train/plan/best_rate.h"

#include "core/tensor/rates.h"

hv_status hv_best_rate_measure(hv_device *device, const hv_trainer_options *options, double patience, double *rate) {
  const hv_llm_config *llm = &options->config->llm;
  hv_sequence_counts counts = hv_sequence_largest(options->config, &options->limits);
  hv_status status = hv_measure_products(device, options->dtype, counts.rows, llm->hidden_size, llm->intermediate_size,
                                         patience, rate);
  hv_memory_reset_peak(&device->memory);
  return status;
}
