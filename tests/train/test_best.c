/* What hvla-train decides by validation: which model is kept as the best, when a run stops early, and that moving
 * averages are what is measured and saved. */
#include <math.h>

#include "core/base/file.h"
#include "core/io/json.h"
#include "tests/check.h"
#include "tests/train/program.h"

#define HELD_OUT "--set data.valid_split=valid --set validation.samples=3 "

static char arguments[4096];

/* "run --config C --set output=<folder>/<name> <rest>" */
static const char *run_of(const char *folder, const char *name, const char *rest) {
  const char *config = write_tiny_config(folder, "unset");
  snprintf(arguments, sizeof arguments, "run --config '%s' --set 'output=%s/%s' " HELD_OUT "%s", config, folder, name,
           rest);
  return arguments;
}

/* The value of `key` in the line of metrics.jsonl for a step. */
static double figure_at(const char *folder, const char *name, int step, const char *key) {
  json_t *lines = read_metrics(in_folder(folder, name));
  size_t i;
  const json_t *line;
  double figure = NAN;
  json_array_foreach(lines, i, line) {
    if ((int)number_in(line, "step") == step && json_object_get(line, key)) figure = number_in(line, key);
  }
  json_decref(lines);
  if (isnan(figure)) fail_msg("%s: no %s at step %d", name, key, step);
  return figure;
}

/* Reads best.json of a run. */
static void read_best(const char *folder, const char *name, int *step, double *value) {
  json_t *best;
  assert_ok(hv_json_load(in_run(folder, name, "best.json"), &best));
  *step = (int)number_in(best, "step");
  *value = number_in(best, "value");
  assert_string_equal(json_string_value(json_object_get(best, "metric")), "error_diffusion");
  json_decref(best);
}

/* best.json must name the step with the smallest error in metrics.jsonl, and that error. */
static void assert_best(const char *folder, const char *name, int last) {
  int step, expected = 0;
  double value, least = INFINITY;
  read_best(folder, name, &step, &value);
  for (int at = 2; at <= last; at += 2) {
    double figure = figure_at(folder, name, at, "error_diffusion");
    if (figure < least) expected = at;
    if (figure < least) least = figure;
  }
  assert_int_equal(step, expected);
  assert_true(fabs(value - least) < 1e-12);
}

static const char measured[] = "--set validation.interval=2 --set validation.metric=error_diffusion "
                               "--set optimizer.learning_rate=2e-2 ";

/* A run that is resumed half-way keeps the same best model as one that runs through. */
static void keeps_the_best_model(void **state) {
  char rest[512];
  static const char *const files[] = {"best/model.safetensors", "best/config.json", "best/dataset_statistics.json",
                                      "best/tokenizer.model",   "best.json",        "model/model.safetensors"};
  snprintf(rest, sizeof rest, "%s --set train.steps=12", measured);
  expect_train(0, run_of(*state, "whole", rest), "held out", NULL);
  assert_best(*state, "whole", 12);
  snprintf(rest, sizeof rest, "%s --set train.steps=6", measured);
  expect_train(0, run_of(*state, "halves", rest), NULL);
  assert_best(*state, "halves", 6);
  snprintf(rest, sizeof rest, "%s --set train.steps=12 --resume", measured);
  expect_train(0, run_of(*state, "halves", rest), "resumed from", NULL);
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    if (!same_bytes(in_run(*state, "whole", files[i]), in_run(*state, "halves", files[i]))) {
      fail_msg("%s differs", files[i]);
    }
  }
}

/* If a run was killed after it wrote the checkpoint and before it copied the best model, or if best.json is broken, the
 * resumed run writes both again. */
static void restores_the_best_model(void **state) {
  char rest[512];
  snprintf(rest, sizeof rest, "%s --set train.steps=2", measured);
  expect_train(0, run_of(*state, "run", rest), NULL);
  assert_ok(hv_remove_tree(in_run(*state, "run", "best")));
  assert_int_equal(unlink(in_run(*state, "run", "best.json")), 0);
  snprintf(rest, sizeof rest, "%s --set train.steps=2 --resume", measured);
  expect_train(0, run_of(*state, "run", rest), NULL);
  assert_best(*state, "run", 2);
  write_text(in_run(*state, "run", "best.json"), "{\"step\": ");
  expect_train(0, run_of(*state, "run", rest), "written anew", "best.json is not valid JSON", NULL);
  assert_best(*state, "run", 2);
  assert_true(
      same_bytes(in_run(*state, "run", "best/model.safetensors"), in_run(*state, "run", "model/model.safetensors")));
}

/* Somebody moved best/ away but not best.json, and no later measurement is better: the resumed run writes best/ again.
 */
static void restores_a_best_model_that_is_told_of_alone(void **state) {
  static const char still[] = "--set optimizer.learning_rate=0 --set validation.interval=1 --resume";
  char rest[512];
  snprintf(rest, sizeof rest, "%s --set train.steps=1", still);
  expect_train(0, run_of(*state, "run", rest), NULL);
  assert_ok(hv_remove_tree(in_run(*state, "run", "best")));
  snprintf(rest, sizeof rest, "%s --set train.steps=2", still);
  expect_train(0, run_of(*state, "run", rest), "resumed from", NULL);
  assert_true(hv_file_exists(in_run(*state, "run", "best/model.safetensors")));
}

static void does_not_keep_it_where_it_is_not_wanted(void **state) {
  expect_train(0, run_of(*state, "run", "--set train.steps=1 --set validation.keep_best=false"), NULL);
  assert_false(hv_file_exists(in_run(*state, "run", "best")));
}

/* Nothing becomes better at a learning rate of 0: the first measurement stays the best. */
static void stops_when_nothing_becomes_better(void **state) {
  static const char still[] = "--set train.steps=50 --set optimizer.learning_rate=0 --set validation.interval=2 "
                              "--set validation.patience=3 --set validation.metric=error_diffusion";
  char rest[512];
  expect_train(0, run_of(*state, "run", still), "stopped early after step 8", "at step 2 in 3 measurements", NULL);
  assert_true(hv_file_exists(in_run(*state, "run", "checkpoints/step-8/state.json")));
  assert_best(*state, "run", 8);
  snprintf(rest, sizeof rest, "status '%s'", in_folder(*state, "run"));
  expect_train(0, rest, "finished", "stopped early after step 8", "at step 2 in 3 measurements", NULL);
  snprintf(rest, sizeof rest, "status '%s' --json", in_folder(*state, "run"));
  expect_train(0, rest, "\"seconds_left\": null", "\"message\": \"stopped early after step 8", NULL);
  snprintf(rest, sizeof rest, "%s --resume", still);
  expect_train(0, run_of(*state, "run", rest), "stopped early after step 8", NULL);
  snprintf(rest, sizeof rest, "%s --resume --set validation.patience=4", still);
  expect_train(0, run_of(*state, "run", rest), "stopped early after step 10", NULL);
}

/* Removes from a checkpoint's manifest what the best was measured on, which older versions did not record. */
static void forget_what_was_measured(const char *folder, const char *name, int step) {
  char file[64];
  json_t *manifest;
  snprintf(file, sizeof file, "checkpoints/step-%d/state.json", step);
  assert_ok(hv_json_load(in_run(folder, name, file), &manifest));
  assert_int_equal(json_object_del(json_object_get(manifest, "best"), "measured"), 0);
  json_object_del(manifest, "xxh3");
  assert_ok(hv_json_save(in_run(folder, name, file), manifest));
  json_decref(manifest);
}

static void expect_best_step(const char *folder, const char *name, int expected) {
  int step;
  double value;
  read_best(folder, name, &step, &value);
  assert_int_equal(step, expected);
}

/* At a learning rate of 0 nothing becomes better. If a resumed run measures other frames, or in another way, its
 * figures are not compared with earlier ones: the best begins anew. */
static void best_begins_anew_where_something_else_is_measured(void **state) {
  static const char still[] = "--set optimizer.learning_rate=0 --set validation.interval=1 "
                              "--set validation.metric=error_diffusion --set checkpoint.interval=0";
  char rest[512], *output;
  snprintf(rest, sizeof rest, "%s --set train.steps=2", still);
  expect_train(0, run_of(*state, "run", rest), NULL);
  expect_best_step(*state, "run", 1);
  snprintf(rest, sizeof rest, "%s --set train.steps=4 --set validation.theta=0.5 --resume", still);
  assert_int_equal(run_train("", run_of(*state, "run", rest), &output), 0);
  if (strstr(output, "no longer count"))
    fail_msg("theta does not change the noise head's error, yet the best began anew:\n%s", output);
  free(output);
  expect_best_step(*state, "run", 1);
  snprintf(rest, sizeof rest, "%s --set train.steps=6 --set validation.samples=2 --resume", still);
  expect_train(0, run_of(*state, "run", rest),
               "earlier values of error_diffusion no longer count for the best model or for patience", NULL);
  expect_best_step(*state, "run", 5);
  forget_what_was_measured(*state, "run", 6);
  snprintf(rest, sizeof rest, "%s --set train.steps=7 --set validation.ddim_steps=2 --resume", still);
  assert_int_equal(run_train("", run_of(*state, "run", rest), &output), 0);
  assert_null(strstr(output, "no longer count"));
  free(output);
}

/* The model before the first step is measured too. If the run only makes it worse, no model is kept as the best. */
static void a_start_that_is_never_beaten_is_told(void **state) {
  static const char worse[] = "--set train.steps=50 --set optimizer.learning_rate=1 --set validation.interval=1 "
                              "--set validation.patience=2 --set validation.metric=held_out_loss "
                              "--set validation.at_start=true";
  expect_train(0, run_of(*state, "run", worse), "stopped early after step 2", "at step 0 in 2 measurements",
               "held_out_loss was best before the first step", NULL);
  assert_false(hv_file_exists(in_run(*state, "run", "best")));
  assert_false(hv_file_exists(in_run(*state, "run", "best.json")));
}

/* The square of the noise head's bias overflows FP32, so the held-out loss is never finite. That this shows before the
 * first step is no reason for the run to fail. */
static void a_figure_that_never_is_finite_is_told(void **state) {
  char rest[1024];
  expect_train(0, run_of(*state, "first", "--set train.steps=1"), NULL);
  spoil_model(in_run(*state, "first", "model/model.safetensors"), 1e30f);
  snprintf(rest, sizeof rest,
           "--set train.steps=50 --set init_from='%s' --set 'model={}' --set validation.interval=1 "
           "--set validation.patience=2 --set validation.at_start=true",
           in_run(*state, "first", "model"));
  expect_train(0, run_of(*state, "run", rest), "stopped early after step 2",
               "held_out_loss was not finite in 2 measurements", NULL);
}

/* If denoised actions are NaN, their errors are null and the model does not become the best. The errors of action
 * tokens are still measured. */
static void a_prediction_that_is_not_finite_has_no_error(void **state) {
  static const char *const lost[] = {"error_diffusion", "error_ensemble"};
  char rest[1024];
  expect_train(0, run_of(*state, "first", "--set train.steps=1"), NULL);
  spoil_model(in_run(*state, "first", "model/model.safetensors"), NAN);
  snprintf(rest, sizeof rest,
           "--set train.steps=1 --set init_from='%s' --set 'model={}' --set validation.metric=error_ensemble",
           in_run(*state, "first", "model"));
  expect_train(0, run_of(*state, "run", rest), "3 of 3 held-out predictions are not finite", NULL);
  json_t *line = last_metrics(in_folder(*state, "run"), "held_out_loss");
  assert_non_null(line);
  for (int i = 0; i < 2; i++) assert_true(json_is_null(json_object_get(line, lost[i])));
  assert_true(number_in(line, "error_autoregressive") > 0);
  assert_true(number_in(line, "error_mean_action") > 0);
  json_decref(line);
  assert_false(hv_file_exists(in_run(*state, "run", "best")));
  assert_false(hv_file_exists(in_run(*state, "run", "best.json")));
  strncat(rest, " --debug-nan", sizeof rest - strlen(rest) - 1);
  expect_train(2, run_of(*state, "watched", rest), "final_layer.mlp.fc2.bias has nan at row 0, column 0", NULL);
}

static void refuses_to_wait_for_nothing(void **state) {
  expect_train(2, run_of(*state, "run", "--set validation.patience=3 --set data.valid_split=null"),
               "validation.patience", "data.valid_split", NULL);
  expect_train(2, run_of(*state, "run", "--set validation.at_start=true --set data.valid_split=null"),
               "validation.at_start", "data.valid_split", NULL);
  expect_train(2, run_of(*state, "run", "--set validation.metric=error_ensemble --set model.objective=diffusion"),
               "validation.metric", "diffusion", NULL);
}

/* With validation.at_start a new run measures before its first step, a resumed run does not. `expected`: the steps of
 * the lines in metrics.jsonl. */
static void measures_the_start_of_a_new_run_alone(void **state) {
  static const int expected[] = {0, 1, 2};
  expect_train(0, run_of(*state, "run", "--set validation.at_start=true --set train.steps=1"), NULL);
  expect_train(0, run_of(*state, "run", "--set validation.at_start=true --set train.steps=2 --resume"), NULL);
  json_t *lines = read_metrics(in_folder(*state, "run"));
  assert_int_equal(json_array_size(lines), 3);
  for (size_t i = 0; i < 3; i++) assert_int_equal(number_in(json_array_get(lines, i), "step"), expected[i]);
  json_decref(lines);
}

/* A checkpoint holds averages and parameters, so that a run resumed after three steps ends as one of six. The averages
 * are what is measured and saved as the model. */
static void averages_are_resumed_measured_and_saved(void **state) {
  static const char *const dtypes[] = {"fp32", "bf16"};
  char rest[1024];
  for (int d = 0; d < 2; d++) {
    snprintf(rest, sizeof rest, "--set dtype=%s --set train.ema_decay=0.8 --set validation.interval=3", dtypes[d]);
    expect_train(0, run_of(*state, "whole", rest), NULL);
    snprintf(rest, sizeof rest,
             "--set dtype=%s --set train.ema_decay=0.8 --set validation.interval=3 --set train.steps=3", dtypes[d]);
    expect_train(0, run_of(*state, "halves", rest), NULL);
    snprintf(rest, sizeof rest, "--set dtype=%s --set train.ema_decay=0.8 --set validation.interval=3 --resume",
             dtypes[d]);
    expect_train(0, run_of(*state, "halves", rest), "resumed from", NULL);
    static const char *const files[] = {"checkpoints/step-6/training.safetensors", "model/model.safetensors"};
    for (int i = 0; i < 2; i++) {
      assert_true(same_bytes(in_run(*state, "whole", files[i]), in_run(*state, "halves", files[i])));
    }
    snprintf(rest, sizeof rest, "--set dtype=%s --set validation.interval=3", dtypes[d]);
    expect_train(0, run_of(*state, "plain", rest), NULL);
    assert_false(same_bytes(in_run(*state, "whole", files[1]), in_run(*state, "plain", files[1])));
    assert_true(figure_at(*state, "whole", 6, "loss") == figure_at(*state, "plain", 6, "loss"));
    assert_true(figure_at(*state, "whole", 6, "held_out_loss") != figure_at(*state, "plain", 6, "held_out_loss"));
    snprintf(rest, sizeof rest,
             "--set dtype=%s --set 'init_from=%s/whole/model' --set train.steps=1 --set validation.at_start=true",
             dtypes[d], (const char *)*state);
    expect_train(0, run_of(*state, "again", rest), "step 0", NULL);
    double saved = figure_at(*state, "again", 0, "held_out_loss");
    double difference = fabs(saved - figure_at(*state, "whole", 6, "held_out_loss"));
    assert_true(difference <= (d == 0 ? 0 : 1e-3) * saved);
    static const char *const runs[] = {"whole", "halves", "plain", "again"};
    for (int i = 0; i < 4; i++) assert_ok(hv_remove_tree(in_folder(*state, runs[i])));
  }
}

static void averages_must_be_in_the_checkpoint(void **state) {
  expect_train(0, run_of(*state, "run", "--set train.steps=3"), NULL);
  expect_train(2, run_of(*state, "run", "--resume --set train.ema_decay=0.9"), "average is missing", "train.ema_decay",
               NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(keeps_the_best_model, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(restores_the_best_model, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(restores_a_best_model_that_is_told_of_alone, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(does_not_keep_it_where_it_is_not_wanted, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(stops_when_nothing_becomes_better, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(best_begins_anew_where_something_else_is_measured, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_start_that_is_never_beaten_is_told, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_figure_that_never_is_finite_is_told, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_prediction_that_is_not_finite_has_no_error, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(refuses_to_wait_for_nothing, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(measures_the_start_of_a_new_run_alone, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(averages_are_resumed_measured_and_saved, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(averages_must_be_in_the_checkpoint, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
