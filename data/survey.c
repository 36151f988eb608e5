#include "data/survey.h"

#include <stdlib.h>

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

static hv_status unite_all(hv_survey *survey) {
  survey->each = calloc(survey->episodes.count, sizeof *survey->each);
  if (!survey->each) return hv_error_memory("the episodes' facts");
  for (size_t i = 0; i < survey->episodes.count; i++) {
    hv_status status = survey->layout->describe(survey->file, survey->episodes.items[i], &survey->each[i]);
    if (!status) status = unite(&survey->each[i], &survey->facts);
    if (status && hv_status_code(status) == HV_ERR_MEMORY) return status;
    hv_status_free(status); /* hv_survey_episode reports a bad episode */
  }
  return HV_OK;
}

hv_status hv_survey_open(hv_hdf5 *file, hv_survey *out) {
  *out = (hv_survey){.file = file};
  hv_status status = HV_OK;
  HV_CHECK(hv_layout_find(file, &out->layout));
  HV_CHECK(out->layout->list_episodes(file, NULL, &out->episodes));
  HV_CHECK(unite_all(out));
  status = out->layout->default_state(&out->facts, &out->state);
done:
  if (status) hv_survey_close(out);
  return status;
}

void hv_survey_close(hv_survey *survey) {
  for (size_t i = 0; survey->each && i < survey->episodes.count; i++) hv_episode_facts_free(&survey->each[i]);
  free(survey->each);
  hv_string_list_free(&survey->episodes);
  hv_episode_facts_free(&survey->facts);
  hv_string_list_free(&survey->state);
  *survey = (hv_survey){0};
}

/* Checks that actions and default state are as wide as in the other episodes. */
static hv_status compare(const hv_survey *survey, const char *episode, const hv_episode_facts *facts) {
  const char *file = hv_hdf5_path(survey->file);
  if (facts->action_dim != survey->facts.action_dim) {
    return hv_error(HV_ERR_INPUT, "%s: %s: actions have %d dimensions; in the first episode they have %d", file,
                    episode, facts->action_dim, survey->facts.action_dim);
  }
  for (size_t i = 0; i < survey->state.count; i++) {
    const char *name = survey->state.items[i];
    const hv_signal *found = hv_episode_signal(facts, name), *expected = hv_episode_signal(&survey->facts, name);
    if (!found) {
      return hv_error(HV_ERR_INPUT, "%s: %s: %s of the default state is missing; other episodes have it", file, episode,
                      name);
    }
    if (found->width == expected->width) continue;
    return hv_error(HV_ERR_INPUT, "%s: %s: %s has %d dimensions; in other episodes it has %d", file, episode, name,
                    found->width, expected->width);
  }
  return HV_OK;
}

hv_status hv_survey_episode(hv_survey *survey, size_t episode, hv_survey_numbers numbers,
                            const hv_episode_facts **out) {
  const char *name = survey->episodes.items[episode];
  hv_episode_facts *facts = &survey->each[episode];
  *out = facts;
  if (facts->frames == 0) HV_TRY(survey->layout->describe(survey->file, name, facts)); /* fails again, and says why */
  HV_TRY(compare(survey, name, facts));
  return hv_layout_check_numbers(survey->layout, survey->file, name, facts,
                                 numbers == HV_SURVEY_STATE ? &survey->state : NULL);
}
