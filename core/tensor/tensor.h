/* A tensor is a matrix in device memory, contiguous in a row and with a stride between rows: activations are [tokens,
 * features], a vector is one row, a list of indices is one row of I32. It is a view: it owns nothing, copying it copies
 * the view. data == NULL says "absent" where an operand is optional.
 */
#ifndef HV_TENSOR_TENSOR_H
#define HV_TENSOR_TENSOR_H

#include <stdbool.h>

#include "core/tensor/dtype.h"

typedef struct hv_tensor {
  void *data;
  hv_dtype dtype;
  int64_t rows, cols;
  int64_t row_stride; /* elements from one row to the next, >= cols */
} hv_tensor;

static inline hv_tensor hv_tensor_make(void *data, hv_dtype dtype, int64_t rows, int64_t cols) {
  return (hv_tensor){.data = data, .dtype = dtype, .rows = rows, .cols = cols, .row_stride = cols};
}

static inline bool hv_present(hv_tensor t) {
  return t.data != NULL;
}

static inline int64_t hv_tensor_count(hv_tensor t) {
  return t.rows * t.cols;
}

/* Rows [first, first + rows) of t. */
static inline hv_tensor hv_tensor_rows(hv_tensor t, int64_t first, int64_t rows) {
  t.data = (char *)t.data + (size_t)(first * t.row_stride) * hv_dtype_size(t.dtype);
  t.rows = rows;
  return t;
}

/* Columns [first, first + cols) of t. */
static inline hv_tensor hv_tensor_cols(hv_tensor t, int64_t first, int64_t cols) {
  t.data = (char *)t.data + (size_t)first * hv_dtype_size(t.dtype);
  t.cols = cols;
  return t;
}

/* The same elements as rows of another width; t must lie without gaps (row_stride == cols). */
static inline hv_tensor hv_tensor_reshape(hv_tensor t, int64_t rows, int64_t cols) {
  t.rows = rows;
  t.cols = cols;
  t.row_stride = cols;
  return t;
}

#endif
