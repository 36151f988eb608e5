/* Demonstrations as training opens them, in the shipped file and in small ones: natural order of episodes, splits,
 * state, instructions, grippers, and what is refused. */
#include "data/demonstrations.h"
#include "data/statistics.h"
#include "tests/check.h"
#include "tests/data/demo_file.h"

static const char *const lift[] = {HVLA_SOURCE_DIR "/data/demos/lift.hdf5"};
static const char *const cameras[] = {"robot0_eye_in_hand_image", "agentview_image"};

static hv_demonstrations_options lift_options(void) {
  return (hv_demonstrations_options){.files = lift,
                                     .num_files = 1,
                                     .cameras = cameras,
                                     .num_cameras = 2,
                                     .default_state = true,
                                     .instruction = "lift the cube",
                                     .action_dim = -1,
                                     .state_dim = -1};
}

static hv_demonstrations *open_all(const hv_demonstrations_options *options) {
  hv_demonstrations *d;
  assert_ok(hv_demonstrations_open(options, &d));
  return d;
}

static void opens_the_shipped_file(void **state) {
  (void)state;
  hv_demonstrations_options options = lift_options();
  hv_demonstrations *d = open_all(&options);
  assert_int_equal(hv_demonstrations_frames(d), 523);
  assert_int_equal(hv_demonstrations_episodes(d), 12);
  assert_int_equal(hv_demonstrations_action_dim(d), 7);
  assert_int_equal(hv_demonstrations_state_dim(d), 9);
  assert_int_equal(hv_demonstrations_instructions(d), 1);
  assert_string_equal(hv_demonstrations_instruction(d, 0), "lift the cube");
  int64_t first = 0;
  for (int64_t i = 0; i < 12; i++) {
    const hv_episode *episode = hv_demonstrations_episode(d, i);
    char name[16];
    snprintf(name, sizeof name, "demo_%d", (int)i);
    assert_string_equal(episode->name, name);
    assert_int_equal(episode->first, first);
    assert_int_equal(episode->cameras[0]->count, episode->frames);
    assert_ptr_equal(hv_demonstrations_episode_of(d, first), episode);
    assert_ptr_equal(hv_demonstrations_episode_of(d, first + episode->frames - 1), episode);
    first += episode->frames;
  }
  const float *actions = hv_demonstrations_actions(d);
  for (int64_t i = 0; i < 523; i++) assert_true(actions[i * 7 + 6] == -1.0f || actions[i * 7 + 6] == 1.0f);
  hv_demonstrations_close(d);
}

static long number_of(const hv_episode *episode) {
  return strtol(episode->name + strlen("demo_"), NULL, 10);
}

static void splits_keep_natural_order(void **state) {
  (void)state;
  hv_demonstrations_options options = lift_options();
  options.split = "train";
  hv_demonstrations *train = open_all(&options);
  options.split = "valid";
  hv_demonstrations *valid = open_all(&options);
  assert_int_equal(hv_demonstrations_episodes(train), 10);
  assert_int_equal(hv_demonstrations_episodes(valid), 2);
  assert_int_equal(hv_demonstrations_frames(train) + hv_demonstrations_frames(valid), 523);
  for (int64_t i = 1; i < 10; i++) {
    assert_true(number_of(hv_demonstrations_episode(train, i - 1)) < number_of(hv_demonstrations_episode(train, i)));
  }
  hv_demonstrations_close(train);
  hv_demonstrations_close(valid);
}

/* The columns of the state are those of the keys, in the order in which they are asked for. */
static void state_is_concatenated(void **state) {
  (void)state;
  static const char *const keys[] = {"robot0_gripper_qpos", "robot0_eef_pos"};
  hv_demonstrations_options options = lift_options();
  hv_demonstrations *whole = open_all(&options);
  options.default_state = false;
  options.state_keys = keys;
  options.num_state_keys = 2;
  hv_demonstrations *chosen = open_all(&options);
  assert_int_equal(hv_demonstrations_state_dim(chosen), 5);
  const float *a = hv_demonstrations_state(whole), *b = hv_demonstrations_state(chosen);
  for (int64_t i = 0; i < 523; i++) {
    assert_memory_equal(b + i * 5, a + i * 9 + 7, 2 * sizeof *a);
    assert_memory_equal(b + i * 5 + 2, a + i * 9, 3 * sizeof *a);
  }
  options.num_state_keys = 0;
  hv_demonstrations_close(chosen);
  chosen = open_all(&options);
  assert_int_equal(hv_demonstrations_state_dim(chosen), 0);
  assert_null(hv_demonstrations_state(chosen));
  hv_demonstrations_close(chosen);
  hv_demonstrations_close(whole);
}

static void instructions_come_from_file_or_configuration(void **state) {
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  put_text_attribute(file, "/data/demo_1", "ep_meta", "{\"lang\": \" \"}");
  H5Fclose(file);
  const char *const paths[] = {path, lift[0]};
  hv_demonstrations_options options = {
      .files = paths, .num_files = 1, .need_instruction = true, .action_dim = 7, .state_dim = -1};

  hv_demonstrations *d = NULL;
  hv_status status = hv_demonstrations_open(&options, &d);
  assert_non_null(status);
  assert_null(d);
  assert_non_null(strstr(hv_status_message(status), "demo_1: has no instruction"));
  assert_int_equal(hv_status_exit_code(status), 2);
  hv_status_free(status);

  options.instruction = "lift the cube";
  options.num_files = 2;
  d = open_all(&options);
  assert_int_equal(hv_demonstrations_instructions(d), 2);
  assert_string_equal(hv_demonstrations_instruction(d, 0), "Pick up the cube");
  assert_string_equal(hv_demonstrations_instruction(d, 1), "lift the cube");
  assert_int_equal(hv_demonstrations_episode(d, 1)->instruction, 1);
  assert_int_equal(hv_demonstrations_episode(d, 14)->instruction, 1);
  assert_int_equal(hv_demonstrations_frames(d), 18 + 523);
  hv_demonstrations_close(d);

  options.override_instruction = true;
  d = open_all(&options);
  assert_int_equal(hv_demonstrations_instructions(d), 1);
  hv_demonstrations_close(d);
}

/* With two arms, columns 6 and 13 are grippers if they hold 0 and 1 and nothing else, in whatever order the columns are
 * chosen. Other columns of 0 and 1 are no grippers, and neither is one that is always open. */
static void grippers_are_columns_of_the_file(void **state) {
  enum { COLUMNS = 14, MOST = 8, CHOSEN = 3 };
  static const int32_t chosen[CHOSEN] = {13, 5, 6};
  const char *path = in_folder(*state, "small.hdf5");
  for (int always_open = 0; always_open < 2; always_open++) {
    write_demo_file(path);
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    for (int demo = 0; demo < DEMO_COUNT; demo++) {
      double values[MOST * COLUMNS];
      for (int64_t i = 0; i < demo_frames(demo) * COLUMNS; i++) {
        int64_t column = i % COLUMNS, step = i / COLUMNS;
        bool binary = column == 5 || column == 6 || column == 13;
        values[i] = binary ? (double)(step % 2) : 0.1 * (double)(i + demo);
        if (always_open && column == 6) values[i] = 1;
      }
      char name[64];
      snprintf(name, sizeof name, "/data/demo_%d/actions", demo);
      remove_object(file, name);
      put_f64(file, name, 2, (hsize_t[]){(hsize_t)demo_frames(demo), COLUMNS}, values);
    }
    H5Fclose(file);
    hv_demonstrations_options options = {.files = &path, .num_files = 1, .action_dim = -1, .state_dim = -1};
    for (int all = 0; all < 2; all++) {
      options.action_columns = all ? NULL : chosen;
      options.num_action_columns = all ? 0 : CHOSEN;
      hv_demonstrations *d = open_all(&options);
      hv_dataset_statistics statistics;
      assert_ok(hv_statistics_compute(d, "small", NULL, -1, &statistics));
      int32_t dims = all ? COLUMNS : CHOSEN;
      assert_int_equal(statistics.action.dims, dims);
      for (int32_t dim = 0; dim < dims; dim++) {
        int32_t column = all ? dim : chosen[dim];
        assert_int_equal(!statistics.action.mask[dim], column == 13 || (column == 6 && !always_open));
      }
      hv_dataset_statistics_free(&statistics);
      hv_demonstrations_close(d);
    }
  }
}

/* Replaces /mask/train by names that are stored in the given type of string. */
static void put_mask(const char *path, hid_t type, const void *names, hsize_t count) {
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  remove_object(file, "/mask/train");
  hid_t space = H5Screate_simple(1, &count, NULL);
  hid_t set = H5Dcreate2(file, "/mask/train", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(set >= 0 && H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, names) >= 0);
  H5Dclose(set);
  H5Sclose(space);
  H5Tclose(type);
  assert_true(H5Fclose(file) >= 0);
}

static void expect_train_episodes(const char *path, int64_t count) {
  hv_demonstrations_options options = {
      .files = &path, .num_files = 1, .split = "train", .action_dim = -1, .state_dim = -1};
  hv_demonstrations *d = open_all(&options);
  assert_int_equal(hv_demonstrations_episodes(d), count);
  assert_string_equal(hv_demonstrations_episode(d, 0)->name, "demo_1");
  assert_string_equal(hv_demonstrations_instruction(d, 0), "Pick up the cube");
  hv_demonstrations_close(d);
}

/* The mask names an episode that does not exist; the error must show the name as it is stored. */
static void expect_stranger(const char *path, const char *name) {
  char told[32];
  hid_t type = H5Tcopy(H5T_C_S1);
  hv_demonstrations *d;
  hv_demonstrations_options options = {
      .files = &path, .num_files = 1, .split = "train", .action_dim = -1, .state_dim = -1};
  H5Tset_size(type, H5T_VARIABLE);
  put_mask(path, type, &name, 1);
  snprintf(told, sizeof told, "\"%s\"", name);
  assert_error(hv_demonstrations_open(&options, &d), "/mask/train", told);
}

static void strings_of_any_kind_are_read(void **state) {
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, H5T_VARIABLE);
  put_mask(path, type, (const char *const[]){"demo_2", "demo_1"}, 2);
  expect_train_episodes(path, 2);
  type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, 8);
  H5Tset_strpad(type, H5T_STR_SPACEPAD);
  put_mask(path, type, "demo_1  ", 1);
  expect_train_episodes(path, 1);
  type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, 6); /* no room for a NUL at the end */
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  put_mask(path, type, "demo_2demo_1", 2);
  expect_train_episodes(path, 2);
  expect_stranger(path, "");
  expect_stranger(path, "d");
}

/* One byte of the HDF5 heap that holds the instructions is changed: in a size, the signature, an index, or an object's
 * length. */
static void damaged_heaps_are_refused(void **state) {
  static const struct {
    size_t at;
    char value;
  } damages[] = {{0, 'X'}, {15, 0x70}, {9, 0}, {16, 99}, {31, 0x7f}, {24, 3}};
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  size_t size;
  char *bytes;
  assert_ok(hv_read_text(path, 1 << 24, &bytes, &size));
  char *heap = memmem(bytes, size, "GCOL", 4);
  assert_non_null(heap);
  for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
    char saved = heap[damages[i].at];
    heap[damages[i].at] = damages[i].value;
    assert_ok(hv_write_file_atomic(path, bytes, size));
    heap[damages[i].at] = saved;
    hv_demonstrations_options options = {.files = &path, .num_files = 1, .action_dim = -1, .state_dim = -1};
    hv_demonstrations *d;
    assert_error(hv_demonstrations_open(&options, &d), "/data/demo_0: attribute ep_meta");
  }
  free(bytes);
}

static void chooses_among_the_columns_of_actions(void **state) {
  (void)state;
  static const int32_t columns[] = {6, 0, 2};
  hv_demonstrations_options options = lift_options();
  hv_demonstrations *all = open_all(&options);
  options.action_columns = columns;
  options.num_action_columns = 3;
  options.action_dim = 3;
  hv_demonstrations *some = open_all(&options);
  assert_int_equal(hv_demonstrations_action_dim(some), 3);
  const float *from = hv_demonstrations_actions(all), *chosen = hv_demonstrations_actions(some);
  for (int32_t dim = 0; dim < 3; dim++) {
    assert_int_equal(hv_demonstrations_action_column(all, dim), dim);
    assert_int_equal(hv_demonstrations_action_column(some, dim), columns[dim]);
    for (int64_t t = 0; t < 523; t++) assert_true(chosen[t * 3 + dim] == from[t * 7 + columns[dim]]);
  }
  hv_demonstrations_close(all);
  hv_demonstrations_close(some);
}

static void expect_refusal(const hv_demonstrations_options *options, const char *first, const char *second) {
  hv_demonstrations *d;
  hv_status status = hv_demonstrations_open(options, &d);
  assert_non_null(status);
  const char *message = hv_status_message(status);
  if (!strstr(message, "lift.hdf5") || !strstr(message, first) || !strstr(message, second)) {
    fail_msg("no \"%s\" or \"%s\": %s", first, second, message);
  }
  assert_int_equal(hv_status_exit_code(status), 2);
  hv_status_free(status);
}

static void what_does_not_fit_is_refused(void **state) {
  (void)state;
  static const char *const misnamed[] = {"agentview_imag"}, *const numeric[] = {"robot0_eef_pos"};
  hv_demonstrations_options options = lift_options();
  options.num_cameras = 1;
  options.cameras = misnamed;
  expect_refusal(&options, "no camera \"agentview_imag\"; present: agentview_image, robot0_eye_in_hand_image",
                 "did you mean agentview_image?");
  options.cameras = numeric;
  expect_refusal(&options, "/data/demo_0/obs/robot0_eef_pos: is f64 (43, 3)", "u8 (frames, height, width, 3)");
  options = lift_options();
  options.action_dim = 14;
  expect_refusal(&options, "actions have 7 dimensions", "14 are expected (the model's action_dim)");
  options = lift_options();
  options.action_columns = (const int32_t[]){0, 7};
  options.num_action_columns = 2;
  expect_refusal(&options, "demo_0: dimension 7 of its actions is asked for", "0 to 6");
  options = lift_options();
  options.state_dim = 7;
  expect_refusal(&options, "robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos) have 9 numbers", "state_dim is 7");
  options = lift_options();
  options.split = "test";
  expect_refusal(&options, "/mask/test", "present: train, valid");
}

int main(void) {
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(opens_the_shipped_file),
      cmocka_unit_test(splits_keep_natural_order),
      cmocka_unit_test(state_is_concatenated),
      cmocka_unit_test_setup_teardown(instructions_come_from_file_or_configuration, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(grippers_are_columns_of_the_file, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(strings_of_any_kind_are_read, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(damaged_heaps_are_refused, make_folder, remove_folder),
      cmocka_unit_test(chooses_among_the_columns_of_actions),
      cmocka_unit_test(what_does_not_fit_is_refused),
  };
  return cmocka_run_group_tests_name("demonstrations", tests, NULL, NULL);
}
