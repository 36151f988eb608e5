#include "train/plan/plan.h"

#include "core/io/json.h"
#include "train/optimizer.h"
#include "train/plan/plan_search.h"

static const double giga = 1e-9;

typedef struct planner {
  const hv_forecast_options *options;
  size_t memory_bytes;
  hv_train_config config; /* a copy whose batch the ranks can share; what it points to is the caller's */
  hv_plan_search search;
  hv_text changes; /* settings that had to be changed so that the configuration runs; empty: none */
  json_t *advice;
  bool incomplete; /* a part of the advice is missing: no memory */
} planner;

static void time_text(double seconds, char *out, size_t size) {
  if (seconds < 0.1) {
    snprintf(out, size, "%.3g ms", 1e3 * seconds);
  } else {
    snprintf(out, size, "%.3f s", seconds);
  }
}

/* The unit in which a number of bytes is printed. */
typedef struct memory_unit {
  double scale;
  const char *name;
} memory_unit;

static memory_unit unit_of(double bytes) {
  return bytes * giga >= 1 ? (memory_unit){giga, "GB"} : (memory_unit){1e-6, "MB"};
}

typedef struct memory_text {
  char text[24];
} memory_text;

static memory_text as_memory(double bytes) {
  memory_text memory;
  memory_unit unit = unit_of(bytes);
  snprintf(memory.text, sizeof memory.text, "%.1f %s", bytes * unit.scale, unit.name);
  return memory;
}

static void advise(planner *self, const char *format, ...) HV_PRINTF(2, 3);
static void advise(planner *self, const char *format, ...) {
  va_list args;
  va_start(args, format);
  if (json_array_append_new(self->advice, json_vsprintf(format, args)) != 0) self->incomplete = true;
  va_end(args);
}

/* Notes a setting that the advice uses instead of the configured one. */
static void note_change(planner *self, const char *format, ...) HV_PRINTF(2, 3);
static void note_change(planner *self, const char *format, ...) {
  va_list args;
  char text[80];
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  hv_text_add(&self->changes, "%s%s", self->changes.length > 0 ? " " : "", text);
}

/* Makes the batch a multiple of the ranks, and each rank's part one of the micro-batch. */
static void make_batch_runnable(planner *self) {
  int64_t ranks = self->options->ranks, batch = self->config.train.batch_size, micro = self->config.train.micro_batch;
  if (batch % ranks != 0) {
    int64_t nearest = (batch + ranks - 1) / ranks * ranks;
    if (nearest > HV_BATCH_SIZE_MAX) nearest -= ranks;
    advise(self, "train.batch_size %lld is not a multiple of the %lld GPUs: use one, such as %lld.", (long long)batch,
           (long long)ranks, (long long)nearest);
    self->config.train.batch_size = nearest;
    note_change(self, "train.batch_size=%lld", (long long)nearest);
  }
  int64_t part = self->config.train.batch_size / ranks;
  if (micro > 0 && part % micro != 0) {
    advise(self, "train.micro_batch %lld does not divide the %lld samples of each GPU.", (long long)micro,
           (long long)part);
    while (part % micro != 0) micro--;
    self->config.train.micro_batch = micro;
    note_change(self, "train.micro_batch=%lld", (long long)micro);
  }
}

/* Changes moments or sharding if this number of ranks cannot split the state as configured. */
static void make_sharding_runnable(planner *self) {
  int32_t ranks = self->options->ranks, moments = self->config.optimizer.moments;
  if (ranks == 1 || self->config.parallel.sharding == HV_SHARD_NOTHING || hv_plan_ranks_can_share(ranks, moments)) {
    return;
  }
  if (hv_plan_ranks_can_share(ranks, HV_MOMENTS_F32)) {
    advise(self, "%d GPUs cannot split 8-bit moments into whole blocks: set optimizer.moments to fp32.", ranks);
    self->config.optimizer.moments = HV_MOMENTS_F32;
    note_change(self, "optimizer.moments=%s", hv_train_config_moments_name(HV_MOMENTS_F32));
    return;
  }
  advise(self,
         "%d GPUs cannot split the state (parallel.sharding=%s): use 2, 4, 8, … GPUs, or parallel.sharding=replicate.",
         ranks, hv_train_config_sharding_name(self->config.parallel.sharding));
  self->config.parallel.sharding = HV_SHARD_NOTHING;
  note_change(self, "parallel.sharding=%s", hv_train_config_sharding_name(HV_SHARD_NOTHING));
}

/* Says what this number of ranks cannot run, and changes it to what they can. */
static void make_runnable(planner *self) {
  make_batch_runnable(self);
  make_sharding_runnable(self);
}

static void advise_memory(planner *self) {
  const hv_plan_candidate *given = &self->search.given;
  const hv_memory_use *use = &given->forecast.memory;
  memory_text total = as_memory((double)use->total), limit = as_memory((double)self->memory_bytes);
  if (given->fits) {
    advise(self, "The configuration needs %s of the %s that each GPU has.", total.text, limit.text);
    return;
  }
  int largest = 0;
  for (int k = 1; k < HV_MEMORY_KINDS; k++) {
    if (use->bytes[k] > use->bytes[largest]) largest = k;
  }
  advise(self, "The configuration needs %s and each GPU has %s; most of it, %s, is for %s.", total.text, limit.text,
         as_memory((double)use->bytes[largest]).text, hv_memory_kind_name((hv_memory_kind)largest));
}

static void advise_best(planner *self) {
  const hv_plan_search *search = &self->search;
  const hv_plan_candidate *coarser = &search->coarser;
  hv_text text = {0}, least = {0};
  char time[32];
  hv_plan_candidate_text(search->best.fits ? &search->best : coarser, search, &text);
  hv_plan_candidate_text(&search->least, search, &least);
  if (text.failed || least.failed) self->incomplete = true;
  if (search->best.fits) {
    time_text(search->best.forecast.step_seconds, time, sizeof time);
    advise(self, "Fastest settings that fit, by forecast: %s%s%s, with %s and %s a step.",
           hv_text_string(&self->changes), self->changes.length > 0 ? ", beyond that " : "", hv_text_string(&text),
           as_memory((double)search->best.forecast.memory.total).text, time);
  } else {
    advise(self, "No settings fit that leave the results unchanged. Those that need the least memory, %s, need %s.",
           hv_text_string(&least), as_memory((double)search->least.forecast.memory.total).text);
  }
  if (!search->best.fits && coarser->fits) {
    time_text(coarser->forecast.step_seconds, time, sizeof time);
    advise(self,
           "With fewer bits for moments or gradients, which changes the results a little, this fits: %s, with %s and "
           "%s a step.",
           hv_text_string(&text), as_memory((double)coarser->forecast.memory.total).text, time);
  } else if (!search->best.fits) {
    advise(self, "Use GPUs with more memory, more GPUs with parallel.sharding=parameters, more frozen parameters "
                 "(train.freeze) or fewer branches (train.branches).");
  }
  hv_text_free(&text);
  hv_text_free(&least);
}

static void advise_time(planner *self) {
  const hv_forecast *given = &self->search.given.forecast;
  int64_t parts = self->config.train.batch_size / self->options->ranks / self->search.given.micro_batch;
  char time[32];
  time_text(given->step_seconds, time, sizeof time);
  advise(self,
         "A step of %lld samples takes %s if every operation runs at %.0f TFLOP/s or %.2f TB/s: real operations are "
         "slower.",
         (long long)self->config.train.batch_size, time, self->options->flops_per_s * 1e-12,
         self->options->bytes_per_s * 1e-12);
  if (self->options->ranks == 1) return;
  advise(self, "In each step a GPU waits %.1f ms (%.1f %%) for other GPUs.",
         1e3 * (given->step_seconds - given->compute_seconds),
         100 * (1 - given->compute_seconds / given->step_seconds));
  if (parts > 1 && self->config.parallel.sharding >= HV_SHARD_GRADIENTS) {
    advise(self,
           "Gradients are summed over GPUs in each of the %lld micro-batches of a step, because no GPU keeps all of "
           "them; with parallel.sharding=optimizer they are summed once.",
           (long long)parts);
  }
}

static json_t *memory_json(const hv_memory_use *use) {
  json_t *object = json_object();
  for (int k = 0; k < HV_MEMORY_KINDS; k++) {
    json_object_set_new(object, hv_memory_kind_name((hv_memory_kind)k), json_integer((json_int_t)use->bytes[k]));
  }
  json_object_set_new(object, "total", json_integer((json_int_t)use->total));
  return object;
}

static json_t *candidate_json(const hv_plan_candidate *candidate) {
  const hv_forecast *forecast = &candidate->forecast;
  return json_pack("{s:s, s:s, s:I, s:s, s:s, s:b, s:f, s:o}", "sharding",
                   hv_train_config_sharding_name(candidate->sharding), "recompute",
                   hv_train_config_recompute_name(candidate->recompute), "micro_batch",
                   (json_int_t)candidate->micro_batch, "moments", hv_train_config_moments_name(candidate->moments),
                   "gradients", hv_train_config_gradients_name(candidate->gradients), "fits", candidate->fits,
                   "step_seconds", forecast->step_seconds, "memory_bytes", memory_json(&forecast->memory));
}

static json_t *traffic_json(const hv_forecast *forecast) {
  json_t *object = json_object();
  for (int c = 0; c < HV_COLLECTIVES; c++) {
    const hv_plan_traffic *traffic = &forecast->traffic[c];
    if (traffic->calls == 0) continue;
    json_object_set_new(object, hv_collective_name((hv_collective)c),
                        json_pack("{s:I, s:f, s:f}", "calls", (json_int_t)traffic->calls, "bytes_sent", traffic->bytes,
                                  "seconds", traffic->seconds));
  }
  return object;
}

static json_t *assumed_json(const hv_forecast_options *options) {
  const hv_plan_links *links = &options->links;
  return json_pack("{s:s, s:i, s:f, s:f, s:i, s:f, s:f, s:f, s:f}", "device", options->device, "prompt_tokens",
                   options->prompt - 1, "matrix_flops_per_s", options->flops_per_s, "memory_bytes_per_s",
                   options->bytes_per_s, "node_gpus", links->node_ranks, "node_bytes_per_s", links->node_bytes_per_s,
                   "network_bytes_per_s", links->network_bytes_per_s, "link_efficiency", links->efficiency,
                   "hop_seconds", links->hop_s);
}

static json_t *table_json(const hv_plan_search *search) {
  json_t *table = json_array();
  for (int s = 0; s < search->shardings; s++) {
    for (int r = 0; r < HV_RECOMPUTE_LEVELS; r++) {
      json_array_append_new(table, candidate_json(&search->table[s][r]));
    }
  }
  return table;
}

/* Whether the configuration, as given, runs and fits. */
static bool runs_and_fits(const planner *self) {
  return self->changes.length == 0 && self->search.given.fits;
}

static hv_status to_json(const planner *self, json_t **out) {
  const hv_plan_search *search = &self->search;
  const hv_forecast *given = &search->given.forecast;
  json_t *best = search->best.fits ? candidate_json(&search->best) : json_null();
  json_t *coarser = search->coarser.fits ? candidate_json(&search->coarser) : json_null();
  *out = json_pack("{s:o, s:b, s:f, s:O, s:i, s:I, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:o}", "memory_bytes",
                   memory_json(&given->memory), "fits", runs_and_fits(self), "step_seconds", given->step_seconds,
                   "advice", self->advice, "gpus", self->options->ranks, "gpu_memory_bytes",
                   (json_int_t)self->memory_bytes, "samples_per_s", given->samples_per_s, "compute_seconds",
                   given->compute_seconds, "model_tflop", given->model_flops * 1e-12, "communication",
                   traffic_json(given), "configured", candidate_json(&search->given), "recommended", best, "coarser",
                   coarser, "table", table_json(search), "assumed", assumed_json(self->options));
  return *out ? HV_OK : hv_error_memory("the plan");
}

hv_status hv_plan_make(const hv_train_config *config, const hv_forecast_options *options, size_t memory_bytes,
                       hv_plan_result *out) {
  hv_status status = HV_OK;
  hv_model_config model = {0};
  hv_model_directory directory = {0};
  planner self = {.options = options, .memory_bytes = memory_bytes, .config = *config, .advice = json_array()};
  *out = (hv_plan_result){0};
  HV_CHECK(hv_train_config_model(config, &model, &directory));
  make_runnable(&self);
  HV_CHECK(hv_plan_search_make(&self.config, &model.config, options, memory_bytes, &self.search));
  advise_memory(&self);
  advise_best(&self);
  advise_time(&self);
  if (self.incomplete || self.changes.failed) {
    status = hv_error_memory("advice");
    goto done;
  }
  HV_CHECK(to_json(&self, &out->json));
  out->fits = runs_and_fits(&self);
done:
  hv_text_free(&self.changes);
  json_decref(self.advice);
  hv_model_directory_close(&directory);
  hv_model_config_free(&model);
  return status;
}

static double number(const json_t *object, const char *key) {
  return json_number_value(json_object_get(object, key));
}

static void format_row(const json_t *row, double scale, hv_text *out) {
  const json_t *memory = json_object_get(row, "memory_bytes");
  hv_text_add(out, "  %-11s %-6s %11.0f %15.2f %9.2f  %-5s %8.3g\n",
              json_string_value(json_object_get(row, "sharding")), json_string_value(json_object_get(row, "recompute")),
              number(row, "micro_batch"), number(memory, "activations") * scale, number(memory, "total") * scale,
              json_is_true(json_object_get(row, "fits")) ? "fits" : "no", number(row, "step_seconds"));
}

void hv_plan_format(const json_t *result, hv_text *out) {
  const char *kind;
  const json_t *value;
  size_t index;
  json_t *memory = json_object_get(result, "memory_bytes");
  memory_unit unit = unit_of(number(memory, "total"));
  double gpus = number(result, "gpus");
  hv_text_add(out, "%.0f GPU%s with %s each: %s\n", gpus, gpus == 1 ? "" : "s",
              as_memory(number(result, "gpu_memory_bytes")).text,
              json_is_true(json_object_get(result, "fits")) ? "fits" : "does not fit or run");
  json_object_foreach(memory, kind, value) {
    hv_text_add(out, "  %-13s %10.3f %s\n", kind, json_number_value(value) * unit.scale, unit.name);
  }
  hv_text_add(out, "\n  sharding    recompute micro-batch  activations %s  total %s          s/step\n", unit.name,
              unit.name);
  json_array_foreach(json_object_get(result, "table"), index, value) format_row(value, unit.scale, out);
  char time[32];
  time_text(number(result, "step_seconds"), time, sizeof time);
  hv_text_add(out, "\n%s a step, %.1f samples/s\n", time, number(result, "samples_per_s"));
  json_array_foreach(json_object_get(result, "advice"), index, value) {
    hv_text_add(out, "- %s\n", json_string_value(value));
  }
}

/* Adds lines to an error's message: the forecast, and settings that would fit. */
static void format_way_out(const hv_plan_search *search, size_t memory_bytes, hv_text *out) {
  hv_text_add(out, "\nforecast for the configuration as it is:\n");
  hv_memory_table(&search->given.forecast.memory, "  ", out);
  hv_text_add(out, "settings that would fit into the %.3f GB that other processes leave:", (double)memory_bytes * giga);
  bool any = false;
  for (int s = 0; s < search->shardings; s++) {
    for (int r = 0; r < HV_RECOMPUTE_LEVELS; r++) {
      const hv_plan_candidate *candidate = &search->table[s][r];
      if (!candidate->fits) continue;
      hv_text_add(out, "\n  %.3f GB: ", (double)candidate->forecast.memory.total * giga);
      hv_plan_candidate_text(candidate, search, out);
      any = true;
    }
  }
  if (any) return;
  hv_text_add(out, "\n  none; the least memory, %.3f GB, is needed with ",
              (double)search->least.forecast.memory.total * giga);
  hv_plan_candidate_text(&search->least, search, out);
  if (!search->coarser.fits) return;
  hv_text_add(out, "\n  with fewer bits for moments or gradients, which changes the results a little, %.3f GB: ",
              (double)search->coarser.forecast.memory.total * giga);
  hv_plan_candidate_text(&search->coarser, search, out);
}

hv_status hv_plan_explain(hv_status error, const hv_train_config *config, const hv_config *model, hv_device *device,
                          int32_t ranks, int32_t prompt) {
  if (!error || hv_status_code(error) != HV_ERR_MEMORY) return error;
  hv_forecast_options options = hv_forecast_h100(ranks, hv_train_config_dtype(config));
  options.device = device->name;
  options.prompt = prompt;
  hv_plan_search search;
  /* What the card holds for this process beside the account is gone from its room, and part of a forecast. */
  size_t own = device->memory.held.total + hv_forecast_unseen_bytes(&options);
  size_t memory_bytes = hv_device_get_room(device).available + own;
  hv_status failed = hv_plan_search_make(config, model, &options, memory_bytes, &search);
  if (failed) {
    hv_status_free(failed);
    return error;
  }
  hv_text text = {0};
  hv_text_add(&text, "%s", hv_status_message(error));
  format_way_out(&search, memory_bytes, &text);
  if (!text.failed) {
    hv_status_free(error);
    error = hv_error(HV_ERR_MEMORY, "%s", hv_text_string(&text));
  }
  hv_text_free(&text);
  return error;
}
