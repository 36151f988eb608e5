/* hvla-data from outside: what it prints of the shipped demonstrations and of files that are damaged in every way we
 * know of. */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "core/image/image.h"
#include "tests/data/demo_file.h"

#define LIFT "'" HVLA_SOURCE_DIR "/data/demos/lift.hdf5'"

static char folder[64];

static int enter(void **state) {
  (void)state;
  make_folder(folder);
  return 0;
}

static int leave(void **state) {
  (void)state;
  hv_status status = hv_remove_tree(folder);
  assert_null(status);
  return 0;
}

/* The JSON that a call prints; the call must end with `code` and, at 0, say nothing on standard error. */
static json_t *json_of(const char *arguments, int code) {
  char *out, *error;
  int found = run_hvla_data(folder, arguments, &out, &error);
  if (found != code) fail_msg("hvla-data %s: exit code %d, not %d: %s", arguments, found, code, error);
  if (code == 0) assert_string_equal(error, "");
  json_error_t problem;
  json_t *document = json_loads(out, 0, &problem);
  if (!document) fail_msg("hvla-data %s printed no JSON: %s", arguments, problem.text);
  free(out);
  free(error);
  return document;
}

static void inspects_lift(void **state) {
  (void)state;
  json_t *found = json_of("inspect " LIFT " --json", 0);
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
  (void)state;
  char arguments[256], path[128], *out, *error;
  snprintf(path, sizeof path, "%s/lift.png", folder);
  snprintf(arguments, sizeof arguments, "inspect " LIFT " --picture '%s'", path);
  assert_int_equal(run_hvla_data(folder, arguments, &out, &error), 0);
  assert_non_null(strstr(out, "523 frames"));
  hv_image image;
  assert_null(hv_image_load(path, &image));
  assert_int_equal(image.width, 4 + 8 * 164);
  assert_int_equal(image.height, 4 + 2 * 164);
  hv_image_free(&image);
  free(out);
  free(error);
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

/* numpy adds up in f32, one after the other: it is its sums that are inexact. What it only selects is equal. */
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
  json_t *found = json_of("stats " LIFT, 0);
  assert_int_equal(json_object_size(found), 1);
  compare_statistics(json_object_get(found, "lift"), json_object_get(expected, "lift"));
  json_decref(found);
  found = json_of("stats --split train --key lift_train " LIFT, 0);
  compare_statistics(json_object_get(found, "lift_train"), json_object_get(expected, "lift_train"));
  json_decref(found);
  json_decref(expected);
}

static void statistics_to_a_file_keep_other_keys(void **state) {
  (void)state;
  char path[128], arguments[512], *out, *error;
  snprintf(path, sizeof path, "%s/stats.json", folder);
  snprintf(arguments, sizeof arguments, "stats --out '%s' --state-keys robot0_eef_pos,robot0_gripper_qpos " LIFT, path);
  assert_int_equal(run_hvla_data(folder, arguments, &out, &error), 0);
  assert_string_equal(out, "");
  free(out);
  free(error);
  snprintf(arguments, sizeof arguments, "stats --out '%s' --key both --gripper '[6]' " LIFT " " LIFT, path);
  assert_int_equal(run_hvla_data(folder, arguments, &out, &error), 0);
  free(out);
  free(error);
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
  (void)state;
  char path[128], arguments[256];
  snprintf(path, sizeof path, "%s/small.hdf5", folder);
  write_demo_file(path);
  snprintf(arguments, sizeof arguments, "stats '%s'", path);
  json_t *found = json_of(arguments, 0);
  const json_t *small = json_object_get(found, "small");
  const json_t *mask = json_object_get(json_object_get(small, "action"), "mask");
  for (size_t i = 0; i < 7; i++) assert_int_equal(json_is_true(json_array_get(mask, i)), i != 6);
  assert_int_equal(json_integer_value(json_object_get(small, "num_transitions")), 18);
  json_decref(found);
}

static void validates_lift(void **state) {
  (void)state;
  json_t *found = json_of("validate " LIFT " --json", 0);
  assert_true(json_is_true(json_object_get(found, "ok")));
  assert_int_equal(json_array_size(json_object_get(found, "bad_episodes")), 0);
  json_decref(found);
}

/* One way to damage the small file, and what must be said about it. */
typedef struct damage {
  const char *name;
  void (*apply)(hid_t file);
  const char *command; /* with %s for the path */
  int code;            /* of that command */
  const char *object;  /* that the message names */
  const char *says[3]; /* found, expected */
  const char *episode; /* that validate reports; NULL: validate ends with 2, too; "" : validate finds nothing */
} damage;

#define ACTIONS "/data/demo_1/actions"
#define POSITION "/data/demo_1/obs/robot0_eef_pos"
#define IMAGE "/data/demo_1/obs/front_image"

static void no_data(hid_t file) {
  H5Lmove(file, "/data", file, "/other", H5P_DEFAULT, H5P_DEFAULT);
}
static void no_episodes(hid_t file) {
  for (int i = 0; i < DEMO_COUNT; i++) {
    char path[32];
    snprintf(path, sizeof path, "/data/demo_%d", i);
    remove_object(file, path);
  }
}
static void name_without_number(hid_t file) {
  H5Lmove(file, "/data/demo_1", file, "/data/demo_last", H5P_DEFAULT, H5P_DEFAULT);
}
static void name_twice(hid_t file) {
  H5Lcreate_hard(file, "/data/demo_1", file, "/data/demo_01", H5P_DEFAULT, H5P_DEFAULT);
}
static void libero(hid_t file) {
  put_text_attribute(file, "/data", "bddl_file_name", "x.bddl");
}
static void wrong_num_samples(hid_t file) {
  put_integer_attribute(file, "/data/demo_1", "num_samples", 9);
}
static void text_num_samples(hid_t file) {
  put_text_attribute(file, "/data/demo_1", "num_samples", "6");
}
static void empty_episode(hid_t file) {
  replace(file, ACTIONS, H5T_NATIVE_DOUBLE, 2, (hsize_t[]){0, 7});
}
static void no_actions(hid_t file) {
  remove_object(file, ACTIONS);
}
static void short_state(hid_t file) {
  replace(file, POSITION, H5T_NATIVE_DOUBLE, 2, (hsize_t[]){5, 3});
}
static void short_images(hid_t file) {
  replace(file, IMAGE, H5T_NATIVE_UINT8, 4, (hsize_t[]){4, DEMO_HEIGHT, DEMO_WIDTH, 3});
}
static void long_dones(hid_t file) {
  put_f64(file, "/data/demo_1/dones", 1, (hsize_t[]){7}, (double[7]){0});
}
static void put_bad_number(hid_t file, const char *path, int width, int at, double value) {
  double values[6 * 8] = {0};
  values[at] = value;
  remove_object(file, path);
  put_f64(file, path, 2, (hsize_t[]){6, (hsize_t)width}, values);
}
static void nan_action(hid_t file) {
  put_bad_number(file, ACTIONS, 7, 3 * 7 + 2, NAN);
}
static void infinite_state(hid_t file) {
  put_bad_number(file, POSITION, 3, 5 * 3 + 1, -INFINITY);
}
static void integer_actions(hid_t file) {
  replace(file, ACTIONS, H5T_NATIVE_INT, 2, (hsize_t[]){6, 7});
}
static void flat_actions(hid_t file) {
  replace(file, ACTIONS, H5T_NATIVE_DOUBLE, 1, (hsize_t[]){6});
}
static void narrow_actions(hid_t file) {
  replace(file, ACTIONS, H5T_NATIVE_DOUBLE, 2, (hsize_t[]){6, 6});
}
static void compound_actions(hid_t file) {
  hid_t type = H5Tcreate(H5T_COMPOUND, 16);
  H5Tinsert(type, "x", 0, H5T_NATIVE_DOUBLE);
  H5Tinsert(type, "y", 8, H5T_NATIVE_DOUBLE);
  replace(file, ACTIONS, type, 2, (hsize_t[]){6, 7});
  H5Tclose(type);
}
static void float_images(hid_t file) {
  replace(file, IMAGE, H5T_NATIVE_FLOAT, 4, (hsize_t[]){6, DEMO_HEIGHT, DEMO_WIDTH, 3});
}
static void channel_first_images(hid_t file) {
  replace(file, IMAGE, H5T_NATIVE_UINT8, 4, (hsize_t[]){6, 3, DEMO_HEIGHT, DEMO_WIDTH});
}
static void four_channels(hid_t file) {
  replace(file, IMAGE, H5T_NATIVE_UINT8, 4, (hsize_t[]){6, DEMO_HEIGHT, DEMO_WIDTH, 4});
}
static void encoded_images(hid_t file) {
  replace(file, IMAGE, H5T_NATIVE_UINT8, 2, (hsize_t[]){6, 100});
}
static void unwritten_actions(hid_t file) {
  remove_object(file, ACTIONS);
  put_f64(file, ACTIONS, 2, (hsize_t[]){6, 7}, NULL);
}
static void mask_of_absent(hid_t file) {
  remove_object(file, "/mask/train");
  put_names(file, "/mask/train", (const char *const[]){"demo_0", "demo_9"}, 2);
}
static void empty_mask(hid_t file) {
  remove_object(file, "/mask/train");
  put_names(file, "/mask/train", NULL, 0);
}
static void numeric_mask(hid_t file) {
  remove_object(file, "/mask/train");
  put_f64(file, "/mask/train", 1, (hsize_t[]){2}, (double[]){0, 2});
}
static void broken_json(hid_t file) {
  put_text_attribute(file, "/data/demo_1", "ep_meta", "{\"lang\": ");
}
static void numeric_lang(hid_t file) {
  put_text_attribute(file, "/data/demo_1", "ep_meta", "{\"lang\": 3}");
}
static void external_link(hid_t file) {
  remove_object(file, ACTIONS);
  H5Lcreate_external("other.hdf5", "/actions", file, ACTIONS, H5P_DEFAULT, H5P_DEFAULT);
}
static void dangling_link(hid_t file) {
  remove_object(file, ACTIONS);
  H5Lcreate_soft("/nowhere", file, ACTIONS, H5P_DEFAULT, H5P_DEFAULT);
}
static void cyclic_link(hid_t file) {
  remove_object(file, ACTIONS);
  H5Lcreate_soft(ACTIONS, file, ACTIONS, H5P_DEFAULT, H5P_DEFAULT);
}
static void set_as_episode(hid_t file) {
  remove_object(file, "/data/demo_1");
  put_f64(file, "/data/demo_1", 1, (hsize_t[]){3}, (double[3]){0});
}
static void external_storage(hid_t file) {
  remove_object(file, IMAGE);
  hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_external(properties, "/etc/passwd", 0, H5F_UNLIMITED);
  put_u8(file, IMAGE, 4, (hsize_t[]){6, DEMO_HEIGHT, DEMO_WIDTH, 3}, NULL, properties);
  H5Pclose(properties);
}
static void unknown_filter(hid_t file) {
  remove_object(file, IMAGE);
  hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(properties, 4, (hsize_t[]){1, DEMO_HEIGHT, DEMO_WIDTH, 3});
  H5Pset_filter(properties, 32001, H5Z_FLAG_OPTIONAL, 0, NULL);
  put_u8(file, IMAGE, 4, (hsize_t[]){6, DEMO_HEIGHT, DEMO_WIDTH, 3}, NULL, properties);
  H5Pclose(properties);
}
/* Frames of one chunk each whose third holds `bytes` as its stored, supposedly deflated form. */
static void put_raw_chunk(hid_t file, const void *bytes, size_t size) {
  remove_object(file, IMAGE);
  hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(properties, 4, (hsize_t[]){1, DEMO_HEIGHT, DEMO_WIDTH, 3});
  H5Pset_deflate(properties, 4);
  uint8_t pixels[6 * DEMO_FRAME] = {0};
  put_u8(file, IMAGE, 4, (hsize_t[]){6, DEMO_HEIGHT, DEMO_WIDTH, 3}, pixels, properties);
  hid_t set = H5Dopen2(file, IMAGE, H5P_DEFAULT);
  assert_true(H5Dwrite_chunk(set, H5P_DEFAULT, 0, (hsize_t[]){2, 0, 0, 0}, size, bytes) >= 0);
  H5Dclose(set);
  H5Pclose(properties);
}
static void corrupt_deflate(hid_t file) {
  put_raw_chunk(file, "this is not deflate", 19);
}
static void short_chunk(hid_t file) {
  /* zlib's form of three zero bytes. */
  static const uint8_t three[] = {0x78, 0x9c, 0x63, 0x60, 0x60, 0x00, 0x00, 0x00, 0x03, 0x00, 0x01};
  put_raw_chunk(file, three, sizeof three);
}
static void sound(hid_t file) {
  (void)file;
}

#define STATS "stats '%s'"
#define INSPECT "inspect '%s' --json"
#define TRAIN "stats --split train '%s'"

static const damage damages[] = {
    {"no /data", no_data, INSPECT, 2, "small.hdf5", {"none of the known layouts", "other", "robomimic"}, NULL},
    {"zero demos", no_episodes, INSPECT, 2, "/data", {"no episode", "demo_0"}, NULL},
    {"a name without a number", name_without_number, STATS, 2, "/data/demo_last", {"integer"}, NULL},
    {"a number twice", name_twice, STATS, 2, "/data", {"demo_01", "demo_1", "same number"}, NULL},
    {"LIBERO", libero, STATS, 2, "small.hdf5", {"none of the known layouts"}, NULL},
    {"wrong num_samples", wrong_num_samples, STATS, 2, "/data/demo_1", {"num_samples is 9", "6 rows"}, "demo_1"},
    {"num_samples of text", text_num_samples, STATS, 2, "/data/demo_1", {"num_samples", "integer"}, "demo_1"},
    {"an empty episode", empty_episode, STATS, 2, ACTIONS, {"empty"}, "demo_1"},
    {"no actions", no_actions, INSPECT, 2, ACTIONS, {"missing"}, "demo_1"},
    {"a short state", short_state, INSPECT, 2, POSITION, {"5 rows", "6"}, "demo_1"},
    {"too few images", short_images, STATS, 2, IMAGE, {"4 rows", "6"}, "demo_1"},
    {"long dones", long_dones, STATS, 2, "/data/demo_1/dones", {"7 rows", "6"}, "demo_1"},
    {"NaN actions", nan_action, STATS, 2, "demo_1", {"actions, step 3, dimension 2", "NaN"}, "demo_1"},
    {"an infinite state", infinite_state, INSPECT, 2, "demo_1", {"robot0_eef_pos, step 5, dimension 1"}, "demo_1"},
    {"integer actions", integer_actions, STATS, 2, ACTIONS, {"i32 (6, 7)", "floating-point"}, "demo_1"},
    {"flat actions", flat_actions, STATS, 2, ACTIONS, {"f64 (6)", "(steps, dimensions)"}, "demo_1"},
    {"narrow actions", narrow_actions, STATS, 2, "demo_1", {"6 dimensions", "7"}, "demo_1"},
    {"compound actions", compound_actions, STATS, 2, ACTIONS, {"compound", "floating-point"}, "demo_1"},
    {"float images", float_images, INSPECT, 2, IMAGE, {"f32 (6, 8, 10, 3)", "u8"}, "demo_1"},
    {"channels first",
     channel_first_images,
     INSPECT,
     2,
     IMAGE,
     {"(6, 3, 8, 10)", "(frames, height, width, 3)"},
     "demo_1"},
    {"four channels", four_channels, INSPECT, 2, IMAGE, {"(6, 8, 10, 4)", "(frames, height, width, 3)"}, "demo_1"},
    {"encoded images", encoded_images, INSPECT, 2, IMAGE, {"u8 (6, 100)", "(frames, height, width, 3)"}, "demo_1"},
    {"unwritten actions", unwritten_actions, STATS, 2, ACTIONS, {"never written"}, "demo_1"},
    {"a mask of absent demos", mask_of_absent, TRAIN, 2, "/mask/train", {"demo_9", "not in /data"}, "train"},
    {"an empty mask", empty_mask, TRAIN, 2, "/mask/train", {"no episode"}, "train"},
    {"a mask of numbers", numeric_mask, TRAIN, 2, "/mask/train", {"strings are expected"}, "train"},
    {"an unknown split", sound, "stats --split nope '%s'", 2, "/mask/nope", {"no such split", "train, valid"}, ""},
    {"an unknown state key",
     sound,
     "stats --state-keys robot0_eef_po '%s'",
     2,
     "/data/demo_0/obs",
     {"robot0_eef_po\"", "robot0_eef_quat", "did you mean robot0_eef_pos?"},
     ""},
    {"broken JSON", broken_json, STATS, 2, "/data/demo_1", {"ep_meta", "JSON"}, "demo_1"},
    {"a number as instruction", numeric_lang, INSPECT, 2, "/data/demo_1", {"lang", "string"}, "demo_1"},
    {"an external link", external_link, STATS, 2, ACTIONS, {"another file"}, "demo_1"},
    {"a dangling link", dangling_link, STATS, 2, ACTIONS, {"leads to nothing"}, "demo_1"},
    {"a cyclic link", cyclic_link, STATS, 2, ACTIONS, {"leads to nothing"}, "demo_1"},
    {"a data set as episode", set_as_episode, INSPECT, 2, "/data/demo_1", {"a data set", "group"}, "demo_1"},
    {"data in another file", external_storage, INSPECT, 2, IMAGE, {"other files"}, "demo_1"},
    {"an unknown filter", unknown_filter, INSPECT, 2, IMAGE, {"32001", "blosc", "gzip"}, "demo_1"},
    {"a corrupt deflate stream", corrupt_deflate, STATS, 0, NULL, {NULL}, "demo_1"},
    {"a chunk that is too short", short_chunk, STATS, 0, NULL, {NULL}, "demo_1"},
};

/* The command itself: its exit code, one line that names file, object and what is wrong, nothing on standard output. */
static void check_command(const damage *d, const char *path) {
  char arguments[512], *out, *error;
  snprintf(arguments, sizeof arguments, d->command, path);
  int code = run_hvla_data(folder, arguments, &out, &error);
  if (code != d->code) fail_msg("%s: exit code %d, not %d: %s", d->name, code, d->code, error);
  if (code == 2) {
    assert_string_equal(out, "");
    if (!strstr(error, "small.hdf5") || !strstr(error, d->object)) fail_msg("%s: names no place: %s", d->name, error);
    assert_ptr_equal(strchr(error, '\n'), error + strlen(error) - 1);
  }
  for (size_t i = 0; i < 3 && d->says[i]; i++) {
    if (!strstr(error, d->says[i])) fail_msg("%s: does not say \"%s\": %s", d->name, d->says[i], error);
  }
  free(out);
  free(error);
}

static void check_validate(const damage *d, const char *path) {
  char arguments[512];
  snprintf(arguments, sizeof arguments, "validate '%s' --json", path);
  bool readable = d->episode != NULL, bad = readable && *d->episode;
  json_t *found = json_of(arguments, !readable ? 2 : bad ? 1 : 0);
  const json_t *episodes = json_object_get(found, "bad_episodes");
  assert_int_equal(json_is_true(json_object_get(found, "ok")), readable && !bad);
  assert_int_equal(json_array_size(episodes), bad ? 1 : 0);
  if (bad) {
    const json_t *entry = json_array_get(episodes, 0);
    assert_string_equal(json_string_value(json_object_get(entry, "file")), path);
    assert_string_equal(json_string_value(json_object_get(entry, "episode")), d->episode);
    assert_true(json_string_length(json_object_get(entry, "reason")) > 0);
  }
  json_decref(found);
}

static void damaged_files_are_told_apart(void **state) {
  (void)state;
  char path[128];
  snprintf(path, sizeof path, "%s/small.hdf5", folder);
  for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
    write_demo_file(path);
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(file >= 0);
    damages[i].apply(file);
    assert_true(H5Fclose(file) >= 0);
    check_command(&damages[i], path);
    check_validate(&damages[i], path);
  }
}

/* Files that are no HDF5 at all. */
static void check_foreign(const char *content, size_t size, const char *says) {
  char path[128], arguments[256], *out, *error;
  snprintf(path, sizeof path, "%s/foreign.hdf5", folder);
  write_all(path, content, size);
  static const char *const commands[] = {"stats", "inspect --json", "validate"};
  for (size_t i = 0; i < 3; i++) {
    snprintf(arguments, sizeof arguments, "%s '%s'", commands[i], path);
    int code = run_hvla_data(folder, arguments, &out, &error);
    if (code != 2 || !strstr(error, path) || !strstr(error, says)) fail_msg("%s: %d: %s", says, code, error);
    free(out);
    free(error);
  }
}

static void foreign_files_are_refused(void **state) {
  (void)state;
  static const char pointer[] = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 8047007\n";
  static const char page[] = "<!DOCTYPE html><html><body>Not found</body></html>";
  static const char text[] = "hello";
  check_foreign("", 0, "is empty");
  check_foreign(pointer, sizeof pointer - 1, "Git LFS pointer");
  check_foreign(page, sizeof page - 1, "web page");
  check_foreign(text, sizeof text - 1, "not an HDF5 file");
  size_t size;
  char *lift = read_all(HVLA_SOURCE_DIR "/data/demos/lift.hdf5", &size);
  check_foreign(lift, size / 2, "truncated");
  check_foreign(lift, size - 1, "truncated");
  check_foreign(lift, 600, "truncated");
  free(lift);
  char *out, *error;
  assert_int_equal(run_hvla_data(folder, "inspect /nonexistent/x.hdf5", &out, &error), 2);
  assert_non_null(strstr(error, "/nonexistent/x.hdf5: No such file"));
  free(out);
  free(error);
}

/* Bytes of a sound file changed at random places: any answer but a crash or a hang. */
static void random_damage_never_crashes(void **state) {
  (void)state;
  char path[128], arguments[256], *out, *error;
  snprintf(path, sizeof path, "%s/small.hdf5", folder);
  write_demo_file(path);
  size_t size;
  char *sound_bytes = read_all(path, &size), *bytes = malloc(size);
  uint32_t random = 12345;
  int refused = 0;
  for (int round = 0; round < 60; round++) {
    memcpy(bytes, sound_bytes, size);
    for (int i = 0; i < 8; i++) {
      random = random * 1664525u + 1013904223u;
      bytes[(random >> 8) % (round % 2 ? size : 4096)] = (char)(random >> 3);
    }
    write_all(path, bytes, size);
    snprintf(arguments, sizeof arguments, "validate '%s'", path);
    int code = run_hvla_data(folder, arguments, &out, &error);
    if (code < 0 || code > 2) fail_msg("round %d: exit code %d: %s", round, code, error);
    refused += code > 0;
    free(out);
    free(error);
  }
  assert_true(refused > 10);
  free(bytes);
  free(sound_bytes);
}

static void every_bad_episode_is_listed(void **state) {
  (void)state;
  char path[128], arguments[512];
  snprintf(path, sizeof path, "%s/small.hdf5", folder);
  write_demo_file(path);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  nan_action(file);
  put_integer_attribute(file, "/data/demo_2", "num_samples", 100);
  H5Fclose(file);
  snprintf(arguments, sizeof arguments, "validate --json " LIFT " '%s'", path);
  json_t *found = json_of(arguments, 1);
  const json_t *episodes = json_object_get(found, "bad_episodes");
  assert_int_equal(json_array_size(episodes), 2);
  assert_string_equal(json_string_value(json_object_get(json_array_get(episodes, 1), "episode")), "demo_2");
  json_decref(found);
}

static void shows_one_frame(void **state) {
  (void)state;
  char arguments[512], demos[128], path[128];
  snprintf(demos, sizeof demos, "%s/demos.hdf5", folder);
  snprintf(path, sizeof path, "%s/frame.png", folder);
  write_demo_file(demos);
  snprintf(arguments, sizeof arguments, "frame '%s' --episode demo_1 --frame 3 --camera front_image --out '%s' --json",
           demos, path);
  json_t *found = json_of(arguments, 0);
  assert_string_equal(json_string_value(json_object_get(found, "episode")), "demo_1");
  assert_string_equal(json_string_value(json_object_get(found, "instruction")), "Pick up the cube");
  assert_int_equal(json_integer_value(json_object_get(found, "frame")), 3);
  assert_int_equal(json_integer_value(json_object_get(found, "frames")), demo_frames(1));
  assert_int_equal(json_array_size(json_object_get(found, "action")), 7);
  assert_int_equal(json_array_size(json_object_get(found, "state")), 9);
  json_decref(found);
  hv_image image;
  assert_null(hv_image_load(path, &image));
  assert_int_equal(image.width, DEMO_WIDTH);
  assert_int_equal(image.height, DEMO_HEIGHT);
  for (size_t i = 0; i < DEMO_FRAME; i++) assert_int_equal(image.rgb[i], demo_pixel(1, 3, i));
  hv_image_free(&image);
}

static void shows_state_and_action_of_lift(void **state) {
  (void)state;
  /* Read with h5py from data/demo_4, step 12. */
  static const double eef_pos[] = {-0.000452380278, 0.00143382885, 0.905207276};
  static const double action[] = {0.182689264, 0.0196625777, -0.167933047, 0.00691437256, -0.0127372621, 0.0163473953,
                                  -1};
  json_t *found = json_of("frame " LIFT " --episode demo_4 --frame 12 --state-keys robot0_eef_pos --json", 0);
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
      {"stats --gripper '[9]' " LIFT, "gripper dimension 9"},
      {"stats " LIFT " " LIFT, "--key"},
      {"frame " LIFT, "--episode"},
      {"frame " LIFT " --episode demo_44", "no episode demo_44 among its 12"},
      {"frame " LIFT " --episode demo_4 --frame 43", "frames are 0 to 42"},
      {"frame " LIFT " --episode demo_4 --camera agentview_image", "--camera and --out belong together"},
      {"frame " LIFT " --episode demo_4 --camera agentview --out x.png", "agentview_image, robot0_eye_in_hand_image"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char *out, *error;
    int code = run_hvla_data(folder, cases[i].arguments, &out, &error);
    if (code != 2 || !strstr(error, cases[i].says)) fail_msg("%s: %d: %s", cases[i].arguments, code, error);
    free(out);
    free(error);
  }
  char *out, *error;
  assert_int_equal(run_hvla_data(folder, "stats --help", &out, &error), 0);
  assert_non_null(strstr(out, "--state-keys"));
  assert_string_equal(error, "");
  free(out);
  free(error);
}

int main(void) {
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(inspects_lift, enter, leave),
      cmocka_unit_test_setup_teardown(draws_a_picture, enter, leave),
      cmocka_unit_test_setup_teardown(statistics_equal_numpy, enter, leave),
      cmocka_unit_test_setup_teardown(statistics_to_a_file_keep_other_keys, enter, leave),
      cmocka_unit_test_setup_teardown(binary_gripper_is_masked, enter, leave),
      cmocka_unit_test_setup_teardown(validates_lift, enter, leave),
      cmocka_unit_test_setup_teardown(damaged_files_are_told_apart, enter, leave),
      cmocka_unit_test_setup_teardown(foreign_files_are_refused, enter, leave),
      cmocka_unit_test_setup_teardown(random_damage_never_crashes, enter, leave),
      cmocka_unit_test_setup_teardown(every_bad_episode_is_listed, enter, leave),
      cmocka_unit_test_setup_teardown(shows_one_frame, enter, leave),
      cmocka_unit_test_setup_teardown(shows_state_and_action_of_lift, enter, leave),
      cmocka_unit_test_setup_teardown(command_line_mistakes_are_explained, enter, leave),
  };
  return cmocka_run_group_tests_name("hvla-data", tests, NULL, NULL);
}
