/* The held-out errors that a run reports, computed a second time without its code: the saved model predicts the same
 * frames through the public library, and its actions are compared with the demonstrations, which are read by HDF5. */
#include <hdf5.h>
#include <math.h>

#include "core/io/json.h"
#include "infer/hvla.h"
#include "tests/check.h"
#include "tests/train/program.h"

enum { DIMS = 7, CHUNK = 2, STATE = 9, SIDE = 84, FRAMES = 88, PREDICTIONS = 50, GRIPPER = 6, SEED = 5 };

static const char *const episodes[] = {"demo_10", "demo_11"}; /* the episodes of the split "valid", in order */

typedef struct statistics {
  double mean[DIMS], q01[DIMS], q99[DIMS];
} statistics;

typedef enum predictor { DIFFUSION, AUTOREGRESSIVE, ENSEMBLE, MEAN_ACTION, PREDICTORS } predictor;

static const char *const names[] = {"diffusion", "autoregressive", "ensemble", "mean_action"};

static double clipped(double x) {
  return x < -1 ? -1 : x > 1 ? 1 : x;
}

/* The same as hv_normalize: the gripper's dimension is not scaled. */
static double normalized(const statistics *s, int dim, double x) {
  return dim == GRIPPER ? x : clipped(2 * (x - s->q01[dim]) / (s->q99[dim] - s->q01[dim] + 1e-8) - 1);
}

static void read_row(const char *path, const char *name, double out[DIMS]) {
  json_t *document;
  assert_ok(hv_json_load(path, &document));
  const json_t *entry = json_object_iter_value(json_object_iter(document));
  const json_t *row = json_object_get(json_object_get(entry, "action"), name);
  for (size_t d = 0; d < DIMS; d++) out[d] = json_number_value(json_array_get(row, d));
  json_decref(document);
}

/* Reads row `row` of a data set [T, …], converted by the HDF5 library. */
static void read_frame(hid_t file, const char *episode, const char *name, hsize_t row, hid_t type, void *out) {
  char path[128];
  hsize_t shape[4], start[4] = {row};
  snprintf(path, sizeof path, "/data/%s/%s", episode, name);
  hid_t set = H5Dopen2(file, path, H5P_DEFAULT), space = H5Dget_space(set);
  int rank = H5Sget_simple_extent_dims(space, shape, NULL);
  shape[0] = 1;
  hid_t memory = H5Screate_simple(rank, shape, NULL);
  assert_true(H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, shape, NULL) >= 0);
  assert_true(H5Dread(set, type, memory, space, H5P_DEFAULT, out) >= 0);
  H5Sclose(memory);
  H5Sclose(space);
  H5Dclose(set);
}

static int frames_of(hid_t file, const char *episode) {
  char path[128];
  hsize_t shape[2];
  snprintf(path, sizeof path, "/data/%s/actions", episode);
  hid_t set = H5Dopen2(file, path, H5P_DEFAULT), space = H5Dget_space(set);
  assert_int_equal(H5Sget_simple_extent_dims(space, shape, NULL), 2);
  H5Sclose(space);
  H5Dclose(set);
  return (int)shape[0];
}

static void predict(hvla_model *model, hid_t file, const char *episode, int row, int frame, hvla_result *out) {
  static uint8_t pixels[SIDE * SIDE * 3];
  double state[STATE];
  hvla_error error;
  read_frame(file, episode, "obs/agentview_image", (hsize_t)row, H5T_NATIVE_UINT8, pixels);
  read_frame(file, episode, "obs/robot0_eef_pos", (hsize_t)row, H5T_NATIVE_DOUBLE, state);
  read_frame(file, episode, "obs/robot0_eef_quat", (hsize_t)row, H5T_NATIVE_DOUBLE, state + 3);
  read_frame(file, episode, "obs/robot0_gripper_qpos", (hsize_t)row, H5T_NATIVE_DOUBLE, state + 7);
  hvla_image image = {.camera = "front", .data = pixels, .width = SIDE, .height = SIDE};
  hvla_request request = hvla_default_request();
  request.images = &image;
  request.num_images = 1;
  request.instruction = "lift the cube";
  request.state = state;
  request.state_dim = STATE;
  request.theta = 0;
  request.seed = SEED ^ 0x76616c6964617465u; /* "validate" in ASCII: draws differ from those of training */
  request.step = (uint64_t)frame;
  if (hvla_predict(model, &request, out, &error)) fail_msg("%s", error.message);
}

/* The actions of step `step` of the chunk by each predictor, in normalised units. */
static void actions_of(const statistics *s, const hvla_result *result, int step, double out[PREDICTORS][DIMS]) {
  for (int d = 0; d < DIMS; d++) {
    double noise = (double)result->diffusion_normalized[step * DIMS + d];
    out[DIFFUSION][d] = d == GRIPPER ? noise >= 0.5 : clipped(noise);
    out[AUTOREGRESSIVE][d] = normalized(s, d, result->autoregressive[step * DIMS + d]);
    double mean = (out[DIFFUSION][d] + out[AUTOREGRESSIVE][d]) / 2;
    out[ENSEMBLE][d] = d == GRIPPER ? mean > 0.5 : mean;
    out[MEAN_ACTION][d] = normalized(s, d, s->mean[d]);
  }
}

static void errors_are_those_of_the_models_actions(void **state) {
  char settings[512];
  snprintf(settings, sizeof settings,
           "--set seed=%d --set train.steps=3 --set data.valid_split=valid --set data.gripper_dims=[%d] "
           "--set validation.samples=%d --set validation.theta=0 --set model.action_chunk=%d",
           SEED, GRIPPER, PREDICTIONS, CHUNK);
  expect_train(0, run_arguments(*state, "run", settings), "held out", NULL);
  json_t *found = last_metrics(in_folder(*state, "run"), "held_out_loss");
  assert_non_null(found);

  statistics s;
  const char *path = in_run(*state, "run", "model/dataset_statistics.json");
  read_row(path, "mean", s.mean);
  read_row(path, "q01", s.q01);
  read_row(path, "q99", s.q99);
  hvla_options options = hvla_default_options();
  options.threads = 1;
  hvla_model *model;
  hvla_error error;
  if (hvla_load(in_run(*state, "run", "model"), &options, &model, &error)) fail_msg("%s", error.message);

  double sums[PREDICTORS][DIMS] = {0};
  int frame = 0, predictions = 0, steps = 0;
  hid_t file = H5Fopen(DEMONSTRATIONS, H5F_ACC_RDONLY, H5P_DEFAULT);
  for (int e = 0; e < 2; e++) {
    int rows = frames_of(file, episodes[e]);
    for (int row = 0; row < rows; row++, frame++) {
      hvla_result result;
      if (predictions == PREDICTIONS || frame != predictions * FRAMES / PREDICTIONS) continue;
      predict(model, file, episodes[e], row, frame, &result);
      for (int step = 0; step < CHUNK && row + step < rows; step++, steps++) {
        double truth[DIMS], actions[PREDICTORS][DIMS];
        actions_of(&s, &result, step, actions);
        read_frame(file, episodes[e], "actions", (hsize_t)row + (hsize_t)step, H5T_NATIVE_DOUBLE, truth);
        for (int d = 0; d < DIMS; d++) {
          for (int p = 0; p < PREDICTORS; p++) sums[p][d] += fabs(actions[p][d] - normalized(&s, d, truth[d]));
        }
      }
      predictions++;
    }
  }
  H5Fclose(file);
  hvla_free(model);

  assert_int_equal(frame, FRAMES);
  assert_int_equal(predictions, PREDICTIONS);
  assert_int_equal(steps, PREDICTIONS * CHUNK - 1); /* the first episode's last frame is one of them */
  assert_true(number_in(found, "ensemble_rate") == 1);
  for (int p = 0; p < PREDICTORS; p++) {
    char key[64];
    snprintf(key, sizeof key, "error_%s_dims", names[p]);
    double all = 0;
    for (int d = 0; d < DIMS; d++) {
      double expected = sums[p][d] / steps,
             error_of = json_number_value(json_array_get(json_object_get(found, key), (size_t)d));
      if (!(fabs(error_of - expected) < 1e-5)) fail_msg("%s %d: %.9g, expected %.9g", key, d, error_of, expected);
      all += expected / DIMS;
    }
    snprintf(key, sizeof key, "error_%s", names[p]);
    assert_true(fabs(number_in(found, key) - all) < 1e-5);
  }
  json_decref(found);
}

/* Runs the training `name`; returns its last held-out figure `key`. */
static double measured(const char *folder, const char *name, const char *settings, const char *key) {
  expect_train(0, run_arguments(folder, name, settings), "held out", NULL);
  json_t *found = last_metrics(in_folder(folder, name), key);
  assert_non_null(found);
  double figure = number_in(found, key);
  json_decref(found);
  return figure;
}

/* validation.samples limits the frames of the held-out loss too, not only those of the errors; 0 means all. */
static void losses_are_of_the_frames_that_are_wanted(void **state) {
  static const int wanted[] = {0, FRAMES, FRAMES - 1};
  double loss[3];
  for (int i = 0; i < 3; i++) {
    char name[16], settings[128];
    snprintf(name, sizeof name, "of-%d", wanted[i]);
    snprintf(settings, sizeof settings, "--set train.steps=1 --set data.valid_split=valid --set validation.samples=%d",
             wanted[i]);
    loss[i] = measured(*state, name, settings, "held_out_loss");
  }
  assert_true(loss[0] == loss[1]);
  assert_true(loss[0] != loss[2]);
}

/* Predictions that are impossible with the settings are refused before the first step, not at the first measurement. */
static void a_prediction_that_cannot_be_is_told_at_the_start(void **state) {
  const char *held_out = "--set data.valid_split=valid --set validation.ddim_steps=";
  char rest[128];
  snprintf(rest, sizeof rest, "%s%s", held_out, "11");
  expect_train(2, run_arguments(*state, "run", rest), "validation.ddim_steps: DDIM with 11 of 100", "10 and 12", NULL);
  snprintf(rest, sizeof rest, "%s%s", held_out, "4 --set model.diffusion.steps=3");
  expect_train(2, run_arguments(*state, "run", rest), "validation.ddim_steps: DDIM with 4 of 3", NULL);
  snprintf(rest, sizeof rest, "%s%s", held_out, "4 --set model.action_dim=65");
  expect_train(2, run_arguments(*state, "run", rest), "data.valid_split: validation measures at most 64", NULL);
  assert_false(hv_file_exists(in_folder(*state, "run")));
}

/* On a device with several streams, one puts the averages in place of the parameters and another predicts: the
 * prediction must wait. Compared with the CPU, which has no concurrency. */
static void averages_are_in_place_before_they_predict(void **state) {
  static const char *const devices[] = {"cpu", "emu"};
  double error_of[2];
  for (int i = 0; i < 2; i++) {
    char settings[512];
    snprintf(settings, sizeof settings,
             "--device %s --set dtype=fp32 --set train.steps=2 --set train.batch_size=2 --set train.ema_decay=0.8 "
             "--set optimizer.learning_rate=3e-2 --set data.valid_split=valid --set validation.samples=1",
             devices[i]);
    error_of[i] = measured(*state, devices[i], settings, "error_diffusion");
  }
  if (!(fabs(error_of[1] - error_of[0]) < 1e-6)) fail_msg("cpu %.9g, emu %.9g", error_of[0], error_of[1]);
}

/* The loss is the mean over action steps, whatever the micro-batch, although frames near an episode's end have fewer
 * steps and the last batch has fewer frames. */
static void the_loss_is_a_mean_whatever_the_batches(void **state) {
  static const char *const runs[] = {"6", "1"};
  double loss[2];
  for (int i = 0; i < 2; i++) {
    char settings[512];
    snprintf(settings, sizeof settings,
             "--set train.steps=1 --set train.batch_size=6 --set train.micro_batch=%s --set data.valid_split=valid "
             "--set optimizer.learning_rate=1e-9",
             runs[i]);
    loss[i] = measured(*state, runs[i], settings, "held_out_loss");
  }
  if (!(fabs(loss[1] - loss[0]) < 1e-5 * loss[0])) fail_msg("of one at a time %.9g, of six %.9g", loss[1], loss[0]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_prediction_that_cannot_be_is_told_at_the_start, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(errors_are_those_of_the_models_actions, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_loss_is_a_mean_whatever_the_batches, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(losses_are_of_the_frames_that_are_wanted, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(averages_are_in_place_before_they_predict, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
