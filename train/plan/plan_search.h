/* Which settings of a configuration fit the memory of its devices, and which of those a forecast finds fastest. It
 * searches settings that change results by rounding at most: sharding, recomputation and micro-batch, of which it takes
 * the largest that divides a rank's part of the batch and fits. If none of them fits, moments in 8 bits are tried, and
 * then gradients in bf16 too.
 */
#ifndef HV_TRAIN_PLAN_PLAN_SEARCH_H
#define HV_TRAIN_PLAN_PLAN_SEARCH_H

#include "core/hybridvla/model.h"
#include "train/plan/forecast.h"

enum { HV_SHARDINGS = HV_SHARD_PARAMETERS + 1, HV_RECOMPUTE_LEVELS = HV_RECOMPUTE_BLOCK + 1 };

typedef struct hv_plan_candidate {
  hv_sharding sharding;
  hv_recompute recompute;
  int64_t micro_batch;
  int32_t moments, gradients; /* as optimizer.moments and optimizer.gradients name them */
  bool fits;
  hv_forecast forecast;
} hv_plan_candidate;

typedef struct hv_plan_search {
  hv_plan_candidate given;                                    /* as configured */
  hv_plan_candidate table[HV_SHARDINGS][HV_RECOMPUTE_LEVELS]; /* each with the largest micro-batch that fits, else 1 */
  int shardings;                                              /* rows of the table: 1 if the ranks cannot shard */
  hv_plan_candidate best;                                     /* the fastest that fits; !best.fits: none does */
  hv_plan_candidate least;                                    /* the one of all that needs least memory */
  hv_plan_candidate coarser; /* if best does not fit: with fewer bits; !coarser.fits: that does not fit either */
} hv_plan_search;

/* `config` has a batch that the ranks can share (hv_train_config_check_ranks), and sharding that they can do. */
HV_NODISCARD hv_status hv_plan_search_make(const hv_train_config *config, const hv_config *model,
                                           const hv_forecast_options *options, size_t memory_bytes,
                                           hv_plan_search *out);

/* Whether this number of ranks can shard the model's state; `moments` is an index as of optimizer.moments. */
bool hv_plan_ranks_can_share(int32_t ranks, int32_t moments);

/* "parallel.sharding=gradients train.recompute=block": what differs from the configuration; "the configuration as it
 * is" where nothing does. */
void hv_plan_candidate_text(const hv_plan_candidate *candidate, const hv_plan_search *search, hv_text *out);

#endif
