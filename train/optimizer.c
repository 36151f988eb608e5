#include "train/optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/arena.h"
#include "core/tensor/moments.h"
#include "core/tensor/ops.h"

typedef struct group_slot {
  bool trainable;
  hv_owned owned; /* what this rank updates */
  hv_optimizer_state state;
  hv_tensor ranges;
} group_slot;

/* What goes to the device before a step and comes back after it. */
typedef struct host_block {
  float dynamic[5]; /* hv_adamw_args.dynamic */
  float norm;
  float factor; /* dynamic[3] as the device set it */
} host_block;

/* The optimizer's memory, by kind. */
typedef struct blocks {
  hv_arena moments, master, rest;
} blocks;

struct hv_optimizer {
  hv_device *device;
  hv_params *params;
  hv_optimizer_settings settings;
  int64_t updates;
  group_slot *groups;
  int32_t group_count;
  blocks memory;
  hv_tensor dynamic, sum_squares, norm;
  host_block *host; /* page-locked */
};

static int64_t count_trainable(const hv_params *params, const hv_group *group) {
  int64_t count = 0;
  for (hv_param_id i = group->first; i < group->end; i++) count += hv_params_get(params, i)->trainable;
  return count;
}

static void take_moments(hv_moment_format format, const hv_group *group, int64_t count, hv_arena *memory,
                         hv_optimizer_state *state) {
  if (format == HV_MOMENTS_F32 || group->lookup) {
    state->moment1 = hv_arena_take(memory, HV_F32, 1, count);
    state->moment2 = hv_arena_take(memory, HV_F32, 1, count);
    return;
  }
  state->moment1 = hv_arena_take(memory, HV_I8, 1, count);
  state->moment2 = hv_arena_take(memory, HV_U8, 1, count);
  state->moment1_scale = hv_arena_take(memory, HV_F32, 1, count / HV_MOMENT_BLOCK);
  state->moment2_scale = hv_arena_take(memory, HV_F32, 1, count / HV_MOMENT_BLOCK);
}

/* Assigns every slot its memory; called once to compute the sizes and once with memory. */
static void lay_out(hv_optimizer *optimizer, blocks *memory) {
  const hv_params *params = optimizer->params;
  for (hv_group_id g = 0; g < optimizer->group_count; g++) {
    const hv_group *group = hv_params_group(params, g);
    group_slot *slot = &optimizer->groups[g];
    *slot = (group_slot){.trainable = group->trainable, .owned = hv_group_owned(params, g)};
    if (!group->trainable) continue;
    take_moments(optimizer->settings.moments, group, slot->owned.count, &memory->moments, &slot->state);
    if (hv_params_dtype(params) == HV_BF16) {
      slot->state.remainder = hv_arena_take(&memory->master, HV_I16, 1, slot->owned.count);
    }
    slot->ranges = hv_arena_take(&memory->rest, HV_I64, count_trainable(params, group), 3);
  }
  optimizer->dynamic = hv_arena_take(&memory->rest, HV_F32, 1, 5);
  optimizer->sum_squares = hv_arena_take(&memory->rest, HV_F32, 1, 1);
  optimizer->norm = hv_arena_take(&memory->rest, HV_F32, 1, 1);
}

static int64_t within(const hv_owned *owned, int64_t element) {
  int64_t at = element - owned->first;
  return at < 0 ? 0 : (at > owned->count ? owned->count : at);
}

/* The ranges of trainable elements in this rank's share of a group; neighbours with equal decay and rate are merged.
 * The remaining rows become empty ranges at the end. */
static void fill_ranges(const hv_params *params, const hv_group *group, const hv_owned *owned, hv_adamw_range *ranges,
                        int64_t capacity) {
  int64_t count = 0, last = 0;
  for (hv_param_id i = group->first; i < group->end; i++) {
    const hv_param *param = hv_params_get(params, i);
    if (!param->trainable) continue;
    int64_t first = within(owned, param->offset), end = within(owned, param->offset + param->rows * param->cols);
    if (first == end) continue;
    bool joins = count > 0 && ranges[count - 1].end == first && ranges[count - 1].decay == param->decay &&
                 ranges[count - 1].rate == param->rate;
    if (joins) {
      ranges[count - 1].end = end;
    } else {
      ranges[count++] = (hv_adamw_range){.first = first, .end = end, .decay = param->decay, .rate = param->rate};
    }
    last = end;
  }
  for (; count < capacity; count++) ranges[count] = (hv_adamw_range){.first = last, .end = last};
}

static hv_status upload_ranges(hv_optimizer *optimizer, hv_stream *stream) {
  for (hv_group_id g = 0; g < optimizer->group_count; g++) {
    group_slot *slot = &optimizer->groups[g];
    if (!slot->trainable) continue;
    hv_adamw_range *ranges = calloc((size_t)slot->ranges.rows + 1, sizeof *ranges);
    if (!ranges) return hv_error_memory("the optimizer's ranges");
    fill_ranges(optimizer->params, hv_params_group(optimizer->params, g), &slot->owned, ranges, slot->ranges.rows);
    hv_upload(stream, slot->ranges.data, ranges, (size_t)slot->ranges.rows * sizeof *ranges);
    hv_status status = hv_stream_synchronize(stream);
    free(ranges);
    if (status) return status;
  }
  return HV_OK;
}

static void zero(hv_tensor tensor, hv_stream *stream) {
  if (hv_present(tensor)) hv_fill(stream, &(hv_fill_args){.dst = tensor});
}

static void zero_state(const hv_optimizer_state *state, hv_stream *stream) {
  zero(state->moment1, stream);
  zero(state->moment2, stream);
  zero(state->moment1_scale, stream);
  zero(state->moment2_scale, stream);
  zero(state->remainder, stream);
}

static hv_status open_block(hv_device *device, hv_memory_kind kind, const char *what, hv_arena *block) {
  size_t bytes = block->peak;
  *block = (hv_arena){0};
  return bytes > 0 ? hv_arena_open(device, kind, bytes, what, block) : HV_OK;
}

/* Computes the sizes, allocates memory, and assigns it. */
static hv_status allocate(hv_optimizer *optimizer) {
  hv_device *device = optimizer->device;
  blocks *memory = &optimizer->memory;
  hv_arena measure = hv_arena_for_plan(device);
  blocks measured = {.moments = measure, .master = measure, .rest = measure};
  lay_out(optimizer, &measured);
  *memory = measured;
  hv_status moments = open_block(device, HV_MEMORY_MOMENTS, "the optimizer's moments", &memory->moments);
  hv_status master = open_block(device, HV_MEMORY_MASTER, "the master values' remainders", &memory->master);
  hv_status rest = open_block(device, HV_MEMORY_WORKSPACE, "the optimizer's scalars", &memory->rest);
  hv_status status = hv_status_first(moments, hv_status_first(master, rest));
  if (!status) lay_out(optimizer, memory);
  return status;
}

static hv_status check_settings(const hv_params *params, const hv_optimizer_settings *settings) {
  bool any = false;
  for (hv_group_id g = 0; g < hv_params_group_count(params); g++) any |= hv_params_group(params, g)->trainable;
  if (!any) return hv_error(HV_ERR_INPUT, "every parameter is frozen (train.freeze): nothing is left to train");
  if (settings->moments == HV_MOMENTS_F32 || hv_params_sharding(params) == HV_SHARD_NOTHING) return HV_OK;
  int32_t ranks = hv_params_comm(params)->size, most = HV_GROUP_ALIGNMENT / HV_MOMENT_BLOCK;
  if (ranks <= most) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%d ranks cannot split 8-bit moments, %d at most can; set optimizer.moments to fp32",
                  ranks, most);
}

hv_status hv_optimizer_open(hv_params *params, const hv_optimizer_settings *settings, hv_stream *stream,
                            hv_optimizer **out) {
  hv_status status = HV_OK;
  *out = NULL;
  HV_TRY(check_settings(params, settings));
  hv_optimizer *optimizer = calloc(1, sizeof *optimizer);
  if (!optimizer) return hv_error_memory("the optimizer");
  optimizer->device = hv_params_device(params);
  optimizer->params = params;
  optimizer->settings = *settings;
  optimizer->group_count = hv_params_group_count(params);
  optimizer->groups = calloc((size_t)optimizer->group_count, sizeof *optimizer->groups);
  if (!optimizer->groups) {
    status = hv_error_memory("the optimizer");
    goto done;
  }
  HV_CHECK(allocate(optimizer));
  void *host;
  HV_CHECK(hv_device_allocate_host(optimizer->device, sizeof(host_block), "the optimizer's scalars", &host));
  optimizer->host = host;
  for (hv_group_id g = 0; g < optimizer->group_count; g++) zero_state(&optimizer->groups[g].state, stream);
  HV_CHECK(upload_ranges(optimizer, stream));
  HV_CHECK(hv_stream_synchronize(stream));
  *out = optimizer;
  optimizer = NULL;
done:
  hv_optimizer_close(optimizer);
  return status;
}

void hv_optimizer_close(hv_optimizer *optimizer) {
  if (!optimizer) return;
  hv_arena_close(&optimizer->memory.moments);
  hv_arena_close(&optimizer->memory.master);
  hv_arena_close(&optimizer->memory.rest);
  hv_device_release_host(optimizer->device, optimizer->host);
  free(optimizer->groups);
  free(optimizer);
}

static void update_group(hv_optimizer *optimizer, hv_group_id group, hv_stream *stream) {
  const group_slot *slot = &optimizer->groups[group];
  const hv_optimizer_settings *settings = &optimizer->settings;
  hv_adamw(stream, &(hv_adamw_args){.param = slot->owned.values,
                                    .remainder = slot->state.remainder,
                                    .grad = slot->owned.gradients,
                                    .moment1 = slot->state.moment1,
                                    .moment2 = slot->state.moment2,
                                    .moment1_scale = slot->state.moment1_scale,
                                    .moment2_scale = slot->state.moment2_scale,
                                    .ranges = slot->ranges,
                                    .dynamic = optimizer->dynamic,
                                    .beta1 = settings->beta1,
                                    .beta2 = settings->beta2,
                                    .eps = settings->eps,
                                    .weight_decay = settings->weight_decay});
}

void hv_optimizer_measure(hv_optimizer *optimizer, double learning_rate, hv_stream *stream) {
  const hv_optimizer_settings *settings = &optimizer->settings;
  host_block *host = optimizer->host;
  double t = (double)(optimizer->updates + 1);
  host->dynamic[0] = (float)learning_rate;
  host->dynamic[1] = (float)(1.0 - pow(settings->beta1, t));
  host->dynamic[2] = (float)(1.0 - pow(settings->beta2, t));
  host->dynamic[3] = 1.0f;
  host->dynamic[4] = (float)((optimizer->updates + 1) % (1 << 24));
  hv_upload(stream, optimizer->dynamic.data, host->dynamic, sizeof host->dynamic);
  zero(optimizer->sum_squares, stream);
  hv_params_end_passes(optimizer->params, stream);
  for (hv_group_id g = 0; g < optimizer->group_count; g++) {
    if (!optimizer->groups[g].trainable) continue;
    hv_tensor gradients = optimizer->groups[g].owned.gradients;
    hv_sum_squares(stream, &(hv_sum_squares_args){.x = gradients, .y = optimizer->sum_squares});
  }
  if (hv_params_sharding(optimizer->params) != HV_SHARD_NOTHING) {
    hv_comm *comm = hv_params_comm(optimizer->params);
    hv_comm_wait(comm, hv_comm_all_reduce(comm, "the gradients' norm", optimizer->sum_squares, stream), stream);
  }
  hv_clip_factor(stream, &(hv_clip_factor_args){.sum_squares = optimizer->sum_squares,
                                                .max_norm = settings->max_norm,
                                                .norm = optimizer->norm,
                                                .dynamic = optimizer->dynamic});
  hv_download(stream, &host->norm, optimizer->norm.data, sizeof host->norm);
}

void hv_optimizer_update(hv_optimizer *optimizer, hv_stream *stream) {
  for (hv_group_id g = 0; g < optimizer->group_count; g++) {
    if (!optimizer->groups[g].trainable) continue;
    update_group(optimizer, g, stream);
    hv_params_publish_group(optimizer->params, g, stream);
  }
  hv_download(stream, &optimizer->host->factor, hv_optimizer_factor(optimizer).data, sizeof optimizer->host->factor);
}

void hv_optimizer_step(hv_optimizer *optimizer, double learning_rate, hv_stream *stream) {
  hv_optimizer_measure(optimizer, learning_rate, stream);
  hv_optimizer_update(optimizer, stream);
}

double hv_optimizer_norm(const hv_optimizer *optimizer) {
  return optimizer->host->norm;
}

void hv_optimizer_finish(hv_optimizer *optimizer, double *norm, bool *skipped) {
  *norm = optimizer->host->norm;
  *skipped = optimizer->host->factor < 0.0f;
  if (!*skipped) optimizer->updates++;
}

hv_tensor hv_optimizer_factor(const hv_optimizer *optimizer) {
  return hv_tensor_cols(optimizer->dynamic, 3, 1);
}

int64_t hv_optimizer_updates(const hv_optimizer *optimizer) {
  return optimizer->updates;
}

void hv_optimizer_set_updates(hv_optimizer *optimizer, int64_t updates) {
  optimizer->updates = updates;
}

hv_optimizer_state hv_optimizer_group_state(const hv_optimizer *optimizer, hv_group_id group) {
  return optimizer->groups[group].state;
}

hv_status hv_optimizer_read_master(const hv_optimizer *optimizer, hv_param_id id, float *values, hv_stream *stream) {
  const hv_param *param = hv_params_get(optimizer->params, id);
  hv_tensor remainder = hv_optimizer_group_state(optimizer, param->group).remainder;
  HV_TRY(hv_param_read(optimizer->params, id, HV_F32, values, stream));
  if (!hv_present(remainder)) return HV_OK;
  int64_t count = param->rows * param->cols;
  int16_t *low = malloc((size_t)count * sizeof *low);
  if (!low) return hv_error_memory("a parameter's remainder");
  hv_download(stream, low, hv_tensor_cols(remainder, param->offset, count).data, (size_t)count * sizeof *low);
  hv_status status = hv_stream_synchronize(stream);
  for (int64_t i = 0; i < count && !status; i++) {
    uint32_t bits;
    memcpy(&bits, &values[i], sizeof bits);
    bits += (uint32_t)(int32_t)low[i];
    memcpy(&values[i], &bits, sizeof bits);
  }
  free(low);
  return status;
}
