/* Runs the program hvla-train for tests: to its end, or started in the background so that it can be sent signals; and
 * reads what a run leaves. */
#ifndef HV_TESTS_TRAIN_PROGRAM_H
#define HV_TESTS_TRAIN_PROGRAM_H

#include <jansson.h>

#include "tests/shell.h"

#define DEMONSTRATIONS HVLA_SOURCE_DIR "/data/demos/lift.hdf5"

/* Runs "<prefix> hvla-train <arguments>" by run_shell, with both streams in *output. `prefix` is shell text such as
 * "ulimit -f 100;", or "". */
int run_train(const char *prefix, const char *arguments, char **output);

/* Runs hvla-train; fails the test unless its exit code is `code` and its output contains every one of the strings. */
void expect_train(int code, const char *arguments, ...) __attribute__((sentinel));

/* Starts "hvla-train <arguments>" with its output going to the file `log`. Returns the process of hvla-train itself. */
pid_t start_train(const char *arguments, const char *log);
/* Waits for at most a minute until the file contains the text; then the test fails. */
void wait_for_text(const char *path, const char *text);

/* Writes a configuration of a tiny model on the shipped demonstrations, with the run directory `output`, into `folder`.
 * Returns its path, which is valid until the next call. */
const char *write_tiny_config(const char *folder, const char *output);

/* A setting that gives the model twenty times as many parameters: for files that must be large, and runs that must be
 * slow enough for a signal to arrive before the last step. */
#define LARGE_VOCABULARY "--set model.llm.vocab_size=32064 "

/* The arguments "run --config C --set output=<folder>/<name> <rest>" with this configuration; valid until the next
 * call. */
const char *run_arguments(const char *folder, const char *name, const char *rest);

/* The path "<folder>/<name>/<file>" of a file in a run directory; valid until the fourth call after this one. */
const char *in_run(const char *folder, const char *name, const char *file);

/* The lines of a run's metrics.jsonl as an array; fails the test if one is no JSON. json_decref it. */
json_t *read_metrics(const char *run);

/* The last line of a run's metrics.jsonl that has the key, NULL if none has; json_decref it. */
json_t *last_metrics(const char *run, const char *key);

/* The number under the key of such a line or another object; fails the test if it is none. */
double number_in(const json_t *object, const char *key);

/* Changes one bit in the middle of a file. */
void flip_a_bit(const char *path);

/* Sets the bias of the noise head in a model's file to `value`. */
void spoil_model(const char *path, float value);

/* Fails unless two runs on one rank left the same bytes: the checkpoint of the step, and the model. */
void assert_same_state(const char *folder, const char *a, const char *b, int step);

#endif
