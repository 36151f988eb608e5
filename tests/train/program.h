/* hvla-train from outside: run to its end, or started and sent signals. */
#ifndef HV_TESTS_TRAIN_PROGRAM_H
#define HV_TESTS_TRAIN_PROGRAM_H

#include <jansson.h>

#include "tests/shell.h"

#define DEMONSTRATIONS HVLA_SOURCE_DIR "/data/demos/lift.hdf5"

/* run_shell of "hvla-train <arguments>" with both streams in *output; `prefix` ("ulimit -f 100;", "") stands before it.
 */
int run_train(const char *prefix, const char *arguments, char **output);

/* The same, failing the test unless the exit code is `code` and the output holds every one of the words. */
void expect_train(int code, const char *arguments, ...) __attribute__((sentinel));

/* start_shell of "hvla-train <arguments>", its output going to the file `log`; the process is hvla-train itself. */
pid_t start_train(const char *arguments, const char *log);
/* Waits until the file holds the text, for at most a minute; fails the test otherwise. */
void wait_for_text(const char *path, const char *text);

/* Writes a configuration of a tiny model on the shipped demonstrations, with the run directory `output`, and returns
 * its path inside `folder`; valid until the next call. */
const char *write_tiny_config(const char *folder, const char *output);

/* A setting with which that model has twenty times as many parameters, for what is to be large, or slow enough for
 * signals to come before the last step. */
#define LARGE_VOCABULARY "--set model.llm.vocab_size=32064 "

/* "run --config C --set output=<folder>/<name> <rest>" with that configuration; valid until the next call. */
const char *run_arguments(const char *folder, const char *name, const char *rest);

/* "<folder>/<name>/<file>": a file of a run directory; valid until the fourth call after this one. */
const char *in_run(const char *folder, const char *name, const char *file);

/* The lines of metrics.jsonl of a run, every one of which must be JSON; json_decref the array. */
json_t *read_metrics(const char *run);

/* The last line of metrics.jsonl of a run that has the key, NULL: none; json_decref it. */
json_t *last_metrics(const char *run, const char *key);

/* What such a line, or another object, has under the key, which must be a number. */
double number_in(const json_t *object, const char *key);

/* Changes one bit in the middle of a file. */
void flip_a_bit(const char *path);

/* Gives the noise head in a model's file a bias. */
void spoil_model(const char *path, float value);

/* Fails unless two runs of one rank ended in the same bytes: the checkpoint of the step, and the model. */
void assert_same_state(const char *folder, const char *a, const char *b, int step);

#endif
