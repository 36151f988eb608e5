#include <stddef.h>

#include "core/io/json.h"
#include "data/commands.h"
#include "data/picture.h"
#include "data/summary.h"

typedef struct inspect_options {
  hv_string_list files; /* exactly one */
  bool json;
  char *picture; /* NULL: none */
} inspect_options;

static const hv_option options[] = {
    HV_JSON_OPTION(inspect_options),
    {.key = "picture",
     .type = HV_OPTION_PATH,
     .offset = offsetof(inspect_options, picture),
     .fallback = "null",
     .unit = "FILE.png",
     .doc = "Write a contact sheet, with a row for each camera: frames of the first episode that has it, to see "
            "whether they are upright and their colours right."},
};

static json_t *cameras_to_json(const hv_episode_facts *facts) {
  json_t *array = json_array();
  for (size_t i = 0; array && i < facts->num_cameras; i++) {
    const hv_camera *camera = &facts->cameras[i];
    json_t *entry = json_pack("{s:o, s:i, s:i, s:s}", "name", hv_json_text(camera->name), "width", camera->width,
                              "height", camera->height, "encoding", hv_encoding_name(camera->encoding));
    if (entry && json_array_append_new(array, entry) == 0) continue;
    json_decref(array);
    return NULL;
  }
  return array;
}

static hv_status format_json(const hv_file_summary *summary, hv_text *out) {
  const hv_survey *survey = &summary->survey;
  json_t *document = json_pack("{s:s, s:I, s:I, s:i, s:i, s:o, s:o, s:o}", "layout", survey->layout->name, "episodes",
                               (json_int_t)survey->episodes.count, "frames", (json_int_t)summary->frames, "action_dim",
                               survey->facts.action_dim, "state_dim", summary->state_dim, "cameras",
                               cameras_to_json(&survey->facts), "instructions", hv_json_strings(&summary->instructions),
                               "warnings", hv_json_strings(&summary->warnings));
  if (!document) return hv_error_memory("the summary");
  hv_status status = hv_json_format_line(document, out);
  hv_text_add(out, "\n");
  json_decref(document);
  return status;
}

static void add_list(hv_text *out, const char *title, const hv_string_list *list) {
  for (size_t i = 0; i < list->count; i++) hv_text_add(out, "%-14s%s\n", i ? "" : title, list->items[i]);
  if (list->count == 0) hv_text_add(out, "%-14snone\n", title);
}

static void format_table(const hv_file_summary *summary, const char *path, hv_text *out) {
  const hv_survey *survey = &summary->survey;
  const hv_episode_facts *all = &survey->facts;
  hv_text_add(out, "%-14s%s\n", "file", path);
  hv_text_add(out, "%-14s%s\n", "layout", survey->layout->name);
  hv_text_add(out, "%-14s%zu, %lld frames (%lld to %lld each)\n", "episodes", survey->episodes.count,
              (long long)summary->frames, (long long)summary->shortest, (long long)summary->longest);
  add_list(out, "splits", &summary->splits);
  hv_text_add(out, "%-14s%d dimensions\n", "actions", all->action_dim);
  hv_text_add(out, "%-14s%d dimensions by default", "state", summary->state_dim);
  for (size_t i = 0; i < survey->state.count; i++) hv_text_add(out, "%s%s", i ? ", " : ": ", survey->state.items[i]);
  hv_text_add(out, "\n");
  for (size_t i = 0; i < all->num_signals; i++) {
    hv_text_add(out, "%-14s%-32s %4d\n", i ? "" : "state keys", all->signals[i].name, all->signals[i].width);
  }
  for (size_t i = 0; i < all->num_cameras; i++) {
    const hv_camera *camera = &all->cameras[i];
    hv_text_add(out, "%-14s%-32s %4d x %d, %s\n", i ? "" : "cameras", camera->name, camera->width, camera->height,
                hv_encoding_name(camera->encoding));
  }
  if (all->num_cameras == 0) hv_text_add(out, "%-14snone\n", "cameras");
  add_list(out, "instructions", &summary->instructions);
  add_list(out, "warnings", &summary->warnings);
}

static hv_status work(const void *values, hv_command_result *out) {
  const inspect_options *given = values;
  const char *path = given->files.items[0];
  hv_hdf5 *file;
  HV_TRY(hv_hdf5_open(path, &file));
  hv_file_summary summary = {0};
  hv_status status = HV_OK;
  HV_CHECK(hv_file_summarize(file, &summary));
  if (given->picture) HV_CHECK(hv_contact_sheet(&summary.survey, given->picture));
  if (given->json) {
    HV_CHECK(format_json(&summary, &out->text));
  } else {
    format_table(&summary, path, &out->text);
  }
done:
  hv_file_summary_free(&summary);
  hv_hdf5_close(file);
  return status;
}

const hv_command hv_command_inspect = {
    .name = "inspect",
    .summary = "Show what a file holds: episodes, cameras, widths, instructions.",
    .help = "A run configuration names cameras and state keys as they are listed here.\n"
            "Shapes, actions and the default state are checked, and the first bad episode ends it with exit code 2;\n"
            "`hvla-data validate`, which also reads every image, lists all bad episodes.\n"
            "\n"
            "  hvla-data inspect data/demos/lift.hdf5\n"
            "  hvla-data inspect data/demos/lift.hdf5 --picture lift.png\n"
            "  hvla-data inspect data/demos/lift.hdf5 --json | jq .cameras\n",
    .options = options,
    .num_options = sizeof options / sizeof *options,
    .operands = "FILE",
    .operands_offset = offsetof(inspect_options, files),
    .min_operands = 1,
    .max_operands = 1,
    .values_size = sizeof(inspect_options),
    .work = work,
};
