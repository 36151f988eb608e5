#include "tests/comm/ranks.h"

#include "core/base/clock.h"
#include "tests/check.h"
#include "train/ranks/rendezvous.h"

/* MPI itself never frees some memory, which a sanitizer would report. */
#define SANITIZER "ASAN_OPTIONS=\"$ASAN_OPTIONS:detect_leaks=0\" "
/* By default Open MPI refuses to start more ranks than processors, and to run as root, as in containers. Its launcher
 * has other variables (PRTE) since version 5; other MPIs ignore all of them. Device modules are in lib/. */
#define ENVIRONMENT                                                                                                    \
  "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 "                     \
  "OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 "                                            \
  "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none "                   \
  "OMP_NUM_THREADS=1 " SANITIZER "LD_LIBRARY_PATH='" HVLA_BINARY_DIR "/lib':\"$LD_LIBRARY_PATH\" "
#define PATIENCE "OMPI_MCA_odls_base_sigkill_timeout=%d "

int run_ranks(int ranks, const char *command, char **output, double *seconds) {
  double start = hv_clock_seconds();
  int code = run_shell(output, NULL, "exec env " ENVIRONMENT PATIENCE "'" HVLA_MPIRUN "' -np %d '%s'/%s", BRIEFLY,
                       ranks, HVLA_BINARY_DIR, command);
  if (seconds) *seconds = hv_clock_seconds() - start;
  return code;
}

int run_ranks_without_mpi(int ranks, const char *command, char **output) {
  int listener, port;
  /* Finds a port that is free now. */
  assert_ok(hv_rendezvous_listen(0, &listener, &port));
  (void)close(listener);
  return run_shell(output, NULL,
                   "for r in $(seq 0 %d); do env " ENVIRONMENT
                   "MASTER_ADDR=127.0.0.1 MASTER_PORT=%d WORLD_SIZE=%d RANK=$r LOCAL_RANK=$r '%s'/%s & "
                   "all=\"$all $!\"; done; code=0; for p in $all; do wait $p || code=$?; done; exit $code",
                   ranks - 1, port, ranks, HVLA_BINARY_DIR, command);
}

/* Each mpirun has its own folder for temporary files: Open MPI 4 fails now and then if one makes its session's folder
 * while another, just ending, removes the one that they share. */
pid_t start_ranks(int ranks, int patience, const char *command, const char *log) {
  (void)unlink(log); /* or the log of an earlier start would be taken for this one's */
  return start_shell("mkdir -p '%s.tmp' && exec env " ENVIRONMENT PATIENCE "TMPDIR='%s.tmp' '" HVLA_MPIRUN
                     "' -np %d sh -c \"exec '%s'/%s >> '%s' 2>&1\" >> '%s' 2>&1",
                     log, patience, log, ranks, HVLA_BINARY_DIR, command, log, log);
}

pid_t start_launcher(int ranks, const char *command, const char *log) {
  (void)unlink(log);
  return start_shell("exec env " SANITIZER PATIENCE "'%s/scripts/launch/mpirun.sh' -n %d '%s'/%s > '%s' 2>&1", BRIEFLY,
                     HVLA_SOURCE_DIR, ranks, HVLA_BINARY_DIR, command, log);
}

void wait_for_handler(pid_t process, int signal_number) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/status", (int)process);
  for (int tries = 0; tries < 6000; tries++) {
    FILE *file = fopen(path, "r");
    if (!file) break;
    static const char key[] = "SigCgt:";
    char line[256];
    unsigned long long caught = 0;
    while (fgets(line, sizeof line, file)) {
      if (strncmp(line, key, sizeof key - 1) == 0) caught = strtoull(line + sizeof key - 1, NULL, 16);
    }
    (void)fclose(file);
    if (caught >> (signal_number - 1) & 1) return;
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
  }
  fail_msg("process %d has no handler for signal %d", (int)process, signal_number);
}

pid_t process_of_a_rank(pid_t mpirun, int which) {
  char path[64];
  char word[32] = "0";
  snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)mpirun, (int)mpirun);
  FILE *file = fopen(path, "r");
  if (!file) return 0;
  bool found = true;
  for (int i = 0; i <= which && found; i++) found = fscanf(file, "%31s", word) == 1;
  (void)fclose(file);
  return found ? (pid_t)strtol(word, NULL, 10) : 0;
}

bool process_has_ended(pid_t process) {
  char path[64], state = 'X';
  snprintf(path, sizeof path, "/proc/%d/stat", (int)process);
  FILE *file = fopen(path, "r");
  if (!file) return true;
  bool found = fscanf(file, "%*d (%*[^)]) %c", &state) == 1;
  (void)fclose(file);
  return !found || state == 'Z' || state == 'X';
}

void check_ranks(int code, int ranks, const char *command, const char *const *words) {
  char *output;
  int found = run_ranks(ranks, command, &output, NULL);
  if (found != code) fail_msg("%d ranks of %s ended with %d, not %d:\n%s", ranks, command, found, code, output);
  for (; *words; words++) {
    if (!strstr(output, *words))
      fail_msg("the output of %d ranks of %s lacks \"%s\":\n%s", ranks, command, *words, output);
  }
  free(output);
}

void expect_same_records(const char *folder, int ranks, const char *line) {
  char *first = NULL;
  for (int r = 0; r < ranks; r++) {
    char name[32];
    snprintf(name, sizeof name, "record-%d.txt", r);
    char *record = read_file(in_folder(folder, name));
    assert_non_null(strstr(record, line));
    if (first) {
      assert_string_equal(first, record);
      free(record);
    } else {
      first = record;
    }
  }
  free(first);
}
