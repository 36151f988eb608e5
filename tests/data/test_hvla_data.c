/* Runs hvla-data on the shipped demonstrations and on small files: what inspect, stats, validate and frame print, with
 * the statistics against those of numpy (tests/fixtures/stats). */
#include <math.h>

#include "core/image/image.h"
#include "tests/check.h"
#include "tests/data/demo_file.h"
#include "tests/data/program.h"

#define LIFT "'" HVLA_SOURCE_DIR "/data/demos/lift.hdf5'"

static void inspects_lift(void **state) {
  (void)state;
  json_t *found = data_json(0, "inspect " LIFT " --json");
  json_t *expected =
      json_pack("{s:s, s:i, s:i, s:i, s:i, s:[{s:s, s:i, s:i, s:s}, {s:s, s:i, s:i, s:s}], s:[]}", "layout",
                "robomimic", "episodes", 12, "frames", 523, "action_dim", 7, "state_dim", 9, "cameras", "name",
                "agentview_image", "width", 84, "height", 84, "encoding", "raw", "name", "robot0_eye_in_hand_image",
                "width", 84, "height", 84, "encoding", "raw", "instructions");
  json_t *warnings = json_incref(json_object_get(found, "warnings"));
  assert_int_equal(json_array_size(warnings), 1);
  assert_non_null(strstr(json_string_value(json_array_get(warnings, 0)), "no instruction"));
  json_object_del(found, "warnings");
  assert_true(json_equal(found, expected));
  json_decref(warnings);
  json_decref(found);
  json_decref(expected);
}

static void draws_a_picture(void **state) {
  char arguments[512], *out, *errors;
  const char *path = in_folder(*state, "lift.png");
  snprintf(arguments, sizeof arguments, "inspect " LIFT " --picture '%s'", path);
  assert_int_equal(run_data(arguments, &out, &errors), 0);
  assert_non_null(strstr(out, "523 frames (43 to 46 each)"));
  hv_image image;
  assert_ok(hv_image_load(path, &image));
  assert_int_equal(image.width, 4 + 8 * 164);
  assert_int_equal(image.height, 4 + 2 * 164);
  hv_image_free(&image);
  free(out);
  free(errors);
}

static void compare_numbers(const json_t *found, const json_t *expected, const char *part, const char *name,
                            double tolerance) {
  const json_t *a = json_object_get(json_object_get(found, part), name);
  const json_t *b = json_object_get(json_object_get(expected, part), name);
  assert_true(json_array_size(b) > 0);
  assert_int_equal(json_array_size(a), json_array_size(b));
  double difference = 0, length = 0;
  for (size_t i = 0; i < json_array_size(b); i++) {
    double x = json_number_value(json_array_get(a, i)), y = json_number_value(json_array_get(b, i));
    difference += (x - y) * (x - y);
    length += y * y;
  }
  if (!(sqrt(difference) <= tolerance * sqrt(length))) {
    fail_msg("%s.%s differs from numpy's by %g of its length", part, name, sqrt(difference / length));
  }
}

/* Sums differ because numpy adds in f32. Values that are only selected (quantiles, extremes) must be equal. */
static void compare_statistics(const json_t *found, const json_t *expected) {
  static const char *const parts[] = {"action", "proprio"};
  for (size_t i = 0; i < 2; i++) {
    compare_numbers(found, expected, parts[i], "mean", 1e-6);
    compare_numbers(found, expected, parts[i], "std", 3e-6);
    compare_numbers(found, expected, parts[i], "min", 0);
    compare_numbers(found, expected, parts[i], "max", 0);
    compare_numbers(found, expected, parts[i], "q01", 1e-7);
    compare_numbers(found, expected, parts[i], "q99", 1e-7);
    assert_true(json_equal(json_object_get(json_object_get(found, parts[i]), "mask"),
                           json_object_get(json_object_get(expected, parts[i]), "mask")));
  }
  assert_true(json_equal(json_object_get(found, "num_transitions"), json_object_get(expected, "num_transitions")));
  assert_true(json_equal(json_object_get(found, "num_trajectories"), json_object_get(expected, "num_trajectories")));
}

static void statistics_equal_numpy(void **state) {
  (void)state;
  json_t *expected = json_load_file(HVLA_SOURCE_DIR "/tests/fixtures/stats/lift_statistics.json", 0, NULL);
  assert_non_null(expected);
  json_t *found = data_json(0, "stats " LIFT);
  assert_int_equal(json_object_size(found), 1);
  compare_statistics(json_object_get(found, "lift"), json_object_get(expected, "lift"));
  json_decref(found);
  found = data_json(0, "stats --split train --key lift_train " LIFT);
  compare_statistics(json_object_get(found, "lift_train"), json_object_get(expected, "lift_train"));
  json_decref(found);
  json_decref(expected);
}

static void statistics_to_a_file_keep_other_keys(void **state) {
  char arguments[512], *out, *errors;
  const char *path = in_folder(*state, "stats.json");
  snprintf(arguments, sizeof arguments, "stats --out '%s' --state-keys robot0_eef_pos,robot0_gripper_qpos " LIFT, path);
  assert_int_equal(run_data(arguments, &out, &errors), 0);
  assert_string_equal(out, "");
  free(out);
  free(errors);
  snprintf(arguments, sizeof arguments, "stats --out '%s' --key both --gripper '[6]' " LIFT " " LIFT, path);
  assert_int_equal(run_data(arguments, &out, &errors), 0);
  assert_non_null(strstr(errors, "lift.hdf5 are one file: its episodes count twice"));
  free(out);
  free(errors);
  json_t *found = json_load_file(path, 0, NULL);
  assert_int_equal(json_object_size(found), 2);
  const json_t *lift = json_object_get(found, "lift"), *both = json_object_get(found, "both");
  assert_int_equal(json_array_size(json_object_get(json_object_get(lift, "proprio"), "mean")), 5);
  assert_int_equal(json_integer_value(json_object_get(both, "num_transitions")), 1046);
  assert_int_equal(json_integer_value(json_object_get(both, "num_trajectories")), 24);
  const json_t *mask = json_object_get(json_object_get(both, "action"), "mask");
  assert_true(json_is_true(json_array_get(mask, 5)) && json_is_false(json_array_get(mask, 6)));
  json_decref(found);
}

static void binary_gripper_is_masked(void **state) {
  char arguments[512];
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  snprintf(arguments, sizeof arguments, "stats '%s'", path);
  json_t *found = data_json(0, arguments);
  const json_t *small = json_object_get(found, "small");
  const json_t *mask = json_object_get(json_object_get(small, "action"), "mask");
  for (size_t i = 0; i < 7; i++) assert_int_equal(json_is_true(json_array_get(mask, i)), i != 6);
  assert_int_equal(json_integer_value(json_object_get(small, "num_transitions")), 18);
  json_decref(found);
  snprintf(arguments, sizeof arguments, "stats --gripper '[2]' '%s'", path); /* and then no other column is one */
  found = data_json(0, arguments);
  mask = json_object_get(json_object_get(json_object_get(found, "small"), "action"), "mask");
  for (size_t i = 0; i < 7; i++) assert_int_equal(json_is_true(json_array_get(mask, i)), i != 2);
  json_decref(found);
}

static void one_frame_has_statistics(void **state) {
  char arguments[512];
  const char *path = in_folder(*state, "one.hdf5");
  write_demo_file(path);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  static const char *const others[] = {"/data/demo_0/obs", "/data/demo_1", "/data/demo_2", "/mask"};
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) remove_object(file, others[i]);
  remove_object(file, "/data/demo_0/actions");
  put_f64(file, "/data/demo_0/actions", 2, (const hsize_t[]){1, 2}, (const double[]){0.25, -3});
  put_integer_attribute(file, "/data/demo_0", "num_samples", 1);
  assert_true(H5Fclose(file) >= 0);
  snprintf(arguments, sizeof arguments, "stats '%s'", path);
  json_t *found = data_json(0, arguments);
  const json_t *action = json_object_get(json_object_get(found, "one"), "action");
  static const char *const names[] = {"mean", "min", "max", "q01", "q99"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    assert_true(json_number_value(json_array_get(json_object_get(action, names[i]), 1)) == -3);
  }
  assert_true(json_number_value(json_array_get(json_object_get(action, "std"), 0)) == 0);
  json_decref(found);
}

static void an_instruction_that_all_have_is_told_once(void **state) {
  char arguments[512];
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  snprintf(arguments, sizeof arguments, "inspect --json '%s'", path);
  json_t *found = data_json(0, arguments);
  const json_t *instructions = json_object_get(found, "instructions");
  assert_int_equal(json_integer_value(json_object_get(found, "episodes")), DEMO_COUNT);
  assert_int_equal(json_array_size(instructions), 1);
  assert_string_equal(json_string_value(json_array_get(instructions, 0)), "Pick up the cube");
  json_decref(found);
}

static void validates_lift(void **state) {
  (void)state;
  json_t *found = data_json(0, "validate " LIFT " --json");
  assert_true(json_is_true(json_object_get(found, "ok")));
  assert_int_equal(json_array_size(json_object_get(found, "bad_episodes")), 0);
  json_decref(found);
}

/* If one of several files cannot be read, the exit code says so, whatever is wrong with the others; all are validated.
 */
static void validation_looks_at_all_files(void **state) {
  char arguments[1024];
  const char *bad = in_folder(*state, "bad.hdf5"), *none = in_folder(*state, "none.hdf5");
  write_demo_file(bad);
  hid_t file = H5Fopen(bad, H5F_ACC_RDWR, H5P_DEFAULT);
  put_integer_attribute(file, "/data/demo_1", "num_samples", 9);
  assert_true(H5Fclose(file) >= 0);
  for (int i = 0; i < 3; i++) {
    snprintf(arguments, sizeof arguments, "validate --json '%s' '%s'", i == 1 ? none : bad, i == 2 ? none : bad);
    json_t *found = data_json(i == 0 ? 1 : 2, arguments);
    assert_true(json_is_false(json_object_get(found, "ok")));
    assert_int_equal(json_array_size(json_object_get(found, "bad_episodes")), i == 0 ? 2 : 1);
    json_decref(found);
  }
}

/* Fails unless what a call prints contains the words. */
static void prints(const char *arguments, const char *words) {
  char *out, *errors;
  assert_int_equal(run_data(arguments, &out, &errors), 0);
  if (!strstr(out, words)) fail_msg("%s: no \"%s\" in: %s", arguments, words, out);
  free(out);
  free(errors);
}

static void one_is_no_plural(void **state) {
  char arguments[512];
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  prints("validate " LIFT " " LIFT, "2 files, 24 episodes, 0 problems\n");
  prints("validate " LIFT, "1 file, 12 episodes, 0 problems\n");
  snprintf(arguments, sizeof arguments, "inspect '%s'", path);
  prints(arguments, "valid (1 episode)\n");
}

static void shows_one_frame(void **state) {
  char arguments[512];
  const char *demos = in_folder(*state, "demos.hdf5"), *path = in_folder(*state, "frame.png");
  write_demo_file(demos);
  snprintf(arguments, sizeof arguments, "frame '%s' --episode demo_1 --frame 3 --camera front_image --out '%s' --json",
           demos, path);
  json_t *found = data_json(0, arguments);
  assert_string_equal(json_string_value(json_object_get(found, "episode")), "demo_1");
  assert_string_equal(json_string_value(json_object_get(found, "instruction")), "Pick up the cube");
  assert_int_equal(json_integer_value(json_object_get(found, "frame")), 3);
  assert_int_equal(json_integer_value(json_object_get(found, "frames")), demo_frames(1));
  assert_int_equal(json_array_size(json_object_get(found, "action")), 7);
  assert_int_equal(json_array_size(json_object_get(found, "state")), 9);
  json_decref(found);
  hv_image image;
  assert_ok(hv_image_load(path, &image));
  assert_int_equal(image.width, DEMO_WIDTH);
  assert_int_equal(image.height, DEMO_HEIGHT);
  for (size_t i = 0; i < DEMO_FRAME; i++) assert_int_equal(image.rgb[i], demo_pixel(1, 3, i));
  hv_image_free(&image);
}

static void shows_state_and_action_of_lift(void **state) {
  (void)state;
  /* These values were read with h5py from data/demo_4, step 12. */
  static const double eef_pos[] = {-0.000452380278, 0.00143382885, 0.905207276};
  static const double action[] = {0.182689264, 0.0196625777, -0.167933047, 0.00691437256, -0.0127372621, 0.0163473953,
                                  -1};
  json_t *found = data_json(0, "frame " LIFT " --episode demo_4 --frame 12 --state-keys robot0_eef_pos --json");
  const json_t *values = json_object_get(found, "state");
  assert_int_equal(json_array_size(values), 3);
  for (size_t i = 0; i < 3; i++) {
    assert_true(fabs(json_number_value(json_array_get(values, i)) - eef_pos[i]) < 1e-8);
  }
  values = json_object_get(found, "action");
  assert_int_equal(json_array_size(values), 7);
  for (size_t i = 0; i < 7; i++) {
    assert_true(fabs(json_number_value(json_array_get(values, i)) - action[i]) < 1e-8);
  }
  json_decref(found);
}

static void command_line_mistakes_are_explained(void **state) {
  (void)state;
  static const struct {
    const char *arguments, *says;
  } cases[] = {
      {"", "inspect"},
      {"inspekt x", "did you mean inspect?"},
      {"stats --kee x y", "did you mean --key?"},
      {"stats", "FILE"},
      {"inspect a b", "unexpected argument b"},
      {"stats --key", "--key needs a value"},
      {"stats --state-keys robot0_eef_pos,, " LIFT, "robot0_eef_pos,,: an empty name"},
      {"stats --gripper 6,13 " LIFT, "list of integers from 0 to 4095, not \"6,13\" (put it in brackets: [6,13])"},
      {"stats --gripper '[9]' " LIFT, "gripper dimension 9"},
      {"stats " LIFT " " LIFT, "--key"},
      {"stats --key '' " LIFT, "the key of the statistics is empty"},
      {"frame " LIFT, "--episode"},
      {"frame " LIFT " --episode demo_44", "no episode demo_44 among its 12"},
      {"frame " LIFT " --episode demo_4 --frame 43", "frames are 0 to 42"},
      {"frame " LIFT " --episode demo_4 --camera agentview_image", "--camera and --out belong together"},
      {"frame " LIFT " --episode demo_4 --camera agentview --out x.png", "agentview_image, robot0_eye_in_hand_image"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char *out, *errors;
    int code = run_data(cases[i].arguments, &out, &errors);
    if (code != 2 || !strstr(errors, cases[i].says)) fail_msg("%s: %d: %s", cases[i].arguments, code, errors);
    free(out);
    free(errors);
  }
  char *out, *errors;
  assert_int_equal(run_data("stats --help", &out, &errors), 0);
  assert_non_null(strstr(out, "--state-keys"));
  assert_string_equal(errors, "");
  free(out);
  free(errors);
}

int main(void) {
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(inspects_lift),
      cmocka_unit_test_setup_teardown(draws_a_picture, make_folder, remove_folder),
      cmocka_unit_test(statistics_equal_numpy),
      cmocka_unit_test_setup_teardown(statistics_to_a_file_keep_other_keys, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(binary_gripper_is_masked, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(one_frame_has_statistics, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(an_instruction_that_all_have_is_told_once, make_folder, remove_folder),
      cmocka_unit_test(validates_lift),
      cmocka_unit_test_setup_teardown(validation_looks_at_all_files, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(one_is_no_plural, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(shows_one_frame, make_folder, remove_folder),
      cmocka_unit_test(shows_state_and_action_of_lift),
      cmocka_unit_test(command_line_mistakes_are_explained),
  };
  return cmocka_run_group_tests_name("hvla-data", tests, NULL, NULL);
}
