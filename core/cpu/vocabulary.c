/* The softmax over the vocabulary: cross-entropy with its gradient, and the best of a range of ids. */
#include "core/cpu/kernel.h"
#include "core/cpu/vector_math.h"

static real largest(const real *x, int64_t count) {
  real top = x[0];
#pragma omp simd reduction(max : top)
  for (int64_t i = 1; i < count; i++) top = x[i] > top ? x[i] : top;
  return top;
}

enum { RUN = 1024 };

/* Σ exp(x − top), in runs: the error does not grow with the vocabulary. */
static real sum_of_exp(const real *x, int64_t count, real top) {
  real total = 0;
  for (int64_t first = 0; first < count; first += RUN) {
    int64_t last = min_i64(count, first + RUN);
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = first; i < last; i++) sum += real_exp(x[i] - top);
    total += sum;
  }
  return total;
}

static double cross_entropy_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  const hv_cross_entropy_args *a = context;
  int64_t count = a->logits.cols;
  real factor = (real)a->weight / load_one(&a->divisor, 0, 0);
  double loss = 0;
  for (int64_t row = first; row < last; row++) {
    const real *logits = load(&a->logits, row, 0, count, scratch);
    int64_t label = int_list(&a->labels)[row];
    real top = largest(logits, count), sum = sum_of_exp(logits, count, top);
    loss += (double)real_log(sum) + ((double)top - (double)logits[label]);
    if (!hv_present(a->dlogits)) continue;
    real *d = target(&a->dlogits, row, 0, scratch), scale = factor / sum;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) d[i] = real_exp(logits[i] - top) * scale;
    d[label] -= factor;
    store(&a->dlogits, row, 0, count, d);
  }
  return loss;
}

void HV_KERNEL(cross_entropy)(hv_cpu_pool *pool, const hv_cross_entropy_args *args) {
  if (!hv_cpu_reserve(pool, (size_t)args->logits.cols * sizeof(real))) return;
  double sum = hv_cpu_sum(pool, args->logits.rows, 8 * args->logits.cols, cross_entropy_rows, args);
  double divisor = (double)load_one(&args->divisor, 0, 0);
  store_one(&args->loss, 0, 0, load_one(&args->loss, 0, 0) + (real)(sum / divisor));
}

/* The index of the largest that is a number; `first` if none is. */
static int32_t best_of(const real *x, int32_t first, int32_t end) {
  int32_t best = first;
  for (int32_t i = first + 1; i < end; i++) {
    if (x[i] > x[best] || (isnan(x[best]) && !isnan(x[i]))) best = i;
  }
  return best;
}

static void best_of_range_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  const hv_best_of_range_args *a = context;
  int64_t count = a->logits.cols;
  for (int64_t row = first; row < last; row++) {
    const real *logits = load(&a->logits, row, 0, count, scratch);
    int32_t best = best_of(logits, a->first, a->first + a->count);
    real top = largest(logits, count), sum = sum_of_exp(logits, count, top);
    ((int32_t *)a->ids.data)[row] = best;
    store_one(&a->probability, 0, row, real_exp(logits[best] - top) / sum);
  }
}

void HV_KERNEL(best_of_range)(hv_cpu_pool *pool, const hv_best_of_range_args *args) {
  if (!hv_cpu_reserve(pool, (size_t)args->logits.cols * sizeof(real))) return;
  hv_cpu_for(pool, args->logits.rows, hv_cpu_grain(8 * args->logits.cols), best_of_range_rows, args);
}
