/* Recorded operations (CUDA graphs on a card) do not run while they are recorded, and run each time they are replayed,
 * on what is in memory then; and what cannot be recorded is refused. test_recording [DEVICE], by default emu. */
#include "tests/cuda/under_test.h"

enum { ROWS = 24, WIDTH = 40 };

typedef struct fixture {
  hv_device *device;
  hv_stream *stream;
  hv_tensor x, weight, norm_weight, hidden, sum, y;
  void *memory[16];
  int count;
} fixture;

static hv_tensor matrix(fixture *f, int64_t rows, int64_t cols, const float *values) {
  assert_ok(hv_device_allocate(f->device, HV_MEMORY_WORKSPACE, (size_t)(rows * cols) * sizeof(float), "a matrix",
                               &f->memory[f->count]));
  hv_tensor t = hv_tensor_make(f->memory[f->count++], HV_F32, rows, cols);
  if (values) hv_upload(f->stream, t.data, values, (size_t)(rows * cols) * sizeof(float));
  assert_ok(hv_stream_synchronize(f->stream));
  return t;
}

static void fill_values(float *values, int count, int seed) {
  for (int i = 0; i < count; i++) values[i] = (float)((i * 37 + seed * 101) % 97 - 48) / 48.0f;
}

static fixture open_fixture(void) {
  float values[WIDTH * WIDTH];
  fixture f = {0};
  assert_ok(hv_device_load(under_test, &(hv_device_options){.index = 0}, &f.device));
  assert_ok(hv_stream_open(f.device, &f.stream));
  fill_values(values, WIDTH * WIDTH, 1);
  f.weight = matrix(&f, WIDTH, WIDTH, values);
  fill_values(values, WIDTH, 2);
  f.norm_weight = matrix(&f, 1, WIDTH, values);
  f.x = matrix(&f, ROWS, WIDTH, NULL);
  f.hidden = matrix(&f, ROWS, WIDTH, NULL);
  f.sum = matrix(&f, 1, 1, NULL);
  f.y = matrix(&f, ROWS, WIDTH, NULL);
  return f;
}

static void close_fixture(fixture *f) {
  for (int i = 0; i < f->count; i++) hv_device_release(f->device, f->memory[i]);
  hv_stream_close(f->stream);
  hv_device_close(f->device);
}

/* Queues a layer, and a sum that grows with every run. */
static void queue_sequence(fixture *f) {
  hv_linear(f->stream, &(hv_linear_args){.x = f->x, .weight = f->weight, .activation = HV_ACT_SILU, .y = f->hidden});
  hv_norm(f->stream,
          &(hv_norm_args){.kind = HV_NORM_RMS, .eps = 1e-5, .x = f->hidden, .weight = f->norm_weight, .y = f->y});
  hv_sum_squares(f->stream,
                 &(hv_sum_squares_args){.x = hv_tensor_reshape(f->y, 1, (int64_t)ROWS * WIDTH), .y = f->sum});
}

static void set_input(fixture *f, int seed) {
  static float values[ROWS * WIDTH];
  fill_values(values, ROWS * WIDTH, seed);
  hv_upload(f->stream, f->x.data, values, sizeof values);
  assert_ok(hv_stream_synchronize(f->stream));
}

static float sum_of(fixture *f) {
  float sum;
  hv_download(f->stream, &sum, f->sum.data, sizeof sum);
  assert_ok(hv_stream_synchronize(f->stream));
  return sum;
}

static void result_of(fixture *f, float *y) {
  hv_download(f->stream, y, f->y.data, ROWS * WIDTH * sizeof *y);
  assert_ok(hv_stream_synchronize(f->stream));
}

static void replays_do_what_was_recorded(void **state) {
  (void)state;
  fixture f = open_fixture();
  static float plain[ROWS * WIDTH], replayed[ROWS * WIDTH];
  if (!hv_device_records(f.device)) skip();
  hv_fill(f.stream, &(hv_fill_args){.dst = f.sum});
  set_input(&f, 3);
  queue_sequence(&f);
  float once = sum_of(&f);

  hv_recording *recording;
  assert_ok(hv_stream_record_begin(f.stream));
  queue_sequence(&f);
  assert_ok(hv_stream_record_end(f.stream, &recording));
  assert_true(sum_of(&f) == once); /* recording has run nothing */

  set_input(&f, 4);
  queue_sequence(&f);
  result_of(&f, plain);
  hv_fill(f.stream, &(hv_fill_args){.dst = f.y});
  hv_fill(f.stream, &(hv_fill_args){.dst = f.sum});
  hv_stream_replay(f.stream, recording);
  result_of(&f, replayed);
  assert_memory_equal(plain, replayed, sizeof plain);
  float after_one = sum_of(&f);
  for (int i = 0; i < 2; i++) hv_stream_replay(f.stream, recording);
  assert_true(sum_of(&f) > 2.99f * after_one && sum_of(&f) < 3.01f * after_one);
  hv_recording_close(f.device, recording);
  close_fixture(&f);
}

/* Layers as in decoding: few rows in bf16. Their products read only weights at first, so that a card may begin them
 * before the launches before are over. */
typedef struct few_rows {
  hv_tensor norm_weight, gate_up, down, x, sum, normed, both, hidden;
  int layers;
} few_rows;

static hv_tensor bf16_matrix(fixture *f, int64_t rows, int64_t cols, const uint16_t *values) {
  hv_tensor t = matrix(f, rows, (cols + 1) / 2, NULL);
  if (values) hv_upload(f->stream, t.data, values, (size_t)(rows * cols) * sizeof *values);
  assert_ok(hv_stream_synchronize(f->stream));
  return hv_tensor_make(t.data, HV_BF16, rows, cols);
}

/* Numbers of both signs with magnitudes from 1/16 to 1/4, so that values neither grow nor vanish from layer to layer.
 */
static uint16_t *small_numbers(int64_t count, int seed) {
  uint16_t *values = malloc((size_t)count * sizeof *values);
  assert_non_null(values);
  for (int64_t i = 0; i < count; i++) {
    uint32_t mixed = ((uint32_t)i * 2654435761u + (uint32_t)seed * 40503u) >> 15;
    values[i] = (uint16_t)((0x3d80u + (mixed & 0xffu)) | (mixed & 0x100u) << 7);
  }
  return values;
}

static hv_tensor small_matrix(fixture *f, int64_t rows, int64_t cols, int seed) {
  uint16_t *values = small_numbers(rows * cols, seed);
  hv_tensor t = bf16_matrix(f, rows, cols, values);
  free(values);
  return t;
}

static few_rows open_few_rows(fixture *f, int64_t rows, int64_t width, int64_t inner, int layers) {
  return (few_rows){.norm_weight = small_matrix(f, 1, width, 1),
                    .gate_up = small_matrix(f, 2 * inner, width, 2),
                    .down = small_matrix(f, width, inner, 3),
                    .x = bf16_matrix(f, rows, width, NULL),
                    .sum = bf16_matrix(f, rows, width, NULL),
                    .normed = bf16_matrix(f, rows, width, NULL),
                    .both = bf16_matrix(f, rows, 2 * inner, NULL),
                    .hidden = bf16_matrix(f, rows, inner, NULL),
                    .layers = layers};
}

/* Each layer overwrites the input of the one before. */
static void queue_layers(fixture *f, const few_rows *l) {
  hv_convert(f->stream, &(hv_convert_args){.src = l->x, .dst = l->sum});
  for (int i = 0; i < l->layers; i++) {
    hv_norm(f->stream,
            &(hv_norm_args){.kind = HV_NORM_RMS, .eps = 1e-5, .x = l->sum, .weight = l->norm_weight, .y = l->normed});
    hv_linear(f->stream, &(hv_linear_args){.x = l->normed, .weight = l->gate_up, .y = l->both});
    hv_swiglu(f->stream, &(hv_swiglu_args){.gate_up = l->both, .y = l->hidden});
    hv_linear(f->stream, &(hv_linear_args){.x = l->hidden, .weight = l->down, .residual = l->sum, .y = l->sum});
  }
}

static void set_rows(fixture *f, const few_rows *l, int seed) {
  uint16_t *values = small_numbers(hv_tensor_count(l->x), seed);
  hv_upload(f->stream, l->x.data, values, (size_t)hv_tensor_count(l->x) * sizeof *values);
  assert_ok(hv_stream_synchronize(f->stream));
  free(values);
}

static void few_rows_replayed_are_the_same_to_the_bit(void **state) {
  (void)state;
  enum { REPLAYS = 6, ROWS_OF_A_STEP = 9 };
  fixture f = open_fixture();
  if (!hv_device_records(f.device)) skip();
  bool card = strcmp(under_test, "cuda") == 0;
  few_rows l = open_few_rows(&f, ROWS_OF_A_STEP, card ? 4096 : 64, card ? 11008 : 96, card ? 12 : 3);
  size_t bytes = (size_t)hv_tensor_count(l.sum) * sizeof(uint16_t);
  uint16_t *plain[REPLAYS], *replayed = malloc(bytes);
  assert_non_null(replayed);
  for (int i = 0; i < REPLAYS; i++) {
    plain[i] = malloc(bytes);
    assert_non_null(plain[i]);
    set_rows(&f, &l, i);
    queue_layers(&f, &l);
    hv_download(f.stream, plain[i], l.sum.data, bytes);
    assert_ok(hv_stream_synchronize(f.stream));
  }
  uint16_t *given = small_numbers(hv_tensor_count(l.x), REPLAYS - 1);
  assert_memory_not_equal(plain[0], plain[1], bytes);
  assert_memory_not_equal(plain[REPLAYS - 1], given, bytes);
  free(given);
  hv_recording *recording;
  assert_ok(hv_stream_record_begin(f.stream));
  queue_layers(&f, &l);
  assert_ok(hv_stream_record_end(f.stream, &recording));
  for (int i = 0; i < REPLAYS; i++) {
    set_rows(&f, &l, i);
    for (int again = 0; again < 3; again++) hv_stream_replay(f.stream, recording);
    hv_download(f.stream, replayed, l.sum.data, bytes);
    assert_ok(hv_stream_synchronize(f.stream));
    assert_memory_equal(replayed, plain[i], bytes);
    free(plain[i]);
  }
  free(replayed);
  hv_recording_close(f.device, recording);
  close_fixture(&f);
}

/* Attention of few queries over many keys, as in a step of a prediction. It takes two launches: the second merges the
 * results of the parts into which the first splits the keys. */
static void decoding_replayed_is_the_same_to_the_bit(void **state) {
  (void)state;
  enum { QUERIES = 4, KEYS = 300, HEADS = 2, HEAD_DIM = 32, COLS = HEADS * HEAD_DIM };
  static const hv_segment segment = {.q_rows = QUERIES, .own_rows = KEYS};
  fixture f = open_fixture();
  if (!hv_device_records(f.device)) skip();
  static float values[KEYS * COLS], plain[QUERIES * COLS], replayed[QUERIES * COLS];
  fill_values(values, KEYS * COLS, 1);
  hv_tensor k = matrix(&f, KEYS, COLS, values), out = matrix(&f, QUERIES, COLS, NULL);
  fill_values(values, KEYS * COLS, 2);
  hv_tensor v = matrix(&f, KEYS, COLS, values), q = matrix(&f, QUERIES, COLS, values);
  hv_tensor segments = matrix(&f, 1, sizeof segment / sizeof(int32_t), (const float *)(const void *)&segment);
  segments.dtype = HV_I32;
  hv_attention_args attention = {.q = q,
                                 .k = k,
                                 .v = v,
                                 .segments = segments,
                                 .num_heads = HEADS,
                                 .num_kv_heads = HEADS,
                                 .head_dim = HEAD_DIM,
                                 .max_q_rows = QUERIES,
                                 .max_key_rows = KEYS,
                                 .causal = true,
                                 .scale = 0.2,
                                 .out = out};
  hv_attention(f.stream, &attention);
  hv_download(f.stream, plain, out.data, sizeof plain);
  assert_ok(hv_stream_synchronize(f.stream));
  hv_recording *recording;
  assert_ok(hv_stream_record_begin(f.stream));
  hv_fill(f.stream, &(hv_fill_args){.dst = out});
  hv_attention(f.stream, &attention);
  assert_ok(hv_stream_record_end(f.stream, &recording));
  for (int again = 0; again < 3; again++) hv_stream_replay(f.stream, recording);
  hv_download(f.stream, replayed, out.data, sizeof replayed);
  assert_ok(hv_stream_synchronize(f.stream));
  assert_memory_equal(replayed, plain, sizeof plain);
  hv_recording_close(f.device, recording);
  close_fixture(&f);
}

/* A recording keeps the scratch memory that it was made with, even if the device gets larger one afterwards. */
static void outlives_a_growth_of_scratch(void **state) {
  (void)state;
  enum { LARGE = 20000 };
  fixture f = open_fixture();
  static float plain[ROWS * WIDTH], replayed[ROWS * WIDTH];
  if (!hv_device_records(f.device)) skip();
  hv_recording *recording;
  set_input(&f, 3);
  queue_sequence(&f);
  result_of(&f, plain);
  assert_ok(hv_stream_record_begin(f.stream));
  queue_sequence(&f);
  assert_ok(hv_stream_record_end(f.stream, &recording));
  hv_tensor large = matrix(&f, LARGE, WIDTH, NULL), sum = matrix(&f, LARGE, WIDTH, NULL);
  size_t before = f.device->memory.held.total;
  hv_fill(f.stream, &(hv_fill_args){.dst = large, .value = 1});
  hv_fill(f.stream, &(hv_fill_args){.dst = sum});
  hv_linear(f.stream,
            &(hv_linear_args){.x = large, .weight = f.weight, .activation = HV_ACT_SILU, .residual = sum, .y = sum});
  assert_ok(hv_stream_synchronize(f.stream));
  assert_true(f.device->memory.held.total > before); /* the device has more scratch memory now */
  hv_fill(f.stream, &(hv_fill_args){.dst = f.y});
  hv_stream_replay(f.stream, recording);
  result_of(&f, replayed);
  assert_memory_equal(plain, replayed, sizeof plain);
  hv_recording_close(f.device, recording);
  close_fixture(&f);
}

/* Operations that have never run have no scratch memory yet, and none can be allocated while recording. */
static void refuses_what_would_allocate(void **state) {
  (void)state;
  fixture f = open_fixture();
  if (!hv_device_records(f.device)) skip();
  hv_recording *recording;
  assert_ok(hv_stream_record_begin(f.stream));
  queue_sequence(&f);
  assert_error(hv_stream_record_end(f.stream, &recording), "scratch", "once before");
  assert_null(recording);
  set_input(&f, 3);
  queue_sequence(&f); /* the stream still works */
  assert_ok(hv_stream_synchronize(f.stream));
  close_fixture(&f);
}

/* Waiting for another stream cannot be recorded: its work would not be repeated. */
static void refuses_to_wait_for_another_stream(void **state) {
  (void)state;
  fixture f = open_fixture();
  hv_stream *other;
  hv_event *event;
  hv_recording *recording;
  if (!hv_device_records(f.device)) skip();
  assert_ok(hv_stream_open(f.device, &other));
  assert_ok(hv_event_open(f.device, &event));
  hv_fill(other, &(hv_fill_args){.dst = f.sum});
  hv_event_record(other, event);
  assert_ok(hv_stream_record_begin(f.stream));
  hv_event_wait(f.stream, event);
  assert_error(hv_stream_record_end(f.stream, &recording), "event");
  assert_null(recording);
  hv_event_wait(f.stream, event); /* the stream still works */
  queue_sequence(&f);
  assert_ok(hv_stream_synchronize(f.stream));
  hv_event_close(f.device, event);
  hv_stream_close(other);
  close_fixture(&f);
}

/* A stream that is recording runs nothing, so it cannot be waited for. The attempt spoils the recording. */
static void refuses_to_be_waited_for(void **state) {
  (void)state;
  fixture f = open_fixture();
  hv_recording *recording;
  if (!hv_device_records(f.device)) skip();
  set_input(&f, 3);
  queue_sequence(&f);
  assert_ok(hv_stream_synchronize(f.stream));
  assert_ok(hv_stream_record_begin(f.stream));
  queue_sequence(&f);
  assert_error(hv_stream_synchronize(f.stream), "wait");
  queue_sequence(&f);
  hv_status status = hv_stream_record_end(f.stream, &recording);
  assert_non_null(status);
  assert_null(recording);
  hv_status_free(status);
  queue_sequence(&f); /* the stream still works */
  assert_ok(hv_stream_synchronize(f.stream));
  close_fixture(&f);
}

/* Copies from host memory that is not page-locked are refused: when the recording is replayed, it may be gone. */
static void refuses_memory_that_may_go(void **state) {
  (void)state;
  static float values[ROWS * WIDTH];
  fixture f = open_fixture();
  hv_recording *recording;
  void *host;
  if (strcmp(under_test, "emu") != 0) skip(); /* a card may accept it */
  assert_ok(hv_device_allocate_host(f.device, sizeof values, "a matrix", &host));
  for (int direction = 0; direction < 2; direction++) {
    assert_ok(hv_stream_record_begin(f.stream));
    if (direction == 0) hv_upload(f.stream, f.x.data, values, sizeof values);
    if (direction == 1) hv_download(f.stream, values, f.x.data, sizeof values);
    assert_error(hv_stream_record_end(f.stream, &recording), "page-locked");
  }
  assert_ok(hv_stream_record_begin(f.stream));
  hv_upload(f.stream, f.x.data, host, sizeof values);
  hv_download(f.stream, host, f.x.data, sizeof values);
  assert_ok(hv_stream_record_end(f.stream, &recording));
  hv_recording_close(f.device, recording);
  hv_device_release_host(f.device, host);
  close_fixture(&f);
}

/* With CUDA, allocating or releasing memory while recording spoils the recording. */
static void refuses_changes_of_memory(void **state) {
  (void)state;
  fixture f = open_fixture();
  hv_recording *recording;
  if (strcmp(under_test, "emu") != 0) skip(); /* when and how a card reports it is not defined */
  for (int where = 0; where < 2; where++) {
    void *memory;
    for (int change = 0; change < 2; change++) {
      if (change == 1) assert_ok(hv_stream_record_begin(f.stream));
      hv_status status = where ? hv_device_allocate_host(f.device, 16, "a row", &memory)
                               : hv_device_allocate(f.device, HV_MEMORY_WORKSPACE, 16, "a row", &memory);
      assert_ok(status);
      if (change == 1) assert_error(hv_stream_record_end(f.stream, &recording), "memory is asked for");
      if (change == 0) assert_ok(hv_stream_record_begin(f.stream));
      if (where) hv_device_release_host(f.device, memory);
      if (!where) hv_device_release(f.device, memory);
      if (change == 0) assert_error(hv_stream_record_end(f.stream, &recording), "memory is given back");
    }
  }
  close_fixture(&f);
}

int main(int argc, char **argv) {
  choose_device(argc, argv);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(replays_do_what_was_recorded),
      cmocka_unit_test(few_rows_replayed_are_the_same_to_the_bit),
      cmocka_unit_test(decoding_replayed_is_the_same_to_the_bit),
      cmocka_unit_test(outlives_a_growth_of_scratch),
      cmocka_unit_test(refuses_what_would_allocate),
      cmocka_unit_test(refuses_to_wait_for_another_stream),
      cmocka_unit_test(refuses_to_be_waited_for),
      cmocka_unit_test(refuses_memory_that_may_go),
      cmocka_unit_test(refuses_changes_of_memory),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
