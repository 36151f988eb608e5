/* The timeline (--trace) of a run on two ranks: the spans that it contains, and that communication overlaps
 * computation. */
#include <jansson.h>

#include "tests/check.h"
#include "tests/comm/ranks.h"
#include "tests/train/program.h"

/* Rows as core/tensor/trace.h numbers them. */
enum { COMPUTE, COMMUNICATION, LOADER, CHECKPOINT, UPLOAD };

static json_t *read_trace(const char *folder, const char *name) {
  char *text = read_file(in_folder(folder, name));
  json_error_t error;
  json_t *trace = json_loads(text, 0, &error);
  free(text);
  if (!trace) fail_msg("%s: %s", name, error.text);
  return trace;
}

/* Whether the event is a span in the row whose name begins with that text. */
static bool is_span(const json_t *event, int row, const char *beginning) {
  const char *name = json_string_value(json_object_get(event, "name"));
  return strcmp(json_string_value(json_object_get(event, "ph")), "X") == 0 &&
         json_integer_value(json_object_get(event, "tid")) == row && strncmp(name, beginning, strlen(beginning)) == 0;
}

static double begin_of(const json_t *event) {
  return json_number_value(json_object_get(event, "ts"));
}

static double end_of(const json_t *event) {
  return begin_of(event) + json_number_value(json_object_get(event, "dur"));
}

static int count_spans(const json_t *events, int row, const char *beginning) {
  int count = 0;
  size_t i;
  const json_t *event;
  json_array_foreach(events, i, event) count += is_span(event, row, beginning);
  return count;
}

/* Microseconds during which spans of both kinds are under way. Spans of one kind do not overlap each other. */
static double overlap(const json_t *events, int row_a, const char *a, int row_b, const char *b) {
  double sum = 0;
  size_t i, j;
  const json_t *x, *y;
  json_array_foreach(events, i, x) {
    if (!is_span(x, row_a, a)) continue;
    json_array_foreach(events, j, y) {
      if (!is_span(y, row_b, b)) continue;
      double begin = begin_of(x) > begin_of(y) ? begin_of(x) : begin_of(y);
      double end = end_of(x) < end_of(y) ? end_of(x) : end_of(y);
      if (end > begin) sum += end - begin;
    }
  }
  return sum;
}

/* Trains six steps on two ranks in folder/RUN, with the trace in folder/RUN.json. Returns the document of rank 0;
 * *events is a part of it. */
static json_t *trace_run(const char *folder, const char *sharding, const char *run, const json_t **events) {
  char command[2048], name[64];
  snprintf(name, sizeof name, "%s.json", run);
  snprintf(command, sizeof command,
           "train/hvla-train run --config '%s' --set 'output=%s/%s' " LARGE_VOCABULARY
           "--set train.batch_size=8 --set train.steps=6 --set "
           "checkpoint.interval=3 --set parallel.sharding=%s --trace '%s/%s'",
           write_tiny_config(folder, "unset"), folder, run, sharding, folder, name);
  expect_ranks(0, 2, command, "done");
  json_t *trace = read_trace(folder, name);
  *events = json_object_get(trace, "traceEvents");
  assert_true(json_is_array(*events));
  return trace;
}

/* On a busy machine the scheduler decides what overlaps, so only one of several runs must show it. `work`: names of
 * computations, with a NULL at the end. */
static void expect_beside(const char *folder, const char *sharding, const char *sums, const char *const *work) {
  enum { TRIES = 6 };
  double beside = 0;
  for (int i = 0; i < TRIES && beside <= 0; i++) {
    char run[64];
    const json_t *events;
    snprintf(run, sizeof run, "%s-%d", sharding, i);
    json_t *trace = trace_run(folder, sharding, run, &events);
    for (int w = 0; work[w]; w++) beside += overlap(events, COMMUNICATION, sums, COMPUTE, work[w]);
    json_decref(trace);
  }
  print_message("%s: %.0f us of %s beside computation\n", sharding, beside, sums);
  assert_true(beside > 0);
}

static void a_timeline_names_all_there_is(void **state) {
  const json_t *events;
  json_t *trace = trace_run(*state, "replicate", "run", &events);
  assert_true(count_spans(events, COMPUTE, "forward llm_backbone.llm.model.layers.0") >= 6);
  assert_int_equal(count_spans(events, COMPUTE, "backward llm_backbone.llm.model.layers.0"), 6);
  assert_int_equal(count_spans(events, COMPUTE, "update"), 6);
  assert_int_equal(count_spans(events, COMMUNICATION, "all_reduce gradients of llm_backbone.llm.model.layers.0"), 6);
  assert_true(count_spans(events, LOADER, "wait for a batch") >= 6);
  assert_int_equal(count_spans(events, CHECKPOINT, "write training-00001-of-00002"), 2);
  assert_true(count_spans(events, UPLOAD, "upload a batch") >= 6);
  json_decref(trace);
  json_t *other = read_trace(*state, "run.json.1");
  assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(other, "traceEvents"), 9), "pid")),
                   1);
  json_decref(other);
}

static void sums_run_beside_the_backward_pass(void **state) {
  static const char *const work[] = {"backward", NULL};
  expect_beside(*state, "replicate", "all_reduce gradients", work);
}

static void values_come_beside_the_forward_pass(void **state) {
  static const char *const forward[] = {"forward", NULL}, *const both[] = {"forward", "update", NULL};
  expect_beside(*state, "parameters", "all_gather values", forward);
  expect_beside(*state, "optimizer", "all_gather values", both);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_timeline_names_all_there_is, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(sums_run_beside_the_backward_pass, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(values_come_beside_the_forward_pass, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
