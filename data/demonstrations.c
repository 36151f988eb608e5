#include "data/demonstrations.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"

typedef struct opened_file {
  char *path;
  hv_hdf5 *hdf5;
  const hv_layout *layout;
} opened_file;

struct hv_demonstrations {
  opened_file *files;
  size_t num_files;
  hv_episode *episodes;
  int64_t num_episodes, frames;
  int32_t num_cameras, action_dim, state_dim;
  int32_t *action_columns; /* [action_dim]; NULL: the file's, all in their order */
  hv_string_list state_keys;
  int32_t *state_widths; /* [state_keys.count], of the first episode */
  float *actions, *state;
  hv_string_list instructions;
};

static bool wants_state(const hv_demonstrations *d) {
  return d->state_keys.count > 0;
}

/* The instruction of an episode as an index, −1 where there is none. */
static hv_status choose_instruction(hv_demonstrations *d, const hv_demonstrations_options *options,
                                    const opened_file *file, const char *name, const hv_episode_facts *facts,
                                    int32_t *out) {
  const char *text = facts->instruction;
  if (options->instruction && (options->override_instruction || !text)) text = options->instruction;
  *out = -1;
  if (text && text[strspn(text, " \t\r\n")] == '\0') text = NULL;
  if (!text && options->need_instruction) {
    return hv_error(HV_ERR_INPUT, "%s: %s: has no instruction; set data.instruction in the run configuration",
                    file->path, name);
  }
  if (!text) return HV_OK;
  for (size_t i = 0; i < d->instructions.count; i++) {
    if (strcmp(d->instructions.items[i], text) == 0) {
      *out = (int32_t)i;
      return HV_OK;
    }
  }
  *out = (int32_t)d->instructions.count;
  return hv_string_list_append(&d->instructions, text);
}

static hv_status choose_actions(hv_demonstrations *d, const hv_demonstrations_options *options,
                                const hv_episode_facts *facts) {
  int32_t count = options->num_action_columns;
  d->action_dim = options->action_dim >= 0 ? options->action_dim : facts->action_dim;
  if (count == 0) return HV_OK;
  if (options->action_dim >= 0 && count != options->action_dim) {
    return hv_error(HV_ERR_INPUT, "%s: %d dimensions of the actions are chosen; the model's action_dim is %d",
                    options->files[0], count, options->action_dim);
  }
  d->action_dim = count;
  d->action_columns = malloc((size_t)count * sizeof *d->action_columns);
  if (!d->action_columns) return hv_error_memory("a list of columns");
  memcpy(d->action_columns, options->action_columns, (size_t)count * sizeof *d->action_columns);
  return HV_OK;
}

/* The first episode chooses the default state; a later one must not have default keys that the first lacks. */
static hv_status check_default_state(const hv_demonstrations *d, const opened_file *file, const char *name,
                                     const hv_episode_facts *facts) {
  hv_string_list state = {0};
  hv_status status = file->layout->default_state(facts, &state);
  for (size_t i = 0; i < state.count && !status; i++) {
    if (hv_string_list_contains(&d->state_keys, state.items[i])) continue;
    status = hv_error(HV_ERR_INPUT,
                      "%s: %s: has %s, which belongs to the default state, but the first episode (%s of %s) lacks it; "
                      "name state keys that all episodes have",
                      file->path, name, state.items[i], d->episodes[0].name, d->episodes[0].file);
  }
  hv_string_list_free(&state);
  return status;
}

/* Sets keys and widths, by the options or else by the first episode. */
static hv_status start_with(hv_demonstrations *d, const hv_demonstrations_options *options, const opened_file *file,
                            const hv_episode_facts *facts) {
  HV_TRY(choose_actions(d, options, facts));
  if (options->default_state) {
    HV_TRY(file->layout->default_state(facts, &d->state_keys));
  } else {
    for (size_t i = 0; i < options->num_state_keys; i++) {
      HV_TRY(hv_string_list_append(&d->state_keys, options->state_keys[i]));
    }
  }
  d->state_widths = calloc(d->state_keys.count + 1, sizeof *d->state_widths);
  if (!d->state_widths) return hv_error_memory("a list of widths");
  for (size_t i = 0; i < d->state_keys.count; i++) {
    const hv_signal *signal = hv_episode_signal(facts, d->state_keys.items[i]);
    d->state_widths[i] = signal ? signal->width : 0; /* 0: reading reports that it is missing */
    d->state_dim += d->state_widths[i];
  }
  return HV_OK;
}

static hv_status check_actions(const hv_demonstrations *d, const hv_demonstrations_options *options,
                               const opened_file *file, const char *name, const hv_episode_facts *facts) {
  for (int32_t i = 0; d->action_columns && i < d->action_dim; i++) {
    if (d->action_columns[i] < facts->action_dim) continue;
    return hv_error(HV_ERR_INPUT, "%s: %s: dimension %d of its actions is asked for; they have dimensions 0 to %d",
                    file->path, name, d->action_columns[i], facts->action_dim - 1);
  }
  if (d->action_columns || facts->action_dim == d->action_dim) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s: %s: actions have %d dimensions, %d are expected (%s)", file->path, name,
                  facts->action_dim, d->action_dim,
                  options->action_dim >= 0 ? "the model's action_dim" : "as in the first episode");
}

static hv_status check_widths(const hv_demonstrations *d, const hv_demonstrations_options *options,
                              const opened_file *file, const char *name, const hv_episode_facts *facts) {
  HV_TRY(check_actions(d, options, file, name, facts));
  for (size_t i = 0; i < d->state_keys.count; i++) {
    const hv_signal *signal = hv_episode_signal(facts, d->state_keys.items[i]);
    if (!signal) return HV_OK; /* reading reports what the episode has instead */
    if (signal->width == d->state_widths[i]) continue;
    return hv_error(HV_ERR_INPUT, "%s: %s: %s has %d dimensions, %d in the first episode", file->path, name,
                    d->state_keys.items[i], signal->width, d->state_widths[i]);
  }
  if (options->state_dim >= 0 && d->state_dim != options->state_dim) {
    char *keys = hv_string_list_join(&d->state_keys, 32);
    hv_status status =
        hv_error(HV_ERR_INPUT, "%s: %s: the state keys (%s) have %d numbers; the model's state_dim is %d", file->path,
                 name, keys ? keys : "", d->state_dim, options->state_dim);
    free(keys);
    return status;
  }
  return HV_OK;
}

static hv_status read_actions(const hv_demonstrations *d, const opened_file *file, const char *name,
                              const hv_episode_facts *facts, float *out) {
  if (!d->action_columns) return hv_layout_read_actions(file->layout, file->hdf5, name, facts, out);
  float *all = malloc((size_t)facts->frames * (size_t)facts->action_dim * sizeof *all);
  if (!all) return hv_error_memory("an episode's actions");
  hv_status status = hv_layout_read_actions(file->layout, file->hdf5, name, facts, all);
  for (int64_t t = 0; t < facts->frames && !status; t++) {
    for (int32_t i = 0; i < d->action_dim; i++) {
      out[t * d->action_dim + i] = all[t * facts->action_dim + d->action_columns[i]];
    }
  }
  free(all);
  return status;
}

static hv_status read_state(hv_demonstrations *d, const opened_file *file, const char *name,
                            const hv_episode_facts *facts, float *out) {
  int32_t widest = 1;
  for (size_t i = 0; i < d->state_keys.count; i++) {
    if (d->state_widths[i] > widest) widest = d->state_widths[i];
  }
  float *signal = malloc((size_t)facts->frames * (size_t)widest * sizeof *signal);
  if (!signal) return hv_error_memory("an episode's state");
  hv_status status = HV_OK;
  int32_t column = 0;
  for (size_t i = 0; i < d->state_keys.count; i++) {
    int32_t width = d->state_widths[i];
    HV_CHECK(hv_layout_read_signal(file->layout, file->hdf5, name, facts, d->state_keys.items[i], signal));
    for (int64_t t = 0; t < facts->frames; t++) {
      memcpy(out + t * d->state_dim + column, signal + t * width, (size_t)width * sizeof *signal);
    }
    column += width;
  }
done:
  free(signal);
  return status;
}

static hv_status grow(float **values, int64_t frames, int32_t width, const char *what) {
  float *grown = realloc(*values, (size_t)frames * (size_t)(width > 0 ? width : 1) * sizeof *grown);
  if (!grown) return hv_error_memory(what);
  *values = grown;
  return HV_OK;
}

static hv_status open_cameras(const hv_demonstrations *d, const hv_demonstrations_options *options,
                              const opened_file *file, const hv_episode_facts *facts, hv_episode *episode) {
  episode->cameras = calloc((size_t)d->num_cameras + 1, sizeof(hv_frames *));
  if (!episode->cameras) return hv_error_memory("an episode's cameras");
  for (int32_t i = 0; i < d->num_cameras; i++) {
    const char *camera = options->cameras[i];
    HV_TRY(file->layout->open_frames(file->hdf5, episode->name, facts, camera, &episode->cameras[i]));
    if (episode->cameras[i]->count == facts->frames) continue;
    return hv_error(HV_ERR_INPUT, "%s: %s: camera %s has %lld frames, actions have %lld", file->path, episode->name,
                    camera, (long long)episode->cameras[i]->count, (long long)facts->frames);
  }
  return HV_OK;
}

static hv_status add_episode(hv_demonstrations *d, const hv_demonstrations_options *options, const opened_file *file,
                             const char *name) {
  hv_episode_facts facts;
  HV_TRY(file->layout->describe(file->hdf5, name, &facts));
  hv_status status = HV_OK;
  if (d->num_episodes == 0) HV_CHECK(start_with(d, options, file, &facts));
  if (options->default_state && d->num_episodes > 0) HV_CHECK(check_default_state(d, file, name, &facts));
  HV_CHECK(check_widths(d, options, file, name, &facts));

  hv_episode *episodes = realloc(d->episodes, (size_t)(d->num_episodes + 1) * sizeof *episodes);
  if (!episodes) {
    status = hv_error_memory("a list of episodes");
    goto done;
  }
  d->episodes = episodes;
  hv_episode *episode = &episodes[d->num_episodes++];
  *episode = (hv_episode){.file = file->path, .name = strdup(name), .first = d->frames, .frames = facts.frames};
  if (!episode->name) {
    status = hv_error_memory(name);
    goto done;
  }
  HV_CHECK(choose_instruction(d, options, file, name, &facts, &episode->instruction));
  HV_CHECK(grow(&d->actions, d->frames + facts.frames, d->action_dim, "the actions"));
  HV_CHECK(read_actions(d, file, name, &facts, d->actions + d->frames * d->action_dim));
  if (wants_state(d)) {
    HV_CHECK(grow(&d->state, d->frames + facts.frames, d->state_dim, "the state"));
    HV_CHECK(read_state(d, file, name, &facts, d->state + d->frames * d->state_dim));
  }
  HV_CHECK(open_cameras(d, options, file, &facts, episode));
  d->frames += facts.frames;
done:
  hv_episode_facts_free(&facts);
  return status;
}

/* Only a warning: it may be intended, to give some demonstrations more weight. */
static void warn_of_repeats(const hv_demonstrations *d, const opened_file *file) {
  for (const opened_file *other = d->files; other < file; other++) {
    if (!hv_hdf5_is_same(other->hdf5, file->hdf5)) continue;
    hv_log_warning("%s and %s are one file: its episodes count twice", other->path, file->path);
    return;
  }
}

static hv_status add_file(hv_demonstrations *d, const hv_demonstrations_options *options, const char *path) {
  opened_file *file = &d->files[d->num_files++];
  *file = (opened_file){.path = strdup(path)};
  if (!file->path) return hv_error_memory(path);
  HV_TRY(hv_hdf5_open(path, &file->hdf5));
  warn_of_repeats(d, file);
  HV_TRY(hv_layout_find(file->hdf5, &file->layout));
  hv_string_list names;
  HV_TRY(file->layout->list_episodes(file->hdf5, options->split, &names));
  hv_status status = HV_OK;
  for (size_t i = 0; i < names.count && !status; i++) status = add_episode(d, options, file, names.items[i]);
  hv_string_list_free(&names);
  return status;
}

hv_status hv_demonstrations_open(const hv_demonstrations_options *options, hv_demonstrations **out) {
  *out = NULL;
  if (options->num_files == 0) return hv_error(HV_ERR_INPUT, "no demonstration file is given");
  hv_demonstrations *d = calloc(1, sizeof *d);
  if (!d) return hv_error_memory("demonstrations");
  d->num_cameras = (int32_t)options->num_cameras;
  d->files = calloc(options->num_files, sizeof *d->files);
  if (!d->files) {
    free(d);
    return hv_error_memory("a list of files");
  }
  hv_status status = HV_OK;
  for (size_t i = 0; i < options->num_files && !status; i++) status = add_file(d, options, options->files[i]);
  if (status) {
    hv_demonstrations_close(d);
    return status;
  }
  *out = d;
  return HV_OK;
}

void hv_demonstrations_close(hv_demonstrations *d) {
  if (!d) return;
  for (int64_t i = 0; i < d->num_episodes; i++) {
    hv_episode *episode = &d->episodes[i];
    for (int32_t c = 0; episode->cameras && c < d->num_cameras; c++) hv_frames_close(episode->cameras[c]);
    free(episode->cameras);
    free(episode->name);
  }
  for (size_t i = 0; i < d->num_files; i++) {
    hv_hdf5_close(d->files[i].hdf5);
    free(d->files[i].path);
  }
  free(d->files);
  free(d->episodes);
  free(d->actions);
  free(d->state);
  free(d->state_widths);
  free(d->action_columns);
  hv_string_list_free(&d->state_keys);
  hv_string_list_free(&d->instructions);
  free(d);
}

int64_t hv_demonstrations_frames(const hv_demonstrations *d) {
  return d->frames;
}

int64_t hv_demonstrations_episodes(const hv_demonstrations *d) {
  return d->num_episodes;
}

const hv_episode *hv_demonstrations_episode(const hv_demonstrations *d, int64_t index) {
  return &d->episodes[index];
}

const hv_episode *hv_demonstrations_episode_of(const hv_demonstrations *d, int64_t frame) {
  int64_t low = 0, high = d->num_episodes - 1;
  while (low < high) {
    int64_t middle = (low + high + 1) / 2;
    if (d->episodes[middle].first <= frame) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return &d->episodes[low];
}

int32_t hv_demonstrations_cameras(const hv_demonstrations *d) {
  return d->num_cameras;
}

int32_t hv_demonstrations_action_dim(const hv_demonstrations *d) {
  return d->action_dim;
}

int32_t hv_demonstrations_action_column(const hv_demonstrations *d, int32_t dim) {
  return d->action_columns ? d->action_columns[dim] : dim;
}

int32_t hv_demonstrations_state_dim(const hv_demonstrations *d) {
  return d->state_dim;
}

const float *hv_demonstrations_actions(const hv_demonstrations *d) {
  return d->actions;
}

const float *hv_demonstrations_state(const hv_demonstrations *d) {
  return d->state;
}

int32_t hv_demonstrations_instructions(const hv_demonstrations *d) {
  return (int32_t)d->instructions.count;
}

const char *hv_demonstrations_instruction(const hv_demonstrations *d, int32_t index) {
  return d->instructions.items[index];
}
