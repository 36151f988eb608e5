#include "train/run/run_model.h"

#include <inttypes.h>
#include <stdlib.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/hybridvla/model.h"
#include "core/io/json.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/checkpoint_model.h"

/* Finds the newest undamaged checkpoint. */
static hv_status choose_step(const char *run, hv_device *device, int64_t *step) {
  hv_comm *comm;
  hv_text damaged = {0};
  HV_TRY(hv_comm_single_open(device, &comm));
  hv_status status = hv_checkpoint_find(run, comm, step, &damaged);
  if (!status && damaged.length > 0) hv_log_warning("skipped damaged checkpoints:\n%s", hv_text_string(&damaged));
  if (!status && *step < 0) status = hv_error(HV_ERR_INPUT, "%s holds no undamaged checkpoint", run);
  hv_text_free(&damaged);
  hv_comm_close(comm);
  return status;
}

/* HV_ERR_INPUT if there is no checkpoint of `step`; the message lists those that there are. */
static hv_status check_is_there(const char *run, int64_t step) {
  int64_t *steps;
  size_t count;
  hv_text there = {0};
  bool found = false;
  HV_TRY(hv_checkpoint_steps(run, &steps, &count));
  for (size_t i = 0; i < count; i++) {
    found |= steps[i] == step;
    hv_text_add(&there, "%s%" PRId64, i ? ", " : "", steps[i]);
  }
  hv_status status = HV_OK;
  if (!found) {
    status = hv_error(HV_ERR_INPUT, "%s holds no checkpoint of step %" PRId64 "; it has those of steps: %s", run, step,
                      count ? hv_text_string(&there) : "none");
  }
  hv_text_free(&there);
  free(steps);
  return status;
}

static hv_status verify(const char *run, int64_t step) {
  HV_TRY(check_is_there(run, step));
  hv_manifest manifest;
  hv_status status = hv_manifest_read(run, step, &manifest);
  if (!status) status = hv_checkpoint_verify(run, &manifest, 0, 1);
  hv_manifest_free(&manifest);
  return status;
}

static hv_status read_dtype(const char *run, int64_t step, hv_dtype *out) {
  hv_manifest manifest;
  hv_status status = hv_manifest_read(run, step, &manifest);
  *out = manifest.dtype;
  hv_manifest_free(&manifest);
  return status;
}

/* Lays the model out on the planning device, which has no memory, to learn where each parameter lies in its group. */
static hv_status lay_out(const hv_config *config, hv_dtype dtype, hv_device *plan, hv_model **out) {
  HV_TRY(hv_model_open(config, plan, dtype, out));
  return hv_params_allocate(hv_model_params(*out));
}

/* Everything in a model directory except the parameters. */
typedef struct model_frame {
  hv_model_directory directory; /* RUN/model */
  char *tokenizer;              /* NULL: none */
  json_t *statistics;           /* NULL: none */
} model_frame;

static hv_status open_frame(const char *run, model_frame *frame) {
  hv_status status = HV_OK;
  char *path = hv_path_join(run, "model"), *statistics = NULL;
  if (!path) return hv_error_memory("a path");
  if (!hv_file_exists(path)) {
    status = hv_error(HV_ERR_INPUT,
                      "%s is missing, from which everything except the parameters is taken; a run's first checkpoint "
                      "writes it, and hvla-train run --resume writes it again",
                      path);
    goto done;
  }
  HV_CHECK(hv_error_context(hv_model_directory_open(path, &frame->directory),
                            "the run's own model, from which everything except the parameters is taken"));
  frame->tokenizer = hv_model_directory_tokenizer(path);
  statistics = hv_model_directory_statistics(path);
  if (!frame->tokenizer || !statistics) {
    status = hv_error_memory("a path");
    goto done;
  }
  if (!hv_file_exists(frame->tokenizer)) {
    free(frame->tokenizer);
    frame->tokenizer = NULL;
  }
  if (hv_file_exists(statistics)) status = hv_json_load(statistics, &frame->statistics);
done:
  free(statistics);
  free(path);
  return status;
}

static void close_frame(model_frame *frame) {
  json_decref(frame->statistics);
  free(frame->tokenizer);
  hv_model_directory_close(&frame->directory);
}

hv_status hv_run_model_save(const char *run, int64_t *step, const char *path) {
  hv_status status = HV_OK;
  hv_device *plan = NULL;
  hv_model *model = NULL;
  model_frame frame = {0};
  hv_dtype dtype;
  HV_CHECK(hv_plan_device_open(&plan));
  if (*step < 0) {
    HV_CHECK(choose_step(run, plan, step));
  } else {
    HV_CHECK(verify(run, *step));
  }
  HV_CHECK(read_dtype(run, *step, &dtype));
  HV_CHECK(open_frame(run, &frame));
  HV_CHECK(lay_out(&frame.directory.model.config, dtype, plan, &model));
  hv_checkpoint_model what = {.run = run,
                              .step = *step,
                              .params = hv_model_params(model),
                              .model = &frame.directory.model,
                              .carry = frame.directory.tensors,
                              .tokenizer_path = frame.tokenizer,
                              .statistics = frame.statistics,
                              .leftover = HV_LEFTOVER_REFUSE};
  status = hv_checkpoint_model_save(&what, path);
done:
  close_frame(&frame);
  hv_model_close(model);
  hv_device_close(plan);
  return status;
}
