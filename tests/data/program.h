/* Runs the program hvla-data for tests. */
#ifndef HV_TESTS_DATA_PROGRAM_H
#define HV_TESTS_DATA_PROGRAM_H

#include <jansson.h>

#include "tests/shell.h"

/* Runs "hvla-data <arguments>" by run_shell, with its two streams apart. */
int run_data(const char *arguments, char **out, char **errors);

/* Runs hvla-data; fails the test unless it ends with `code` and prints JSON. If the code is 0, nothing may be printed
 * to standard error. Returns the JSON; json_decref it. */
json_t *data_json(int code, const char *arguments);

#endif
