#include "train/run/run_files.h"

#include <stdio.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/host_memory.h"
#include "core/base/log.h"
#include "core/io/json.h"
#include "train/checkpoint/background.h"
#include "train/checkpoint/checkpoint_files.h"
#include "train/checkpoint/checkpoint_model.h"
#include "train/checkpoint/checkpoint_shard.h"
#include "train/run/run_choices.h"

typedef enum phase {
  IDLE,       /* nothing is under way */
  WRITING,    /* every rank writes its file */
  COMPLETING, /* the first rank writes the manifest, renames the folder, removes older checkpoints, writes the model */
} phase;

struct hv_run_files {
  hv_run_files_options with;
  hv_comm *comm;
  hv_checkpoint_shard *shard;
  hv_background *background;
  bool async;
  phase phase;
  hv_manifest manifest; /* of the checkpoint under way */
  bool with_model;      /* that checkpoint's model is written, too */
  bool with_best;       /* and is the best so far */
  int64_t saved_step;   /* the newest step whose checkpoint this process has completed; -1: none */
  int64_t model_step;   /* the same of the model */
  bool told_of_waiting;
};

/* Reserves memory for this rank's copy; *enough = false if the host has too little, or a card can page-lock no more. */
static hv_status reserve_own(hv_run_files *files, bool *enough) {
  size_t bytes = hv_checkpoint_shard_bytes(files->shard), available = hv_host_memory_available();
  bool tried = bytes < available / 10 * 9;
  hv_status status = tried ? hv_checkpoint_shard_reserve(files->shard) : HV_OK;
  *enough = tried && !status;
  if (*enough || (status && hv_status_code(status) != HV_ERR_MEMORY)) return status;
  hv_log_warning(
      "training waits while checkpoints are written: to write them in the background, rank %d needs %zu bytes "
      "of host memory for a copy, and %zu are free%s%s",
      files->comm->rank, bytes, available, status ? ": " : "", hv_status_message(status));
  hv_status_free(status);
  return HV_OK;
}

/* Ranks reserve memory one after the other, since those on one machine share it. Either all have a copy or none. */
static hv_status reserve(hv_run_files *files) {
  double without = files->with.config->checkpoint.async ? 0 : 1;
  for (int32_t r = 0; r < files->comm->size && without == 0; r++) {
    bool enough = true;
    hv_status status = r == files->comm->rank ? reserve_own(files, &enough) : HV_OK;
    HV_TRY(hv_comm_agree(files->comm, "reserving memory for checkpoints", status));
    without = enough ? 0 : 1;
    HV_TRY(hv_comm_sum(files->comm, "ranks without memory for a copy", &without, 1));
  }
  files->async = without == 0;
  if (!files->async) hv_checkpoint_shard_release(files->shard);
  return HV_OK;
}

/* Writes this rank's file; runs in the background. */
static hv_status write_shard(void *context, const atomic_bool *stop) {
  hv_run_files *files = context;
  int32_t rank = files->comm->rank, ranks = files->comm->size;
  char directory[HV_CHECKPOINT_PATH], name[HV_CHECKPOINT_NAME], path[HV_CHECKPOINT_PATH + HV_CHECKPOINT_NAME + 1];
  HV_TRY(hv_checkpoint_path(files->with.config->output, files->manifest.position.step, ".tmp", directory));
  hv_checkpoint_file_name(rank, ranks, name);
  snprintf(path, sizeof path, "%s/%s", directory, name);
  const hv_trainer *trainer = files->with.trainer;
  hv_span *span = hv_trace_begin(trainer->trace, HV_TRACE_CHECKPOINT, "write", name, NULL);
  hv_status status =
      hv_checkpoint_shard_write(files->shard, path, trainer->stream, stop, &files->manifest.digests[rank]);
  hv_trace_end(span, NULL);
  return status;
}

/* Writes the checkpoint's model to RUN/<name>. */
static hv_status write_model(const hv_run_files *files, const char *name, const atomic_bool *stop) {
  const hv_run_files_options *with = &files->with;
  HV_TRY(hv_run_card_check(with->card));
  char *path = hv_path_join(with->config->output, name);
  if (!path) return hv_error_memory("a path");
  hv_checkpoint_model what = {.run = with->config->output,
                              .step = files->manifest.position.step,
                              .params = with->trainer->params,
                              .model = with->model,
                              .carry = with->carry,
                              .tokenizer_path = with->data->tokenizer_path,
                              .statistics = with->data->statistics_document,
                              .leftover = HV_LEFTOVER_REMOVE,
                              .stop = stop};
  hv_status status = hv_checkpoint_model_save(&what, path);
  free(path);
  return status;
}

/* Writes RUN/best/, and then best.json, which describes it. */
static hv_status write_best(const hv_run_files *files, const atomic_bool *stop) {
  const hv_best *best = &files->manifest.position.best;
  HV_TRY(write_model(files, "best", stop));
  char *path = hv_path_join(files->with.config->output, "best.json");
  json_t *told =
      json_pack("{s:I, s:s, s:f}", "step", (json_int_t)best->step, "metric", best->metric, "value", best->figure);
  hv_status status = path && told ? hv_json_save(path, told) : hv_error_memory("the best model's figures");
  json_decref(told);
  free(path);
  return status;
}

/* Whether RUN/best/ exists and, by best.json, is of that step. If not, or if best.json is broken, both are written. */
static hv_status has_best(const char *run, int64_t step, bool *out) {
  json_t *told = NULL;
  char *path = hv_path_join(run, "best.json"), *model = hv_path_join(run, "best");
  hv_status status = path && model ? HV_OK : hv_error_memory("a path");
  if (!status && hv_file_exists(path)) status = hv_json_load(path, &told);
  bool broken = status && hv_status_code(status) == HV_ERR_INPUT;
  *out = told && json_integer_value(json_object_get(told, "step")) == step && hv_file_exists(model);
  json_decref(told);
  free(path);
  free(model);
  if (!broken) return status;
  hv_log_warning("best/ and best.json are written anew: %s", hv_status_message(status));
  hv_status_free(status);
  return HV_OK;
}

/* Writes RUN/best/ if the run was killed after the checkpoint of the best step but before its best/. */
static hv_status restore_best(hv_run_files *files) {
  const hv_best *best = files->with.best;
  bool there = false;
  if (!files->with.config->validation.keep_best || best->step <= 0 || best->step != files->with.trainer->step) {
    return HV_OK;
  }
  HV_TRY(has_best(files->with.config->output, best->step, &there));
  if (there) return HV_OK;
  files->manifest.position = (hv_run_position){.step = best->step, .best = *best};
  return write_best(files, NULL);
}

/* What the first rank does when all have written; runs in the background. Nothing is removed before the new checkpoint
 * is durable. */
static hv_status complete(void *context, const atomic_bool *stop) {
  const hv_run_files *files = context;
  const hv_checkpoint_settings *settings = &files->with.config->checkpoint;
  const char *run = files->with.config->output;
  hv_retention retention = {.keep = settings->keep, .every = settings->keep_every};
  HV_TRY(hv_run_card_check(files->with.card));
  HV_TRY(hv_checkpoint_publish(run, &files->manifest));
  /* Say, one that a reader has open on a network file system. The next checkpoint tries again. */
  hv_status kept = hv_checkpoint_prune(run, files->manifest.position.step, retention);
  if (kept) hv_log_warning("cannot remove an older checkpoint: %s", hv_status_message(kept));
  hv_status_free(kept);
  if (files->with_best) HV_TRY(write_best(files, stop));
  return files->with_model ? write_model(files, "model", stop) : HV_OK;
}

hv_status hv_run_files_open(const hv_run_files_options *options, hv_run_files **out) {
  hv_status status = HV_OK;
  const hv_trainer *trainer = options->trainer;
  *out = NULL;
  hv_run_files *files = calloc(1, sizeof *files);
  if (!files) return hv_error_memory("the run's files");
  files->with = *options;
  files->comm = trainer->comm;
  files->saved_step = files->model_step = -1;
  files->manifest = (hv_manifest){.ranks = files->comm->size,
                                  .dtype = hv_params_dtype(trainer->params),
                                  .parameters = hv_params_total(trainer->params)};
  snprintf(files->manifest.sharding, sizeof files->manifest.sharding, "%s",
           hv_train_config_sharding_name(options->config->parallel.sharding));
  files->manifest.digests = calloc((size_t)files->comm->size, sizeof *files->manifest.digests);
  if (!files->manifest.digests) {
    status = hv_error_memory("the run's files");
    goto done;
  }
  HV_CHECK(hv_checkpoint_shard_open(trainer->params, trainer->optimizer, trainer->ema, &files->shard));
  status = files->comm->rank == 0 ? restore_best(files) : HV_OK;
  HV_CHECK(hv_comm_agree(files->comm, "looking for the best model", status));
  HV_CHECK(reserve(files));
  HV_CHECK(hv_background_open(files->async, &files->background));
  *out = files;
  files = NULL;
done:
  hv_run_files_close(files);
  return status;
}

void hv_run_files_close(hv_run_files *files) {
  if (!files) return;
  hv_background_close(files->background);
  hv_checkpoint_shard_close(files->shard);
  hv_manifest_free(&files->manifest);
  free(files);
}

/* Sizes and checksums of all ranks' files, from each rank's own. */
static hv_status gather_digests(hv_run_files *files) {
  enum { NUMBERS = 3, AT_ONCE = HV_COMM_MAX_SUM / NUMBERS };
  int32_t ranks = files->comm->size;
  for (int32_t first = 0; first < ranks; first += AT_ONCE) {
    double numbers[AT_ONCE * NUMBERS] = {0};
    int32_t count = ranks - first < AT_ONCE ? ranks - first : AT_ONCE, own = files->comm->rank - first;
    if (own >= 0 && own < count) {
      const hv_file_digest *digest = &files->manifest.digests[files->comm->rank];
      numbers[own * NUMBERS] = (double)digest->size;
      numbers[own * NUMBERS + 1] = (double)(digest->xxh3 >> 32);
      numbers[own * NUMBERS + 2] = (double)(uint32_t)digest->xxh3;
    }
    HV_TRY(hv_comm_sum(files->comm, "checksums of a checkpoint", numbers, count * NUMBERS));
    for (int32_t r = 0; r < count; r++) {
      const double *of = &numbers[r * NUMBERS];
      files->manifest.digests[first + r] =
          (hv_file_digest){.size = (uint64_t)of[0], .xxh3 = (uint64_t)of[1] << 32 | (uint64_t)of[2]};
    }
  }
  return HV_OK;
}

/* All ranks' files are written: the first rank completes the checkpoint. */
static hv_status begin_completing(hv_run_files *files) {
  HV_TRY(gather_digests(files));
  files->phase = COMPLETING;
  if (files->comm->rank == 0) hv_background_start(files->background, complete, files);
  return HV_OK;
}

/* After a checkpoint or a model could not be written: if the directory was moved or replaced, that is the error; else
 * what there is of an unfinished checkpoint is removed. */
static hv_status give_up(const hv_run_files *files, hv_status status) {
  hv_status moved = hv_run_card_check(files->with.card);
  if (moved) return hv_status_first(moved, status);
  return hv_status_first(status, hv_checkpoint_abandon(files->with.config->output, files->manifest.position.step));
}

/* Waits for the end of a phase, takes note of its outcome, and begins the next. */
static hv_status end_phase(hv_run_files *files) {
  int64_t step = files->manifest.position.step;
  bool writing = files->phase == WRITING;
  hv_status own = hv_background_wait(files->background);
  hv_status status =
      hv_comm_agree(files->comm, writing ? "writing the checkpoint" : "completing the checkpoint and the model", own);
  if (!status && writing) return begin_completing(files);
  files->phase = IDLE;
  if (!status) {
    files->saved_step = step;
    if (files->with_model) files->model_step = step;
  } else if (files->comm->rank == 0) {
    status = give_up(files, status);
  }
  return hv_error_context(status, "checkpoint of step %lld", (long long)step);
}

static hv_status settle(hv_run_files *files) {
  while (files->phase != IDLE) HV_TRY(end_phase(files));
  return HV_OK;
}

/* Waits for the previous checkpoint: there is memory for one copy only. A wait too short to notice is not logged, since
 * that checkpoint had been written and was merely not asked about. */
static hv_status wait_for_former(hv_run_files *files) {
  static const double WORTH_TELLING = 1e-4; /* seconds */
  if (files->phase == IDLE) return HV_OK;
  double start = hv_clock_seconds();
  int64_t step = files->manifest.position.step;
  HV_TRY(settle(files));
  double waited = hv_clock_seconds() - start;
  if (waited < WORTH_TELLING || files->told_of_waiting) return HV_OK;
  if (files->comm->rank == 0) {
    hv_log_warning("training waited %.3g s for the checkpoint of step %lld: checkpoints are due faster than they can "
                   "be written (checkpoint.interval); this is logged once",
                   waited, (long long)step);
  }
  files->told_of_waiting = true;
  return HV_OK;
}

/* Also if this process has written none yet, so that a run with checkpoints always has a model. */
static bool model_is_due(const hv_run_files *files) {
  int64_t interval = files->with.config->checkpoint.model_interval;
  return files->model_step < 0 || interval == 0 || files->with.trainer->step % interval == 0;
}

/* What the first rank does before any rank writes. */
static hv_status prepare(const hv_run_files *files) {
  HV_TRY(hv_run_card_check(files->with.card));
  hv_status status = hv_run_choices_save(files->with.config->output, files->with.trainer->device);
  if (!status) status = hv_checkpoint_begin(files->with.config->output, files->manifest.position.step);
  /* That the directory was moved or replaced says more than which file was not found in it. */
  return status ? hv_status_first(hv_run_card_check(files->with.card), status) : HV_OK;
}

/* Begins a checkpoint; none may be under way. */
static hv_status begin(hv_run_files *files, bool with_model) {
  const hv_trainer *trainer = files->with.trainer;
  const hv_train_config *config = files->with.config;
  files->manifest.position = (hv_run_position){.step = trainer->step,
                                               .updates = hv_optimizer_updates(trainer->optimizer),
                                               .samples = trainer->samples,
                                               .skipped = trainer->skipped,
                                               .seed = config->seed,
                                               .means = trainer->means,
                                               .best = *files->with.best};
  files->with_model = with_model;
  files->with_best = config->validation.keep_best && files->with.best->step == trainer->step;
  hv_status status = files->comm->rank == 0 ? prepare(files) : HV_OK;
  HV_TRY(hv_comm_agree(files->comm, "making the checkpoint's folder", status));
  hv_span *span = hv_trace_begin(trainer->trace, HV_TRACE_COMPUTE, "copy", "the state for a checkpoint", NULL);
  status = hv_checkpoint_shard_copy(files->shard, trainer->stream);
  hv_trace_end(span, NULL);
  HV_TRY(status);
  files->phase = WRITING;
  hv_background_start(files->background, write_shard, files);
  return files->async ? HV_OK : settle(files);
}

static hv_status save(hv_run_files *files) {
  HV_TRY(wait_for_former(files));
  return begin(files, model_is_due(files));
}

/* Runs a call with the timeout for reading and writing files. */
static hv_status patiently(hv_run_files *files, hv_status (*call)(hv_run_files *)) {
  hv_comm_set_timeout(files->comm, HV_FILE_TIMEOUT);
  hv_status status = call(files);
  hv_comm_set_timeout(files->comm, files->with.config->parallel.timeout);
  return status;
}

hv_status hv_run_files_save(hv_run_files *files) {
  return patiently(files, save);
}

double hv_run_files_report(const hv_run_files *files) {
  return files->phase != IDLE && hv_background_done(files->background) ? 1 : 0;
}

hv_status hv_run_files_advance(hv_run_files *files, double sum) {
  if (files->phase == IDLE || sum < files->comm->size) return HV_OK;
  return end_phase(files);
}

/* Writes the model of the newest checkpoint unless it is there. */
static hv_status bring_model_up_to_date(hv_run_files *files) {
  if (files->model_step == files->saved_step) return HV_OK;
  HV_TRY(hv_comm_agree(files->comm, "saving the model",
                       files->comm->rank == 0 ? write_model(files, "model", NULL) : HV_OK));
  files->model_step = files->saved_step;
  return HV_OK;
}

static hv_status save_all(hv_run_files *files) {
  HV_TRY(wait_for_former(files));
  if (files->saved_step == files->with.trainer->step) return bring_model_up_to_date(files);
  return begin(files, true);
}

hv_status hv_run_files_save_all(hv_run_files *files) {
  return patiently(files, save_all);
}

hv_status hv_run_files_settle(hv_run_files *files) {
  if (files->phase != IDLE && files->comm->rank == 0) {
    hv_log_info("the run ends as soon as the checkpoint of step %lld is written",
                (long long)files->manifest.position.step);
  }
  return patiently(files, settle);
}

void hv_run_files_tell_newest(const hv_run_files *files) {
  const char *run = files->with.config->output;
  int64_t newest = -1;
  hv_text damaged = {0}, text = {0};
  hv_status status = hv_checkpoint_newest(run, &newest, &damaged);
  int64_t step = files->manifest.position.step;
  /* One that already has its final name is complete: at most its model is lost. */
  if (files->phase != IDLE && newest != step) {
    hv_text_add(&text, "the checkpoint of step %lld was still being written and is lost; ", (long long)step);
  }
  if (status) {
    hv_text_add(&text, "cannot tell which checkpoint is the newest to resume from: %s", hv_status_message(status));
  } else if (newest < 0) {
    hv_text_add(&text, "%s holds no complete checkpoint to resume from", run);
  } else {
    hv_text_add(&text, "the checkpoint of step %lld is the newest to resume from", (long long)newest);
  }
  hv_log_warning("%s", hv_text_string(&text));
  hv_text_free(&damaged);
  hv_text_free(&text);
  hv_status_free(status);
}

static hv_status finish(hv_run_files *files) {
  HV_TRY(settle(files));
  HV_TRY(save_all(files));
  return settle(files);
}

hv_status hv_run_files_finish(hv_run_files *files) {
  return patiently(files, finish);
}
