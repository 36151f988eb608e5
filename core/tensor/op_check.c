#include "core/tensor/op_check.h"

#include <stdarg.h>
#include <stdio.h>

#include "core/tensor/moments.h"

/* Sets of dtypes. */
enum {
  F32 = 1 << HV_F32,
  BF16 = 1 << HV_BF16,
  F64 = 1 << HV_F64,
  I16 = 1 << HV_I16,
  I32 = 1 << HV_I32,
  I64 = 1 << HV_I64,
  U8 = 1 << HV_U8,
  I8 = 1 << HV_I8,
  FLOATS = F32 | BF16 | F64,
  ANY = -1,
};

typedef enum direction { READ, WRITE, SCRATCH /* written, and means nothing afterwards */ } direction;

/* An operation that is checked: the first thing found wrong, its cost, and its operands. */
typedef struct exam {
  const char *op;
  hv_status status;
  hv_op_cost cost;
  int operands;
  struct {
    const char *name;
    hv_tensor tensor;
    direction access;
  } seen[HV_OP_MAX_OPERANDS];
} exam;

static void fail(exam *e, const char *format, ...) HV_PRINTF(2, 3);
static void fail(exam *e, const char *format, ...) {
  if (e->status) return;
  char text[256];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  e->status = hv_error(HV_ERR_INTERNAL, "operation %s: %s", e->op, text);
}

static void require(exam *e, bool truth, const char *what) {
  if (!truth) fail(e, "%s", what);
}

static int dtype_set(hv_tensor t) {
  return 1 << t.dtype;
}

/* Whether two views have an element in common. Views of one matrix (equal pitch) may lie side by side. */
static bool overlap(const hv_tensor *a, const hv_tensor *b) {
  if (hv_tensor_count(*a) == 0 || hv_tensor_count(*b) == 0) return false;
  size_t a_size = hv_dtype_size(a->dtype), b_size = hv_dtype_size(b->dtype);
  uintptr_t a_first = (uintptr_t)a->data, b_first = (uintptr_t)b->data;
  uintptr_t a_end = a_first + (size_t)((a->rows - 1) * a->row_stride + a->cols) * a_size;
  uintptr_t b_end = b_first + (size_t)((b->rows - 1) * b->row_stride + b->cols) * b_size;
  if (a_end <= b_first || b_end <= a_first) return false;
  size_t pitch = (size_t)a->row_stride * a_size;
  if (a->rows == 1 || b->rows == 1 || pitch != (size_t)b->row_stride * b_size) return true;
  size_t offset = a_first >= b_first ? (a_first - b_first) % pitch : (pitch - (b_first - a_first) % pitch) % pitch;
  bool beside = offset >= (size_t)b->cols * b_size && offset + (size_t)a->cols * a_size <= pitch;
  return !beside;
}

static bool same_view(const hv_tensor *a, const hv_tensor *b) {
  return a->data == b->data && a->dtype == b->dtype && (a->row_stride == b->row_stride || a->rows == 1);
}

/* Declares a present operand and checks its dtype, its shape (−1: any) and its stride; `touched` of its rows count as
 * read or written. */
static void operand_rows(exam *e, const char *name, hv_tensor t, int dtypes, int64_t rows, int64_t cols,
                         direction access, int64_t touched) {
  if (!hv_present(t)) {
    fail(e, "%s is absent", name);
    return;
  }
  if (!(dtypes & dtype_set(t))) fail(e, "%s may not be %s", name, hv_dtype_name(t.dtype));
  if (t.rows < 0 || t.cols < 0 || (rows >= 0 && t.rows != rows) || (cols >= 0 && t.cols != cols)) {
    fail(e, "%s is [%lld, %lld]; [%lld, %lld] is expected (-1: any)", name, (long long)t.rows, (long long)t.cols,
         (long long)rows, (long long)cols);
  }
  if (t.rows > 1 && t.row_stride < t.cols) {
    fail(e, "%s has rows of %lld elements, but a row stride of %lld", name, (long long)t.cols, (long long)t.row_stride);
  }
  e->cost.bytes += (double)touched * (double)t.cols * (double)hv_dtype_size(t.dtype);
  if (e->operands == HV_OP_MAX_OPERANDS) {
    fail(e, "has more than %d operands", HV_OP_MAX_OPERANDS);
    return;
  }
  e->seen[e->operands].name = name;
  e->seen[e->operands].tensor = t;
  e->seen[e->operands].access = access;
  e->operands++;
}

static void operand(exam *e, const char *name, hv_tensor t, int dtypes, int64_t rows, int64_t cols, direction access) {
  operand_rows(e, name, t, dtypes, rows, cols, access, t.rows);
}

static void optional(exam *e, const char *name, hv_tensor t, int dtypes, int64_t rows, int64_t cols, direction access) {
  if (hv_present(t)) operand(e, name, t, dtypes, rows, cols, access);
}

/* An operand that is there exactly if `wanted`. */
static void exactly_if(exam *e, bool wanted, const char *name, hv_tensor t, int dtypes, int64_t rows, int64_t cols,
                       direction access) {
  if (wanted != hv_present(t)) {
    fail(e, wanted ? "%s is absent" : "%s may not be given here", name);
  } else if (wanted) {
    operand(e, name, t, dtypes, rows, cols, access);
  }
}

/* The operand whose dtype is T: F32, BF16 or F64. */
static int type_operand(exam *e, const char *name, hv_tensor t, int64_t rows, int64_t cols, direction access) {
  operand(e, name, t, FLOATS, rows, cols, access);
  return dtype_set(t);
}

/* S for T. */
static int scalar_of(int type) {
  return type == F64 ? F64 : F32;
}

static bool may_lie_on(const exam *e, int result, int other, const char *const *allowed) {
  for (; *allowed; allowed += 2) {
    if (strcmp(allowed[0], e->seen[result].name) == 0 && strcmp(allowed[1], e->seen[other].name) == 0) {
      return same_view(&e->seen[result].tensor, &e->seen[other].tensor);
    }
  }
  return false;
}

/* No result may overlap another operand, except for the pairs of names (result, operand) in `allowed`, which may be the
 * same view. */
static void check_aliases(exam *e, const char *const *allowed) {
  for (int i = 0; i < e->operands && !e->status; i++) {
    if (e->seen[i].access == READ) continue;
    for (int j = 0; j < e->operands; j++) {
      if (i == j || !overlap(&e->seen[i].tensor, &e->seen[j].tensor)) continue;
      if (may_lie_on(e, i, j, allowed) || may_lie_on(e, j, i, allowed)) continue;
      fail(e, "%s overlaps %s", e->seen[i].name, e->seen[j].name);
    }
  }
}

#define ALIASES(...) ((const char *const[]){__VA_ARGS__, NULL})
#define NO_ALIASES ((const char *const[]){NULL})

static void add_product(exam *e, int64_t m, int64_t n, int64_t k) {
  e->cost.matrix_flops += 2.0 * (double)m * (double)n * (double)k;
}

static void add_weight(exam *e, hv_tensor weight) {
  e->cost.weight_bytes += (double)hv_tensor_count(weight) * (double)hv_dtype_size(weight.dtype);
}

static void examine_linear(exam *e, const hv_linear_args *a) {
  int64_t n = a->x.rows, in = a->x.cols, out = a->weight.rows;
  int t = type_operand(e, "x", a->x, -1, -1, READ);
  operand(e, "weight", a->weight, t, out, in, READ);
  optional(e, "bias", a->bias, t, 1, out, READ);
  optional(e, "residual", a->residual, t, n, out, READ);
  optional(e, "pre", a->pre, t, n, out, WRITE);
  operand(e, "y", a->y, t | F32, n, out, WRITE);
  add_product(e, n, out, in);
  add_weight(e, a->weight);
  check_aliases(e, ALIASES("y", "residual"));
}

static void examine_linear_backward_input(exam *e, const hv_linear_backward_input_args *a) {
  int64_t n = a->dy.rows, in = a->weight.cols, out = a->weight.rows;
  int t = type_operand(e, "dy", a->dy, -1, out, READ);
  operand(e, "weight", a->weight, t, out, in, READ);
  exactly_if(e, a->activation != HV_ACT_NONE, "pre", a->pre, t, n, in, READ);
  optional(e, "add", a->add, t, n, in, READ);
  operand(e, "dx", a->dx, t, n, in, WRITE);
  add_product(e, n, in, out);
  add_weight(e, a->weight);
  check_aliases(e, ALIASES("dx", "add"));
}

static void examine_linear_backward_weight(exam *e, const hv_linear_backward_weight_args *a) {
  int64_t n = a->dy.rows, in = a->x.cols, out = a->dy.cols;
  int t = type_operand(e, "dy", a->dy, -1, -1, READ);
  operand(e, "x", a->x, t, n, in, READ);
  require(e, hv_present(a->dweight) || hv_present(a->dbias), "dweight and dbias are both absent");
  optional(e, "dweight", a->dweight, t | F32, out, in, WRITE);
  optional(e, "dbias", a->dbias, t | F32, 1, out, WRITE);
  require(e, !a->set_dweight || (hv_present(a->dweight) && n > 0), "set_dweight needs dweight and at least one row");
  if (hv_present(a->dweight)) add_product(e, n, in, out);
  check_aliases(e, NO_ALIASES);
}

static void examine_activation_backward(exam *e, const hv_activation_backward_args *a) {
  int t = type_operand(e, "pre", a->pre, -1, -1, READ);
  operand(e, "dy", a->dy, t, a->pre.rows, a->pre.cols, READ);
  operand(e, "dpre", a->dpre, t, a->pre.rows, a->pre.cols, WRITE);
  check_aliases(e, ALIASES("dpre", "dy"));
}

static void check_norm_kind(exam *e, hv_norm_kind kind, int64_t d) {
  require(e, kind != HV_NORM_VARIANCE || d > 1, "the variance norm needs rows of two elements or more");
}

static void examine_norm(exam *e, const hv_norm_args *a) {
  int64_t n = a->x.rows, d = a->x.cols;
  bool delta = hv_present(a->delta);
  int t = type_operand(e, "x", a->x, -1, -1, READ);
  check_norm_kind(e, a->kind, d);
  optional(e, "delta", a->delta, t, n, d, READ);
  require(e, delta || !hv_present(a->delta_scale), "delta_scale without delta");
  optional(e, "delta_scale", a->delta_scale, t, 1, d, READ);
  exactly_if(e, delta, "sum", a->sum, t, n, d, WRITE);
  operand(e, "weight", a->weight, t, 1, d, READ);
  require(e, a->kind == HV_NORM_LAYER || !hv_present(a->bias), "bias without HV_NORM_LAYER");
  optional(e, "bias", a->bias, t, 1, d, READ);
  operand(e, "y", a->y, t, n, d, WRITE);
  optional(e, "stats", a->stats, scalar_of(t), n, 2, WRITE);
  check_aliases(e, ALIASES("sum", "x"));
}

static void examine_norm_backward(exam *e, const hv_norm_backward_args *a) {
  int64_t n = a->x.rows, d = a->x.cols;
  int t = type_operand(e, "x", a->x, -1, -1, READ);
  check_norm_kind(e, a->kind, d);
  operand(e, "dy", a->dy, t, n, d, READ);
  operand(e, "weight", a->weight, t, 1, d, READ);
  operand(e, "stats", a->stats, scalar_of(t), n, 2, READ);
  optional(e, "dresidual", a->dresidual, t, n, d, READ);
  operand(e, "dx", a->dx, t, n, d, WRITE);
  optional(e, "dweight", a->dweight, t | F32, 1, d, WRITE);
  optional(e, "dbias", a->dbias, t | F32, 1, d, WRITE);
  optional(e, "ddelta", a->ddelta, t, n, d, WRITE);
  exactly_if(e, hv_present(a->ddelta), "delta_scale", a->delta_scale, t, 1, d, READ);
  optional(e, "ddelta_scale", a->ddelta_scale, t | F32, 1, d, WRITE);
  exactly_if(e, hv_present(a->ddelta_scale), "delta", a->delta, t, n, d, READ);
  check_aliases(e, ALIASES("dx", "dresidual"));
}

static void examine_residual_add(exam *e, const hv_residual_add_args *a) {
  int64_t n = a->x.rows, d = a->x.cols;
  int t = type_operand(e, "x", a->x, -1, -1, READ);
  operand(e, "delta", a->delta, t, n, d, READ);
  optional(e, "scale", a->scale, t, 1, d, READ);
  operand(e, "y", a->y, t, n, d, WRITE);
  check_aliases(e, ALIASES("y", "x", "y", "delta"));
}

static void examine_residual_scale_backward(exam *e, const hv_residual_scale_backward_args *a) {
  int64_t n = a->dy.rows, d = a->dy.cols;
  int t = type_operand(e, "dy", a->dy, -1, -1, READ);
  exactly_if(e, hv_present(a->dscale), "delta", a->delta, t, n, d, READ);
  operand(e, "scale", a->scale, t, 1, d, READ);
  operand(e, "ddelta", a->ddelta, t, n, d, WRITE);
  optional(e, "dscale", a->dscale, t | F32, 1, d, WRITE);
  check_aliases(e, NO_ALIASES);
}

static void examine_swiglu(exam *e, const hv_swiglu_args *a) {
  int t = type_operand(e, "y", a->y, -1, -1, WRITE);
  operand(e, "gate_up", a->gate_up, t, a->y.rows, 2 * a->y.cols, READ);
  check_aliases(e, NO_ALIASES);
}

static void examine_linear_swiglu(exam *e, const hv_linear_swiglu_args *a) {
  int64_t n = a->x.rows, in = a->x.cols, f = a->y.cols;
  int t = type_operand(e, "x", a->x, -1, -1, READ);
  operand(e, "weight", a->weight, t, 2 * f, in, READ);
  operand_rows(e, "gate_up", a->gate_up, t, n, 2 * f, a->keep ? WRITE : SCRATCH, a->keep ? n : 0);
  operand(e, "y", a->y, t, n, f, WRITE);
  add_product(e, n, 2 * f, in);
  add_weight(e, a->weight);
  check_aliases(e, NO_ALIASES);
}

static void examine_swiglu_backward(exam *e, const hv_swiglu_backward_args *a) {
  int64_t n = a->dy.rows, f = a->dy.cols;
  int t = type_operand(e, "dy", a->dy, -1, -1, READ);
  operand(e, "gate_up", a->gate_up, t, n, 2 * f, READ);
  operand(e, "dgate_up", a->dgate_up, t, n, 2 * f, WRITE);
  optional(e, "y", a->y, t, n, f, WRITE);
  check_aliases(e, ALIASES("dgate_up", "gate_up", "y", "dy"));
}

static void check_head_dim(exam *e, int32_t head_dim) {
  if (head_dim < 1 || head_dim > HV_MAX_HEAD_DIM)
    fail(e, "head_dim is %d; 1 to %d are expected", head_dim, HV_MAX_HEAD_DIM);
}

static void examine_rotary(exam *e, const hv_rotary_args *a) {
  int64_t n = a->positions.cols, rotary_dim = a->cos_sin.cols, head = a->head_dim > 0 ? a->head_dim : 1;
  hv_tensor typed = hv_present(a->q) ? a->q : hv_present(a->k) ? a->k : a->v;
  int t = dtype_set(typed);
  require(e, hv_present(typed), "q, k and v are all absent");
  check_head_dim(e, a->head_dim);
  require(e, rotary_dim % 2 == 0 && rotary_dim <= head,
          "cos_sin must have an even number of columns, at most head_dim");
  require(e, a->q.cols % head == 0 && a->k.cols % head == 0, "q and k must have whole heads");
  operand(e, "positions", a->positions, I32, 1, -1, READ);
  operand_rows(e, "cos_sin", a->cos_sin, scalar_of(t), -1, -1, READ, n);
  optional(e, "kv_rows", a->kv_rows, I32, 1, n, READ);
  optional(e, "q", a->q, t & FLOATS, n, -1, READ);
  exactly_if(e, hv_present(a->q), "q_out", a->q_out, t, n, a->q.cols, WRITE);
  int64_t kv_rows = hv_present(a->kv_rows) ? -1 : n;
  optional(e, "k", a->k, t & FLOATS, n, -1, READ);
  if (hv_present(a->k)) operand_rows(e, "k_out", a->k_out, t, kv_rows, a->k.cols, WRITE, n);
  optional(e, "v", a->v, t & FLOATS, n, -1, READ);
  if (hv_present(a->v)) operand_rows(e, "v_out", a->v_out, t, kv_rows, a->v.cols, WRITE, n);
  if (hv_present(a->kv_rows)) {
    check_aliases(e, ALIASES("q_out", "q"));
  } else {
    check_aliases(e, ALIASES("q_out", "q", "k_out", "k", "v_out", "v"));
  }
}

static void check_heads(exam *e, int32_t num_heads, int32_t num_kv_heads, int32_t head_dim) {
  check_head_dim(e, head_dim);
  if (num_heads < 1 || num_kv_heads < 1 || num_heads % num_kv_heads != 0) {
    fail(e, "%d query heads cannot share %d key heads", num_heads, num_kv_heads);
  }
}

static void examine_attention(exam *e, const hv_attention_args *a) {
  int64_t nq = a->q.rows, nk = a->k.rows;
  int64_t q_cols = (int64_t)a->num_heads * a->head_dim, kv_cols = (int64_t)a->num_kv_heads * a->head_dim;
  check_heads(e, a->num_heads, a->num_kv_heads, a->head_dim);
  int t = type_operand(e, "q", a->q, -1, q_cols, READ);
  operand(e, "k", a->k, t, -1, kv_cols, READ);
  operand(e, "v", a->v, t, nk, kv_cols, READ);
  operand(e, "segments", a->segments, I32, -1, 6, READ);
  operand(e, "out", a->out, t, nq, q_cols, WRITE);
  optional(e, "lse", a->lse, scalar_of(t), nq, a->num_heads, WRITE);
  require(e, a->max_q_rows >= 0 && a->max_q_rows <= nq, "max_q_rows must lie between 0 and the rows of q");
  require(e, a->max_key_rows >= 0, "max_key_rows is negative");
  if (a->uniform) {
    require(e, !a->causal && nk == nq && a->max_key_rows == a->max_q_rows && a->segments.rows * a->max_q_rows == nq,
            "uniform segments divide the rows evenly and are not causal");
  }
  add_product(e, 2 * nq, a->max_key_rows, q_cols);
  check_aliases(e, NO_ALIASES);
}

static void examine_attention_backward(exam *e, const hv_attention_backward_args *a) {
  int64_t nq = a->q.rows, nk = a->k.rows;
  int64_t q_cols = (int64_t)a->num_heads * a->head_dim, kv_cols = (int64_t)a->num_kv_heads * a->head_dim;
  check_heads(e, a->num_heads, a->num_kv_heads, a->head_dim);
  int t = type_operand(e, "q", a->q, -1, q_cols, READ), s = scalar_of(t);
  operand(e, "k", a->k, t, -1, kv_cols, READ);
  operand(e, "v", a->v, t, nk, kv_cols, READ);
  operand(e, "out", a->out, t, nq, q_cols, READ);
  operand(e, "lse", a->lse, s, nq, a->num_heads, READ);
  operand(e, "dout", a->dout, t, nq, q_cols, READ);
  operand(e, "segments", a->segments, I32, -1, 6, READ);
  operand(e, "key_groups", a->key_groups, I32, -1, 4, READ);
  bool rotated = hv_present(a->cos_sin);
  if (rotated) operand_rows(e, "cos_sin", a->cos_sin, s, -1, a->head_dim, READ, nq + nk);
  exactly_if(e, rotated, "q_positions", a->q_positions, I32, 1, nq, READ);
  exactly_if(e, rotated, "k_positions", a->k_positions, I32, 1, nk, READ);
  require(e, !rotated || a->head_dim % 2 == 0, "rotary embeddings need an even head_dim");
  operand(e, "row_dot", a->row_dot, s, nq, a->num_heads, WRITE);
  operand(e, "dq", a->dq, t, nq, q_cols, WRITE);
  operand(e, "dk", a->dk, t, nk, kv_cols, WRITE);
  operand(e, "dv", a->dv, t, nk, kv_cols, WRITE);
  require(e, a->max_q_rows >= 0 && a->max_q_rows <= nq, "max_q_rows must lie between 0 and the rows of q");
  require(e, a->max_key_rows >= 0 && a->max_group_rows >= 0, "max_key_rows or max_group_rows is negative");
  add_product(e, 4 * nq, a->max_key_rows, q_cols); /* the scores, computed again, are not counted */
  check_aliases(e, NO_ALIASES);
}

static void examine_gather_rows(exam *e, const hv_gather_rows_args *a) {
  int64_t d = a->src.cols;
  operand_rows(e, "src", a->src, FLOATS, -1, -1, READ, a->count);
  optional(e, "src_rows", a->src_rows, I32, 1, a->count, READ);
  operand_rows(e, "dst", a->dst, FLOATS, -1, d, WRITE, a->count);
  optional(e, "dst_rows", a->dst_rows, I32, 1, a->count, READ);
  require(e, hv_present(a->src_rows) || a->count <= a->src.rows, "src has fewer rows than count");
  require(e, hv_present(a->dst_rows) || a->count <= a->dst.rows, "dst has fewer rows than count");
  check_aliases(e, NO_ALIASES);
}

static void examine_scatter_add_rows(exam *e, const hv_scatter_add_rows_args *a) {
  int64_t count = a->dst_rows.cols;
  operand_rows(e, "src", a->src, FLOATS, -1, -1, READ, a->src_rows.cols);
  operand(e, "src_rows", a->src_rows, I32, 1, -1, READ);
  operand(e, "offsets", a->offsets, I32, 1, count + 1, READ);
  operand(e, "dst_rows", a->dst_rows, I32, 1, -1, READ);
  operand_rows(e, "dst", a->dst, dtype_set(a->src) | F32, -1, a->src.cols, WRITE, count);
  check_aliases(e, NO_ALIASES);
}

static void examine_patchify(exam *e, const hv_patchify_args *a) {
  int64_t size = a->image_size, patch = a->patch_size;
  require(e, patch > 0 && size >= patch && size % patch == 0, "image_size must be a multiple of patch_size");
  int64_t side = patch > 0 ? size / patch : 0;
  operand(e, "images", a->images, U8, -1, size * size * 3, READ);
  operand(e, "y", a->y, FLOATS, a->images.rows * side * side, 3 * patch * patch, WRITE);
  check_aliases(e, NO_ALIASES);
}

static void examine_vit_embed(exam *e, const hv_vit_embed_args *a) {
  int64_t d = a->patches.cols, images = a->images > 0 ? a->images : 1, patches = a->patches.rows / images;
  int64_t cls = hv_present(a->cls_token) ? 1 : 0, registers = hv_present(a->reg_token) ? a->reg_token.rows : 0;
  require(e, a->images > 0 && a->patches.rows % images == 0, "the rows of patches must be a multiple of images");
  int t = type_operand(e, "patches", a->patches, -1, -1, READ);
  optional(e, "cls_token", a->cls_token, t, 1, d, READ);
  optional(e, "reg_token", a->reg_token, t, -1, d, READ);
  operand(e, "pos_embed", a->pos_embed, t, -1, d, READ);
  bool fits = a->pos_embed.rows == patches || (cls && a->pos_embed.rows == patches + 1);
  require(e, fits, "pos_embed must have a row for each patch, and may have one for the class token");
  operand(e, "y", a->y, t, images * (cls + registers + patches), d, WRITE);
  check_aliases(e, NO_ALIASES);
}

static void examine_vit_embed_backward(exam *e, const hv_vit_embed_backward_args *a) {
  int64_t d = a->dy.cols, images = a->images > 0 ? a->images : 1, cls = a->has_cls_token ? 1 : 0;
  int64_t patches = a->dy.rows / images - a->prefix_tokens;
  require(e, a->images > 0 && a->dy.rows % images == 0, "the rows of dy must be a multiple of images");
  require(e, patches >= 0 && a->prefix_tokens >= cls, "prefix_tokens does not fit the rows of dy");
  require(e, a->has_cls_token || !a->cls_has_position, "cls_has_position without has_cls_token");
  int t = type_operand(e, "dy", a->dy, -1, -1, READ);
  operand(e, "dpatches", a->dpatches, t, images * patches, d, WRITE);
  optional(e, "dcls_token", a->dcls_token, t | F32, 1, d, WRITE);
  optional(e, "dreg_token", a->dreg_token, t | F32, a->prefix_tokens - cls, d, WRITE);
  optional(e, "dpos_embed", a->dpos_embed, t | F32, patches + (a->cls_has_position ? 1 : 0), d, WRITE);
  check_aliases(e, NO_ALIASES);
}

static void examine_sinusoid(exam *e, const hv_sinusoid_args *a) {
  operand(e, "timesteps", a->timesteps, I32, 1, a->y.rows, READ);
  operand(e, "y", a->y, FLOATS, -1, -1, WRITE);
  require(e, a->y.cols % 2 == 0, "y must have an even number of columns");
}

static void examine_q_sample(exam *e, const hv_q_sample_args *a) {
  int t = type_operand(e, "y", a->y, -1, -1, WRITE), s = scalar_of(t);
  int64_t branches = a->branches > 0 ? a->branches : 1;
  require(e, a->branches > 0 && a->y.rows % branches == 0, "y must have a whole number of branches");
  operand(e, "actions", a->actions, s, a->y.rows / branches, a->y.cols, READ);
  operand(e, "noise", a->noise, s, a->y.rows, a->y.cols, READ);
  operand(e, "timesteps", a->timesteps, I32, 1, a->y.rows, READ);
  operand(e, "alpha_bar", a->alpha_bar, s, 1, -1, READ);
  check_aliases(e, NO_ALIASES);
}

static void examine_sampler_step(exam *e, const hv_sampler_step_args *a) {
  int64_t n = a->x.rows, m = a->x.cols;
  operand(e, "x", a->x, F32, -1, -1, WRITE);
  operand(e, "eps", a->eps, FLOATS, n, m, READ);
  optional(e, "noise", a->noise, F32, n, m, READ);
  operand(e, "coefficients", a->coefficients, F32, 1, 3, READ);
  optional(e, "x_cast", a->x_cast, FLOATS, n, m, WRITE);
  check_aliases(e, NO_ALIASES);
}

static void examine_diffusion_loss(exam *e, const hv_diffusion_loss_args *a) {
  int64_t n = a->pred.rows, cols = a->pred.cols;
  int t = type_operand(e, "pred", a->pred, -1, -1, READ), s = scalar_of(t);
  operand(e, "noise", a->noise, s, n, cols, READ);
  optional(e, "mask", a->mask, F32, 1, n, READ);
  operand(e, "divisor", a->divisor, F32, 1, 1, READ);
  operand(e, "loss", a->loss, s, 1, 1, WRITE);
  optional(e, "dpred", a->dpred, t == F32 ? F32 | BF16 : t, n, cols, WRITE);
  check_aliases(e, ALIASES("dpred", "pred"));
}

static void examine_cross_entropy(exam *e, const hv_cross_entropy_args *a) {
  int64_t n = a->logits.rows, vocabulary = a->logits.cols;
  int t = type_operand(e, "logits", a->logits, -1, -1, READ);
  require(e, vocabulary > 0, "the vocabulary is empty");
  operand(e, "labels", a->labels, I32, 1, n, READ);
  operand(e, "divisor", a->divisor, F32, 1, 1, READ);
  operand(e, "loss", a->loss, scalar_of(t), 1, 1, WRITE);
  optional(e, "dlogits", a->dlogits, t == F32 ? F32 | BF16 : t, n, vocabulary, WRITE);
  check_aliases(e, ALIASES("dlogits", "logits"));
}

static void examine_best_of_range(exam *e, const hv_best_of_range_args *a) {
  int64_t n = a->logits.rows;
  bool inside = a->first >= 0 && a->count > 0 && (int64_t)a->first + a->count <= a->logits.cols;
  operand(e, "logits", a->logits, FLOATS, -1, -1, READ);
  require(e, inside, "the range of ids must lie in the vocabulary and not be empty");
  operand(e, "ids", a->ids, I32, 1, n, WRITE);
  operand(e, "probability", a->probability, F32, 1, n, WRITE);
  check_aliases(e, NO_ALIASES);
}

static void check_branches(exam *e, int32_t branches, int64_t rows, hv_tensor samples, hv_tensor seed_step) {
  require(e, branches > 0 && rows % (branches > 0 ? branches : 1) == 0, "y must have a whole number of branches");
  operand(e, "seed_step", seed_step, I64, 1, 2, READ);
  operand(e, "samples", samples, I64, 1, rows / (branches > 0 ? branches : 1), READ);
}

static void examine_draw_normal(exam *e, const hv_draw_normal_args *a) {
  operand(e, "y", a->y, F32 | F64, -1, -1, WRITE);
  check_branches(e, a->branches, a->y.rows, a->samples, a->seed_step);
}

static void examine_draw_below(exam *e, const hv_draw_below_args *a) {
  operand(e, "y", a->y, I32, 1, -1, WRITE);
  check_branches(e, a->branches, a->y.cols, a->samples, a->seed_step);
  require(e, a->limit > 0, "limit must be positive");
}

static void examine_convert(exam *e, const hv_convert_args *a) {
  operand(e, "src", a->src, FLOATS, -1, -1, READ);
  operand(e, "dst", a->dst, FLOATS, a->src.rows, a->src.cols, WRITE);
  check_aliases(e, NO_ALIASES);
}

static void examine_fill(exam *e, const hv_fill_args *a) {
  operand(e, "dst", a->dst, ANY, -1, -1, WRITE);
}

static void examine_sum_squares(exam *e, const hv_sum_squares_args *a) {
  int t = type_operand(e, "x", a->x, 1, -1, READ);
  operand(e, "y", a->y, scalar_of(t), 1, 1, WRITE);
  check_aliases(e, NO_ALIASES);
}

static void examine_clip_factor(exam *e, const hv_clip_factor_args *a) {
  operand(e, "sum_squares", a->sum_squares, F32 | F64, 1, 1, READ);
  int s = dtype_set(a->sum_squares);
  operand(e, "norm", a->norm, s, 1, 1, WRITE);
  operand(e, "dynamic", a->dynamic, s, 1, 5, WRITE);
  require(e, a->max_norm >= 0, "max_norm is negative");
  check_aliases(e, NO_ALIASES);
}

static void examine_adamw(exam *e, const hv_adamw_args *a) {
  int64_t n = a->param.cols;
  int t = type_operand(e, "param", a->param, 1, -1, WRITE), s = scalar_of(t);
  exactly_if(e, t == BF16, "remainder", a->remainder, I16, 1, n, WRITE);
  operand(e, "grad", a->grad, t | F32, 1, n, READ);
  bool coded = a->moment1.dtype == HV_I8;
  operand(e, "moment1", a->moment1, coded ? I8 : s, 1, n, WRITE);
  operand(e, "moment2", a->moment2, coded ? U8 : s, 1, n, WRITE);
  exactly_if(e, coded, "moment1_scale", a->moment1_scale, F32, 1, n / HV_MOMENT_BLOCK, WRITE);
  exactly_if(e, coded, "moment2_scale", a->moment2_scale, F32, 1, n / HV_MOMENT_BLOCK, WRITE);
  require(e, !coded || n % HV_MOMENT_BLOCK == 0, "moments in 8 bits need a whole number of blocks");
  operand(e, "ranges", a->ranges, I64, -1, 3, READ);
  operand(e, "dynamic", a->dynamic, s, 1, 5, READ);
  check_aliases(e, NO_ALIASES);
}

static void examine_average(exam *e, const hv_average_args *a) {
  int64_t n = a->param.cols;
  int t = type_operand(e, "param", a->param, 1, -1, READ), s = scalar_of(t);
  exactly_if(e, t == BF16, "remainder", a->remainder, I16, 1, n, READ);
  operand(e, "average", a->average, s, 1, n, WRITE);
  operand(e, "weight", a->weight, s, 1, 1, READ);
  operand(e, "factor", a->factor, s, 1, 1, READ);
  check_aliases(e, NO_ALIASES);
}

static void examine_exchange(exam *e, const hv_exchange_args *a) {
  int64_t n = a->param.cols;
  int t = type_operand(e, "param", a->param, 1, -1, WRITE), s = scalar_of(t);
  exactly_if(e, t == BF16, "remainder", a->remainder, I16, 1, n, WRITE);
  operand(e, "average", a->average, s, 1, n, WRITE);
  check_aliases(e, NO_ALIASES);
}

static void take_results(const exam *e, hv_op_results *out) {
  out->count = 0;
  for (int i = 0; i < e->operands && !e->status; i++) {
    if (e->seen[i].access != WRITE || !hv_dtype_is_floating(e->seen[i].tensor.dtype)) continue;
    out->items[out->count].name = e->seen[i].name;
    out->items[out->count++].tensor = e->seen[i].tensor;
  }
}

#define DEFINE(name)                                                                                                   \
  hv_status hv_measure_##name(const hv_##name##_args *args, hv_op_cost *cost) {                                        \
    exam e = {.op = #name};                                                                                            \
    examine_##name(&e, args);                                                                                          \
    *cost = e.cost;                                                                                                    \
    return e.status;                                                                                                   \
  }                                                                                                                    \
  hv_status hv_check_##name(const hv_##name##_args *args) {                                                            \
    hv_op_cost cost;                                                                                                   \
    return hv_measure_##name(args, &cost);                                                                             \
  }                                                                                                                    \
  void hv_results_##name(const hv_##name##_args *args, hv_op_results *out) {                                           \
    exam e = {.op = #name};                                                                                            \
    examine_##name(&e, args);                                                                                          \
    take_results(&e, out);                                                                                             \
    hv_status_free(e.status);                                                                                          \
  }
HV_OPS(DEFINE)
