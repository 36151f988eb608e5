/* What the parameter store is made of, for its three files, each of which knows those below it: params.c (declarations,
 * host copies), shards.c (what ranks give one another) and param_memory.c (where parameters and gradients lie). */
#ifndef HV_NN_PARAMS_STORE_H
#define HV_NN_PARAMS_STORE_H

#include "core/nn/params.h"
#include "core/nn/use_order.h"

typedef struct hv_group_state {
  hv_group info;
  int64_t value_start;    /* elements from the start of the values */
  int64_t gradient_start; /* elements from the start of the gradients */
  bool in_use;
  hv_span *span;                        /* of its use, in the trace */
  hv_ticket published;                  /* the gather that made its values whole after an update */
  char *values_label, *gradients_label; /* of its collectives; owned, NULL on one rank */
} hv_group_state;

/* Room for one whole group, where only shares are kept. Two groups are in use at once at most (the head and the noise
 * head's layers); a third has its values fetched ahead of use, or its gradients summed while the pass goes on. */
enum { HV_VALUE_SLOTS = 3, HV_GRADIENT_SLOTS = 3 };

typedef struct hv_group_slot {
  char *memory;
  char *sum;         /* of gradients: room for this rank's share of the sum */
  hv_group_id group; /* whose elements it holds; -1: none */
  hv_ticket ticket;  /* of values: their gather; of gradients: their sum, until it is added to what is kept; 0: none */
  int64_t used;      /* when it was last fetched or used */
} hv_group_slot;

struct hv_params {
  hv_device *device;
  hv_stream *stream; /* for filling new memory */
  hv_dtype dtype, gradient_dtype;
  hv_param *params;
  int32_t count, capacity;
  hv_group_state *groups;
  int32_t group_count, group_capacity;
  hv_status declaration_error;
  char *values, *gradients; /* whole groups, or this rank's share of each: value_start and gradient_start fit */
  int64_t gradient_elements;
  bool *blank; /* of each parameter: its gradient stands for zeros that nobody has written; NULL without gradients */
  const char *breach; /* of the order of use, done, gradients_ready; NULL: none */
  hv_group_id breach_group;

  hv_trace *trace; /* not owned; NULL: none */
  hv_comm *comm;   /* not owned; NULL: one rank */
  hv_sharding sharding;
  bool reduce;        /* whether gradients_ready sums over ranks, where gradients are whole */
  hv_ticket last_sum; /* of gradients that are whole */
  int64_t clock;
  hv_use_order order; /* of values that are fetched ahead */
  hv_group_slot value_slots[HV_VALUE_SLOTS], gradient_slots[HV_GRADIENT_SLOTS];
};

static inline bool hv_shards_values(const hv_params *params) {
  return params->comm && params->sharding >= HV_SHARD_PARAMETERS;
}
static inline bool hv_shards_gradients(const hv_params *params) {
  return params->comm && params->sharding >= HV_SHARD_GRADIENTS;
}

/* Elements of a group's values or gradients that are kept on this rank, given whether they are sharded. */
static inline int64_t hv_kept_count(const hv_params *params, const hv_group_state *group, bool sharded) {
  return sharded ? group->info.count / params->comm->size : group->info.count;
}

/* param_memory.c */

/* Memory of `elements`, all 0, so that the padding between parameters is never undefined. */
HV_NODISCARD hv_status hv_params_allocate_zeroed(hv_params *params, hv_memory_kind kind, int64_t elements,
                                                 hv_dtype dtype, const char *what, char **out);

/* The slot that holds a whole group, NULL if none does. */
hv_group_slot *hv_group_value_slot(const hv_params *params, hv_group_id group);
hv_group_slot *hv_group_gradient_slot(const hv_params *params, hv_group_id group);

/* Where what this rank keeps of a group lies. */
char *hv_group_kept_values(const hv_params *params, hv_group_id group);
char *hv_group_kept_gradients(const hv_params *params, hv_group_id group);

/* Zeros the group's gradients, and leaves blank what a product will set; or writes the zeros that are still due. */
void hv_group_zero_gradients(hv_params *params, hv_group_id group, hv_stream *stream);
void hv_group_fill_blank(hv_params *params, hv_group_id group, hv_stream *stream);

/* shards.c */

/* Labels and slots, once the groups are complete; the second for gradients. */
HV_NODISCARD hv_status hv_shards_allocate_values(hv_params *params);
HV_NODISCARD hv_status hv_shards_allocate_gradients(hv_params *params);
void hv_shards_release(hv_params *params);

/* Makes a whole group's values readable: a slot that holds them, fetched if need be. */
void hv_shards_fetch(hv_params *params, hv_group_id group, hv_stream *stream);

/* Makes the stream wait for all sums of gradients, and adds those that are left to what is kept. */
void hv_shards_finish_sums(hv_params *params, hv_stream *stream);

/* Forgets what the slots hold, because the shares have changed. */
void hv_shards_forget(hv_params *params);

#endif
