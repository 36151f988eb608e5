/* Takes the place of cuBLASLt in test_matmul_library: the functions that cuda/matmul.cu calls, as cublasLt.h describes
 * them, in plain loops. It is strict: a call that the library might refuse, or an algorithm that was chosen for another
 * product, gives CUBLAS_STATUS_INVALID_VALUE. Pointers are to host memory, and work is done at once; compiled with
 * HV_PTX_MACHINE, pointers are to that machine's memory, and work is done as a part of the stream.
 *
 * The heuristics know two algorithms. If several results are asked for, they come after one result that failed and one
 * that Matmul then refuses. For a bf16 operand at an odd address there is no algorithm.
 * If the environment variable STAND_IN_CALLS names a file, each call of AlgoGetHeuristic and AlgoCheck adds a line. */
#include <cublasLt.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>
#include <vector>

#include "core/tensor/dtype.h"
#ifdef HV_PTX_MACHINE
#include "tests/cuda/ptx/machine.h"
#endif

namespace {

struct product {
  cublasOperation_t transpose_a, transpose_b;
  cublasLtEpilogue_t epilogue;
  const void *bias;
};

/* Column-major. */
struct layout {
  cudaDataType type;
  uint64_t rows, cols;
  int64_t ld;
};

struct preference {
  uint64_t workspace;
  uint32_t reductions, align[4];
};

/* The layouts of A, B, C and D. */
struct layouts {
  const layout *at[4];
};

/* The product that an algorithm was chosen for. */
struct choice {
  uint32_t magic, number, hash;
  uint16_t align[5]; /* of A, B, C, D and the bias */
};

enum : uint32_t { MAGIC = 0x1b1a5, ALGORITHMS = 2, REFUSED = 7, WORKSPACE = 1024 };

static_assert(sizeof(product) <= sizeof(cublasLtMatmulDescOpaque_t), "");
static_assert(sizeof(layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "");
static_assert(sizeof(choice) <= sizeof(cublasLtMatmulAlgo_t), "");

void note(const char *call) {
  const char *path = getenv("STAND_IN_CALLS");
  FILE *file = path ? fopen(path, "ae") : nullptr;
  if (!file) return;
  fprintf(file, "%s\n", call);
  fclose(file);
}

uint16_t alignment(const void *p) {
  uint16_t align = 256;
  while ((uintptr_t)p % align != 0) align /= 2;
  return align;
}

bool has_bias(const product *p) {
  return p->epilogue == CUBLASLT_EPILOGUE_BIAS || p->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
}

bool has_gelu(const product *p) {
  return p->epilogue == CUBLASLT_EPILOGUE_GELU || p->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
}

const product *product_of(cublasLtMatmulDesc_t desc) {
  return (const product *)(const void *)desc;
}

layouts layouts_of(cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                   cublasLtMatrixLayout_t d) {
  return {{(const layout *)(void *)a, (const layout *)(void *)b, (const layout *)(void *)c, (const layout *)(void *)d}};
}

/* Whether the shapes fit D = op(A) op(B) + C. */
bool fits(const product *p, const layouts &of) {
  const layout *a = of.at[0], *b = of.at[1], *c = of.at[2], *d = of.at[3];
  bool ta = p->transpose_a == CUBLAS_OP_T, tb = p->transpose_b == CUBLAS_OP_T;
  uint64_t m = ta ? a->cols : a->rows, k = ta ? a->rows : a->cols;
  uint64_t k_of_b = tb ? b->cols : b->rows, n = tb ? b->rows : b->cols;
  return k == k_of_b && d->rows == m && d->cols == n && c->rows == m && c->cols == n && a->type == b->type &&
         c->type == d->type && (!has_bias(p) || p->bias);
}

uint32_t mix(uint32_t hash, uint64_t value) {
  for (int i = 0; i < 8; i++) hash = (hash ^ (uint32_t)(value >> (8 * i) & 0xff)) * 16777619u;
  return hash;
}

uint32_t hash_of(const product *p, const layouts &all) {
  uint32_t hash = mix(mix(mix(2166136261u, p->transpose_a), p->transpose_b), p->epilogue);
  for (const layout *l : all.at) {
    hash = mix(mix(mix(mix(hash, l->type), l->rows), l->cols), (uint64_t)l->ld);
  }
  return hash;
}

/* Whether an algorithm is one of ours, chosen for this product. */
bool is_chosen_for(const choice &made, const product *p, const layouts &of) {
  return made.magic == MAGIC && (made.number < ALGORITHMS || made.number == REFUSED) && made.hash == hash_of(p, of);
}

float read(const void *data, cudaDataType type, int64_t at) {
  return type == CUDA_R_16BF ? hv_bf16_to_float(((const uint16_t *)data)[at]) : ((const float *)data)[at];
}

void write(void *data, cudaDataType type, int64_t at, float value) {
  if (type == CUDA_R_16BF) {
    ((uint16_t *)data)[at] = hv_bf16_from_float(value);
  } else {
    ((float *)data)[at] = value;
  }
}

/* A whole call of Matmul. */
struct work {
  product what;
  layout a, b, c, d;
  const void *A, *B, *C;
  void *D, *workspace;
  float times, plus;
};

#ifdef HV_PTX_MACHINE
void *view(const void *data, const layout &l) {
  size_t last = (size_t)((int64_t)(l.cols - 1) * l.ld) + l.rows;
  return ptx_view(data, last * (l.type == CUDA_R_16BF ? sizeof(uint16_t) : sizeof(float)));
}
#endif

/* A matrix's columns one after the other, or its rows. */
std::vector<float> unfold(const void *data, const layout &l, bool by_columns) {
  std::vector<float> all;
  all.reserve(l.rows * l.cols);
  for (uint64_t i = 0; i < (by_columns ? l.cols : l.rows); i++) {
    for (uint64_t j = 0; j < (by_columns ? l.rows : l.cols); j++) {
      all.push_back(read(data, l.type, (int64_t)(by_columns ? i : j) * l.ld + (int64_t)(by_columns ? j : i)));
    }
  }
  return all;
}

void multiply(const work &w) {
  memset(w.workspace, 0xff, WORKSPACE);
  bool ta = w.what.transpose_a == CUBLAS_OP_T, tb = w.what.transpose_b == CUBLAS_OP_T;
  uint64_t k = ta ? w.a.rows : w.a.cols;
  std::vector<float> a = unfold(w.A, w.a, ta), b = unfold(w.B, w.b, !tb);
  for (uint64_t j = 0; j < w.d.cols; j++) {
    for (uint64_t i = 0; i < w.d.rows; i++) {
      double sum = 0;
      for (uint64_t l = 0; l < k; l++) sum += (double)a[i * k + l] * (double)b[j * k + l];
      double value = (double)w.times * sum;
      if (w.plus != 0) value += (double)w.plus * (double)read(w.C, w.c.type, (int64_t)j * w.c.ld + (int64_t)i);
      if (has_bias(&w.what)) value += (double)read(w.what.bias, w.d.type, (int64_t)i);
      if (has_gelu(&w.what)) {
        value = 0.5 * value * (1 + tanh(0.79788456080286536 * (value + 0.044715 * value * value * value)));
      }
      write(w.D, w.d.type, (int64_t)j * w.d.ld + (int64_t)i, (float)value);
    }
  }
}

template <typename Own, typename Handle> cublasStatus_t make(Handle *out, const Own &value) {
  auto *made = (typename std::remove_pointer<Handle>::type *)calloc(1, sizeof **out);
  *out = made;
  if (!made) return CUBLAS_STATUS_ALLOC_FAILED;
  memcpy((void *)made, &value, sizeof value);
  return CUBLAS_STATUS_SUCCESS;
}

template <typename T> cublasStatus_t take(T *to, const void *from, size_t size) {
  if (size != sizeof *to) return CUBLAS_STATUS_INVALID_VALUE;
  memcpy(to, from, size);
  return CUBLAS_STATUS_SUCCESS;
}

} // namespace

size_t cublasLtGetVersion() {
  return CUBLAS_VERSION;
}

const char *cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_INVALID_VALUE ? "an invalid value" : "another failure";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
  *handle = (cublasLtHandle_t)malloc(1);
  return *handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  free(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
  return make(out, product{CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr});
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  free(desc);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t size) {
  product *p = (product *)(void *)desc;
  if (name == CUBLASLT_MATMUL_DESC_TRANSA) return take(&p->transpose_a, value, size);
  if (name == CUBLASLT_MATMUL_DESC_TRANSB) return take(&p->transpose_b, value, size);
  if (name == CUBLASLT_MATMUL_DESC_EPILOGUE) return take(&p->epilogue, value, size);
  if (name == CUBLASLT_MATMUL_DESC_BIAS_POINTER) return take(&p->bias, value, size);
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t cols,
                                          int64_t ld) {
  if (rows == 0 || cols == 0 || ld < (int64_t)rows || (type != CUDA_R_16BF && type != CUDA_R_32F)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  return make(out, layout{type, rows, cols, ld});
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t desc) {
  free(desc);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out) {
  return make(out, preference{0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}});
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t desc) {
  free(desc);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t desc,
                                                    cublasLtMatmulPreferenceAttributes_t name, const void *value,
                                                    size_t size) {
  preference *p = (preference *)(void *)desc;
  if (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return take(&p->workspace, value, size);
  if (name == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) return take(&p->reductions, value, size);
  int operand = (int)name - (int)CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
  return operand < 0 || operand > 3 ? CUBLAS_STATUS_INVALID_VALUE : take(&p->align[operand], value, size);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preferences,
                                              int requested, cublasLtMatmulHeuristicResult_t results[], int *found) {
  note("heuristic");
  const product *p = product_of(desc);
  const preference *wanted = (const preference *)(void *)preferences;
  layouts of = layouts_of(a, b, c, d);
  *found = 0;
  if (!fits(p, of)) return CUBLAS_STATUS_INVALID_VALUE;
  if (wanted->reductions & (CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE) ||
      wanted->workspace < WORKSPACE) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (of.at[0]->type == CUDA_R_16BF && (wanted->align[0] < 4 || wanted->align[1] < 4)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  choice made = {MAGIC, requested > 1 ? (uint32_t)REFUSED : 0u, hash_of(p, of), {}};
  for (int i = 0; i < 4; i++) made.align[i] = (uint16_t)wanted->align[i];
  made.align[4] = has_bias(p) ? alignment(p->bias) : 1;
  if (requested > 1) results[(*found)++].state = CUBLAS_STATUS_NOT_SUPPORTED;
  while (made.number != ALGORITHMS && *found < requested) {
    cublasLtMatmulHeuristicResult_t *result = &results[(*found)++];
    memset((void *)result, 0, sizeof *result);
    memcpy((void *)&result->algo, &made, sizeof made);
    result->workspaceSize = WORKSPACE;
    made.number = made.number == REFUSED ? 0u : made.number + 1;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algorithm, cublasLtMatmulHeuristicResult_t *result) {
  note("check");
  choice made;
  memcpy(&made, algorithm, sizeof made);
  result->workspaceSize = WORKSPACE;
  bool known = is_chosen_for(made, product_of(desc), layouts_of(a, b, c, d));
  return known ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a_desc, const void *B, cublasLtMatrixLayout_t b_desc,
                              const void *beta, const void *C, cublasLtMatrixLayout_t c_desc, void *D,
                              cublasLtMatrixLayout_t d_desc, const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  const product *p = product_of(desc);
  layouts of = layouts_of(a_desc, b_desc, c_desc, d_desc);
  const layout *a = of.at[0], *b = of.at[1], *c = of.at[2], *d = of.at[3];
  const void *const operands[5] = {A, B, C, D, has_bias(p) ? p->bias : nullptr};
  const float times = *(const float *)alpha, plus = *(const float *)beta;
  choice made;
  memcpy(&made, algorithm, sizeof made);
  if (!fits(p, of) || !is_chosen_for(made, p, of)) return CUBLAS_STATUS_INVALID_VALUE;
  if (made.number == REFUSED) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (C == D && c_desc != d_desc) return CUBLAS_STATUS_INVALID_VALUE;
  for (int i = 0; i < 5; i++) {
    if (alignment(operands[i]) < made.align[i]) return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (workspace_bytes < WORKSPACE || (uintptr_t)workspace % 16 != 0) return CUBLAS_STATUS_INVALID_VALUE;
  work w = {*p, *a, *b, *c, *d, A, B, C, D, workspace, times, plus};
#ifdef HV_PTX_MACHINE
  w.A = view(A, *a), w.B = view(B, *b), w.C = view(C, *c), w.D = view(D, *d);
  w.workspace = ptx_view(workspace, workspace_bytes);
  if (has_bias(p)) w.what.bias = view(p->bias, {d->type, d->rows, 1, (int64_t)d->rows});
  if (!w.A || !w.B || !w.C || !w.D || !w.workspace || (has_bias(p) && !w.what.bias)) return CUBLAS_STATUS_INVALID_VALUE;
  ptx_queue(stream, [=] { multiply(w); });
#else
  (void)stream;
  multiply(w);
#endif
  return CUBLAS_STATUS_SUCCESS;
}
