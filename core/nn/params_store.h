/* The inside of the parameter store, shared by its three files, each of which calls only the ones after it: params.c
 * (declarations, host copies), shards.c (communication between ranks) and param_memory.c (where parameters and
 * gradients lie). */
#ifndef HV_NN_PARAMS_STORE_H
#define HV_NN_PARAMS_STORE_H

#include "core/nn/params.h"
#include "core/nn/use_order.h"

typedef struct hv_group_state {
  hv_group info;
  int64_t value_start;    /* elements from the start of the values */
  int64_t gradient_start; /* elements from the start of the gradients */
  bool in_use;
  hv_span *span;                        /* of the current use, in the trace */
  hv_ticket published;                  /* the all-gather of its values after an update */
  char *values_label, *gradients_label; /* name its collectives in messages; owned, NULL on one rank */
} hv_group_state;

/* A slot is a buffer for one whole group, while only shares are kept. At most two groups are in use at once (the head's
 * and the noise head's); the third slot is for prefetching values, or for gradients that are being summed. */
enum { HV_VALUE_SLOTS = 3, HV_GRADIENT_SLOTS = 3 };

typedef struct hv_group_slot {
  char *memory;
  char *sum;         /* gradient slots: buffer for this rank's share of the sum */
  hv_group_id group; /* whose elements it holds; -1: none */
  hv_ticket ticket;  /* of the all-gather of values, or of the reduce-scatter of gradients until it is added to the kept
                        share; 0: none */
  int64_t used;      /* `clock` at the last fetch or use */
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
  char *values, *gradients; /* whole groups, or this rank's share of each, at value_start and gradient_start */
  int64_t gradient_elements;
  bool *blank; /* for each parameter: its gradient is zero, but the zeros are not written; NULL without gradients */
  const char *breach; /* the first error in the order of use, done, gradients_ready; NULL: none */
  hv_group_id breach_group;

  hv_trace *trace; /* not owned; NULL: none */
  hv_comm *comm;   /* not owned; NULL: one rank */
  hv_sharding sharding;
  bool reduce;        /* whether gradients_ready sums over ranks, where gradients are whole */
  hv_ticket last_sum; /* of the last sum of gradients that are kept whole */
  int64_t clock;
  hv_use_order order; /* for prefetching values */
  hv_group_slot value_slots[HV_VALUE_SLOTS], gradient_slots[HV_GRADIENT_SLOTS];
};

static inline bool hv_shards_values(const hv_params *params) {
  return params->comm && params->sharding >= HV_SHARD_PARAMETERS;
}
static inline bool hv_shards_gradients(const hv_params *params) {
  return params->comm && params->sharding >= HV_SHARD_GRADIENTS;
}

/* How many elements of a group's values or gradients this rank keeps. */
static inline int64_t hv_kept_count(const hv_params *params, const hv_group_state *group, bool sharded) {
  return sharded ? group->info.count / params->comm->size : group->info.count;
}

/* param_memory.c */

/* Memory for `elements`, zeroed so that the padding between parameters is never undefined. */
HV_NODISCARD hv_status hv_params_allocate_zeroed(hv_params *params, hv_memory_kind kind, int64_t elements,
                                                 hv_dtype dtype, const char *what, char **out);

/* The slot that holds a whole group, NULL if none does. */
hv_group_slot *hv_group_value_slot(const hv_params *params, hv_group_id group);
hv_group_slot *hv_group_gradient_slot(const hv_params *params, hv_group_id group);

/* Address of what this rank keeps of a group. */
char *hv_group_kept_values(const hv_params *params, hv_group_id group);
char *hv_group_kept_gradients(const hv_params *params, hv_group_id group);

/* hv_group_zero_gradients zeroes a group's gradients, but only marks those of linear weights as blank, which a product
 * will set; hv_group_fill_blank writes the zeros of those that are still blank. */
void hv_group_zero_gradients(hv_params *params, hv_group_id group, hv_stream *stream);
void hv_group_fill_blank(hv_params *params, hv_group_id group, hv_stream *stream);

/* shards.c */

/* Allocate labels and slots, once all groups are declared; the second one for gradients. */
HV_NODISCARD hv_status hv_shards_allocate_values(hv_params *params);
HV_NODISCARD hv_status hv_shards_allocate_gradients(hv_params *params);
void hv_shards_release(hv_params *params);

/* Gathers a group's values into a slot unless one holds them, and makes the stream wait for them. */
void hv_shards_fetch(hv_params *params, hv_group_id group, hv_stream *stream);

/* Makes the stream wait for all sums of gradients, and adds those in slots to the kept shares. */
void hv_shards_finish_sums(hv_params *params, hv_stream *stream);

/* Invalidates the value slots, because the shares have changed. */
void hv_shards_forget(hv_params *params);

#endif
