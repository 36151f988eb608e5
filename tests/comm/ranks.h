/* Starts a program as several ranks of one run, by mpirun or without it, however few processors there are. */
#ifndef HV_TESTS_COMM_RANKS_H
#define HV_TESTS_COMM_RANKS_H

#include <stdbool.h>

#include "tests/shell.h"

/* Runs "mpirun -np <ranks> <build folder>/<command>" by run_shell, with both streams of all ranks in *output. `seconds`
 * (optional) receives how long it took. mpirun is given BRIEFLY, see below. */
int run_ranks(int ranks, const char *command, char **output, double *seconds);

/* Runs the ranks without mpirun, with the variables that a launcher such as torchrun sets: RANK, WORLD_SIZE,
 * LOCAL_RANK, MASTER_ADDR and a free MASTER_PORT. Returns 0 if all end with 0, else an exit code that is not 0; *output
 * as above. */
int run_ranks_without_mpi(int ranks, const char *command, char **output);

/* Seconds that mpirun leaves the other ranks, twice, when one has ended badly: PATIENTLY as scripts/launch/mpirun.sh
 * does, so that they can report a rank that was killed or hangs; BRIEFLY if all ranks know that they end. */
enum { PATIENTLY = 3, BRIEFLY = 1 };

/* Starts ranks as run_ranks does, without waiting. Output goes to the file `log`; ranks write to it directly, so that
 * nothing is lost if mpirun crashes. Returns the process of mpirun itself. If it is killed, it leaves files in
 * `log`.tmp, which would stop a later mpirun with the same log and process id. */
pid_t start_ranks(int ranks, int patience, const char *command, const char *log);

/* The same by scripts/launch/mpirun.sh, in a user's environment; returns the process of the script. */
pid_t start_launcher(int ranks, const char *command, const char *log);

/* Waits until the process has installed a handler for the signal; a shell that has just been started has none yet. */
void wait_for_handler(pid_t process, int signal_number);

/* The process of one of the ranks that `mpirun` started; 0 if there is none. */
pid_t process_of_a_rank(pid_t mpirun, int which);

/* Whether the process has ended, even if nobody has waited for it yet. */
bool process_has_ended(pid_t process);

/* Runs ranks by run_ranks; fails the test unless the exit code is `code` and the output contains every one of the
 * strings. */
#define expect_ranks(code, ranks, command, ...)                                                                        \
  check_ranks(code, ranks, command, (const char *const[]){__VA_ARGS__, (void *)0})
void check_ranks(int code, int ranks, const char *command, const char *const *words);

/* Each rank has written the collectives that it called to folder/record-RANK.txt. Fails unless all files are the same
 * and contain `line`. */
void expect_same_records(const char *folder, int ranks, const char *line);

#endif
