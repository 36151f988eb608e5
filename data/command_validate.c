#include <stddef.h>
#include <stdlib.h>

#include "core/base/log.h"
#include "core/io/json.h"
#include "data/commands.h"
#include "data/survey.h"

typedef struct validate_options {
  hv_string_list files;
  bool json;
} validate_options;

static const hv_option options[] = {
    HV_JSON_OPTION(validate_options),
};

/* What was found so far, over all files. */
typedef struct findings {
  json_t *bad; /* [{"file", "episode", "reason"}] */
  size_t files, episodes;
} findings;

/* Takes ownership of the error. A problem of the data becomes a finding; lack of memory stays an error. */
static hv_status note(findings *found, const char *file, const char *episode, hv_status problem) {
  if (!problem || hv_status_code(problem) == HV_ERR_MEMORY) return problem;
  json_t *entry = json_pack("{s:o, s:o, s:o}", "file", hv_json_text(file), "episode", hv_json_text(episode), "reason",
                            hv_json_text(hv_status_message(problem)));
  hv_status_free(problem);
  return entry && json_array_append_new(found->bad, entry) == 0 ? HV_OK : hv_error_memory("a finding");
}

static hv_status read_images(const hv_survey *survey, const char *episode, const hv_episode_facts *facts,
                             const hv_camera *camera) {
  hv_frames *frames;
  HV_TRY(survey->layout->open_frames(survey->file, episode, facts, camera->name, &frames));
  uint8_t *rgb = malloc((size_t)frames->width * (size_t)frames->height * 3);
  hv_status status = rgb ? HV_OK : hv_error_memory("a frame");
  for (int64_t t = 0; t < frames->count && !status; t++) status = frames->read(frames, t, rgb);
  free(rgb);
  hv_frames_close(frames);
  return status;
}

/* Every episode must have every camera: a run reads the cameras that it names from all episodes. */
static hv_status check_cameras(const hv_survey *survey, const char *episode, const hv_episode_facts *facts) {
  for (size_t i = 0; i < survey->facts.num_cameras; i++) {
    const char *camera = survey->facts.cameras[i].name;
    if (hv_episode_camera(facts, camera)) continue;
    return hv_error(HV_ERR_INPUT, "%s: %s: camera %s is missing; other episodes have it", hv_hdf5_path(survey->file),
                    episode, camera);
  }
  return HV_OK;
}

static hv_status check_episode(hv_survey *survey, size_t episode) {
  const char *name = survey->episodes.items[episode];
  const hv_episode_facts *facts;
  HV_TRY(hv_survey_episode(survey, episode, HV_SURVEY_ALL_SIGNALS, &facts));
  HV_TRY(check_cameras(survey, name, facts));
  for (size_t i = 0; i < facts->num_cameras; i++) HV_TRY(read_images(survey, name, facts, &facts->cameras[i]));
  return HV_OK;
}

static hv_status check_splits(findings *found, const hv_survey *survey) {
  hv_string_list splits = {0};
  hv_status status = survey->layout->list_splits(survey->file, &splits);
  for (size_t i = 0; i < splits.count && !status; i++) {
    hv_string_list names;
    hv_status problem = survey->layout->list_episodes(survey->file, splits.items[i], &names);
    if (!problem) hv_string_list_free(&names);
    status = note(found, hv_hdf5_path(survey->file), splits.items[i], problem);
  }
  hv_string_list_free(&splits);
  return status;
}

/* Returns an error only if the file cannot be read at all; bad episodes and splits are findings. */
static hv_status check_file(findings *found, const char *path) {
  hv_hdf5 *file;
  HV_TRY(hv_hdf5_open(path, &file));
  hv_survey survey;
  hv_status status = HV_OK;
  HV_CHECK(hv_survey_open(file, &survey));
  for (size_t i = 0; i < survey.episodes.count; i++)
    HV_CHECK(note(found, path, survey.episodes.items[i], check_episode(&survey, i)));
  HV_CHECK(check_splits(found, &survey));
  found->files++;
  found->episodes += survey.episodes.count;
done:
  hv_survey_close(&survey);
  hv_hdf5_close(file);
  return status;
}

static hv_status report(const findings *found, bool ok, bool json, hv_text *out) {
  hv_status status = HV_OK;
  if (json) {
    json_t *document = json_pack("{s:b, s:O}", "ok", ok, "bad_episodes", found->bad);
    status = document ? hv_json_format_line(document, out) : hv_error_memory("the report");
    json_decref(document);
  } else {
    size_t i;
    const json_t *entry;
    json_array_foreach(found->bad, i, entry) {
      hv_text_add(out, "bad: %s\n", json_string_value(json_object_get(entry, "reason")));
    }
    size_t problems = json_array_size(found->bad);
    hv_text_add(out, "%zu file%s, %zu episode%s, %zu problem%s", found->files, found->files == 1 ? "" : "s",
                found->episodes, found->episodes == 1 ? "" : "s", problems, problems == 1 ? "" : "s");
  }
  hv_text_add(out, "\n");
  return status;
}

/* Checks every file and reports all findings, even if some files cannot be read. */
static hv_status work(const void *values, hv_command_result *out) {
  const validate_options *given = values;
  findings found = {.bad = json_array()};
  bool readable = true;
  if (!found.bad) return hv_error_memory("the report");
  for (size_t i = 0; i < given->files.count; i++) {
    hv_status problem = check_file(&found, given->files.items[i]);
    if (!problem) continue;
    hv_log_error("hvla-data: %s", hv_status_message(problem));
    out->exit_code = hv_status_exit_code(problem);
    hv_status_free(problem);
    readable = false;
  }
  size_t bad = json_array_size(found.bad);
  if (readable && bad > 0) {
    hv_log_error("hvla-data: %zu problem%s found", bad, bad == 1 ? "" : "s");
    out->exit_code = 1;
  }
  hv_status status = report(&found, readable && bad == 0, given->json, &out->text);
  json_decref(found.bad);
  return status;
}

const hv_command hv_command_validate = {
    .name = "validate",
    .summary = "Read everything and name every bad episode.",
    .help =
        "Checks that the arrays of each episode are equally long, its numbers finite and its images readable; that\n"
        "it has every camera of the file, and actions and default state as wide as in the other episodes; and that\n"
        "the splits of each file name existing episodes. For warnings about data that are usable but unusual, such\n"
        "as images that no camera can have, see `hvla-data inspect`.\n"
        "Exit code 0: no problem; 1: an episode or a split is bad; 2: a file cannot be read at all.\n"
        "\n"
        "  hvla-data validate data/demos/*.hdf5\n"
        "  hvla-data validate --json new/*.hdf5 | jq '.bad_episodes[]'\n",
    .options = options,
    .num_options = sizeof options / sizeof *options,
    .operands = "FILE…",
    .operands_offset = offsetof(validate_options, files),
    .min_operands = 1,
    .values_size = sizeof(validate_options),
    .work = work,
};
