/* Starts programs as several ranks of one run, on however few processors there are. */
#ifndef HV_TESTS_COMM_RANKS_H
#define HV_TESTS_COMM_RANKS_H

#include <stdbool.h>

#include "tests/shell.h"

/* run_shell of "mpirun -np <ranks> <build folder>/<command>" with both streams of all ranks in *output; `seconds`
 * (optional) receives how long it took. */
int run_ranks(int ranks, const char *command, char **output, double *seconds);

/* Runs the ranks without mpirun, each as a launcher like torchrun would: RANK, WORLD_SIZE, LOCAL_RANK and a
 * MASTER_PORT that is free. Returns the first exit code that is not 0; *output as above. */
int run_ranks_without_mpi(int ranks, const char *command, char **output);

/* How long mpirun leaves the other ranks when one has ended badly, in seconds, twice: as scripts/launch/mpirun.sh does,
 * for what they have to say of a rank that was killed or hangs; or briefly, where all know that they end. */
enum { PATIENTLY = 3, BRIEFLY = 1 };

/* Starts ranks as run_ranks does, which is brief, without waiting; output goes to the file `log`, that of ranks
 * directly, so that an mpirun that crashes takes none of it along. The process is mpirun itself; what it leaves behind
 * when it is killed lies beside the log, and would stop a later mpirun of the same number. */
pid_t start_ranks(int ranks, int patience, const char *command, const char *log);

/* The same by scripts/launch/mpirun.sh, which is the process, in the environment of whoever uses it. */
pid_t start_launcher(int ranks, const char *command, const char *log);

/* Waits until the process has a handler for the signal, as a shell that begins has not yet. */
void wait_for_handler(pid_t process, int signal_number);

/* The process of one of the ranks that `mpirun` started; 0: there is none. */
pid_t process_of_a_rank(pid_t mpirun, int which);

/* Also true of one that nobody has waited for yet. */
bool process_has_ended(pid_t process);

/* The same as run_ranks, failing the test unless the exit code is as given and the output holds every one of the words.
 */
#define expect_ranks(code, ranks, command, ...)                                                                        \
  check_ranks(code, ranks, command, (const char *const[]){__VA_ARGS__, (void *)0})
void check_ranks(int code, int ranks, const char *command, const char *const *words);

/* folder/record-RANK.txt, the collectives that each rank made: there, all the same, and holding `line`. */
void expect_same_records(const char *folder, int ranks, const char *line);

#endif
