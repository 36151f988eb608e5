#include "train/plan/plan_search.h"

#include <stdio.h>

#include "core/tensor/moments.h"
#include "train/optimizer.h"

typedef struct searcher {
  const hv_train_config *config;
  const hv_config *model;
  const hv_forecast_options *options;
  size_t memory_bytes;
} searcher;

/* Whether each rank's share of the smallest group is a whole block: 8-bit moments cannot be split otherwise. */
static bool shares_are_whole_blocks(int32_t ranks) {
  return ranks <= HV_GROUP_ALIGNMENT / HV_MOMENT_BLOCK;
}

bool hv_plan_ranks_can_share(int32_t ranks, int32_t moments) {
  if (moments == HV_MOMENTS_INT8 && !shares_are_whole_blocks(ranks)) return false;
  return ranks > 1 && HV_GROUP_ALIGNMENT % ranks == 0;
}

static hv_status forecast(const searcher *self, hv_plan_candidate *candidate) {
  hv_train_config config = *self->config;
  config.parallel.sharding = (int32_t)candidate->sharding;
  config.train.recompute = (int32_t)candidate->recompute;
  config.train.micro_batch = candidate->micro_batch;
  config.optimizer.moments = candidate->moments;
  config.optimizer.gradients = candidate->gradients;
  HV_TRY(hv_forecast_make(&config, self->model, self->options, &candidate->forecast));
  candidate->fits = candidate->forecast.memory.total <= self->memory_bytes;
  return HV_OK;
}

/* Whether that part of the memory fits that neither micro-batch nor recomputation changes. */
static bool state_fits(const searcher *self, const hv_plan_candidate *candidate) {
  const size_t *bytes = candidate->forecast.memory.bytes;
  return bytes[HV_MEMORY_WEIGHTS] + bytes[HV_MEMORY_MASTER] + bytes[HV_MEMORY_MOMENTS] <= self->memory_bytes;
}

enum { DIVISORS = 240 }; /* of any number up to HV_BATCH_SIZE_MAX; 720,720 has the most */

/* Writes the divisors of `number` in ascending order and returns how many there are. */
static int list_divisors(int64_t number, int64_t divisors[DIVISORS]) {
  int count = 0;
  for (int64_t divisor = 1; divisor <= number; divisor++) {
    if (number % divisor == 0) divisors[count++] = divisor;
  }
  return count;
}

/* Finds the largest divisor of `most` that fits as a micro-batch (fewer passes are never slower), or 1 if none does. If
 * not even the state fits, it goes on to 1 at once. */
static hv_status find_micro_batch(const searcher *self, int64_t most, hv_plan_candidate *found) {
  found->micro_batch = most;
  HV_TRY(forecast(self, found));
  if (found->fits || most == 1) return HV_OK;
  int64_t divisors[DIVISORS] = {1};
  int fitting = 0, end = list_divisors(most, divisors) - 1; /* the first `fitting` fit, those from `end` on do not */
  if (!state_fits(self, found)) end = 1;
  while (fitting < end) {
    int middle = (fitting + end) / 2;
    hv_plan_candidate tried = *found;
    tried.micro_batch = divisors[middle];
    HV_TRY(forecast(self, &tried));
    if (tried.fits) {
      fitting = middle + 1;
    } else {
      end = middle;
    }
    if (tried.fits || fitting == 0) *found = tried;
  }
  return HV_OK;
}

static bool is_better(const hv_plan_candidate *a, const hv_plan_candidate *b) {
  if (a->fits != b->fits) return a->fits;
  return a->fits && a->forecast.step_seconds < b->forecast.step_seconds;
}

/* Calls `take` with a candidate for every sharding and recomputation, with moments and gradients stored as given. */
static hv_status try_all(const searcher *self, int32_t moments, int32_t gradients, hv_plan_search *out,
                         void (*take)(const hv_plan_candidate *candidate, hv_plan_search *out)) {
  for (int s = 0; s < out->shardings; s++) {
    int64_t most = self->config->train.batch_size / self->options->ranks; /* a rank's whole part of the batch */
    for (int r = 0; r < HV_RECOMPUTE_LEVELS; r++) {
      hv_plan_candidate candidate = {
          .sharding = (hv_sharding)s, .recompute = (hv_recompute)r, .moments = moments, .gradients = gradients};
      HV_TRY(find_micro_batch(self, most, &candidate));
      take(&candidate, out);
      if (!state_fits(self, &candidate)) most = 1;
    }
  }
  return HV_OK;
}

static void take_same(const hv_plan_candidate *candidate, hv_plan_search *out) {
  out->table[candidate->sharding][candidate->recompute] = *candidate;
  if (is_better(candidate, &out->best)) out->best = *candidate;
  if (candidate->forecast.memory.total < out->least.forecast.memory.total) out->least = *candidate;
}

static void take_coarser(const hv_plan_candidate *candidate, hv_plan_search *out) {
  if (is_better(candidate, &out->coarser)) out->coarser = *candidate;
}

/* Tries fewer bits: for moments first, then for gradients, too. */
static hv_status search_coarser(const searcher *self, hv_plan_search *out) {
  const hv_optimizer_options *optimizer = &self->config->optimizer;
  int32_t moments = shares_are_whole_blocks(self->options->ranks) ? HV_MOMENTS_INT8 : optimizer->moments;
  int32_t gradients = hv_train_config_dtype(self->config) == HV_BF16 ? 1 : optimizer->gradients;
  if (moments != optimizer->moments) HV_TRY(try_all(self, moments, optimizer->gradients, out, take_coarser));
  if (out->coarser.fits || gradients == optimizer->gradients) return HV_OK;
  return try_all(self, moments, gradients, out, take_coarser);
}

hv_status hv_plan_search_make(const hv_train_config *config, const hv_config *model, const hv_forecast_options *options,
                              size_t memory_bytes, hv_plan_search *out) {
  searcher self = {.config = config, .model = model, .options = options, .memory_bytes = memory_bytes};
  int32_t moments = config->optimizer.moments, gradients = config->optimizer.gradients;
  *out = (hv_plan_search){.shardings = hv_plan_ranks_can_share(options->ranks, moments) ? HV_SHARDINGS : 1};
  out->given = (hv_plan_candidate){.sharding = (hv_sharding)config->parallel.sharding,
                                   .recompute = (hv_recompute)config->train.recompute,
                                   .micro_batch = hv_train_config_micro_batch(config, options->ranks),
                                   .moments = moments,
                                   .gradients = gradients};
  HV_TRY(forecast(&self, &out->given));
  out->best = out->least = out->given;
  HV_TRY(try_all(&self, moments, gradients, out, take_same));
  return out->best.fits ? HV_OK : search_coarser(&self, out);
}

/* Adds " key=value" for a setting that differs; the first has no space before it. */
static void add_setting(const char *key, const char *value, size_t start, hv_text *out) {
  hv_text_add(out, "%s%s=%s", out->length > start ? " " : "", key, value);
}

void hv_plan_candidate_text(const hv_plan_candidate *candidate, const hv_plan_search *search, hv_text *out) {
  const hv_plan_candidate *given = &search->given;
  size_t start = out->length;
  char micro_batch[32];
  snprintf(micro_batch, sizeof micro_batch, "%lld", (long long)candidate->micro_batch);
  if (candidate->sharding != given->sharding)
    add_setting("parallel.sharding", hv_train_config_sharding_name(candidate->sharding), start, out);
  if (candidate->recompute != given->recompute)
    add_setting("train.recompute", hv_train_config_recompute_name(candidate->recompute), start, out);
  if (candidate->micro_batch != given->micro_batch) add_setting("train.micro_batch", micro_batch, start, out);
  if (candidate->moments != given->moments)
    add_setting("optimizer.moments", hv_train_config_moments_name(candidate->moments), start, out);
  if (candidate->gradients != given->gradients)
    add_setting("optimizer.gradients", hv_train_config_gradients_name(candidate->gradients), start, out);
  if (out->length == start) hv_text_add(out, "the configuration as it is");
}
