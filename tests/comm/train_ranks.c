/* One rank of test_ranks and test_nccl: `train_ranks FOLDER [KEY=VALUE …]` trains a tiny model on this rank's part of
 * each batch. Rank 0 also trains the same model alone on whole batches, compares, and prints the differences. On the
 * CPU, some more steps must allocate nothing. Ends with 0 if both sides agree. The keys are those of `settings`. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/hybridvla/policy.h"
#include "tests/allocations.h"
#include "tests/device.h"
#include "tests/hybridvla/tiny_model.h"
#include "train/ranks/launch.h"
#include "train/run/interrupt.h"
#include "train/trainer.h"

enum { BATCHES = 4, TIMEOUT = 60 };

typedef struct settings {
  const char *device;
  hv_dtype dtype, gradients;
  hv_moment_format moments;
  int32_t samples, branches; /* of a batch */
  int32_t parts;             /* micro-batches of a rank */
  int32_t steps;
  int first, last; /* the kinds of sharding from `first` to `last` are tried */
  int trained;     /* index into trained_parts */
} settings;

static const char *const shardings[] = {"nothing", "optimizer", "gradients", "parameters"};
static const char *const trained_parts[] = {"most", "heads"};
static const double learning_rate = 1e-3;

/* A source that gives the batches of a run in turn, and of each batch the parts that belong to one rank. */
typedef struct part_source {
  hv_batch_source source;
  const hv_config *config;
  const tiny_batch *batches;
  int32_t branches;
  int32_t first, samples, parts; /* the rank's samples of every batch, in so many parts */
  int64_t next;
  hv_batch batch;
} part_source;

static hv_status next_part(hv_batch_source *source, const hv_batch **out) {
  part_source *self = (part_source *)source;
  const tiny_batch *whole = &self->batches[self->next / self->parts % BATCHES];
  int32_t each = self->samples / self->parts, part = (int32_t)(self->next % self->parts);
  self->batch = tiny_batch_part(self->config, whole, self->branches, self->first + part * each, each);
  self->batch.noise = NULL; /* so that the device draws, by the sample's number in the run */
  self->batch.timesteps = NULL;
  self->next++;
  *out = &self->batch;
  return HV_OK;
}

static void release_part(hv_batch_source *source, const hv_batch *batch) {
  (void)source;
  (void)batch;
}

typedef struct side {
  hv_trainer *trainer;
  part_source source;
} side;

/* What is frozen, for each of trained_parts: one tower, so that groups without trained parameters are sharded too; or
 * all but the embedders and the noise head, which are fewer groups than there are buffers. */
static const struct {
  const char *patterns[3];
  int count;
} frozen[] = {{{"vision_backbone.dino_featurizer.*"}, 1}, {{"vision_backbone.*", "projector.*", "llm_backbone.*"}, 3}};

static hv_status open_side(hv_device *device, hv_comm *comm, hv_sharding sharding, const hv_config *config,
                           const settings *how, const tiny_batch *batches, side *out) {
  int32_t ranks = comm ? comm->size : 1, rank = comm ? comm->rank : 0, samples = how->samples / ranks;
  int32_t parts = comm ? how->parts : 1;
  out->source = (part_source){.source = {.next = next_part, .release = release_part},
                              .config = config,
                              .batches = batches,
                              .branches = how->branches,
                              .first = rank * samples,
                              .samples = samples,
                              .parts = parts};
  hv_trainer_options options = {
      .config = config,
      .dtype = how->dtype,
      .gradients = how->gradients,
      .limits = {.samples = samples / parts, .branches = how->branches, .prompt = batches[0].batch.prompt_stride},
      .parts = parts,
      .freeze = frozen[how->trained].patterns,
      .freeze_count = frozen[how->trained].count,
      .weights = {1, 1},
      .optimizer =
          {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .max_norm = 0.5, .moments = how->moments},
      .seed = 7,
      .comm = comm,
      .sharding = sharding};
  HV_TRY(hv_trainer_open(device, &options, &out->trainer));
  return hv_trainer_initialize(out->trainer, NULL, NULL);
}

/* ‖a − b‖ / ‖b‖ over all parameters. If `b` is NULL, the values of `a` are read all the same, because the
 * other ranks take part in that. */
static hv_status compare_values(const hv_trainer *a, const hv_trainer *b, double *out) {
  double difference = 0, size = 0;
  for (hv_param_id id = 0; id < hv_params_count(a->params); id++) {
    const hv_param *param = hv_params_get(a->params, id);
    int64_t count = param->rows * param->cols;
    double *x = malloc((size_t)count * 2 * sizeof *x), *y = x + count;
    if (!x) return hv_error_memory("values");
    hv_status status = hv_param_read(a->params, id, HV_F64, x, a->stream);
    if (!status && b) status = hv_param_read(b->params, id, HV_F64, y, b->stream);
    for (int64_t i = 0; i < count && b && !status; i++) {
      difference += (x[i] - y[i]) * (x[i] - y[i]);
      size += y[i] * y[i];
    }
    free(x);
    HV_TRY(status);
  }
  *out = b ? sqrt(difference / size) : 0;
  return HV_OK;
}

static double relative(double a, double b) {
  return fabs(a - b) / fabs(b);
}

/* Relative differences: the largest of losses and of gradient norms, and that of the parameters at the end. */
typedef struct differences {
  double loss, norm, values;
} differences;

/* alone->trainer is NULL on all ranks but 0. */
static hv_status train_both(side *shared, side *alone, int32_t steps, differences *out) {
  double before = 0;
  *out = (differences){0};
  HV_TRY(compare_values(shared->trainer, alone->trainer, &before));
  if (before != 0) return hv_error(HV_ERR_NO, "the ranks begin %g away from a single one", before);
  for (int32_t step = 0; step < steps; step++) {
    hv_step_result a, b;
    HV_TRY(hv_trainer_step(shared->trainer, &shared->source.source, learning_rate, &a));
    if (!alone->trainer) continue;
    HV_TRY(hv_trainer_step(alone->trainer, &alone->source.source, learning_rate, &b));
    out->loss = larger_of(out->loss, relative(a.loss, b.loss));
    out->norm = larger_of(out->norm, relative(a.grad_norm, b.grad_norm));
  }
  HV_TRY(hv_params_order_status(shared->trainer->params));
  return compare_values(shared->trainer, alone->trainer, &out->values);
}

/* The trained model gives the same prediction for the same draws again and again: a device that records a prediction
 * must not record the communication of the ranks with it. */
static hv_status expect_steady_predictions(side *shared, const tiny_batch *batch) {
  enum { PREDICTIONS = 3 /* queued, recorded, replayed */ };
  hv_status status = HV_OK;
  const hv_config *config = shared->source.config;
  hv_policy_options options = hv_policy_default_options(config);
  int32_t values = config->action_chunk * config->action_dim;
  float *first = calloc((size_t)values, sizeof *first);
  hv_policy *policy = NULL;
  if (!first) return hv_error_memory("a prediction");
  options.max_prompt = batch->batch.prompt_stride;
  options.ddim_steps = 2;
  hv_observation observation = {
      .images = batch->images, .prompt_ids = batch->prompt_ids, .prompt_count = 1, .state = batch->state};
  HV_CHECK(hv_policy_open(shared->trainer->model, &options, &policy));
  for (int i = 0; i < PREDICTIONS; i++) {
    hv_policy_result result;
    hv_policy_draws draws = {.seed = i == 1};
    HV_CHECK(hv_policy_predict(policy, &observation, &draws, &result));
    bool same = memcmp(first, result.diffusion, (size_t)values * sizeof *first) == 0;
    if (i > 0 && same != (i == 2)) {
      status = hv_error(HV_ERR_NO, "prediction %d is %s the first", i, same ? "the same as" : "another than");
      goto done;
    }
    if (i == 0) memcpy(first, result.diffusion, (size_t)values * sizeof *first);
  }
done:
  hv_policy_close(policy);
  free(first);
  return status;
}

/* Some more steps, in which the program's own code allocates nothing in any thread. (Allocations inside MPI's library,
 * and of the emulated card for each launch, do not count.) */
static hv_status expect_no_allocations(side *shared, hv_comm *comm) {
  enum { MEASURED = 4 };
  if (!allocations_counted() || !comm->device->host_memory) return HV_OK;
  hv_text *record = comm->record;
  hv_comm_record(comm, NULL); /* because the record grows */
  hv_status status = HV_OK;
  long before = allocations_own_count();
  for (int i = 0; i < MEASURED && !status; i++) {
    hv_step_result result;
    status = hv_trainer_step(shared->trainer, &shared->source.source, learning_rate, &result);
  }
  long count = allocations_own_count() - before;
  hv_comm_record(comm, record);
  if (status) return status;
  if (before == 0) return hv_error(HV_ERR_INTERNAL, "allocations are not counted");
  return count == 0 ? HV_OK : hv_error(HV_ERR_NO, "%ld allocations in %d training steps", count, MEASURED);
}

/* How far several ranks may be from a single one, which adds up in another order. Now and then that changes a code of
 * 8-bit moments, or the last bit of a BF16 value. */
static double tolerance_of(const settings *how) {
  if (how->dtype == HV_BF16) return 2e-2;
  return how->moments == HV_MOMENTS_INT8 ? 1e-3 : 1e-5;
}

static hv_status run(hv_device *device, hv_comm *comm, hv_sharding sharding, const settings *how) {
  hv_status status = HV_OK;
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch batches[BATCHES];
  side shared = {0}, alone = {0};
  differences off;
  for (int i = 0; i < BATCHES; i++) {
    batches[i] = tiny_batch_make(&config, how->samples, how->branches, (uint64_t)i + 1);
  }
  HV_CHECK(open_side(device, comm, sharding, &config, how, batches, &shared));
  if (comm->rank == 0) HV_CHECK(open_side(device, NULL, HV_SHARD_NOTHING, &config, how, batches, &alone));
  HV_CHECK(train_both(&shared, &alone, how->steps, &off));
  double tolerance = tolerance_of(how);
  if (!(off.loss < tolerance && off.norm < 10 * tolerance && off.values < tolerance)) {
    status = hv_error(HV_ERR_NO, "%d ranks are %.2g off in the loss, %.2g in the gradients' norm, %.2g in the values",
                      comm->size, off.loss, off.norm, off.values);
    goto done;
  }
  HV_CHECK(expect_steady_predictions(&shared, &batches[0]));
  HV_CHECK(expect_no_allocations(&shared, comm));
  if (comm->rank == 0) {
    printf("%d ranks, %s shared: loss %.2g, norm %.2g, values %.2g\n", comm->size, shardings[sharding], off.loss,
           off.norm, off.values);
  }
done:
  hv_trainer_close(shared.trainer);
  hv_trainer_close(alone.trainer);
  for (int i = 0; i < BATCHES; i++) tiny_batch_free(&batches[i]);
  return status;
}

static hv_status run_all(hv_device *device, hv_comm *comm, const settings *how, const char *folder) {
  hv_text record = {0};
  hv_status status = HV_OK;
  char path[512];
  hv_comm_record(comm, &record);
  for (int sharding = how->first; sharding <= how->last && !status; sharding++) {
    status = run(device, comm, (hv_sharding)sharding, how);
  }
  hv_comm_record(comm, NULL);
  snprintf(path, sizeof path, "%s/record-%d.txt", folder, comm->rank);
  if (!status) status = hv_write_file_atomic(path, hv_text_string(&record), record.length);
  hv_text_free(&record);
  return status;
}

/* The value of `argument` if it is "key=value", else NULL. */
static const char *value_of(const char *argument, const char *key) {
  size_t length = strlen(key);
  return strncmp(argument, key, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

static bool read_number(const char *argument, const char *key, int32_t *out) {
  const char *value = value_of(argument, key);
  if (value) *out = (int32_t)strtol(value, NULL, 10);
  return value != NULL;
}

/* Reads a value that must be one of the names. */
static bool read_choice(const char *argument, const char *key, const char *const *names, int count, int *out) {
  const char *value = value_of(argument, key);
  for (int i = 0; value && i < count; i++) {
    if (strcmp(value, names[i]) != 0) continue;
    *out = i;
    return true;
  }
  return false;
}

static bool read_setting(const char *argument, settings *out) {
  static const char *const devices[] = {"cpu", "emu"}, *const dtypes[] = {"fp32", "bf16"};
  static const char *const moments[] = {"fp32", "int8"};
  int choice;
  if (read_number(argument, "samples", &out->samples) || read_number(argument, "branches", &out->branches) ||
      read_number(argument, "parts", &out->parts) || read_number(argument, "steps", &out->steps)) {
    return true;
  }
  if (read_choice(argument, "device", devices, 2, &choice)) {
    out->device = devices[choice];
  } else if (read_choice(argument, "dtype", dtypes, 2, &choice)) {
    out->dtype = choice ? HV_BF16 : HV_F32;
  } else if (read_choice(argument, "gradients", dtypes, 2, &choice)) {
    out->gradients = choice ? HV_BF16 : HV_F32;
  } else if (read_choice(argument, "moments", moments, 2, &choice)) {
    out->moments = choice ? HV_MOMENTS_INT8 : HV_MOMENTS_F32;
  } else if (read_choice(argument, "sharding", shardings, HV_SHARD_PARAMETERS + 1, &choice)) {
    out->first = out->last = choice;
  } else if (read_choice(argument, "trained", trained_parts, 2, &choice)) {
    out->trained = choice;
  } else {
    return false;
  }
  return true;
}

static hv_status read_settings(int argc, char **argv, settings *out) {
  *out = (settings){.device = "cpu", .samples = 16, .branches = 2, .parts = 1, .steps = 8, .last = HV_SHARD_PARAMETERS};
  for (int i = 2; i < argc; i++) {
    if (!read_setting(argv[i], out)) return hv_error(HV_ERR_INPUT, "no setting %s", argv[i]);
  }
  return HV_OK;
}

int main(int argc, char **argv) {
  hv_status status = HV_OK;
  hv_launch launch = {0};
  hv_interrupt *interrupt = NULL;
  hv_device *device = NULL;
  hv_comm *comm = NULL;
  settings how;
  if (argc < 2) return 2;
  HV_CHECK(read_settings(argc, argv, &how));
  HV_CHECK(hv_interrupt_open(&interrupt));
  HV_CHECK(hv_launch_read(&launch));
  HV_CHECK(open_device(how.device, 1, &device));
  HV_CHECK(hv_launch_open_comm(&launch, device, HV_TRANSPORT_AUTO, TIMEOUT, &comm));
  HV_CHECK(run_all(device, comm, &how, argv[1]));
done:
  if (status) {
    fprintf(stderr, "rank %d: %s\n", launch.rank, hv_status_message(status));
    hv_status_free(status);
    if (comm) hv_comm_abort(comm, 2);
    return 2;
  }
  hv_comm_close(comm);
  hv_device_close(device);
  hv_interrupt_close(interrupt);
  return 0;
}
