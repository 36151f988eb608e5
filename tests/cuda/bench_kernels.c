/* Times attention, linear layers and memory-bound operations at the shapes of the 7B model: bench_kernels [DEVICE
 * [small]], by default on a card. Each line is the best of five rounds of many calls; bytes are the least that must be
 * moved. `small` shrinks the shapes so that the emulated device can run them. */
#include <math.h>
#include <time.h>

#include "core/base/random.h"
#include "core/tensor/moments.h"
#include "core/tensor/ops.h"
#include "tests/check.h"

enum { ROUNDS = 5, BRANCHES = 4, BRANCH_ROWS = 12, PREFIX = 285, MOST_SEGMENTS = 256 };

typedef struct bench {
  hv_device *device;
  hv_stream *stream;
  bool small;
  int calls; /* in a round */
  void *memory[64];
  int allocations;
} bench;

static void *allocate(bench *b, size_t bytes) {
  assert_true(b->allocations < 64);
  void **memory = &b->memory[b->allocations++];
  assert_ok(hv_device_allocate(b->device, HV_MEMORY_WORKSPACE, bytes, "a benchmark's operand", memory));
  return *memory;
}

static void release_all(bench *b) {
  while (b->allocations > 0) hv_device_release(b->device, b->memory[--b->allocations]);
}

static hv_tensor upload(bench *b, hv_dtype dtype, int64_t rows, int64_t cols, const void *values) {
  hv_tensor t = hv_tensor_make(NULL, dtype, rows, cols);
  size_t bytes = (size_t)(rows * cols) * hv_dtype_size(dtype);
  t.data = allocate(b, bytes);
  hv_upload(b->stream, t.data, values, bytes);
  assert_ok(hv_stream_synchronize(b->stream));
  return t;
}

static hv_tensor blank(bench *b, hv_dtype dtype, int64_t rows, int64_t cols) {
  return hv_tensor_make(allocate(b, (size_t)(rows * cols) * hv_dtype_size(dtype)), dtype, rows, cols);
}

/* Random numbers, because a card draws more power on them than on constants, and is slower. */
static hv_tensor numbers(bench *b, int64_t rows, int64_t cols) {
  static const int64_t seed_step[2] = {1, 0}, sample = 0;
  hv_tensor t = blank(b, HV_BF16, rows, cols);
  hv_tensor all = hv_tensor_reshape(t, 1, rows * cols), wide = blank(b, HV_F32, 1, rows * cols);
  hv_draw_normal(b->stream, &(hv_draw_normal_args){.seed_step = upload(b, HV_I64, 1, 2, seed_step),
                                                   .samples = upload(b, HV_I64, 1, 1, &sample),
                                                   .branches = 1,
                                                   .domain = HV_RANDOM_NOISE,
                                                   .y = wide});
  hv_convert(b->stream, &(hv_convert_args){.src = wide, .dst = all});
  assert_ok(hv_stream_synchronize(b->stream));
  for (int i = 0; i < 3; i++) hv_device_release(b->device, b->memory[--b->allocations]);
  return t;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef void (*call)(bench *b, const void *work, int index);

/* Seconds per call; the first round only warms up. */
static double measure(bench *b, call run, const void *work) {
  double best = INFINITY;
  for (int round = 0; round <= ROUNDS; round++) {
    double start = now();
    for (int i = 0; i < b->calls; i++) run(b, work, i);
    assert_ok(hv_stream_synchronize(b->stream));
    double seconds = (now() - start) / b->calls;
    if (round > 0 && seconds < best) best = seconds;
  }
  return best;
}

static void print(const char *what, double seconds, double flops, double bytes) {
  printf("%-52s %9.1f us %8.1f TFLOP/s %8.1f GB/s\n", what, 1e6 * seconds, 1e-12 * flops / seconds,
         1e-9 * bytes / seconds);
  fflush(stdout); /* a line is shown even if a time limit ends the rest */
}

/* Defines a function that runs the operation; `work` points to its arguments. */
#define RUN(operation)                                                                                                 \
  static void run_##operation(bench *b, const void *work, int index) {                                                 \
    (void)index;                                                                                                       \
    hv_##operation(b->stream, (const hv_##operation##_args *)work);                                                    \
  }
RUN(attention)
RUN(attention_backward)
RUN(norm)
RUN(norm_backward)
RUN(swiglu)
RUN(swiglu_backward)
RUN(rotary)
RUN(cross_entropy)
RUN(sum_squares)
RUN(adamw)
#undef RUN

/* Samples of `prefix` rows, which have queries or only keys, and branches that see them. */
typedef struct layout {
  hv_segment segment[MOST_SEGMENTS];
  hv_key_group group[MOST_SEGMENTS];
  int32_t segments, rows, max_rows, max_keys;
  double pairs; /* pairs of a query and a key that it sees */
} layout;

static void add_segment(layout *l, int32_t q_rows, int32_t prefix_start, int32_t prefix, int32_t seen_by, bool causal) {
  int32_t rows = q_rows, start = l->rows;
  l->segment[l->segments] = (hv_segment){start, q_rows, prefix_start, prefix, start, rows};
  l->group[l->segments] = (hv_key_group){start, rows, l->segments, seen_by};
  l->segments++;
  l->rows += rows;
  l->max_rows = rows > l->max_rows ? rows : l->max_rows;
  l->max_keys = prefix + rows > l->max_keys ? prefix + rows : l->max_keys;
  l->pairs += (double)q_rows * prefix + (causal ? 0.5 * rows * (rows + 1) : (double)rows * rows);
}

static void bench_attention(bench *b, const char *name, const layout *l, int heads, int head_dim, bool causal,
                            bool backward) {
  int64_t cols = (int64_t)heads * head_dim;
  hv_attention_args f = {.num_heads = heads,
                         .num_kv_heads = heads,
                         .head_dim = head_dim,
                         .max_q_rows = l->max_rows,
                         .max_key_rows = l->max_keys,
                         .causal = causal,
                         .scale = 1 / sqrt(head_dim)};
  f.segments = upload(b, HV_I32, l->segments, 6, l->segment);
  f.q = numbers(b, l->rows, cols);
  f.k = numbers(b, l->rows, cols);
  f.v = numbers(b, l->rows, cols);
  f.out = blank(b, HV_BF16, l->rows, cols);
  f.lse = blank(b, HV_F32, l->rows, heads);
  double flops = 4 * l->pairs * (double)cols, bytes = 2.0 * (double)(l->rows * cols);
  char text[96];
  snprintf(text, sizeof text, "attention, %s", name);
  print(text, measure(b, run_attention, &f), flops, 4 * bytes);
  if (backward) {
    hv_attention_backward_args g = {.q = f.q,
                                    .k = f.k,
                                    .v = f.v,
                                    .out = f.out,
                                    .lse = f.lse,
                                    .segments = f.segments,
                                    .num_heads = heads,
                                    .num_kv_heads = heads,
                                    .head_dim = head_dim,
                                    .max_q_rows = l->max_rows,
                                    .max_key_rows = l->max_keys,
                                    .max_group_rows = l->max_rows,
                                    .causal = causal,
                                    .scale = f.scale};
    g.key_groups = upload(b, HV_I32, l->segments, 4, l->group);
    g.dout = numbers(b, l->rows, cols);
    g.row_dot = blank(b, HV_F32, l->rows, heads);
    g.dq = blank(b, HV_BF16, l->rows, cols);
    g.dk = blank(b, HV_BF16, l->rows, cols);
    g.dv = blank(b, HV_BF16, l->rows, cols);
    snprintf(text, sizeof text, "attention_backward, %s", name);
    print(text, measure(b, run_attention_backward, &g), 2.5 * flops, 8 * bytes);
  }
  release_all(b);
}

static void bench_attentions(bench *b) {
  int samples = b->small ? 1 : 32, heads = b->small ? 1 : 32, tower_heads = b->small ? 1 : 16;
  layout decoder = {.segments = 0}, tower = {.segments = 0}, step = {.segments = 0};
  for (int i = 0; i < samples; i++) {
    int32_t start = decoder.rows;
    add_segment(&decoder, PREFIX, 0, 0, 1 + BRANCHES, true);
    for (int branch = 0; branch < BRANCHES; branch++) add_segment(&decoder, BRANCH_ROWS, start, PREFIX, 1, true);
    add_segment(&tower, 256, 0, 0, 1, false);
  }
  /* A step of a prediction: new rows, which see a cache that lies before them. */
  step.segment[0] = (hv_segment){PREFIX, BRANCH_ROWS + 1, 0, 0, 0, PREFIX + BRANCH_ROWS + 1};
  step.segments = 1;
  step.rows = PREFIX + BRANCH_ROWS + 1;
  step.max_rows = BRANCH_ROWS + 1;
  step.max_keys = step.rows;
  step.pairs = (double)step.max_rows * step.max_keys;
  bench_attention(b, "decoder, 4 branches", &decoder, heads, 128, true, true);
  bench_attention(b, "vision, heads of 64", &tower, tower_heads, 64, false, true);
  bench_attention(b, "vision, heads of 72", &tower, tower_heads, 72, false, true);
  bench_attention(b, "13 rows over a cache of 298", &step, heads, 128, true, false);
}

enum { COPIES = 8 /* of the weights, used in turn so that they do not stay in the card's cache */ };
typedef struct linear_work {
  hv_linear_args args[COPIES];
} linear_work;

static void run_linear(bench *b, const void *work, int index) {
  hv_linear(b->stream, &((const linear_work *)work)->args[index % COPIES]);
}

static void bench_linear(bench *b, int64_t rows, int64_t in, int64_t out) {
  if (b->small) in = in / 512 * 8 + 8, out /= 64, rows = rows > 100 ? 100 : rows;
  linear_work w;
  hv_tensor x = numbers(b, rows, in), y = blank(b, HV_BF16, rows, out);
  for (int i = 0; i < COPIES; i++) w.args[i] = (hv_linear_args){.x = x, .weight = numbers(b, out, in), .y = y};
  char text[96];
  snprintf(text, sizeof text, "linear, %lld rows, %lld to %lld", (long long)rows, (long long)in, (long long)out);
  print(text, measure(b, run_linear, &w), 2.0 * (double)(rows * in * out),
        2.0 * (double)(rows * in + in * out + rows * out));
  release_all(b);
}

typedef struct linear_swiglu_work {
  hv_linear_swiglu_args args[COPIES];
} linear_swiglu_work;

static void run_linear_swiglu(bench *b, const void *work, int index) {
  hv_linear_swiglu(b->stream, &((const linear_swiglu_work *)work)->args[index % COPIES]);
}

static void bench_linear_swiglu(bench *b, int64_t rows, int64_t in, int64_t width) {
  if (b->small) in = in / 512 * 8 + 8, width /= 64;
  linear_swiglu_work w;
  hv_linear_swiglu_args one = {.x = numbers(b, rows, in)};
  one.gate_up = blank(b, HV_BF16, rows, 2 * width);
  one.y = blank(b, HV_BF16, rows, width);
  for (int i = 0; i < COPIES; i++) {
    w.args[i] = one;
    w.args[i].weight = numbers(b, 2 * width, in);
  }
  char text[96];
  snprintf(text, sizeof text, "linear_swiglu, %lld rows, %lld to 2 x %lld", (long long)rows, (long long)in,
           (long long)width);
  print(text, measure(b, run_linear_swiglu, &w), 4.0 * (double)(rows * in * width),
        2.0 * (double)(rows * in + 2 * in * width + rows * width));
  release_all(b);
}

static void bench_linears(bench *b) {
  static const int64_t sizes[][2] = {{4096, 12288}, {4096, 4096}, {4096, 22016}, {11008, 4096}, {4096, 32064}};
  static const int64_t rows[] = {1, 13, 16, 17, 10656};
  for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) bench_linear(b, rows[r], sizes[s][0], sizes[s][1]);
    if (rows[r] <= 16) bench_linear_swiglu(b, rows[r], 4096, 11008);
  }
}

/* For an operation that moves `matrices` matrices of [rows, cols] in BF16 once. */
static void print_moved(const char *what, int64_t rows, int64_t cols, double seconds, double matrices) {
  char text[96];
  snprintf(text, sizeof text, "%s, [%lld, %lld]", what, (long long)rows, (long long)cols);
  print(text, seconds, 0, 2 * matrices * (double)(rows * cols));
}

static hv_tensor filled(bench *b, hv_dtype dtype, int64_t rows, int64_t cols, double value) {
  hv_tensor t = blank(b, dtype, rows, cols);
  hv_fill(b->stream, &(hv_fill_args){.dst = t, .value = value});
  return t;
}

static void bench_norm(bench *b, int64_t rows, int64_t width) {
  hv_norm_args n = {.kind = HV_NORM_RMS, .eps = 1e-5, .x = numbers(b, rows, width), .delta = numbers(b, rows, width)};
  n.weight = numbers(b, 1, width);
  n.sum = blank(b, HV_BF16, rows, width);
  n.y = blank(b, HV_BF16, rows, width);
  n.stats = blank(b, HV_F32, rows, 2);
  print_moved("norm of a sum", rows, width, measure(b, run_norm, &n), 4);
  hv_norm_backward_args g = {.kind = n.kind, .dy = n.delta, .x = n.sum, .weight = n.weight, .stats = n.stats};
  g.dresidual = n.x;
  g.dx = n.y;
  g.dweight = filled(b, HV_F32, 1, width, 0);
  print_moved("norm_backward", rows, width, measure(b, run_norm_backward, &g), 4);
  release_all(b);
}

static void bench_swiglu(bench *b, int64_t rows, int64_t width) {
  hv_swiglu_args s = {.gate_up = numbers(b, rows, 2 * width), .y = blank(b, HV_BF16, rows, width)};
  print_moved("swiglu", rows, width, measure(b, run_swiglu, &s), 3);
  hv_swiglu_backward_args g = {.gate_up = s.gate_up, .dy = s.y, .dgate_up = blank(b, HV_BF16, rows, 2 * width)};
  print_moved("swiglu_backward", rows, width, measure(b, run_swiglu_backward, &g), 5);
  g.y = g.dy;
  print_moved("swiglu made again", rows, width, measure(b, run_swiglu_backward, &g), 6);
  release_all(b);
}

static void bench_rotary(bench *b, int64_t rows, int64_t width, int32_t head_dim) {
  hv_rotary_args r = {.q = numbers(b, rows, width), .k = numbers(b, rows, width), .head_dim = head_dim};
  r.positions = filled(b, HV_I32, 1, rows, 1);
  r.cos_sin = filled(b, HV_F32, 2, head_dim, 0.5);
  r.q_out = blank(b, HV_BF16, rows, width);
  r.k_out = blank(b, HV_BF16, rows, width);
  print_moved("rotary of queries and keys", rows, width, measure(b, run_rotary, &r), 4);
  release_all(b);
}

static void bench_cross_entropy(bench *b, int64_t rows, int64_t vocabulary) {
  hv_cross_entropy_args c = {.logits = numbers(b, rows, vocabulary), .weight = 1};
  c.labels = filled(b, HV_I32, 1, rows, 7);
  c.divisor = filled(b, HV_F32, 1, 1, (double)rows);
  c.loss = filled(b, HV_F32, 1, 1, 0);
  c.dlogits = blank(b, HV_BF16, rows, vocabulary);
  print_moved("cross_entropy", rows, vocabulary, measure(b, run_cross_entropy, &c), 2);
  release_all(b);
}

/* AdamW on a group of parameters, and the norm of its gradients. */
static void bench_optimizer(bench *b, int64_t count, bool coded) {
  const hv_adamw_range range = {.first = 0, .end = count, .decay = 1, .rate = 1};
  const float dynamic[5] = {1e-6f, 0.1f, 0.001f, 1, 1};
  int64_t blocks = count / HV_MOMENT_BLOCK;
  hv_adamw_args a = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .grad = numbers(b, 1, count)};
  a.param = numbers(b, 1, count);
  a.remainder = filled(b, HV_I16, 1, count, 0);
  a.moment1 = filled(b, coded ? HV_I8 : HV_F32, 1, count, 0);
  a.moment2 = filled(b, coded ? HV_U8 : HV_F32, 1, count, 0);
  if (coded) a.moment1_scale = filled(b, HV_F32, 1, blocks, 0);
  if (coded) a.moment2_scale = filled(b, HV_F32, 1, blocks, 0);
  a.ranges = upload(b, HV_I64, 1, 3, &range);
  a.dynamic = upload(b, HV_F32, 1, 5, dynamic);
  double moved = 2 + 2 + 1 + (coded ? 2 : 8); /* in units of 2 bytes: parameters, remainders, gradients, moments */
  print_moved(coded ? "adamw, moments in 8 bits" : "adamw", 1, count, measure(b, run_adamw, &a), moved);
  if (!coded) {
    hv_sum_squares_args s = {.x = a.grad, .y = filled(b, HV_F32, 1, 1, 0)};
    print_moved("sum_squares", 1, count, measure(b, run_sum_squares, &s), 1);
  }
  release_all(b);
}

static void bench_memory(bench *b) {
  static const int64_t rows[] = {13, 10656};
  int64_t most = b->small ? 40 : 10656, width = b->small ? 64 : 4096, inner = b->small ? 88 : 11008;
  for (int i = 0; i < 2; i++) {
    int64_t some = rows[i] < most ? rows[i] : most;
    bench_norm(b, some, width);
    bench_swiglu(b, some, inner);
    bench_rotary(b, some, width, b->small ? 16 : 128);
  }
  bench_cross_entropy(b, b->small ? 3 : 896, b->small ? 320 : 32064);
  for (int coded = 0; coded < 2; coded++) bench_optimizer(b, b->small ? 4096 : 202383360, coded);
}

int main(int argc, char **argv) {
  const char *device = argc > 1 ? argv[1] : "cuda";
  bench b = {.small = argc > 2 && strcmp(argv[2], "small") == 0};
  b.calls = b.small ? 1 : 50;
  hv_status status = hv_device_load(device, &(hv_device_options){.index = 0}, &b.device);
  if (status) {
    printf("skipped: %s\n", hv_status_message(status));
    hv_status_free(status);
    return SKIPPED;
  }
  assert_ok(hv_stream_open(b.device, &b.stream));
  bench_attentions(&b);
  bench_linears(&b);
  bench_memory(&b);
  hv_stream_close(b.stream);
  hv_device_close(b.device);
  return 0;
}
