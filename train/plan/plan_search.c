#include "train/plan/plan_search.h"

typedef struct searcher {
  const hv_train_config *config;
  const hv_config *model;
  const hv_forecast_options *options;
  size_t memory_bytes;
} searcher;

bool hv_plan_ranks_can_share(int32_t ranks) {
  return ranks > 1 && HV_GROUP_ALIGNMENT % ranks == 0;
}

static hv_status forecast(const searcher *self, hv_plan_candidate *candidate) {
  hv_train_config config = *self->config;
  config.parallel.sharding = (int32_t)candidate->sharding;
  config.train.recompute = (int32_t)candidate->recompute;
  config.train.micro_batch = candidate->micro_batch;
  HV_TRY(hv_forecast_make(&config, self->model, self->options, &candidate->forecast));
  candidate->fits = candidate->forecast.memory.total <= self->memory_bytes;
  return HV_OK;
}

/* The largest micro-batch that fits, halving from a rank's whole part of the batch: fewer passes are never slower. */
static hv_status try_micro_batches(const searcher *self, hv_plan_candidate *candidate) {
  candidate->micro_batch = self->config->train.batch_size / self->options->ranks;
  for (;;) {
    HV_TRY(forecast(self, candidate));
    if (candidate->fits || candidate->micro_batch == 1) return HV_OK;
    candidate->micro_batch = candidate->micro_batch % 2 == 0 ? candidate->micro_batch / 2 : 1;
  }
}

static bool is_better(const hv_plan_candidate *a, const hv_plan_candidate *b) {
  if (a->fits != b->fits) return a->fits;
  return a->fits && a->forecast.step_seconds < b->forecast.step_seconds;
}

static void consider(const hv_plan_candidate *candidate, hv_plan_search *out) {
  if (is_better(candidate, &out->best)) out->best = *candidate;
  if (candidate->forecast.memory.total < out->least.forecast.memory.total) out->least = *candidate;
}

hv_status hv_plan_search_make(const hv_train_config *config, const hv_config *model, const hv_forecast_options *options,
                              size_t memory_bytes, hv_plan_search *out) {
  searcher self = {.config = config, .model = model, .options = options, .memory_bytes = memory_bytes};
  *out = (hv_plan_search){.shardings = hv_plan_ranks_can_share(options->ranks) ? HV_SHARDINGS : 1};
  out->given = (hv_plan_candidate){.sharding = (hv_sharding)config->parallel.sharding,
                                   .recompute = (hv_recompute)config->train.recompute,
                                   .micro_batch = hv_train_config_micro_batch(config, options->ranks)};
  HV_TRY(forecast(&self, &out->given));
  out->best = out->least = out->given;
  for (int s = 0; s < out->shardings; s++) {
    for (int r = 0; r < HV_RECOMPUTE_LEVELS; r++) {
      hv_plan_candidate *candidate = &out->table[s][r];
      *candidate = (hv_plan_candidate){.sharding = (hv_sharding)s, .recompute = (hv_recompute)r};
      HV_TRY(try_micro_batches(&self, candidate));
      consider(candidate, out);
    }
  }
  return HV_OK;
}

void hv_plan_candidate_text(const hv_plan_candidate *candidate, const hv_plan_search *search, hv_text *out) {
  const hv_plan_candidate *given = &search->given;
  const char *between = "";
  if (candidate->sharding != given->sharding) {
    hv_text_add(out, "parallel.sharding=%s", hv_train_config_sharding_name(candidate->sharding));
    between = " ";
  }
  if (candidate->recompute != given->recompute) {
    hv_text_add(out, "%strain.recompute=%s", between, hv_train_config_recompute_name(candidate->recompute));
    between = " ";
  }
  if (candidate->micro_batch != given->micro_batch) {
    hv_text_add(out, "%strain.micro_batch=%lld", between, (long long)candidate->micro_batch);
    between = " ";
  }
  if (*between == '\0') hv_text_add(out, "the configuration as it is");
}
