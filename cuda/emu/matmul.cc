/* The emulator's matrix products: float sums by one of several algorithms, which differ in the order of k.
 * HVLA_EMU_ALGORITHM (0 … 3, default 0) in the environment is the one that counts as fastest for a shape, as a
 * library's heuristics would say, the others following it in rank; with it a test shows that a resumed run keeps to the
 * algorithms chosen before. HVLA_EMU_TIMES, four numbers separated by commas, gives the microseconds of a product by
 * each algorithm; without it there is nothing to measure. */
#include "cuda/matmul_choices.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/dtype.h"
#include "cuda/emu/runtime.h"
#include "cuda/fastest.h"

static const char MADE_BY[] = "the emulator's products";

enum { WORKSPACE = 4096, POISON = 0xff, TILE = 256 /* columns of d at once */, MOST_REFUSED = 1 << 17 };

/* The bits of an algorithm's number. */
enum { BACKWARDS = 1, EVEN_FIRST = 2, ALGORITHMS = 4 };

struct hv_matmul {
  hv_runtime *runtime;
  hv_choices choices;
  int supposed; /* the algorithm of a new shape, before any measurement */
  double microseconds[ALGORITHMS];
  bool timed, measuring; /* HVLA_EMU_TIMES is set; algorithms that were only supposed are being measured */
};

/* Reads HVLA_EMU_TIMES; false if it does not hold that many numbers. */
static bool read_times(double *out) {
  const char *at = getenv("HVLA_EMU_TIMES");
  for (int i = 0; i < ALGORITHMS; i++) {
    char *end = nullptr;
    if (!at || (i > 0 && *at++ != ',')) return false;
    out[i] = strtod(at, &end);
    if (end == at) return false;
    at = end;
  }
  return true;
}

hv_status hv_matmul_open(hv_runtime *runtime, hv_matmul **out) {
  hv_matmul *matmul = (hv_matmul *)calloc(1, sizeof *matmul);
  *out = matmul;
  if (!matmul) return hv_error_memory("the emulated matrix products");
  const char *algorithm = getenv("HVLA_EMU_ALGORITHM");
  matmul->runtime = runtime;
  matmul->supposed = algorithm ? (int)(strtoul(algorithm, nullptr, 10) % ALGORITHMS) : 0;
  matmul->timed = read_times(matmul->microseconds);
  return HV_OK;
}

void hv_matmul_close(hv_matmul *matmul) {
  if (!matmul) return;
  hv_choices_free(&matmul->choices);
  free(matmul);
}

size_t hv_matmul_workspace(const hv_matmul *matmul) {
  (void)matmul;
  return WORKSPACE;
}

int64_t hv_matmul_shapes(const hv_matmul *matmul) {
  return matmul->choices.count;
}

/* As a library may, it refuses bf16 rows at odd addresses, though only for small products: the plain kernel, which then
 * runs in emulated threads, is slow. */
static bool is_odd(const hv_tensor *t) {
  return t->dtype == HV_BF16 && (t->row_stride % 2 != 0 || (uintptr_t)t->data % 4 != 0);
}

bool hv_matmul_takes(hv_matmul *matmul, const hv_matmul_args *args) {
  (void)matmul;
  int64_t terms = args->d.rows * args->d.cols * (args->transpose_a ? args->a.rows : args->a.cols);
  return terms > MOST_REFUSED || !(is_odd(&args->a) || is_odd(&args->b) || is_odd(&args->d));
}

void hv_matmul_write_choices(const hv_matmul *matmul, hv_text *out) {
  hv_choices_write(&matmul->choices, MADE_BY, out);
}

hv_status hv_matmul_read_choices(hv_matmul *matmul, const char *text, bool *fits) {
  return hv_choices_read(&matmul->choices, MADE_BY, text, fits);
}

bool hv_matmul_measure_choices(hv_matmul *matmul, bool on) {
  matmul->measuring = on && matmul->timed;
  return matmul->timed;
}

struct product {
  hv_matmul_args args;
  void *workspace;
  int algorithm;
  double seconds;
};

static float *element(float *matrix, int64_t row, int64_t col, int64_t cols) {
  return matrix + row * cols + col;
}

static void *stored(const hv_tensor *t, int64_t row, int64_t col) {
  return (char *)t->data + (size_t)(row * t->row_stride + col) * hv_dtype_size(t->dtype);
}

/* The matrix as contiguous floats, transposed if asked for: [rows, cols] of the result. */
static float *as_floats(const hv_tensor *t, bool transpose) {
  int64_t rows = transpose ? t->cols : t->rows, cols = transpose ? t->rows : t->cols;
  float *all = (float *)calloc((size_t)(rows * cols), sizeof(float));
  float *line = (float *)malloc((size_t)t->cols * sizeof(float));
  if (!all || !line) {
    free(all);
    free(line);
    return nullptr;
  }
  for (int64_t i = 0; i < t->rows; i++) {
    hv_dtype_convert(HV_F32, line, t->dtype, stored(t, i, 0), t->cols);
    for (int64_t j = 0; j < t->cols; j++) *(transpose ? element(all, j, i, cols) : element(all, i, j, cols)) = line[j];
  }
  free(line);
  return all;
}

static float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

/* The index of the k term that an algorithm adds in that step. */
static int64_t term(int algorithm, int64_t step, int64_t k) {
  int64_t even = (k + 1) / 2, at = algorithm & BACKWARDS ? k - 1 - step : step;
  if (!(algorithm & EVEN_FIRST)) return at;
  return at < even ? 2 * at : 2 * (at - even) + 1;
}

/* Computes columns [first, first + cols) of row i of d. */
static void compute(const product *work, const float *a, const float *b, int64_t i, int64_t first, int64_t cols) {
  const hv_matmul_args *p = &work->args;
  int64_t n = p->d.cols, k = p->transpose_a ? p->a.rows : p->a.cols;
  float sum[TILE] = {}, other[TILE];
  for (int64_t step = 0; step < k; step++) {
    int64_t j = term(work->algorithm, step, k);
    float left = a[i * k + j];
    const float *right = b + j * n + first;
    for (int64_t c = 0; c < cols; c++) sum[c] += left * right[c];
  }
  if (hv_present(p->c)) {
    hv_dtype_convert(HV_F32, other, p->c.dtype, stored(&p->c, i, first), cols);
    for (int64_t c = 0; c < cols; c++) sum[c] += other[c];
  }
  if (hv_present(p->bias)) {
    hv_dtype_convert(HV_F32, other, p->bias.dtype, stored(&p->bias, 0, first), cols);
    for (int64_t c = 0; c < cols; c++) sum[c] += other[c];
  }
  for (int64_t c = 0; p->gelu_tanh && c < cols; c++) sum[c] = gelu_tanh(sum[c]);
  hv_dtype_convert(p->d.dtype, stored(&p->d, i, first), HV_F32, sum, cols);
}

static hv_status run_product(hv_runtime *runtime, const void *payload) {
  const product *p = (const product *)payload;
  hv_emu_spend(runtime, p->seconds);
  memset(p->workspace, POISON, WORKSPACE);
  float *a = as_floats(&p->args.a, p->args.transpose_a), *b = as_floats(&p->args.b, p->args.transpose_b);
  if (!a || !b) {
    free(a);
    free(b);
    return hv_error_memory("an emulated matrix product");
  }
  int64_t m = p->args.d.rows, n = p->args.d.cols, k = p->args.transpose_a ? p->args.a.rows : p->args.a.cols;
#pragma omp parallel for schedule(static) if (m * n * k > (1 << 23))
  for (int64_t i = 0; i < m; i++) {
    for (int64_t first = 0; first < n; first += TILE) {
      compute(p, a, b, i, first, n - first < TILE ? n - first : (int64_t)TILE);
    }
  }
  free(a);
  free(b);
  return HV_OK;
}

/* A product to be queued, once or for timing. */
struct trial {
  const hv_matmul *matmul;
  hv_queue *queue;
  product work;
};

static int nth_best(const hv_matmul *matmul, int n) {
  return (matmul->supposed + n) % ALGORITHMS;
}

static hv_status queue_product(void *context, int way) {
  trial *t = (trial *)context;
  t->work.algorithm = nth_best(t->matmul, way);
  t->work.seconds = 1e-6 * t->matmul->microseconds[t->work.algorithm];
  return hv_emu_enqueue(t->queue, run_product, &t->work, sizeof t->work);
}

static hv_status choose(hv_matmul *matmul, hv_queue *queue, const product *work, int *algorithm) {
  hv_product_shape shape = hv_product_shape_of(&work->args);
  const hv_algorithm *known = hv_choices_find(&matmul->choices, &shape);
  *algorithm = known ? known->bytes[0] : matmul->supposed;
  if (known && !(known->supposed && matmul->measuring)) return HV_OK;
  if (matmul->measuring) {
    trial t = {matmul, queue, *work};
    int fastest;
    HV_TRY(hv_find_fastest(queue, matmul->runtime, ALGORITHMS, queue_product, &t, &fastest));
    *algorithm = nth_best(matmul, fastest);
  }
  hv_algorithm chosen = {};
  chosen.taken = true;
  chosen.supposed = !matmul->measuring;
  chosen.bytes[0] = (unsigned char)*algorithm;
  return hv_choices_set(&matmul->choices, &shape, &chosen);
}

hv_status hv_matmul_run(hv_matmul *matmul, hv_queue *queue, const hv_matmul_args *args, void *workspace) {
  product p = {*args, workspace, 0, 0};
  HV_TRY(choose(matmul, queue, &p, &p.algorithm));
  return hv_emu_enqueue(queue, run_product, &p, sizeof p);
}
