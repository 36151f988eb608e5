/* Shell lines that a test runs: how they end and what they print. Lines are formatted as by printf and of any length; a
 * system call that fails fails the test. */
#ifndef HV_TESTS_SHELL_H
#define HV_TESTS_SHELL_H

#include <sys/types.h>

#include "core/base/status.h"

/* Runs a line with sh -c until it and all others that hold its output have ended. Returns its exit code, 128 + n after
 * signal n. *out receives standard output and *errors standard error, on the heap, all but zero bytes (the launcher of
 * Open MPI 5 writes some when ranks fail); without `errors` both go to *out, in the order in which they are written. */
int run_shell(char **out, char **errors, const char *format, ...) HV_PRINTF(3, 4);

/* Runs a line that is to end with 0, or the test fails with what it printed. */
void must_shell(const char *format, ...) HV_PRINTF(1, 2);

/* Starts a line without waiting; it prints where the test does. The process is the shell's, or the program's where the
 * line begins with exec. */
pid_t start_shell(const char *format, ...) HV_PRINTF(1, 2);

/* Waits until a started process has ended. Returns its exit code, 128 + n after signal n. */
int wait_for_exit(pid_t process);

/* That code, from the status that waitpid gives. */
int exit_code_of(int status);

#endif
