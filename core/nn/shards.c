#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/nn/params_store.h"
#include "core/tensor/nan_watch.h"
#include "core/tensor/ops.h"

/* At most, in one pass: forward, recomputation, backward, and one to spare. */
enum { USES_OF_A_GROUP = 4 };

hv_status hv_params_distribute(hv_params *params, hv_comm *comm, hv_sharding sharding) {
  if (params->values) return hv_error(HV_ERR_INTERNAL, "parameters must be distributed before they are allocated");
  if (comm->size == 1) return HV_OK;
  if (sharding != HV_SHARD_NOTHING && HV_GROUP_ALIGNMENT % comm->size != 0) {
    return hv_error(
        HV_ERR_INPUT,
        "the model's state cannot be split evenly over %d ranks; use 2, 4, 8, … up to %d ranks, or do not shard it",
        comm->size, HV_GROUP_ALIGNMENT);
  }
  params->comm = comm;
  params->sharding = sharding;
  return HV_OK;
}

hv_comm *hv_params_comm(const hv_params *params) {
  return params->comm;
}

hv_sharding hv_params_sharding(const hv_params *params) {
  return params->comm ? params->sharding : HV_SHARD_NOTHING;
}

static char *label(const char *what, const char *group) {
  size_t size = strlen(what) + strlen(group) + sizeof " of ";
  char *text = malloc(size);
  if (text) snprintf(text, size, "%s of %s", what, group);
  return text;
}

static int64_t largest_group(const hv_params *params, bool trainable) {
  int64_t largest = 0;
  for (hv_group_id g = 0; g < params->group_count; g++) {
    const hv_group *group = &params->groups[g].info;
    if ((group->trainable || !trainable) && group->count > largest) largest = group->count;
  }
  return largest;
}

hv_status hv_shards_allocate_values(hv_params *params) {
  if (!params->comm) return HV_OK;
  for (hv_group_id g = 0; g < params->group_count; g++) {
    hv_group_state *group = &params->groups[g];
    group->values_label = label("values", group->info.name);
    group->gradients_label = label("gradients", group->info.name);
    if (!group->values_label || !group->gradients_label) return hv_error_memory("the parameter groups");
  }
  if (!hv_shards_values(params)) return HV_OK;
  int64_t largest = largest_group(params, false);
  for (int i = 0; i < HV_VALUE_SLOTS; i++) {
    hv_group_slot *slot = &params->value_slots[i];
    slot->group = -1;
    HV_TRY(hv_params_allocate_zeroed(params, HV_MEMORY_COMMUNICATION, largest, params->dtype, "the groups in use",
                                     &slot->memory));
  }
  return hv_use_order_open(USES_OF_A_GROUP * params->group_count, &params->order);
}

hv_status hv_shards_allocate_gradients(hv_params *params) {
  if (!hv_shards_gradients(params)) return HV_OK;
  int64_t largest = largest_group(params, true);
  hv_dtype dtype = params->gradient_dtype;
  for (int i = 0; i < HV_GRADIENT_SLOTS; i++) {
    hv_group_slot *slot = &params->gradient_slots[i];
    slot->group = -1;
    HV_TRY(hv_params_allocate_zeroed(params, HV_MEMORY_COMMUNICATION, largest, dtype, "the gradients of groups in use",
                                     &slot->memory));
    HV_TRY(hv_params_allocate_zeroed(params, HV_MEMORY_COMMUNICATION, largest / params->comm->size, dtype,
                                     "shares of gradients", &slot->sum));
  }
  return HV_OK;
}

/* Waits for collectives under way: all-gathers of updated or prefetched values. All ranks made these calls, so they
 * will end. */
static void finish_calls(hv_params *params) {
  if (!params->comm) return;
  hv_comm_wait(params->comm, hv_comm_last(params->comm), params->stream);
  hv_status_free(hv_stream_synchronize(params->stream)); /* the communicator keeps the error */
}

void hv_shards_release(hv_params *params) {
  finish_calls(params);
  for (hv_group_id g = 0; g < params->group_count; g++) {
    free(params->groups[g].values_label);
    free(params->groups[g].gradients_label);
  }
  for (int i = 0; i < HV_VALUE_SLOTS; i++) hv_device_release(params->device, params->value_slots[i].memory);
  for (int i = 0; i < HV_GRADIENT_SLOTS; i++) {
    hv_device_release(params->device, params->gradient_slots[i].memory);
    hv_device_release(params->device, params->gradient_slots[i].sum);
  }
  hv_use_order_close(&params->order);
}

/* Remembers the first breach of the order of use, done, gradients_ready. */
static void remember_breach(hv_params *params, hv_group_id group, const char *breach) {
  if (params->breach) return;
  params->breach = breach;
  params->breach_group = group;
}

hv_status hv_params_order_status(const hv_params *params) {
  if (!params->breach) return HV_OK;
  return hv_error(HV_ERR_INTERNAL, "parameter group %s was %s", params->groups[params->breach_group].info.name,
                  params->breach);
}

/* The slot that has been idle longest; NULL if all are in use. */
static hv_group_slot *idle_slot(hv_params *params, hv_group_slot *slots, int count) {
  hv_group_slot *oldest = NULL;
  for (int i = 0; i < count; i++) {
    if (slots[i].group >= 0 && params->groups[slots[i].group].in_use) continue;
    if (!oldest || slots[i].used < oldest->used) oldest = &slots[i];
  }
  return oldest;
}

/* A slot that holds the group's values, or will once its ticket is done; NULL if all slots are in use. The all-gather
 * starts after the work now on the stream, so that the last readers of the slot have finished. */
static hv_group_slot *start_fetch(hv_params *params, hv_group_id group, hv_stream *stream) {
  hv_group_slot *slot = hv_group_value_slot(params, group);
  if (!slot) {
    slot = idle_slot(params, params->value_slots, HV_VALUE_SLOTS);
    if (!slot) return NULL;
    slot->group = group;
    const hv_group_state *state = &params->groups[group];
    hv_tensor whole = hv_tensor_make(slot->memory, params->dtype, 1, state->info.count);
    hv_tensor share = hv_group_owned(params, group).values;
    slot->ticket = hv_comm_all_gather(params->comm, state->values_label, share, whole, stream);
  }
  slot->used = ++params->clock;
  return slot;
}

/* A model without any embedder has an empty group for them: there is nothing to gather. */
static bool is_empty(const hv_params *params, hv_group_id group) {
  return params->groups[group].info.count == 0;
}

void hv_shards_fetch(hv_params *params, hv_group_id group, hv_stream *stream) {
  if (is_empty(params, group)) return;
  const hv_group_slot *slot = start_fetch(params, group, stream);
  if (slot) {
    hv_comm_wait(params->comm, slot->ticket, stream);
  } else {
    remember_breach(params, group, "used while too many others were in use");
  }
}

static void fetch_ahead(hv_params *params, hv_group_id group, hv_stream *stream) {
  if (group >= 0 && !is_empty(params, group)) (void)start_fetch(params, group, stream);
}

void hv_shards_forget(hv_params *params) {
  for (int i = 0; i < HV_VALUE_SLOTS; i++) params->value_slots[i].group = -1;
}

/* Adds this rank's share of the sum to the share kept from earlier passes, and frees the slot. */
static void keep_sum(hv_params *params, hv_group_slot *slot, hv_stream *stream) {
  if (!slot->ticket) return;
  hv_tensor kept = hv_group_owned(params, slot->group).gradients;
  hv_tensor sum = hv_tensor_make(slot->sum, params->gradient_dtype, 1, kept.cols);
  hv_comm_wait(params->comm, slot->ticket, stream);
  slot->ticket = 0;
  slot->group = -1;
  hv_residual_add(stream, &(hv_residual_add_args){.x = kept, .delta = sum, .y = kept});
}

/* Gives the group a slot with zeroed gradients, unless it has one in this pass already. */
static void lend_gradients(hv_params *params, hv_group_id group, hv_stream *stream) {
  hv_group_slot *slot = hv_group_gradient_slot(params, group);
  if (!slot) slot = idle_slot(params, params->gradient_slots, HV_GRADIENT_SLOTS);
  if (!slot) {
    remember_breach(params, group, "used while too many others were in use");
    return;
  }
  keep_sum(params, slot, stream);
  slot->used = ++params->clock;
  if (slot->group == group) return;
  slot->group = group;
  hv_group_zero_gradients(params, group, stream);
}

void hv_params_trace(hv_params *params, hv_trace *trace) {
  params->trace = trace;
}

void hv_params_use(hv_params *params, hv_group_id group, hv_stream *stream) {
  hv_group_state *state = &params->groups[group];
  if (state->in_use) remember_breach(params, group, "used while in use");
  if (hv_shards_values(params)) {
    hv_shards_fetch(params, group, stream);
  } else if (params->comm) {
    hv_comm_wait(params->comm, state->published, stream);
  }
  state->in_use = true;
  state->span = hv_trace_begin(params->trace, HV_TRACE_COMPUTE, "forward", state->info.name, stream);
  hv_nan_watch_layer(params->device, state->info.name);
  if (hv_shards_values(params)) fetch_ahead(params, hv_use_order_next(&params->order, group), stream);
  if (hv_shards_gradients(params) && params->gradients && state->info.trainable) lend_gradients(params, group, stream);
}

static const char *layer_in_use(const hv_params *params) {
  for (hv_group_id g = 0; g < params->group_count; g++) {
    if (params->groups[g].in_use) return params->groups[g].info.name;
  }
  return NULL;
}

void hv_params_done(hv_params *params, hv_group_id group, hv_stream *stream) {
  hv_group_state *state = &params->groups[group];
  if (!state->in_use) remember_breach(params, group, "done without use");
  hv_trace_end(state->span, stream);
  state->in_use = false;
  hv_nan_watch_layer(params->device, layer_in_use(params));
}

void hv_params_gradients_ready(hv_params *params, hv_group_id group, hv_stream *stream) {
  const hv_group_state *state = &params->groups[group];
  if (!state->in_use) remember_breach(params, group, "ready with its gradients without use");
  hv_trace_rename(state->span, "backward");
  hv_tensor whole = hv_group_gradients(params, group);
  if (!hv_present(whole)) return;
  hv_group_fill_blank(params, group, stream);
  if (!params->comm) return;
  hv_comm *comm = params->comm;
  if (hv_shards_gradients(params)) {
    hv_group_slot *slot = hv_group_gradient_slot(params, group);
    hv_tensor sum = hv_tensor_make(slot->sum, params->gradient_dtype, 1, whole.cols / comm->size);
    slot->ticket = hv_comm_reduce_scatter(comm, state->gradients_label, whole, sum, stream);
  } else if (params->reduce && params->sharding == HV_SHARD_OPTIMIZER) {
    hv_tensor share = hv_comm_share(comm, whole);
    params->last_sum = hv_comm_reduce_scatter(comm, state->gradients_label, whole, share, stream);
  } else if (params->reduce) {
    params->last_sum = hv_comm_all_reduce(comm, state->gradients_label, whole, stream);
  }
}

void hv_params_begin_pass(hv_params *params, bool last, hv_stream *stream) {
  params->reduce = last;
  if (hv_shards_values(params)) fetch_ahead(params, hv_use_order_begin(&params->order), stream);
}

void hv_shards_finish_sums(hv_params *params, hv_stream *stream) {
  if (!params->comm) return;
  for (int i = 0; i < HV_GRADIENT_SLOTS; i++) keep_sum(params, &params->gradient_slots[i], stream);
  hv_comm_wait(params->comm, params->last_sum, stream);
}

void hv_params_end_passes(hv_params *params, hv_stream *stream) {
  hv_use_order_end(&params->order);
  hv_shards_finish_sums(params, stream);
  if (!hv_shards_gradients(params)) { /* blank gradients of groups that no pass used */
    for (hv_group_id g = 0; g < params->group_count; g++) hv_group_fill_blank(params, g, stream);
  }
  if (params->comm) hv_comm_wait(params->comm, hv_comm_last(params->comm), stream);
}

void hv_params_publish_group(hv_params *params, hv_group_id group, hv_stream *stream) {
  hv_group_state *state = &params->groups[group];
  if (hv_params_sharding(params) == HV_SHARD_NOTHING || !state->info.trainable) return;
  if (hv_shards_values(params)) {
    hv_group_slot *slot = hv_group_value_slot(params, group);
    if (slot) slot->group = -1;
    return;
  }
  hv_tensor whole = hv_group_values(params, group);
  state->published =
      hv_comm_all_gather(params->comm, state->values_label, hv_comm_share(params->comm, whole), whole, stream);
}

void hv_params_publish(hv_params *params, hv_stream *stream) {
  for (hv_group_id g = 0; g < params->group_count; g++) hv_params_publish_group(params, g, stream);
}

hv_owned hv_group_owned(const hv_params *params, hv_group_id group) {
  const hv_group_state *state = &params->groups[group];
  bool whole = hv_params_sharding(params) == HV_SHARD_NOTHING;
  hv_owned owned = {.count = hv_kept_count(params, state, !whole)};
  if (!whole) owned.first = owned.count * params->comm->rank;
  hv_tensor values = hv_tensor_make(hv_group_kept_values(params, group), params->dtype, 1, state->info.count);
  owned.values = hv_tensor_cols(values, hv_shards_values(params) ? 0 : owned.first, owned.count);
  if (!params->gradients || !state->info.trainable) return owned;
  hv_tensor gradients =
      hv_tensor_make(hv_group_kept_gradients(params, group), params->gradient_dtype, 1, state->info.count);
  owned.gradients = hv_tensor_cols(gradients, hv_shards_gradients(params) ? 0 : owned.first, owned.count);
  return owned;
}
