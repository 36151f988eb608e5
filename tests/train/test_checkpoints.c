/* Checkpoints of `hvla-train run`: damaged ones are found and passed over, the right ones are kept, writing them in the
 * background changes no byte, and disks that are full or directories that cannot be removed cost no checkpoint. Each
 * test compares what is left with an undisturbed run. */
#include <dirent.h>
#include <math.h>
#include <signal.h>

#include "core/io/json.h"
#include "tests/check.h"
#include "tests/train/program.h"

/* One bit of the file is changed, its size is not: only the checksum shows it. */
static void passes_over_a_changed_bit(void **state) {
  expect_train(0, run_arguments(*state, "whole", ""), NULL);
  expect_train(0, run_arguments(*state, "run", ""), NULL);
  flip_a_bit(in_run(*state, "run", "checkpoints/step-6/training.safetensors"));
  expect_train(0, run_arguments(*state, "run", "--resume"), "damaged", "step-6/training.safetensors", "checksum",
               "resumed from", "step-3", NULL);
  assert_same_state(*state, "whole", "run", 6);
}

static void passes_over_a_checkpoint_without_its_parts(void **state) {
  expect_train(0, run_arguments(*state, "run", "--set checkpoint.interval=1 --set checkpoint.keep=4"), NULL);
  assert_int_equal(unlink(in_run(*state, "run", "checkpoints/step-6/state.json")), 0);
  write_text(in_run(*state, "run", "checkpoints/step-5/state.json"), "{\"format\": 2, \"st");
  assert_int_equal(unlink(in_run(*state, "run", "checkpoints/step-4/training.safetensors")), 0);
  expect_train(0, run_arguments(*state, "run", "--resume"), "step-6/state.json", "step-5/state.json",
               "step-4/training.safetensors", "resumed from", "step-3", NULL);
}

/* A file that the system fails to read, here because it is a link to itself, may be whole the next time: the run ends
 * instead of resuming from an older checkpoint. */
static void does_not_pass_over_what_cannot_be_read(void **state) {
  static const char *const files[] = {"training.safetensors", "state.json"};
  expect_train(0, run_arguments(*state, "run", ""), NULL);
  for (int f = 0; f < 2; f++) {
    char name[64];
    snprintf(name, sizeof name, "checkpoints/step-6/%s", files[f]);
    const char *path = in_run(*state, "run", name), *aside = in_folder(*state, "aside");
    assert_int_equal(rename(path, aside), 0);
    assert_int_equal(symlink(files[f], path), 0);
    expect_train(2, run_arguments(*state, "run", "--resume --set train.steps=7"), "step 6 may be undamaged", files[f],
                 "Too many levels of symbolic links", NULL);
    assert_int_equal(rename(aside, path), 0);
  }
  expect_train(0, run_arguments(*state, "run", "--resume --set train.steps=7"), "resumed from", "step-6", NULL);
}

/* Checkpoints of versions that wrote no checksums. */
static void resumes_from_the_first_format(void **state) {
  expect_train(0, run_arguments(*state, "whole", ""), NULL);
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  const char *path = in_run(*state, "run", "checkpoints/step-3/state.json");
  json_t *manifest;
  assert_ok(hv_json_load(path, &manifest));
  assert_int_equal(json_integer_value(json_object_get(manifest, "format")), 2);
  assert_int_equal(json_array_size(json_object_get(manifest, "files")), 1);
  assert_string_equal(json_string_value(json_object_get(manifest, "sharding")), "replicate");
  json_object_set_new(manifest, "format", json_integer(1));
  json_object_del(manifest, "files");
  json_object_del(manifest, "sharding");
  json_object_del(manifest, "xxh3");
  assert_ok(hv_json_save(path, manifest));
  json_decref(manifest);
  expect_train(0, run_arguments(*state, "run", "--resume"), "resumed from", "step-3", NULL);
  assert_same_state(*state, "whole", "run", 6);
  json_t *next;
  assert_ok(hv_json_load(in_run(*state, "run", "checkpoints/step-6/state.json"), &next));
  json_object_set_new(next, "format", json_integer(9));
  json_object_del(next, "xxh3");
  assert_ok(hv_json_save(in_run(*state, "run", "checkpoints/step-6/state.json"), next));
  json_decref(next);
  expect_train(2, run_arguments(*state, "run", "--resume"), "the checkpoint of step 6 may be undamaged", "format 9",
               NULL);
}

/* `expected` lists everything in the checkpoints/ folder of a run, in order. */
static void expect_checkpoints(const char *folder, const char *name, const char *expected) {
  struct dirent **entries;
  char found[1024] = "";
  int count = scandir(in_run(folder, name, "checkpoints"), &entries, NULL, alphasort);
  assert_true(count >= 0);
  for (int i = 0; i < count; i++) {
    if (entries[i]->d_name[0] != '.') {
      size_t used = strlen(found);
      snprintf(found + used, sizeof found - used, "%s ", entries[i]->d_name);
    }
    free(entries[i]);
  }
  free(entries);
  assert_string_equal(found, expected);
}

static void keeps_the_last_and_every_so_many(void **state) {
  expect_train(0,
               run_arguments(*state, "run",
                             "--set train.steps=9 --set checkpoint.interval=1 --set checkpoint.keep=2 "
                             "--set checkpoint.keep_every=3"),
               NULL);
  expect_checkpoints(*state, "run", "step-3 step-6 step-8 step-9 ");
  /* What a killed run left half-written or half-removed is removed as well. */
  assert_ok(hv_make_directories(in_run(*state, "run", "checkpoints/step-10.tmp")));
  assert_ok(hv_make_directories(in_run(*state, "run", "checkpoints/step-5.old/model")));
  expect_train(
      0,
      run_arguments(*state, "run", "--set train.steps=11 --set checkpoint.interval=1 --set checkpoint.keep=1 --resume"),
      NULL);
  expect_checkpoints(*state, "run", "step-11 ");
}

/* A newer checkpoint that is damaged does not count among those to keep, and is not in the way. */
static void a_damaged_checkpoint_pushes_out_no_whole_one(void **state) {
  expect_train(0, run_arguments(*state, "run", "--set train.steps=9"), NULL);
  flip_a_bit(in_run(*state, "run", "checkpoints/step-9/training.safetensors"));
  const char *rest = "--set train.steps=8 --set checkpoint.interval=0 --set checkpoint.keep=1 --resume";
  expect_train(0, run_arguments(*state, "run", rest), "resumed from", "step-6", NULL);
  expect_checkpoints(*state, "run", "step-8 step-9 ");
  expect_train(0, run_arguments(*state, "run", "--set train.steps=9 --resume"), "resumed from", "step-8", NULL);
}

/* Background and foreground writing leave the same bytes. With a checkpoint after every step, the next is due before
 * the last is complete; that training has to wait is reported once. */
static void writes_the_same_while_training_waits(void **state) {
  static const char *const kinds[] = {"", "--set dtype=bf16"};
  for (int k = 0; k < 2; k++) {
    char rest[256], *beside, *waiting;
    snprintf(rest, sizeof rest, "--set train.steps=3 --set checkpoint.interval=1 %s", kinds[k]);
    assert_int_equal(run_train("", run_arguments(*state, "beside", rest), &beside), 0);
    const char *told =
        strstr(beside, "s for the checkpoint of step 1: checkpoints are due faster than they can be written");
    if (!told || strstr(told + 1, "s for the checkpoint of step"))
      fail_msg("the message about waiting does not come exactly once:\n%s", beside);
    snprintf(rest, sizeof rest, "--set train.steps=3 --set checkpoint.interval=1 --set checkpoint.async=false %s",
             kinds[k]);
    assert_int_equal(run_train("", run_arguments(*state, "waiting", rest), &waiting), 0);
    if (strstr(waiting, "training waited"))
      fail_msg("checkpoint.async is false, and yet training waited for a checkpoint:\n%s", waiting);
    assert_same_state(*state, "beside", "waiting", 3);
    assert_true(same_bytes(in_run(*state, "beside", "checkpoints/step-3/state.json"),
                           in_run(*state, "waiting", "checkpoints/step-3/state.json")));
    assert_ok(hv_remove_tree(in_folder(*state, "beside")));
    assert_ok(hv_remove_tree(in_folder(*state, "waiting")));
    free(beside);
    free(waiting);
  }
}

/* The same for tensors that are copied from the device in several pieces. */
static void what_is_larger_than_a_piece_is_written_whole(void **state) {
  static const char large[] =
      LARGE_VOCABULARY "--set train.steps=1 --set train.batch_size=1 --set model.llm.hidden_size=72";
  char rest[256];
  hv_mapping file;
  snprintf(rest, sizeof rest, "%s --set checkpoint.async=false", large);
  expect_train(0, run_arguments(*state, "beside", large), NULL);
  expect_train(0, run_arguments(*state, "waiting", rest), NULL);
  assert_same_state(*state, "beside", "waiting", 1);
  assert_ok(hv_map_file(in_run(*state, "waiting", "model/model.safetensors"), &file));
  assert_true(file.size > (size_t)2 * 32064 * 72 * 4); /* token embeddings alone are more than 8 MiB */
  hv_unmap(&file);
}

/* At its end a run writes the model, however large checkpoint.model_interval is. */
static void the_model_may_be_written_less_often(void **state) {
  expect_train(0, run_arguments(*state, "always", ""), NULL);
  expect_train(0, run_arguments(*state, "seldom", "--set checkpoint.model_interval=1000"), NULL);
  assert_same_state(*state, "always", "seldom", 6);
}

/* The first checkpoint writes a model whatever checkpoint.model_interval is, because `hvla-train model` needs one to
 * make the model of any other checkpoint. */
static void the_first_checkpoint_brings_a_model(void **state) {
  const char *folder = *state, *log = in_folder(folder, "log");
  char rest[1024];
  pid_t process = start_train(run_arguments(folder, "run",
                                            "--set train.steps=100000 --set checkpoint.interval=1 "
                                            "--set checkpoint.keep=100000 "
                                            "--set checkpoint.model_interval=100000"),
                              log);
  wait_for_text(log, "step 4/");
  assert_int_equal(kill(process, SIGKILL), 0);
  wait_for_exit(process);
  snprintf(rest, sizeof rest, "model --run '%s/run' --step 2 --out '%s/copy'", folder, folder);
  expect_train(0, rest, "the model of step 2", NULL);
  assert_false(
      same_bytes(in_run(folder, "run", "model/model.safetensors"), in_run(folder, "copy", "model.safetensors")));
  assert_ok(hv_remove_tree(in_run(folder, "run", "model")));
  snprintf(rest, sizeof rest, "model --run '%s/run' --step 2 --out '%s/other'", folder, folder);
  expect_train(2, rest, "run/model is missing", "--resume", NULL);
}

/* The model made from an earlier checkpoint is the one of a run that ended there. A damaged checkpoint and a target
 * that exists are refused. */
static void the_model_of_any_checkpoint_can_be_had(void **state) {
  static const char *const files[] = {"model.safetensors", "config.json", "tokenizer.model", "dataset_statistics.json"};
  char rest[1024];
  const char *folder = *state;
  expect_train(0, run_arguments(folder, "run", "--set checkpoint.keep=4 --set dtype=bf16 --set train.ema_decay=0.5"),
               NULL);
  expect_train(0, run_arguments(folder, "short", "--set train.steps=3 --set dtype=bf16 --set train.ema_decay=0.5"),
               NULL);
  snprintf(rest, sizeof rest, "model --run '%s/run' --step 3 --out '%s/copy'", folder, folder);
  expect_train(0, rest, "the model of step 3", NULL);
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    char of_run[64];
    snprintf(of_run, sizeof of_run, "model/%s", files[i]);
    if (!same_bytes(in_run(folder, "copy", files[i]), in_run(folder, "short", of_run)))
      fail_msg("%s differs", files[i]);
  }
  expect_train(2, rest, "copy exists already", NULL);
  /* A folder with the name of the temporary one may be the user's, so it is not overwritten. */
  assert_ok(hv_make_directories(in_folder(folder, "kept.partial")));
  snprintf(rest, sizeof rest, "model --run '%s/run' --step 3 --out '%s/kept'", folder, folder);
  expect_train(2, rest, "kept.partial exists already", NULL);
  assert_true(hv_file_exists(in_folder(folder, "kept.partial")));
  flip_a_bit(in_run(folder, "run", "checkpoints/step-3/training.safetensors"));
  snprintf(rest, sizeof rest, "model --run '%s/run' --step 3 --out '%s/other'", folder, folder);
  expect_train(2, rest, "step-3/training.safetensors", "checksum", NULL);
  assert_false(hv_file_exists(in_folder(folder, "other")));
  snprintf(rest, sizeof rest, "model --run '%s/run' --step 4 --out '%s/other'", folder, folder);
  expect_train(2, rest, "holds no checkpoint of step 4", "those of steps: 3, 6", NULL);
  snprintf(rest, sizeof rest, "model --run '%s/run' --out '%s/other'", folder, folder);
  expect_train(0, rest, "the model of step 6", NULL);
  assert_true(
      same_bytes(in_run(folder, "other", "model.safetensors"), in_run(folder, "run", "model/model.safetensors")));
}

/* A number in the manifest is changed to another plausible one: only the manifest's own checksum shows it. */
static void passes_over_a_changed_manifest(void **state) {
  expect_train(0, run_arguments(*state, "run", ""), NULL);
  const char *path = in_run(*state, "run", "checkpoints/step-6/state.json");
  char *text = read_file(path), *updates = strstr(text, "\"updates\": 6");
  assert_non_null(updates);
  updates[strlen("\"updates\": ")] = '4';
  write_text(path, text);
  expect_train(0, run_arguments(*state, "run", "--resume"), "step-6/state.json is damaged: its checksum is",
               "resumed from", "step-3", NULL);
  free(text);
}

/* Sets a number in a manifest and removes its checksum, which older versions did not write. */
static void set_in_manifest(const char *folder, const char *name, int step, const char *key, json_int_t value) {
  char file[64];
  json_t *manifest;
  snprintf(file, sizeof file, "checkpoints/step-%d/state.json", step);
  assert_ok(hv_json_load(in_run(folder, name, file), &manifest));
  json_object_set_new(manifest, key, json_integer(value));
  json_object_del(manifest, "xxh3");
  assert_ok(hv_json_save(in_run(folder, name, file), manifest));
  json_decref(manifest);
}

static void passes_over_a_manifest_that_cannot_be(void **state) {
  expect_train(
      0, run_arguments(*state, "run", "--set train.steps=7 --set checkpoint.interval=1 --set checkpoint.keep=7"), NULL);
  set_in_manifest(*state, "run", 7, "step", 8);
  set_in_manifest(*state, "run", 6, "samples", -4);
  set_in_manifest(*state, "run", 5, "samples", INT64_MAX);
  set_in_manifest(*state, "run", 4, "updates", -1);
  set_in_manifest(*state, "run", 3, "updates", 4);
  set_in_manifest(*state, "run", 2, "parameters", 0);
  expect_train(0, run_arguments(*state, "run", "--resume"), "step-7/state.json is of step 8",
               "step-6/state.json: impossible values: step", "step-5/state.json", "step-4/state.json",
               "step-3/state.json", "step-2/state.json", "resumed from", "step-1", NULL);
}

/* If no checkpoint is whole, as on a failing disk, --resume is refused and the model and metrics stay as they are. */
static void a_run_without_a_whole_checkpoint_is_not_begun_anew(void **state) {
  static const char model[] = "model/model.safetensors";
  expect_train(0, run_arguments(*state, "run", ""), NULL);
  expect_train(0, run_arguments(*state, "same", ""), NULL);
  set_in_manifest(*state, "run", 6, "format", 0);
  flip_a_bit(in_run(*state, "run", "checkpoints/step-3/training.safetensors"));
  expect_train(2, run_arguments(*state, "run", "--resume --set train.steps=7"), "format 0",
               "step-3/training.safetensors", "none of its checkpoints can be resumed from", NULL);
  assert_true(same_bytes(in_run(*state, "run", model), in_run(*state, "same", model)));
  json_t *last = last_metrics(in_folder(*state, "run"), "step");
  assert_int_equal(json_integer_value(json_object_get(last, "step")), 6);
  json_decref(last);
  assert_ok(hv_remove_tree(in_run(*state, "run", "checkpoints")));
  expect_train(2, run_arguments(*state, "run", "--resume"), "holds a model but no checkpoint", NULL);
  expect_train(2, run_arguments(*state, "run", ""), "holds a model but no checkpoint", NULL);
  assert_true(same_bytes(in_run(*state, "run", model), in_run(*state, "same", model)));
  assert_ok(hv_remove_tree(in_run(*state, "run", "model")));
  expect_train(0, run_arguments(*state, "run", "--resume"), "starting anew", NULL);
}

/* Folders with names like a checkpoint's are neither taken for checkpoints nor removed. */
static void other_folders_are_let_alone(void **state) {
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  static const char *const others[] = {"step-9223372036854775807", "step-9007199254740993", "step-003", "step-x"};
  for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
    char folder[64];
    snprintf(folder, sizeof folder, "checkpoints/%s", others[i]);
    assert_ok(hv_make_directories(in_run(*state, "run", folder)));
  }
  expect_train(0, run_arguments(*state, "run", "--resume --set checkpoint.keep=1"), "resumed from", "step-3", NULL);
  expect_checkpoints(*state, "run", "step-003 step-6 step-9007199254740993 step-9223372036854775807 step-x ");
}

/* After a change of batch size, the run takes the next samples of the same order, however often it is interrupted. */
static void a_larger_batch_goes_on_where_the_smaller_ended(void **state) {
  static const char *const names[] = {"whole", "halves"};
  for (int i = 0; i < 2; i++) {
    expect_train(0, run_arguments(*state, names[i], "--set train.steps=4"), NULL);
    if (i == 1) {
      expect_train(0, run_arguments(*state, names[i], "--set train.steps=6 --set train.batch_size=8 --resume"), NULL);
    }
    expect_train(0, run_arguments(*state, names[i], "--set train.steps=9 --set train.batch_size=8 --resume"), NULL);
  }
  assert_same_state(*state, "whole", "halves", 9);
  json_t *line = last_metrics(in_folder(*state, "whole"), "epoch");
  assert_true(fabs(json_number_value(json_object_get(line, "epoch")) - 56 / 435.0) < 1e-9);
  json_decref(line);
}

/* The run has seen 16 of 435 frames when its batch size changes: epochs count samples, not steps. */
static void epochs_count_samples_whatever_the_batches(void **state) {
  expect_train(0, run_arguments(*state, "run", "--set train.steps=4"), NULL);
  const char *rest = "--set train.steps=0 --set train.epochs=0.11 --set train.batch_size=8 --resume";
  expect_train(0, run_arguments(*state, "run", rest), "8 steps of 8 samples", NULL);
  rest = "--set train.steps=0 --set train.epochs=2.2 --set train.batch_size=29"; /* 2.2 · 435 is 957.0000000000001 */
  expect_train(0, run_arguments(*state, "exact", rest), "33 steps of 29 samples", NULL);
}

/* Whether the line failed because this machine has no user namespaces to mount in. */
static bool cannot_mount(int code, const char *text) {
  return code == 77 || strstr(text, "unshare failed");
}

/* A real file system is full when a checkpoint is due: the run ends with an error, the checkpoint before it is kept,
 * and with room again the run goes on to the same end. Needs a user namespace to mount the file system in. */
static void survives_a_file_system_without_room(void **state) {
  char *text;
  expect_train(0, run_arguments(*state, "whole", ""), NULL);
  int code =
      run_shell(&text, NULL,
                "cd '%s' && mkdir disk && unshare -rm sh -c '\n"
                "mount -t tmpfs -o size=64m tmpfs disk || exit 77\n"
                "train() { \"$0\" run --config tiny.yaml --set output=disk/run --resume \"$@\"; echo \"code $?\"; }\n"
                "train --set train.steps=3\n"
                "dd if=/dev/zero of=disk/filler bs=1M 2>/dev/null; truncate -s -300K disk/filler\n"
                "train\n"
                "ls disk/run/checkpoints\n"
                "rm disk/filler\n"
                "train\n"
                "cp -r disk/run run' '%s/train/hvla-train'",
                (char *)*state, HVLA_BINARY_DIR);
  if (cannot_mount(code, text)) {
    free(text);
    skip();
    return;
  }
  static const char *const words[] = {"code 0",
                                      "checkpoint of step 6",
                                      "No space left on device",
                                      "code 2",
                                      "step-3\n",
                                      "resumed from disk/run/checkpoints/step-3",
                                      "code 0"};
  const char *at = text;
  for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
    const char *found = strstr(at, words[i]);
    if (!found) {
      fail_msg("\"%s\" is missing, or not in this order:\n%s", words[i], text);
      return;
    }
    at = found + strlen(words[i]);
  }
  if (strstr(text, "step-6.tmp\n")) fail_msg("a half-written checkpoint is left:\n%s", text);
  free(text);
  assert_same_state(*state, "whole", "run", 6);
}

/* The checkpoint is written, but a file has its name: the run ends with an error and leaves no half of it. */
static void a_checkpoint_that_cannot_be_named_leaves_nothing(void **state) {
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  write_text(in_run(*state, "run", "checkpoints/step-6"), "");
  expect_train(2, run_arguments(*state, "run", "--resume"), "checkpoint of step 6", "is not a directory", NULL);
  expect_checkpoints(*state, "run", "step-3 step-6 ");
}

/* Resumes "run" while the directory `held` in it is a mount point, which cannot be removed; *text is the output. */
static int resume_while_held(const char *folder, const char *held, const char *rest, char **text) {
  return run_shell(text, NULL,
                   "unshare -rm sh -c '\n"
                   "mount --bind \"$1\" \"$1\" || exit 77\n"
                   "exec \"$0\" run --config \"$2\" --set output=\"$3\" --resume --set checkpoint.interval=1 %s' "
                   "'%s/train/hvla-train' '%s' '%s' '%s'",
                   rest, HVLA_BINARY_DIR, held, in_folder(folder, "tiny.yaml"), in_folder(folder, "run"));
}

/* An old checkpoint cannot be removed, as if its files were in use on a network file system (here it is a mount point):
 * the run warns, and removes it later. */
static void a_checkpoint_that_cannot_be_removed_ends_no_run(void **state) {
  char *text;
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  const char *held = in_run(*state, "run", "checkpoints/step-3");
  int code = resume_while_held(*state, held, "--set checkpoint.keep=1", &text);
  if (cannot_mount(code, text)) {
    free(text);
    skip();
    return;
  }
  if (code != 0 || !strstr(text, "cannot remove an older checkpoint")) fail_msg("ended with %d:\n%s", code, text);
  free(text);
  expect_checkpoints(*state, "run", "step-3 step-6 ");
  expect_train(0, run_arguments(*state, "run", "--resume --set train.steps=7 --set checkpoint.keep=1"), NULL);
  expect_checkpoints(*state, "run", "step-7 ");
}

/* The old model cannot be removed, as if somebody read it on a network file system: the new model takes its place all
 * the same, and what is left of the old one is removed when that is possible. */
static void a_model_that_cannot_be_removed_ends_no_run(void **state) {
  char *text;
  expect_train(0, run_arguments(*state, "whole", ""), NULL);
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  const char *held = in_run(*state, "run", "model/held");
  assert_ok(hv_make_directories(held));
  int code = resume_while_held(*state, held, "", &text);
  if (cannot_mount(code, text)) {
    free(text);
    skip();
    return;
  }
  if (code != 0 || !strstr(text, "run/model is complete, but ") ||
      !strstr(text, "run/model.partial, no longer needed, could not be removed: cannot remove") ||
      !strstr(text, "run/model.partial/held: Device or resource busy")) {
    fail_msg("ended with %d:\n%s", code, text);
  }
  free(text);
  assert_same_state(*state, "whole", "run", 6);
  assert_true(hv_file_exists(in_run(*state, "run", "model.partial/held")));
  assert_false(hv_file_exists(in_run(*state, "run", "model.partial-2")));
  expect_train(0, run_arguments(*state, "run", "--resume --set train.steps=7"), NULL);
  assert_false(hv_file_exists(in_run(*state, "run", "model.partial")));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(passes_over_a_changed_bit, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(passes_over_a_checkpoint_without_its_parts, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(does_not_pass_over_what_cannot_be_read, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(passes_over_a_changed_manifest, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(passes_over_a_manifest_that_cannot_be, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_run_without_a_whole_checkpoint_is_not_begun_anew, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(other_folders_are_let_alone, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_larger_batch_goes_on_where_the_smaller_ended, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(epochs_count_samples_whatever_the_batches, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(resumes_from_the_first_format, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(keeps_the_last_and_every_so_many, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_damaged_checkpoint_pushes_out_no_whole_one, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(writes_the_same_while_training_waits, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(what_is_larger_than_a_piece_is_written_whole, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_first_checkpoint_brings_a_model, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_model_of_any_checkpoint_can_be_had, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_checkpoint_that_cannot_be_named_leaves_nothing, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_checkpoint_that_cannot_be_removed_ends_no_run, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_model_that_cannot_be_removed_ends_no_run, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(survives_a_file_system_without_room, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_model_may_be_written_less_often, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
