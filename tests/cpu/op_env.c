#include "tests/cpu/op_env.h"

#include <math.h>

#include "core/base/random.h"
#include "tests/check.h"

/* A bit pattern that is a NaN in every floating dtype. */
enum { POISON = 0xff };

void op_env_open(op_env *env, hv_device *under_test, hv_device *cpu, hv_dtype dtype, uint64_t seed) {
  *env = (op_env){
      .device = {under_test, cpu}, .dtype = dtype, .max_size = 300, .seed = seed, .digest = 14695981039346656037u};
  for (int side = 0; side < OP_SIDES; side++) assert_ok(hv_stream_open(env->device[side], &env->stream[side]));
}

void op_env_clear(op_env *env) {
  for (int i = 0; i < env->allocations; i++) {
    hv_device_release(env->allocation[i].device, env->allocation[i].device_memory);
    free(env->allocation[i].host_memory);
  }
  env->allocations = 0;
}

void op_env_close(op_env *env) {
  op_env_clear(env);
  for (int side = 0; side < OP_SIDES; side++) hv_stream_close(env->stream[side]);
}

double op_uniform(op_env *env, double low, double high) {
  uint64_t draw = env->draws++;
  return low + (high - low) * (double)hv_random_uniform(env->seed, 100, draw >> 32, draw, 0, 0);
}

double op_normal(op_env *env) {
  uint64_t draw = env->draws++;
  return (double)hv_random_normal(env->seed, 101, draw >> 32, draw, 0, 0);
}

int64_t op_below(op_env *env, int64_t limit) {
  uint64_t draw = env->draws++;
  return hv_random_below(env->seed, 102, draw >> 32, draw, 0, 0, (uint32_t)limit);
}

bool op_coin(op_env *env) {
  return op_below(env, 2) == 1;
}

int64_t op_rounded(op_env *env, int64_t size) {
  return env->wide && op_below(env, 4) > 0 ? (size + 7) / 8 * 8 : size;
}

int64_t op_size(op_env *env) {
  static const int64_t sizes[] = {1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 33, 64, 65, 100, 127, 129, 257, 300};
  int64_t count = 0;
  while (count < (int64_t)(sizeof sizes / sizeof sizes[0]) && sizes[count] <= env->max_size) count++;
  return op_rounded(env, sizes[op_below(env, count)]);
}

int64_t op_width(op_env *env, int64_t rows) {
  return rows < 40 && op_below(env, 4) == 0 ? op_rounded(env, 2049 + op_below(env, 400)) : op_size(env);
}

int64_t op_depth(op_env *env) {
  int64_t size = op_size(env);
  return op_below(env, 6) == 0 ? size + 2 * env->max_size : size;
}

hv_activation op_activation(op_env *env, bool none) {
  static const hv_activation all[] = {HV_ACT_GELU, HV_ACT_GELU_TANH, HV_ACT_QUICK_GELU, HV_ACT_SILU, HV_ACT_NONE};
  return all[op_below(env, none ? 5 : 4)];
}

static int remember(op_env *env) {
  assert_true(env->allocations < OP_MAX_ALLOCATIONS);
  int index = env->allocations++;
  env->allocation[index].device = NULL;
  env->allocation[index].device_memory = NULL;
  env->allocation[index].host_memory = NULL;
  return index;
}

static void *host_memory(op_env *env, size_t bytes) {
  int index = remember(env);
  env->allocation[index].host_memory = calloc(1, bytes > 0 ? bytes : 1);
  assert_non_null(env->allocation[index].host_memory);
  return env->allocation[index].host_memory;
}

double *op_array(op_env *env, int64_t count) {
  return host_memory(env, (size_t)count * sizeof(double));
}

static size_t stored_bytes(const hv_tensor *t) {
  return (size_t)(t->rows * t->row_stride) * hv_dtype_size(t->dtype);
}

/* Device memory for a matrix with gaps of `gap` elements between rows. */
static hv_tensor make_tensor(op_env *env, int side, hv_dtype dtype, int64_t rows, int64_t cols, int64_t gap) {
  hv_tensor t = hv_tensor_make(NULL, dtype, rows, cols);
  t.row_stride = cols + gap;
  int index = remember(env);
  env->allocation[index].device = env->device[side];
  assert_ok(hv_device_allocate(env->device[side], HV_MEMORY_WORKSPACE, stored_bytes(&t) + 1, "an operand",
                               &env->allocation[index].device_memory));
  t.data = env->allocation[index].device_memory;
  return t;
}

static char *poison_for(op_env *env, const hv_tensor *t) {
  char *image = host_memory(env, stored_bytes(t));
  memset(image, POISON, stored_bytes(t));
  return image;
}

static void put(op_env *env, int side, const hv_tensor *t, const char *image) {
  hv_upload(env->stream[side], t->data, image, stored_bytes(t));
  op_synchronize(env, side, "upload");
}

/* Uploads rows, which have no gaps on the host, into the tensor; its own gaps become poison. */
static void put_rows(op_env *env, int side, const hv_tensor *t, const void *rows) {
  char *image = poison_for(env, t);
  size_t row_bytes = (size_t)t->cols * hv_dtype_size(t->dtype), pitch = (size_t)t->row_stride * hv_dtype_size(t->dtype);
  for (int64_t i = 0; i < t->rows; i++) {
    memcpy(image + (size_t)i * pitch, (const char *)rows + (size_t)i * row_bytes, row_bytes);
  }
  put(env, side, t, image);
}

static hv_dtype stored_dtype(op_env *env, op_kind kind) {
  bool chance = kind == OP_T_OR_F32 && op_coin(env);
  if (kind == OP_F32 || (chance && env->dtype != HV_F64)) return HV_F32;
  if (kind == OP_S) return env->dtype == HV_F64 ? HV_F64 : HV_F32;
  return env->dtype;
}

/* Lists and operands of one row have no gaps. */
static int64_t random_gap(op_env *env, int64_t rows) {
  if (rows <= 1 || op_coin(env)) return 0;
  return env->wide ? 8 : 1 + op_below(env, 9);
}

static op_operand empty_operand(op_env *env, op_kind kind, int64_t rows, int64_t cols) {
  op_operand operand = {.host = NULL};
  int64_t gap = random_gap(env, rows);
  operand.at[0] = make_tensor(env, 0, stored_dtype(env, kind), rows, cols, gap);
  operand.at[1] = make_tensor(env, 1, kind == OP_F32 ? HV_F32 : HV_F64, rows, cols, gap);
  return operand;
}

op_operand op_values(op_env *env, op_kind kind, int64_t rows, int64_t cols, const double *values) {
  op_operand operand = empty_operand(env, kind, rows, cols);
  int64_t count = rows * cols;
  double *host = op_array(env, count);
  for (int side = 0; side < OP_SIDES; side++) {
    hv_dtype dtype = operand.at[side].dtype;
    void *stored = host_memory(env, (size_t)count * hv_dtype_size(dtype));
    hv_dtype_convert(dtype, stored, HV_F64, side == 0 ? values : host, count);
    if (side == 0) hv_dtype_convert(HV_F64, host, dtype, stored, count);
    put_rows(env, side, &operand.at[side], stored);
  }
  operand.host = host;
  return operand;
}

op_operand op_random(op_env *env, op_kind kind, int64_t rows, int64_t cols, double scale, double offset) {
  double *values = op_array(env, rows * cols);
  for (int64_t i = 0; i < rows * cols; i++) values[i] = offset + scale * op_normal(env);
  return op_values(env, kind, rows, cols, values);
}

op_operand op_raw(op_env *env, hv_dtype dtype, int64_t rows, int64_t cols, const void *values) {
  op_operand operand = {.host = NULL};
  for (int side = 0; side < OP_SIDES; side++) {
    operand.at[side] = make_tensor(env, side, dtype, rows, cols, 0);
    put_rows(env, side, &operand.at[side], values);
  }
  return operand;
}

op_operand op_ints(op_env *env, int64_t rows, int64_t cols, const int32_t *values) {
  return op_raw(env, HV_I32, rows, cols, values);
}

op_operand op_shorts(op_env *env, int64_t rows, int64_t cols, const int16_t *values) {
  return op_raw(env, HV_I16, rows, cols, values);
}

op_operand op_longs(op_env *env, int64_t rows, int64_t cols, const int64_t *values) {
  return op_raw(env, HV_I64, rows, cols, values);
}

op_operand op_bytes(op_env *env, int64_t rows, int64_t cols) {
  uint8_t *bytes = host_memory(env, (size_t)(rows * cols));
  double *host = op_array(env, rows * cols);
  for (int64_t i = 0; i < rows * cols; i++) {
    bytes[i] = (uint8_t)op_below(env, 256);
    host[i] = bytes[i];
  }
  op_operand operand = op_raw(env, HV_U8, rows, cols, bytes);
  operand.host = host;
  return operand;
}

op_operand op_result(op_env *env, op_kind kind, int64_t rows, int64_t cols) {
  op_operand operand = empty_operand(env, kind, rows, cols);
  for (int side = 0; side < OP_SIDES; side++) {
    put(env, side, &operand.at[side], poison_for(env, &operand.at[side]));
  }
  return operand;
}

op_operand op_int_result(op_env *env, int64_t rows, int64_t cols) {
  int32_t *values = host_memory(env, (size_t)(rows * cols) * sizeof *values);
  for (int64_t i = 0; i < rows * cols; i++) values[i] = INT32_MIN;
  return op_ints(env, rows, cols, values);
}

op_operand op_rotary_table(op_env *env, int64_t positions, int64_t dim) {
  double *values = op_array(env, positions * dim);
  for (int64_t i = 0; i < positions * dim / 2; i++) {
    double *pair = values + i / (dim / 2) * dim + i % (dim / 2), angle = op_uniform(env, -4, 4);
    pair[0] = cos(angle);
    pair[dim / 2] = sin(angle);
  }
  return op_values(env, OP_S, positions, dim, values);
}

op_operand op_absent(void) {
  return (op_operand){.host = NULL};
}

void op_synchronize(op_env *env, int side, const char *op) {
  hv_status status = hv_stream_synchronize(env->stream[side]);
  if (status) fail_msg("%s, %s on %s: %s", env->name, op, env->device[side]->name, hv_status_message(status));
}

static void add_to_digest(op_env *env, const char *bytes, size_t size) {
  for (size_t i = 0; i < size; i++) env->digest = (env->digest ^ (uint8_t)bytes[i]) * 1099511628211u;
}

static double number_at(hv_dtype dtype, const char *bytes) {
  double value;
  int32_t integer;
  if (dtype == HV_I32) {
    memcpy(&integer, bytes, sizeof integer);
    return integer;
  }
  if (dtype == HV_I16) {
    int16_t small;
    memcpy(&small, bytes, sizeof small);
    return small;
  }
  if (dtype == HV_U8) return (uint8_t)*bytes;
  if (dtype == HV_I8) return (int8_t)*bytes;
  hv_dtype_convert(HV_F64, &value, dtype, bytes, 1);
  return value;
}

double *op_read(op_env *env, int side, const op_operand *result) {
  const hv_tensor *t = &result->at[side];
  size_t size = hv_dtype_size(t->dtype), pitch = (size_t)t->row_stride * size, width = (size_t)t->cols * size;
  char *image = host_memory(env, stored_bytes(t));
  hv_download(env->stream[side], image, t->data, stored_bytes(t));
  op_synchronize(env, side, "download");
  double *values = op_array(env, t->rows * t->cols);
  for (int64_t i = 0; i < t->rows; i++) {
    const char *row = image + (size_t)i * pitch;
    for (int64_t j = 0; j < t->cols; j++) values[i * t->cols + j] = number_at(t->dtype, row + (size_t)j * size);
    for (size_t j = width; j < pitch; j++) {
      if ((uint8_t)row[j] != POISON) fail_msg("%s: %s wrote into a row's gap", env->name, env->device[side]->name);
    }
    if (side == 0) add_to_digest(env, row, width);
  }
  return values;
}

void op_compare_within(op_env *env, const char *what, const op_operand *result, const double *expected,
                       double tolerance) {
  if (env->before_second) return;
  const hv_tensor *t = &result->at[0];
  const double *values = op_read(env, 0, result);
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < t->rows * t->cols; i++) {
    difference += (values[i] - expected[i]) * (values[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  /* If the reference is 0 up to its own rounding, as the gradient of a query that sees one key is, the result is
   * compared with 0. */
  bool zero = sqrt(norm) <= 1e-12 * sqrt((double)(t->rows * t->cols));
  double error = zero ? sqrt(difference) : sqrt(difference / norm);
  if (!(error <= tolerance)) {
    fail_msg("%s, %s: %s [%lld, %lld] on %s is off by %.3g (at most %.3g; seed %llu)", env->name,
             hv_dtype_name(env->dtype), what, (long long)t->rows, (long long)t->cols, env->device[0]->name, error,
             tolerance, (unsigned long long)env->seed);
  }
}

void op_compare(op_env *env, const char *what, const op_operand *result, const double *expected) {
  double tolerance = env->dtype == HV_F64 ? 1e-12 : env->dtype == HV_F32 ? 1e-5 : 1e-2;
  op_compare_within(env, what, result, expected, tolerance);
}

void op_compare_sides(op_env *env, const char *what, const op_operand *result) {
  op_compare(env, what, result, op_read(env, 1, result));
}
