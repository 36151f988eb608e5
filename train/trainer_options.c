#include "train/trainer_options.h"

hv_trainer_options hv_trainer_options_make(const hv_train_config *config, const hv_config *model, int32_t ranks,
                                           int32_t prompt) {
  const hv_train_settings *train = &config->train;
  const hv_optimizer_options *optimizer = &config->optimizer;
  int64_t micro_batch = hv_train_config_micro_batch(config, ranks);
  return (hv_trainer_options){
      .config = model,
      .dtype = hv_train_config_dtype(config),
      .gradients = optimizer->gradients == 0 ? HV_F32 : HV_BF16,
      .limits = {.samples = (int32_t)micro_batch, .branches = (int32_t)train->branches, .prompt = prompt},
      .parts = (int32_t)(train->batch_size / ranks / micro_batch),
      .freeze = (const char *const *)train->freeze.items,
      .freeze_count = (int)train->freeze.count,
      .recompute = {.level = (hv_recompute)train->recompute, .layers = (int32_t)train->recompute_layers},
      .rate_patterns = (const char *const *)optimizer->groups.names,
      .rate_factors = optimizer->groups.values,
      .rate_count = optimizer->groups.count,
      .weights = {.diffusion = train->diffusion_weight, .ce = train->ce_weight},
      .optimizer = {.beta1 = optimizer->beta1,
                    .beta2 = optimizer->beta2,
                    .eps = optimizer->eps,
                    .weight_decay = optimizer->weight_decay,
                    .max_norm = optimizer->max_grad_norm,
                    .moments = (hv_moment_format)optimizer->moments},
      .spikes = {.factor = config->watch.spike_factor, .window = config->watch.spike_window},
      .ema_decay = train->ema_decay,
      .seed = (uint64_t)config->seed,
      .sharding = (hv_sharding)config->parallel.sharding,
  };
}
