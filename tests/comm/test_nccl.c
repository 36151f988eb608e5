/* The communicator over NCCL, with the emulated device's replacement for the library: collectives, and errors that end
 * a run; with ranks that mpirun starts, and with ranks that have only environment variables. */
#include "core/base/clock.h"
#include "core/base/random.h"
#include "tests/check.h"
#include "tests/comm/ranks.h"

static void collectives_give_the_sums_in_rank_order(void **state) {
  char command[512];
  snprintf(command, sizeof command, "tests/comm/comm_ranks collectives '%s' emu nccl", (const char *)*state);
  for (int ranks = 2; ranks <= 8; ranks *= 2) {
    expect_ranks(0, ranks, command, "connected by nccl");
    expect_same_records(*state, ranks, "reduce_scatter bf16 3000 test data\n");
  }
}

static void ranks_need_no_mpi(void **state) {
  char command[512], *output;
  snprintf(command, sizeof command, "tests/comm/comm_ranks collectives '%s' emu nccl", (const char *)*state);
  int code = run_ranks_without_mpi(4, command, &output);
  if (code != 0 || !strstr(output, "4 ranks on 1 host")) fail_msg("it ended with %d and said:\n%s", code, output);
  free(output);
  expect_same_records(*state, 4, "all_gather fp32 4096 test data\n");
}

static void a_training_needs_no_mpi(void **state) {
  char command[512], *output;
  snprintf(command, sizeof command, "tests/comm/train_ranks '%s' device=emu samples=2 branches=1 steps=2 sharding=%s",
           (const char *)*state, "parameters");
  int code = run_ranks_without_mpi(2, command, &output);
  if (code != 0 || !strstr(output, "parameters shared: loss")) fail_msg("it ended with %d and said:\n%s", code, output);
  free(output);
}

static void a_call_is_traced_until_all_have_come(void **state) {
  char command[512], *output;
  snprintf(command, sizeof command, "tests/comm/comm_ranks traced '%s' emu nccl", (const char *)*state);
  int code = run_ranks_without_mpi(2, command, &output);
  if (code != 0) fail_msg("it ended with %d and said:\n%s", code, output);
  free(output);
  char *trace = read_file(in_folder(*state, "trace.json"));
  const char *span = strstr(trace, "barrier a late rank"), *length = span ? strstr(span, "\"dur\":") : NULL;
  if (!length || strtod(length + 6, NULL) < 1e5) fail_msg("no span of 0.1 s or more:\n%s", trace);
  free(trace);
}

static void a_late_rank_is_named_with_the_operation(void **state) {
  (void)state;
  expect_ranks(2, 3, "tests/comm/comm_ranks late - emu nccl", "rank 2 (process ", "did not come for 1 s",
               "all_reduce of what is awaited cannot end on rank ");
}

static void calls_that_differ_end_all(void **state) {
  (void)state;
  expect_ranks(2, 2, "tests/comm/comm_ranks astray - emu nccl", "all_reduce of what all should do",
               "the ranks' calls differ");
}

static void an_error_of_one_rank_ends_all(void **state) {
  (void)state;
  char *output;
  int code = run_ranks_without_mpi(4, "tests/comm/comm_ranks fails - emu nccl", &output);
  if (code != 2 || !strstr(output, "rank 1: rank 1 has no disk") ||
      !strstr(output, "rank 3: rank 1 has ended with an error")) {
    fail_msg("it ended with %d and said:\n%s", code, output);
  }
  free(output);
}

static void a_rank_that_cannot_be_connected_says_why_to_all(void **state) {
  (void)state;
  char *output;
  int code = run_ranks_without_mpi(4, "tests/comm/comm_ranks poor - emu nccl", &output);
  bool told = code == 2;
  for (int r = 0; r < 4; r++) {
    char line[128];
    snprintf(line, sizeof line, "rank %d: rank 1 cannot be connected: out of memory on the emulated card", r);
    told = told && (r == 1 || strstr(output, line));
  }
  if (!told) fail_msg("it ended with %d and said:\n%s", code, output);
  free(output);
}

/* No launcher ends the other ranks: they notice the death themselves. */
static void a_killed_rank_ends_all_with_its_name(void **state) {
  (void)state;
  int trials = getenv("HVLA_LONG_TESTS") ? 50 : 5;
  for (int trial = 0; trial < trials; trial++) {
    char command[128], *output;
    int ms = (int)hv_random_below(6, HV_RANDOM_INIT, 0, (uint64_t)trial, 0, 0, 400);
    snprintf(command, sizeof command, "tests/comm/comm_ranks dies %d emu nccl", ms);
    double start = hv_clock_seconds();
    int code = run_ranks_without_mpi(4, command, &output);
    double seconds = hv_clock_seconds() - start;
    bool told = true;
    for (int r = 0; r < 4; r++) {
      char line[32];
      snprintf(line, sizeof line, "rank %d: rank 1 (process ", r);
      told = told && (r == 1 || strstr(output, line));
    }
    if (code == 0 || !told || !strstr(output, "has died") || !strstr(output, "all_reduce of endless numbers")) {
      fail_msg("four ranks, one killed after %d ms, ended with %d and said:\n%s", ms, code, output);
    }
    assert_true(seconds < 60);
    free(output);
  }
}

static void ranks_without_a_meeting_place_are_told_what_is_missing(void **state) {
  (void)state;
  char *output;
  int code = run_shell(&output, NULL,
                       "env -u MASTER_ADDR RANK=0 WORLD_SIZE=2 LD_LIBRARY_PATH='" HVLA_BINARY_DIR
                       "/lib' '" HVLA_BINARY_DIR "/tests/comm/comm_ranks' fails - emu nccl");
  assert_int_not_equal(code, 0);
  assert_non_null(strstr(output, "set MASTER_ADDR to the host of rank 0 and MASTER_PORT"));
  free(output);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(collectives_give_the_sums_in_rank_order, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_need_no_mpi, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_training_needs_no_mpi, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_call_is_traced_until_all_have_come, make_folder, remove_folder),
      cmocka_unit_test(a_late_rank_is_named_with_the_operation),
      cmocka_unit_test(calls_that_differ_end_all),
      cmocka_unit_test(an_error_of_one_rank_ends_all),
      cmocka_unit_test(a_rank_that_cannot_be_connected_says_why_to_all),
      cmocka_unit_test(a_killed_rank_ends_all_with_its_name),
      cmocka_unit_test(ranks_without_a_meeting_place_are_told_what_is_missing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
