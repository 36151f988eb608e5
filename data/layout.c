#include "data/layout.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/text.h"

static const hv_layout *const layouts[] = {&hv_layout_robomimic, NULL};

const char *hv_encoding_name(hv_encoding encoding) {
  switch (encoding) {
  case HV_ENCODING_JPEG: return "jpeg";
  case HV_ENCODING_PNG: return "png";
  case HV_ENCODING_RAW: break;
  }
  return "raw";
}

void hv_episode_facts_free(hv_episode_facts *facts) {
  free(facts->cameras);
  free(facts->signals);
  free(facts->instruction);
  hv_string_list_free(&facts->warnings);
  *facts = (hv_episode_facts){0};
}

const hv_camera *hv_episode_camera(const hv_episode_facts *facts, const char *name) {
  for (size_t i = 0; i < facts->num_cameras; i++) {
    if (strcmp(facts->cameras[i].name, name) == 0) return &facts->cameras[i];
  }
  return NULL;
}

const hv_signal *hv_episode_signal(const hv_episode_facts *facts, const char *name) {
  for (size_t i = 0; i < facts->num_signals; i++) {
    if (strcmp(facts->signals[i].name, name) == 0) return &facts->signals[i];
  }
  return NULL;
}

hv_status hv_layout_find(hv_hdf5 *file, const hv_layout **out) {
  *out = NULL;
  hv_text known = {0};
  hv_string_list members = {0};
  char *found = NULL;
  hv_status status = HV_OK;
  for (const hv_layout *const *layout = layouts; *layout; layout++) {
    bool mine = false;
    HV_CHECK((*layout)->probe(file, &mine));
    if (mine) {
      *out = *layout;
      goto done;
    }
    hv_text_add(&known, "%s%s (%s)", known.length ? ", " : "", (*layout)->name, (*layout)->looks_like);
  }
  HV_CHECK(hv_hdf5_children(file, "/", &members));
  found = hv_string_list_join(&members, 8);
  status = hv_error(HV_ERR_INPUT, "%s: has none of the known layouts: %s; found at the top level: %s",
                    hv_hdf5_path(file), hv_text_string(&known), found ? found : "");
done:
  free(found);
  hv_string_list_free(&members);
  hv_text_free(&known);
  return status;
}

static hv_status check_finite(hv_hdf5 *file, const char *episode, const char *what, int64_t frames, int32_t width,
                              const float *values) {
  for (int64_t i = 0; i < frames * width; i++) {
    if (isfinite(values[i])) continue;
    return hv_error(HV_ERR_INPUT, "%s: %s: %s, step %lld, dimension %lld is %s; only finite numbers can be used",
                    hv_hdf5_path(file), episode, what, (long long)(i / width), (long long)(i % width),
                    isnan(values[i]) ? "NaN" : "infinite, or beyond what fp32 holds");
  }
  return HV_OK;
}

hv_status hv_layout_read_actions(const hv_layout *layout, hv_hdf5 *file, const char *episode,
                                 const hv_episode_facts *facts, float *out) {
  HV_TRY(layout->read_actions(file, episode, facts, out));
  return check_finite(file, episode, "actions", facts->frames, facts->action_dim, out);
}

hv_status hv_layout_read_signal(const hv_layout *layout, hv_hdf5 *file, const char *episode,
                                const hv_episode_facts *facts, const char *name, float *out) {
  HV_TRY(layout->read_signal(file, episode, facts, name, out));
  const hv_signal *signal = hv_episode_signal(facts, name);
  return check_finite(file, episode, name, facts->frames, signal ? signal->width : 0, out);
}

hv_status hv_layout_check_numbers(const hv_layout *layout, hv_hdf5 *file, const char *episode,
                                  const hv_episode_facts *facts, const hv_string_list *signals) {
  int32_t widest = facts->action_dim;
  for (size_t i = 0; i < facts->num_signals; i++) {
    if (facts->signals[i].width > widest) widest = facts->signals[i].width;
  }
  float *values = malloc((size_t)facts->frames * (size_t)widest * sizeof *values);
  if (!values) return hv_error_memory("an episode");
  hv_status status = hv_layout_read_actions(layout, file, episode, facts, values);
  size_t count = signals ? signals->count : facts->num_signals;
  for (size_t i = 0; i < count && !status; i++) {
    const char *name = signals ? signals->items[i] : facts->signals[i].name;
    status = hv_layout_read_signal(layout, file, episode, facts, name, values);
  }
  free(values);
  return status;
}
