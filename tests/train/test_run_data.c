/* The data side of a run: each micro-batch carries the loss divisors of the whole batch that it is part of, and ranks
 * must agree on demonstrations and settings. */
#include "train/run/run_data.h"

#include <hdf5.h>

#include "core/base/file.h"
#include "tests/check.h"
#include "tests/train/program.h"
#include "train/run/run_agreement.h"
#include "train/run/run_digest.h"

enum { MICRO_BATCH = 2, MOST_RANKS = 2, STEPS = 12 };

/* One rank's part of a run. */
typedef struct part {
  hv_run_data data;
  hv_loader *loader;
  hv_loader_source source;
} part;

static void open_part(const hv_train_config *config, const hv_config *model, int32_t rank, int32_t ranks, part *out) {
  assert_ok(hv_run_data_open(config, model, rank, ranks, &out->data));
  assert_ok(hv_run_data_open_training(&out->data, 0, &out->loader));
  out->source = hv_loader_source_make(out->loader, model, (int32_t)config->train.branches);
}

/* Takes all micro-batches of one batch from all ranks, counts what they hold, and compares that with their divisors. */
static void check_batch(const hv_config *model, int32_t branches, part *parts, int32_t ranks, int32_t micro_batches) {
  double told[2] = {0}, counted[2] = {0};
  for (int32_t i = 0; i < ranks * micro_batches; i++) {
    hv_batch_source *source = &parts[i / micro_batches].source.source;
    const hv_batch *batch;
    double diffusion, labels;
    assert_ok(source->next(source, &batch));
    hv_batch_count(model, batch, branches, &diffusion, &labels);
    counted[0] += diffusion;
    counted[1] += labels;
    if (i > 0) assert_true(batch->diffusion_divisor == told[0] && batch->label_divisor == told[1]);
    told[0] = batch->diffusion_divisor;
    told[1] = batch->label_divisor;
    source->release(source, batch);
  }
  if (model->objective != HV_AUTOREGRESSIVE) assert_true(told[0] == counted[0]);
  if (model->objective != HV_DIFFUSION) assert_true(told[1] == counted[1]);
}

static void divisors_are_of_the_whole_batch(void **state) {
  static const char *const objectives[] = {"model.objective=hybrid", "model.objective=diffusion",
                                           "model.objective=autoregressive"};
  const char *path = write_tiny_config(*state, "unset");
  for (int i = 0; i < 3; i++) {
    for (int32_t ranks = 1; ranks <= MOST_RANKS; ranks++) {
      const char *const sets[] = {objectives[i], "model.action_chunk=5", "train.batch_size=8", "train.micro_batch=2"};
      hv_train_config config;
      hv_model_config model;
      hv_model_directory directory;
      part parts[MOST_RANKS];
      assert_ok(hv_train_config_load(path, sets, sizeof sets / sizeof sets[0], &config));
      assert_ok(hv_train_config_model(&config, &model, &directory));
      for (int32_t r = 0; r < ranks; r++) open_part(&config, &model.config, r, ranks, &parts[r]);
      for (int step = 0; step < STEPS; step++) {
        check_batch(&model.config, (int32_t)config.train.branches, parts, ranks, 8 / ranks / MICRO_BATCH);
      }
      for (int32_t r = 0; r < ranks; r++) {
        hv_loader_close(parts[r].loader);
        hv_run_data_close(&parts[r].data);
      }
      hv_model_directory_close(&directory);
      hv_model_config_free(&model);
      hv_train_config_free(&config);
    }
  }
}

/* Past an episode's end, the dimensions in data.absolute_dims keep their last value. */
static void absolute_dimensions_hold_past_the_end(void **state) {
  enum { ABSOLUTE = 1, ENDS = 5, MOST_BATCHES = 500 };
  static const char *const sets[] = {"model.action_chunk=5", "data.absolute_dims=[1]"};
  hv_train_config config;
  hv_model_config model;
  hv_model_directory directory;
  part one;
  assert_ok(hv_train_config_load(write_tiny_config(*state, "unset"), sets, sizeof sets / sizeof sets[0], &config));
  assert_ok(hv_train_config_model(&config, &model, &directory));
  open_part(&config, &model.config, 0, 1, &one);
  hv_batch_source *source = &one.source.source;
  int32_t chunk = model.config.action_chunk, dims = model.config.action_dim;
  for (int ends = 0, batches = 0; ends < ENDS; batches++) {
    const hv_batch *batch;
    assert_true(batches < MOST_BATCHES);
    assert_ok(source->next(source, &batch));
    for (int32_t i = 0; i < batch->samples * chunk; i++) {
      if (batch->action_mask[i]) continue; /* a masked step, which is never the first of a chunk */
      const float *actions = batch->actions + (ptrdiff_t)i * dims;
      assert_true(actions[ABSOLUTE] == actions[ABSOLUTE - dims]);
      ends += batch->action_mask[i - 1];
    }
    source->release(source, batch);
  }
  hv_loader_close(one.loader);
  hv_run_data_close(&one.data);
  hv_model_directory_close(&directory);
  hv_model_config_free(&model);
  hv_train_config_free(&config);
}

/* A communicator for two ranks that run one after the other: rank 1 receives what rank 0 gave. */
static hv_status run_in_turn(hv_comm *comm, const hv_comm_call *call, hv_stream *stream) {
  static double given[HV_COMM_MAX_SUM];
  size_t bytes = (size_t)call->whole.cols * sizeof given[0];
  (void)stream;
  if (strcmp(call->what, "the configuration") != 0) return HV_OK;
  memcpy(comm->rank == 0 ? (void *)given : call->whole.data, comm->rank == 0 ? call->whole.data : (void *)given, bytes);
  return HV_OK;
}

/* The result of agreeing, on a rank with these demonstrations and this setting. */
static hv_status agree(const char *folder, int32_t rank, const char *file, const char *setting) {
  static const hv_comm_methods methods = {.run = run_in_turn};
  hv_comm comm = {.name = "in turn", .methods = &methods, .rank = rank, .size = 2};
  char files[512];
  const char *const sets[] = {files, "data.valid_split=valid", setting};
  hv_train_config config;
  hv_model_config model;
  hv_model_directory directory;
  hv_run_data data;
  snprintf(files, sizeof files, "data.files=%s", file);
  assert_ok(hv_train_config_load(write_tiny_config(folder, "unset"), sets, 3, &config));
  assert_ok(hv_train_config_model(&config, &model, &directory));
  assert_ok(hv_run_data_open(&config, &model.config, rank, 2, &data));
  uint64_t held_out;
  assert_ok(hv_run_digest_held_out(&data, &held_out));
  hv_status status = hv_run_check_agreement(&config, false, &directory, &data, held_out, &comm);
  hv_run_data_close(&data);
  hv_model_directory_close(&directory);
  hv_model_config_free(&model);
  hv_train_config_free(&config);
  return status;
}

/* Copies the demonstrations and changes one number of the data set `name`; NULL: none. */
static void copy_demonstrations(const char *copy, const char *name) {
  static const double number = 0.125;
  must_shell("cp '" DEMONSTRATIONS "' '%s' && chmod u+w '%s'", copy, copy);
  if (!name) return;
  hid_t file = H5Fopen(copy, H5F_ACC_RDWR, H5P_DEFAULT), set = H5Dopen2(file, name, H5P_DEFAULT);
  hid_t space = H5Dget_space(set), one = H5Screate(H5S_SCALAR);
  assert_true(H5Sselect_elements(space, H5S_SELECT_SET, 1, (const hsize_t[]){3, 1}) >= 0);
  assert_true(H5Dwrite(set, H5T_NATIVE_DOUBLE, one, space, H5P_DEFAULT, &number) >= 0);
  H5Sclose(one);
  H5Sclose(space);
  H5Dclose(set);
  assert_true(H5Fclose(file) >= 0);
}

/* Copies the demonstrations and gives one episode an instruction of its own. */
static void copy_with_instruction(const char *copy, const char *instruction) {
  char text[128];
  copy_demonstrations(copy, NULL);
  hid_t file = H5Fopen(copy, H5F_ACC_RDWR, H5P_DEFAULT), space = H5Screate(H5S_SCALAR), type = H5Tcopy(H5T_C_S1);
  assert_true(H5Tset_size(type, sizeof text) >= 0);
  if (H5Aexists_by_name(file, "/data/demo_1", "ep_meta", H5P_DEFAULT) > 0) {
    assert_true(H5Adelete_by_name(file, "/data/demo_1", "ep_meta", H5P_DEFAULT) >= 0);
  }
  hid_t meta = H5Acreate_by_name(file, "/data/demo_1", "ep_meta", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  snprintf(text, sizeof text, "{\"lang\": \"%s\"}", instruction);
  assert_true(H5Awrite(meta, type, text) >= 0);
  H5Aclose(meta);
  H5Tclose(type);
  H5Sclose(space);
  assert_true(H5Fclose(file) >= 0);
}

/* Copies the demonstrations and adds a split "some" with one episode of each of the other two splits. */
static void copy_with_overlap(const char *copy) {
  static const char names[2][8] = {"demo_9", "demo_10"};
  copy_demonstrations(copy, NULL);
  hid_t file = H5Fopen(copy, H5F_ACC_RDWR, H5P_DEFAULT), type = H5Tcopy(H5T_C_S1);
  hid_t space = H5Screate_simple(1, (const hsize_t[]){2}, NULL);
  assert_true(H5Tset_size(type, sizeof names[0]) >= 0);
  hid_t set = H5Dcreate2(file, "/mask/some", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, names) >= 0);
  H5Dclose(set);
  H5Sclose(space);
  H5Tclose(type);
  assert_true(H5Fclose(file) >= 0);
}

/* Splits with different names may share episodes; a warning counts them. */
static void held_out_episodes_that_are_trained_on_are_counted(void **state) {
  char copy[256], rest[1024], *output;
  snprintf(copy, sizeof copy, "%s", in_folder(*state, "overlap.hdf5"));
  copy_with_overlap(copy);
  const char *always =
      "--set train.steps=1 --set validation.samples=1 --set 'data.files=[%s]' --set data.valid_split=%s";
  snprintf(rest, sizeof rest, always, copy, "some");
  expect_train(0, run_arguments(*state, "some", rest), "1 of the 2 held-out episodes (data.valid_split: some)", NULL);
  snprintf(rest, sizeof rest, always, copy, "valid");
  assert_int_equal(run_train("", run_arguments(*state, "none", rest), &output), 0);
  assert_null(strstr(output, "held-out episodes"));
  free(output);
}

/* The longest instruction is in the held-out split: a run makes room for the instructions of both splits. */
static void held_out_instructions_may_be_longer(void **state) {
  char copy[256], rest[1024];
  snprintf(copy, sizeof copy, "%s", in_folder(*state, "longer.hdf5"));
  copy_with_instruction(copy, "raise the cube from the table, slowly, and hold it above where it lay");
  snprintf(rest, sizeof rest,
           "--set train.steps=1 --set validation.samples=8 --set 'data.files=[%s]' --set data.train_split=valid "
           "--set data.valid_split=train",
           copy);
  expect_train(0, run_arguments(*state, "longer", rest), "held out:", NULL);
}

/* Demonstrations that differ in a single number, with equal counts, are refused: the ranks would train different
 * models. */
static void ranks_must_have_the_same_demonstrations(void **state) {
  static const char *const changed[] = {"/data/demo_1/actions", "/data/demo_1/obs/robot0_eef_pos",
                                        "/data/demo_10/actions"}; /* the last is held out */
  const char *copy = in_folder(*state, "copy.hdf5");
  assert_ok(agree(*state, 0, DEMONSTRATIONS, "data.threads=1"));
  copy_demonstrations(copy, NULL);
  assert_ok(agree(*state, 1, copy, "data.threads=2"));
  assert_error(agree(*state, 1, copy, "data.instruction=lift"), "`data` differs between rank 1 and rank 0");
  for (size_t i = 0; i < sizeof changed / sizeof changed[0]; i++) {
    copy_demonstrations(copy, changed[i]);
    assert_error(agree(*state, 1, copy, "data.threads=1"), "rank 1 reads different demonstrations than rank 0",
                 "10 episodes with 435 frames");
  }
  copy_with_instruction(copy, "raise the cube");
  assert_ok(agree(*state, 0, copy, "data.threads=1"));
  assert_ok(agree(*state, 1, copy, "data.threads=1"));
  copy_with_instruction(copy, "touch the cube");
  assert_error(agree(*state, 1, copy, "data.threads=1"), "rank 1 reads different demonstrations than rank 0");
}

/* The file has the same name but other numbers. The model was trained on values scaled by the old ones, so a warning
 * says so. */
static void a_resumed_run_tells_of_other_demonstrations(void **state) {
  static const char told[] = "not those that this run has trained on";
  char rest[700];
  const char *copy = in_folder(*state, "mine.hdf5");
  copy_demonstrations(copy, NULL);
  for (int steps = 3; steps <= 5; steps++) {
    char *output;
    if (steps == 5) copy_demonstrations(copy, "/data/demo_1/actions");
    snprintf(rest, sizeof rest, "--set 'data.files=%s' --set train.steps=%d --resume", copy, steps);
    int code = run_train("", run_arguments(*state, "run", rest), &output);
    if (code != 0 || !strstr(output, told) != (steps < 5)) fail_msg("%d steps ended with %d: %s", steps, code, output);
    free(output);
  }
  /* A damaged model does not end a run, because the next checkpoint writes it anew. */
  assert_ok(hv_write_file_atomic(in_run(*state, "run", "model/dataset_statistics.json"), "{", 1));
  snprintf(rest, sizeof rest, "--set 'data.files=%s' --set train.steps=6 --resume", copy);
  expect_train(0, run_arguments(*state, "run", rest), "dataset_statistics.json", NULL);
  snprintf(rest, sizeof rest, "--set 'data.files=%s' --set train.steps=7 --set data.statistics_key=mine2 --resume",
           copy);
  expect_train(0, run_arguments(*state, "run", rest), "resumed from", NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(divisors_are_of_the_whole_batch, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(absolute_dimensions_hold_past_the_end, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_must_have_the_same_demonstrations, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(held_out_episodes_that_are_trained_on_are_counted, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(held_out_instructions_may_be_longer, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_resumed_run_tells_of_other_demonstrations, make_folder, remove_folder)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
