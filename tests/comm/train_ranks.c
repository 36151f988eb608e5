/* One rank of a test of training on several: `train_ranks FOLDER SHARDING PARTS [DTYPE [DEVICE]]` trains a tiny model
 * on this rank's part of each batch, and beside it the same model alone on whole batches, and compares. Ends with 0
 * where both agree; the last line of rank 0 tells how well. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/cpu/cpu.h"
#include "tests/hybridvla/tiny_model.h"
#include "train/interrupt.h"
#include "train/launch.h"
#include "train/trainer.h"

enum { SAMPLES = 16, BRANCHES = 2, BATCHES = 4, STEPS = 20, TIMEOUT = 30 };

static const char *const shardings[] = {"nothing", "optimizer", "gradients", "parameters"};
static const hv_optimizer_settings adamw = {
    .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .max_norm = 0.5};
static const double learning_rate = 1e-3;

/* The batches of a run in turn, and of each those parts that belong to a rank. */
typedef struct part_source {
  hv_batch_source source;
  const hv_config *config;
  const tiny_batch *batches;
  int32_t first, samples, parts; /* of a rank in every batch, in so many parts */
  int64_t next;
  hv_batch batch;
} part_source;

static hv_status next_part(hv_batch_source *source, const hv_batch **out) {
  part_source *self = (part_source *)source;
  const tiny_batch *whole = &self->batches[self->next / self->parts % BATCHES];
  int32_t each = self->samples / self->parts, part = (int32_t)(self->next % self->parts);
  self->batch = tiny_batch_part(self->config, whole, BRANCHES, self->first + part * each, each);
  self->batch.noise = NULL; /* drawn on the device, by the sample's number in the run */
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

/* One tower stays as it is: groups that nothing is trained in are shared too. */
static const char *const frozen[] = {"vision_backbone.dino_featurizer.*"};

static hv_status open_side(hv_device *device, hv_comm *comm, hv_sharding sharding, const hv_config *config,
                           hv_dtype dtype, const tiny_batch *batches, int32_t parts, side *out) {
  int32_t ranks = comm ? comm->size : 1, rank = comm ? comm->rank : 0, samples = SAMPLES / ranks;
  out->source = (part_source){.source = {.next = next_part, .release = release_part},
                              .config = config,
                              .batches = batches,
                              .first = rank * samples,
                              .samples = samples,
                              .parts = parts};
  hv_trainer_options options = {
      .config = config,
      .dtype = dtype,
      .limits = {.samples = samples / parts, .branches = BRANCHES, .prompt = batches[0].batch.prompt_stride},
      .parts = parts,
      .freeze = frozen,
      .freeze_count = 1,
      .weights = {1, 1},
      .optimizer = adamw,
      .seed = 7,
      .comm = comm,
      .sharding = sharding};
  HV_TRY(hv_trainer_open(device, &options, &out->trainer));
  return hv_trainer_initialize(out->trainer, NULL, NULL);
}

/* ‖a − b‖ / ‖b‖ over all parameters. */
static hv_status compare_values(const hv_trainer *a, const hv_trainer *b, double *out) {
  double difference = 0, size = 0;
  for (hv_param_id id = 0; id < hv_params_count(b->params); id++) {
    const hv_param *param = hv_params_get(b->params, id);
    int64_t count = param->rows * param->cols;
    double *x = malloc((size_t)count * 2 * sizeof *x), *y = x + count;
    if (!x) return hv_error_memory("values");
    hv_status status = hv_param_read(a->params, id, HV_F64, x, a->stream);
    if (!status) status = hv_param_read(b->params, id, HV_F64, y, b->stream);
    for (int64_t i = 0; i < count && !status; i++) {
      difference += (x[i] - y[i]) * (x[i] - y[i]);
      size += y[i] * y[i];
    }
    free(x);
    HV_TRY(status);
  }
  *out = sqrt(difference / size);
  return HV_OK;
}

static double relative(double a, double b) {
  return fabs(a - b) / fabs(b);
}

/* The largest relative differences of the losses, gradient norms and, at the end, the values. */
static hv_status train_both(side *shared, side *alone, double *loss, double *norm, double *values) {
  double before = 0;
  *loss = *norm = 0;
  HV_TRY(compare_values(shared->trainer, alone->trainer, &before));
  if (before != 0) return hv_error(HV_ERR_NO, "the ranks begin %g away from a single one", before);
  for (int step = 0; step < STEPS; step++) {
    hv_step_result a, b;
    HV_TRY(hv_trainer_step(shared->trainer, &shared->source.source, learning_rate, &a));
    HV_TRY(hv_trainer_step(alone->trainer, &alone->source.source, learning_rate, &b));
    *loss = fmax(*loss, relative(a.loss, b.loss));
    *norm = fmax(*norm, relative(a.grad_norm, b.grad_norm));
  }
  HV_TRY(hv_params_order_status(shared->trainer->params));
  return compare_values(shared->trainer, alone->trainer, values);
}

static hv_status run(hv_device *device, hv_comm *comm, hv_sharding sharding, int32_t parts, hv_dtype dtype) {
  hv_status status = HV_OK;
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch batches[BATCHES];
  side shared = {0}, alone = {0};
  double loss = 0, norm = 0, values = 0;
  for (int i = 0; i < BATCHES; i++) batches[i] = tiny_batch_make(&config, SAMPLES, BRANCHES, (uint64_t)i + 1);
  HV_CHECK(open_side(device, comm, sharding, &config, dtype, batches, parts, &shared));
  HV_CHECK(open_side(device, NULL, HV_SHARD_NOTHING, &config, dtype, batches, 1, &alone));
  HV_CHECK(train_both(&shared, &alone, &loss, &norm, &values));
  double tolerance = dtype == HV_BF16 ? 2e-2 : 1e-5;
  if (!(loss < tolerance && norm < 10 * tolerance && values < tolerance)) {
    status = hv_error(HV_ERR_NO, "%d ranks are %.2g off in the loss, %.2g in the gradients' norm, %.2g in the values",
                      comm->size, loss, norm, values);
    goto done;
  }
  if (comm->rank == 0) {
    printf("%d ranks, %s shared: loss %.2g, norm %.2g, values %.2g\n", comm->size, shardings[sharding], loss, norm,
           values);
  }
done:
  hv_trainer_close(shared.trainer);
  hv_trainer_close(alone.trainer);
  for (int i = 0; i < BATCHES; i++) tiny_batch_free(&batches[i]);
  return status;
}

static hv_status run_all(hv_device *device, hv_comm *comm, int32_t parts, hv_dtype dtype, const char *folder) {
  hv_text record = {0};
  hv_status status = HV_OK;
  char path[512];
  hv_comm_record(comm, &record);
  for (int sharding = HV_SHARD_NOTHING; sharding <= HV_SHARD_PARAMETERS && !status; sharding++) {
    status = run(device, comm, (hv_sharding)sharding, parts, dtype);
  }
  hv_comm_record(comm, NULL);
  snprintf(path, sizeof path, "%s/record-%d.txt", folder, comm->rank);
  if (!status) status = hv_write_file_atomic(path, hv_text_string(&record), record.length);
  hv_text_free(&record);
  return status;
}

static hv_status open_device(const char *name, hv_device **out) {
  hv_device_options options = {.threads = 1};
  if (strcmp(name, "cpu") == 0) return hv_cpu_device_open(&options, out);
  return hv_device_load(name, &options, out);
}

int main(int argc, char **argv) {
  hv_status status = HV_OK;
  hv_launch launch = {0};
  hv_interrupt *interrupt = NULL;
  hv_device *device = NULL;
  hv_comm *comm = NULL;
  if (argc < 3) return 2;
  HV_CHECK(hv_interrupt_open(&interrupt));
  HV_CHECK(hv_launch_read(&launch));
  HV_CHECK(open_device(argc > 4 ? argv[4] : "cpu", &device));
  HV_CHECK(hv_launch_open_comm(&launch, device, TIMEOUT, &comm));
  hv_dtype dtype = argc > 3 && strcmp(argv[3], "bf16") == 0 ? HV_BF16 : HV_F32;
  HV_CHECK(run_all(device, comm, (int32_t)strtol(argv[2], NULL, 10), dtype, argv[1]));
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
