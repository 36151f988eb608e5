/* A training step after the first ones allocates no memory on the device and waits twice, at its end: for the
 * computation, and for the uploads, which are over by then; whatever number of micro-batches it has. Calls of the
 * device's methods are counted. And the losses are those of the CPU. test_steady [DEVICE], by default emu. */
#include <math.h>

#include "tests/cuda/under_test.h"
#include "tests/hybridvla/tiny_model.h"
#include "train/trainer.h"

/* The device's own methods, which the functions below call and count. */
static const hv_device_methods *own;
static int allocations, waits;

static hv_status counted_allocate(hv_device *device, size_t bytes, const char *what, void **out) {
  allocations++;
  return own->allocate(device, bytes, what, out);
}

static hv_status counted_allocate_host(hv_device *device, size_t bytes, const char *what, void **out) {
  allocations++;
  return own->allocate_host(device, bytes, what, out);
}

static hv_status counted_synchronize(hv_stream *stream) {
  waits++;
  return own->stream_synchronize(stream);
}

static void a_steady_step_allocates_nothing(void **state) {
  (void)state;
  enum { SAMPLES = 2, BRANCHES = 2, STEPS = 3 };
  hv_config config = tiny_config(HV_HYBRID, false);
  static const struct {
    hv_dtype dtype;
    int32_t parts;
  } cases[] = {{HV_F32, 1}, {HV_BF16, 1}, {HV_F32, 3}};
  for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
    hv_device *device;
    hv_trainer *trainer;
    assert_ok(hv_device_load(under_test, &(hv_device_options){.index = 0}, &device));
    own = device->methods;
    hv_device_methods counted = *own;
    counted.allocate = counted_allocate;
    counted.allocate_host = counted_allocate_host;
    counted.stream_synchronize = counted_synchronize;
    device->methods = &counted;

    tiny_batch batch = tiny_batch_make(&config, SAMPLES, BRANCHES, 5);
    hv_trainer_options options = {
        .config = &config,
        .dtype = cases[c].dtype,
        .limits = {.samples = SAMPLES, .branches = BRANCHES, .prompt = batch.batch.prompt_stride},
        .parts = cases[c].parts,
        .weights = {1, 1},
        .optimizer = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .max_norm = 1.0},
        .seed = 7};
    hv_step_result result;
    allocations = waits = 0;
    assert_ok(hv_trainer_open(device, &options, &trainer));
    assert_ok(hv_trainer_initialize(trainer, NULL, NULL));
    hv_fixed_source source = hv_fixed_source_make(&batch.batch);
    for (int i = 0; i < 2; i++) assert_ok(hv_trainer_step(trainer, &source.source, 1e-3, &result));
    assert_true(allocations > 0 && waits > 0); /* calls are really counted */
    double before = result.loss;
    allocations = waits = 0;
    for (int i = 0; i < STEPS; i++) assert_ok(hv_trainer_step(trainer, &source.source, 1e-3, &result));
    assert_int_equal(allocations, 0);
    assert_int_equal(waits, 2 * STEPS);
    assert_true(result.loss < before);
    hv_trainer_close(trainer);
    tiny_batch_free(&batch);
    device->methods = own;
    hv_device_close(device);
  }
}

enum { TURNS = 4 };

/* A source that gives different batches in turn. */
typedef struct turning_source {
  hv_batch_source source;
  tiny_batch batches[TURNS];
  int next;
} turning_source;

static hv_status next_in_turn(hv_batch_source *source, const hv_batch **out) {
  turning_source *self = (turning_source *)source;
  *out = &self->batches[self->next++ % TURNS].batch;
  return HV_OK;
}

static void nothing_to_release(hv_batch_source *source, const hv_batch *batch) {
  (void)source;
  (void)batch;
}

/* The loss of a second step with several, different micro-batches. (In the first step the host waits whenever an
 * operation allocates memory, so that it cannot run ahead.) */
static double train_on_turns(hv_device *device) {
  enum { SAMPLES = 1, BRANCHES = 1, PARTS = 3 };
  hv_config config = tiny_config(HV_HYBRID, false);
  turning_source turning = {.source = {.next = next_in_turn, .release = nothing_to_release}};
  for (int i = 0; i < TURNS; i++) turning.batches[i] = tiny_batch_make(&config, SAMPLES, BRANCHES, 20 + (uint64_t)i);
  hv_trainer_options options = {
      .config = &config,
      .limits = {.samples = SAMPLES, .branches = BRANCHES, .prompt = turning.batches[0].batch.prompt_stride},
      .parts = PARTS,
      .weights = {1, 1},
      .optimizer = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .max_norm = 1.0},
      .seed = 7};
  hv_trainer *trainer;
  assert_ok(hv_trainer_open(device, &options, &trainer));
  assert_ok(hv_trainer_initialize(trainer, NULL, NULL));
  hv_step_result result;
  for (int i = 0; i < 2; i++) assert_ok(hv_trainer_step(trainer, &turning.source, 1e-3, &result));
  hv_trainer_close(trainer);
  for (int i = 0; i < TURNS; i++) tiny_batch_free(&turning.batches[i]);
  return result.loss;
}

/* The host runs ahead of the device. It must not overwrite the memory of a batch before the device has copied it. */
static void every_micro_batch_is_trained_on(void **state) {
  (void)state;
  double losses[OP_SIDES];
  hv_device *devices[OP_SIDES];
  assert_ok(hv_device_load(under_test, &(hv_device_options){.index = 0}, &devices[0]));
  assert_ok(hv_cpu_device_open(NULL, &devices[1]));
  for (int side = 0; side < OP_SIDES; side++) {
    losses[side] = train_on_turns(devices[side]);
    hv_device_close(devices[side]);
  }
  assert_true(fabs(losses[0] / losses[1] - 1) < 1e-5);
}

int main(int argc, char **argv) {
  choose_device(argc, argv);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_steady_step_allocates_nothing),
      cmocka_unit_test(every_micro_batch_is_trained_on),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
