/* Runs hvla-data on small files that are damaged in every way we know of, one at a time, and on random damage. It must
 * end with the right exit code and a message that names the file, the object, what was found and what would be right.
 */
#include <math.h>
#include <sys/stat.h>

#include "tests/check.h"
#include "tests/data/demo_file.h"
#include "tests/data/program.h"

#define LIFT "'" HVLA_SOURCE_DIR "/data/demos/lift.hdf5'"

/* One way to damage the small file, and what hvla-data must say about it. */
typedef struct damage {
  const char *name;
  void (*apply)(hid_t file);
  const char *command; /* %s stands for the path */
  int code;            /* its exit code */
  const char *object;  /* the message must name it */
  const char *says[3]; /* the message must contain these: what was found and expected */
  const char *episode; /* the one validate must report; NULL: validate ends with 2, too; "": it finds nothing bad */
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
static void other_name(hid_t file) {
  H5Lmove(file, "/data/demo_1", file, "/data/episode_1", H5P_DEFAULT, H5P_DEFAULT);
}
/* Adds a group and a data set that are no episodes. */
static void names_beside_episodes(hid_t file) {
  put_u8(file, "/data/notes/actions_of_a_kind", 1, (const hsize_t[]){1}, (const uint8_t[]){1}, H5P_DEFAULT);
  put_u8(file, "/data/version", 1, (const hsize_t[]){1}, (const uint8_t[]){1}, H5P_DEFAULT);
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
static void deep_actions(hid_t file) {
  replace(file, ACTIONS, H5T_NATIVE_DOUBLE, 9, (hsize_t[]){6, 7, 1, 1, 1, 1, 1, 1, 1});
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
/* A small file that claims far more rows than memory has room for, and is consistent in itself. */
static void vast(hid_t file, hsize_t rows) {
  remove_object(file, ACTIONS);
  H5Adelete_by_name(file, "/data/demo_1", "num_samples", H5P_DEFAULT);
  for (int i = 0; i < DEMO_COUNT; i++) {
    char path[32];
    snprintf(path, sizeof path, "/data/demo_%d/obs", i);
    remove_object(file, path);
  }
  hid_t properties = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(2, (hsize_t[]){rows, 7}, NULL);
  H5Pset_chunk(properties, 2, (hsize_t[]){1024, 7});
  hid_t set = H5Dcreate2(file, ACTIONS, H5T_NATIVE_FLOAT, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  assert_true(set >= 0);
  H5Dclose(set);
  H5Sclose(space);
  H5Pclose(properties);
}
static void vast_actions(hid_t file) {
  vast(file, (hsize_t)1 << 40);
}
static void vaster_actions(hid_t file) {
  vast(file, (hsize_t)1 << 62);
}

/* Creates a data set in chunks of `rows` rows and writes only the first chunk. */
static void put_beginning(hid_t file, const char *path, hid_t type, int rank, const hsize_t *shape, hsize_t rows) {
  static const double zeros[6 * DEMO_FRAME];
  hsize_t chunk[4], start[4] = {0};
  remove_object(file, path);
  memcpy(chunk, shape, (size_t)rank * sizeof *chunk);
  chunk[0] = rows;
  hid_t properties = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(rank, shape, NULL);
  hid_t written = H5Screate_simple(rank, chunk, NULL);
  H5Pset_chunk(properties, rank, chunk);
  hid_t set = H5Dcreate2(file, path, type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, chunk, NULL);
  assert_true(H5Dwrite(set, type, written, space, H5P_DEFAULT, zeros) >= 0);
  H5Dclose(set);
  H5Sclose(written);
  H5Sclose(space);
  H5Pclose(properties);
}
static void half_written_actions(hid_t file) {
  put_beginning(file, ACTIONS, H5T_NATIVE_DOUBLE, 2, (hsize_t[]){6, 7}, 3);
}
static void half_written_state(hid_t file) {
  put_beginning(file, POSITION, H5T_NATIVE_FLOAT, 2, (hsize_t[]){6, 3}, 4);
}
static void half_written_images(hid_t file) {
  put_beginning(file, IMAGE, H5T_NATIVE_UINT8, 4, (hsize_t[]){6, DEMO_HEIGHT, DEMO_WIDTH, 3}, 2);
}
static void no_position(hid_t file) {
  remove_object(file, POSITION);
}
static void narrow_gripper(hid_t file) {
  replace(file, "/data/demo_1/obs/robot0_gripper_qpos", H5T_NATIVE_DOUBLE, 2, (hsize_t[]){6, 1});
}
static void first_without_position(hid_t file) {
  remove_object(file, "/data/demo_0/obs/robot0_eef_pos");
}
static void first_without_camera(hid_t file) {
  remove_object(file, "/data/demo_0/obs/front_image");
}
static void numeric_env_args(hid_t file) {
  put_integer_attribute(file, "/data", "env_args", 3);
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
static void corrupt_deflate(hid_t file) {
  put_raw_frame(file, 2, "this is not deflate", 19);
}
static void short_chunk(hid_t file) {
  /* Three zero bytes, compressed by zlib. */
  static const uint8_t three[] = {0x78, 0x9c, 0x63, 0x60, 0x60, 0x00, 0x00, 0x00, 0x03, 0x00, 0x01};
  put_raw_frame(file, 5, three, sizeof three);
}
/* Writes a data set of compressed chunks of two rows, and then its first chunk again: `size` raw bytes, marked as
 * stored without compression. With `checksum` the chunk is still said to be compressed and to end with a checksum. */
static void put_raw_rows(hid_t file, const char *path, hid_t type, int rank, const hsize_t *shape, bool checksum,
                         size_t size) {
  static const double zeros[6 * DEMO_FRAME];
  hsize_t chunk[4], start[4] = {0};
  remove_object(file, path);
  memcpy(chunk, shape, (size_t)rank * sizeof *chunk);
  chunk[0] = 2;
  hid_t properties = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(rank, shape, NULL);
  H5Pset_chunk(properties, rank, chunk);
  H5Pset_deflate(properties, 4);
  if (checksum) H5Pset_fletcher32(properties);
  hid_t set = H5Dcreate2(file, path, type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  assert_true(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, zeros) >= 0);
  assert_true(H5Dwrite_chunk(set, H5P_DEFAULT, checksum ? 0 : 1, start, size, zeros) >= 0);
  H5Dclose(set);
  H5Sclose(space);
  H5Pclose(properties);
}
static void short_rows(hid_t file) {
  put_raw_rows(file, ACTIONS, H5T_NATIVE_DOUBLE, 2, (hsize_t[]){6, 7}, false, 2 * 7 * sizeof(double) - 1);
}
static void whole_rows(hid_t file) {
  put_raw_rows(file, ACTIONS, H5T_NATIVE_DOUBLE, 2, (hsize_t[]){6, 7}, false, 2 * 7 * sizeof(double));
}
static void rows_without_checksum(hid_t file) {
  put_raw_rows(file, POSITION, H5T_NATIVE_FLOAT, 2, (hsize_t[]){6, 3}, true, 3);
}
static void short_images_of_two(hid_t file) {
  put_raw_rows(file, IMAGE, H5T_NATIVE_UINT8, 4, (hsize_t[]){6, DEMO_HEIGHT, DEMO_WIDTH, 3}, false, 100);
}
static void images_of_two(hid_t file) {
  put_raw_rows(file, IMAGE, H5T_NATIVE_UINT8, 4, (hsize_t[]){6, DEMO_HEIGHT, DEMO_WIDTH, 3}, false, 2 * DEMO_FRAME);
}
static void no_camera(hid_t file) {
  remove_object(file, IMAGE);
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
    {"an episode of another name",
     other_name,
     STATS,
     2,
     "/data/episode_1",
     {"holds actions", "demo_ and a number"},
     NULL},
    {"other names beside episodes", names_beside_episodes, STATS, 0, NULL, {NULL}, ""},
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
    {"an infinite state",
     infinite_state,
     INSPECT,
     2,
     "demo_1",
     {"robot0_eef_pos, step 5, dimension 1", "infinite, or beyond"},
     "demo_1"},
    {"integer actions", integer_actions, STATS, 2, ACTIONS, {"i32 (6, 7)", "floating-point"}, "demo_1"},
    {"flat actions", flat_actions, STATS, 2, ACTIONS, {"f64 (6)", "(steps, dimensions)"}, "demo_1"},
    {"narrow actions", narrow_actions, STATS, 2, "demo_1", {"6 dimensions", "7"}, "demo_1"},
    {"actions in nine dimensions", deep_actions, STATS, 2, ACTIONS, {"has 9 dimensions", "at most 8"}, "demo_1"},
    {"compound actions",
     compound_actions,
     STATS,
     2,
     ACTIONS,
     {"is a compound or other type (6, 7)", "floating-point"},
     "demo_1"},
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
    {"vast actions", vast_actions, STATS, 2, ACTIONS, {"1099511627776 rows of 7 numbers"}, "demo_1"},
    {"vaster actions", vaster_actions, INSPECT, 2, ACTIONS, {"4611686018427387904 rows of 7"}, "demo_1"},
    {"actions written in part", half_written_actions, STATS, 2, ACTIONS, {"only 1 of its 2 chunks"}, "demo_1"},
    {"a state written in part", half_written_state, INSPECT, 2, POSITION, {"only 1 of its 2 chunks"}, "demo_1"},
    {"images written in part", half_written_images, INSPECT, 2, IMAGE, {"only 1 of its 3 chunks"}, "demo_1"},
    {"a state that others have", no_position, INSPECT, 2, "demo_1", {"robot0_eef_pos", "missing"}, "demo_1"},
    {"a narrow state", narrow_gripper, INSPECT, 2, "demo_1", {"gripper_qpos has 1 dimensions", "2"}, "demo_1"},
    {"a narrow state", narrow_gripper, STATS, 2, "demo_1", {"gripper_qpos has 1 dimensions", "2"}, "demo_1"},
    {"no state in the first", first_without_position, STATS, 2, "demo_1", {"eef_pos", "first", "demo_0"}, "demo_0"},
    {"no camera in the first", first_without_camera, INSPECT, 0, NULL, {NULL}, "demo_0"},
    {"a number as env_args", numeric_env_args, INSPECT, 0, NULL, {NULL}, ""},
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
    {"a camera that others have", no_camera, STATS, 0, NULL, {NULL}, "demo_1"},
    {"a chunk that is too short", short_chunk, STATS, 0, NULL, {NULL}, "demo_1"},
    {"rows that are too short", short_rows, STATS, 2, ACTIONS, {"row 0", "111 bytes", "112 at least"}, "demo_1"},
    {"rows as they are", whole_rows, STATS, 0, NULL, {NULL}, ""},
    {"rows without a checksum", rows_without_checksum, INSPECT, 2, POSITION, {"3 bytes", "5 at least"}, "demo_1"},
    {"frames that are too short", short_images_of_two, STATS, 0, NULL, {NULL}, "demo_1"},
};

/* Runs the command and checks its exit code; on 2 it must print one line that names the file, the object and what is
 * wrong, and nothing to standard output. */
static void check_command(const damage *d, const char *path) {
  char arguments[512], *out, *errors;
  snprintf(arguments, sizeof arguments, d->command, path);
  int code = run_data(arguments, &out, &errors);
  if (code != d->code) fail_msg("%s: exit code %d, not %d: %s", d->name, code, d->code, errors);
  if (code == 2) {
    assert_string_equal(out, "");
    if (!strstr(errors, "small.hdf5") || !strstr(errors, d->object))
      fail_msg("%s: does not name the file and the object: %s", d->name, errors);
    assert_ptr_equal(strchr(errors, '\n'), errors + strlen(errors) - 1);
  }
  for (size_t i = 0; i < 3 && d->says[i]; i++) {
    if (!strstr(errors, d->says[i])) fail_msg("%s: does not say \"%s\": %s", d->name, d->says[i], errors);
  }
  free(out);
  free(errors);
}

static void check_validate(const damage *d, const char *path) {
  char arguments[512];
  snprintf(arguments, sizeof arguments, "validate '%s' --json", path);
  bool readable = d->episode != NULL, bad = readable && *d->episode;
  json_t *found = data_json(!readable ? 2 : bad ? 1 : 0, arguments);
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
  const char *path = in_folder(*state, "small.hdf5");
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

static void put_observation(hid_t file, int demo, const char *name, hid_t type, const hsize_t frame[3]) {
  char path[64];
  snprintf(path, sizeof path, "/data/demo_%d/obs/%s", demo, name);
  hid_t space = H5Screate_simple(4, (hsize_t[]){(hsize_t)demo_frames(demo), frame[0], frame[1], frame[2]}, NULL);
  hid_t set = H5Dcreate2(file, path, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(set >= 0);
  H5Dclose(set);
  H5Sclose(space);
}

/* obs/top may be meant as a camera or not. If its frames look like pictures of a wrong type or shape, inspect prints a
 * warning with the right one, once for all episodes, and refuses nothing. */
static void what_could_be_pictures_is_told(void **state) {
  static const struct {
    bool real;
    hsize_t frame[3];
    const char *says; /* NULL: no warning */
  } cases[] = {
      {true, {DEMO_HEIGHT, DEMO_WIDTH, 3}, "demo_0: obs/top is no camera: a frame is f32 (8, 10, 3), "},
      {false, {3, DEMO_HEIGHT, DEMO_WIDTH}, "demo_0: obs/top is no camera: a frame is u8 (3, 8, 10), "},
      {false, {DEMO_HEIGHT, DEMO_WIDTH, 4}, "demo_0: obs/top is no camera: a frame is u8 (8, 10, 4), "},
      {true, {DEMO_HEIGHT, DEMO_WIDTH, 1}, NULL}, /* depth */
  };
  const char *path = in_folder(*state, "small.hdf5");
  char arguments[512], *out, *errors;
  snprintf(arguments, sizeof arguments, "inspect '%s' --json", path);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    write_demo_file(path);
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(file >= 0);
    hid_t type = cases[i].real ? H5T_NATIVE_FLOAT : H5T_NATIVE_UINT8;
    for (int demo = 0; demo < 2; demo++) put_observation(file, demo, "top", type, cases[i].frame);
    H5Fclose(file);
    int code = run_data(arguments, &out, &errors);
    const char *said = strstr(out, cases[i].says ? cases[i].says : "no camera");
    bool once = !said || strstr(said, "u8 (height, width, 3) (and 1 more episode)");
    if (code != 0 || !said != !cases[i].says || !once) fail_msg("case %zu ended with %d: %s%s", i, code, out, errors);
    free(out);
    free(errors);
  }
}

/* For files that are no HDF5 at all: every command must end with 2 and say what the file is. */
static void check_foreign(const char *path, const void *content, size_t size, const char *says) {
  char arguments[512], *out, *errors;
  assert_ok(hv_write_file_atomic(path, content, size));
  static const char *const commands[] = {"stats", "inspect --json", "validate"};
  for (size_t i = 0; i < 3; i++) {
    snprintf(arguments, sizeof arguments, "%s '%s'", commands[i], path);
    int code = run_data(arguments, &out, &errors);
    if (code != 2 || !strstr(errors, path) || !strstr(errors, says)) fail_msg("%s: %d: %s", says, code, errors);
    free(out);
    free(errors);
  }
}

static void foreign_files_are_refused(void **state) {
  const char *path = in_folder(*state, "foreign.hdf5");
  static const char pointer[] = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 8047007\n";
  static const char page[] = "<!DOCTYPE html><html><body>Not found</body></html>";
  static const char text[] = "hello";
  check_foreign(path, "", 0, "is empty");
  check_foreign(path, pointer, sizeof pointer - 1, "Git LFS pointer");
  check_foreign(path, page, sizeof page - 1, "web page");
  check_foreign(path, text, sizeof text - 1, "not an HDF5 file");
  hv_mapping lift;
  assert_ok(hv_map_file(HVLA_SOURCE_DIR "/data/demos/lift.hdf5", &lift));
  check_foreign(path, lift.data, lift.size / 2, "truncated");
  check_foreign(path, lift.data, lift.size - 1, "truncated");
  check_foreign(path, lift.data, 600, "truncated");
  hv_unmap(&lift);
  char *out, *errors;
  assert_int_equal(run_data("inspect /nonexistent/x.hdf5", &out, &errors), 2);
  assert_non_null(strstr(errors, "/nonexistent/x.hdf5: No such file"));
  free(out);
  free(errors);
}

/* Runs "validate". On random damage the HDF5 library itself asks for huge amounts of memory, reads out of bounds and
 * leaks: these known faults of it are switched off in AddressSanitizer. Anything else that the sanitizer finds ends
 * with code 99, which no answer of hvla-data has. */
static int validate_damaged(const char *path, char **out, char **errors) {
  return run_shell(out, errors,
                   "ASAN_OPTIONS=\"$ASAN_OPTIONS:exitcode=99:allocator_may_return_null=1:detect_leaks=0:"
                   "suppressions=" HVLA_SOURCE_DIR "/tests/address_sanitizer.supp\" '" HVLA_BINARY_DIR
                   "/data/hvla-data' validate '%s'",
                   path);
}

/* Bytes of a sound file are changed at random places: any answer is right, but no crash and no hang. */
static void random_damage_never_crashes(void **state) {
  char *sound_bytes, *out, *errors;
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  size_t size;
  assert_ok(hv_read_text(path, 1 << 24, &sound_bytes, &size));
  char *bytes = malloc(size);
  assert_non_null(bytes);
  uint32_t random = 12345;
  int refused = 0;
  for (int round = 0; round < 60; round++) {
    memcpy(bytes, sound_bytes, size);
    for (int i = 0; i < 8; i++) {
      random = random * 1664525u + 1013904223u;
      bytes[(random >> 8) % (round % 2 ? size : 4096)] = (char)(random >> 3);
    }
    assert_ok(hv_write_file_atomic(path, bytes, size));
    int code = validate_damaged(path, &out, &errors);
    if (code < 0 || code > 2) fail_msg("round %d: exit code %d: %s", round, code, errors);
    refused += code > 0;
    free(out);
    free(errors);
  }
  assert_true(refused > 10);
  free(bytes);
  free(sound_bytes);
}

static void every_bad_episode_is_listed(void **state) {
  char arguments[512];
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  nan_action(file);
  put_integer_attribute(file, "/data/demo_2", "num_samples", 100);
  H5Fclose(file);
  snprintf(arguments, sizeof arguments, "validate --json " LIFT " '%s'", path);
  json_t *found = data_json(1, arguments);
  const json_t *episodes = json_object_get(found, "bad_episodes");
  assert_int_equal(json_array_size(episodes), 2);
  assert_string_equal(json_string_value(json_object_get(json_array_get(episodes, 1), "episode")), "demo_2");
  json_decref(found);
}

/* A split that names an episode which does not exist is a problem, but no episode is bad. */
static void a_bad_split_is_no_bad_episode(void **state) {
  char arguments[512], *out, *errors;
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  mask_of_absent(file);
  H5Fclose(file);
  snprintf(arguments, sizeof arguments, "validate '%s'", path);
  assert_int_equal(run_data(arguments, &out, &errors), 1);
  if (!strstr(errors, "hvla-data: 1 problem found")) fail_msg("a bad split: %s", errors);
  free(out);
  free(errors);
}

/* Only the first episode lacks the camera; the others have it, so the file counts as having it. */
static void the_first_episode_is_one_of_many(void **state) {
  const char *path = in_folder(*state, "small.hdf5"), *picture = in_folder(*state, "small.png");
  char arguments[512];
  write_demo_file(path);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  first_without_camera(file);
  images_of_two(file);
  numeric_env_args(file);
  H5Fclose(file);
  snprintf(arguments, sizeof arguments, "inspect '%s' --json --picture '%s'", path, picture);
  json_t *found = data_json(0, arguments);
  const json_t *camera = json_array_get(json_object_get(found, "cameras"), 0);
  assert_string_equal(json_string_value(json_object_get(camera, "name")), "front_image");
  char *warnings = json_dumps(json_object_get(found, "warnings"), 0);
  assert_non_null(strstr(warnings, "demo_0: camera front_image is missing\""));
  assert_non_null(strstr(warnings, "chunks of 2 frames: to read one frame, all frames of its episode are read"));
  assert_non_null(strstr(warnings, "env_args"));
  assert_null(strstr(warnings, "cannot train"));
  assert_true(hv_file_exists(picture));
  free(warnings);
  json_decref(found);
}

/* Names of files and cameras with bytes that JSON cannot hold. */
static void names_of_any_bytes_are_told(void **state) {
  const char *path = in_folder(*state, "bad\xff.hdf5");
  char arguments[512], *out, *errors;
  write_demo_file(path);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  nan_action(file);
  H5Fclose(file);
  snprintf(arguments, sizeof arguments, "validate '%s' --json", path);
  json_t *found = data_json(1, arguments);
  const json_t *entry = json_array_get(json_object_get(found, "bad_episodes"), 0);
  assert_string_equal(json_string_value(json_object_get(entry, "episode")), "demo_1");
  assert_non_null(strstr(json_string_value(json_object_get(entry, "file")), "/bad\xef\xbf\xbd.hdf5"));
  json_decref(found);
  snprintf(arguments, sizeof arguments, "stats --split train '%s'", path);
  assert_int_equal(run_data(arguments, &out, &errors), 2);
  assert_non_null(strstr(errors, "not valid UTF-8"));
  free(out);
  free(errors);
  write_demo_file(path);
  file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  H5Lcreate_hard(file, "/data/demo_0/obs/front_image", file, "/data/demo_0/obs/\xff_image", H5P_DEFAULT, H5P_DEFAULT);
  H5Fclose(file);
  snprintf(arguments, sizeof arguments, "inspect '%s' --json", path);
  found = data_json(0, arguments);
  entry = json_array_get(json_object_get(found, "cameras"), 1);
  assert_string_equal(json_string_value(json_object_get(entry, "name")), "\xef\xbf\xbd_image");
  json_decref(found);
}

/* By mistake, the path of the demonstrations is given where the picture is to be written. */
static void a_picture_replaces_no_demonstrations(void **state) {
  const char *path = in_folder(*state, "small.hdf5"), *picture = in_folder(*state, "small.png");
  write_demo_file(path);
  const char *pipe = in_folder(*state, "pipe");
  assert_int_equal(mkfifo(pipe, 0666), 0);
  char commands[3][512], *out, *errors;
  snprintf(commands[0], sizeof commands[0], "inspect '%s' --picture '%s'", path, path);
  snprintf(commands[1], sizeof commands[1], "frame '%s' --episode demo_0 --camera front_image --out '%s'", path, path);
  snprintf(commands[2], sizeof commands[2], "inspect '%s' --picture '%s'", path, pipe);
  for (size_t i = 0; i < 3; i++) {
    int code = run_data(commands[i], &out, &errors);
    if (code != 2 || !strstr(errors, i < 2 ? "is not a PNG" : "not a regular file"))
      fail_msg("%s: %d: %s", commands[i], code, errors);
    free(out);
    free(errors);
  }
  snprintf(commands[0], sizeof commands[0], "inspect '%s' --picture '%s'", path, picture);
  for (int i = 0; i < 2; i++) {
    assert_int_equal(run_data(commands[0], &out, &errors), 0);
    free(out);
    free(errors);
  }
}

/* The file is opened twice, by hvla-data and by HDF5. The limit on descriptors is raised one by one, so that each
 * opening fails once. With too few, the loader cannot even load the program, which is no answer of it. */
static void too_few_descriptors_are_told_as_such(void **state) {
  (void)state;
  for (int limit = 3, code = 2; code != 0; limit++) {
    char *out, *errors;
    code = run_shell(&out, &errors, "ulimit -n %d; exec '%s' inspect " LIFT, limit, HVLA_BINARY_DIR "/data/hvla-data");
    bool told = strstr(errors, "Too many open files") && !strstr(errors, "errno");
    bool loaded = !strstr(errors, "shared librar");
    if (loaded && code != 0 && !told) fail_msg("%d descriptors: ended with %d: %s", limit, code, errors);
    assert_true(limit < 32);
    free(out);
    free(errors);
  }
}

int main(void) {
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(damaged_files_are_told_apart, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(what_could_be_pictures_is_told, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(foreign_files_are_refused, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(random_damage_never_crashes, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(every_bad_episode_is_listed, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_bad_split_is_no_bad_episode, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_first_episode_is_one_of_many, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(names_of_any_bytes_are_told, make_folder, remove_folder),
      cmocka_unit_test(too_few_descriptors_are_told_as_such),
      cmocka_unit_test_setup_teardown(a_picture_replaces_no_demonstrations, make_folder, remove_folder),
  };
  return cmocka_run_group_tests_name("damaged files", tests, NULL, NULL);
}
