/* The next batch is uploaded while the device computes on the one before. Shown on the trainer's timeline on the
 * planning device, whose streams run in parallel exactly as far as events allow. */
#include <jansson.h>

#include "core/tensor/plan.h"
#include "tests/check.h"
#include "tests/hybridvla/tiny_model.h"
#include "train/trainer.h"

enum { SAMPLES = 2, BRANCHES = 2, STEPS = 3, MOST_PARTS = 4 };

/* Rows as core/tensor/trace.h numbers them. */
enum { COMPUTE = 0, UPLOAD = 4 };

typedef struct span {
  double begin, end; /* microseconds */
} span;

static const double ROUNDING = 0.01; /* microseconds: times in the file are rounded */

/* Bytes per second: a link that uploads a batch faster than its layers are computed, and one that is slower. */
static const double fast_link = 1e8, slow_link = 1e5;

static void trace_steps(const char *path, int32_t parts, double upload_bytes_per_s) {
  hv_device *device;
  hv_trace *trace;
  hv_trainer *trainer;
  hv_step_result result;
  hv_plan_machine machine = {.flops_per_s = 1e9, .bytes_per_s = 1e9, .upload_bytes_per_s = upload_bytes_per_s};
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch batch = tiny_batch_make(&config, SAMPLES, BRANCHES, 5);
  hv_trainer_options options = {
      .config = &config,
      .limits = {.samples = SAMPLES, .branches = BRANCHES, .prompt = batch.batch.prompt_stride},
      .parts = parts,
      .weights = {1, 1},
      .optimizer = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .max_norm = 1.0}};
  assert_ok(hv_plan_device_open(&device));
  assert_ok(hv_plan_device_set_machine(device, &machine));
  assert_ok(hv_trace_open(path, 0, &trace));
  options.trace = trace;
  assert_ok(hv_trainer_open(device, &options, &trainer));
  hv_fixed_source source = hv_fixed_source_make(&batch.batch);
  for (int i = 0; i < STEPS; i++) assert_ok(hv_trainer_step(trainer, &source.source, 1e-3, &result));
  hv_trainer_close(trainer);
  assert_ok(hv_trace_close(trace));
  hv_device_close(device);
  tiny_batch_free(&batch);
}

/* Finds the spans of that name in a row of the timeline, in order; returns how many there are. */
static int find_spans(const json_t *trace, int row, const char *name, int most, span *out) {
  int count = 0;
  size_t i;
  const json_t *event;
  json_array_foreach(json_object_get(trace, "traceEvents"), i, event) {
    if (json_integer_value(json_object_get(event, "tid")) != row) continue;
    if (strcmp(json_string_value(json_object_get(event, "name")), name) != 0) continue;
    double begin = json_number_value(json_object_get(event, "ts"));
    assert_true(count < most);
    out[count++] = (span){begin, begin + json_number_value(json_object_get(event, "dur"))};
  }
  return count;
}

/* There is room for two batches: batch n + 1 is uploaded when pass n - 1 has freed its place, while pass n computes. */
static void expect_copies_beside_computing(const char *folder, int32_t parts) {
  enum { MOST = STEPS * MOST_PARTS + 1 };
  span uploads[MOST] = {{0}}, first[MOST] = {{0}}, last[MOST] = {{0}};
  const char *path = in_folder(folder, "trace.json");
  trace_steps(path, parts, fast_link);
  json_t *trace = json_load_file(path, 0, NULL);
  assert_non_null(trace);
  int passes = STEPS * parts;
  assert_int_equal(find_spans(trace, UPLOAD, "upload a batch", MOST, uploads), passes + 1);
  /* The spans that a forward pass begins with, and those that a backward pass ends with. */
  assert_int_equal(find_spans(trace, COMPUTE, "forward vision_backbone.dino_featurizer", MOST, first), passes);
  assert_int_equal(find_spans(trace, COMPUTE, "backward vision_backbone.siglip_featurizer", MOST, last), passes);
  for (int n = 0; n < passes; n++) {
    assert_true(uploads[n].end <= first[n].begin);
    assert_true(uploads[n + 1].end > uploads[n + 1].begin && uploads[n + 1].end < last[n].end);
    if (n > 0) assert_true(uploads[n + 1].begin >= last[n - 1].end - ROUNDING);
  }
  json_decref(trace);
}

static void the_next_batch_comes_beside_computing(void **state) {
  expect_copies_beside_computing(*state, 1);
  expect_copies_beside_computing(*state, 3);
  expect_copies_beside_computing(*state, MOST_PARTS);
}

/* A pass begins only when its batch has arrived, however long that takes. */
static void a_slow_link_is_waited_for(void **state) {
  enum { MOST = STEPS + 1 };
  span uploads[MOST] = {{0}}, first[MOST] = {{0}}, last[MOST] = {{0}};
  const char *path = in_folder(*state, "trace.json");
  trace_steps(path, 1, slow_link);
  json_t *trace = json_load_file(path, 0, NULL);
  assert_non_null(trace);
  assert_int_equal(find_spans(trace, UPLOAD, "upload a batch", MOST, uploads), STEPS + 1);
  assert_int_equal(find_spans(trace, COMPUTE, "forward vision_backbone.dino_featurizer", MOST, first), STEPS);
  assert_int_equal(find_spans(trace, COMPUTE, "backward vision_backbone.siglip_featurizer", MOST, last), STEPS);
  for (int n = 0; n < STEPS; n++) {
    if (n > 0) assert_true(uploads[n].end > last[n - 1].end);
    assert_true(first[n].begin >= uploads[n].end - ROUNDING);
  }
  json_decref(trace);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(the_next_batch_comes_beside_computing, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_slow_link_is_waited_for, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
