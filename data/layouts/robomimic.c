/* robomimic, robosuite, MimicGen: /data/demo_<i> holds actions (T, A) and obs/<key> (T, …); /mask/<name> lists the
 * episodes of a split. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/nearest.h"
#include "data/layout.h"

enum { PATH_SIZE = 512 };

static hv_status join(hv_hdf5 *file, char out[PATH_SIZE], const char *a, const char *b, const char *c) {
  int length = snprintf(out, PATH_SIZE, "/%s/%s%s%s", a, b, *c ? "/" : "", c);
  if (length < PATH_SIZE) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s: /%s/%.32s…: the path is longer than %d bytes", hv_hdf5_path(file), a, b,
                  PATH_SIZE - 1);
}

static hv_status probe(hv_hdf5 *file, bool *mine) {
  *mine = false;
  hv_hdf5_kind kind;
  HV_TRY(hv_hdf5_find(file, "/data", &kind));
  if (kind != HV_HDF5_GROUP) return HV_OK;
  /* LIBERO's files have the same skeleton, but other keys, timing and images upside down. */
  char *bddl = NULL;
  HV_TRY(hv_hdf5_attribute_text(file, "/data", "bddl_file_name", &bddl));
  *mine = bddl == NULL;
  free(bddl);
  return HV_OK;
}

/* The integer of "demo_<i>"; −1: it has none. */
static int64_t episode_number(const char *name) {
  if (strncmp(name, "demo_", 5) != 0) return -1;
  const char *digits = name + 5;
  size_t length = strspn(digits, "0123456789");
  if (length == 0 || length > 18 || digits[length] != '\0') return -1;
  return strtoll(digits, NULL, 10);
}

static int by_number(const void *a, const void *b) {
  int64_t left = episode_number(*(char *const *)a), right = episode_number(*(char *const *)b);
  return (left > right) - (left < right);
}

static hv_status check_episode_name(hv_hdf5 *file, const char *name) {
  if (episode_number(name) >= 0) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s: /data/%s: its name has no integer after demo_; demo_0, demo_1, … are expected",
                  hv_hdf5_path(file), name);
}

/* A group that holds actions is an episode; one of another name is refused, not silently left out. */
static hv_status check_other_name(hv_hdf5 *file, const char *name) {
  char path[PATH_SIZE];
  hv_hdf5_kind kind;
  HV_TRY(join(file, path, "data", name, ""));
  HV_TRY(hv_hdf5_find(file, path, &kind));
  if (kind != HV_HDF5_GROUP) return HV_OK;
  HV_TRY(join(file, path, "data", name, "actions"));
  HV_TRY(hv_hdf5_find(file, path, &kind));
  if (kind == HV_HDF5_ABSENT) return HV_OK;
  return hv_error(
      HV_ERR_INPUT,
      "%s: /data/%s: holds actions like an episode, but its name is not demo_ and a number; rename or remove it",
      hv_hdf5_path(file), name);
}

static hv_status list_all(hv_hdf5 *file, hv_string_list *out) {
  hv_string_list members;
  HV_TRY(hv_hdf5_children(file, "/data", &members));
  hv_status status = HV_OK;
  for (size_t i = 0; i < members.count; i++) {
    if (strncmp(members.items[i], "demo_", 5) != 0) {
      HV_CHECK(check_other_name(file, members.items[i]));
      continue;
    }
    HV_CHECK(check_episode_name(file, members.items[i]));
    HV_CHECK(hv_string_list_append(out, members.items[i]));
  }
  if (out->count == 0) {
    status = hv_error(HV_ERR_INPUT, "%s: /data: holds no episode; groups demo_0, demo_1, … are expected",
                      hv_hdf5_path(file));
    goto done;
  }
  qsort(out->items, out->count, sizeof *out->items, by_number);
  for (size_t i = 1; i < out->count; i++) {
    if (episode_number(out->items[i - 1]) != episode_number(out->items[i])) continue;
    status = hv_error(HV_ERR_INPUT, "%s: /data: %s and %s have the same number", hv_hdf5_path(file), out->items[i - 1],
                      out->items[i]);
    goto done;
  }
done:
  hv_string_list_free(&members);
  return status;
}

static hv_status list_splits(hv_hdf5 *file, hv_string_list *out) {
  hv_hdf5_kind kind;
  HV_TRY(hv_hdf5_find(file, "/mask", &kind));
  if (kind == HV_HDF5_ABSENT) return HV_OK;
  hv_string_list members;
  HV_TRY(hv_hdf5_children(file, "/mask", &members));
  hv_status status = HV_OK;
  for (size_t i = 0; i < members.count && !status; i++) status = hv_string_list_append(out, members.items[i]);
  hv_string_list_free(&members);
  return status;
}

static hv_status missing_split(hv_hdf5 *file, const char *split) {
  hv_string_list splits = {0};
  hv_status status = list_splits(file, &splits);
  char *present = hv_string_list_join(&splits, 16);
  if (!status) {
    status = hv_error(HV_ERR_INPUT, "%s: /mask/%s: there is no such split; present: %s", hv_hdf5_path(file), split,
                      present ? present : "");
  }
  free(present);
  hv_string_list_free(&splits);
  return status;
}

/* Appends those of `all` (sorted) that the split names. */
static hv_status list_split(hv_hdf5 *file, const char *split, const hv_string_list *all, hv_string_list *out) {
  char path[PATH_SIZE];
  HV_TRY(join(file, path, "mask", split, ""));
  hv_hdf5_kind kind;
  HV_TRY(hv_hdf5_find(file, path, &kind));
  if (kind == HV_HDF5_ABSENT) return missing_split(file, split);
  hv_string_list named;
  HV_TRY(hv_hdf5_read_strings(file, path, &named));
  hv_status status = HV_OK;
  for (size_t i = 0; i < named.count; i++) {
    if (hv_string_list_contains(all, named.items[i])) continue;
    status = hv_error(HV_ERR_INPUT, "%s: %s: names the episode \"%s\", which is not in /data", hv_hdf5_path(file), path,
                      named.items[i]);
    goto done;
  }
  for (size_t i = 0; i < all->count; i++) {
    if (hv_string_list_contains(&named, all->items[i])) HV_CHECK(hv_string_list_append(out, all->items[i]));
  }
  if (out->count == 0) {
    status = hv_error(HV_ERR_INPUT, "%s: %s: names no episode", hv_hdf5_path(file), path);
  }
done:
  hv_string_list_free(&named);
  return status;
}

static hv_status list_episodes(hv_hdf5 *file, const char *split, hv_string_list *out) {
  *out = (hv_string_list){0};
  hv_string_list all = {0};
  hv_status status = list_all(file, &all);
  if (!status && split) {
    status = list_split(file, split, &all, out);
    hv_string_list_free(&all);
  } else {
    *out = all;
  }
  if (status) hv_string_list_free(out);
  return status;
}

static bool ends_with(const char *text, const char *ending) {
  size_t length = strlen(text), tail = strlen(ending);
  return length >= tail && strcmp(text + length - tail, ending) == 0;
}

static hv_status check_rows(hv_hdf5 *file, const char *path, const hv_hdf5_info *info, int64_t frames) {
  int64_t rows = info->rank > 0 ? info->shape[0] : 0;
  if (rows == frames) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s: %s: has %lld rows; the episode's actions have %lld", hv_hdf5_path(file), path,
                  (long long)rows, (long long)frames);
}

/* A damaged array may claim any number of rows, for which memory would be allocated. */
static hv_status check_count(hv_hdf5 *file, const char *path, int64_t rows, int64_t width) {
  if (rows <= HV_HDF5_MAX_ELEMENTS / width) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s: %s: has %lld rows of %lld numbers; %d numbers at most are expected",
                  hv_hdf5_path(file), path, (long long)rows, (long long)width, HV_HDF5_MAX_ELEMENTS);
}

static hv_status describe_actions(hv_hdf5 *file, const char *episode, hv_episode_facts *facts) {
  char path[PATH_SIZE], found[128];
  HV_TRY(join(file, path, "data", episode, "actions"));
  hv_hdf5_info info;
  HV_TRY(hv_hdf5_describe(file, path, &info));
  hv_hdf5_info_text(&info, found, sizeof found);
  if (info.type != HV_HDF5_FLOAT || info.rank != 2 || info.shape[1] < 1 || info.shape[1] > 4096) {
    return hv_error(HV_ERR_INPUT, "%s: %s: is %s; floating-point numbers (steps, dimensions) are expected",
                    hv_hdf5_path(file), path, found);
  }
  if (info.shape[0] == 0) return hv_error(HV_ERR_INPUT, "%s: %s: the episode is empty", hv_hdf5_path(file), path);
  HV_TRY(check_count(file, path, info.shape[0], info.shape[1]));
  facts->frames = info.shape[0];
  facts->action_dim = (int32_t)info.shape[1];

  HV_TRY(join(file, path, "data", episode, ""));
  bool present;
  int64_t samples;
  HV_TRY(hv_hdf5_attribute_integer(file, path, "num_samples", &present, &samples));
  if (!present) return hv_string_list_append(&facts->warnings, "no attribute num_samples");
  if (samples == facts->frames) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s: %s: attribute num_samples is %lld, but actions has %lld rows", hv_hdf5_path(file),
                  path, (long long)samples, (long long)facts->frames);
}

/* Other arrays of the episode are not read, but if one has another length, the episode is damaged. */
static hv_status check_companions(hv_hdf5 *file, const char *episode, int64_t frames) {
  static const char *const names[] = {"actions_abs", "dones", "rewards", "states"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char path[PATH_SIZE];
    HV_TRY(join(file, path, "data", episode, names[i]));
    hv_hdf5_kind kind;
    HV_TRY(hv_hdf5_find(file, path, &kind));
    if (kind != HV_HDF5_DATASET) continue;
    hv_hdf5_info info;
    HV_TRY(hv_hdf5_describe(file, path, &info));
    HV_TRY(check_rows(file, path, &info, frames));
  }
  return HV_OK;
}

static hv_status check_name(hv_hdf5 *file, const char *path, const char *name) {
  if (strlen(name) < HV_NAME_SIZE) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s: %s: its name is longer than %d bytes", hv_hdf5_path(file), path, HV_NAME_SIZE - 1);
}

static hv_status add_camera(hv_hdf5 *file, const char *path, const char *name, const hv_hdf5_info *info,
                            hv_episode_facts *facts) {
  HV_TRY(check_name(file, path, name));
  hv_frames *frames;
  HV_TRY(hv_hdf5_open_frames(file, path, &frames));
  hv_camera camera = {.width = frames->width, .height = frames->height, .encoding = HV_ENCODING_RAW};
  camera.chunk_frames = info->chunk_rows;
  hv_frames_close(frames);
  snprintf(camera.name, sizeof camera.name, "%s", name);
  hv_camera *cameras = realloc(facts->cameras, (facts->num_cameras + 1) * sizeof *cameras);
  if (!cameras) return hv_error_memory("a list of cameras");
  facts->cameras = cameras;
  cameras[facts->num_cameras++] = camera;
  return HV_OK;
}

static hv_status add_signal(hv_hdf5 *file, const char *path, const char *name, const hv_hdf5_info *info,
                            hv_episode_facts *facts) {
  HV_TRY(check_name(file, path, name));
  int64_t width = info->rank == 2 ? info->shape[1] : 1;
  if (width < 1 || width > 4096) return HV_OK;
  HV_TRY(check_count(file, path, info->shape[0], width));
  hv_signal signal = {.width = (int32_t)width};
  snprintf(signal.name, sizeof signal.name, "%s", name);
  hv_signal *signals = realloc(facts->signals, (facts->num_signals + 1) * sizeof *signals);
  if (!signals) return hv_error_memory("a list of observations");
  facts->signals = signals;
  signals[facts->num_signals++] = signal;
  return HV_OK;
}

/* Whether these look like pictures: three or four channels, last or first. */
static bool is_picture_like(const hv_hdf5_info *info) {
  if (info->rank != 4) return false;
  return (info->shape[3] >= 3 && info->shape[3] <= 4) || (info->shape[1] >= 3 && info->shape[1] <= 4);
}

/* Names the shape of one frame: then episodes of all lengths have the same warning, which is shown once. */
static hv_status warn_of_pictures(const char *name, const hv_hdf5_info *info, hv_episode_facts *facts) {
  char found[128];
  hv_hdf5_info frame = *info;
  frame.rank = info->rank - 1;
  memcpy(frame.shape, info->shape + 1, (size_t)frame.rank * sizeof frame.shape[0]);
  hv_hdf5_info_text(&frame, found, sizeof found);
  return hv_string_list_append_format(
      &facts->warnings, "obs/%s is no camera: a frame is %s, that of a camera is u8 (height, width, 3)", name, found);
}

/* One member of obs: a camera, a signal, or something that cannot be used (depth, segmentation). */
static hv_status describe_observation(hv_hdf5 *file, const char *episode, const char *name, hv_episode_facts *facts) {
  char key[PATH_SIZE], path[PATH_SIZE];
  HV_TRY(join(file, key, "obs", name, ""));
  HV_TRY(join(file, path, "data", episode, key + 1));
  hv_hdf5_kind kind;
  HV_TRY(hv_hdf5_find(file, path, &kind));
  if (kind != HV_HDF5_DATASET) return HV_OK;
  hv_hdf5_info info;
  HV_TRY(hv_hdf5_describe(file, path, &info));
  HV_TRY(check_rows(file, path, &info, facts->frames));
  bool rgb = info.type == HV_HDF5_INTEGER && info.size == 1 && info.rank == 4 && info.shape[3] == 3;
  if (rgb || ends_with(name, "image")) return add_camera(file, path, name, &info, facts);
  if (info.type == HV_HDF5_FLOAT && info.rank <= 2) return add_signal(file, path, name, &info, facts);
  return is_picture_like(&info) ? warn_of_pictures(name, &info, facts) : HV_OK;
}

static hv_status describe_observations(hv_hdf5 *file, const char *episode, hv_episode_facts *facts) {
  char path[PATH_SIZE];
  HV_TRY(join(file, path, "data", episode, "obs"));
  hv_hdf5_kind kind;
  HV_TRY(hv_hdf5_find(file, path, &kind));
  if (kind == HV_HDF5_ABSENT) {
    return hv_string_list_append(&facts->warnings, "no obs: a raw recording; render observations from its simulator "
                                                   "states first, with robomimic's dataset_states_to_obs.py");
  }
  hv_string_list members;
  HV_TRY(hv_hdf5_children(file, path, &members));
  hv_status status = HV_OK;
  for (size_t i = 0; i < members.count && !status; i++) {
    status = describe_observation(file, episode, members.items[i], facts);
  }
  hv_string_list_free(&members);
  return status;
}

/* `lang` of the JSON in the attribute ep_meta. */
static hv_status describe_instruction(hv_hdf5 *file, const char *episode, hv_episode_facts *facts) {
  char path[PATH_SIZE];
  HV_TRY(join(file, path, "data", episode, ""));
  char *text;
  HV_TRY(hv_hdf5_attribute_text(file, path, "ep_meta", &text));
  if (!text) return HV_OK;
  hv_status status = HV_OK;
  json_error_t error;
  json_t *meta = json_loads(text, 0, &error);
  if (!meta) {
    status =
        hv_error(HV_ERR_INPUT, "%s: %s: attribute ep_meta is not valid JSON: %s", hv_hdf5_path(file), path, error.text);
    goto done;
  }
  const json_t *lang = json_object_get(meta, "lang");
  if (lang && !json_is_string(lang)) {
    status = hv_error(HV_ERR_INPUT, "%s: %s: attribute ep_meta: lang is not a string", hv_hdf5_path(file), path);
    goto done;
  }
  const char *instruction = lang ? json_string_value(lang) : "";
  if (instruction[strspn(instruction, " \t\r\n")] == '\0') goto done;
  facts->instruction = strdup(instruction);
  if (!facts->instruction) status = hv_error_memory("an instruction");
done:
  json_decref(meta);
  free(text);
  return status;
}

static hv_status describe(hv_hdf5 *file, const char *episode, hv_episode_facts *out) {
  *out = (hv_episode_facts){0};
  char path[PATH_SIZE];
  hv_status status = HV_OK;
  hv_hdf5_kind kind;
  HV_CHECK(join(file, path, "data", episode, ""));
  HV_CHECK(hv_hdf5_find(file, path, &kind));
  if (kind != HV_HDF5_GROUP) {
    status = hv_error(HV_ERR_INPUT, "%s: %s: is %s; a group with actions and obs is expected", hv_hdf5_path(file), path,
                      kind == HV_HDF5_DATASET ? "a data set" : "no group");
    goto done;
  }
  HV_CHECK(describe_actions(file, episode, out));
  HV_CHECK(check_companions(file, episode, out->frames));
  HV_CHECK(describe_observations(file, episode, out));
  HV_CHECK(describe_instruction(file, episode, out));
done:
  if (status) hv_episode_facts_free(out);
  return status;
}

static hv_status read_actions(hv_hdf5 *file, const char *episode, const hv_episode_facts *facts, float *out) {
  char path[PATH_SIZE];
  HV_TRY(join(file, path, "data", episode, "actions"));
  return hv_hdf5_read_f32(file, path, facts->frames * facts->action_dim, out);
}

/* "FILE: /data/demo_0/obs: has no <what> "x"; present: a, b (did you mean a?)" */
static hv_status missing_key(hv_hdf5 *file, const char *episode, const char *what, const char *name,
                             const hv_string_list *present) {
  hv_nearest nearest = {.name = name};
  for (size_t i = 0; i < present->count; i++) hv_nearest_offer(&nearest, present->items[i]);
  char *list = hv_string_list_join(present, 32);
  hv_status status = hv_error(HV_ERR_INPUT, "%s: /data/%s/obs: has no %s \"%s\"; present: %s%s%s%s", hv_hdf5_path(file),
                              episode, what, name, list ? list : "", nearest.best ? " (did you mean " : "",
                              nearest.best ? nearest.best : "", nearest.best ? "?)" : "");
  free(list);
  return status;
}

static hv_status read_signal(hv_hdf5 *file, const char *episode, const hv_episode_facts *facts, const char *name,
                             float *out) {
  char key[PATH_SIZE], path[PATH_SIZE];
  const hv_signal *signal = hv_episode_signal(facts, name);
  if (signal) {
    HV_TRY(join(file, key, "obs", name, ""));
    HV_TRY(join(file, path, "data", episode, key + 1));
    return hv_hdf5_read_f32(file, path, facts->frames * signal->width, out);
  }
  hv_string_list present = {0};
  hv_status status = HV_OK;
  for (size_t i = 0; i < facts->num_signals && !status; i++) {
    status = hv_string_list_append(&present, facts->signals[i].name);
  }
  if (!status) status = missing_key(file, episode, "state key", name, &present);
  hv_string_list_free(&present);
  return status;
}

static hv_status open_frames(hv_hdf5 *file, const char *episode, const hv_episode_facts *facts, const char *camera,
                             hv_frames **out) {
  *out = NULL;
  char key[PATH_SIZE], path[PATH_SIZE];
  HV_TRY(join(file, key, "obs", camera, ""));
  HV_TRY(join(file, path, "data", episode, key + 1));
  hv_hdf5_kind kind;
  HV_TRY(hv_hdf5_find(file, path, &kind));
  if (kind != HV_HDF5_ABSENT) return hv_hdf5_open_frames(file, path, out);
  hv_string_list present = {0};
  hv_status status = HV_OK;
  for (size_t i = 0; i < facts->num_cameras && !status; i++) {
    status = hv_string_list_append(&present, facts->cameras[i].name);
  }
  if (!status) status = missing_key(file, episode, "camera", camera, &present);
  hv_string_list_free(&present);
  return status;
}

static hv_status default_state(const hv_episode_facts *facts, hv_string_list *out) {
  static const char *const parts[] = {"eef_pos", "eef_quat", "gripper_qpos"};
  for (int robot = 0; robot < 10; robot++) {
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
      char name[HV_NAME_SIZE];
      snprintf(name, sizeof name, "robot%d_%s", robot, parts[i]);
      if (hv_episode_signal(facts, name)) HV_TRY(hv_string_list_append(out, name));
    }
  }
  return HV_OK;
}

/* Takes ownership of the error. If the attribute is not needed, its damage is only a warning. */
static hv_status as_warning(hv_status problem, hv_string_list *warnings) {
  if (hv_status_code(problem) == HV_ERR_MEMORY) return problem;
  hv_status status = hv_string_list_append(warnings, hv_status_message(problem));
  hv_status_free(problem);
  return status;
}

static hv_status check_env_args(hv_hdf5 *file, hv_string_list *warnings) {
  char *text;
  hv_status problem = hv_hdf5_attribute_text(file, "/data", "env_args", &text);
  if (problem) return as_warning(problem, warnings);
  if (!text)
    return hv_string_list_append(warnings,
                                 "/data has no attribute env_args: the environment of the recording is unknown");
  json_error_t error;
  json_t *args = json_loads(text, 0, &error);
  hv_status status = args ? HV_OK : hv_string_list_append(warnings, "/data: attribute env_args is not valid JSON");
  json_decref(args);
  free(text);
  return status;
}

static hv_status check_file(hv_hdf5 *file, int64_t frames, hv_string_list *warnings) {
  HV_TRY(check_env_args(file, warnings));
  bool present;
  int64_t total;
  hv_status problem = hv_hdf5_attribute_integer(file, "/data", "total", &present, &total);
  if (problem) return as_warning(problem, warnings);
  if (!present || total == frames) return HV_OK;
  return hv_string_list_append_format(warnings, "/data: attribute total is %lld, but the episodes have %lld frames",
                                      (long long)total, (long long)frames);
}

const hv_layout hv_layout_robomimic = {
    .name = "robomimic",
    .looks_like = "/data/demo_<i> with actions and obs/<key>",
    .probe = probe,
    .list_episodes = list_episodes,
    .list_splits = list_splits,
    .describe = describe,
    .read_actions = read_actions,
    .read_signal = read_signal,
    .open_frames = open_frames,
    .default_state = default_state,
    .check_file = check_file,
};
