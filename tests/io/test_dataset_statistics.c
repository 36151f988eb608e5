/* dataset_statistics.json: what is read, merged and refused; and the scaling of actions that it defines. */
#include <math.h>

#include "core/io/dataset_statistics.h"
#include "core/io/json.h"
#include "tests/check.h"

/* Four dimensions: an ordinary one, a gripper, one that is constant, and a constant gripper. */
static const char file[] =
    "{\"lift\": {\"action\": {\"mean\": [0.5, 0.5, 3, 1], \"std\": [1, 0.5, 0, 0], \"min\": [-2, 0, 3, 1],\n"
    " \"max\": [4, 1, 3, 1], \"q01\": [-1, 0, 3, 1], \"q99\": [3, 1, 3, 1], \"mask\": [true, false, true, false]},\n"
    " \"proprio\": {\"mean\": [0], \"std\": [1], \"min\": [-1], \"max\": [1], \"q01\": [-0.5], \"q99\": [0.5]},\n"
    " \"num_transitions\": 523, \"num_trajectories\": 12, \"gripper\": {\"dims\": [1], \"open\": 0.04, \"closed\": "
    "0}},\n"
    " \"drawer\": {\"action\": {\"mean\": [0], \"std\": [1], \"min\": [-1], \"max\": [1], \"q01\": [-1], \"q99\": "
    "[1]}}}\n";

static hv_status read_text(const char *text, const char *key, hv_dataset_statistics *out) {
  json_t *document;
  assert_ok(hv_json_parse(text, strlen(text), "text", &document));
  hv_status status = hv_dataset_statistics_from_json(document, "statistics.json", key, out);
  json_decref(document);
  return status;
}

static void an_entry_is_read(void **state) {
  (void)state;
  hv_dataset_statistics s;
  assert_ok(read_text(file, "lift", &s));
  assert_string_equal(s.key, "lift");
  assert_int_equal(s.action.dims, 4);
  assert_float_equal(s.action.q99[0], 3, 0);
  assert_false(s.action.mask[1]);
  assert_int_equal(s.proprio.dims, 1);
  assert_true(s.proprio.mask[0]);
  assert_int_equal(s.num_transitions, 523);
  assert_int_equal(s.num_trajectories, 12);
  hv_dataset_statistics_free(&s);
  assert_ok(read_text(file, "drawer", &s));
  assert_int_equal(s.proprio.dims, 0);
  assert_int_equal(s.num_transitions, 0);
  hv_dataset_statistics_free(&s);
}

static void the_key_is_never_guessed(void **state) {
  (void)state;
  hv_dataset_statistics s;
  assert_error(read_text(file, "bridge", &s), "statistics.json has no key bridge; it has lift, drawer");
  assert_error(read_text(file, NULL, &s), "several keys", "lift, drawer");
  assert_error(read_text("{}", NULL, &s), "is empty; it must hold statistics");
  assert_error(read_text("[]", "lift", &s), "statistics.json must hold a mapping");
}

static void broken_entries_are_refused(void **state) {
  (void)state;
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"{\"a\": 3}", "must be a mapping"},
      {"{\"a\": {}}", "\"action\" is missing"},
      {"{\"a\": {\"action\": []}}", "action: must be a mapping"},
      {"{\"a\": {\"action\": {}}}", "\"q01\" must be a list"},
      {"{\"a\": {\"action\": {\"q01\": []}}}", "\"q01\" must be a list"},
      {"{\"a\": {\"action\": {\"q01\": [1]}}}", "\"mean\" is missing"},
      {"{\"a\": {\"action\": {\"q01\": [1], \"mean\": [1, 2]}}}", "\"mean\" must be a list of 1 numbers"},
      {"{\"a\": {\"action\": {\"q01\": [\"x\"], \"mean\": [1], \"std\": [1], \"min\": [1], \"max\": [1]}}}",
       "[0] must be a number, not a string"},
      {"{\"a\": {\"action\": {\"q01\": [1], \"mean\": [1], \"std\": [1], \"min\": [1], \"max\": [1], \"q99\": [1], "
       "\"mask\": [1]}}}",
       "\"mask\"[0] must be true or false"},
      {"{\"a\": {\"action\": {\"q01\": [1], \"mean\": [1], \"std\": [1], \"min\": [1], \"max\": [1], \"q99\": [1], "
       "\"mask\": []}}}",
       "\"mask\" must be a list of 1"},
      {"{\"a\": {\"action\": {\"q01\": [1], \"mean\": [1], \"std\": [1], \"min\": [1], \"max\": [1], \"q99\": [1]}, "
       "\"num_transitions\": -1}}",
       "\"num_transitions\" must be a count"},
      {"{\"a\": {\"action\": {\"q01\": [1], \"mean\": [1], \"std\": [1], \"min\": [1], \"max\": [1], \"q99\": [1]}, "
       "\"gripper\": {\"dims\": [0], \"open\": 1}}}",
       "gripper: must hold \"dims\" and the numbers"},
      {"{\"a\": {\"action\": {\"q01\": [1], \"mean\": [1], \"std\": [1], \"min\": [1], \"max\": [1], \"q99\": [1]}, "
       "\"gripper\": {\"dims\": 0, \"open\": 1, \"closed\": 0}}}",
       "gripper: \"dims\" must be a list"},
      {"{\"a\": {\"action\": {\"q01\": [1], \"mean\": [1], \"std\": [1], \"min\": [1], \"max\": [1], \"q99\": [1]}, "
       "\"gripper\": {\"dims\": [1], \"open\": 1, \"closed\": 0}}}",
       "gripper: \"dims\"[0] must be an integer from 0 to 0"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    hv_dataset_statistics s;
    assert_error(read_text(cases[i].text, NULL, &s), "statistics.json: a", cases[i].message);
    assert_null(s.key);
  }
}

static void a_converted_gripper_becomes_the_robots_own(void **state) {
  (void)state;
  static const struct {
    const char *key;
    double given[4], wanted[4];
  } cases[] = {{"lift", {1, 1, 1, 1}, {1, 0.04, 1, 1}},
               {"lift", {0, 0, 0, 0}, {0, 0, 0, 0}},
               {"lift", {0.5, 0.5, 0.5, 0.5}, {0.5, 0.02, 0.5, 0.5}},
               {"drawer", {1}, {1}}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    hv_dataset_statistics s;
    double action[4];
    memcpy(action, cases[i].given, sizeof action);
    assert_ok(read_text(file, cases[i].key, &s));
    hv_restore_gripper(&s, action);
    for (int d = 0; d < 4; d++) assert_float_equal(action[d], cases[i].wanted[d], 1e-15);
    hv_dataset_statistics_free(&s);
  }
  static const char signed_gripper[] =
      "{\"a\": {\"action\": {\"q01\": [0], \"mean\": [0], \"std\": [1], \"min\": [0], \"max\": [1], \"q99\": [1], "
      "\"mask\": [false]}, \"gripper\": {\"dims\": [0], \"open\": -1, \"closed\": 1}}}";
  hv_dataset_statistics s;
  double actions[] = {1, 0};
  assert_ok(read_text(signed_gripper, NULL, &s));
  for (int i = 0; i < 2; i++) hv_restore_gripper(&s, &actions[i]);
  assert_float_equal(actions[0], -1, 0);
  assert_float_equal(actions[1], 1, 0);
  hv_dataset_statistics_free(&s);
}

static void saving_keeps_other_keys_and_members(void **state) {
  const char *path = in_folder(*state, "dataset_statistics.json");
  hv_dataset_statistics s, back;
  write_text(path, file);
  assert_ok(hv_dataset_statistics_load(path, "lift", &s));
  s.action.q01[0] = 1.0 / 3;
  s.num_transitions = 600;
  assert_ok(hv_dataset_statistics_save(path, &s));
  assert_ok(hv_dataset_statistics_load(path, "lift", &back));
  assert_memory_equal(s.action.mean, back.action.mean, 6 * 4 * sizeof(double));
  assert_memory_equal(s.action.mask, back.action.mask, 4);
  assert_int_equal(back.num_transitions, 600);
  const json_t *gripper = json_object_get(back.document, "gripper");
  assert_float_equal(json_number_value(json_object_get(gripper, "open")), 0.04, 0);
  hv_dataset_statistics_free(&back);
  assert_ok(hv_dataset_statistics_load(path, "drawer", &back));
  hv_dataset_statistics_free(&back);

  const char *fresh = in_folder(*state, "fresh.json");
  assert_ok(hv_dataset_statistics_save(fresh, &s));
  assert_ok(hv_dataset_statistics_load(fresh, NULL, &back));
  assert_string_equal(back.key, "lift");
  hv_dataset_statistics_free(&back);
  write_text(fresh, "[1]");
  assert_error(hv_dataset_statistics_save(fresh, &s), fresh, "mapping");
  s.action.mean[0] = NAN;
  assert_error(hv_dataset_statistics_save(path, &s), "lift");
  hv_dataset_statistics_free(&s);
}

static void equal_are_those_with_the_same_numbers(void **state) {
  (void)state;
  hv_dataset_statistics a, b;
  assert_ok(read_text(file, "lift", &a));
  assert_ok(read_text(file, "lift", &b));
  assert_true(hv_dataset_statistics_equal(&a, &b));
  double *const numbers[] = {&b.action.mean[3], &b.action.std[0], &b.action.min[1],  &b.action.max[2],
                             &b.action.q01[3],  &b.action.q99[0], &b.proprio.q01[0], &b.proprio.mean[0]};
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
    double kept = *numbers[i];
    *numbers[i] = kept + 1e-9;
    assert_false(hv_dataset_statistics_equal(&a, &b));
    *numbers[i] = kept;
  }
  int64_t *const counts[] = {&b.num_transitions, &b.num_trajectories};
  for (int i = 0; i < 2; i++) {
    ++*counts[i];
    assert_false(hv_dataset_statistics_equal(&a, &b));
    --*counts[i];
  }
  b.action.mask[2] = false;
  assert_false(hv_dataset_statistics_equal(&a, &b));
  b.action.mask[2] = true;
  assert_true(hv_dataset_statistics_equal(&a, &b));
  hv_dataset_statistics_free(&b);
  assert_ok(read_text(file, "drawer", &b));
  assert_false(hv_dataset_statistics_equal(&a, &b));
  hv_dataset_statistics_free(&a);
  hv_dataset_statistics_free(&b);
}

static void actions_are_scaled_as_the_contract_says(void **state) {
  (void)state;
  hv_dataset_statistics s;
  assert_ok(read_text(file, "lift", &s));
  float scaled[4];
  hv_normalize(&s.action, (const double[]){2, 0.75, 5, 7}, scaled);
  assert_float_equal(scaled[0], 2 * (2 - -1) / (4 + 1e-8) - 1, 1e-7);
  assert_float_equal(scaled[1], 0.75, 0);
  assert_float_equal(scaled[2], 0, 0);
  assert_float_equal(scaled[3], 0, 0);
  hv_normalize(&s.action, (const double[]){100, 5, 3, 1}, scaled);
  assert_float_equal(scaled[0], 1, 0);
  assert_float_equal(scaled[1], 5, 0);
  hv_normalize(&s.action, (const double[]){-100, 0, 3, 1}, scaled);
  assert_float_equal(scaled[0], -1, 0);
  assert_float_equal(hv_normalize_value(&s.action, 0, 7), 2 * 8 / (4 + 1e-8) - 1, 1e-12);

  double back[4];
  hv_unnormalize(&s.action, (const float[]){0.5f, 0.5f, 1, 0.25f}, back);
  assert_float_equal(back[0], 2, 1e-12);
  assert_float_equal(back[1], 1, 0);
  assert_float_equal(back[2], 3, 0);
  assert_float_equal(back[3], 0, 0);
  hv_unnormalize(&s.action, (const float[]){-3, 0.49f, -1, 9}, back);
  assert_float_equal(back[0], -1, 0);
  assert_float_equal(back[1], 0, 0);
  assert_float_equal(back[3], 1, 0);
  hv_dataset_statistics_free(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(an_entry_is_read),
      cmocka_unit_test(the_key_is_never_guessed),
      cmocka_unit_test(broken_entries_are_refused),
      cmocka_unit_test(a_converted_gripper_becomes_the_robots_own),
      cmocka_unit_test(saving_keeps_other_keys_and_members),
      cmocka_unit_test(equal_are_those_with_the_same_numbers),
      cmocka_unit_test(actions_are_scaled_as_the_contract_says),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
