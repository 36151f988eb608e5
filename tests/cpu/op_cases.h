/* The test cases of all operations, the same for every device; test_ops.c runs them on a device given by name. A case
 * runs one operation with random operands, so it is repeated with several seeds. */
#ifndef HV_TESTS_CPU_OP_CASES_H
#define HV_TESTS_CPU_OP_CASES_H

#include "tests/cpu/op_env.h"

typedef struct op_case {
  const char *name;
  void (*run)(op_env *env);
} op_case;

/* Each list ends with a NULL name. */
extern const op_case op_layer_cases[];     /* linear, norms, residuals, SwiGLU, rotary */
extern const op_case op_attention_cases[]; /* attention and its gradient */
extern const op_case op_token_cases[];     /* rows, patches, vision tokens, conversions */
extern const op_case op_head_cases[];      /* diffusion, losses, decoding, random numbers, optimizer */

/* All four lists. */
extern const op_case *const op_case_lists[4];

/* Runs a case `repeats` times with the seeds `seed`, `seed` + 1, …; every second time with `wide` set (op_env.h). */
void op_run_case(op_env *env, const op_case *c, int repeats, uint64_t seed);
/* Runs all cases. */
void op_run_cases(op_env *env, int repeats, uint64_t seed);

#endif
