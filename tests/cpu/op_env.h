/* A test bench for operations. A case makes random operands, runs one operation on the device under test and, with the
 * same operands in F64, on the CPU device, and compares the results with plain loops in double or with the CPU's. The
 * error is ‖a − b‖ / ‖b‖.
 *
 * Every operand exists twice, once for each `side`: at[0] on the device under test in the dtype T that is tested, at[1]
 * on the CPU in F64. Between the rows of a matrix there are random gaps filled with NaN (poison), which no operation
 * may read or write.
 */
#ifndef HV_TESTS_CPU_OP_ENV_H
#define HV_TESTS_CPU_OP_ENV_H

#include "core/tensor/ops.h"

enum { OP_MAX_ALLOCATIONS = 128, OP_SIDES = 2 };

typedef struct op_env {
  hv_device *device[OP_SIDES];
  hv_stream *stream[OP_SIDES];
  hv_dtype dtype;   /* T of the device under test */
  int64_t max_size; /* of a random dimension */
  bool wide;        /* most sizes and gaps are multiples of 8, for kernels that move 16 bytes at a time */
  uint64_t seed, draws;
  const char *name; /* of the case, for messages */
  uint64_t digest;  /* of all results of the device under test so far */
  /* If set, every operation runs a second time on the device under test, between these two calls. Operations that add
   * to their result then leave a wrong one, so nothing is compared. */
  void (*before_second)(void), (*after_second)(const char *op);

  int allocations;
  struct {
    hv_device *device;
    void *device_memory, *host_memory;
  } allocation[OP_MAX_ALLOCATIONS];
} op_env;

/* The dtype of an operand on the device under test: T; S, which is F32, or F64 if T is; T or F32, by chance (gradients
 * of parameters, logits); always F32. On the reference side it is F64, except that OP_F32 is F32 there too. */
typedef enum op_kind { OP_T, OP_S, OP_T_OR_F32, OP_F32 } op_kind;

typedef struct op_operand {
  hv_tensor at[OP_SIDES];
  const double *host; /* the input values, rounded as the device under test stores them: [rows, cols] without gaps */
} op_operand;

/* The devices are borrowed; device[1] is a CPU device. */
void op_env_open(op_env *env, hv_device *under_test, hv_device *cpu, hv_dtype dtype, uint64_t seed);
void op_env_clear(op_env *env); /* frees all operands, for the next case */
void op_env_close(op_env *env);

/* Random numbers of the case. */
double op_uniform(op_env *env, double low, double high);
double op_normal(op_env *env);
int64_t op_below(op_env *env, int64_t limit);
bool op_coin(op_env *env);
int64_t op_size(op_env *env); /* an awkward dimension: 1, odd, just beside a power of two; at most about max_size */
/* A number of columns for so many rows: as op_size; with few rows, now and then more than the 2048 that 256 threads
 * handle at once, 8 each. */
int64_t op_width(op_env *env, int64_t rows);
int64_t op_depth(op_env *env);                 /* as op_size, now and then larger than what products sum at once */
int64_t op_rounded(op_env *env, int64_t size); /* up to a multiple of 8, mostly, if `wide` is set */
hv_activation op_activation(op_env *env, bool none);

/* Operands: random normals times `scale` plus `offset`, or given values. Both are rounded to the stored dtype. */
op_operand op_random(op_env *env, op_kind kind, int64_t rows, int64_t cols, double scale, double offset);
op_operand op_values(op_env *env, op_kind kind, int64_t rows, int64_t cols, const double *values);
op_operand op_raw(op_env *env, hv_dtype dtype, int64_t rows, int64_t cols,
                  const void *values);                        /* values of any dtype, copied */
op_operand op_bytes(op_env *env, int64_t rows, int64_t cols); /* U8 */
op_operand op_ints(op_env *env, int64_t rows, int64_t cols, const int32_t *values);
op_operand op_shorts(op_env *env, int64_t rows, int64_t cols, const int16_t *values);
op_operand op_longs(op_env *env, int64_t rows, int64_t cols, const int64_t *values);
/* A table for rotary: cosines, then sines, of random angles. `dim` is even. */
op_operand op_rotary_table(op_env *env, int64_t positions, int64_t dim);
/* A result, filled with poison before the operation. */
op_operand op_result(op_env *env, op_kind kind, int64_t rows, int64_t cols);
op_operand op_int_result(op_env *env, int64_t rows, int64_t cols);
op_operand op_absent(void);

/* Fail unless a result is close to the expected values, or to the result on the reference side. */
void op_compare(op_env *env, const char *what, const op_operand *result, const double *expected);
void op_compare_within(op_env *env, const char *what, const op_operand *result, const double *expected,
                       double tolerance);
void op_compare_sides(op_env *env, const char *what, const op_operand *result);
/* The result's values on one side, valid until op_env_clear. Fails if the gaps between rows no longer hold poison. */
double *op_read(op_env *env, int side, const op_operand *result);

double *op_array(op_env *env, int64_t count); /* zeros, valid until op_env_clear */

void op_synchronize(op_env *env, int side, const char *op);

/* Runs one operation on both sides. The arguments may use `side`, the number of the side:
 *   OP_RUN(env, linear, .x = x.at[side], …) */
#define OP_RUN(env, op, ...)                                                                                           \
  for (int side = 0; side < OP_SIDES; side++) {                                                                        \
    hv_##op##_args op_args = {__VA_ARGS__};                                                                            \
    hv_##op((env)->stream[side], &op_args);                                                                            \
    if (side == 0 && (env)->before_second) {                                                                           \
      (env)->before_second();                                                                                          \
      hv_##op((env)->stream[side], &op_args);                                                                          \
      (env)->after_second(#op);                                                                                        \
    }                                                                                                                  \
    op_synchronize(env, side, #op);                                                                                    \
  }

#endif
