#include <stddef.h>
#include <string.h>

#include "core/image/image.h"
#include "core/io/json.h"
#include "data/commands.h"
#include "data/demonstrations.h"

typedef struct frame_options {
  hv_string_list files; /* exactly one */
  char *episode;
  int64_t frame;
  char *camera, *out;        /* both, or both NULL: no picture */
  hv_string_list state_keys; /* each may hold several, with commas between */
  bool json;
} frame_options;

static const hv_option options[] = {
    {.key = "episode",
     .type = HV_OPTION_STRING,
     .offset = offsetof(frame_options, episode),
     .unit = "NAME",
     .doc = "The episode's name in the file."},
    {.key = "frame",
     .type = HV_OPTION_INT,
     .offset = offsetof(frame_options, frame),
     .fallback = "0",
     .max = 1e15,
     .unit = "N",
     .doc = "The frame's number in the episode, counted from 0."},
    {.key = "camera",
     .type = HV_OPTION_STRING,
     .offset = offsetof(frame_options, camera),
     .fallback = "null",
     .unit = "NAME",
     .doc = "The camera whose picture is written to --out."},
    {.key = "out",
     .type = HV_OPTION_PATH,
     .offset = offsetof(frame_options, out),
     .fallback = "null",
     .unit = "FILE.png",
     .doc = "The PNG file to write, in the size of the stored picture."},
    {.key = "state-keys",
     .type = HV_OPTION_STRING_LIST,
     .offset = offsetof(frame_options, state_keys),
     .fallback = "[]",
     .unit = "A,B,...",
     .doc = "Observations that make up the robot's state, as in `hvla-data stats`."},
    HV_JSON_OPTION(frame_options),
};

static hv_status find_episode(const hv_demonstrations *demonstrations, const frame_options *given,
                              const hv_episode **out) {
  int64_t count = hv_demonstrations_episodes(demonstrations);
  const hv_episode *first = hv_demonstrations_episode(demonstrations, 0);
  *out = first;
  for (int64_t i = 0; i < count; i++) {
    const hv_episode *episode = hv_demonstrations_episode(demonstrations, i);
    if (strcmp(episode->name, given->episode) != 0) continue;
    if (given->frame >= episode->frames) {
      return hv_error(HV_ERR_INPUT, "%s: %s has no frame %lld; its frames are 0 to %lld", episode->file, episode->name,
                      (long long)given->frame, (long long)episode->frames - 1);
    }
    *out = episode;
    return HV_OK;
  }
  const hv_episode *last = hv_demonstrations_episode(demonstrations, count - 1);
  return hv_error(HV_ERR_INPUT, "%s: there is no episode %s among its %lld, %s to %s", first->file, given->episode,
                  (long long)count, first->name, last->name);
}

static hv_status save_picture(const hv_episode *episode, int64_t frame, const char *path) {
  hv_frames *frames = episode->cameras[0];
  hv_image image;
  HV_TRY(hv_image_allocate(frames->width, frames->height, &image));
  hv_status status = frames->read(frames, frame, image.rgb);
  if (!status) status = hv_image_save_png(path, &image);
  hv_image_free(&image);
  return status;
}

/* One row of an array [frames, width]; [] if there is none. */
static json_t *row_to_json(const float *values, int32_t width, int64_t row) {
  json_t *array = json_array();
  for (int32_t i = 0; array && values && i < width; i++) {
    if (json_array_append_new(array, json_real((double)values[row * width + i])) == 0) continue;
    json_decref(array);
    return NULL;
  }
  return array;
}

static hv_status format_json(const hv_demonstrations *demonstrations, const hv_episode *episode, int64_t frame,
                             hv_text *out) {
  int64_t row = episode->first + frame;
  const char *instruction =
      episode->instruction >= 0 ? hv_demonstrations_instruction(demonstrations, episode->instruction) : NULL;
  json_t *document = json_pack(
      "{s:o, s:I, s:I, s:o, s:o, s:o}", "episode", hv_json_text(episode->name), "frame", (json_int_t)frame, "frames",
      (json_int_t)episode->frames, "instruction", instruction ? hv_json_text(instruction) : json_null(), "state",
      row_to_json(hv_demonstrations_state(demonstrations), hv_demonstrations_state_dim(demonstrations), row), "action",
      row_to_json(hv_demonstrations_actions(demonstrations), hv_demonstrations_action_dim(demonstrations), row));
  if (!document) return hv_error_memory("the frame");
  hv_status status = hv_json_format_line(document, out);
  hv_text_add(out, "\n");
  json_decref(document);
  return status;
}

static void add_values(hv_text *out, const char *title, const float *values, int32_t width, int64_t row) {
  hv_text_add(out, "%-14s", title);
  for (int32_t i = 0; values && i < width; i++) {
    hv_text_add(out, "%s%.9g", i ? "," : "", (double)values[row * width + i]);
  }
  hv_text_add(out, "%s\n", values ? "" : "none");
}

static void format_table(const hv_demonstrations *demonstrations, const hv_episode *episode, int64_t frame,
                         hv_text *out) {
  int64_t row = episode->first + frame;
  const char *instruction =
      episode->instruction >= 0 ? hv_demonstrations_instruction(demonstrations, episode->instruction) : "none";
  hv_text_add(out, "%-14s%s, frame %lld of %lld\n", "episode", episode->name, (long long)frame,
              (long long)episode->frames);
  hv_text_add(out, "%-14s%s\n", "instruction", instruction);
  add_values(out, "state", hv_demonstrations_state(demonstrations), hv_demonstrations_state_dim(demonstrations), row);
  add_values(out, "action", hv_demonstrations_actions(demonstrations), hv_demonstrations_action_dim(demonstrations),
             row);
}

static hv_status check_options(const frame_options *given) {
  if (!given->camera == !given->out) return HV_OK;
  return hv_error(HV_ERR_INPUT, "--camera and --out belong together: give both or neither");
}

static hv_status work(const void *values, hv_command_result *out) {
  const frame_options *given = values;
  hv_string_list keys = {0};
  hv_demonstrations *demonstrations = NULL;
  hv_status status = HV_OK;
  HV_CHECK(check_options(given));
  HV_CHECK(hv_split_state_keys(&given->state_keys, &keys));
  hv_demonstrations_options wanted = {
      .files = (const char *const *)given->files.items,
      .num_files = given->files.count,
      .cameras = (const char *const *)&given->camera,
      .num_cameras = given->camera ? 1 : 0,
      .state_keys = (const char *const *)keys.items,
      .num_state_keys = keys.count,
      .default_state = keys.count == 0,
      .action_dim = -1,
      .state_dim = -1,
  };
  const hv_episode *episode = NULL;
  HV_CHECK(hv_demonstrations_open(&wanted, &demonstrations));
  HV_CHECK(find_episode(demonstrations, given, &episode));
  if (given->out) HV_CHECK(save_picture(episode, given->frame, given->out));
  if (given->json) {
    HV_CHECK(format_json(demonstrations, episode, given->frame, &out->text));
  } else {
    format_table(demonstrations, episode, given->frame, &out->text);
  }
done:
  hv_demonstrations_close(demonstrations);
  hv_string_list_free(&keys);
  return status;
}

const hv_command hv_command_frame = {
    .name = "frame",
    .summary = "Show one frame in the form that hvla-infer takes: a camera's picture, state, action.",
    .help =
        "Prints the robot's state, in the form that `hvla-infer predict --state` takes, and the demonstrated action,\n"
        "to compare with the predicted one. With --camera and --out it writes that camera's picture as PNG.\n"
        "\n"
        "  hvla-data frame data/demos/lift.hdf5 --episode demo_4 --frame 12\n"
        "  hvla-data frame data/demos/lift.hdf5 --episode demo_4 --frame 12 --camera agentview_image --out f.png\n"
        "  hvla-data frame data/demos/lift.hdf5 --episode demo_4 --json | jq -r '.state | join(\",\")'\n",
    .options = options,
    .num_options = sizeof options / sizeof *options,
    .operands = "FILE",
    .operands_offset = offsetof(frame_options, files),
    .min_operands = 1,
    .max_operands = 1,
    .values_size = sizeof(frame_options),
    .work = work,
};
