/* hvla-data from outside. */
#ifndef HV_TESTS_DATA_PROGRAM_H
#define HV_TESTS_DATA_PROGRAM_H

#include <jansson.h>

#include "tests/shell.h"

/* run_shell of "hvla-data <arguments>", with its streams apart. */
int run_data(const char *arguments, char **out, char **errors);

/* The JSON that a call prints, which must end with `code` and, at 0, say nothing else; json_decref it. */
json_t *data_json(int code, const char *arguments);

#endif
