/* Runs shell lines for a test and tells how they end and what they print. Lines are formatted as by printf and may have
 * any length. If a system call fails here, the test fails. */
#ifndef HV_TESTS_SHELL_H
#define HV_TESTS_SHELL_H

#include <sys/types.h>

#include "core/base/status.h"

/* Runs a line with sh -c until it and all others that hold its output have ended. Returns its exit code, or 128 + n
 * if signal n killed it. *out receives standard output and *errors standard error, on the heap, without zero bytes (the
 * launcher of Open MPI 5 writes some when ranks fail). If `errors` is NULL, both go to *out, in the order in which they
 * are written. */
int run_shell(char **out, char **errors, const char *format, ...) HV_PRINTF(3, 4);

/* Runs a line; unless it ends with 0, the test fails and shows what the line printed. */
void must_shell(const char *format, ...) HV_PRINTF(1, 2);

/* Starts a line without waiting for it; it prints to the test's own streams. Returns the process of the shell, or of
 * the program if the line begins with exec. */
pid_t start_shell(const char *format, ...) HV_PRINTF(1, 2);

/* Waits until a started process has ended. Returns its exit code, or 128 + n after signal n. */
int wait_for_exit(pid_t process);

/* The same code, from a status that waitpid gave. */
int exit_code_of(int status);

#endif
