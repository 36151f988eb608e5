#include "tests/cpu/op_cases.h"

#include <string.h>

const op_case *const op_case_lists[4] = {op_layer_cases, op_attention_cases, op_token_cases, op_head_cases};

void op_run_cases(op_env *env, const char *filter, int attention_repeats, int repeats, uint64_t seed) {
  for (size_t list = 0; list < sizeof op_case_lists / sizeof op_case_lists[0]; list++) {
    int times = op_case_lists[list] == op_attention_cases ? attention_repeats : repeats;
    for (const op_case *c = op_case_lists[list]; c->name; c++) {
      if (filter && !strstr(c->name, filter)) continue;
      for (int i = 0; i < times; i++) {
        env->name = c->name;
        env->seed = seed + (uint64_t)i;
        env->draws = 0;
        env->wide = i % 2 == 1;
        c->run(env);
        op_env_clear(env);
      }
    }
  }
}
