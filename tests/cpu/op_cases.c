#include "tests/cpu/op_cases.h"

const op_case *const op_case_lists[4] = {op_layer_cases, op_attention_cases, op_token_cases, op_head_cases};

void op_run_case(op_env *env, const op_case *c, int repeats, uint64_t seed) {
  for (int i = 0; i < repeats; i++) {
    env->name = c->name;
    env->seed = seed + (uint64_t)i;
    env->draws = 0;
    env->wide = i % 2 == 1;
    c->run(env);
    op_env_clear(env);
  }
}

void op_run_cases(op_env *env, int repeats, uint64_t seed) {
  for (size_t list = 0; list < sizeof op_case_lists / sizeof op_case_lists[0]; list++) {
    for (const op_case *c = op_case_lists[list]; c->name; c++) op_run_case(env, c, repeats, seed);
  }
}
