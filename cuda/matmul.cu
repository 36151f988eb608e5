/* hv_matmul on cuBLASLt. Our matrices are row-major and the library's are column-major, so it computes dᵀ = op(b)ᵀ
 * op(a)ᵀ: its first operand is our b, and its bias, one value for each row of dᵀ, is ours for each column of d. */
#include "core/base/log.h"
#include "cuda/fastest.h"
#include "cuda/matmul_choices.h"

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define LIBRARY "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

enum { WORKSPACE = HV_CUDA_WORKSPACE, BUCKETS = 256, MOST_MEASURED = 8 /* candidates for a shape */ };

/* The library's functions in use. */
#define FUNCTIONS(X)                                                                                                   \
  X(Create)                                                                                                            \
  X(Destroy)                                                                                                           \
  X(GetStatusString)                                                                                                   \
  X(MatmulDescCreate)                                                                                                  \
  X(MatmulDescDestroy)                                                                                                 \
  X(MatmulDescSetAttribute)                                                                                            \
  X(MatrixLayoutCreate)                                                                                                \
  X(MatrixLayoutDestroy)                                                                                               \
  X(MatmulPreferenceCreate)                                                                                            \
  X(MatmulPreferenceDestroy)                                                                                           \
  X(MatmulPreferenceSetAttribute)                                                                                      \
  X(MatmulAlgoGetHeuristic)                                                                                            \
  X(MatmulAlgoCheck)                                                                                                   \
  X(GetVersion)                                                                                                        \
  X(Matmul)

#define MEMBER(name) decltype(&cublasLt##name) name;
struct library {
  void *file;
  FUNCTIONS(MEMBER)
};
#undef MEMBER

/* A shape with its descriptors and its algorithm. */
struct plan {
  plan *next;
  hv_product_shape key;
  cublasLtMatmulDesc_t product;
  cublasLtMatrixLayout_t a, b, c, d;
  cublasLtMatmulAlgo_t algorithm;
  bool taken, supposed; /* as in hv_algorithm */
};

struct hv_matmul {
  hv_runtime *runtime; /* not owned */
  library lt;
  cublasLtHandle_t handle;
  plan *plans[BUCKETS];
  hv_choices choices;
  char made_by[256]; /* library and card */
  bool measuring;
};

static hv_status check(const hv_matmul *matmul, cublasStatus_t status, const char *doing) {
  if (status == CUBLAS_STATUS_SUCCESS) return HV_OK;
  return hv_error(HV_ERR_DEVICE, "cuBLASLt, %s: %s", doing, matmul->lt.GetStatusString(status));
}

static hv_status open_library(library *lt) {
  /* Never unloaded (RTLD_NODELETE): it is half a gigabyte to read again, and unloading a CUDA library while the process
   * goes on may crash it. */
  lt->file = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!lt->file) {
    return hv_error(HV_ERR_DEVICE, "the device \"cuda\" needs cuBLASLt (%s); --device cpu runs everything without it",
                    dlerror());
  }
#define LOOK_UP(name)                                                                                                  \
  *(void **)&lt->name = dlsym(lt->file, "cublasLt" #name);                                                             \
  if (!lt->name) return hv_error(HV_ERR_DEVICE, LIBRARY " lacks cublasLt" #name ": another version is installed");
  FUNCTIONS(LOOK_UP)
#undef LOOK_UP
  return HV_OK;
}

hv_status hv_matmul_open(hv_runtime *runtime, hv_matmul **out) {
  *out = nullptr;
  hv_matmul *matmul = (hv_matmul *)calloc(1, sizeof *matmul);
  if (!matmul) return hv_error_memory("matrix products");
  matmul->runtime = runtime;
  hv_status status = open_library(&matmul->lt);
  if (!status) status = check(matmul, matmul->lt.Create(&matmul->handle), "opening");
  if (status) {
    hv_matmul_close(matmul);
    return status;
  }
  const hv_card *card = hv_runtime_card(runtime);
  snprintf(matmul->made_by, sizeof matmul->made_by, "cuBLASLt %zu, %s, compute capability %d.%d",
           matmul->lt.GetVersion(), card->name, card->major, card->minor);
  *out = matmul;
  return HV_OK;
}

static void close_plan(const library *lt, plan *p) {
  if (p->product) (void)lt->MatmulDescDestroy(p->product);
  if (p->a) (void)lt->MatrixLayoutDestroy(p->a);
  if (p->b) (void)lt->MatrixLayoutDestroy(p->b);
  if (p->c) (void)lt->MatrixLayoutDestroy(p->c);
  if (p->d) (void)lt->MatrixLayoutDestroy(p->d);
  free(p);
}

/* The choices are kept. */
static void close_plans(hv_matmul *matmul) {
  for (int i = 0; i < BUCKETS; i++) {
    while (matmul->plans[i]) {
      plan *p = matmul->plans[i];
      matmul->plans[i] = p->next;
      close_plan(&matmul->lt, p);
    }
  }
}

void hv_matmul_close(hv_matmul *matmul) {
  if (!matmul) return;
  close_plans(matmul);
  hv_choices_free(&matmul->choices);
  if (matmul->handle) (void)matmul->lt.Destroy(matmul->handle);
  if (matmul->lt.file) dlclose(matmul->lt.file);
  free(matmul);
}

size_t hv_matmul_workspace(const hv_matmul *matmul) {
  (void)matmul;
  return WORKSPACE;
}

int64_t hv_matmul_shapes(const hv_matmul *matmul) {
  return matmul->choices.count;
}

static cudaDataType_t type_of(int32_t dtype) {
  return dtype == HV_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static cublasLtEpilogue_t epilogue_of(const hv_product_shape *s) {
  if (s->gelu_tanh) return s->has_bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
  return s->has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

/* Row-major [rows, cols] is column-major [cols, rows]. */
static cublasStatus_t describe(const library *lt, int32_t dtype, int64_t rows, int64_t cols, int64_t stride,
                               cublasLtMatrixLayout_t *out) {
  return lt->MatrixLayoutCreate(out, type_of(dtype), (uint64_t)cols, (uint64_t)rows, stride);
}

static cublasStatus_t describe_product(const library *lt, plan *p) {
  const hv_product_shape *s = &p->key;
  cublasOperation_t first = s->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  cublasOperation_t second = s->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = epilogue_of(s);
  cublasStatus_t status = lt->MatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
#define SET(attribute, value)                                                                                          \
  if (status == CUBLAS_STATUS_SUCCESS)                                                                                 \
  status = lt->MatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_##attribute, &value, sizeof value)
  SET(TRANSA, first);
  SET(TRANSB, second);
  SET(EPILOGUE, epilogue);
#undef SET
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = describe(lt, s->dtype, s->transpose_b ? s->n : s->k, s->transpose_b ? s->k : s->n, s->stride_b, &p->b);
  }
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = describe(lt, s->dtype, s->transpose_a ? s->k : s->m, s->transpose_a ? s->m : s->k, s->stride_a, &p->a);
  }
  if (status == CUBLAS_STATUS_SUCCESS) status = describe(lt, s->dtype_d, s->m, s->n, s->stride_c, &p->c);
  if (status == CUBLAS_STATUS_SUCCESS) status = describe(lt, s->dtype_d, s->m, s->n, s->stride_d, &p->d);
  return status;
}

static cublasStatus_t set_bias(const library *lt, plan *p, const void *bias) {
  if (!p->key.has_bias) return CUBLAS_STATUS_SUCCESS;
  return lt->MatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
}

/* Drops results that are not valid; returns how many are left. */
static int drop_failed(cublasLtMatmulHeuristicResult_t *results, int found) {
  int kept = 0;
  for (int i = 0; i < found; i++) {
    if (results[i].state == CUBLAS_STATUS_SUCCESS) results[kept++] = results[i];
  }
  return kept;
}

/* The algorithms that the library's heuristics rank best within the workspace, best first, at most `most`. Of split-K
 * algorithms only those are allowed that keep the parts in the workspace in float and add them in a step of their own:
 * in one order, and rounded once. */
static cublasStatus_t ask_heuristics(const hv_matmul *matmul, const plan *p, int most,
                                     cublasLtMatmulHeuristicResult_t *results, int *found) {
  const library *lt = &matmul->lt;
  const hv_product_shape *s = &p->key;
  size_t workspace = WORKSPACE;
  uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  cublasLtMatmulPreference_t preference = nullptr;
  cublasStatus_t status = lt->MatmulPreferenceCreate(&preference);
#define SET(attribute, value)                                                                                          \
  if (status == CUBLAS_STATUS_SUCCESS)                                                                                 \
  status = lt->MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_##attribute, &value, sizeof value)
  SET(MAX_WORKSPACE_BYTES, workspace);
  SET(REDUCTION_SCHEME_MASK, reductions);
  SET(MIN_ALIGNMENT_A_BYTES, s->align_b);
  SET(MIN_ALIGNMENT_B_BYTES, s->align_a);
  SET(MIN_ALIGNMENT_C_BYTES, s->align_c);
  SET(MIN_ALIGNMENT_D_BYTES, s->align_d);
#undef SET
  *found = 0;
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = lt->MatmulAlgoGetHeuristic(matmul->handle, p->product, p->b, p->a, p->c, p->d, preference, most, results,
                                        found);
  }
  if (preference) (void)lt->MatmulPreferenceDestroy(preference);
  *found = status == CUBLAS_STATUS_SUCCESS ? drop_failed(results, *found) : 0;
  return status == CUBLAS_STATUS_NOT_SUPPORTED ? CUBLAS_STATUS_SUCCESS : status;
}

/* Takes the heuristics' first choice, if they have any. */
static cublasStatus_t choose_algorithm(const hv_matmul *matmul, plan *p) {
  cublasLtMatmulHeuristicResult_t result;
  int found;
  cublasStatus_t status = ask_heuristics(matmul, p, 1, &result, &found);
  p->taken = p->supposed = found > 0;
  if (p->taken) p->algorithm = result.algo;
  return status;
}

/* Takes what was chosen before, by this process or by the one whose choices were read, if the library still accepts it.
 */
static bool recall_algorithm(const hv_matmul *matmul, plan *p) {
  static_assert(sizeof p->algorithm == HV_ALGORITHM_BYTES, "cuBLASLt's algorithms are of another size");
  const hv_algorithm *known = hv_choices_find(&matmul->choices, &p->key);
  if (!known) return false;
  p->taken = known->taken;
  p->supposed = known->supposed;
  if (!known->taken) return true;
  memcpy(&p->algorithm, known->bytes, sizeof p->algorithm);
  cublasLtMatmulHeuristicResult_t result;
  return matmul->lt.MatmulAlgoCheck(matmul->handle, p->product, p->b, p->a, p->c, p->d, &p->algorithm, &result) ==
             CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= WORKSPACE;
}

static hv_status remember_algorithm(hv_matmul *matmul, const plan *p) {
  hv_algorithm chosen = {};
  chosen.taken = p->taken;
  chosen.supposed = p->supposed;
  if (p->taken) memcpy(chosen.bytes, &p->algorithm, sizeof p->algorithm);
  return hv_choices_set(&matmul->choices, &p->key, &chosen);
}

static uint32_t bucket_of(const hv_product_shape *s) {
  const unsigned char *bytes = (const unsigned char *)s;
  uint32_t hash = 2166136261u;
  for (size_t i = 0; i < sizeof *s; i++) hash = (hash ^ bytes[i]) * 16777619u;
  return hash % BUCKETS;
}

/* Warns, once for each shape: the kernel that runs instead is many times slower. */
static void tell_of_refusal(const hv_matmul *matmul, const hv_product_shape *s) {
  hv_log_warning("%s has no algorithm for a product of [%lld, %lld] and [%lld, %lld] in %s, its operands aligned to "
                 "%u, %u and %u bytes%s%s: a slow built-in kernel runs instead",
                 matmul->made_by, (long long)s->m, (long long)s->k, (long long)s->k, (long long)s->n,
                 hv_dtype_name((hv_dtype)s->dtype), s->align_a, s->align_b, s->align_d,
                 s->has_bias ? ", with a bias" : "", s->gelu_tanh ? ", with GELU" : "");
}

/* Finds or makes the plan of a product's shape. A new one is made with the product's bias set, since the library also
 * considers its alignment. */
static hv_status find_plan(hv_matmul *matmul, const hv_matmul_args *args, plan **out) {
  const hv_product_shape key = hv_product_shape_of(args);
  plan **bucket = &matmul->plans[bucket_of(&key)];
  for (*out = *bucket; *out; *out = (*out)->next) {
    if (memcmp(&(*out)->key, &key, sizeof key) == 0) return HV_OK;
  }
  plan *p = (plan *)calloc(1, sizeof *p);
  if (!p) return hv_error_memory("the plan of a matrix product");
  p->key = key;
  cublasStatus_t status = describe_product(&matmul->lt, p);
  if (status == CUBLAS_STATUS_SUCCESS) status = set_bias(&matmul->lt, p, args->bias.data);
  bool recalled = status == CUBLAS_STATUS_SUCCESS && recall_algorithm(matmul, p);
  if (status == CUBLAS_STATUS_SUCCESS && !recalled) status = choose_algorithm(matmul, p);
  if (status != CUBLAS_STATUS_SUCCESS) {
    close_plan(&matmul->lt, p);
    return hv_error(HV_ERR_DEVICE, "cuBLASLt, choosing an algorithm for a product of [%lld, %lld] and [%lld, %lld]: %s",
                    (long long)key.m, (long long)key.k, (long long)key.k, (long long)key.n,
                    matmul->lt.GetStatusString(status));
  }
  if (!p->taken) tell_of_refusal(matmul, &key);
  hv_status kept = recalled ? HV_OK : remember_algorithm(matmul, p);
  if (kept) {
    close_plan(&matmul->lt, p);
    return kept;
  }
  p->next = *bucket;
  *bucket = *out = p;
  return HV_OK;
}

void hv_matmul_write_choices(const hv_matmul *matmul, hv_text *out) {
  hv_choices_write(&matmul->choices, matmul->made_by, out);
}

hv_status hv_matmul_read_choices(hv_matmul *matmul, const char *text, bool *fits) {
  HV_TRY(hv_choices_read(&matmul->choices, matmul->made_by, text, fits));
  if (*fits) close_plans(matmul);
  return HV_OK;
}

bool hv_matmul_measure_choices(hv_matmul *matmul, bool on) {
  matmul->measuring = on;
  return true;
}

bool hv_matmul_takes(hv_matmul *matmul, const hv_matmul_args *args) {
  plan *p = nullptr;
  hv_status status = find_plan(matmul, args, &p);
  if (!status) return p->taken;
  hv_status_free(status); /* hv_matmul_run meets the error again, and returns it */
  return true;
}

/* A product to be queued, once or for timing. */
struct trial {
  const hv_matmul *matmul;
  hv_queue *queue;
  const hv_matmul_args *args;
  void *workspace;
  const plan *p;
  cublasLtMatmulHeuristicResult_t ways[MOST_MEASURED];
};

static hv_status queue_product(const trial *t, const cublasLtMatmulAlgo_t *algorithm) {
  const library *lt = &t->matmul->lt;
  const hv_matmul_args *args = t->args;
  const plan *p = t->p;
  const float one = 1.0f, beta = p->key.has_c ? 1.0f : 0.0f;
  const void *c = p->key.has_c ? args->c.data : args->d.data;
  cublasLtMatrixLayout_t layout_c = c == args->d.data ? p->d : p->c; /* in place, both must have one layout */
  return check(t->matmul,
               lt->Matmul(t->matmul->handle, p->product, &one, args->b.data, p->b, args->a.data, p->a, &beta, c,
                          layout_c, args->d.data, p->d, algorithm, t->workspace, WORKSPACE, (cudaStream_t)t->queue),
               "multiplying");
}

static hv_status queue_way(void *context, int way) {
  const trial *t = (const trial *)context;
  return queue_product(t, &t->ways[way].algo);
}

/* Times the algorithms that the heuristics rank best, and keeps the fastest. */
static hv_status measure_algorithms(hv_matmul *matmul, trial *t, plan *p) {
  int found, fastest;
  HV_TRY(check(matmul, ask_heuristics(matmul, p, MOST_MEASURED, t->ways, &found), "choosing algorithms"));
  if (found > 0) {
    HV_TRY(hv_find_fastest(t->queue, matmul->runtime, found, queue_way, t, &fastest));
    p->algorithm = t->ways[fastest].algo;
  }
  p->supposed = false;
  return remember_algorithm(matmul, p);
}

hv_status hv_matmul_run(hv_matmul *matmul, hv_queue *queue, const hv_matmul_args *args, void *workspace) {
  plan *p = nullptr;
  HV_TRY(find_plan(matmul, args, &p));
  HV_TRY(check(matmul, set_bias(&matmul->lt, p, args->bias.data), "giving a bias"));
  trial t = {matmul, queue, args, workspace, p, {}};
  if (matmul->measuring && p->supposed) HV_TRY(measure_algorithms(matmul, &t, p));
  return queue_product(&t, &p->algorithm);
}
