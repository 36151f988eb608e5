#include "train/checkpoint/checkpoint_parts.h"

#include <stdio.h>
#include <stdlib.h>

#include "core/tensor/moments.h"

enum { MOST_OF_A_GROUP = 7 };

static void name_part(const hv_group *group, const char *what, char name[HV_PART_NAME]) {
  snprintf(name, HV_PART_NAME, "%s.%s", group->name, what);
}

void hv_checkpoint_values_name(const hv_group *group, char name[HV_PART_NAME]) {
  name_part(group, "values", name);
}

void hv_checkpoint_average_name(const hv_group *group, char name[HV_PART_NAME]) {
  name_part(group, "average", name);
}

/* Adds a tensor that has one element for every `per` elements of the group and begins at the group's element `first`.
 */
static void add(hv_checkpoint_parts *parts, const hv_group *group, const char *what, hv_tensor tensor, int64_t first,
                int64_t per) {
  if (!hv_present(tensor)) return;
  hv_checkpoint_part *part = &parts->items[parts->count++];
  name_part(group, what, part->name);
  part->tensor = tensor;
  part->first = first / per;
  part->total = group->count / per;
}

/* The values of a group that are on this rank: all of them, or its share if parameters are sharded. */
static void add_values(hv_checkpoint_parts *parts, const hv_params *params, hv_group_id group) {
  hv_owned owned = hv_group_owned(params, group);
  bool whole = hv_params_sharding(params) != HV_SHARD_PARAMETERS;
  hv_tensor values = whole ? hv_group_values(params, group) : owned.values;
  add(parts, hv_params_group(params, group), "values", values, whole ? 0 : owned.first, 1);
}

/* `coded`: the 8-bit moments; else everything of moments that is fp32, which includes the scales of 8-bit ones. */
static void add_moments(hv_checkpoint_parts *parts, const hv_params *params, const hv_optimizer *optimizer,
                        bool coded) {
  for (hv_group_id g = 0; g < hv_params_group_count(params); g++) {
    const hv_optimizer_state state = hv_optimizer_group_state(optimizer, g);
    const hv_group *group = hv_params_group(params, g);
    int64_t first = hv_group_owned(params, g).first;
    if (!coded) {
      add(parts, group, "moment1_scale", state.moment1_scale, first, HV_MOMENT_BLOCK);
      add(parts, group, "moment2_scale", state.moment2_scale, first, HV_MOMENT_BLOCK);
    }
    if (coded != hv_present(state.moment1_scale)) continue;
    add(parts, group, "moment1", state.moment1, first, 1);
    add(parts, group, "moment2", state.moment2, first, 1);
  }
}

hv_status hv_checkpoint_parts_list(const hv_params *params, const hv_optimizer *optimizer, const hv_ema *ema,
                                   hv_checkpoint_parts *out) {
  int32_t groups = hv_params_group_count(params);
  *out = (hv_checkpoint_parts){.items = calloc((size_t)groups * MOST_OF_A_GROUP + 1, sizeof *out->items)};
  if (!out->items) return hv_error_memory("the list of parameter groups");
  add_moments(out, params, optimizer, false);
  for (hv_group_id g = 0; g < groups; g++) {
    add(out, hv_params_group(params, g), "average", hv_ema_group(ema, g), hv_group_owned(params, g).first, 1);
  }
  for (hv_group_id g = 0; g < groups; g++) add_values(out, params, g);
  for (hv_group_id g = 0; g < groups; g++) {
    hv_tensor remainder = hv_optimizer_group_state(optimizer, g).remainder;
    add(out, hv_params_group(params, g), "remainder", remainder, hv_group_owned(params, g).first, 1);
  }
  add_moments(out, params, optimizer, true);
  return HV_OK;
}

void hv_checkpoint_parts_free(hv_checkpoint_parts *parts) {
  free(parts->items);
  *parts = (hv_checkpoint_parts){0};
}
