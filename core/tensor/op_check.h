/* What an operation's arguments say about its operands, for the checks of ops.h and the counts of the plan device. */
#ifndef HV_TENSOR_OP_CHECK_H
#define HV_TENSOR_OP_CHECK_H

#include "core/tensor/ops.h"

typedef struct hv_op_cost {
  /* 2 per multiply-add of matrix products; attention as if every query saw max_key_rows keys, and without the scores
   * that its backward pass makes again. */
  double matrix_flops;
  double bytes;        /* of all operands, each once */
  double weight_bytes; /* of the weights of linear operations */
} hv_op_cost;

/* hv_check_<op> that also returns the cost, which is valid where the check succeeds. */
#define HV_OP_MEASURE(name) HV_NODISCARD hv_status hv_measure_##name(const hv_##name##_args *args, hv_op_cost *cost);
HV_OPS(HV_OP_MEASURE)
#undef HV_OP_MEASURE

/* The floating-point results of an operation, by the names of its arguments; none if the check fails. */
enum { HV_OP_MAX_OPERANDS = 16 };

typedef struct hv_op_results {
  int count;
  struct {
    const char *name;
    hv_tensor tensor;
  } items[HV_OP_MAX_OPERANDS];
} hv_op_results;

#define HV_OP_RESULTS(name) void hv_results_##name(const hv_##name##_args *args, hv_op_results *out);
HV_OPS(HV_OP_RESULTS)
#undef HV_OP_RESULTS

#endif
