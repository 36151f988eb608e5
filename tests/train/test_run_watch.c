/* What a run watches: steps that are skipped by a rule and which samples are suspected, slow ranks, runs of skipped
 * steps that end a training, and times and rates in the metrics. */
#include <math.h>

#include "core/io/json.h"
#include "tests/check.h"
#include "tests/train/program.h"
#include "train/spike_rule.h"
#include "train/watch/pace.h"
#include "train/watch/skipped_step.h"

static void judges_spikes_by_running_means(void **state) {
  const hv_spike_settings settings = {.factor = 2, .window = 4}, off = {.window = 1};
  hv_spike_means means = {0};
  (void)state;
  for (int i = 0; i < 4; i++) {
    assert_int_equal(hv_spike_judge(&settings, &means, 1e9, 1e9), HV_SKIP_NONE); /* the window is not full yet */
    hv_spike_add(&settings, &means, i < 2 ? 1 : 3, 10);
  }
  assert_true(fabs(means.loss - 2) < 1e-12 && means.grad_norm == 10 && means.steps == 4);
  assert_int_equal(hv_spike_judge(&settings, &means, 4, 20), HV_SKIP_NONE);
  assert_int_equal(hv_spike_judge(&settings, &means, 4.1, 100), HV_SKIP_LOSS);
  assert_int_equal(hv_spike_judge(&settings, &means, 1, 21), HV_SKIP_GRAD_NORM);
  hv_spike_add(&settings, &means, 6, 10);
  assert_true(fabs(means.loss - 3) < 1e-12); /* a quarter of the way */
  assert_int_equal(hv_spike_judge(&off, &means, 1e30, 1e30), HV_SKIP_NONE);
}

static void finds_the_slowest_rank(void **state) {
  const double own[] = {1.0, 1.1, 2.0, 0.9}, by_data[] = {0.1, 0.2, 1.0, 0.0}, even[] = {0.1, 0.1, 0.1, 0.1};
  hv_pace pace;
  (void)state;
  assert_ok(hv_pace_compare(own, by_data, 4, &pace));
  assert_int_equal(pace.slowest, 2);
  assert_true(pace.slow_data && pace.median == 1.0 && pace.own_max == 2.0 && pace.wait_max == 1.0);
  assert_true(fabs(pace.own - 1.25) < 1e-12 && fabs(pace.wait - 0.325) < 1e-12);
  assert_ok(hv_pace_compare(own, even, 4, &pace));
  assert_false(pace.slow_data);
  assert_ok(hv_pace_compare(own + 1, even, 2, &pace));
  assert_true(pace.slowest == 1 && pace.median == 1.1); /* with two ranks, the median is the faster one */
}

static void warns_of_a_rank_that_stays_slow(void **state) {
  hv_pace_alarm alarm = {0};
  hv_pace slow = {.own_max = 1.4, .median = 1, .slowest = 3}, other = slow, even = slow;
  (void)state;
  other.slowest = 1;
  even.own_max = 1.2;
  const hv_pace *const measured[] = {&slow, &slow, &even, &slow, &other, &slow, &slow, &slow, &slow};
  const bool rings[] = {false, false, false, false, false, false, false, true, false};
  for (size_t i = 0; i < sizeof rings / sizeof rings[0]; i++) {
    assert_int_equal(hv_pace_alarm_ring(&alarm, measured[i]), rings[i]);
  }
}

static const char *run_of(const char *folder, const char *rest) {
  static char arguments[2048];
  snprintf(arguments, sizeof arguments, "run --config '%s' %s", write_tiny_config(folder, in_folder(folder, "run")),
           rest);
  return arguments;
}

/* With a factor of hardly more than 1, every step that is worse than the mean is skipped as a spike. */
static void leaves_out_spikes_and_tells_of_them(void **state) {
  expect_train(0, run_of(*state, "--set watch.spike_factor=1.001 --set watch.spike_window=2 --set log_interval=100"),
               "changed nothing: a spike of the", "rank 0, samples", "lift.hdf5/demo_", NULL);
  json_t *line = last_metrics(in_folder(*state, "run"), "skipped");
  assert_non_null(line);
  const json_t *suspect = json_array_get(json_object_get(line, "suspects"), 0);
  assert_non_null(strstr(json_string_value(json_object_get(line, "skip_reason")), "_spike"));
  assert_int_equal(json_integer_value(json_object_get(suspect, "samples")), 4);
  assert_int_equal(json_integer_value(json_object_get(suspect, "first_sample")),
                   4 * (json_integer_value(json_object_get(line, "step")) - 1));
  assert_int_equal(json_array_size(json_object_get(suspect, "frames")), 4);
  assert_true(fabs(json_number_value(json_object_get(suspect, "loss")) -
                   json_number_value(json_object_get(line, "loss"))) < 1e-4);
  json_decref(line);
}

static void names_the_worst_part_of_a_batch(void **state) {
  expect_train(0, run_of(*state, "--set watch.spike_factor=1.001 --set watch.spike_window=2 --set train.micro_batch=1"),
               "rank 0, sample ", NULL);
  json_t *line = last_metrics(in_folder(*state, "run"), "skipped");
  const json_t *suspect = json_array_get(json_object_get(line, "suspects"), 0);
  assert_int_equal(json_integer_value(json_object_get(suspect, "samples")), 1);
  int64_t first = json_integer_value(json_object_get(suspect, "first_sample"));
  assert_int_equal(first / 4, json_integer_value(json_object_get(line, "step")) - 1);
  /* The loss of the worst sample is at least the mean of all. */
  assert_true(json_number_value(json_object_get(suspect, "loss")) >= json_number_value(json_object_get(line, "loss")));
  json_decref(line);
}

static void suspects_what_is_not_finite_before_what_is_large(void **state) {
  float losses[3][2] = {{1, 1}, {NAN, 1}, {9, 9}};
  hv_trainer trainer = {
      .parts = 3, .losses = losses, .weights = {1, 1}, .limits = {.samples = 2}, .step = 5, .samples = 30};
  hv_suspect suspects[HV_MAX_SUSPECTS];
  int count;
  (void)state;
  assert_ok(hv_suspects_find(&trainer, suspects, &count));
  assert_true(count == 1 && suspects[0].rank == 0 && !suspects[0].finite);
  assert_int_equal(suspects[0].first_sample, (4 * 3 + 1) * 2);
  losses[1][0] = 2;
  assert_ok(hv_suspects_find(&trainer, suspects, &count));
  assert_true(count == 1 && suspects[0].finite && fabs(suspects[0].loss - 3 * 18) < 1e-9);
  assert_int_equal(suspects[0].first_sample, (4 * 3 + 2) * 2);
}

/* A communicator that adds the losses of a second rank. Its last micro-batch of three has the largest loss of all,
 * 1000. */
static hv_status add_the_other_rank(hv_comm *comm, const hv_comm_call *call, hv_stream *stream) {
  static const double other[] = {2, 1, 1000};
  double *all = call->whole.data;
  (void)comm;
  (void)stream;
  assert_int_equal(call->whole.cols, 6);
  for (int i = 0; i < 3; i++) all[3 + i] += other[i];
  return HV_OK;
}

/* The suspected samples are numbered in the whole batch: a rank's samples follow those of the ranks before it. */
static void suspects_samples_of_another_rank(void **state) {
  static const hv_comm_methods methods = {.run = add_the_other_rank};
  float losses[3][2] = {{1, 1}, {2, 2}, {1, 1}};
  hv_comm comm = {.name = "two", .methods = &methods, .size = 2};
  hv_trainer trainer = {
      .comm = &comm, .parts = 3, .losses = losses, .weights = {1, 1}, .limits = {.samples = 2}, .samples = 60};
  hv_suspect suspects[HV_MAX_SUSPECTS];
  int count;
  (void)state;
  assert_ok(hv_suspects_find(&trainer, suspects, &count));
  assert_true(count == 1 && suspects[0].rank == 1 && suspects[0].loss == 1000);
  assert_int_equal(suspects[0].first_sample, 60 - 12 + (3 + 2) * 2);
}

static void ends_a_run_that_is_lost(void **state) {
  expect_train(2,
               run_of(*state, "--set optimizer.learning_rate=1000 --set optimizer.weight_decay=0 --set train.steps=30 "
                              "--set watch.max_skipped=4 --set checkpoint.interval=0"),
               "changed nothing: a gradient is not finite", "4 steps in a row", NULL);
  json_t *line = last_metrics(in_folder(*state, "run"), "skipped");
  assert_string_equal(json_string_value(json_object_get(line, "skip_reason")), "not_finite");
  json_decref(line);
}

/* If gradients become infinite during training, a lower learning rate is advised; if no step has ever changed anything,
 * the learning rate cannot be the cause, and the message names the start model instead. */
static void tells_what_may_be_wrong_with_a_lost_run(void **state) {
  char rest[1024], *output;
  expect_train(2,
               run_of(*state, "--set optimizer.learning_rate=1000 --set optimizer.weight_decay=0 --set "
                              "train.steps=30 --set watch.max_skipped=4 --set checkpoint.interval=0"),
               "a lower optimizer.learning_rate may help", NULL);
  expect_train(0, run_arguments(*state, "first", "--set train.steps=1"), NULL);
  spoil_model(in_run(*state, "first", "model/model.safetensors"), NAN);
  snprintf(rest, sizeof rest, "--set 'init_from=%s/first/model' --set 'model={}' --set watch.max_skipped=4",
           (const char *)*state);
  assert_int_equal(run_train("", run_arguments(*state, "spoilt", rest), &output), 2);
  bool fits = strstr(output, "4 steps in a row") && strstr(output, "init_from") && strstr(output, "--debug-nan");
  if (!fits || strstr(output, "a lower optimizer.learning_rate")) fail_msg("%s", output);
  free(output);
}

/* The count of skipped steps in a row goes on after resuming, or a run that is interrupted often would never give up.
 * The checkpoint of an older version has no count, which then begins at 0. */
static void a_resumed_run_counts_on(void **state) {
  static const char *const ends[] = {"up to step 4,", "up to step 7,"};
  char rest[512], first[1024], more[1024];
  expect_train(0, run_arguments(*state, "first", "--set train.steps=1"), NULL);
  spoil_model(in_run(*state, "first", "model/model.safetensors"), NAN);
  snprintf(rest, sizeof rest,
           "--set 'init_from=%s/first/model' --set 'model={}' --set watch.max_skipped=4 --set checkpoint.interval=0",
           (const char *)*state);
  snprintf(first, sizeof first, "%s --set train.steps=3", rest);
  snprintf(more, sizeof more, "%s --set train.steps=9 --resume", rest);
  expect_train(0, run_arguments(*state, "run", first), NULL);
  for (int older = 0; older < 2; older++) {
    json_t *manifest;
    const char *path = in_run(*state, "run", "checkpoints/step-3/state.json");
    assert_ok(hv_json_load(path, &manifest));
    assert_int_equal(number_in(manifest, "skipped_in_row"), 3);
    if (older) {
      json_object_del(manifest, "skipped_in_row");
      json_object_del(manifest, "xxh3");
      assert_ok(hv_json_save(path, manifest));
    }
    json_decref(manifest);
    expect_train(2, run_arguments(*state, "run", more), "resumed from", "4 steps in a row", ends[older], NULL);
  }
}

static void tells_how_long_steps_wait_for_data(void **state) {
  expect_train(0, run_of(*state, "--set train.steps=2"), NULL);
  json_t *line = last_metrics(in_folder(*state, "run"), "step_s");
  double step = json_number_value(json_object_get(line, "step_s"));
  double wait = json_number_value(json_object_get(line, "data_wait_s"));
  assert_true(step > 0 && wait >= 0 && wait <= step);
  assert_null(json_object_get(line, "slowest_rank")); /* there is only one rank */
  json_decref(line);
}

/* The first step after a start is slow, so it does not count for samples_per_s. Only until there is another is its own
 * rate given; with 0, curves would drop at each resume. */
static void tells_the_rate_of_each_session(void **state) {
  expect_train(0, run_of(*state, "--set train.steps=2"), "step 1/2", " samples/s  ? left", NULL);
  expect_train(0, run_of(*state, "--set train.steps=3 --resume"), NULL);
  json_t *lines = read_metrics(in_folder(*state, "run"));
  for (size_t i = 0; i < 3; i++) {
    assert_true(json_number_value(json_object_get(json_array_get(lines, i), "samples_per_s")) > 0);
  }
  json_decref(lines);
}

/* With --debug-nan, a run like that of ends_a_run_that_is_lost ends where the first number overflows. The large weight
 * of the loss makes that happen in a layer, and not in the squares of gradients. */
static void debug_nan_names_the_first_value_that_is_not_finite(void **state) {
  expect_train(2,
               run_of(*state, "--debug-nan --set optimizer.learning_rate=1000 --set optimizer.weight_decay=0 --set "
                              "train.diffusion_weight=1000000 --set train.steps=30"),
               "the first value that is not finite came up in", NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(judges_spikes_by_running_means),
      cmocka_unit_test(finds_the_slowest_rank),
      cmocka_unit_test(warns_of_a_rank_that_stays_slow),
      cmocka_unit_test(suspects_what_is_not_finite_before_what_is_large),
      cmocka_unit_test(suspects_samples_of_another_rank),
      cmocka_unit_test_setup_teardown(leaves_out_spikes_and_tells_of_them, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(names_the_worst_part_of_a_batch, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ends_a_run_that_is_lost, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_what_may_be_wrong_with_a_lost_run, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_resumed_run_counts_on, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(debug_nan_names_the_first_value_that_is_not_finite, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_the_rate_of_each_session, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_how_long_steps_wait_for_data, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
