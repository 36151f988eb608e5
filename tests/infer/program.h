/* Runs the program hvla-infer for tests. */
#ifndef HV_TESTS_INFER_PROGRAM_H
#define HV_TESTS_INFER_PROGRAM_H

#include <jansson.h>

#include "tests/shell.h"

/* Runs "hvla-infer <arguments>" in the folder by run_shell, with its two streams apart. */
int run_infer(const char *folder, const char *arguments, char **out, char **errors);

/* The same with shell text before it, such as "ulimit -f 100;". */
int run_infer_after(const char *before, const char *folder, const char *arguments, char **out, char **errors);

/* The JSON value that it prints. Fails the test unless it ends with 0 and prints nothing else. */
json_t *infer_json(const char *folder, const char *arguments);

/* Fails the test unless it ends with this code, prints nothing to standard output, and prints every one of the strings
 * to standard error. */
#define infer_fails(folder, code, ...) infer_fails_words(folder, code, (const char *const[]){__VA_ARGS__, NULL})
#define infer_refuses(folder, ...) infer_fails(folder, 2, __VA_ARGS__)
void infer_fails_words(const char *folder, int code, const char *const *arguments_and_words);

#endif
