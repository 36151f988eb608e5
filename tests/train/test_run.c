/* `hvla-train run`: the files that a run leaves, resuming to the same bytes, full disks, steps that are skipped, and
 * wrong input. */
#include <fcntl.h>
#include <math.h>
#include <signal.h>

#include "core/base/directory.h"
#include "core/io/safetensors.h"
#include "tests/check.h"
#include "tests/train/damaged_demonstrations.h"
#include "tests/train/program.h"
#include "train/checkpoint/checkpoint_files.h"

static void leaves_a_run_directory(void **state) {
  static const char *const keys[] = {"step",
                                     "loss",
                                     "loss_diffusion",
                                     "loss_ce",
                                     "grad_norm",
                                     "learning_rate",
                                     "samples_per_s",
                                     "model_tflops",
                                     "speed_of_light",
                                     "memory_bytes",
                                     "time",
                                     "epoch",
                                     "held_out_loss",
                                     "error_diffusion",
                                     "error_autoregressive",
                                     "error_ensemble",
                                     "error_mean_action"};
  expect_train(0,
               run_arguments(*state, "run",
                             "--set train.steps=30 --set optimizer.learning_rate=1e-2 --set data.valid_split=valid "
                             "--set validation.samples=6 "
                             "--set validation.interval=10"),
               "held out", "done", NULL);
  json_t *last = last_metrics(in_folder(*state, "run"), "held_out_loss");
  assert_non_null(last);
  assert_int_equal((int)number_in(last, "step"), 30);
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) assert_true(isfinite(number_in(last, keys[i])));
  assert_int_equal(json_array_size(json_object_get(last, "error_diffusion_dims")), 7);
  assert_true(number_in(last, "speed_of_light") > 0 && number_in(last, "speed_of_light") < 1);
  assert_true(number_in(last, "loss") < 7.0); /* at first it is ln(1024) + 1 = 7.9 */
  assert_true(fabs(number_in(last, "loss") - number_in(last, "loss_diffusion") - number_in(last, "loss_ce")) < 1e-6);
  assert_true(number_in(last, "error_mean_action") > 0.3 && number_in(last, "error_mean_action") < 0.6);
  json_decref(last);
  static const char *const files[] = {"config.yaml",
                                      "model/config.json",
                                      "model/model.safetensors",
                                      "model/tokenizer.model",
                                      "model/dataset_statistics.json",
                                      "checkpoints/step-30/state.json",
                                      "checkpoints/step-30/training.safetensors",
                                      "checkpoints/step-27/state.json"};
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    if (!hv_file_exists(in_run(*state, "run", files[i]))) fail_msg("%s is missing", files[i]);
  }
  assert_false(hv_file_exists(in_run(*state, "run", "checkpoints/step-24"))); /* only the last two are kept */
}

static void trains_each_objective(void **state) {
  static const char *const objectives[] = {"diffusion", "autoregressive"};
  for (int o = 0; o < 2; o++) {
    char rest[256];
    snprintf(rest, sizeof rest,
             "--set model.objective=%s --set data.valid_split=valid --set validation.samples=3 --set train.steps=3",
             objectives[o]);
    expect_train(0, run_arguments(*state, objectives[o], rest), "held out", NULL);
    json_t *last = last_metrics(in_folder(*state, objectives[o]), "held_out_loss");
    assert_true((json_object_get(last, "error_diffusion") != NULL) == (o == 0));
    assert_true((json_object_get(last, "error_autoregressive") != NULL) == (o == 1));
    assert_null(json_object_get(last, "error_ensemble"));
    assert_non_null(json_object_get(last, "error_mean_action"));
    json_decref(last);
  }
}

/* Recomputing activations gives the same bytes as keeping them. */
static void recomputes_to_the_same_bytes(void **state) {
  static const char *const levels[] = {"none", "cheap", "block"};
  for (int l = 0; l < 3; l++) {
    char rest[256];
    snprintf(rest, sizeof rest,
             "--set train.recompute=%s --set train.steps=2 --set dtype=bf16 --set model.llm.num_hidden_layers=3",
             levels[l]);
    expect_train(0, run_arguments(*state, levels[l], rest), NULL);
    if (l > 0) assert_same_state(*state, levels[0], levels[l], 2);
  }
}

/* Three steps and, in a second process, three more give the same bytes as six in one process; also with other numbers
 * of threads, micro-batches and batches read ahead. */
static void resumes_to_the_same_bytes(void **state) {
  static const char *const kinds[] = {"", "--set dtype=bf16", "--set train.micro_batch=2",
                                      "--set dtype=bf16 --set optimizer.moments=int8 --set optimizer.gradients=bf16",
                                      "--set watch.spike_factor=1.001 --set watch.spike_window=2"};
  for (int k = 0; k < 5; k++) {
    char rest[256];
    snprintf(rest, sizeof rest, "%s --set optimizer.warmup_steps=4", kinds[k]);
    expect_train(0, run_arguments(*state, "whole", rest), NULL);
    snprintf(rest, sizeof rest, "%s --set optimizer.warmup_steps=4 --set train.steps=3", kinds[k]);
    expect_train(0, run_arguments(*state, "halves", rest), "warmup_steps (4) is not less than the run's 3", NULL);
    snprintf(rest, sizeof rest,
             "%s --set optimizer.warmup_steps=4 --resume --set threads=2 --set data.read_ahead=1 --set data.threads=2",
             kinds[k]);
    expect_train(0, run_arguments(*state, "halves", rest), "resumed from", "step-3", NULL);
    assert_same_state(*state, "whole", "halves", 6);
    assert_ok(hv_remove_tree(in_folder(*state, "whole")));
    assert_ok(hv_remove_tree(in_folder(*state, "halves")));
  }
}

/* A cosine over a single step is at its end at once: unless it ends above 0, the step changes nothing, and a warning
 * says so. */
static void a_cosine_of_one_step_is_told(void **state) {
  static const struct {
    const char *settings;
    bool warns;
  } cases[] = {{"--set train.steps=1", true},
               {"--set train.steps=3 --set optimizer.warmup_steps=2", true},
               {"--set train.steps=1 --set optimizer.final_ratio=1", false},
               {"--set train.steps=2", false},
               {"--set train.steps=1 --set optimizer.schedule=constant", false}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char rest[256], name[16], *output;
    snprintf(name, sizeof name, "run-%zu", i);
    snprintf(rest, sizeof rest, "--set optimizer.schedule=cosine %s", cases[i].settings);
    assert_int_equal(run_train("", run_arguments(*state, name, rest), &output), 0);
    const char *warning = strstr(output, "its learning rate is that at the cosine's end");
    if (!warning != !cases[i].warns) fail_msg("%s: %s", cases[i].settings, output);
    free(output);
  }
}

/* The mean loss of the last 20 steps. */
static double loss_at_the_end(const char *folder, const char *name) {
  json_t *lines = read_metrics(in_folder(folder, name));
  size_t count = json_array_size(lines);
  double sum = 0;
  assert_true(count >= 20);
  for (size_t i = count - 20; i < count; i++) sum += number_in(json_array_get(lines, i), "loss");
  json_decref(lines);
  return sum / 20;
}

static void learns_as_well_in_less_memory(void **state) {
  static const char *const kinds[] = {
      "", "--set optimizer.moments=int8",
      "--set optimizer.moments=int8 --set dtype=bf16 --set optimizer.gradients=bf16 --set train.micro_batch=2"};
  double losses[3];
  for (int k = 0; k < 3; k++) {
    char rest[256], name[16];
    snprintf(rest, sizeof rest, "--set train.steps=200 --set checkpoint.interval=0 %s", kinds[k]);
    snprintf(name, sizeof name, "kind-%d", k);
    expect_train(0, run_arguments(*state, name, rest), NULL);
    losses[k] = loss_at_the_end(*state, name);
    print_message("loss after 200 steps: %.4f  %s\n", losses[k], kinds[k]);
    assert_true(fabs(losses[k] - losses[0]) < 0.03 * losses[0]);
  }
  assert_true(losses[0] < 5.5); /* it was 7.7 at first */
}

static void cuts_metrics_back_to_the_resumed_step(void **state) {
  expect_train(0, run_arguments(*state, "run", ""), NULL);
  assert_ok(hv_remove_tree(in_run(*state, "run", "checkpoints/step-6")));
  expect_train(0, run_arguments(*state, "run", "--resume"), "step-3", NULL);
  json_t *lines = read_metrics(in_folder(*state, "run"));
  assert_int_equal(json_array_size(lines), 6);
  for (size_t i = 0; i < 6; i++) assert_int_equal((int)number_in(json_array_get(lines, i), "step"), i + 1);
  json_decref(lines);
}

static void passes_over_damaged_checkpoints(void **state) {
  expect_train(0, run_arguments(*state, "whole", ""), NULL);
  expect_train(0, run_arguments(*state, "run", ""), NULL);
  assert_int_equal(truncate(in_run(*state, "run", "checkpoints/step-6/training.safetensors"), 100000), 0);
  expect_train(0, run_arguments(*state, "run", "--resume"), "damaged", "step-6/training.safetensors", "resumed from",
               "step-3", NULL);
  assert_same_state(*state, "whole", "run", 6);
}

/* The half-written checkpoint of a process that died is not taken for a checkpoint, and is removed. */
static void ignores_half_written_checkpoints(void **state) {
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  assert_ok(hv_make_directories(in_run(*state, "run", "checkpoints/step-9.tmp")));
  write_text(in_run(*state, "run", "checkpoints/step-9.tmp/state.json"), "{");
  expect_train(0, run_arguments(*state, "run", "--resume"), "step-3", NULL);
  assert_false(hv_file_exists(in_run(*state, "run", "checkpoints/step-9.tmp")));
}

/* It is refused before the first step, not after the last. */
static void a_trace_that_cannot_be_written_is_told_at_the_start(void **state) {
  char rest[512];
  snprintf(rest, sizeof rest, "--trace '%s/nowhere/trace.json'", (char *)*state);
  expect_train(2, run_arguments(*state, "run", rest), "nowhere/trace.json", NULL);
  assert_false(hv_file_exists(in_run(*state, "run", "metrics.jsonl")));
}

static void does_not_overwrite_a_run(void **state) {
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  expect_train(2, run_arguments(*state, "run", ""), "already holds checkpoints", "--resume", NULL);
  expect_train(0, run_arguments(*state, "fresh", "--resume --set train.steps=3"), "starting anew", NULL);
}

/* A file in the place of model/ or best/ is refused before the first step, not at the first checkpoint. An empty
 * directory, or a link to one, is accepted. */
static void a_place_that_takes_no_model_is_told_at_the_start(void **state) {
  static const char *const names[] = {"model", "best"};
  assert_ok(hv_make_directories(in_folder(*state, "run")));
  assert_ok(hv_make_directories(in_folder(*state, "disk")));
  for (int n = 0; n < 2; n++) {
    const char *path = in_run(*state, "run", names[n]);
    write_text(path, "mine");
    expect_train(2, run_arguments(*state, "run", "--set data.valid_split=valid"), names[n], "is not a directory", NULL);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("nowhere", path), 0);
    expect_train(2, run_arguments(*state, "run", "--set data.valid_split=valid --resume"), names[n],
                 "is not a directory", NULL);
    assert_int_equal(unlink(path), 0);
  }
  assert_false(hv_file_exists(in_run(*state, "run", "metrics.jsonl")));
  assert_int_equal(symlink("../disk", in_run(*state, "run", "model")), 0);
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  assert_true(hv_file_exists(in_run(*state, "disk", "model.safetensors")));
}

/* Another directory takes the place of the run's. Whatever the run writes next, metrics or a checkpoint, it notices,
 * ends with an error, and writes nothing there. */
static void a_run_whose_directory_was_moved_ends(void **state) {
  static const char *const due[] = {"--set checkpoint.interval=0", "--set log_interval=100000"};
  char log[512];
  snprintf(log, sizeof log, "%s", in_folder(*state, "log"));
  for (int d = 0; d < 2; d++) {
    char rest[256], name[16];
    bool empty;
    snprintf(name, sizeof name, "run-%d", d);
    snprintf(rest, sizeof rest, "--set train.steps=4000 %s", due[d]);
    pid_t process = start_train(run_arguments(*state, name, rest), log);
    assert_ok(hv_make_directories(in_folder(*state, "other")));
    write_text(in_run(*state, "other", "run.json"), "{}");
    wait_for_text(log, " parameters, ");
    /* Exchanged in one step, so that there is a directory at any time. */
    assert_int_equal(
        renameat2(AT_FDCWD, in_run(*state, name, ""), AT_FDCWD, in_run(*state, "other", ""), RENAME_EXCHANGE), 0);
    assert_int_equal(wait_for_exit(process), 2);
    wait_for_text(log, "run.json is another file than the one this run began with");
    char *card = read_file(in_run(*state, "other", "run.json"));
    assert_non_null(strstr(card, "\"failed\""));
    free(card);
    assert_int_equal(unlink(in_run(*state, name, "run.json")), 0);
    assert_ok(hv_directory_is_empty(in_folder(*state, name), &empty));
    assert_true(empty);
    assert_ok(hv_remove_tree(in_folder(*state, "other")));
    assert_int_equal(unlink(log), 0);
  }
}

/* run.json is replaced by another file with the same content, as on a file system that gives files new numbers: the run
 * goes on. */
static void a_run_goes_on_where_its_card_was_numbered_anew(void **state) {
  char log[512], copy[512];
  snprintf(log, sizeof log, "%s", in_folder(*state, "log"));
  snprintf(copy, sizeof copy, "%s", in_folder(*state, "copy"));
  pid_t process = start_train(run_arguments(*state, "run", "--set train.steps=100000"), log);
  wait_for_text(log, "step 1/");
  char *card = read_file(in_run(*state, "run", "run.json"));
  write_text(copy, card);
  free(card);
  assert_int_equal(rename(copy, in_run(*state, "run", "run.json")), 0);
  wait_for_text(log, "step 4/");
  assert_int_equal(kill(process, SIGTERM), 0);
  assert_int_equal(wait_for_exit(process), 75);
}

static void resumes_only_what_fits(void **state) {
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  expect_train(2, run_arguments(*state, "run", "--resume --set seed=1"), "seed 0, not 1", NULL);
  expect_train(2, run_arguments(*state, "run", "--resume --set dtype=bf16"), "fp32", "bf16", NULL);
  expect_train(2, run_arguments(*state, "run", "--resume --set train.batch_size=5"), "train.batch_size", NULL);
  expect_train(2, run_arguments(*state, "run", "--resume --set model.llm.intermediate_size=48"), "does not fit",
               "parameters", NULL);
  expect_train(2, run_arguments(*state, "run", "--resume --set optimizer.moments=int8"),
               "optimizer.moments: \"fp32\" -> \"int8\"", "does not fit", "optimizer.moments", "layers.0.moment1 has",
               "of F32", "of I8", "layers.1.moment2_scale is missing", NULL);
  expect_train(0, run_arguments(*state, "run", "--resume --set optimizer.learning_rate=1e-4"), "has changed:\n",
               "  optimizer.learning_rate: 0.0", " -> 0.0001", NULL);
}

/* A run cannot be resumed to a step before its last one, and the attempt changes no file. */
static void does_not_go_back(void **state) {
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3 --resume"), "is already at step 3, its last",
               "nothing to train", "done", NULL);
  expect_train(0, run_arguments(*state, "run", "--set train.steps=0 --set train.epochs=0.01 --resume"),
               "nothing to train", NULL);
  char *config = read_file(in_run(*state, "run", "config.yaml")), *card = read_file(in_run(*state, "run", "run.json"));
  expect_train(2, run_arguments(*state, "run", "--set train.steps=2 --resume"), "is already at step 3",
               "train.steps is 2", NULL);
  char *later = read_file(in_run(*state, "run", "config.yaml"));
  assert_string_equal(config, later);
  free(later);
  later = read_file(in_run(*state, "run", "run.json"));
  assert_string_equal(card, later);
  free(later);
  free(config);
  free(card);
}

static void tells_what_has_changed(void **state) {
  char *output;
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3 --set 'optimizer.groups={final_layer.*: 2}'"),
               NULL);
  int code = run_train("", run_arguments(*state, "run", "--resume --set train.steps=3"), &output);
  if (code != 0 || !strstr(output, "has changed:\n  optimizer.groups.final_layer.*: 2.0 -> nothing\n")) {
    fail_msg("ended with %d: %s", code, output);
  }
  free(output);
  code = run_train("", run_arguments(*state, "run", "--resume --set train.steps=3"), &output);
  assert_int_equal(code, 0);
  assert_null(strstr(output, "changed"));
  free(output);
}

static void tells_that_nothing_is_held_out(void **state) {
  const char *steps = "--set train.steps=1 --set validation.samples=1 --set data.valid_split=";
  char options[256];
  snprintf(options, sizeof options, "%strain --set data.train_split=train", steps);
  expect_train(0, run_arguments(*state, "same", options), "10 of the 10 held-out episodes", "trained on, too", NULL);
  snprintf(options, sizeof options, "%svalid --set data.train_split=null", steps);
  expect_train(0, run_arguments(*state, "all", options), "2 of the 2 held-out episodes", "train_split: all", NULL);
}

/* A limit on the size of files makes a write fail as on a full disk. */
static void survives_a_full_disk(void **state) {
  char *output;
  expect_train(0, run_arguments(*state, "whole", ""), NULL);
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  int code = run_train("ulimit -f 800;", run_arguments(*state, "run", "--resume"), &output);
  if (code != 2 || !strstr(output, "step-6") || !strstr(output, "training.safetensors")) {
    fail_msg("ended with %d: %s", code, output);
  }
  free(output);
  assert_false(hv_file_exists(in_run(*state, "run", "checkpoints/step-6")));
  assert_false(hv_file_exists(in_run(*state, "run", "checkpoints/step-6.tmp")));
  assert_true(hv_file_exists(in_run(*state, "run", "model/model.safetensors")));
  expect_train(0, run_arguments(*state, "run", "--resume"), "resumed from", "step-3", NULL);
  assert_same_state(*state, "whole", "run", 6);
}

/* Adds a tensor to a model's file which no parameter has, as published towers bring along. */
static void add_unused_tensor(const char *path, const char *name, float value) {
  hv_safetensors *file;
  hv_safetensors_writer *writer;
  assert_ok(hv_safetensors_open(path, &file));
  assert_ok(hv_safetensors_writer_open(path, &writer));
  assert_ok(hv_safetensors_writer_declare(writer, name, HV_F32, 1, (const int64_t[]){1}));
  for (int32_t i = 0; i < hv_safetensors_count(file); i++) {
    const hv_file_tensor *t = hv_safetensors_get(file, i);
    assert_ok(hv_safetensors_writer_declare(writer, t->name, t->dtype, t->rank, t->shape));
  }
  assert_ok(hv_safetensors_writer_write(writer, &value, sizeof value));
  for (int32_t i = 0; i < hv_safetensors_count(file); i++) {
    const hv_file_tensor *t = hv_safetensors_get(file, i);
    assert_ok(hv_safetensors_writer_write(writer, t->data, t->size));
  }
  assert_ok(hv_safetensors_writer_commit(writer));
  hv_safetensors_close(file);
}

static void assert_holds_tensor(const char *path, const char *name, float value) {
  hv_safetensors *file;
  const hv_file_tensor *tensor;
  float found;
  assert_ok(hv_safetensors_open(path, &file));
  assert_ok(hv_safetensors_require(file, name, &tensor));
  hv_file_tensor_read_f32(tensor, 0, 1, &found);
  assert_true(found == value);
  hv_safetensors_close(file);
}

static void starts_from_a_model_directory(void **state) {
  char rest[1024], *output;
  expect_train(0, run_arguments(*state, "first", "--set train.steps=40 --set train.batch_size=8"), NULL);
  static const char unused[] = "vision_backbone.featurizer.norm.bias";
  add_unused_tensor(in_run(*state, "first", "model/model.safetensors"), unused, 42);
  const char *config = in_folder(*state, "second.yaml");
  char text[2048];
  snprintf(text, sizeof text,
           "init_from: %s/first/model\noutput: %s/second\nthreads: 1\nlog_interval: 1\n"
           "data: {files: " DEMONSTRATIONS ", train_split: train, cameras: {front: agentview_image}, statistics_key: "
           "mine,\n       state_keys: [robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos], instruction: lift}\n"
           "train: {steps: 1, batch_size: 8, branches: 2}\n",
           (char *)*state, (char *)*state);
  write_text(config, text);
  snprintf(rest, sizeof rest, "run --config '%s'", config);
  int code = run_train("", rest, &output);
  if (code != 0) fail_msg("ended with %d: %s", code, output);
  free(output);
  json_t *before = last_metrics(in_folder(*state, "first"), "loss");
  json_t *after = last_metrics(in_folder(*state, "second"), "loss");
  assert_true(number_in(after, "loss") < 1.3 * number_in(before, "loss"));
  json_decref(before);
  json_decref(after);
  assert_holds_tensor(in_run(*state, "second", "model/model.safetensors"), unused, 42);
  char *statistics = read_file(in_run(*state, "second", "model/dataset_statistics.json"));
  assert_non_null(strstr(statistics, "\"lift\""));
  assert_non_null(strstr(statistics, "\"mine\""));
  free(statistics);
  write_text(in_run(*state, "first", "model/dataset_statistics.json"), "[]");
  snprintf(rest, sizeof rest, "run --config '%s' --set 'output=%s/third'", config, (char *)*state);
  expect_train(2, rest, "first/model/dataset_statistics.json must hold a mapping of keys to statistics, not a list",
               NULL);
}

/* A picture that cannot be read ends a run when it is needed. In the batch after the last step it never is, although
 * that batch is read ahead. */
static void what_comes_behind_the_last_step_ends_no_run(void **state) {
  char rest[1024];
  const char *path = in_folder(*state, "damaged.hdf5"),
             *episode =
                 write_damaged_demonstrations(path, frame_of_sample(12)); /* in the fourth step, of 4 samples each */
  snprintf(rest, sizeof rest, "--set 'data.files=%s' --set train.micro_batch=2", path);
  expect_train(2, run_arguments(*state, "longer", rest), episode, NULL);
  snprintf(rest, sizeof rest, "--set 'data.files=%s' --set train.micro_batch=2 --set train.steps=3", path);
  expect_train(0, run_arguments(*state, "run", rest), NULL);
  expect_train(0, run_arguments(*state, "whole", "--set train.steps=3"), NULL);
  json_t *damaged = last_metrics(in_folder(*state, "run"), "loss"),
         *whole = last_metrics(in_folder(*state, "whole"), "loss");
  assert_int_equal(number_in(damaged, "step"), 3);
  assert_true(fabs(number_in(damaged, "loss") - number_in(whole, "loss")) < 1e-4);
  json_decref(damaged);
  json_decref(whole);
}

static void refuses_bad_input(void **state) {
  static const char *const bad[][3] = {
      {"--set data.files=/nowhere/x.hdf5", "/nowhere/x.hdf5", NULL},
      {"--set 'data.files=" HVLA_SOURCE_DIR "/CMakeLists.txt'", "CMakeLists.txt", "HDF5"},
      {"--set data.cameras.front=agent_view", "agent_view", "agentview_image"},
      {"--set data.cameras.wrist=agentview_image", "wrist", "front"},
      {"--set data.train_split=training", "training", "valid"},
      {"--set data.state_keys=robot0_eef_pos", "state", "9"},
      {"--set 'data.state_keys=[robot0_eef_poz]'", "robot0_eef_poz", "robot0_eef_pos"},
      {"--set data.instruction=null", "instruction", NULL},
      {"--set 'data.instruction= '", "has no instruction", NULL},
      {"--set 'data.gripper_dims=[7]'", "data.gripper_dims", "7"},
      {"--set 'data.absolute_dims=[3, 9]'", "data.absolute_dims", "9"},
      {"--set model.action_dim=6", "action", "7"},
      {"--set 'data.action_dims=[0, 1, 2, 6]'", "4 dimensions of the actions are chosen", "action_dim is 7"},
      {"--set 'data.action_dims=[0, 1, 2, 9]' --set model.action_dim=4", "dimension 9", "0 to 6"},
      {"--set 'data.action_dims=[0, 1, 2, 1]' --set model.action_dim=4", "data.action_dims", "1 twice"},
      {"--set tokenizer=/nowhere/tokenizer.model", "/nowhere/tokenizer.model", NULL},
      {"--set 'tokenizer=" HVLA_SOURCE_DIR "/CMakeLists.txt'", "CMakeLists.txt", NULL},
      {"--set model.llm.vocab_size=900", "vocab", NULL},
      {"--set init_from=/nowhere", "/nowhere", NULL},
      {"--set 'train.freeze=[language.*]'", "language.*", NULL},
      {"--set 'train.freeze=[\"*\"]'", "every parameter is frozen", NULL},
      {"--set model.llm.num_attention_heads=3", "num_attention_heads", NULL},
      {"--set optimizer.gradients=bf16", "optimizer.gradients", "dtype is bf16"},
      {"--device nowhere", "nowhere", NULL},
  };
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    expect_train(2, run_arguments(*state, "run", bad[i][0]), bad[i][1], bad[i][1] ? bad[i][2] : NULL, NULL);
    if (hv_file_exists(in_folder(*state, "run"))) fail_msg("%s left a run directory", bad[i][0]);
  }
}

/* The gripper in the file is -1 and 1, but a prediction for a gripper dimension is 0 or 1. */
static void warns_of_a_gripper_that_prediction_cannot_give(void **state) {
  char *output;
  assert_int_equal(
      run_train("", run_arguments(*state, "named", "--set train.steps=1 --set 'data.gripper_dims=[6]'"), &output), 0);
  assert_non_null(strstr(output, "data.gripper_dims names dimension 6, whose values range from -1 to 1"));
  free(output);
  assert_int_equal(run_train("", run_arguments(*state, "scaled", "--set train.steps=1"), &output), 0);
  assert_null(strstr(output, "data.gripper_dims"));
  free(output);
}

/* With a checkpoint after every step, those of the last two steps that changed something must be there (or of the only
 * one), as metrics.jsonl shows them. Returns how many steps came after the last of them. */
static int64_t expect_checkpoints_of_changes(const char *run, const char *output) {
  int64_t *steps, changed[2] = {-1, -1}, last = 0;
  size_t count, i;
  const json_t *line;
  json_t *lines = read_metrics(run);
  json_array_foreach(lines, i, line) {
    last = (int64_t)number_in(line, "step");
    if (json_object_get(line, "skipped")) continue;
    changed[0] = changed[1];
    changed[1] = last;
  }
  json_decref(lines);
  assert_ok(hv_checkpoint_steps(run, &steps, &count));
  bool fits =
      count == (changed[0] < 0 ? 1 : 2) && steps[count - 1] == changed[1] && (count < 2 || steps[0] == changed[0]);
  if (!fits) fail_msg("%d checkpoints, %d the newest:\n%s", (int)count, count > 0 ? (int)steps[count - 1] : -1, output);
  free(steps);
  return last - changed[1];
}

/* With these settings gradients overflow after the first step or a few steps later, depending on how the machine
 * rounds. */
static const char overflowing[] = "--set optimizer.learning_rate=1000 --set optimizer.max_grad_norm=0 "
                                  "--set train.diffusion_weight=1000000 --set train.steps=60 "
                                  "--set checkpoint.interval=1";

/* The run ends after 10 skipped steps. The last one has a line in the metrics, and no checkpoint made in the meantime
 * has taken the place of those before. */
static void gives_up_on_gradients_that_are_not_finite(void **state) {
  char *output;
  assert_int_equal(run_train("", run_arguments(*state, "run", overflowing), &output), 2);
  assert_true(strstr(output, "10 steps in a row") && strstr(output, "not finite"));
  assert_int_equal(expect_checkpoints_of_changes(in_folder(*state, "run"), output), 10);
  free(output);
}

/* When the run ends with an error, a checkpoint that is still being written in the background is completed first. */
static void an_error_waits_for_the_checkpoint_under_way(void **state) {
  char rest[512], *output;
  snprintf(rest, sizeof rest, "%s --set watch.max_skipped=1", overflowing);
  assert_int_equal(run_train("", run_arguments(*state, "run", rest), &output), 2);
  assert_int_equal(expect_checkpoints_of_changes(in_folder(*state, "run"), output), 1);
  free(output);
}

/* If a checkpoint is due after a step that was skipped, it is put off until a step changes something. */
static void puts_checkpoints_off_while_steps_are_skipped(void **state) {
  bool owed = false, put_off = false;
  expect_train(0,
               run_arguments(*state, "run",
                             "--set watch.spike_factor=1.001 --set watch.spike_window=2 --set train.steps=20 "
                             "--set checkpoint.interval=2 --set checkpoint.keep=20"),
               NULL);
  json_t *lines = read_metrics(in_folder(*state, "run"));
  assert_int_equal(json_array_size(lines), 20);
  for (int step = 1; step < 20; step++) {
    char name[64];
    bool skipped = json_object_get(json_array_get(lines, (size_t)step - 1), "skipped");
    owed |= step % 2 == 0;
    snprintf(name, sizeof name, "checkpoints/step-%d/state.json", step);
    if (hv_file_exists(in_run(*state, "run", name)) != (owed && !skipped))
      fail_msg("step %d has a checkpoint and should not, or the other way round", step);
    put_off |= owed && skipped;
    owed &= skipped;
  }
  json_decref(lines);
  assert_true(put_off);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(leaves_a_run_directory, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(trains_each_objective, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(recomputes_to_the_same_bytes, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(resumes_to_the_same_bytes, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_cosine_of_one_step_is_told, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(learns_as_well_in_less_memory, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(cuts_metrics_back_to_the_resumed_step, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(passes_over_damaged_checkpoints, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ignores_half_written_checkpoints, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_trace_that_cannot_be_written_is_told_at_the_start, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(does_not_overwrite_a_run, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_place_that_takes_no_model_is_told_at_the_start, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_run_whose_directory_was_moved_ends, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_run_goes_on_where_its_card_was_numbered_anew, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(resumes_only_what_fits, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(does_not_go_back, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_what_has_changed, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_that_nothing_is_held_out, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(survives_a_full_disk, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(starts_from_a_model_directory, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(what_comes_behind_the_last_step_ends_no_run, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(refuses_bad_input, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(warns_of_a_gripper_that_prediction_cannot_give, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(gives_up_on_gradients_that_are_not_finite, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(an_error_waits_for_the_checkpoint_under_way, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(puts_checkpoints_off_while_steps_are_skipped, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
