/* `hvla-train run` on several ranks, started by mpirun: the losses and the model are those of one rank, also when the
 * run is resumed on other numbers of ranks, after signals, and after ranks were killed; and ranks that are late or fail
 * are named. */
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/io/json.h"
#include "core/io/safetensors.h"
#include "tests/check.h"
#include "tests/comm/ranks.h"
#include "tests/train/damaged_demonstrations.h"
#include "tests/train/program.h"

enum { STEPS = 12, LONGER = 40 /* steps, which take some seconds */ };

/* The command "train/hvla-train run --config C --set output=<folder>/<name> <rest>"; valid until the fourth call after
 * this. */
static const char *run_of(const char *folder, const char *name, const char *rest) {
  static char commands[4][2048];
  static int next;
  char *command = commands[next++ % 4];
  const char *config = write_tiny_config(folder, "unset");
  snprintf(command, sizeof commands[0],
           "train/hvla-train run --config '%s' --set 'output=%s/%s' --set train.batch_size=8 %s", config, folder, name,
           rest);
  return command;
}

/* Reads the losses of a run's steps, which must be complete and in order; returns how many there are. */
static int read_losses(const char *folder, const char *name, double *losses, int most) {
  json_t *lines = read_metrics(in_folder(folder, name));
  int count = (int)json_array_size(lines);
  assert_true(count <= most);
  for (int i = 0; i < count; i++) {
    const json_t *line = json_array_get(lines, (size_t)i);
    assert_int_equal(json_integer_value(json_object_get(line, "step")), i + 1);
    losses[i] = json_number_value(json_object_get(line, "loss"));
  }
  json_decref(lines);
  return count;
}

/* ‖a − b‖ / ‖b‖ over all tensors of a model file that two runs left. */
static double model_difference(const char *folder, const char *a, const char *b, const char *file) {
  hv_safetensors *x, *y;
  double difference = 0, size = 0;
  assert_ok(hv_safetensors_open(in_run(folder, a, file), &x));
  assert_ok(hv_safetensors_open(in_run(folder, b, file), &y));
  assert_int_equal(hv_safetensors_count(x), hv_safetensors_count(y));
  for (int32_t i = 0; i < hv_safetensors_count(y); i++) {
    const hv_file_tensor *p = hv_safetensors_get(x, i), *q = hv_safetensors_get(y, i);
    assert_int_equal(p->count, q->count);
    float *u = calloc((size_t)p->count + 1, sizeof *u), *v = calloc((size_t)p->count + 1, sizeof *v);
    assert_true(u && v);
    hv_file_tensor_read_f32(p, 0, p->count, u);
    hv_file_tensor_read_f32(q, 0, q->count, v);
    for (int64_t e = 0; e < p->count; e++) {
      difference += ((double)u[e] - v[e]) * ((double)u[e] - v[e]);
      size += (double)v[e] * v[e];
    }
    free(u);
    free(v);
  }
  hv_safetensors_close(x);
  hv_safetensors_close(y);
  return sqrt(difference / size);
}

static void assert_same_run(const char *folder, const char *a, const char *b, int steps, double tolerance) {
  double x[LONGER] = {0}, y[LONGER] = {0};
  assert_int_equal(read_losses(folder, a, x, LONGER), steps);
  assert_int_equal(read_losses(folder, b, y, LONGER), steps);
  for (int i = 0; i < steps; i++) {
    if (!(fabs(x[i] - y[i]) < tolerance * y[i])) fail_msg("step %d: the losses are %.9g, %.9g", i + 1, x[i], y[i]);
  }
  double difference = model_difference(folder, a, b, "model/model.safetensors");
  if (!(difference < tolerance)) fail_msg("the models of %s and %s differ by %g", a, b, difference);
}

/* Trains on one rank, to the end. */
static void run_alone(const char *folder, const char *name, int steps, const char *settings) {
  char rest[1100];
  snprintf(rest, sizeof rest, "--set train.steps=%d %s", steps, settings);
  expect_ranks(0, 1, run_of(folder, name, rest), "done");
}

typedef struct stretch {
  int ranks, steps; /* `steps`: counted from the first step of the run */
  const char *sharding;
} stretch;

static void run_stretches(const char *folder, const char *name, const stretch *stretches, int count,
                          const char *settings) {
  for (int i = 0; i < count; i++) {
    char rest[512];
    snprintf(rest, sizeof rest, "--set train.steps=%d --set parallel.sharding=%s %s %s", stretches[i].steps,
             stretches[i].sharding, settings, i ? "--resume" : "");
    expect_ranks(0, stretches[i].ranks, run_of(folder, name, rest), i ? "resumed from" : "done");
  }
}

static void a_run_goes_on_with_other_numbers_of_ranks(void **state) {
  static const stretch stretches[] = {
      {4, 3, "parameters"}, {2, 6, "optimizer"}, {8, 9, "gradients"}, {1, 12, "replicate"}};
  run_alone(*state, "alone", STEPS, "--set train.ema_decay=0.9");
  run_stretches(*state, "shared", stretches, 4, "--set train.ema_decay=0.9");
  assert_same_run(*state, "shared", "alone", STEPS, 1e-5);
}

/* Checkpoints hold BF16 values with their remainders. Ranks add up gradients in another order, hence the tolerance. */
static void a_run_in_bf16_goes_on_with_other_numbers_of_ranks(void **state) {
  static const stretch stretches[] = {{2, 3, "parameters"}, {4, 9, "replicate"}, {2, 12, "gradients"}};
  run_alone(*state, "alone", STEPS, "--set dtype=bf16");
  run_stretches(*state, "shared", stretches, 3, "--set dtype=bf16 --set train.micro_batch=1");
  assert_same_run(*state, "shared", "alone", STEPS, 2e-2);
}

/* Shares consist of whole blocks of moments. Adding up in another order now and then changes a code by one, about a
 * hundredth of the value. */
static void a_run_with_8_bit_moments_goes_on_with_other_numbers_of_ranks(void **state) {
  static const stretch stretches[] = {{8, 3, "gradients"}, {1, 6, "replicate"}, {4, 9, "parameters"}};
  run_alone(*state, "alone", 9, "--set optimizer.moments=int8");
  run_stretches(*state, "shared", stretches, 3, "--set optimizer.moments=int8");
  assert_same_run(*state, "shared", "alone", 9, 1e-3);
}

/* A signal that reaches mpirun stops all ranks after the same step, with a checkpoint to go on from. */
static void a_signal_ends_all_ranks_with_a_checkpoint(void **state) {
  char log[512];
  snprintf(log, sizeof log, "%s/log", (const char *)*state);
  pid_t process = start_ranks(2, BRIEFLY, run_of(*state, "shared", "--set train.steps=100000"), log);
  wait_for_text(log, "step 2/");
  assert_int_equal(kill(process, SIGUSR1), 0); /* mpirun passes it on to the ranks */
  int code = wait_for_exit(process);
  char *text = read_file(log);
  if (code != 75 || !strstr(text, "a checkpoint was written")) fail_msg("two ranks ended with %d:\n%s", code, text);
  free(text);
  expect_ranks(0, 2, run_of(*state, "shared", "--set train.steps=0 --set train.epochs=0.001 --resume"), "resumed from");
}

/* The launcher that users start (scripts/launch/mpirun.sh) does the same on SIGTERM, on which mpirun itself leaves its
 * ranks no time, and on SIGHUP, which mpirun ignores. */
static void the_launcher_ends_with_a_checkpoint(void **state) {
  static const int signals[] = {SIGTERM, SIGHUP, SIGINT}, codes[] = {75, 75, 130};
  static const char *const names[] = {"terminated", "hung-up", "interrupted"};
  pid_t processes[3];
  for (int i = 0; i < 3; i++) {
    char log[512];
    snprintf(log, sizeof log, "%s/%s.log", (const char *)*state, names[i]);
    processes[i] = start_launcher(2, run_of(*state, names[i], "--set train.steps=100000"), log);
    wait_for_text(log, "step 2/");
    assert_int_equal(kill(processes[i], signals[i]), 0);
  }
  for (int i = 0; i < 3; i++) assert_int_equal(wait_for_exit(processes[i]), codes[i]);
  for (int i = 0; i < 3; i++) {
    expect_ranks(0, 2, run_of(*state, names[i], "--set train.steps=0 --set train.epochs=0.001 --resume"),
                 "resumed from");
  }
}

/* A signal that comes before there are ranks, or before they handle it, must neither be lost nor leave ranks behind. */
static void the_launcher_can_be_stopped_at_once(void **state) {
  static const char *const names[] = {"early", "earlier", "earliest"};
  char logs[3][512];
  pid_t processes[3];
  for (int i = 0; i < 3; i++) {
    snprintf(logs[i], sizeof logs[i], "%s/%s.log", (const char *)*state, names[i]);
    processes[i] = start_launcher(2, run_of(*state, names[i], "--set train.steps=100000"), logs[i]);
    wait_for_handler(processes[i], SIGUSR1);
    nanosleep(&(struct timespec){.tv_nsec = ((2 - i) * 300 + 100) * 1000000}, NULL);
    assert_int_equal(kill(processes[i], SIGUSR1), 0);
  }
  for (int i = 0; i < 3; i++) {
    int code = wait_for_exit(processes[i]);
    if (code != 75) fail_msg("the launcher ended with %d:\n%s", code, read_file(logs[i]));
  }
}

static void a_checkpoint_that_lacks_a_part_is_passed_over(void **state) {
  static const stretch stretches[] = {{2, 6, "optimizer"}};
  run_alone(*state, "alone", STEPS, "");
  run_stretches(*state, "shared", stretches, 1, "");
  assert_int_equal(unlink(in_run(*state, "shared", "checkpoints/step-6/training-00002-of-00002.safetensors")), 0);
  char rest[64];
  snprintf(rest, sizeof rest, "--set train.steps=%d --resume", STEPS);
  expect_ranks(0, 4, run_of(*state, "shared", rest), "training-00002-of-00002.safetensors", "resumed from", "step-3");
  assert_same_run(*state, "shared", "alone", STEPS, 1e-5);
}

/* Each rank writes its part of a checkpoint; the model that is made from all parts is the one that the run left. */
static void the_model_comes_from_the_parts_of_all_ranks(void **state) {
  static const stretch stretches[] = {{2, 6, "optimizer"}};
  char command[1024];
  run_stretches(*state, "shared", stretches, 1, "");
  snprintf(command, sizeof command, "model --run '%s/shared' --out '%s/copy'", (char *)*state, (char *)*state);
  expect_train(0, command, "the model of step 6", NULL);
  assert_true(
      same_bytes(in_run(*state, "copy", "model.safetensors"), in_run(*state, "shared", "model/model.safetensors")));
  flip_a_bit(in_run(*state, "shared", "checkpoints/step-6/training-00001-of-00002.safetensors"));
  snprintf(command, sizeof command, "model --run '%s/shared' --out '%s/older'", (char *)*state, (char *)*state);
  expect_train(0, command, "step-6/training-00001", "checksum", "the model of step 3", NULL);
}

/* Waits for at most a minute until mpirun and the rank have ended. Returns mpirun's exit code, and in *seconds the time
 * since `start`. */
static int wait_for_all(pid_t mpirun, pid_t rank, double start, double *seconds) {
  bool reaped = false, over = false;
  int status = 0;
  do {
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    if (!reaped) reaped = waitpid(mpirun, &status, WNOHANG) == mpirun;
    over = reaped && process_has_ended(rank);
    *seconds = hv_clock_seconds() - start;
  } while (!over && *seconds < 60);
  if (!over) fail_msg("a minute after a rank was killed, %s is still there", reaped ? "the other" : "mpirun");
  return exit_code_of(status);
}

/* A run of two ranks, one of which is killed. */
typedef struct victim {
  char log[512];
  pid_t mpirun, killed, other;
  double start, seconds; /* the time when it was killed; seconds until all had ended */
  int code;              /* exit code of mpirun */
} victim;

/* Kills one of two ranks `ms` milliseconds after the first step, and mpirun as well if `launcher`. */
static void kill_a_rank_of(const char *folder, const char *name, const char *settings, int64_t ms, bool launcher,
                           victim *out) {
  snprintf(out->log, sizeof out->log, "%s/%s.log", folder, name);
  out->mpirun = start_ranks(2, PATIENTLY, run_of(folder, name, settings), out->log);
  wait_for_text(out->log, "step 1/");
  nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
  int which = ms % 2 == 0 ? 0 : 1;
  out->killed = process_of_a_rank(out->mpirun, which);
  out->other = process_of_a_rank(out->mpirun, 1 - which);
  assert_true(out->killed > 0 && out->other > 0);
  out->start = hv_clock_seconds();
  assert_int_equal(kill(out->killed, SIGKILL), 0);
  if (launcher) assert_int_equal(kill(out->mpirun, SIGKILL), 0);
}

/* Whether the text says of one checkpoint both that it is lost and that it is there to go on from. */
static bool contradicts_itself(const char *text) {
  static const char lost[] = "the checkpoint of step ",
                    newest[] = " was still being written and is lost; the checkpoint of step ";
  const char *at = strstr(text, lost);
  if (!at) return false;
  char *end;
  long long step = strtoll(at + sizeof lost - 1, &end, 10);
  return strncmp(end, newest, sizeof newest - 1) == 0 && strtoll(end + sizeof newest - 1, NULL, 10) == step;
}

/* The other rank must name the killed one, say which checkpoint the run can go on from, and end within a minute, as
 * must mpirun, even if mpirun crashes (some versions do so with SIGSEGV now and then when a rank is lost). */
static void expect_a_clear_end(victim *run) {
  char named[64];
  run->code = wait_for_all(run->mpirun, run->other, run->start, &run->seconds);
  snprintf(named, sizeof named, "(process %d on ", (int)run->killed);
  char *text = read_file(run->log);
  bool clear = strstr(text, named) && strstr(text, "has died") && strstr(text, "cannot end on rank") &&
               strstr(text, "to resume from") && !contradicts_itself(text);
  if (run->code == 0 || !clear) fail_msg("two ranks, one killed, ended with %d:\n%s", run->code, text);
  free(text);
}

/* Llama-2's tokenizer. With other prompts, a column of the head's gradients can be so close to zero that its sign
 * depends on the order of adding up, and then runs on different numbers of ranks drift apart. */
static const char llama_words[] = LARGE_VOCABULARY
    "--set 'tokenizer=" HVLA_SOURCE_DIR "/data/tokenizer/llama2-tokenizer.model' "
    "--set 'model.action_tokens={base: 32000, bins: 256}' --set 'model.special_tokens={bos: 1, eos: 2, "
    "pad: 32000, bod: 32001, eod: 32002, empty: 29871}'";

/* After a rank was killed, the resumed run loses no step, counts none twice, and has the losses of an undisturbed run.
 * Several runs go on at a time, because mpirun mostly waits. */
static void a_killed_rank_leaves_a_run_that_goes_on(void **state) {
  enum { AT_ONCE = 5 };
  bool all = getenv("HVLA_LONG_TESTS") != NULL;
  int trials = all ? 50 : 5, crashed = 0;
  double slowest = 0;
  victim runs[AT_ONCE];
  char whole[1024], rest[1024], resume[1100], name[32];
  snprintf(whole, sizeof whole, "%s --set checkpoint.interval=0", llama_words);
  snprintf(rest, sizeof rest, "--set train.steps=%d %s --set checkpoint.interval=1 --set parallel.sharding=parameters",
           LONGER, llama_words);
  snprintf(resume, sizeof resume, "%s --set checkpoint.interval=0 --set parallel.sharding=optimizer --resume", rest);
  for (int trial = 0; trial < trials; trial++) {
    snprintf(name, sizeof name, "shared-%d", trial);
    int64_t ms = hv_random_below(9, HV_RANDOM_INIT, 0, (uint64_t)trial, 0, 0, 500);
    kill_a_rank_of(*state, name, rest, ms, false, &runs[trial % AT_ONCE]);
    if (trial % AT_ONCE < AT_ONCE - 1) continue;
    if (trial < AT_ONCE) run_alone(*state, "alone", LONGER, whole);
    for (int i = 0; i < AT_ONCE; i++) {
      expect_a_clear_end(&runs[i]);
      crashed += runs[i].code == 128 + SIGSEGV;
      slowest = fmax(slowest, runs[i].seconds);
    }
    for (int i = trial - AT_ONCE + 1; i <= trial; i++) {
      snprintf(name, sizeof name, "shared-%d", i);
      if (all || i % 2 == 1) { /* only some, to save time */
        expect_ranks(0, 4, run_of(*state, name, resume), "done");
        assert_same_run(*state, name, "alone", LONGER, 1e-5);
      }
      assert_ok(hv_remove_tree(in_folder(*state, name)));
    }
  }
  print_message("%d times a rank was killed: all had ended after %.1f s at most; mpirun crashed %d times\n", trials,
                slowest, crashed);
}

/* A checkpoint gets its final name before its model is made. A rank that dies in between does not cost the checkpoint.
 */
static void a_checkpoint_that_is_there_is_not_given_up(void **state) {
  victim run;
  char rest[1024];
  snprintf(rest, sizeof rest, "--set train.steps=%d %s --set checkpoint.interval=20", LONGER, llama_words);
  snprintf(run.log, sizeof run.log, "%s/log", (const char *)*state);
  run.mpirun = start_ranks(2, PATIENTLY, run_of(*state, "run", rest), run.log);
  double begin = hv_clock_seconds();
  while (!hv_file_exists(in_run(*state, "run", "model.partial")) && hv_clock_seconds() - begin < 60) {
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
  }
  run.killed = process_of_a_rank(run.mpirun, 1);
  run.other = process_of_a_rank(run.mpirun, 0);
  assert_true(run.killed > 0 && run.other > 0);
  run.start = hv_clock_seconds();
  assert_int_equal(kill(run.killed, SIGKILL), 0);
  expect_a_clear_end(&run);
}

static json_t *read_best(const char *folder, const char *name) {
  json_t *best;
  assert_ok(hv_json_load(in_run(folder, name, "best.json"), &best));
  return best;
}

static const char measured[] = "--set data.valid_split=valid --set validation.samples=3 --set validation.interval=2 "
                               "--set validation.metric=error_diffusion --set parallel.sharding=parameters";

/* With averages, of which each rank has a share: to measure, all ranks need all of them. All must agree which model is
 * the best. */
static void ranks_keep_the_best_model(void **state) {
  char rest[512];
  snprintf(rest, sizeof rest,
           "%s --set train.steps=8 --set optimizer.learning_rate=2e-2 --set train.ema_decay=0.9 "
           "--set parallel.sharding=optimizer",
           measured);
  expect_ranks(0, 1, run_of(*state, "alone", rest), "done");
  expect_ranks(0, 2, run_of(*state, "shared", rest), "done");
  json_t *alone = read_best(*state, "alone"), *shared = read_best(*state, "shared");
  double value = json_number_value(json_object_get(alone, "value"));
  assert_int_equal(json_integer_value(json_object_get(alone, "step")),
                   json_integer_value(json_object_get(shared, "step")));
  assert_true(fabs(json_number_value(json_object_get(shared, "value")) - value) < 1e-4 * value);
  double difference = model_difference(*state, "shared", "alone", "best/model.safetensors");
  if (!(difference < 1e-4)) fail_msg("the best models differ by %g", difference);
  json_decref(alone);
  json_decref(shared);
}

/* Parameters are sharded and must be gathered to measure. At a learning rate of 0 nothing becomes better. */
static void ranks_end_early_together(void **state) {
  char rest[512];
  snprintf(rest, sizeof rest, "%s --set train.steps=50 --set optimizer.learning_rate=0 --set validation.patience=2",
           measured);
  expect_ranks(0, 2, run_of(*state, "run", rest), "stopped early after step 6", "at step 2 in 2 measurements");
  json_t *best = read_best(*state, "run");
  assert_int_equal(json_integer_value(json_object_get(best, "step")), 2);
  json_decref(best);
  assert_true(hv_file_exists(in_run(*state, "run", "checkpoints/step-6/state.json")));
  snprintf(rest, sizeof rest, "%s --set train.steps=50 --set optimizer.learning_rate=0 --set validation.patience=3 %s",
           measured, "--resume");
  expect_ranks(0, 2, run_of(*state, "run", rest), "resumed from", "stopped early after step 8");
}

/* A warning about the model that a run starts from is printed once, not by every rank. */
static void one_rank_tells_of_the_start(void **state) {
  static const char said[] = "was trained with other values of these keys";
  char rest[512], *output;
  run_alone(*state, "first", 1, "");
  snprintf(rest, sizeof rest,
           "--set train.steps=1 --set init_from='%s/first/model' --set 'model={\"llm\": {\"rope_theta\": 20000}}'",
           (const char *)*state);
  int code = run_ranks(2, run_of(*state, "run", rest), &output, NULL);
  const char *once = strstr(output, said);
  if (code != 0 || !once || strstr(once + 1, said)) fail_msg("two ranks ended with %d:\n%s", code, output);
  free(output);
}

static void ranks_that_cannot_share_the_batch_are_refused(void **state) {
  expect_ranks(2, 3, run_of(*state, "run", ""), "train.batch_size (8) must be a multiple of the number of ranks, 3");
  expect_ranks(2, 2, run_of(*state, "run", "--set train.micro_batch=8"), "train.micro_batch (8) must divide");
  expect_ranks(2, 2, run_of(*state, "run", "--set parallel.sharding=some"), "parallel.sharding");
}

static void a_rank_and_mpirun_killed_together_end_the_others(void **state) {
  for (int which = 0; which < 2; which++) {
    victim run;
    assert_ok(hv_remove_tree(in_folder(*state, "shared")));
    kill_a_rank_of(*state, "shared", "--set train.steps=100000", 50 + which, true, &run);
    expect_a_clear_end(&run);
  }
}

/* The rule for skipping steps looks at the whole batch, so the same steps are skipped on any number of ranks. */
static void ranks_skip_the_same_steps(void **state) {
  const char *rest = "--set watch.spike_factor=1.001 --set watch.spike_window=2 --set train.micro_batch=2";
  expect_ranks(0, 1, run_of(*state, "alone", rest), "changed nothing");
  expect_ranks(0, 2, run_of(*state, "shared", rest), "changed nothing: a spike");
  assert_same_run(*state, "shared", "alone", 6, 1e-5);
  json_t *alone = last_metrics(in_folder(*state, "alone"), "skipped");
  json_t *shared = last_metrics(in_folder(*state, "shared"), "skipped");
  assert_int_equal(json_integer_value(json_object_get(alone, "step")),
                   json_integer_value(json_object_get(shared, "step")));
  const json_t *a = json_array_get(json_object_get(alone, "suspects"), 0);
  const json_t *b = json_array_get(json_object_get(shared, "suspects"), 0);
  assert_true(json_equal(json_object_get(a, "frames"), json_object_get(b, "frames")));
  int64_t first = json_integer_value(json_object_get(b, "first_sample"));
  assert_int_equal(json_integer_value(json_object_get(b, "rank")), first % 8 / 4);
  json_decref(alone);
  json_decref(shared);
}

/* All ranks end in the same step, over gradients that are not finite: the checkpoint that they are writing is
 * completed. */
static void ranks_that_end_together_complete_their_checkpoint(void **state) {
  char name[64];
  expect_ranks(2, 2,
               run_of(*state, "shared",
                      "--set optimizer.learning_rate=1000 --set optimizer.max_grad_norm=0 "
                      "--set train.diffusion_weight=1000000 --set train.steps=60 --set checkpoint.interval=1 "
                      "--set watch.max_skipped=1"),
               "1 steps in a row");
  json_t *line = last_metrics(in_folder(*state, "shared"), "skipped");
  snprintf(name, sizeof name, "checkpoints/step-%d/state.json", (int)number_in(line, "step") - 1);
  assert_true(hv_file_exists(in_run(*state, "shared", name)));
  json_decref(line);
}

/* Writing the report of a long run takes longer than ranks wait for one another in a step; it is written all the same.
 */
static void the_report_of_a_failed_run_is_waited_for(void **state) {
  enum { LINES = 60000 };
  expect_ranks(0, 2, run_of(*state, "run", "--set train.steps=1"), "done");
  const char *path = in_run(*state, "run", "metrics.jsonl");
  char *line = read_file(path);
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  for (int i = 0; i < LINES; i++) assert_true(fputs(line, file) >= 0);
  assert_int_equal(fclose(file), 0);
  free(line);
  assert_int_equal(unlink(in_run(*state, "run", "report.html")), 0);
  expect_ranks(2, 2,
               run_of(*state, "run",
                      "--resume --set optimizer.learning_rate=1000 --set optimizer.max_grad_norm=0 "
                      "--set train.diffusion_weight=1000000 --set train.steps=60 --set watch.max_skipped=1 "
                      "--set parallel.timeout=1"),
               "1 steps in a row");
  assert_true(hv_file_exists(in_run(*state, "run", "report.html")));
}

/* One rank has an error that the others learn of in the same step: a picture that cannot be read, in the next batch or
 * in the middle of a step. The checkpoint that is being written is completed all the same. */
static void one_ranks_error_costs_no_checkpoint(void **state) {
  static const struct {
    int sample; /* number of a sample in the run; batches are of 8, and each rank gets half */
    const char *settings, *checkpoint;
  } cases[] = {
      {28, "", "checkpoints/step-2/state.json"},
      {28, "--set parallel.sharding=parameters", "checkpoints/step-2/state.json"},
      {29, "--set train.micro_batch=1 --set parallel.sharding=gradients", "checkpoints/step-3/state.json"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char rest[512], name[16];
    const char *path = in_folder(*state, "damaged.hdf5");
    const char *episode = write_damaged_demonstrations(path, frame_of_sample(cases[i].sample));
    snprintf(name, sizeof name, "run-%zu", i);
    snprintf(rest, sizeof rest, "--set 'data.files=%s' --set checkpoint.interval=1 %s", path, cases[i].settings);
    expect_ranks(2, 2, run_of(*state, name, rest), "the step failed on rank 1: ", episode);
    if (!hv_file_exists(in_run(*state, name, cases[i].checkpoint))) fail_msg("%s: no %s", name, cases[i].checkpoint);
    char *card = read_file(in_run(*state, name, "run.json"));
    assert_true(strstr(card, "\"failed\"") && strstr(card, episode));
    free(card);
    assert_true(hv_file_exists(in_run(*state, name, "report.html")));
  }
}

/* One of two ranks is stopped three quarters of the time, which is more than other load on the machine can slow down
 * the other rank. */
static void a_slow_rank_is_told(void **state) {
  char log[512];
  bool told = false;
  snprintf(log, sizeof log, "%s/log", (const char *)*state);
  pid_t process =
      start_ranks(2, BRIEFLY,
                  run_of(*state, "run",
                         LARGE_VOCABULARY "--set train.steps=1000000 --set checkpoint.interval=0 --set log_interval=5"),
                  log);
  wait_for_text(log, "step 5/");
  pid_t slow = process_of_a_rank(process, 1);
  assert_true(slow > 0);
  for (int i = 0; i < 600 && !told; i++) {
    (void)kill(slow, i % 4 == 3 ? SIGCONT : SIGSTOP);
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    char *text = read_file(log);
    told = strstr(text, "holds up the others") != NULL;
    free(text);
  }
  (void)kill(slow, SIGCONT);
  assert_int_equal(kill(process, SIGUSR1), 0);
  assert_int_equal(wait_for_exit(process), 75);
  assert_true(told);
  json_t *line = last_metrics(in_folder(*state, "run"), "slowest_rank");
  assert_true(json_number_value(json_object_get(line, "rank_s_max")) >=
              json_number_value(json_object_get(line, "rank_s")));
  json_decref(line);
}

/* Starts two ranks that measure for a second or more before the first step. All held-out frames are in one batch, so
 * that reading batches does not keep the ranks in step. Returns when they begin, with the process of rank 1 in *second.
 */
static pid_t start_measuring(const char *folder, const char *log, double timeout, pid_t *second) {
  char rest[512];
  snprintf(rest, sizeof rest,
           "--set data.valid_split=train --set validation.at_start=true --set validation.ddim_steps=100 "
           "--set train.steps=1 --set train.batch_size=870 --set parallel.timeout=%g",
           timeout);
  pid_t mpirun = start_ranks(2, PATIENTLY, run_of(folder, "run", rest), log);
  wait_for_text(log, "training frames");
  *second = process_of_a_rank(mpirun, 1);
  assert_true(*second > 0);
  return mpirun;
}

/* One of two ranks is stopped again and again while both measure, in total for longer than a rank may be late in a
 * step. */
static void a_rank_may_measure_more_slowly(void **state) {
  char log[512];
  pid_t slow;
  snprintf(log, sizeof log, "%s/log", (const char *)*state);
  pid_t process = start_measuring(*state, log, 5, &slow);
  for (int i = 0; i < 7; i++) {
    (void)kill(slow, SIGSTOP);
    nanosleep(&(struct timespec){.tv_nsec = 900000000}, NULL);
    (void)kill(slow, SIGCONT);
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
  }
  int code = wait_for_exit(process);
  char *text = read_file(log);
  if (code != 0) fail_msg("two ranks, one slow to measure, ended with %d:\n%s", code, text);
  free(text);
}

/* A rank that stops for good while it measures is reported as in a step. */
static void a_rank_that_hangs_while_it_measures_is_named(void **state) {
  char log[512];
  pid_t hanging;
  double seconds;
  snprintf(log, sizeof log, "%s/log", (const char *)*state);
  pid_t process = start_measuring(*state, log, 5, &hanging);
  double start = hv_clock_seconds();
  assert_int_equal(kill(hanging, SIGSTOP), 0);
  int code = wait_for_all(process, hanging, start, &seconds);
  char *text = read_file(log);
  if (code == 0 || !strstr(text, "did not come for 5 s") || !strstr(text, "held-out frames cannot end on rank 0")) {
    fail_msg("two ranks, one stopped, ended with %d:\n%s", code, text);
  }
  free(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_run_goes_on_with_other_numbers_of_ranks, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_run_in_bf16_goes_on_with_other_numbers_of_ranks, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_run_with_8_bit_moments_goes_on_with_other_numbers_of_ranks, make_folder,
                                      remove_folder),
      cmocka_unit_test_setup_teardown(a_signal_ends_all_ranks_with_a_checkpoint, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_launcher_ends_with_a_checkpoint, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_launcher_can_be_stopped_at_once, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_checkpoint_that_lacks_a_part_is_passed_over, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_model_comes_from_the_parts_of_all_ranks, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_killed_rank_leaves_a_run_that_goes_on, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_checkpoint_that_is_there_is_not_given_up, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_rank_and_mpirun_killed_together_end_the_others, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_skip_the_same_steps, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_that_end_together_complete_their_checkpoint, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(one_ranks_error_costs_no_checkpoint, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_report_of_a_failed_run_is_waited_for, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_slow_rank_is_told, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_rank_may_measure_more_slowly, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_rank_that_hangs_while_it_measures_is_named, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_keep_the_best_model, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_end_early_together, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(one_rank_tells_of_the_start, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_that_cannot_share_the_batch_are_refused, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
