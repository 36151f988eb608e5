/* The planning device and communicator, which only count work, memory and time: their figures against sums by hand; the
 * arena that is measured with them, the checks of operands, and modules that cannot be opened. */
#include <math.h>

#include "core/tensor/arena.h"
#include "core/tensor/nan_watch.h"
#include "core/tensor/ops.h"
#include "core/tensor/plan_comm.h"
#include "tests/check.h"

typedef struct bench {
  hv_device *device;
  hv_stream *stream;
} bench;

static int open_plan(void **state) {
  bench *b = calloc(1, sizeof *b);
  if (!b) return -1;
  assert_ok(hv_plan_device_open(&b->device));
  assert_ok(hv_stream_open(b->device, &b->stream));
  *state = b;
  return 0;
}

static int close_plan(void **state) {
  bench *b = *state;
  hv_stream_close(b->stream);
  hv_device_close(b->device);
  free(b);
  return 0;
}

static hv_tensor take(bench *b, hv_dtype dtype, int64_t rows, int64_t cols) {
  void *memory;
  assert_ok(hv_device_allocate(b->device, HV_MEMORY_WORKSPACE, (size_t)(rows * cols) * hv_dtype_size(dtype), "a tensor",
                               &memory));
  return hv_tensor_make(memory, dtype, rows, cols);
}

static void work_is_counted(void **state) {
  bench *b = *state;
  hv_linear_args args = {.x = take(b, HV_BF16, 10, 32), .weight = take(b, HV_BF16, 64, 32)};
  args.bias = take(b, HV_BF16, 1, 64);
  args.y = take(b, HV_F32, 10, 64);
  hv_linear(b->stream, &args);
  hv_plan_counts counts;
  hv_plan_device_counts(b->device, &counts);
  assert_true(counts.matrix_flops == 2.0 * 10 * 32 * 64);
  assert_true(counts.bytes == 2.0 * (10 * 32 + 64 * 32 + 64) + 4.0 * 10 * 64);
  assert_true(counts.weight_bytes == 2.0 * 64 * 32);
  assert_int_equal(counts.operations, 1);
  hv_linear_backward_weight_args back = {.dy = take(b, HV_BF16, 10, 64), .x = args.x};
  back.dbias = take(b, HV_F32, 1, 64);
  hv_linear_backward_weight(b->stream, &back);
  hv_plan_device_counts(b->device, &counts);
  assert_true(counts.matrix_flops == 2.0 * 10 * 32 * 64);
  hv_attention_args attention = {
      .q = take(b, HV_F32, 12, 32), .k = take(b, HV_F32, 20, 16), .v = take(b, HV_F32, 20, 16)};
  attention.segments = take(b, HV_I32, 3, 6);
  attention.num_heads = 4;
  attention.num_kv_heads = 2;
  attention.head_dim = 8;
  attention.max_q_rows = 5;
  attention.max_key_rows = 9;
  attention.out = take(b, HV_F32, 12, 32);
  hv_plan_device_reset(b->device);
  hv_attention(b->stream, &attention);
  hv_plan_device_counts(b->device, &counts);
  assert_true(counts.matrix_flops == 4.0 * 12 * 9 * 32);
  assert_int_equal(counts.operations, 1);
  hv_attention_backward_args attention_back = {.q = attention.q,
                                               .k = attention.k,
                                               .v = attention.v,
                                               .out = attention.out,
                                               .segments = attention.segments,
                                               .num_heads = 4,
                                               .num_kv_heads = 2,
                                               .head_dim = 8,
                                               .max_q_rows = 5,
                                               .max_key_rows = 9};
  attention_back.lse = take(b, HV_F32, 12, 4);
  attention_back.dout = take(b, HV_F32, 12, 32);
  attention_back.key_groups = take(b, HV_I32, 3, 4);
  attention_back.row_dot = take(b, HV_F32, 12, 4);
  attention_back.dq = take(b, HV_F32, 12, 32);
  attention_back.dk = take(b, HV_F32, 20, 16);
  attention_back.dv = take(b, HV_F32, 20, 16);
  hv_plan_device_reset(b->device);
  hv_attention_backward(b->stream, &attention_back);
  hv_plan_device_counts(b->device, &counts);
  assert_true(counts.matrix_flops == 8.0 * 12 * 9 * 32); /* four products: dq, dk, dv and the scores' gradient */
  assert_ok(hv_stream_synchronize(b->stream));
}

static void memory_is_counted(void **state) {
  bench *b = *state;
  void *first, *second;
  hv_plan_counts counts;
  assert_ok(hv_device_allocate(b->device, HV_MEMORY_WORKSPACE, 1000, "one", &first));
  assert_ok(hv_device_allocate(b->device, HV_MEMORY_WORKSPACE, (size_t)1 << 40, "a terabyte", &second));
  assert_true((char *)second >= (char *)first + 1000);
  hv_device_release(b->device, second);
  hv_plan_device_counts(b->device, &counts);
  assert_int_equal(counts.allocated_bytes, 1000);
  assert_int_equal(counts.peak_bytes, 1000 + ((size_t)1 << 40));
  hv_plan_device_reset(b->device);
  hv_plan_device_counts(b->device, &counts);
  assert_int_equal(counts.peak_bytes, 1000);
  hv_device_release(b->device, first);
  hv_plan_device_counts(b->device, &counts);
  assert_int_equal(counts.allocated_bytes, 0);
}

/* Two kinds of memory, their table at the moment of the peak, and an allocation that fails. */
static void memory_is_accounted_by_kind(void **state) {
  bench *b = *state;
  void *weights, *arena;
  hv_text table = {0};
  assert_ok(hv_device_allocate(b->device, HV_MEMORY_WEIGHTS, 3000000, "weights", &weights));
  assert_ok(hv_device_allocate(b->device, HV_MEMORY_ACTIVATIONS, 5000000, "an arena", &arena));
  hv_device_release(b->device, arena);
  assert_ok(hv_device_allocate(b->device, HV_MEMORY_ACTIVATIONS, 1000000, "an arena", &arena));
  const hv_memory_account *memory = &b->device->memory;
  assert_int_equal(memory->held.bytes[HV_MEMORY_ACTIVATIONS], 1000000);
  assert_int_equal(memory->held.total, 4000000);
  assert_int_equal(memory->peak.bytes[HV_MEMORY_ACTIVATIONS], 5000000);
  assert_int_equal(memory->peak.total, 8000000);
  hv_memory_table(&memory->peak, "  ", &table);
  assert_string_equal(table.data, "  weights            0.003 GB\n"
                                  "  activations        0.005 GB\n"
                                  "  total              0.008 GB\n");
  hv_text_free(&table);
  hv_device_release(b->device, arena);
  hv_device_release(b->device, weights);
  assert_int_equal(memory->held.total, 0);
}

/* 2 · 10 · 32 · 64 operations at 1e6 per second take 41 ms; moving their 13 kB at 1e6 bytes per second takes 14 ms. */
static void time_passes_as_on_the_machine(void **state) {
  bench *b = *state;
  hv_stream *other;
  hv_event *event;
  hv_linear_args args = {.x = take(b, HV_F32, 10, 32), .weight = take(b, HV_F32, 64, 32), .y = take(b, HV_F32, 10, 64)};
  const double each = 2.0 * 10 * 32 * 64 / 1e6;
  assert_ok(hv_plan_device_set_machine(b->device, &(hv_plan_machine){.flops_per_s = 1e6, .bytes_per_s = 1e6}));
  assert_ok(hv_stream_open(b->device, &other));
  assert_ok(hv_event_open(b->device, &event));
  hv_linear(b->stream, &args);
  hv_event_record(b->stream, event);
  hv_linear(b->stream, &args);
  assert_true(hv_plan_device_now(b->device) == 0); /* the host has not waited yet */
  hv_linear(other, &args);
  assert_true(hv_plan_stream_end(other) == each); /* it ran at the same time as the first stream */
  hv_event_wait(other, event);
  hv_linear(other, &args);
  assert_true(fabs(hv_plan_stream_end(other) - 2 * each) < 1e-12); /* it ran after the first stream */
  assert_ok(hv_stream_synchronize(b->stream));
  assert_true(fabs(hv_plan_device_now(b->device) - 2 * each) < 1e-12);
  hv_event_close(b->device, event);
  hv_stream_close(other);
}

/* Four ranks on two machines: the network's 2 · 100 bytes per second are slower than the 1000 inside a machine. */
static void collectives_take_the_slowest_link(void **state) {
  bench *b = *state;
  hv_comm *comm;
  hv_plan_traffic traffic[HV_COLLECTIVES];
  hv_plan_links links = {.node_ranks = 2, .node_bytes_per_s = 1000, .network_bytes_per_s = 100, .efficiency = 0.5};
  hv_tensor whole = take(b, HV_F32, 1, 400);
  assert_ok(hv_plan_comm_open(b->device, 1, 4, &links, &comm));
  hv_ticket first = hv_comm_all_gather(comm, "values", hv_comm_share(comm, whole), whole, b->stream);
  hv_ticket second = hv_comm_all_reduce(comm, "gradients", whole, b->stream);
  hv_comm_wait(comm, first, b->stream);
  assert_true(fabs(hv_plan_stream_end(b->stream) - 1600 * 0.75 / 100) < 1e-9);
  hv_comm_wait(comm, second, b->stream);
  assert_true(fabs(hv_plan_stream_end(b->stream) - 1600 * 2.25 / 100) < 1e-9); /* the two collectives run in sequence */
  hv_plan_comm_traffic(comm, traffic);
  assert_int_equal(traffic[HV_ALL_REDUCE].calls, 1);
  assert_true(traffic[HV_ALL_REDUCE].bytes == 1600 * 1.5 && traffic[HV_ALL_GATHER].bytes == 1600 * 0.75);
  assert_ok(hv_comm_status(comm));
  hv_comm_close(comm);
}

/* Ranks that all fit on one machine do not use the network. In a ring of four, all data is passed on three times. */
static void one_machine_needs_no_network(void **state) {
  bench *b = *state;
  hv_comm *comm;
  hv_plan_links links = {
      .node_ranks = 4, .node_bytes_per_s = 1000, .network_bytes_per_s = 1, .efficiency = 1, .hop_s = 0.25};
  hv_tensor whole = take(b, HV_F32, 1, 400);
  assert_ok(hv_plan_comm_open(b->device, 1, 4, &links, &comm));
  hv_comm_wait(comm, hv_comm_all_gather(comm, "values", hv_comm_share(comm, whole), whole, b->stream), b->stream);
  assert_true(fabs(hv_plan_stream_end(b->stream) - (3 * 0.25 + 1600 * 0.75 / 1000)) < 1e-9);
  assert_ok(hv_comm_status(comm));
  hv_comm_close(comm);
}

static void results_read_as_zeros(void **state) {
  bench *b = *state;
  hv_tensor t = take(b, HV_F32, 1, 4);
  float values[4] = {1, 2, 3, 4};
  hv_upload(b->stream, t.data, values, sizeof values);
  hv_download(b->stream, values, t.data, sizeof values);
  for (int i = 0; i < 4; i++) assert_true(values[i] == 0);
}

static void the_first_wrong_operand_is_told(void **state) {
  bench *b = *state;
  hv_swiglu(b->stream, &(hv_swiglu_args){.gate_up = take(b, HV_F32, 3, 9), .y = take(b, HV_F32, 3, 4)});
  hv_swiglu(b->stream, &(hv_swiglu_args){.y = take(b, HV_F32, 3, 4)});
  assert_error(hv_stream_synchronize(b->stream), "swiglu", "gate_up", "[3, 9]", "[3, 8]");
  assert_ok(hv_stream_synchronize(b->stream));
}

/* A wrong operand may reach beyond its memory: a watch of results reads none. */
static void wrong_operands_are_told_while_watched(void **state) {
  bench *b = *state;
  hv_nan_watch *watch;
  hv_tensor y = take(b, HV_F32, 3, 4);
  assert_ok(hv_nan_watch_open(b->device, &watch));
  y.rows = (int64_t)1 << 50;
  hv_swiglu(b->stream, &(hv_swiglu_args){.gate_up = take(b, HV_F32, 3, 8), .y = y});
  assert_error(hv_stream_synchronize(b->stream), "swiglu", "gate_up", "[3, 8]");
  assert_ok(hv_nan_watch_status(b->device));
  hv_nan_watch_close(watch);
}

static void checks_refuse(void **state) {
  bench *b = *state;
  hv_tensor x = take(b, HV_F32, 4, 6), weight = take(b, HV_F32, 5, 6), y = take(b, HV_F32, 4, 5);
  hv_linear_args linear = {.x = x, .weight = weight, .y = y};
  assert_ok(hv_check_linear(&linear));
  linear.y.data = NULL;
  assert_error(hv_check_linear(&linear), "linear", "y is absent");
  linear.y = take(b, HV_BF16, 4, 5);
  assert_error(hv_check_linear(&linear), "y may not be bf16");
  linear.y = y;
  linear.bias = take(b, HV_F32, 1, 6);
  assert_error(hv_check_linear(&linear), "bias", "[1, 6]", "[1, 5]");
  linear.bias = (hv_tensor){0};
  linear.x.row_stride = 5;
  assert_error(hv_check_linear(&linear), "x has rows of 6 elements, but a row stride of 5");
  hv_norm_args norm = {.kind = HV_NORM_RMS, .x = x, .weight = take(b, HV_F32, 1, 6), .y = take(b, HV_F32, 4, 6)};
  assert_ok(hv_check_norm(&norm));
  norm.sum = take(b, HV_F32, 4, 6);
  assert_error(hv_check_norm(&norm), "norm", "sum may not be given");
  norm.delta = take(b, HV_F32, 4, 6);
  assert_ok(hv_check_norm(&norm));
  norm.bias = take(b, HV_F32, 1, 6);
  assert_error(hv_check_norm(&norm), "bias without HV_NORM_LAYER");
  hv_linear_backward_weight_args none = {.dy = y, .x = x};
  assert_error(hv_check_linear_backward_weight(&none), "both absent");
  hv_attention_args heads = {.q = x, .k = x, .v = x, .num_heads = 3, .num_kv_heads = 2, .head_dim = 2};
  assert_error(hv_check_attention(&heads), "3 query heads", "2 key heads");
  hv_adamw_args adamw = {.param = take(b, HV_BF16, 1, 8)};
  assert_error(hv_check_adamw(&adamw), "remainder is absent");
}

static void aliases_are_told(void **state) {
  bench *b = *state;
  hv_tensor x = take(b, HV_F32, 4, 6), weight = take(b, HV_F32, 6, 6), qkv = take(b, HV_F32, 4, 18);
  /* The result may lie exactly where the residual lies. It may not lie on the input, or overlap the residual in part.
   */
  hv_linear_args linear = {.x = x, .weight = weight, .residual = take(b, HV_F32, 4, 6)};
  linear.y = linear.residual;
  assert_ok(hv_check_linear(&linear));
  linear.y = x;
  assert_error(hv_check_linear(&linear), "y overlaps x");
  linear.residual = take(b, HV_F32, 8, 6);
  linear.y = hv_tensor_rows(linear.residual, 2, 4);
  linear.residual.rows = 4;
  assert_error(hv_check_linear(&linear), "y overlaps residual");
  /* Input and result are different columns of one matrix: allowed. */
  hv_linear_args side = {.x = hv_tensor_cols(qkv, 0, 6), .weight = weight, .y = hv_tensor_cols(qkv, 6, 6)};
  assert_ok(hv_check_linear(&side));
  side.y = hv_tensor_cols(qkv, 12, 6);
  assert_ok(hv_check_linear(&side));
  side.y = hv_tensor_cols(qkv, 5, 6);
  assert_error(hv_check_linear(&side), "y overlaps x");
  side.x = hv_tensor_cols(qkv, 12, 6);
  side.y = hv_tensor_cols(qkv, 7, 6);
  assert_error(hv_check_linear(&side), "y overlaps x");
  /* The views begin a row apart: row r + 1 of the matrix is row r of x and row r + 1 of y. */
  side.x = hv_tensor_cols(hv_tensor_rows(qkv, 1, 3), 0, 6);
  side.y = hv_tensor_cols(hv_tensor_rows(qkv, 0, 3), 12, 6);
  assert_ok(hv_check_linear(&side));
}

static void an_arena_measures_and_then_serves(void **state) {
  bench *b = *state;
  hv_arena plan = hv_arena_for_plan(b->device);
  hv_tensor first = hv_arena_take(&plan, HV_F32, 3, 5);
  size_t mark = hv_arena_mark(&plan);
  hv_tensor second = hv_arena_take(&plan, HV_BF16, 100, 7);
  assert_true((char *)second.data >= (char *)first.data + 60);
  assert_int_equal((uintptr_t)second.data % 256, 0);
  hv_arena_release(&plan, mark);
  (void)hv_arena_take(&plan, HV_F32, 1, 1);
  assert_int_equal(plan.peak, 256 + 1536);
  assert_ok(hv_arena_status(&plan));
  hv_arena arena;
  assert_ok(hv_arena_open(b->device, HV_MEMORY_ACTIVATIONS, plan.peak, "activations", &arena));
  first = hv_arena_take(&arena, HV_F32, 3, 5);
  second = hv_arena_take(&arena, HV_BF16, 100, 7);
  assert_ok(hv_arena_status(&arena));
  assert_ptr_equal((char *)second.data - 256, first.data);
  (void)hv_arena_take(&arena, HV_U8, 1, 1);
  assert_error(hv_arena_status(&arena), "1792 bytes", "2048");
  hv_arena_close(&arena);
  hv_plan_counts counts;
  hv_plan_device_counts(b->device, &counts);
  assert_int_equal(counts.allocated_bytes, 0);
}

static void absent_modules_are_told(void **state) {
  (void)state;
  hv_device *device;
  assert_error(hv_device_load("abacus", NULL, &device), "abacus", "libhvla-abacus.so", "--device cpu");
  assert_null(device);
  assert_error(hv_device_load("../abacus", NULL, &device), "no device \"../abacus\"");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_plan, close_plan)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(work_is_counted),
      TEST(memory_is_counted),
      TEST(memory_is_accounted_by_kind),
      TEST(time_passes_as_on_the_machine),
      TEST(collectives_take_the_slowest_link),
      TEST(one_machine_needs_no_network),
      TEST(results_read_as_zeros),
      TEST(the_first_wrong_operand_is_told),
      TEST(wrong_operands_are_told_while_watched),
      TEST(checks_refuse),
      TEST(aliases_are_told),
      TEST(an_arena_measures_and_then_serves),
      cmocka_unit_test(absent_modules_are_told),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
