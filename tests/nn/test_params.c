/* The parameter store: a step's first product sets a gradient, later ones add to it, and untouched gradients are 0;
 * initial values, freezing and names. Gradients are compared with plain loops, exactly. */
#include <math.h>

#include "core/cpu/cpu.h"
#include "core/nn/linear.h"
#include "core/tensor/plan_comm.h"
#include "tests/check.h"

enum { OUT = 3, IN = 5, ROWS = 2, STACKED = 3, MOST = STACKED * OUT * IN };

typedef struct store {
  hv_device *device;
  hv_stream *stream;
  hv_params *params;
  hv_group_id layer, other;
  hv_param_id stack, norm, weight, bias, elsewhere;
  float dy[ROWS * STACKED * OUT], x[ROWS * IN];
} store;

static hv_param_spec matrix(const char *name) {
  return (hv_param_spec){.name = name, .shape = {OUT, IN}, .linear = true};
}

static hv_param_spec vector(const char *name) {
  return (hv_param_spec){.name = name, .shape = {OUT}};
}

static void open_store(store *s) {
  const hv_param_spec stack[STACKED] = {matrix("q"), matrix("k"), matrix("v")};
  const hv_param_spec norm = vector("norm"), weight = matrix("weight"), bias = vector("bias"), other = matrix("other");
  assert_ok(hv_cpu_device_open(NULL, &s->device));
  assert_ok(hv_stream_open(s->device, &s->stream));
  assert_ok(hv_params_open(s->device, HV_F32, &s->params));
  s->layer = hv_params_begin_group(s->params, "layer");
  s->norm = hv_params_declare(s->params, &norm);
  s->stack = hv_params_declare_stacked(s->params, stack, STACKED);
  s->weight = hv_params_declare(s->params, &weight);
  s->bias = hv_params_declare(s->params, &bias);
  s->other = hv_params_begin_group(s->params, "other");
  s->elsewhere = hv_params_declare(s->params, &other);
  assert_ok(hv_params_allocate(s->params));
  assert_ok(hv_params_allocate_gradients(s->params, HV_F32));
  for (int i = 0; i < ROWS * STACKED * OUT; i++) s->dy[i] = (float)(i % 7 - 3);
  for (int i = 0; i < ROWS * IN; i++) s->x[i] = (float)(i % 4 + 1);
}

static void close_store(store *s) {
  hv_params_close(s->params);
  hv_stream_close(s->stream);
  hv_device_close(s->device);
}

/* Fills every gradient with values, as an earlier step may have left them. */
static void leave_garbage(store *s) {
  hv_group_id groups[] = {s->layer, s->other};
  for (int g = 0; g < 2; g++) {
    hv_tensor all = hv_group_gradients(s->params, groups[g]);
    float *memory = all.data;
    for (int64_t i = 0; i < all.cols; i++) memory[i] = NAN;
  }
}

static hv_tensor rows_of(float *values, int64_t rows, int64_t cols) {
  return hv_tensor_make(values, HV_F32, rows, cols);
}

static void add_product(store *s, hv_param_id weight, int stacked, hv_param_id bias, int64_t rows) {
  hv_param_linear_gradients(s->params, weight, stacked, bias, rows_of(s->dy, rows, stacked * OUT),
                            rows_of(s->x, rows, IN), s->stream);
}

/* The gradient must be `times` dyᵀ x, the product that add_product computes. */
static void check_gradient(store *s, hv_param_id first, int stacked, int times) {
  hv_tensor gradient = hv_param_stacked_gradient(s->params, first, stacked);
  assert_ok(hv_stream_synchronize(s->stream));
  for (int64_t o = 0; o < stacked * OUT; o++) {
    for (int64_t i = 0; i < IN; i++) {
      float sum = 0;
      for (int64_t r = 0; r < ROWS; r++) sum += s->dy[r * stacked * OUT + o] * s->x[r * IN + i];
      assert_true(((const float *)gradient.data)[o * IN + i] == (float)times * sum);
    }
  }
}

/* All gradients of the group, padding included, must be 0 except the `kept` elements of one parameter. */
static void check_zeros(store *s, hv_group_id group, hv_param_id param, int64_t kept) {
  hv_tensor all = hv_group_gradients(s->params, group);
  int64_t first = kept ? hv_params_get(s->params, param)->offset : 0;
  assert_ok(hv_stream_synchronize(s->stream));
  for (int64_t i = 0; i < all.cols; i++) {
    if (i >= first && i < first + kept) continue;
    assert_true(((const float *)all.data)[i] == 0);
  }
}

static void first_product_sets(void **state) {
  store s;
  (void)state;
  open_store(&s);
  for (int step = 0; step < 2; step++) {
    leave_garbage(&s);
    hv_params_zero_gradients(s.params, s.stream);
    hv_params_use(s.params, s.layer, s.stream);
    add_product(&s, s.stack, STACKED, -1, ROWS);
    hv_params_gradients_ready(s.params, s.layer, s.stream);
    hv_params_done(s.params, s.layer, s.stream);
    hv_params_end_passes(s.params, s.stream);
    check_gradient(&s, s.stack, STACKED, 1);
    check_zeros(&s, s.layer, s.stack, STACKED * OUT * IN);
    check_zeros(&s, s.other, -1, 0);
  }
  close_store(&s);
}

static void later_products_add(void **state) {
  store s;
  (void)state;
  open_store(&s);
  leave_garbage(&s);
  hv_params_zero_gradients(s.params, s.stream);
  for (int pass = 1; pass <= 3; pass++) {
    hv_params_begin_pass(s.params, pass == 3, s.stream);
    hv_params_use(s.params, s.layer, s.stream);
    add_product(&s, s.weight, 1, s.bias, ROWS);
    if (pass == 2) add_product(&s, s.stack, STACKED, -1, ROWS); /* its gradient was 0 after the first pass */
    hv_params_gradients_ready(s.params, s.layer, s.stream);
    hv_params_done(s.params, s.layer, s.stream);
    check_gradient(&s, s.weight, 1, pass);
    check_gradient(&s, s.stack, STACKED, pass > 1);
  }
  hv_params_end_passes(s.params, s.stream);
  const float *bias = hv_param_gradient(s.params, s.bias).data;
  for (int o = 0; o < OUT; o++) assert_true(bias[o] == 3 * (s.dy[o] + s.dy[OUT + o]));
  close_store(&s);
}

/* In a layer whose output is needed for few rows only, the queries have a product of their own, which comes before that
 * of the stack (q, k, v) that they belong to. */
static void stacks_may_begin_in_parts(void **state) {
  store s;
  (void)state;
  open_store(&s);
  leave_garbage(&s);
  hv_params_zero_gradients(s.params, s.stream);
  hv_params_use(s.params, s.layer, s.stream);
  add_product(&s, s.stack, 1, -1, ROWS);
  check_gradient(&s, s.stack, 1, 1);
  float query[OUT * IN];
  memcpy(query, hv_param_gradient(s.params, s.stack).data, sizeof query);
  add_product(&s, s.stack, STACKED, -1, ROWS);
  float *sum = hv_param_gradient(s.params, s.stack).data;
  for (int i = 0; i < OUT * IN; i++) sum[i] -= query[i];
  check_gradient(&s, s.stack, STACKED, 1);
  hv_params_gradients_ready(s.params, s.layer, s.stream);
  hv_params_done(s.params, s.layer, s.stream);
  close_store(&s);
}

static void what_nothing_touches_is_zero(void **state) {
  store s;
  float values[MOST];
  (void)state;
  open_store(&s);
  leave_garbage(&s);
  hv_params_zero_gradients(s.params, s.stream);
  hv_params_use(s.params, s.layer, s.stream);
  add_product(&s, s.weight, 1, s.bias, 0);
  assert_ok(hv_param_read_gradient(s.params, s.weight, HV_F32, values, s.stream)); /* before the zeros are written */
  for (int i = 0; i < OUT * IN; i++) assert_true(values[i] == 0);
  hv_params_gradients_ready(s.params, s.layer, s.stream);
  check_zeros(&s, s.layer, -1, 0);
  hv_params_done(s.params, s.layer, s.stream);
  hv_params_end_passes(s.params, s.stream);
  check_zeros(&s, s.other, -1, 0);
  close_store(&s);
}

enum { WIDE = 96, VALUES = WIDE * WIDE };

/* The parameter is larger than the buffer in which values are converted. */
static void large_values_are_converted_whole(void **state) {
  (void)state;
  enum { SIDE = 800, COUNT = SIDE * SIDE };
  const hv_param_spec spec = {.name = "large", .shape = {SIDE, SIDE}};
  store s;
  float *values = malloc(COUNT * sizeof *values), *found = malloc(COUNT * sizeof *found);
  assert_ok(hv_cpu_device_open(NULL, &s.device));
  assert_ok(hv_stream_open(s.device, &s.stream));
  assert_ok(hv_params_open(s.device, HV_BF16, &s.params));
  hv_params_begin_group(s.params, "a");
  hv_param_id id = hv_params_declare(s.params, &spec);
  assert_ok(hv_params_allocate(s.params));
  for (int i = 0; i < COUNT; i++) values[i] = (float)(i % 251);
  assert_ok(hv_param_write(s.params, id, HV_F32, values, s.stream));
  assert_ok(hv_param_read(s.params, id, HV_F32, found, s.stream));
  assert_memory_equal(found, values, COUNT * sizeof *values);
  free(values);
  free(found);
  close_store(&s);
}

/* Declares parameters of one shape in the order of `names`, initialises them, and gives the values of `asked`. */
static void initial_values(const char *const names[4], uint64_t seed, const char *asked, float *values) {
  static const hv_init inits[] = {HV_INIT_NORMAL, HV_INIT_XAVIER, HV_INIT_ZERO, HV_INIT_ONE};
  hv_device *device;
  hv_stream *stream;
  hv_params *params;
  assert_ok(hv_cpu_device_open(NULL, &device));
  assert_ok(hv_stream_open(device, &stream));
  assert_ok(hv_params_open(device, HV_F32, &params));
  hv_params_begin_group(params, "all");
  for (int i = 0; i < 4; i++) {
    int kind = names[i][0] - 'a'; /* the first letter of the name chooses the initialisation */
    hv_params_declare(params, &(hv_param_spec){.name = names[i], .shape = {WIDE, WIDE}, .init = inits[kind]});
  }
  assert_ok(hv_params_allocate(params));
  assert_ok(hv_params_initialize(params, seed, stream));
  assert_ok(hv_param_read(params, hv_params_find(params, asked), HV_F32, values, stream));
  hv_params_close(params);
  hv_stream_close(stream);
  hv_device_close(device);
}

/* Checks that no value exceeds `bound`, and the mean and the root mean square (`scale`). */
static void assert_spread(const float *values, double bound, double mean, double scale) {
  double sum = 0, squares = 0;
  for (int i = 0; i < VALUES; i++) {
    assert_true(fabs((double)values[i]) <= bound);
    sum += values[i];
    squares += (double)values[i] * values[i];
  }
  assert_true(fabs(sum / VALUES - mean) < 0.05 * scale);
  assert_true(fabs(sqrt(squares / VALUES) - scale) < 0.03 * scale);
}

/* The initial values of a parameter depend on the seed and its name alone, so a new head gets the same values in any
 * model. */
static void initial_values_are_a_names_own(void **state) {
  (void)state;
  static const char *const names[] = {"a.first", "a.second", "b.uniform", "d.ones"};
  static const char *const others[] = {"c.zeros", "b.uniform", "a.second", "a"};
  static float first[VALUES], second[VALUES], found[VALUES];
  double bound = sqrt(6.0 / (2 * WIDE));
  initial_values(names, 7, "a.first", first);
  initial_values(names, 7, "a.second", second);
  assert_spread(first, 0.15, 0, 0.02);
  assert_spread(second, 0.15, 0, 0.02);
  int same = 0;
  for (int i = 0; i < VALUES; i++) same += first[i] == second[i];
  assert_true(same < VALUES / 100);
  initial_values(others, 7, "a.second", found);
  assert_memory_equal(found, second, sizeof found);
  initial_values(names, 8, "a.second", found);
  assert_memory_not_equal(found, second, sizeof found);
  initial_values(names, 7, "b.uniform", found);
  assert_spread(found, bound, 0, bound / sqrt(3));
  initial_values(names, 7, "d.ones", found);
  assert_spread(found, 1, 1, 1);
  initial_values(others, 7, "c.zeros", found);
  for (int i = 0; i < VALUES; i++) assert_true(found[i] == 0);
}

/* q, k and v are one matrix in memory. Freezing one of them alone is refused, because its neighbours are trained. */
static void what_is_one_matrix_is_frozen_whole(void **state) {
  static const char *const part[] = {"k"}, *const whole[] = {"q", "k", "v"};
  store s;
  (void)state;
  open_store(&s);
  assert_error(hv_params_freeze(s.params, part, 1), "q and k are stored as one matrix", "freeze both or neither");
  close_store(&s);
  open_store(&s);
  assert_ok(hv_params_freeze(s.params, whole, 3));
  assert_false(hv_params_get(s.params, s.stack)->trainable);
  assert_true(hv_params_get(s.params, s.weight)->trainable);
  close_store(&s);
}

static void a_name_is_declared_once(void **state) {
  (void)state;
  static const char *const names[] = {"b", "c", "a", "d", "c", "e"};
  for (int count = 4; count <= 6; count++) {
    hv_device *device;
    hv_params *params;
    assert_ok(hv_cpu_device_open(NULL, &device));
    assert_ok(hv_params_open(device, HV_F32, &params));
    (void)hv_params_begin_group(params, "layer");
    for (int i = 0; i < count; i++) (void)hv_params_declare_vector(params, NULL, names[i], OUT, HV_INIT_ZERO);
    if (count == 4) {
      assert_ok(hv_params_allocate(params));
    } else {
      assert_error(hv_params_allocate(params), "parameter c is declared twice");
    }
    hv_params_close(params);
    hv_device_close(device);
  }
}

/* A model without embedders has an empty group, for which ranks must not communicate. */
static void an_empty_group_needs_no_communication(void **state) {
  (void)state;
  hv_device *device;
  hv_stream *stream;
  hv_comm *comm;
  hv_params *params;
  assert_ok(hv_plan_device_open(&device));
  assert_ok(hv_stream_open(device, &stream));
  assert_ok(hv_plan_comm_open(device, 1, 2, &(hv_plan_links){.node_ranks = 2}, &comm));
  assert_ok(hv_params_open(device, HV_F32, &params));
  const hv_group_id groups[] = {hv_params_begin_group(params, "empty"), hv_params_begin_group(params, "layer")};
  (void)hv_params_declare_vector(params, NULL, "norm", OUT, HV_INIT_ONE);
  assert_ok(hv_params_distribute(params, comm, HV_SHARD_PARAMETERS));
  assert_ok(hv_params_allocate(params));
  assert_ok(hv_params_allocate_gradients(params, HV_F32));
  for (int pass = 0; pass < 2; pass++) { /* the second one prefetches */
    hv_params_begin_pass(params, true, stream);
    for (int g = 0; g < 2; g++) {
      hv_params_use(params, groups[g], stream);
      hv_params_gradients_ready(params, groups[g], stream);
      hv_params_done(params, groups[g], stream);
    }
    hv_params_end_passes(params, stream);
    hv_params_publish(params, stream);
  }
  assert_ok(hv_comm_status(comm));
  assert_ok(hv_params_order_status(params));
  hv_params_close(params);
  hv_comm_close(comm);
  hv_stream_close(stream);
  hv_device_close(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(first_product_sets),
      cmocka_unit_test(later_products_add),
      cmocka_unit_test(stacks_may_begin_in_parts),
      cmocka_unit_test(what_nothing_touches_is_zero),
      cmocka_unit_test(a_name_is_declared_once),
      cmocka_unit_test(what_is_one_matrix_is_frozen_whole),
      cmocka_unit_test(large_values_are_converted_whole),
      cmocka_unit_test(initial_values_are_a_names_own),
      cmocka_unit_test(an_empty_group_needs_no_communication),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
