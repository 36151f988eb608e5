/* hvla-infer from outside. */
#ifndef HV_TESTS_INFER_PROGRAM_H
#define HV_TESTS_INFER_PROGRAM_H

#include <jansson.h>

#include "tests/shell.h"

/* run_shell of "hvla-infer <arguments>" in the folder, with its streams apart. */
int run_infer(const char *folder, const char *arguments, char **out, char **errors);

/* The same with a command in front of it ("ulimit -f 100;"). */
int run_infer_after(const char *before, const char *folder, const char *arguments, char **out, char **errors);

/* Its output, which must be one JSON value and all that it says. */
json_t *infer_json(const char *folder, const char *arguments);

/* It must end with this code, print nothing on standard output, and say every one of the words. */
#define infer_fails(folder, code, ...) infer_fails_words(folder, code, (const char *const[]){__VA_ARGS__, NULL})
#define infer_refuses(folder, ...) infer_fails(folder, 2, __VA_ARGS__)
void infer_fails_words(const char *folder, int code, const char *const *arguments_and_words);

#endif
