/* TensorBoard's event files: framing and checksums are read back here, the figures by TensorBoard's own package if it
 * is installed. */
#include <dirent.h>
#include <math.h>

#include "tests/check.h"
#include "tests/train/program.h"
#include "train/watch/event.pb-c.h"
#include "train/watch/event_file.h"
#include "train/watch/metrics.h"

/* CRC-32C bit by bit, as it is defined. */
static uint32_t crc32c(const uint8_t *data, size_t size) {
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < size; i++) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
  }
  return ~crc;
}

static uint64_t little_endian(const uint8_t *bytes, int count) {
  uint64_t value = 0;
  for (int i = count; i-- > 0;) value = value << 8 | bytes[i];
  return value;
}

static void assert_checksum(const uint8_t *data, size_t size, const uint8_t *stored) {
  uint32_t crc = crc32c(data, size);
  assert_int_equal(little_endian(stored, 4), (uint32_t)((crc >> 15 | crc << 17) + 0xa282ead8u));
}

/* The event at *offset of a file; *offset moves to the next one. */
static Hv__Event *next_event(const hv_mapping *file, size_t *offset) {
  const uint8_t *record = file->data + *offset;
  assert_true(*offset + 12 <= file->size);
  assert_checksum(record, 8, record + 8);
  size_t length = little_endian(record, 8);
  assert_true(*offset + 12 + length + 4 <= file->size);
  assert_checksum(record + 12, length, record + 12 + length);
  *offset += 12 + length + 4;
  Hv__Event *event = hv__event__unpack(NULL, length, record + 12);
  assert_non_null(event);
  return event;
}

static int is_event_file(const struct dirent *entry) {
  return strstr(entry->d_name, "tfevents") != NULL;
}

/* Maps the newest of `count` event files of a run. */
static void map_newest(const char *run, int count, hv_mapping *out) {
  struct dirent **entries;
  assert_int_equal(scandir(in_folder(run, "tensorboard"), &entries, is_event_file, alphasort), count);
  char path[1024];
  snprintf(path, sizeof path, "%s/tensorboard/%s", run, entries[count - 1]->d_name);
  assert_ok(hv_map_file(path, out));
  for (int i = 0; i < count; i++) free(entries[i]);
  free(entries);
}

static void frames_records_with_checksums(void **state) {
  assert_int_equal(crc32c((const uint8_t *)"123456789", 9), 0xe3069283u);
  hv_event_file *file;
  assert_ok(hv_event_file_open(*state, 6, &file));
  const hv_scalar scalars[] = {{"train/loss", 0.25f}, {"held_out/error_diffusion", NAN}, {"", -1e30f}, {"zero", 0}};
  assert_ok(hv_event_file_write(file, 7, 1234.5, scalars, 4));
  assert_ok(hv_event_file_write(file, INT64_MAX, 1e9, scalars, 0));
  hv_event_file_close(file);

  hv_mapping mapping;
  size_t offset = 0;
  map_newest(*state, 1, &mapping);
  Hv__Event *version = next_event(&mapping, &offset), *start = next_event(&mapping, &offset);
  Hv__Event *values = next_event(&mapping, &offset), *last = next_event(&mapping, &offset);
  assert_int_equal(offset, mapping.size);
  assert_string_equal(version->file_version, "brain.Event:2");
  assert_int_equal(start->what_case, HV__EVENT__WHAT_SESSION_LOG);
  assert_int_equal(start->session_log->status, HV__SESSION_LOG__STATUS__START);
  assert_int_equal(start->step, 7);
  assert_int_equal(values->step, 7);
  assert_true(values->wall_time == 1234.5);
  assert_int_equal(values->summary->n_value, 4);
  for (int i = 0; i < 4; i++) {
    assert_string_equal(values->summary->value[i]->tag, scalars[i].tag);
    assert_int_equal(values->summary->value[i]->value_case, HV__SCALAR__VALUE_SIMPLE_VALUE);
  }
  assert_true(values->summary->value[0]->simple_value == 0.25f);
  assert_true(isnan(values->summary->value[1]->simple_value));
  assert_true(values->summary->value[2]->simple_value == -1e30f);
  assert_true(last->step == INT64_MAX);
  Hv__Event *const all[] = {version, start, values, last};
  for (int i = 0; i < 4; i++) hv__event__free_unpacked(all[i], NULL);
  hv_unmap(&mapping);
}

/* The number under a tag of an event; fails if the event does not have the tag. */
static float scalar_in(const Hv__Event *event, const char *tag) {
  for (size_t i = 0; i < event->summary->n_value; i++) {
    if (strcmp(event->summary->value[i]->tag, tag) == 0) return event->summary->value[i]->simple_value;
  }
  fail_msg("the event has no value %s", tag);
  return 0;
}

static void lines_become_scalars(void **state) {
  hv_validation held_out = {.loss = 5, .present = {true, true, true, true}, .action_dim = 2, .ensemble_rate = 0.25};
  held_out.dims[HV_PREDICT_ENSEMBLE][1] = 0.75;
  hv_metrics_line line = {
      .step = 4, .learning_rate = 0.5, .result = {.loss = NAN, .skipped = HV_SKIP_LOSS}, .held_out = &held_out};
  hv_metrics *metrics;
  assert_ok(hv_metrics_open(*state, 0, true, &metrics));
  assert_ok(hv_metrics_write(metrics, &line));
  hv_metrics_close(metrics);
  hv_mapping mapping;
  size_t offset = 0;
  map_newest(*state, 1, &mapping);
  for (int i = 0; i < 2; i++) hv__event__free_unpacked(next_event(&mapping, &offset), NULL);
  Hv__Event *event = next_event(&mapping, &offset);
  assert_int_equal(event->step, 4);
  assert_true(isnan(scalar_in(event, "train/loss")));
  assert_true(scalar_in(event, "train/learning_rate") == 0.5f);
  assert_true(scalar_in(event, "train/skipped") == 1);
  assert_true(scalar_in(event, "held_out/loss") == 5);
  assert_true(scalar_in(event, "held_out/ensemble_rate") == 0.25f);
  assert_true(scalar_in(event, "held_out/error_ensemble_dims/1") == 0.75f);
  hv__event__free_unpacked(event, NULL);
  hv_unmap(&mapping);
}

/* When a run resumes from a step, the lines up to that step stay in metrics.jsonl; later ones and an incomplete one are
 * dropped. */
static void later_lines_are_dropped(void **state) {
  hv_metrics *metrics;
  assert_ok(hv_metrics_open(*state, 0, false, &metrics));
  for (int64_t step = 1; step <= 3; step++) assert_ok(hv_metrics_write(metrics, &(hv_metrics_line){.step = step}));
  hv_metrics_close(metrics);
  must_shell("printf '{\"step\": 2, \"lo' >> '%s'", in_folder(*state, "metrics.jsonl"));
  assert_ok(hv_metrics_open(*state, 2, false, &metrics));
  hv_metrics_close(metrics);
  json_t *lines = read_metrics(*state);
  assert_int_equal(json_array_size(lines), 2);
  assert_true(number_in(json_array_get(lines, 1), "step") == 2);
  json_decref(lines);
}

static const char *run_of(const char *folder, const char *rest) {
  static char arguments[2048];
  snprintf(arguments, sizeof arguments, "run --config '%s' %s", write_tiny_config(folder, in_folder(folder, "run")),
           rest);
  return arguments;
}

/* A run with held-out figures, whose last steps are then trained a second time. */
static void train_and_resume(const char *folder) {
  const char *held_out = "--set data.valid_split=valid --set validation.samples=3 --set validation.interval=3 "
                         "--set optimizer.schedule=cosine --set optimizer.final_ratio=0";
  char rest[256];
  expect_train(0, run_of(folder, held_out), NULL);
  assert_ok(hv_remove_tree(in_run(folder, "run", "checkpoints/step-6")));
  snprintf(rest, sizeof rest, "%s --resume", held_out);
  expect_train(0, run_of(folder, rest), "resumed from", "step-3", NULL);
}

static void a_resumed_run_begins_a_file_of_its_own(void **state) {
  train_and_resume(*state);
  hv_mapping mapping;
  size_t offset = 0;
  map_newest(in_folder(*state, "run"), 2, &mapping);
  hv__event__free_unpacked(next_event(&mapping, &offset), NULL);
  int64_t step = 4; /* the first event says that the earlier file is void from this step on */
  while (offset < mapping.size) {
    Hv__Event *event = next_event(&mapping, &offset);
    assert_int_equal(event->step, step);
    if (event->what_case == HV__EVENT__WHAT_SUMMARY) step++;
    hv__event__free_unpacked(event, NULL);
  }
  assert_int_equal(step, 7);
  hv_unmap(&mapping);
}

static void event_files_can_be_left_out(void **state) {
  expect_train(0, run_of(*state, "--set metrics.tensorboard=false --set train.steps=1"), NULL);
  assert_false(hv_file_exists(in_run(*state, "run", "tensorboard")));
}

/* The value of the line "tag step value" in the reader's output; fails unless there is exactly one. */
static double printed(const char *text, const char *tag, int step) {
  char start[128];
  snprintf(start, sizeof start, "\n%s %d ", tag, step);
  const char *at = strstr(text, start);
  if (!at) {
    fail_msg("TensorBoard reads no %s at step %d", tag, step);
    return 0;
  }
  if (strstr(at + 1, start)) fail_msg("TensorBoard reads %s at step %d twice", tag, step);
  return strtod(at + strlen(start), NULL);
}

static void tensorboard_reads_the_same_figures(void **state) {
  const char *python = getenv("HVLA_FIXTURES_PYTHON");
  if (!python) python = HVLA_SOURCE_DIR "/.venv-fixtures/bin/python";
  char *text;
  int missing = run_shell(&text, NULL, "'%s' -c 'import tensorboard'", python);
  free(text);
  if (missing) skip(); /* scripts/setup.sh --python installs it */
  train_and_resume(*state);
  int code = run_shell(&text, NULL, "echo; '%s' %s/tests/train/tensorboard_scalars.py '%s/run/tensorboard'", python,
                       HVLA_SOURCE_DIR, (const char *)*state);
  if (code != 0) fail_msg("the reader ended with %d:\n%s", code, text);
  for (int step = 1; step <= 6; step++) printed(text, "train/loss", step);
  json_t *line = last_metrics(in_folder(*state, "run"), "held_out_loss");
  static const char *const names[][2] = {{"loss", "train/loss"},
                                         {"grad_norm", "train/grad_norm"},
                                         {"learning_rate", "train/learning_rate"},
                                         {"held_out_loss_ce", "held_out/loss_ce"},
                                         {"error_ensemble", "held_out/error_ensemble"}};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    double expected = json_number_value(json_object_get(line, names[i][0]));
    assert_true(fabs(printed(text, names[i][1], 6) - expected) <= 1e-6 * fabs(expected));
  }
  printed(text, "held_out/error_diffusion_dims/6", 3);
  free(text);
  json_decref(line);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(frames_records_with_checksums, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(lines_become_scalars, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(later_lines_are_dropped, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_resumed_run_begins_a_file_of_its_own, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(event_files_can_be_left_out, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tensorboard_reads_the_same_figures, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
