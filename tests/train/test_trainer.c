/* The trainer, called as a library: micro-batches add up to the whole batch, a gradient that is not finite changes
 * nothing, averages follow, a failed upload ends its step, and steps after the first ones allocate nothing. */
#include <math.h>

#include "core/cpu/cpu.h"
#include "tests/allocations.h"
#include "tests/check.h"
#include "tests/hybridvla/tiny_model.h"
#include "tests/train/program.h"
#include "train/checkpoint/checkpoint_files.h"
#include "train/run/run_data.h"
#include "train/trainer.h"

static const hv_optimizer_settings adamw = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .max_norm = 1.0};

/* A source of batches that gives the parts of one batch in turn. */
typedef struct part_source {
  hv_batch_source source;
  hv_batch parts[4];
  int count, next;
} part_source;

static hv_status next_part(hv_batch_source *source, const hv_batch **out) {
  part_source *self = (part_source *)source;
  *out = &self->parts[self->next++ % self->count];
  return HV_OK;
}

static void release_part(hv_batch_source *source, const hv_batch *batch) {
  (void)source;
  (void)batch;
}

static part_source make_parts(const hv_config *config, const tiny_batch *whole, int32_t branches, int count) {
  part_source source = {.source = {.next = next_part, .release = release_part}, .count = count};
  int32_t each = whole->batch.samples / count;
  double diffusion, labels;
  hv_batch_count(config, &whole->batch, branches, &diffusion, &labels);
  for (int i = 0; i < count; i++) {
    source.parts[i] = tiny_batch_part(config, whole, branches, i * each, each);
    source.parts[i].diffusion_divisor = diffusion;
    source.parts[i].label_divisor = labels;
  }
  return source;
}

static hv_trainer *open_tiny(hv_device *device, const hv_config *config, int32_t samples, int32_t branches,
                             int32_t stride, int32_t parts) {
  hv_trainer *trainer;
  hv_trainer_options options = {.config = config,
                                .dtype = HV_F32,
                                .limits = {.samples = samples, .branches = branches, .prompt = stride},
                                .parts = parts,
                                .weights = {1, 1},
                                .optimizer = adamw,
                                .seed = 7};
  assert_ok(hv_trainer_open(device, &options, &trainer));
  assert_ok(hv_trainer_initialize(trainer, NULL, NULL));
  return trainer;
}

static float *read_param(const hv_trainer *trainer, hv_param_id id) {
  const hv_param *param = hv_params_get(trainer->params, id);
  float *values = malloc((size_t)(param->rows * param->cols) * sizeof *values);
  assert_non_null(values);
  assert_ok(hv_param_read(trainer->params, id, HV_F32, values, trainer->stream));
  return values;
}

/* The largest difference between two values of the same parameter. A NaN that both trainers have is no difference. */
static double largest_difference(const hv_trainer *a, const hv_trainer *b) {
  double largest = 0;
  for (hv_param_id id = 0; id < hv_params_count(a->params); id++) {
    const hv_param *param = hv_params_get(a->params, id);
    float *x = read_param(a, id), *y = read_param(b, id);
    for (int64_t i = 0; i < param->rows * param->cols; i++) {
      if (!isnan(x[i]) || !isnan(y[i])) largest = larger_of(largest, fabs((double)x[i] - (double)y[i]));
    }
    free(x);
    free(y);
  }
  return largest;
}

static void parts_add_up_to_the_batch(void **state) {
  (void)state;
  enum { SAMPLES = 4, BRANCHES = 3, STEPS = 4 };
  const hv_objective objectives[] = {HV_HYBRID, HV_DIFFUSION, HV_AUTOREGRESSIVE};
  for (int o = 0; o < 3; o++) {
    hv_config config = tiny_config(objectives[o], false);
    tiny_batch batch = tiny_batch_make(&config, SAMPLES, BRANCHES, 3);
    hv_device *device;
    assert_ok(hv_cpu_device_open(NULL, &device));
    hv_trainer *whole = open_tiny(device, &config, SAMPLES, BRANCHES, batch.batch.prompt_stride, 1);
    for (int count = 2; count <= 4; count += 2) {
      hv_trainer *parts = open_tiny(device, &config, SAMPLES / count, BRANCHES, batch.batch.prompt_stride, count);
      assert_ok(hv_trainer_initialize(whole, NULL, NULL));
      hv_trainer *fresh = open_tiny(device, &config, SAMPLES, BRANCHES, batch.batch.prompt_stride, 1);
      part_source one = make_parts(&config, &batch, BRANCHES, 1), many = make_parts(&config, &batch, BRANCHES, count);
      for (int step = 0; step < STEPS; step++) {
        hv_step_result a, b;
        assert_ok(hv_trainer_step(fresh, &one.source, 1e-3, &a));
        assert_ok(hv_trainer_step(parts, &many.source, 1e-3, &b));
        assert_true(fabs(a.loss - b.loss) < 1e-5 * a.loss);
        assert_true(fabs(a.grad_norm - b.grad_norm) < 1e-4 * a.grad_norm);
      }
      /* AdamW divides by the gradient's magnitude, so rounding moves a value by a fraction of the learning rate. */
      assert_true(largest_difference(fresh, parts) < 0.05 * 1e-3 * STEPS);
      assert_true(largest_difference(fresh, whole) > 0.5e-3);
      hv_trainer_close(fresh);
      hv_trainer_close(parts);
    }
    hv_trainer_close(whole);
    hv_device_close(device);
    tiny_batch_free(&batch);
  }
}

static void a_broken_gradient_changes_nothing(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch batch = tiny_batch_make(&config, 2, 2, 3);
  hv_device *device;
  assert_ok(hv_cpu_device_open(NULL, &device));
  hv_trainer *trainer = open_tiny(device, &config, 2, 2, batch.batch.prompt_stride, 1);
  hv_trainer *before = open_tiny(device, &config, 2, 2, batch.batch.prompt_stride, 1);
  hv_fixed_source source = hv_fixed_source_make(&batch.batch);
  hv_trainer *const both[] = {trainer, before};
  for (int i = 0; i < 2; i++) {
    hv_param_id id = hv_params_find(both[i]->params, "x_embedder.mlp.fc2.bias");
    float *values = read_param(both[i], id);
    values[0] = NAN;
    assert_ok(hv_param_write(both[i]->params, id, HV_F32, values, both[i]->stream));
    free(values);
  }
  hv_step_result result;
  assert_ok(hv_trainer_step(trainer, &source.source, 1e-3, &result));
  assert_int_equal(result.skipped, HV_SKIP_NOT_FINITE);
  assert_true(largest_difference(trainer, before) == 0);
  assert_int_equal(trainer->means.steps, 0); /* the NaN must not get into the running means */
  assert_int_equal(hv_optimizer_updates(trainer->optimizer), 0);
  assert_int_equal(trainer->step, 1);
  hv_trainer_close(trainer);
  hv_trainer_close(before);
  hv_device_close(device);
  tiny_batch_free(&batch);
}

/* The first step moves the averages by 9/11 of the change of the parameters. */
static void a_step_moves_the_averages(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch batch = tiny_batch_make(&config, 2, 2, 3);
  hv_device *device;
  hv_trainer *trainer;
  assert_ok(hv_cpu_device_open(NULL, &device));
  hv_trainer_options options = {.config = &config,
                                .dtype = HV_F32,
                                .limits = {.samples = 2, .branches = 2, .prompt = batch.batch.prompt_stride},
                                .parts = 1,
                                .weights = {1, 1},
                                .optimizer = adamw,
                                .ema_decay = 0.99,
                                .seed = 7};
  assert_ok(hv_trainer_open(device, &options, &trainer));
  assert_ok(hv_trainer_initialize(trainer, NULL, NULL));
  assert_ok(hv_ema_reset(trainer->ema, trainer->stream));
  hv_param_id id = hv_params_find(trainer->params, "x_embedder.mlp.fc1.weight");
  hv_fixed_source source = hv_fixed_source_make(&batch.batch);
  hv_step_result result;
  float *before = read_param(trainer, id);
  assert_ok(hv_trainer_step(trainer, &source.source, 1e-2, &result));
  float *after = read_param(trainer, id);
  hv_ema_exchange(trainer->ema, trainer->stream);
  float *average = read_param(trainer, id);
  for (int64_t i = 0; i < hv_params_get(trainer->params, id)->rows; i++) {
    assert_true(after[i] != before[i]);
    assert_true(fabs((double)(average[i] - before[i]) - 9.0 / 11 * (double)(after[i] - before[i])) < 1e-6);
  }
  free(before);
  free(after);
  free(average);
  hv_trainer_close(trainer);
  hv_device_close(device);
  tiny_batch_free(&batch);
}

/* A device on which one upload fails; it reports that at the next synchronisation, as devices do. */
static struct broken_link {
  hv_device_methods methods;
  const hv_device_methods *own;
  const hv_stream *stream; /* the stream whose uploads are counted */
  int left;                /* uploads until the one that fails */
  hv_status error;
} fault;

static void upload_or_not(hv_stream *stream, void *to, const void *from_host, size_t bytes) {
  if (stream == fault.stream && fault.left-- == 0) {
    fault.error = hv_error(HV_ERR_DEVICE, "the link is down");
  } else {
    fault.own->upload(stream, to, from_host, bytes);
  }
}

static hv_status synchronize_and_tell(hv_stream *stream) {
  hv_status status = fault.own->stream_synchronize(stream);
  if (stream != fault.stream) return status;
  hv_status_free(status);
  status = fault.error;
  fault.error = HV_OK;
  return status;
}

/* The steps before count, but no step with the batch that did not arrive. */
static void a_batch_that_does_not_arrive_ends_its_step(void **state) {
  (void)state;
  for (int parts = 1; parts <= 2; parts++) {
    hv_config config = tiny_config(HV_HYBRID, false);
    tiny_batch batch = tiny_batch_make(&config, 2, 2, 3);
    hv_device *device;
    hv_step_result result;
    assert_ok(hv_cpu_device_open(NULL, &device));
    hv_trainer *trainer = open_tiny(device, &config, 2, 2, batch.batch.prompt_stride, parts);
    hv_fixed_source source = hv_fixed_source_make(&batch.batch);
    fault = (struct broken_link){.methods = *device->methods, .own = device->methods, .stream = trainer->uploads};
    fault.methods.upload = upload_or_not;
    fault.methods.stream_synchronize = synchronize_and_tell;
    fault.left = 2 * parts + 1;
    device->methods = &fault.methods;
    int64_t good = 0;
    hv_status status = HV_OK;
    while (!status && good < 4) {
      status = hv_trainer_step(trainer, &source.source, 1e-3, &result);
      good += !status;
    }
    assert_error(status, "sending a batch to the device", "the link is down");
    assert_true(good >= 1 && good <= 2);
    assert_int_equal(trainer->step, good);
    device->methods = fault.own;
    hv_trainer_close(trainer);
    hv_device_close(device);
    tiny_batch_free(&batch);
  }
}

/* The number of allocations during some steps after the first ones, loading included, with two threads of the device
 * and the loader's own thread. There are 88 frames, so after 11 steps, an epoch, the loader has all of them in its
 * cache. */
static long allocations_of_steps(const char *folder, hv_dtype dtype, int32_t parts) {
  enum { WARM_UP = 15, MEASURED = 5, BATCH = 8 };
  static const char *const sets[] = {"data.train_split=valid",       "train.batch_size=8",
                                     "model.llm.hidden_size=64",     "model.vision.0.width=64",
                                     "model.vision.0.mlp_width=256", "model.llm.intermediate_size=192",
                                     "model.vision.0.image_size=84", "train.micro_batch=8"};
  hv_train_config config;
  hv_model_config model;
  hv_model_directory directory;
  hv_run_data data;
  hv_device *device;
  hv_trainer *trainer;
  hv_loader *loader;
  assert_ok(hv_train_config_load(write_tiny_config(folder, "none"), sets, sizeof sets / sizeof sets[0], &config));
  config.train.micro_batch = BATCH / parts;
  assert_ok(hv_train_config_model(&config, &model, &directory));
  assert_ok(hv_run_data_open(&config, &model.config, 0, 1, &data));
  assert_ok(hv_cpu_device_open(&(hv_device_options){.threads = 2}, &device));
  hv_trainer_options options = {
      .config = &model.config,
      .dtype = dtype,
      .limits = {.samples = BATCH / parts, .branches = 2, .prompt = hv_run_data_longest_prompt(&data)},
      .parts = parts,
      .weights = {1, 1},
      .optimizer = adamw};
  assert_ok(hv_trainer_open(device, &options, &trainer));
  assert_ok(hv_trainer_initialize(trainer, NULL, NULL));
  assert_ok(hv_run_data_open_training(&data, 0, &loader));
  hv_loader_source source = hv_loader_source_make(loader, &model.config, 2);
  hv_step_result result;
  for (int i = 0; i < WARM_UP; i++) assert_ok(hv_trainer_step(trainer, &source.source, 1e-3, &result));
  long before = allocations_count();
  for (int i = 0; i < MEASURED; i++) assert_ok(hv_trainer_step(trainer, &source.source, 1e-3, &result));
  long after = allocations_count();
  assert_true(before > 0); /* allocations are really counted */
  hv_loader_close(loader);
  hv_trainer_close(trainer);
  hv_device_close(device);
  hv_run_data_close(&data);
  hv_model_directory_close(&directory);
  hv_model_config_free(&model);
  hv_train_config_free(&config);
  return after - before;
}

static void a_step_after_the_first_allocates_nothing(void **state) {
  if (!allocations_counted()) skip();
  assert_int_equal(allocations_of_steps(*state, HV_F32, 1), 0);
  assert_int_equal(allocations_of_steps(*state, HV_BF16, 2), 0);
}

/* Checkpoints of more ranks could not be read again. */
static void more_ranks_than_a_checkpoint_takes_are_refused(void **state) {
  static const char *const sets[] = {"train.batch_size=2048"};
  hv_train_config config;
  assert_ok(hv_train_config_load(write_tiny_config(*state, "none"), sets, 1, &config));
  assert_ok(hv_train_config_check_ranks(&config, HV_CHECKPOINT_RANKS));
  assert_error(hv_train_config_check_ranks(&config, 2 * HV_CHECKPOINT_RANKS), "1024 ranks at most");
  hv_train_config_free(&config);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(parts_add_up_to_the_batch),
      cmocka_unit_test(a_broken_gradient_changes_nothing),
      cmocka_unit_test(a_step_moves_the_averages),
      cmocka_unit_test(a_batch_that_does_not_arrive_ends_its_step),
      cmocka_unit_test_setup_teardown(more_ranks_than_a_checkpoint_takes_are_refused, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_step_after_the_first_allocates_nothing, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
