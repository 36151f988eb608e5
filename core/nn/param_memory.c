#include "core/nn/params_store.h"
#include "core/tensor/ops.h"

hv_status hv_params_allocate_zeroed(hv_params *params, hv_memory_kind kind, int64_t elements, hv_dtype dtype,
                                    const char *what, char **out) {
  void *memory;
  HV_TRY(hv_device_allocate(params->device, kind, (size_t)elements * hv_dtype_size(dtype), what, &memory));
  *out = memory;
  if (params->device->zeroes_memory) return HV_OK;
  hv_fill(params->stream, &(hv_fill_args){.dst = hv_tensor_make(memory, dtype, 1, elements)});
  return hv_stream_synchronize(params->stream);
}

/* Returns a mutable slot of a const array: the slots belong to the store. */
static hv_group_slot *slot_of(const hv_group_slot *slots, int count, hv_group_id group) {
  for (int i = 0; i < count; i++) {
    if (slots[i].memory && slots[i].group == group) return (hv_group_slot *)(uintptr_t)&slots[i];
  }
  return NULL;
}

hv_group_slot *hv_group_value_slot(const hv_params *params, hv_group_id group) {
  return slot_of(params->value_slots, HV_VALUE_SLOTS, group);
}

hv_group_slot *hv_group_gradient_slot(const hv_params *params, hv_group_id group) {
  return slot_of(params->gradient_slots, HV_GRADIENT_SLOTS, group);
}

char *hv_group_kept_values(const hv_params *params, hv_group_id group) {
  return params->values + (size_t)params->groups[group].value_start * hv_dtype_size(params->dtype);
}

char *hv_group_kept_gradients(const hv_params *params, hv_group_id group) {
  return params->gradients + (size_t)params->groups[group].gradient_start * hv_dtype_size(params->gradient_dtype);
}

/* Address of a whole group; NULL while no slot holds it. */
static char *value_memory(const hv_params *params, hv_group_id group) {
  if (!hv_shards_values(params)) return hv_group_kept_values(params, group);
  const hv_group_slot *slot = hv_group_value_slot(params, group);
  return slot ? slot->memory : NULL;
}

static char *gradient_memory(const hv_params *params, hv_group_id group) {
  if (!hv_shards_gradients(params)) return hv_group_kept_gradients(params, group);
  const hv_group_slot *slot = hv_group_gradient_slot(params, group);
  return slot ? slot->memory : NULL;
}

/* A view into a group, absent while no slot holds the group. */
static hv_tensor view(char *group, hv_dtype dtype, int64_t start, int64_t rows, int64_t cols) {
  if (!group) return (hv_tensor){0};
  return hv_tensor_make(group + (size_t)start * hv_dtype_size(dtype), dtype, rows, cols);
}

/* The matrix (or vector) that stacked parameters make together. */
static void stacked_shape(const hv_param *first, int count, int64_t *rows, int64_t *cols) {
  *rows = first->rank == 1 ? 1 : 0;
  *cols = first->rank == 1 ? 0 : first->cols;
  for (int i = 0; i < count; i++) *(first->rank == 1 ? cols : rows) += first->rank == 1 ? first[i].cols : first[i].rows;
}

hv_tensor hv_param_stacked_value(const hv_params *params, hv_param_id first, int count) {
  if (first < 0) return (hv_tensor){0};
  const hv_param *param = &params->params[first];
  int64_t rows, cols;
  stacked_shape(param, count, &rows, &cols);
  return view(value_memory(params, param->group), params->dtype, param->offset, rows, cols);
}

hv_tensor hv_param_stacked_gradient(const hv_params *params, hv_param_id first, int count) {
  if (first < 0 || !params->gradients) return (hv_tensor){0};
  const hv_param *param = &params->params[first];
  for (int i = 0; i < count; i++) {
    if (!param[i].trainable) return (hv_tensor){0};
  }
  int64_t rows, cols;
  stacked_shape(param, count, &rows, &cols);
  return view(gradient_memory(params, param->group), params->gradient_dtype, param->offset, rows, cols);
}

hv_tensor hv_param_value(const hv_params *params, hv_param_id id) {
  return hv_param_stacked_value(params, id, 1);
}

hv_tensor hv_param_gradient(const hv_params *params, hv_param_id id) {
  return hv_param_stacked_gradient(params, id, 1);
}

hv_tensor hv_group_values(const hv_params *params, hv_group_id group) {
  return view(value_memory(params, group), params->dtype, 0, 1, params->groups[group].info.count);
}

hv_tensor hv_group_gradients(const hv_params *params, hv_group_id group) {
  const hv_group_state *state = &params->groups[group];
  if (!state->info.trainable || !params->gradients) return (hv_tensor){0};
  return view(gradient_memory(params, group), params->gradient_dtype, 0, 1, state->info.count);
}

static void zero(hv_tensor row, int64_t first, int64_t end, hv_stream *stream) {
  if (first < end) hv_fill(stream, &(hv_fill_args){.dst = hv_tensor_cols(row, first, end - first)});
}

void hv_group_zero_gradients(hv_params *params, hv_group_id group, hv_stream *stream) {
  const hv_group_state *state = &params->groups[group];
  hv_tensor gradients = hv_group_gradients(params, group);
  int64_t end = 0; /* end of what is zeroed or blank so far */
  if (!hv_present(gradients)) return;
  for (hv_param_id i = state->info.first; i < state->info.end; i++) {
    const hv_param *param = &params->params[i];
    params->blank[i] = param->linear && param->trainable;
    if (!params->blank[i]) continue;
    zero(gradients, end, param->offset, stream);
    end = param->offset + param->rows * param->cols;
  }
  zero(gradients, end, gradients.cols, stream);
}

static void fill_blank(hv_params *params, hv_param_id id, hv_stream *stream) {
  if (params->blank[id]) hv_fill(stream, &(hv_fill_args){.dst = hv_param_gradient(params, id)});
  params->blank[id] = false;
}

void hv_group_fill_blank(hv_params *params, hv_group_id group, hv_stream *stream) {
  const hv_group_state *state = &params->groups[group];
  if (!state->info.trainable || !params->gradients) return;
  for (hv_param_id i = state->info.first; i < state->info.end; i++) fill_blank(params, i, stream);
}

bool hv_param_gradient_begin(hv_params *params, hv_param_id first, int count, hv_stream *stream) {
  bool all = true;
  for (int i = 0; i < count; i++) all &= params->blank[first + i];
  for (int i = 0; i < count && !all; i++) fill_blank(params, first + i, stream);
  for (int i = 0; i < count; i++) params->blank[first + i] = false;
  return all;
}
