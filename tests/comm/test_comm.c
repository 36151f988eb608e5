/* Communicators over MPI: a single rank in this process, and up to 8 ranks of comm_ranks.c started by mpirun. Sums must
 * be right to the bit, and a rank that is late, astray, failed or killed must be named. Also: how ranks read the
 * environment of their launcher. */
#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/cpu/cpu.h"
#include "tests/check.h"
#include "tests/comm/ranks.h"
#include "train/ranks/launch.h"

static void check_all_ranks(const char *folder, int ranks, const char *device) {
  char command[512];
  snprintf(command, sizeof command, "tests/comm/comm_ranks collectives '%s' %s", folder, device);
  expect_ranks(0, ranks, command, "");
  expect_same_records(folder, ranks, "reduce_scatter bf16 3000 test data\n");
}

static void collectives_give_the_sums_in_rank_order(void **state) {
  for (int ranks = 2; ranks <= 8; ranks *= 2) check_all_ranks(*state, ranks, "cpu");
  check_all_ranks(*state, 3, "cpu");
}

/* On the emulated card, whose memory can only be accessed by its copies. */
static void collectives_run_on_a_device_of_its_own_memory(void **state) {
  check_all_ranks(*state, 2, "emu");
}

static void a_late_rank_is_named_with_the_operation(void **state) {
  (void)state;
  expect_ranks(2, 3, "tests/comm/comm_ranks late", "rank 2 (process ", "did not come for 1 s",
               "all_reduce of what is awaited cannot end on rank 0");
  expect_ranks(2, 4, "tests/comm/comm_ranks late", "rank 2 (process ",
               "did not come for 1 s, nor did rank 3: all_reduce");
}

static void a_rank_that_makes_other_calls_is_named(void **state) {
  (void)state;
  expect_ranks(2, 2, "tests/comm/comm_ranks astray", "rank 1 (process ", "was in another operation for 1 s",
               "all_reduce of what all should do");
}

static void an_error_of_one_rank_ends_all(void **state) {
  (void)state;
  expect_ranks(2, 4, "tests/comm/comm_ranks fails", "rank 1: rank 1 has no disk");
}

static const char *log_of(const char *folder, int trial) {
  char name[32];
  snprintf(name, sizeof name, "log-%d", trial);
  return in_folder(folder, name);
}

/* Several runs at a time, because mpirun mostly waits. */
static void a_killed_rank_ends_all_with_its_name(void **state) {
  enum { AT_ONCE = 5 };
  int trials = getenv("HVLA_LONG_TESTS") ? 50 : 5, ms[AT_ONCE];
  pid_t mpirun[AT_ONCE];
  for (int trial = 0; trial < trials; trial += AT_ONCE) {
    double start = hv_clock_seconds();
    for (int i = 0; i < AT_ONCE; i++) {
      char command[128];
      ms[i] = (int)hv_random_below(5, HV_RANDOM_INIT, 0, (uint64_t)trial + (uint64_t)i, 0, 0, 400);
      snprintf(command, sizeof command, "tests/comm/comm_ranks dies %d", ms[i]);
      mpirun[i] = start_ranks(4, PATIENTLY, command, log_of(*state, i));
    }
    for (int i = 0; i < AT_ONCE; i++) {
      int code = wait_for_exit(mpirun[i]);
      char *output = read_file(log_of(*state, i));
      if (code == 0 || !strstr(output, "rank 1 (process ") || !strstr(output, "has died") ||
          !strstr(output, "all_reduce of endless numbers")) {
        fail_msg("four ranks, one killed after %d ms, ended with %d and said:\n%s", ms[i], code, output);
      }
      free(output);
    }
    assert_true(hv_clock_seconds() - start < 60);
  }
}

static void one_rank_has_nothing_to_do(void **state) {
  (void)state;
  hv_device *device;
  hv_comm *comm;
  hv_launch launch = {.size = 1};
  assert_ok(hv_cpu_device_open(&(hv_device_options){.threads = 1}, &device));
  assert_ok(hv_launch_open_comm(&launch, device, HV_TRANSPORT_AUTO, 1, &comm));
  float values[4] = {1, 2, 3, 4};
  double sum = 2.5;
  hv_text record = {0};
  hv_comm_record(comm, &record);
  hv_tensor whole = hv_tensor_make(values, HV_F32, 1, 4);
  hv_comm_all_reduce(comm, "values", whole, NULL);
  hv_comm_reduce_scatter(comm, "values", whole, hv_comm_share(comm, whole), NULL);
  hv_comm_all_gather(comm, "values", whole, whole, NULL);
  hv_comm_broadcast(comm, "values", 0, whole, NULL);
  assert_ok(hv_comm_sum(comm, "a number", &sum, 1));
  assert_ok(hv_comm_barrier(comm, "the end"));
  assert_true(values[0] == 1 && values[3] == 4 && sum == 2.5);
  assert_error(hv_comm_agree(comm, "a task", hv_error(HV_ERR_IO, "no disk")), "no disk");
  assert_true(hv_comm_all_know(comm));
  assert_non_null(strstr(hv_text_string(&record), "all_gather fp32 4 values\nbroadcast fp32 4 values\n"));
  hv_comm_record(comm, NULL);
  hv_text_free(&record);
  float elsewhere[4];
  hv_comm_all_gather(comm, "values", hv_tensor_make(elsewhere, HV_F32, 1, 4), whole, NULL); /* would leave it unset */
  assert_error(hv_comm_status(comm), "all_gather of values", "the share must be the whole");
  hv_comm_close(comm);
  hv_device_close(device);
}

static void wrong_operands_are_refused_before_anything_is_sent(void **state) {
  (void)state;
  hv_device *device;
  hv_comm *comm;
  int16_t values[6] = {0};
  hv_tensor whole = hv_tensor_make(values, HV_I16, 1, 6);
  assert_ok(hv_cpu_device_open(&(hv_device_options){.threads = 1}, &device));
  assert_ok(hv_comm_single_open(device, &comm));
  hv_comm_all_reduce(comm, "bits", whole, NULL);
  assert_error(hv_comm_status(comm), "all_reduce of bits", "i16 cannot be summed");
  hv_comm_broadcast(comm, "bits", 0, whole, NULL);
  assert_error(hv_comm_status(comm), "all_reduce of bits");
  hv_comm_close(comm);
  assert_ok(hv_comm_single_open(device, &comm));
  hv_comm_all_gather(comm, "bits", hv_tensor_cols(whole, 0, 4), whole, NULL);
  assert_error(hv_comm_status(comm), "a share of 4 i16 does not fit 6 i16 on 1 ranks");
  hv_comm_close(comm);
  assert_ok(hv_comm_single_open(device, &comm));
  hv_comm_broadcast(comm, "bits", 1, whole, NULL);
  assert_error(hv_comm_status(comm), "no rank 1 among 1");
  hv_comm_close(comm);
  hv_device_close(device);
}

static const char *const launch_keys[] = {"OMPI_COMM_WORLD_RANK",
                                          "OMPI_COMM_WORLD_SIZE",
                                          "OMPI_COMM_WORLD_LOCAL_RANK",
                                          "PMI_RANK",
                                          "PMI_SIZE",
                                          "MPI_LOCALRANKID",
                                          "RANK",
                                          "WORLD_SIZE",
                                          "LOCAL_RANK",
                                          "SLURM_PROCID",
                                          "SLURM_STEP_NUM_TASKS",
                                          "SLURM_LOCALID",
                                          "PMIX_NAMESPACE",
                                          "TORCHELASTIC_RUN_ID",
                                          "SLURM_JOB_ID",
                                          "SLURM_STEP_ID",
                                          "SLURM_HET_SIZE"};

static void clear_launch(void) {
  for (size_t i = 0; i < sizeof launch_keys / sizeof launch_keys[0]; i++) unsetenv(launch_keys[i]);
}

static void the_launcher_is_read_from_the_environment(void **state) {
  (void)state;
  hv_launch launch;
  clear_launch();
  assert_ok(hv_launch_read(&launch));
  assert_true(launch.rank == 0 && launch.size == 1 && launch.rank_key == NULL);
  for (size_t i = 0; i < 12; i += 3) {
    setenv(launch_keys[i], "5", 1);
    setenv(launch_keys[i + 1], "8", 1);
    setenv(launch_keys[i + 2], "1", 1);
    assert_ok(hv_launch_read(&launch));
    assert_true(launch.rank == 5 && launch.size == 8 && launch.local_rank == 1);
    setenv(launch_keys[i], "8", 1);
    assert_error(hv_launch_read(&launch), launch_keys[i], "\"8\"", "from 0 to 7");
    setenv(launch_keys[i], "two", 1);
    assert_error(hv_launch_read(&launch), launch_keys[i], "\"two\"");
    setenv(launch_keys[i], "0", 1);
    setenv(launch_keys[i + 1], "0", 1);
    assert_error(hv_launch_read(&launch), launch_keys[i + 1], "is 0");
    setenv(launch_keys[i + 1], "1", 1);
    unsetenv(launch_keys[i + 2]);
    assert_ok(hv_launch_read(&launch));
    assert_true(launch.rank == 0 && launch.size == 1 && launch.local_rank == 0);
    clear_launch();
  }
}

/* srun --mpi=pmi2 sets PMI's variables as well, which have no local rank: SLURM's are preferred if they fit. */
static void slurm_is_known_behind_pmi(void **state) {
  (void)state;
  static const char *const values[][2] = {{"PMI_RANK", "5"},
                                          {"PMI_SIZE", "8"},
                                          {"SLURM_PROCID", "5"},
                                          {"SLURM_STEP_NUM_TASKS", "8"},
                                          {"SLURM_LOCALID", "1"}};
  hv_launch launch;
  clear_launch();
  for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) setenv(values[i][0], values[i][1], 1);
  assert_ok(hv_launch_read(&launch));
  assert_true(launch.rank == 5 && launch.size == 8 && launch.local_rank == 1);
  assert_string_equal(launch.rank_key, "SLURM_PROCID");
  setenv("SLURM_STEP_NUM_TASKS", "2", 1); /* the step of a launcher that was started in SLURM */
  assert_ok(hv_launch_read(&launch));
  assert_string_equal(launch.rank_key, "PMI_RANK");
  setenv("MPI_LOCALRANKID", "3", 1);
  setenv("SLURM_STEP_NUM_TASKS", "8", 1);
  assert_ok(hv_launch_read(&launch));
  assert_int_equal(launch.local_rank, 3);
  clear_launch();
}

/* The name of a run comes from the launcher that set the rank, because mpirun and torchrun may run inside a SLURM job.
 */
static void the_launcher_names_the_run(void **state) {
  (void)state;
  static const char *const runs[] = {"PMIX_NAMESPACE=689635329", "", "TORCHELASTIC_RUN_ID=pick-7",
                                     "SLURM_JOB_ID=4711 SLURM_STEP_ID=3"};
  hv_launch launch;
  clear_launch();
  setenv("PMIX_NAMESPACE", "689635329", 1);
  setenv("TORCHELASTIC_RUN_ID", "pick-7", 1);
  setenv("SLURM_JOB_ID", "4711", 1);
  setenv("SLURM_STEP_ID", "3", 1);
  for (size_t i = 0; i < 12; i += 3) {
    setenv(launch_keys[i], "1", 1);
    setenv(launch_keys[i + 1], "2", 1);
    assert_ok(hv_launch_read(&launch));
    assert_string_equal(launch.run, runs[i / 3]);
    unsetenv(launch_keys[i]);
  }
  setenv("SLURM_PROCID", "1", 1);
  setenv("SLURM_HET_SIZE", "2", 1);
  assert_ok(hv_launch_read(&launch));
  assert_string_equal(launch.run, "");
  setenv("RANK", "1", 1);
  setenv("TORCHELASTIC_RUN_ID", "none", 1);
  assert_ok(hv_launch_read(&launch));
  assert_string_equal(launch.run, "");
  clear_launch();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_rank_has_nothing_to_do),
      cmocka_unit_test(wrong_operands_are_refused_before_anything_is_sent),
      cmocka_unit_test(the_launcher_is_read_from_the_environment),
      cmocka_unit_test(slurm_is_known_behind_pmi),
      cmocka_unit_test(the_launcher_names_the_run),
      cmocka_unit_test_setup_teardown(collectives_give_the_sums_in_rank_order, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(collectives_run_on_a_device_of_its_own_memory, make_folder, remove_folder),
      cmocka_unit_test(a_late_rank_is_named_with_the_operation),
      cmocka_unit_test(a_rank_that_makes_other_calls_is_named),
      cmocka_unit_test(an_error_of_one_rank_ends_all),
      cmocka_unit_test_setup_teardown(a_killed_rank_ends_all_with_its_name, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
