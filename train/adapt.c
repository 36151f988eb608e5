#include "train/adapt.h"

#include <stdlib.h>
#include <string.h>

/* Which dimension of the old model each dimension of the new one continues, for one kind of dimensions. */
typedef struct dim_map {
  const char *what, *key; /* for people, and in the configuration */
  int32_t before, now;    /* dimensions of the old and of the new model */
  int32_t *from;          /* [now]; owned */
  bool changes;
} dim_map;

typedef enum map_kind { ACTION_DIMS, STATE_DIMS, MAPS } map_kind;

/* A parameter with something for every dimension, along the rows or the columns of its matrix form. */
typedef struct dim_axis {
  const char *name;
  map_kind map;
  bool rows;
} dim_axis;

static const dim_axis axes[] = {
    {"x_embedder.mlp.fc1.weight", ACTION_DIMS, false},
    {"final_layer.mlp.fc2.weight", ACTION_DIMS, true},
    {"final_layer.mlp.fc2.bias", ACTION_DIMS, false},
    {"proprio_embedder.mlp.fc1.weight", STATE_DIMS, false},
};
enum { AXES = sizeof axes / sizeof axes[0] };

typedef struct adapter {
  const hv_model_directory *directory;
  const hv_config *before, *now;
  hv_params *params;
  dim_map maps[MAPS];
  bool *apart; /* [parameters] made here, not copied as they are; owned */
  uint64_t seed;
  hv_stream *stream;
  hv_text *report;
} adapter;

static hv_status fill_map(const hv_int_list *list, dim_map *map) {
  map->from = calloc((size_t)map->now + 1, sizeof *map->from);
  if (!map->from) return hv_error_memory("a map of dimensions");
  map->changes = map->before != map->now;
  if (list->count > 0 && list->count != (size_t)map->now) {
    return hv_error(HV_ERR_INPUT, "%s has %zu entries, but the model has %d %s", map->key, list->count, map->now,
                    map->what);
  }
  for (int32_t i = 0; i < map->now; i++) {
    map->from[i] = i < map->before ? i : -1;
    if (list->count == 0) continue;
    if (list->items[i] >= map->before) {
      return hv_error(HV_ERR_INPUT, "%s names dimension %lld, but the model to start from has %d %s", map->key,
                      (long long)list->items[i], map->before, map->what);
    }
    map->from[i] = (int32_t)list->items[i];
    map->changes |= map->from[i] != i;
  }
  return HV_OK;
}

static void report_map(const dim_map *map, hv_text *report) {
  if (!map->changes) return;
  hv_text_add(report, "%s:", map->what);
  for (int32_t i = 0; i < map->now; i++) {
    hv_text_add(report, i ? ", " : " ");
    if (map->from[i] < 0) {
      hv_text_add(report, "%d is new", i);
    } else {
      hv_text_add(report, "%d continues %d", i, map->from[i]);
    }
  }
  const char *word = "; not continued: ";
  for (int32_t old = 0; old < map->before; old++) {
    bool kept = false;
    for (int32_t i = 0; i < map->now; i++) kept |= map->from[i] == old;
    if (kept) continue;
    hv_text_add(report, "%s%d", word, old);
    word = ", ";
  }
  hv_text_add(report, "\n");
}

static void add_cameras(const hv_config *config, hv_text *report) {
  for (int32_t c = 0; c < config->num_cameras; c++) hv_text_add(report, "%s%s", c ? ", " : "", config->cameras[c]);
}

/* Reports changes that concern no parameter: cameras and the action chunk. */
static void report_shared(const adapter *self) {
  const hv_config *before = self->before, *now = self->now;
  bool same = before->num_cameras == now->num_cameras;
  for (int32_t c = 0; same && c < now->num_cameras; c++) same = strcmp(before->cameras[c], now->cameras[c]) == 0;
  if (!same) {
    hv_text_add(self->report, "cameras: ");
    add_cameras(now, self->report);
    hv_text_add(self->report, " instead of ");
    add_cameras(before, self->report);
    hv_text_add(self->report, "; they share all parameters\n");
  }
  if (before->action_chunk != now->action_chunk) {
    hv_text_add(self->report, "action chunk: %d instead of %d steps; they share all parameters\n", now->action_chunk,
                before->action_chunk);
  }
}

/* Rows and columns of a file's tensor as a matrix; false if it is not a floating-point tensor of that rank. */
static bool matrix_of(const hv_file_tensor *tensor, int32_t rank, int64_t *rows, int64_t *cols) {
  if (tensor->rank != rank || !tensor->known || !hv_dtype_is_floating(tensor->dtype)) return false;
  *rows = rank == 1 ? 1 : tensor->shape[0];
  *cols = tensor->shape[rank - 1];
  return true;
}

/* Whether the tensor has the parameter's shape except along the axis, where it has the old model's dimensions. */
static bool fits_mapped(const hv_param *param, const hv_file_tensor *tensor, const dim_axis *axis, const dim_map *map) {
  int64_t rows, cols;
  if (!tensor || !matrix_of(tensor, param->rank, &rows, &cols)) return false;
  return axis->rows ? rows == map->before && cols == param->cols : cols == map->before && rows == param->rows;
}

/* Whether the parameter belongs to a part that the old model does not have. */
static bool may_be_missing(const adapter *self, const char *name) {
  static const char *const noise_head[] = {"x_embedder.", "t_embedder.", "final_layer."};
  if (self->before->state_dim == 0 && strncmp(name, "proprio_embedder.", 17) == 0) return true;
  if (hv_config_has_diffusion(self->before)) return false;
  for (size_t i = 0; i < sizeof noise_head / sizeof noise_head[0]; i++) {
    if (strncmp(name, noise_head[i], strlen(noise_head[i])) == 0) return true;
  }
  return false;
}

static const dim_axis *axis_of(const char *name) {
  for (int i = 0; i < AXES; i++) {
    if (strcmp(axes[i].name, name) == 0) return &axes[i];
  }
  return NULL;
}

/* Chooses the parameters that are made here; hv_model_directory_fill_others reports what else does not fit. */
static hv_status choose_apart(adapter *self) {
  int32_t count = hv_params_count(self->params);
  self->apart = calloc((size_t)count + 1, sizeof *self->apart);
  if (!self->apart) return hv_error_memory("a map of parameters");
  for (hv_param_id id = 0; id < count; id++) {
    const hv_param *param = hv_params_get(self->params, id);
    const hv_file_tensor *tensor = hv_safetensors_find(self->directory->tensors, param->name);
    const dim_axis *axis = axis_of(param->name);
    if (!tensor) {
      self->apart[id] = may_be_missing(self, param->name);
    } else if (axis && self->maps[axis->map].changes) {
      self->apart[id] = fits_mapped(param, tensor, axis, &self->maps[axis->map]);
    }
  }
  return HV_OK;
}

/* Overwrites initial values [rows, cols] with the old model's, where dimensions continue. */
static hv_status overlay(const hv_param *param, const hv_file_tensor *tensor, const dim_axis *axis, const dim_map *map,
                         float *values) {
  int64_t old_cols = axis->rows ? param->cols : map->before;
  float *old = malloc((size_t)tensor->count * sizeof *old);
  if (!old) return hv_error_memory(param->name);
  hv_file_tensor_read_f32(tensor, 0, tensor->count, old);
  for (int64_t row = 0; row < param->rows; row++) {
    for (int64_t col = 0; col < param->cols; col++) {
      int32_t from = map->from[axis->rows ? row : col];
      int64_t at = axis->rows ? from * old_cols + col : row * old_cols + from;
      if (from >= 0) values[row * param->cols + col] = old[at];
    }
  }
  free(old);
  return HV_OK;
}

static void report_param(const adapter *self, const hv_param *param, const dim_axis *axis) {
  if (!axis) {
    hv_text_add(self->report, "  %s is new\n", param->name);
    return;
  }
  const dim_map *map = &self->maps[axis->map];
  int32_t kept = 0;
  for (int32_t i = 0; i < map->now; i++) kept += map->from[i] >= 0;
  const char *unit = axis->rows ? "rows" : (param->rank == 1 ? "values" : "columns");
  hv_text_add(self->report, "  %s: %d %s kept, %d new\n", param->name, kept, unit, map->now - kept);
}

static hv_status make_param(adapter *self, hv_param_id id) {
  const hv_param *param = hv_params_get(self->params, id);
  const hv_file_tensor *tensor = hv_safetensors_find(self->directory->tensors, param->name);
  const dim_axis *axis = tensor ? axis_of(param->name) : NULL;
  float *values = malloc((size_t)(param->rows * param->cols) * sizeof *values);
  if (!values) return hv_error_memory(param->name);
  hv_param_initial(self->params, id, self->seed, values);
  hv_status status = axis ? overlay(param, tensor, axis, &self->maps[axis->map], values) : HV_OK;
  if (!status) status = hv_param_write(self->params, id, HV_F32, values, self->stream);
  if (!status) report_param(self, param, axis);
  free(values);
  return status;
}

static hv_status adapt(adapter *self, const hv_adaptation *adaptation, hv_text *unexpected) {
  HV_TRY(fill_map(adaptation->action_dims, &self->maps[ACTION_DIMS]));
  HV_TRY(fill_map(adaptation->state_dims, &self->maps[STATE_DIMS]));
  HV_TRY(choose_apart(self));
  HV_TRY(hv_error_context(
      hv_model_directory_fill_others(self->directory, self->params, self->apart, self->stream, unexpected),
      "cannot start from a model that differs in more than action_dim, action_chunk, state_dim, cameras or objective"));
  for (int i = 0; i < MAPS; i++) report_map(&self->maps[i], self->report);
  report_shared(self);
  for (hv_param_id id = 0; id < hv_params_count(self->params); id++) {
    if (self->apart[id]) HV_TRY(make_param(self, id));
  }
  return self->report->failed ? hv_error_memory("a report") : HV_OK;
}

hv_status hv_adapt_model(const hv_model_directory *directory, const hv_config *to, const hv_adaptation *adaptation,
                         hv_params *params, hv_stream *stream, hv_text *report, hv_text *unexpected) {
  const hv_config *from = &directory->model.config;
  adapter self = {
      .directory = directory,
      .before = from,
      .now = to,
      .params = params,
      .maps =
          {{.what = "action dimensions", .key = "init.action_dims", .before = from->action_dim, .now = to->action_dim},
           {.what = "state dimensions", .key = "init.state_dims", .before = from->state_dim, .now = to->state_dim}},
      .seed = adaptation->seed,
      .stream = stream,
      .report = report,
  };
  hv_status status = adapt(&self, adaptation, unexpected);
  for (int i = 0; i < MAPS; i++) free(self.maps[i].from);
  free(self.apart);
  return status;
}
