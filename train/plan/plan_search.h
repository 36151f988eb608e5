/* Which settings of a configuration fit the memory of its devices, and which of those a forecast finds fastest.
 * Settings that leave the results as they are, to rounding, are looked through: what ranks share, what is worked out
 * twice, and how much of a batch is in memory at a time. Where none of those fits, moments and then gradients too are
 * tried in fewer bits.
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
  hv_plan_candidate table[HV_SHARDINGS][HV_RECOMPUTE_LEVELS]; /* with the largest micro-batch that fits, else 1 */
  int shardings;                                              /* rows of it: 1 where the ranks cannot share */
  hv_plan_candidate best;                                     /* the fastest that fits; not .fits: none does */
  hv_plan_candidate least;                                    /* of all, the one that needs least memory */
  hv_plan_candidate coarser; /* with fewer bits, where best does not fit; not .fits: none does either */
} hv_plan_search;

/* `config` has a batch that the ranks can share (hv_train_config_check_ranks), and sharding that they can do. */
HV_NODISCARD hv_status hv_plan_search_make(const hv_train_config *config, const hv_config *model,
                                           const hv_forecast_options *options, size_t memory_bytes,
                                           hv_plan_search *out);

/* Whether so many ranks can keep parts of the model's state, with `moments` as optimizer.moments names them. */
bool hv_plan_ranks_can_share(int32_t ranks, int32_t moments);

/* "parallel.sharding=gradients train.recompute=block": what differs from the configuration; "the configuration as it
 * is" where nothing does. */
void hv_plan_candidate_text(const hv_plan_candidate *candidate, const hv_plan_search *search, hv_text *out);

#endif
