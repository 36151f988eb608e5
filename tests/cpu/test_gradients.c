/* Every backward operation against central differences of its forward operation, in F64 on the CPU device. The loss is
 * the sum of the results times random weights. The tests change operands in place: the CPU device's memory is the
 * host's. */
#include <math.h>

#include "core/cpu/cpu.h"
#include "tests/check.h"
#include "tests/cpu/layout.h"

static op_env env; /* only for its random numbers and memory */

static int open_env(void **state) {
  (void)state;
  hv_device *device;
  assert_ok(hv_cpu_device_open(NULL, &device));
  op_env_open(&env, device, device, HV_F64, 7);
  return 0;
}

static int close_env(void **state) {
  (void)state;
  hv_device *device = env.device[0];
  op_env_close(&env);
  hv_device_close(device);
  return 0;
}

static hv_tensor zeros(int64_t rows, int64_t cols) {
  return hv_tensor_make(op_array(&env, rows * cols), HV_F64, rows, cols);
}

static hv_tensor normals(int64_t rows, int64_t cols) {
  hv_tensor t = zeros(rows, cols);
  for (int64_t i = 0; i < rows * cols; i++) ((double *)t.data)[i] = op_normal(&env);
  return t;
}

static double weighted(hv_tensor result, hv_tensor weight) {
  const double *y = result.data, *w = weight.data;
  double sum = 0;
  for (int64_t i = 0; i < hv_tensor_count(result); i++) sum += y[i] * w[i];
  return sum;
}

static void finish(void) {
  op_synchronize(&env, 0, "gradient");
}

/* Compares `grad` with central differences of loss(context), for up to 40 elements of `at`. */
static void check(const char *what, double (*loss)(const void *context), const void *context, hv_tensor at,
                  hv_tensor grad) {
  double *values = at.data;
  const double *grads = grad.data, step = 1e-5;
  int64_t count = hv_tensor_count(at), stride = count / 40 + 1;
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < count; i += stride) {
    double kept = values[i];
    values[i] = kept + step;
    double up = loss(context);
    values[i] = kept - step;
    double down = loss(context), slope = (up - down) / (2 * step);
    values[i] = kept;
    difference += (slope - grads[i]) * (slope - grads[i]);
    norm += slope * slope;
  }
  double error = sqrt(difference / norm);
  if (!(error < 1e-6)) fail_msg("the gradient of %s is off by %.3g", what, error);
}

typedef struct linear_case {
  hv_linear_args args;
  hv_tensor dy;
} linear_case;

static double linear_loss(const void *context) {
  const linear_case *c = context;
  hv_linear(env.stream[0], &c->args);
  finish();
  return weighted(c->args.y, c->dy);
}

static void linear_parameters(void **state) {
  (void)state;
  int64_t n = 9, in = 13, out = 21;
  linear_case c = {.dy = normals(n, out)};
  c.args = (hv_linear_args){
      .x = normals(n, in), .weight = normals(out, in), .bias = normals(1, out), .residual = normals(n, out)};
  c.args.y = zeros(n, out);
  hv_tensor dweight = zeros(out, in), dbias = zeros(1, out), dx = zeros(n, in);
  hv_linear_backward_weight(
      env.stream[0], &(hv_linear_backward_weight_args){.dy = c.dy, .x = c.args.x, .dweight = dweight, .dbias = dbias});
  hv_linear_backward_input(env.stream[0],
                           &(hv_linear_backward_input_args){.dy = c.dy, .weight = c.args.weight, .dx = dx});
  check("the weight", linear_loss, &c, c.args.weight, dweight);
  check("the bias", linear_loss, &c, c.args.bias, dbias);
  check("x", linear_loss, &c, c.args.x, dx);
}

/* Two layers: the input of the second is the activation of `pre`, the first one's output before the activation. */
typedef struct mlp_case {
  hv_linear_args first, second;
  hv_tensor dy;
} mlp_case;

static double mlp_loss(const void *context) {
  const mlp_case *c = context;
  hv_linear(env.stream[0], &c->first);
  hv_linear(env.stream[0], &c->second);
  finish();
  return weighted(c->second.y, c->dy);
}

static void linear_through_activation(void **state) {
  (void)state;
  int64_t n = 6, in = 5, hidden = 17, out = 7;
  for (hv_activation activation = HV_ACT_GELU; activation <= HV_ACT_SILU; activation++) {
    mlp_case c = {.dy = normals(n, out)};
    c.first = (hv_linear_args){.x = normals(n, in), .weight = normals(hidden, in), .bias = normals(1, hidden)};
    c.first.activation = activation;
    c.first.pre = zeros(n, hidden);
    c.first.y = zeros(n, hidden);
    c.second = (hv_linear_args){.x = c.first.y, .weight = normals(out, hidden), .y = zeros(n, out)};
    (void)mlp_loss(&c);
    hv_tensor dpre = zeros(n, hidden), dbias = zeros(1, hidden), dhidden = zeros(n, hidden);
    hv_linear_backward_input_args args = {.dy = c.dy, .weight = c.second.weight, .activation = activation};
    args.pre = c.first.pre;
    args.dx = dpre;
    hv_linear_backward_input(env.stream[0], &args);
    hv_linear_backward_weight(env.stream[0],
                              &(hv_linear_backward_weight_args){.dy = dpre, .x = c.first.x, .dbias = dbias});
    check("the first bias", mlp_loss, &c, c.first.bias, dbias);
    /* The same with the separate operation for activations. The forward pass runs again, because the last difference
     * has left other values behind. */
    (void)mlp_loss(&c);
    hv_linear_backward_input(env.stream[0],
                             &(hv_linear_backward_input_args){.dy = c.dy, .weight = c.second.weight, .dx = dhidden});
    hv_activation_backward(
        env.stream[0],
        &(hv_activation_backward_args){.activation = activation, .pre = c.first.pre, .dy = dhidden, .dpre = dhidden});
    finish();
    const double *one = dpre.data, *other = dhidden.data;
    for (int64_t i = 0; i < n * hidden; i++) assert_true(fabs(one[i] - other[i]) < 1e-12);
  }
}

typedef struct norm_case {
  hv_norm_args args;
  hv_tensor dy, dsum;
} norm_case;

/* The loss depends on both results: the norm, and the sum, which the residual stream goes on with. */
static double norm_loss(const void *context) {
  const norm_case *c = context;
  hv_norm(env.stream[0], &c->args);
  finish();
  return weighted(c->args.y, c->dy) + weighted(c->args.sum, c->dsum);
}

static void norms(void **state) {
  (void)state;
  int64_t n = 5, d = 19;
  for (hv_norm_kind kind = HV_NORM_LAYER; kind <= HV_NORM_VARIANCE; kind++) {
    norm_case c = {.dy = normals(n, d), .dsum = normals(n, d)};
    c.args = (hv_norm_args){.kind = kind, .eps = 1e-3, .x = normals(n, d), .delta = normals(n, d)};
    c.args.delta_scale = normals(1, d);
    c.args.sum = zeros(n, d);
    c.args.weight = normals(1, d);
    if (kind == HV_NORM_LAYER) c.args.bias = normals(1, d);
    c.args.y = zeros(n, d);
    c.args.stats = zeros(n, 2);
    (void)norm_loss(&c);
    hv_norm_backward_args b = {.kind = kind, .dy = c.dy, .x = c.args.sum, .weight = c.args.weight};
    b.stats = c.args.stats;
    b.dresidual = c.dsum;
    b.dx = zeros(n, d);
    b.dweight = zeros(1, d);
    b.dbias = zeros(1, d);
    b.delta = c.args.delta;
    b.delta_scale = c.args.delta_scale;
    b.ddelta = zeros(n, d);
    b.ddelta_scale = zeros(1, d);
    hv_norm_backward(env.stream[0], &b);
    finish();
    check("x", norm_loss, &c, c.args.x, b.dx);
    check("delta", norm_loss, &c, c.args.delta, b.ddelta);
    check("delta_scale", norm_loss, &c, c.args.delta_scale, b.ddelta_scale);
    check("the weight", norm_loss, &c, c.args.weight, b.dweight);
    if (kind == HV_NORM_LAYER) check("the bias", norm_loss, &c, c.args.bias, b.dbias);
  }
}

typedef struct residual_case {
  hv_residual_add_args args;
  hv_tensor dy;
} residual_case;

static double residual_loss(const void *context) {
  const residual_case *c = context;
  hv_residual_add(env.stream[0], &c->args);
  finish();
  return weighted(c->args.y, c->dy);
}

static void residual_scale(void **state) {
  (void)state;
  int64_t n = 7, d = 11;
  residual_case c = {.dy = normals(n, d)};
  c.args = (hv_residual_add_args){.x = normals(n, d), .delta = normals(n, d), .scale = normals(1, d)};
  c.args.y = zeros(n, d);
  hv_residual_scale_backward_args b = {.dy = c.dy, .delta = c.args.delta, .scale = c.args.scale};
  b.ddelta = zeros(n, d);
  b.dscale = zeros(1, d);
  hv_residual_scale_backward(env.stream[0], &b);
  check("delta", residual_loss, &c, c.args.delta, b.ddelta);
  check("the scale", residual_loss, &c, c.args.scale, b.dscale);
}

typedef struct swiglu_case {
  hv_swiglu_args args;
  hv_tensor dy;
} swiglu_case;

static double swiglu_loss(const void *context) {
  const swiglu_case *c = context;
  hv_swiglu(env.stream[0], &c->args);
  finish();
  return weighted(c->args.y, c->dy);
}

static void swiglu(void **state) {
  (void)state;
  int64_t n = 3, f = 14;
  swiglu_case c = {.dy = normals(n, f), .args = {.gate_up = normals(n, 2 * f), .y = zeros(n, f)}};
  hv_tensor dgate_up = zeros(n, 2 * f);
  hv_swiglu_backward(env.stream[0],
                     &(hv_swiglu_backward_args){.gate_up = c.args.gate_up, .dy = c.dy, .dgate_up = dgate_up});
  check("gate and up", swiglu_loss, &c, c.args.gate_up, dgate_up);
}

typedef struct rotary_case {
  hv_rotary_args args;
  hv_tensor dq;
} rotary_case;

static double rotary_loss(const void *context) {
  const rotary_case *c = context;
  hv_rotary(env.stream[0], &c->args);
  finish();
  return weighted(c->args.q_out, c->dq);
}

/* A rotary table: cosines and sines of integer multiples of the position. */
static hv_tensor rotary_table(int64_t positions, int64_t rotary_dim) {
  hv_tensor t = zeros(positions, rotary_dim);
  double *table = t.data;
  for (int64_t i = 0; i < positions * rotary_dim; i++) {
    int64_t position = i / rotary_dim, pair = i % (rotary_dim / 2);
    double angle = (double)(position * (1 + pair));
    table[i] = i % rotary_dim < rotary_dim / 2 ? cos(angle) : sin(angle);
  }
  return t;
}

/* The gradient of a rotation is the inverse rotation. */
static void rotary(void **state) {
  (void)state;
  int64_t n = 4, head_dim = 10, rotary_dim = 6;
  int32_t positions[] = {3, 0, 2, 1};
  rotary_case c = {.dq = normals(n, 2 * head_dim)};
  c.args = (hv_rotary_args){.q = normals(n, 2 * head_dim), .head_dim = (int32_t)head_dim};
  c.args.positions = hv_tensor_make(positions, HV_I32, 1, n);
  c.args.cos_sin = rotary_table(4, rotary_dim);
  c.args.q_out = zeros(n, 2 * head_dim);
  hv_rotary_args back = c.args;
  back.q = c.dq;
  back.inverse = true;
  back.q_out = zeros(n, 2 * head_dim);
  hv_rotary(env.stream[0], &back);
  check("q", rotary_loss, &c, c.args.q, back.q_out);
}

/* Attention, with or without rotating queries and keys first. */
typedef struct attention_case {
  hv_attention_args args;
  hv_tensor dout;
  hv_rotary_args rotate_q, rotate_k; /* empty if nothing is rotated */
} attention_case;

static double attention_loss(const void *context) {
  const attention_case *c = context;
  if (hv_present(c->rotate_q.q)) {
    hv_rotary(env.stream[0], &c->rotate_q);
    hv_rotary(env.stream[0], &c->rotate_k);
  }
  hv_attention(env.stream[0], &c->args);
  finish();
  return weighted(c->args.out, c->dout);
}

/* Row i is at position (i · step) mod POSITIONS. */
static hv_rotary_args rotation(hv_tensor x, int32_t head_dim, int32_t step) {
  enum { POSITIONS = 5, MOST_ROWS = 1024 };
  static int32_t lists[2][MOST_ROWS];
  int32_t *list = lists[step % 2];
  assert_true(x.rows <= MOST_ROWS);
  for (int32_t i = 0; i < x.rows; i++) list[i] = i * step % POSITIONS;
  return (hv_rotary_args){.q = x,
                          .positions = hv_tensor_make(list, HV_I32, 1, x.rows),
                          .cos_sin = rotary_table(POSITIONS, head_dim),
                          .head_dim = head_dim,
                          .q_out = zeros(x.rows, x.cols)};
}

static void check_attention(layout_kind kind, bool rotated) {
  layout l;
  env.max_size = 40; /* small, because every difference computes every score again */
  make_layout(&env, kind, &l);
  int32_t kv_heads = 2, heads = 4, head_dim = 6;
  attention_case c = {.dout = normals(l.query_rows, heads * head_dim)};
  hv_attention_args *a = &c.args;
  *a = (hv_attention_args){.num_heads = heads, .num_kv_heads = kv_heads, .head_dim = head_dim, .causal = l.causal};
  hv_tensor q = normals(l.query_rows, heads * head_dim), k = normals(l.key_rows, kv_heads * head_dim);
  if (rotated) {
    c.rotate_q = rotation(q, head_dim, 3);
    c.rotate_k = rotation(k, head_dim, 2);
  }
  a->q = rotated ? c.rotate_q.q_out : q;
  a->k = rotated ? c.rotate_k.q_out : k;
  a->v = normals(l.key_rows, kv_heads * head_dim);
  a->segments = hv_tensor_make(l.segment, HV_I32, l.segments, 6);
  a->max_q_rows = l.max_q_rows;
  a->max_key_rows = l.max_key_rows;
  a->scale = 0.5;
  a->out = zeros(l.query_rows, heads * head_dim);
  a->lse = zeros(l.query_rows, heads);
  (void)attention_loss(&c);
  hv_attention_backward_args b = {.q = a->q, .k = a->k, .v = a->v, .out = a->out, .lse = a->lse, .dout = c.dout};
  b.segments = a->segments;
  b.key_groups = hv_tensor_make(l.group, HV_I32, l.groups, 4);
  b.num_heads = heads;
  b.num_kv_heads = kv_heads;
  b.head_dim = head_dim;
  b.max_q_rows = l.max_q_rows;
  b.max_key_rows = l.max_key_rows;
  b.max_group_rows = l.max_group_rows;
  b.causal = l.causal;
  b.scale = 0.5;
  b.cos_sin = c.rotate_q.cos_sin;
  b.q_positions = c.rotate_q.positions;
  b.k_positions = c.rotate_k.positions;
  b.row_dot = zeros(l.query_rows, heads);
  b.dq = zeros(l.query_rows, heads * head_dim);
  b.dk = zeros(l.key_rows, kv_heads * head_dim);
  b.dv = zeros(l.key_rows, kv_heads * head_dim);
  hv_attention_backward(env.stream[0], &b);
  finish();
  check("q", attention_loss, &c, q, b.dq);
  check("k", attention_loss, &c, k, b.dk);
  check("v", attention_loss, &c, a->v, b.dv);
}

static void attention(void **state) {
  (void)state;
  for (int i = 0; i < 4; i++) {
    check_attention(LAYOUT_IMAGES, i % 2 == 1);
    check_attention(LAYOUT_PACKED, i % 2 == 1);
    check_attention(LAYOUT_BRANCHES_ONLY, i % 2 == 1);
    op_env_clear(&env);
  }
}

typedef struct scatter_case {
  hv_gather_rows_args args;
  hv_tensor dy;
} scatter_case;

static double gather_loss(const void *context) {
  const scatter_case *c = context;
  hv_gather_rows(env.stream[0], &c->args);
  finish();
  return weighted(c->args.dst, c->dy);
}

/* An embedding gathers rows; its gradient is a scatter-add. */
static void embedding(void **state) {
  (void)state;
  int64_t d = 5, count = 6;
  int32_t ids[] = {2, 0, 2, 3, 0, 2}, sorted[] = {1, 4, 0, 2, 5, 3}, offsets[] = {0, 2, 5, 6}, rows[] = {0, 2, 3};
  scatter_case c = {.dy = normals(count, d)};
  c.args = (hv_gather_rows_args){.src = normals(4, d), .dst = zeros(count, d), .count = count};
  c.args.src_rows = hv_tensor_make(ids, HV_I32, 1, count);
  hv_scatter_add_rows_args b = {.src = c.dy, .dst = zeros(4, d)};
  b.src_rows = hv_tensor_make(sorted, HV_I32, 1, count);
  b.offsets = hv_tensor_make(offsets, HV_I32, 1, 4);
  b.dst_rows = hv_tensor_make(rows, HV_I32, 1, 3);
  hv_scatter_add_rows(env.stream[0], &b);
  check("the table", gather_loss, &c, c.args.src, b.dst);
}

typedef struct vit_case {
  hv_vit_embed_args args;
  hv_tensor dy;
} vit_case;

static double vit_loss(const void *context) {
  const vit_case *c = context;
  hv_vit_embed(env.stream[0], &c->args);
  finish();
  return weighted(c->args.y, c->dy);
}

static void vit_embed(void **state) {
  (void)state;
  int64_t images = 2, patches = 9, registers = 3, d = 7, rows = 1 + registers + patches;
  for (int cls_position = 0; cls_position < 2; cls_position++) {
    vit_case c = {.dy = normals(images * rows, d)};
    c.args = (hv_vit_embed_args){.patches = normals(images * patches, d), .cls_token = normals(1, d)};
    c.args.reg_token = normals(registers, d);
    c.args.pos_embed = normals(patches + cls_position, d);
    c.args.images = images;
    c.args.y = zeros(images * rows, d);
    hv_vit_embed_backward_args b = {.dy = c.dy, .dpatches = zeros(images * patches, d), .dcls_token = zeros(1, d)};
    b.dreg_token = zeros(registers, d);
    b.dpos_embed = zeros(patches + cls_position, d);
    b.images = images;
    b.prefix_tokens = 1 + registers;
    b.has_cls_token = true;
    b.cls_has_position = cls_position == 1;
    hv_vit_embed_backward(env.stream[0], &b);
    check("the patches", vit_loss, &c, c.args.patches, b.dpatches);
    check("the class token", vit_loss, &c, c.args.cls_token, b.dcls_token);
    check("the registers", vit_loss, &c, c.args.reg_token, b.dreg_token);
    check("the positions", vit_loss, &c, c.args.pos_embed, b.dpos_embed);
  }
}

/* The operations of the losses also give their gradients, times `weight`. */
enum { LOSS_WEIGHT = 3 };

static double diffusion_loss(const void *context) {
  hv_diffusion_loss_args args = *(const hv_diffusion_loss_args *)context;
  *(double *)args.loss.data = 0;
  args.dpred.data = NULL;
  hv_diffusion_loss(env.stream[0], &args);
  finish();
  return LOSS_WEIGHT * *(double *)args.loss.data;
}

static double cross_entropy_loss(const void *context) {
  hv_cross_entropy_args args = *(const hv_cross_entropy_args *)context;
  *(double *)args.loss.data = 0;
  args.dlogits.data = NULL;
  hv_cross_entropy(env.stream[0], &args);
  finish();
  return LOSS_WEIGHT * *(double *)args.loss.data;
}

static void losses(void **state) {
  (void)state;
  int64_t n = 4, a = 7, vocabulary = 33;
  float divisor = 20, mask[] = {1, 0, 1, 1};
  int32_t labels[] = {3, 0, 32, 3};
  hv_tensor divisor_tensor = hv_tensor_make(&divisor, HV_F32, 1, 1);
  hv_diffusion_loss_args d = {.pred = normals(n, a), .noise = normals(n, a), .weight = LOSS_WEIGHT};
  d.mask = hv_tensor_make(mask, HV_F32, 1, n);
  d.divisor = divisor_tensor;
  d.loss = zeros(1, 1);
  d.dpred = zeros(n, a);
  hv_diffusion_loss(env.stream[0], &d);
  check("the prediction", diffusion_loss, &d, d.pred, d.dpred);
  hv_cross_entropy_args c = {.logits = normals(n, vocabulary), .weight = LOSS_WEIGHT, .divisor = divisor_tensor};
  c.labels = hv_tensor_make(labels, HV_I32, 1, n);
  c.loss = zeros(1, 1);
  c.dlogits = zeros(n, vocabulary);
  hv_cross_entropy(env.stream[0], &c);
  check("the logits", cross_entropy_loss, &c, c.logits, c.dlogits);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(linear_parameters, open_env, close_env),
      cmocka_unit_test_setup_teardown(linear_through_activation, open_env, close_env),
      cmocka_unit_test_setup_teardown(norms, open_env, close_env),
      cmocka_unit_test_setup_teardown(residual_scale, open_env, close_env),
      cmocka_unit_test_setup_teardown(swiglu, open_env, close_env),
      cmocka_unit_test_setup_teardown(rotary, open_env, close_env),
      cmocka_unit_test_setup_teardown(attention, open_env, close_env),
      cmocka_unit_test_setup_teardown(embedding, open_env, close_env),
      cmocka_unit_test_setup_teardown(vit_embed, open_env, close_env),
      cmocka_unit_test_setup_teardown(losses, open_env, close_env),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
