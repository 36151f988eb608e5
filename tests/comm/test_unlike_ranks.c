/* `hvla-train run` on two ranks that differ (unlike_ranks.sh): one would choose other algorithms, reads its files more
 * slowly, lacks memory, or has other settings, data or models than the other. */
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/check.h"
#include "tests/comm/ranks.h"
#include "tests/train/damaged_demonstrations.h"
#include "tests/train/program.h"

/* The command of a run in which rank 1 has an environment variable and a setting of its own ("": none). Valid until the
 * next call. */
static const char *two_of(const char *folder, const char *name, const char *rest, const char *variable,
                          const char *own) {
  static char command[2048];
  int length = snprintf(command, sizeof command,
                        "tests/comm/unlike_ranks.sh '%s' '%s' '" HVLA_BINARY_DIR "'/train/hvla-train run --config '%s' "
                        "--set 'output=%s/%s' --set train.steps=2 --set train.batch_size=2 "
                        "--set checkpoint.interval=0 %s",
                        variable, own, write_tiny_config(folder, "unset"), folder, name, rest);
  assert_true(length < (int)sizeof command);
  return command;
}

/* Runs two ranks; fails unless they end with the code and print the words. */
static void end_two(int code, const char *folder, const char *name, const char *rest, const char *variable,
                    const char *own, const char *words) {
  expect_ranks(code, 2, two_of(folder, name, rest, variable, own), "2 ranks on 1 host", words);
}

static void run_two(const char *folder, const char *name, const char *rest, const char *variable, const char *own) {
  end_two(0, folder, name, rest, variable, own, "done");
}

/* On two emulated cards with different fastest algorithms, all ranks take what rank 0 measures: the model is to the
 * byte that of a run in which all ranks use this algorithm from the start. */
static void all_take_what_the_first_measured(void **state) {
  static const char model[] = "model/model.safetensors", unmeasured[] = "--device emu --set measure_algorithms=false";
  assert_int_equal(setenv("HVLA_EMU_TIMES", "4,4,4,1", 1), 0);
  run_two(*state, "measured", "--device emu", "HVLA_EMU_TIMES=1,4,4,4", "");
  assert_int_equal(setenv("HVLA_EMU_ALGORITHM", "3", 1), 0);
  run_two(*state, "supposed", unmeasured, "HVLA_EMU_ALGORITHM=3", "");
  run_two(*state, "apart", unmeasured, "HVLA_EMU_ALGORITHM=0", "");
  assert_int_equal(unsetenv("HVLA_EMU_TIMES"), 0);
  assert_int_equal(unsetenv("HVLA_EMU_ALGORITHM"), 0);
  assert_true(same_bytes(in_run(*state, "measured", model), in_run(*state, "supposed", model)));
  assert_false(same_bytes(in_run(*state, "apart", model), in_run(*state, "supposed", model)));
}

/* At the start of a run, a rank may take longer to read its files than ranks wait for one another in a step. */
static void all_wait_for_the_one_that_reads_slowly(void **state) {
  char line[1024], own[512];
  const char *pipe = in_folder(*state, "tokenizer");
  assert_int_equal(mkfifo(pipe, 0600), 0);
  snprintf(line, sizeof line,
           "exec >'%s'; sleep 5; exec cat '" HVLA_SOURCE_DIR "/tests/fixtures/tokenizer/small.model'", pipe);
  pid_t writer = fork();
  assert_true(writer >= 0);
  if (writer == 0) {
    execl("/bin/sh", "sh", "-c", line, (char *)NULL);
    _exit(127);
  }
  snprintf(own, sizeof own, "tokenizer=%s", pipe);
  run_two(*state, "run", "--set parallel.timeout=3", "", own);
  assert_int_equal(wait_for_exit(writer), 0);
}

/* Ranks with different settings or data would train different models. */
static void what_is_not_one_run_is_refused(void **state) {
  static const char *const cases[][2] = {
      {"optimizer.learning_rate=1e-3", "`optimizer` differs between rank 1 and rank 0"},
      {"data.files=[" DEMONSTRATIONS ", " DEMONSTRATIONS "]", "rank 1 reads different demonstrations than rank 0"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    end_two(2, *state, "run", "", "", cases[i][0], cases[i][1]);
    assert_false(hv_file_exists(in_run(*state, "run", "config.yaml")));
  }
  end_two(2, *state, "run", "", "RESUME=yes", "", "`--resume` differs between rank 1 and rank 0");
  expect_ranks(2, 2, two_of(*state, "run", "", "", "device=emu"), "1 of the ranks would connect by NCCL and 1 by MPI",
               "parallel.transport");
  static const char over_mpi[] = "--device emu --set dtype=fp32 --set parallel.transport=mpi";
  end_two(0, *state, "run", over_mpi, "", "threads=2", "emu (emulated card); connected by mpi");
  run_two(*state, "run", "--resume", "", "data.read_ahead=3");
}

/* Ranks that start from different models are refused, even if the shapes are the same. Equal copies are accepted. */
static void another_model_to_start_from_is_refused(void **state) {
  char start[512], own[512];
  const char *folder = *state;
  run_two(folder, "first", "", "", "");
  run_two(folder, "other", "--set seed=1", "", "");
  snprintf(start, sizeof start, "--set 'init_from=%s/first/model'", folder);
  snprintf(own, sizeof own, "init_from=%s/other/model", folder);
  end_two(2, folder, "run", start, "", own, "rank 1 starts from a different model than rank 0");
  assert_false(hv_file_exists(in_folder(folder, "run")));
  must_shell("rm -r '%s/other/model' && cp -r '%s/first/model' '%s/other/model'", folder, folder, folder);
  run_two(folder, "run", start, "", own);
}

/* Rank 1 fails when rank 0 has made and locked the run directory already: the directory is removed again. */
static void what_one_rank_cannot_begin_leaves_nothing(void **state) {
  char start[512], own[512];
  const char *folder = *state;
  run_two(folder, "first", "", "", "");
  must_shell("cp -r '%s/first' '%s/other' && sed -i s/llm.model.norm.weight/llm.model.norm.height/ "
             "'%s/other/model/model.safetensors'",
             folder, folder, folder);
  snprintf(start, sizeof start, "--set 'init_from=%s/first/model'", folder);
  snprintf(own, sizeof own, "init_from=%s/other/model", folder);
  end_two(2, folder, "run", start, "", own, "first values failed on rank 1: ");
  assert_false(hv_file_exists(in_folder(folder, "run")));
}

/* Rank 1 cannot read a held-out frame; rank 0 learns the reason and writes it into run.json. */
static void all_hear_of_a_held_out_frame_that_cannot_be_read(void **state) {
  char own[512];
  const char *path = in_folder(*state, "damaged.hdf5"), *episode = write_damaged_demonstrations(path, 0);
  snprintf(own, sizeof own, "data.files=%s", path);
  end_two(2, *state, "run", "--set data.valid_split=train --set validation.samples=3", "", own,
          "reading held-out frames failed on rank 1: ");
  char *card = read_file(in_run(*state, "run", "run.json"));
  assert_true(strstr(card, "\"failed\"") && strstr(card, episode));
  free(card);
}

static int count_words(const char *text, const char *words) {
  int count = 0;
  for (const char *at = text; (at = strstr(at, words)) != NULL; at++) count++;
  return count;
}

/* If one rank has no memory for a copy of its part, training waits on all ranks while checkpoints are written, and the
 * files are the same. Needs a user namespace to replace /proc/meminfo in. */
static void all_wait_for_checkpoints_where_one_lacks_memory(void **state) {
  static const char every[] = "--set train.steps=3 --set checkpoint.interval=1 --set parallel.sharding=gradients";
  static const char *const files[] = {"checkpoints/step-3/training-00001-of-00002.safetensors",
                                      "checkpoints/step-3/training-00002-of-00002.safetensors",
                                      "checkpoints/step-3/state.json", "model/model.safetensors"};
  const char *folder = *state, *meminfo = in_folder(folder, "meminfo");
  char variable[512], *beside, *waiting, *refused;
  int code = run_shell(
      &refused, NULL,
      "unshare -rm sh -c 'mount --bind /dev/null /proc/meminfo && unshare -U --map-user=1 --map-group=1 true'");
  free(refused);
  if (code != 0) skip();
  write_text(meminfo, "MemTotal: 16000000 kB\nMemAvailable: 10 kB\n");
  snprintf(variable, sizeof variable, "MEMINFO=%s", meminfo);
  assert_int_equal(run_ranks(2, two_of(folder, "beside", every, "", ""), &beside, NULL), 0);
  assert_int_equal(run_ranks(2, two_of(folder, "waiting", every, variable, ""), &waiting, NULL), 0);
  if (count_words(beside, "training waited") != 1)
    fail_msg("the message about waiting does not come exactly once:\n%s", beside);
  if (count_words(waiting, "training waits while checkpoints are written") != 1 || !strstr(waiting, "rank 1 needs ") ||
      !strstr(waiting, " for a copy, and 10240 are free") || strstr(waiting, "training waited")) {
    fail_msg("the message about rank 1's memory is missing, or comes not once:\n%s", waiting);
  }
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    if (!same_bytes(in_run(folder, "beside", files[i]), in_run(folder, "waiting", files[i])))
      fail_msg("%s differs", files[i]);
  }
  free(beside);
  free(waiting);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(all_take_what_the_first_measured, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(what_is_not_one_run_is_refused, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(another_model_to_start_from_is_refused, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(what_one_rank_cannot_begin_leaves_nothing, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(all_hear_of_a_held_out_frame_that_cannot_be_read, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(all_wait_for_checkpoints_where_one_lacks_memory, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(all_wait_for_the_one_that_reads_slowly, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
