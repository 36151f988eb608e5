#include "data/summary.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/text.h"

/* Warnings about episodes, each text once, with the number of episodes that have it. */
typedef struct tally {
  hv_string_list texts, first; /* the warning, the first episode that has it */
  size_t *counts;
} tally;

static void free_tally(tally *t) {
  hv_string_list_free(&t->texts);
  hv_string_list_free(&t->first);
  free(t->counts);
}

static hv_status add_to_tally(tally *t, const char *text, const char *episode) {
  for (size_t i = 0; i < t->texts.count; i++) {
    if (strcmp(t->texts.items[i], text) != 0) continue;
    t->counts[i]++;
    return HV_OK;
  }
  size_t *counts = realloc(t->counts, (t->texts.count + 1) * sizeof *counts);
  if (!counts) return hv_error_memory("warnings");
  t->counts = counts;
  counts[t->texts.count] = 1;
  HV_TRY(hv_string_list_append(&t->texts, text));
  return hv_string_list_append(&t->first, episode);
}

static hv_status finish_tally(const tally *t, hv_string_list *out) {
  for (size_t i = 0; i < t->texts.count; i++) {
    char others[48] = "";
    size_t more = t->counts[i] - 1;
    if (more > 0) snprintf(others, sizeof others, " (and %zu more episode%s)", more, more > 1 ? "s" : "");
    HV_TRY(hv_string_list_append_format(out, "%s: %s%s", t->first.items[i], t->texts.items[i], others));
  }
  return HV_OK;
}

/* Warns of cameras that an episode lacks or has in another size. */
static hv_status compare_cameras(const hv_survey *survey, const hv_episode_facts *facts, const char *episode,
                                 tally *warnings) {
  for (size_t i = 0; i < survey->facts.num_cameras; i++) {
    const hv_camera *expected = &survey->facts.cameras[i], *found = hv_episode_camera(facts, expected->name);
    if (found && found->width == expected->width && found->height == expected->height) continue;
    hv_text text = {0};
    hv_text_add(&text,
                found ? "camera %s has another size than in the first episode that has it" : "camera %s is missing",
                expected->name);
    hv_status status =
        text.failed ? hv_error_memory("warnings") : add_to_tally(warnings, hv_text_string(&text), episode);
    hv_text_free(&text);
    HV_TRY(status);
  }
  return HV_OK;
}

static void add_state(hv_file_summary *out) {
  for (size_t i = 0; i < out->survey.state.count; i++) {
    const hv_signal *signal = hv_episode_signal(&out->survey.facts, out->survey.state.items[i]);
    if (signal) out->state_dim += signal->width;
  }
}

static hv_status add_episode(size_t index, hv_file_summary *out, tally *warnings) {
  const char *episode = out->survey.episodes.items[index];
  const hv_episode_facts *facts;
  HV_TRY(hv_survey_episode(&out->survey, index, HV_SURVEY_STATE, &facts));
  HV_TRY(compare_cameras(&out->survey, facts, episode, warnings));
  if (out->frames == 0 || facts->frames < out->shortest) out->shortest = facts->frames;
  if (facts->frames > out->longest) out->longest = facts->frames;
  out->frames += facts->frames;
  for (size_t i = 0; i < facts->warnings.count; i++) HV_TRY(add_to_tally(warnings, facts->warnings.items[i], episode));
  if (!facts->instruction) {
    HV_TRY(add_to_tally(warnings, "no instruction: set data.instruction in the run configuration", episode));
  } else if (!hv_string_list_contains(&out->instructions, facts->instruction)) {
    HV_TRY(hv_string_list_append(&out->instructions, facts->instruction));
  }
  return HV_OK;
}

static hv_status add_splits(hv_file_summary *out) {
  const hv_survey *survey = &out->survey;
  hv_string_list splits = {0};
  hv_status status = survey->layout->list_splits(survey->file, &splits);
  for (size_t i = 0; i < splits.count && !status; i++) {
    hv_string_list names;
    hv_status problem = survey->layout->list_episodes(survey->file, splits.items[i], &names);
    if (problem && hv_status_code(problem) == HV_ERR_MEMORY) {
      status = problem;
    } else if (problem) {
      status = hv_string_list_append(&out->warnings, hv_status_message(problem));
      hv_status_free(problem);
    } else {
      status = hv_string_list_append_format(&out->splits, "%s (%zu episode%s)", splits.items[i], names.count,
                                            names.count == 1 ? "" : "s");
      hv_string_list_free(&names);
    }
  }
  hv_string_list_free(&splits);
  return status;
}

static hv_status warn_of_cameras(hv_file_summary *out) {
  const hv_episode_facts *all = &out->survey.facts;
  if (all->num_cameras == 0) return hv_string_list_append(&out->warnings, "no camera: the file cannot train a policy");
  for (size_t i = 0; i < all->num_cameras; i++) {
    if (all->cameras[i].chunk_frames < 2) continue;
    HV_TRY(hv_string_list_append_format(
        &out->warnings,
        "camera %s is stored in chunks of %lld frames: to read one frame, all frames of its episode are read; rewrite "
        "the file with one frame in each chunk",
        all->cameras[i].name, (long long)all->cameras[i].chunk_frames));
  }
  return HV_OK;
}

hv_status hv_file_summarize(hv_hdf5 *file, hv_file_summary *out) {
  *out = (hv_file_summary){0};
  tally warnings = {0};
  hv_status status = HV_OK;
  HV_CHECK(hv_survey_open(file, &out->survey));
  add_state(out);
  for (size_t i = 0; i < out->survey.episodes.count; i++) HV_CHECK(add_episode(i, out, &warnings));
  HV_CHECK(add_splits(out));
  HV_CHECK(warn_of_cameras(out));
  HV_CHECK(out->survey.layout->check_file(file, out->frames, &out->warnings));
  HV_CHECK(finish_tally(&warnings, &out->warnings));
done:
  free_tally(&warnings);
  if (status) hv_file_summary_free(out);
  return status;
}

void hv_file_summary_free(hv_file_summary *summary) {
  hv_survey_close(&summary->survey);
  hv_string_list_free(&summary->splits);
  hv_string_list_free(&summary->instructions);
  hv_string_list_free(&summary->warnings);
  *summary = (hv_file_summary){0};
}
