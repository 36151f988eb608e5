#include <string.h>

#include "core/image/image.h"
#include "core/io/json.h"
#include "data/commands.h"
#include "data/demonstrations.h"

static hv_status find_episode(const hv_demonstrations *demonstrations, const hv_frame_options *options,
                              const hv_episode **out) {
  int64_t count = hv_demonstrations_episodes(demonstrations);
  const hv_episode *first = hv_demonstrations_episode(demonstrations, 0);
  *out = first;
  for (int64_t i = 0; i < count; i++) {
    const hv_episode *episode = hv_demonstrations_episode(demonstrations, i);
    if (strcmp(episode->name, options->episode) != 0) continue;
    if (options->frame >= episode->frames) {
      return hv_error(HV_ERR_INPUT, "%s: %s has no frame %lld; its frames are 0 to %lld", episode->file, episode->name,
                      (long long)options->frame, (long long)episode->frames - 1);
    }
    *out = episode;
    return HV_OK;
  }
  const hv_episode *last = hv_demonstrations_episode(demonstrations, count - 1);
  return hv_error(HV_ERR_INPUT, "%s: there is no episode %s among its %lld, %s to %s", first->file, options->episode,
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

/* One row of a [frames, width] array of the data set; [] without. */
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
      "{s:s, s:I, s:I, s:s?, s:o, s:o}", "episode", episode->name, "frame", (json_int_t)frame, "frames",
      (json_int_t)episode->frames, "instruction", instruction, "state",
      row_to_json(hv_demonstrations_state(demonstrations), hv_demonstrations_state_dim(demonstrations), row), "action",
      row_to_json(hv_demonstrations_actions(demonstrations), hv_demonstrations_action_dim(demonstrations), row));
  if (!document) return hv_error(HV_ERR_INPUT, "%s: a name or an instruction is not valid UTF-8", episode->file);
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

static hv_status check_options(const hv_frame_options *options) {
  if (!options->camera == !options->out) return HV_OK;
  return hv_error(HV_ERR_INPUT, "--camera and --out belong together: which camera's picture goes to which file");
}

hv_status hv_command_frame(const hv_frame_options *options) {
  hv_string_list keys = {0};
  hv_text text = {0};
  hv_demonstrations *demonstrations = NULL;
  hv_status status = HV_OK;
  HV_CHECK(check_options(options));
  HV_CHECK(hv_split_state_keys(&options->state_keys, &keys));
  hv_demonstrations_options wanted = {
      .files = (const char *const *)options->files.items,
      .num_files = options->files.count,
      .cameras = (const char *const *)&options->camera,
      .num_cameras = options->camera ? 1 : 0,
      .state_keys = (const char *const *)keys.items,
      .num_state_keys = keys.count,
      .default_state = keys.count == 0,
      .action_dim = -1,
      .state_dim = -1,
  };
  const hv_episode *episode = NULL;
  HV_CHECK(hv_demonstrations_open(&wanted, &demonstrations));
  HV_CHECK(find_episode(demonstrations, options, &episode));
  if (options->out) HV_CHECK(save_picture(episode, options->frame, options->out));
  if (options->json) {
    HV_CHECK(format_json(demonstrations, episode, options->frame, &text));
  } else {
    format_table(demonstrations, episode, options->frame, &text);
  }
  status = text.failed ? hv_error_memory("the table") : hv_print(text.data, text.length);
done:
  hv_text_free(&text);
  hv_demonstrations_close(demonstrations);
  hv_string_list_free(&keys);
  return status;
}
