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
  status = hv_error(HV_ERR_INPUT, "%s: has none of the known layouts: %s; found at the top: %s", hv_hdf5_path(file),
                    hv_text_string(&known), found ? found : "");
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
                    isnan(values[i]) ? "NaN" : "infinite");
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

static hv_status unite(const hv_episode_facts *episode, hv_episode_facts *all) {
  if (all->frames == 0) {
    all->frames = episode->frames;
    all->action_dim = episode->action_dim;
  }
  hv_camera *cameras = realloc(all->cameras, (all->num_cameras + episode->num_cameras + 1) * sizeof *cameras);
  if (cameras) all->cameras = cameras;
  hv_signal *signals = realloc(all->signals, (all->num_signals + episode->num_signals + 1) * sizeof *signals);
  if (signals) all->signals = signals;
  if (!cameras || !signals) return hv_error_memory("the episodes' facts");
  for (size_t i = 0; i < episode->num_cameras; i++) {
    if (!hv_episode_camera(all, episode->cameras[i].name)) cameras[all->num_cameras++] = episode->cameras[i];
  }
  for (size_t i = 0; i < episode->num_signals; i++) {
    if (!hv_episode_signal(all, episode->signals[i].name)) signals[all->num_signals++] = episode->signals[i];
  }
  return HV_OK;
}

hv_status hv_layout_survey(const hv_layout *layout, hv_hdf5 *file, const hv_string_list *episodes,
                           hv_episode_facts *out) {
  *out = (hv_episode_facts){0};
  for (size_t i = 0; i < episodes->count; i++) {
    hv_episode_facts facts;
    hv_status status = layout->describe(file, episodes->items[i], &facts);
    if (!status) {
      status = unite(&facts, out);
      hv_episode_facts_free(&facts);
    }
    if (status && hv_status_code(status) == HV_ERR_MEMORY) {
      hv_episode_facts_free(out);
      return status;
    }
    hv_status_free(status); /* a bad episode is told of where it is looked at */
  }
  return HV_OK;
}

hv_status hv_layout_compare(const hv_hdf5 *file, const char *episode, const hv_episode_facts *facts,
                            const hv_episode_facts *survey, const hv_string_list *state) {
  if (facts->action_dim != survey->action_dim) {
    return hv_error(HV_ERR_INPUT, "%s: %s: actions have %d dimensions, %d in the first episode", hv_hdf5_path(file),
                    episode, facts->action_dim, survey->action_dim);
  }
  for (size_t i = 0; i < state->count; i++) {
    const char *name = state->items[i];
    const hv_signal *found = hv_episode_signal(facts, name), *expected = hv_episode_signal(survey, name);
    if (!found) {
      return hv_error(HV_ERR_INPUT, "%s: %s: %s of the state is missing; other episodes have it", hv_hdf5_path(file),
                      episode, name);
    }
    if (found->width == expected->width) continue;
    return hv_error(HV_ERR_INPUT, "%s: %s: %s has %d dimensions, %d in other episodes", hv_hdf5_path(file), episode,
                    name, found->width, expected->width);
  }
  return HV_OK;
}
