/* The operations of a device, as coarse as fused kernels: one documented argument structure each.
 *
 * Conventions
 * - T is the dtype of activations and weights of a call: F32, BF16 or F64. Arithmetic is in S: float for F32 and
 *   BF16, double for F64. A result is rounded once, when it is stored. "S" as a dtype below is F32, or F64 where T is.
 * - Activation gradients overwrite; parameter gradients (dweight, dbias, …) are added to, in G: T or F32.
 * - An operand said to be optional is absent when its data is NULL. A result may alias an operand only where said.
 * - What changes between two calls of one shape (timesteps, table entries, counters, learning rate, clip factor) is in
 *   device memory, so that a recorded sequence of calls can be replayed.
 * - Sums run in an order that the shapes alone determine: the same call gives the same bytes on the same device.
 * - Operations return nothing. Every device checks the operands of every call (hv_check_…): the next synchronisation
 *   returns the first error, and the wrong operation is not done. The contents of index lists in device memory are not
 *   checked.
 */
#ifndef HV_TENSOR_OPS_H
#define HV_TENSOR_OPS_H

#include "core/tensor/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hv_activation {
  HV_ACT_NONE,
  HV_ACT_GELU,       /* exact: x Φ(x) */
  HV_ACT_GELU_TANH,  /* the tanh approximation */
  HV_ACT_QUICK_GELU, /* x σ(1.702 x) */
  HV_ACT_SILU,       /* x σ(x) */
} hv_activation;

/* y = activation(x weightᵀ + bias) + residual */
typedef struct hv_linear_args {
  hv_tensor x;        /* T [n, in] */
  hv_tensor weight;   /* T [out, in] */
  hv_tensor bias;     /* T [1, out], optional */
  hv_tensor residual; /* T [n, out], optional; may be y */
  hv_activation activation;
  hv_tensor pre; /* T [n, out], optional: receives x weightᵀ + bias, for the backward pass of the activation */
  hv_tensor y;   /* T or F32 [n, out] */
} hv_linear_args;

/* dx = (dy weight) ∘ activation'(pre) + add, where the layer's input was x = activation(pre) */
typedef struct hv_linear_backward_input_args {
  hv_tensor dy;     /* T [n, out] */
  hv_tensor weight; /* T [out, in] */
  hv_activation activation;
  hv_tensor pre; /* T [n, in]; present exactly if activation is not HV_ACT_NONE */
  hv_tensor add; /* T [n, in], optional; may be dx */
  hv_tensor dx;  /* T [n, in] */
} hv_linear_backward_input_args;

/* dweight += dyᵀ x, or = with `set_dweight`; dbias += column sums of dy; one of the two is present */
typedef struct hv_linear_backward_weight_args {
  hv_tensor dy;      /* T [n, out] */
  hv_tensor x;       /* T [n, in] */
  hv_tensor dweight; /* G [out, in], optional */
  bool set_dweight;  /* what dweight held is not read; n > 0 */
  hv_tensor dbias;   /* G [1, out], optional */
} hv_linear_backward_weight_args;

/* dpre = dy ∘ activation'(pre): the backward pass of an activation alone. */
typedef struct hv_activation_backward_args {
  hv_activation activation;
  hv_tensor pre;  /* T [n, d] */
  hv_tensor dy;   /* T [n, d] */
  hv_tensor dpre; /* T [n, d]; may be dy */
} hv_activation_backward_args;

typedef enum hv_norm_kind {
  HV_NORM_LAYER,    /* (x − mean) / sqrt(var + eps) · weight + bias, var with divisor d */
  HV_NORM_RMS,      /* x / sqrt(mean(x²) + eps) · weight */
  HV_NORM_VARIANCE, /* x / sqrt(var + eps) · weight, var with divisor d − 1; x is not centred (timm 0.9's RmsNorm) */
} hv_norm_kind;

/* sum = x + delta_scale ∘ delta;  y = norm(sum). Without delta, sum is x and nothing is stored in it. */
typedef struct hv_norm_args {
  hv_norm_kind kind;
  double eps;
  hv_tensor x;           /* T [n, d] */
  hv_tensor delta;       /* T [n, d], optional */
  hv_tensor delta_scale; /* T [1, d], optional (LayerScale) */
  hv_tensor sum;         /* T [n, d], present exactly if delta is; may be x */
  hv_tensor weight;      /* T [1, d] */
  hv_tensor bias;        /* T [1, d], HV_NORM_LAYER only, optional */
  hv_tensor y;           /* T [n, d] */
  hv_tensor stats;       /* S [n, 2], optional: mean (0 for RMS) and 1 / sqrt(… + eps) of each row */
} hv_norm_args;

/* The statistics are of the rounded sum as stored. With dn the gradient through the norm,
 *   dx = dn + dresidual;  ddelta = delta_scale ∘ dx;  ddelta_scale += column sums of dx ∘ delta
 * (the last two only with LayerScale; without it the gradient of delta is dx itself). */
typedef struct hv_norm_backward_args {
  hv_norm_kind kind;
  hv_tensor dy;           /* T [n, d] */
  hv_tensor x;            /* T [n, d]: what was normalised (the sum) */
  hv_tensor weight;       /* T [1, d] */
  hv_tensor stats;        /* S [n, 2] from the forward pass */
  hv_tensor dresidual;    /* T [n, d], optional; may be dx */
  hv_tensor dx;           /* T [n, d] */
  hv_tensor dweight;      /* G [1, d], optional */
  hv_tensor dbias;        /* G [1, d], optional */
  hv_tensor delta;        /* T [n, d], present exactly if ddelta_scale is */
  hv_tensor delta_scale;  /* T [1, d], present exactly if ddelta is */
  hv_tensor ddelta;       /* T [n, d], optional */
  hv_tensor ddelta_scale; /* G [1, d], optional */
} hv_norm_backward_args;

/* y = x + scale ∘ delta */
typedef struct hv_residual_add_args {
  hv_tensor x;     /* T [n, d] */
  hv_tensor delta; /* T [n, d] */
  hv_tensor scale; /* T [1, d], optional */
  hv_tensor y;     /* T [n, d]; may be x or delta */
} hv_residual_add_args;

/* ddelta = scale ∘ dy;  dscale += column sums of dy ∘ delta. (The gradient of x is dy.) */
typedef struct hv_residual_scale_backward_args {
  hv_tensor dy;     /* T [n, d] */
  hv_tensor delta;  /* T [n, d], present exactly if dscale is */
  hv_tensor scale;  /* T [1, d] */
  hv_tensor ddelta; /* T [n, d]; may not be dy */
  hv_tensor dscale; /* G [1, d], optional */
} hv_residual_scale_backward_args;

/* y = silu(gate) ∘ up */
typedef struct hv_swiglu_args {
  hv_tensor gate_up; /* T [n, 2 f]: [gate | up] */
  hv_tensor y;       /* T [n, f] */
} hv_swiglu_args;

/* gate_up = x weightᵀ and y = silu(gate) ∘ up in one call: with few rows in one pass over the weights. */
typedef struct hv_linear_swiglu_args {
  hv_tensor x;       /* T [n, in] */
  hv_tensor weight;  /* T [2 f, in] */
  hv_tensor gate_up; /* T [n, 2 f]; undefined afterwards unless `keep` is set */
  bool keep;
  hv_tensor y; /* T [n, f] */
} hv_linear_swiglu_args;

/* With y, the forward result is recomputed as well, in the same pass over gate_up. */
typedef struct hv_swiglu_backward_args {
  hv_tensor gate_up;  /* T [n, 2 f] */
  hv_tensor dy;       /* T [n, f] */
  hv_tensor dgate_up; /* T [n, 2 f]; may be gate_up */
  hv_tensor y;        /* T [n, f], optional; may be dy */
} hv_swiglu_backward_args;

/* Rotary embedding (half-rotation layout) of q and k on the first `rotary_dim` dimensions of each head, and writing k
 * and v into a key-value cache:
 *   q_out[i] = rotate(q[i], positions[i]);  k_out[kv_rows[i]] = rotate(k[i], positions[i]);  v_out[kv_rows[i]] = v[i]
 * Absent operands are skipped, together with their results; without kv_rows, row i goes to row i. A result may be its
 * operand (then kv_rows is absent). `inverse` rotates the other way: that is the backward pass. */
typedef struct hv_rotary_args {
  hv_tensor q;         /* T [n, num_heads head_dim], optional */
  hv_tensor k;         /* T [n, num_kv_heads head_dim], optional */
  hv_tensor v;         /* T [n, num_kv_heads head_dim], optional */
  hv_tensor positions; /* I32 [1, n] */
  hv_tensor cos_sin;   /* S [max_positions, rotary_dim]: cosines, then sines, of position · frequency */
  hv_tensor kv_rows;   /* I32 [1, n], optional */
  int32_t head_dim;
  bool inverse;
  hv_tensor q_out, k_out, v_out;
} hv_rotary_args;

/* A contiguous run of queries and the keys that they see: all prefix rows, and of the segment's own rows all, or if
 * causal those up to the query itself, where the last query is aligned with the last own row. So query i of a causal
 * segment sees prefix_rows + own_rows − q_rows + i + 1 keys. The tokens of an image, a sample's prefix, a branch that
 * shares it, and new tokens over a key-value cache are all segments. */
typedef struct hv_segment {
  int32_t q_start, q_rows;           /* rows of q, out */
  int32_t prefix_start, prefix_rows; /* rows of k, v */
  int32_t own_start, own_rows;       /* rows of k, v; own_rows >= q_rows where causal */
} hv_segment;

/* For the backward pass: a contiguous run of keys, and the segments that see it, [first_segment, first_segment +
 * segment_count). A segment sees it as its own rows if own_start == key_start and own_rows == key_rows, else as its
 * prefix.
 */
typedef struct hv_key_group {
  int32_t key_start, key_rows;
  int32_t first_segment, segment_count;
} hv_key_group;

enum { HV_MAX_HEAD_DIM = 256 };

/* out = softmax(scale · q kᵀ) v for each head of 1 to HV_MAX_HEAD_DIM elements; query head h reads key head h /
 * (num_heads / num_kv_heads). Query rows in no segment are left untouched. A segment without queries (q_rows 0) is
 * skipped. */
typedef struct hv_attention_args {
  hv_tensor q;        /* T [nq, num_heads head_dim] */
  hv_tensor k, v;     /* T [nk, num_kv_heads head_dim] */
  hv_tensor segments; /* I32 [segments, 6]: hv_segment */
  int32_t num_heads, num_kv_heads, head_dim;
  int32_t max_q_rows;   /* of any segment: sizes the launch */
  int32_t max_key_rows; /* prefix_rows + own_rows of any segment, at most */
  bool causal;
  bool uniform; /* segment i has rows [i max_q_rows, (i + 1) max_q_rows) of q and, as its own, of k and v, and no
                   prefix; not causal. A device may use what it then knows of the table. */
  double scale;
  hv_tensor out; /* T [nq, num_heads head_dim] */
  hv_tensor lse; /* S [nq, num_heads], optional: log Σ exp(scale q·k), for the backward pass */
} hv_attention_args;

/* Every key row is in exactly one key group; dk and dv rows of a group without segments become 0. With cos_sin, q and k
 * are results of hv_rotary over whole heads, and dq and dk are the gradients of its inputs: they are rotated back
 * before they are stored. */
typedef struct hv_attention_backward_args {
  hv_tensor q, k, v, out, lse; /* as in the forward pass */
  hv_tensor dout;              /* T [nq, num_heads head_dim] */
  hv_tensor segments;          /* I32 [segments, 6] */
  hv_tensor key_groups;        /* I32 [groups, 4]: hv_key_group */
  int32_t num_heads, num_kv_heads, head_dim;
  int32_t max_q_rows, max_key_rows; /* as in the forward pass */
  int32_t max_group_rows;           /* key_rows of any group, at most */
  bool causal;
  double scale;
  hv_tensor cos_sin;                  /* as of hv_rotary, [max_positions, head_dim], optional */
  hv_tensor q_positions, k_positions; /* I32 [1, nq] and [1, nk], present exactly if cos_sin is */
  hv_tensor row_dot;                  /* S [nq, num_heads]: scratch for out·dout */
  hv_tensor dq, dk, dv; /* T, shapes of q, k, v; may not alias them; dq rows in no segment are undefined */
} hv_attention_backward_args;

/* dst[dst_rows[i]] = src[src_rows[i]] for i < count, converted to dst's dtype; an absent list is 0, 1, 2, … */
typedef struct hv_gather_rows_args {
  hv_tensor src;      /* T [*, d] */
  hv_tensor src_rows; /* I32 [1, count], optional */
  hv_tensor dst;      /* F32, BF16 or F64 [*, d] */
  hv_tensor dst_rows; /* I32 [1, count], optional; no row twice */
  int64_t count;
} hv_gather_rows_args;

/* dst[dst_rows[j]] += Σ src[src_rows[i]], i from offsets[j] to offsets[j + 1] − 1, in that order. No dst row twice. */
typedef struct hv_scatter_add_rows_args {
  hv_tensor src;      /* T [*, d] */
  hv_tensor src_rows; /* I32 [1, *] */
  hv_tensor offsets;  /* I32 [1, count + 1] */
  hv_tensor dst_rows; /* I32 [1, count] */
  hv_tensor dst;      /* T or F32 [*, d] */
} hv_scatter_add_rows_args;

/* Image bytes to normalised patches: y[(image, patch), (channel, py, px)] = (byte / 255 − mean[c]) / std[c], patches
 * row by row; columns in the order of a convolution weight [out, 3, patch, patch]. */
typedef struct hv_patchify_args {
  hv_tensor images; /* U8 [images, image_size image_size 3]: RGB, channel last */
  int32_t image_size, patch_size;
  double mean[3], std[3];
  hv_tensor y; /* T [images (image_size / patch_size)², 3 patch_size²] */
} hv_patchify_args;

/* Tokens of a vision tower, image by image: class token, register tokens, patches. Position embeddings are added to
 * the patches; with one row more than patches, the first row is added to the class token. */
typedef struct hv_vit_embed_args {
  hv_tensor patches;   /* T [images P, d] */
  hv_tensor cls_token; /* T [1, d], optional */
  hv_tensor reg_token; /* T [r, d], optional */
  hv_tensor pos_embed; /* T [P or P + 1, d] */
  int64_t images;
  hv_tensor y; /* T [images (c + r + P), d], c = 1 with a class token, else 0 */
} hv_vit_embed_args;

typedef struct hv_vit_embed_backward_args {
  hv_tensor dy;         /* T [images (c + r + P), d] */
  hv_tensor dpatches;   /* T [images P, d] */
  hv_tensor dcls_token; /* G [1, d], optional */
  hv_tensor dreg_token; /* G [r, d], optional */
  hv_tensor dpos_embed; /* G [P or P + 1, d], optional */
  int64_t images;
  int64_t prefix_tokens; /* c + r; c = 1 exactly if has_cls_token */
  bool has_cls_token;
  bool cls_has_position; /* pos_embed has P + 1 rows */
} hv_vit_embed_backward_args;

/* y[i] = [cos(t f_0) … cos(t f_{h−1}) sin(t f_0) … ], h = cols / 2, f_j = exp(−ln(10000) j / h), t = timesteps[i] */
typedef struct hv_sinusoid_args {
  hv_tensor timesteps; /* I32 [1, n] */
  hv_tensor y;         /* T [n, cols], cols even */
} hv_sinusoid_args;

/* y[r] = sqrt(ab) actions[r / branches] + sqrt(1 − ab) noise[r],  ab = alpha_bar[timesteps[r]] */
typedef struct hv_q_sample_args {
  hv_tensor actions;   /* S [b, m] */
  hv_tensor noise;     /* S [b branches, m] */
  hv_tensor timesteps; /* I32 [1, b branches] */
  hv_tensor alpha_bar; /* S [1, steps] */
  int32_t branches;
  hv_tensor y; /* T [b branches, m] */
} hv_q_sample_args;

/* One step of a sampler, DDIM or DDPM: x = coefficients[0] x + coefficients[1] eps + coefficients[2] noise */
typedef struct hv_sampler_step_args {
  hv_tensor eps;          /* T or F32 [n, m]: the predicted noise */
  hv_tensor noise;        /* F32 [n, m], optional */
  hv_tensor coefficients; /* F32 [1, 3] */
  hv_tensor x;            /* F32 [n, m], changed in place */
  hv_tensor x_cast;       /* T [n, m], optional: receives x rounded to T, the network's next input */
} hv_sampler_step_args;

/* loss += Σ mask (pred − noise)² / divisor;  dpred = weight · 2 mask (pred − noise) / divisor */
typedef struct hv_diffusion_loss_args {
  hv_tensor pred;    /* T or F32 [n, a] */
  hv_tensor noise;   /* S [n, a] */
  hv_tensor mask;    /* F32 [1, n], optional: 1 or 0 for each row */
  hv_tensor divisor; /* F32 [1, 1]: unmasked values in the global batch, > 0 */
  double weight;
  hv_tensor loss;  /* S [1, 1], added to */
  hv_tensor dpred; /* T [n, a], optional; may be pred where the dtypes agree */
} hv_diffusion_loss_args;

/* loss += Σ (lse(logits) − logits[label]) / divisor;  dlogits = weight (softmax − onehot) / divisor */
typedef struct hv_cross_entropy_args {
  hv_tensor logits;  /* T or F32 [n, vocabulary] */
  hv_tensor labels;  /* I32 [1, n] */
  hv_tensor divisor; /* F32 [1, 1]: labels in the global batch, > 0 */
  double weight;
  hv_tensor loss;    /* S [1, 1], added to */
  hv_tensor dlogits; /* T [n, vocabulary], optional; may be logits where the dtypes agree */
} hv_cross_entropy_args;

/* ids[i] = first + the index of the largest of logits[i][first … first + count − 1], NaN left out (the lowest of
 * equals, 0 where all are NaN); probability[i] = softmax over all of logits[i], at ids[i] */
typedef struct hv_best_of_range_args {
  hv_tensor logits; /* T or F32 [n, vocabulary] */
  int32_t first, count;
  hv_tensor ids;         /* I32 [1, n] */
  hv_tensor probability; /* F32 [1, n] */
} hv_best_of_range_args;

/* y[r][e] = hv_random_normal(seed, domain, step, samples[r / branches], r % branches, e); core/base/random.h */
typedef struct hv_draw_normal_args {
  hv_tensor seed_step; /* I64 [1, 2]: seed, step */
  hv_tensor samples;   /* I64 [1, n / branches]: global sample indices */
  int32_t branches;
  int32_t domain; /* hv_random_domain */
  hv_tensor y;    /* F32 (or F64, from the same floats) [n, m] */
} hv_draw_normal_args;

/* y[r] = hv_random_below(seed, domain, step, samples[r / branches], r % branches, 0, limit) */
typedef struct hv_draw_below_args {
  hv_tensor seed_step; /* I64 [1, 2] */
  hv_tensor samples;   /* I64 [1, n / branches] */
  int32_t branches;
  int32_t domain;
  int32_t limit;
  hv_tensor y; /* I32 [1, n] */
} hv_draw_below_args;

/* dst = src, converted to dst's dtype; F32, BF16 or F64 [n, d] both */
typedef struct hv_convert_args {
  hv_tensor src, dst;
} hv_convert_args;

typedef struct hv_fill_args {
  hv_tensor dst; /* any dtype, [n, d] */
  double value;
} hv_fill_args;

/* y += Σ x², in a fixed tree */
typedef struct hv_sum_squares_args {
  hv_tensor x; /* T or F32 [1, n] */
  hv_tensor y; /* S [1, 1] */
} hv_sum_squares_args;

/* norm = sqrt(sum_squares); dynamic[3] = min(1, max_norm / (norm + 1e-6)) as PyTorch clips, 1 where max_norm is 0, and
 * −1 (skip the update) where norm is not finite. */
typedef struct hv_clip_factor_args {
  hv_tensor sum_squares; /* S [1, 1] */
  double max_norm;
  hv_tensor norm;    /* S [1, 1] */
  hv_tensor dynamic; /* S [1, 5]: see hv_adamw_args */
} hv_clip_factor_args;

/* AdamW on one parameter group (decoupled weight decay, PyTorch's order of operations), n elements:
 *   g = dynamic[3] grad;  m = β1 m + (1 − β1) g;  v = β2 v + (1 − β2) g²
 *   p = p (1 − lr · weight_decay) − lr (m / dynamic[1]) / (sqrt(v / dynamic[2]) + eps),  lr = rate · dynamic[0]
 * Only elements inside `ranges` change; a range holds their learning-rate factor, and whether weight decay applies.
 * dynamic[3] < 0: nothing changes. BF16 parameters carry a signed remainder each: the master value's bits are (bf16
 * bits << 16) + remainder. The bf16 value is the master rounded to nearest, halves away from zero: so the remainder
 * always fits 16 bits. Moments may be held in 8 bits (moments.h): codes and a scale for each block, those of elements
 * outside the ranges being 0. */
typedef struct hv_adamw_range {
  int64_t first, end; /* elements */
  int32_t decay;      /* 1: weight decay applies */
  float rate;         /* factor on the learning rate */
} hv_adamw_range;

typedef struct hv_adamw_args {
  hv_tensor param;                        /* T [1, n] */
  hv_tensor remainder;                    /* I16 [1, n], present exactly if T is BF16 */
  hv_tensor grad;                         /* G [1, n] */
  hv_tensor moment1;                      /* S [1, n], or I8 [1, n]: codes; n is then a multiple of HV_MOMENT_BLOCK */
  hv_tensor moment2;                      /* S [1, n], or U8 [1, n] with them */
  hv_tensor moment1_scale, moment2_scale; /* F32 [1, n / HV_MOMENT_BLOCK], present exactly if moments are codes */
  hv_tensor ranges;                       /* I64 [ranges, 3]: hv_adamw_range, ascending, disjoint */
  hv_tensor dynamic; /* S [1, 5]: learning rate, 1 − β1^t, 1 − β2^t, gradient factor, t (modulo 2²⁴) */
  double beta1, beta2, eps, weight_decay;
} hv_adamw_args;

/* A moving average of master values: average += weight (p − average), where p is the parameter's master value, as in
 * adamw. factor < 0: nothing changes. */
typedef struct hv_average_args {
  hv_tensor param;     /* T [1, n] */
  hv_tensor remainder; /* I16 [1, n], present exactly if T is BF16 */
  hv_tensor average;   /* S [1, n] */
  hv_tensor weight;    /* S [1, 1] */
  hv_tensor factor;    /* S [1, 1]: dynamic[3] of adamw */
} hv_average_args;

/* Swaps parameters and averages, to the bit: doing it twice restores both. */
typedef struct hv_exchange_args {
  hv_tensor param;     /* T [1, n] */
  hv_tensor remainder; /* I16 [1, n], present exactly if T is BF16 */
  hv_tensor average;   /* S [1, n] */
} hv_exchange_args;

/* Every operation once; tables, wrappers, the plan device and recorders are made from this list. */
#define HV_OPS(X)                                                                                                      \
  X(linear)                                                                                                            \
  X(linear_backward_input)                                                                                             \
  X(linear_backward_weight)                                                                                            \
  X(activation_backward)                                                                                               \
  X(norm)                                                                                                              \
  X(norm_backward)                                                                                                     \
  X(residual_add)                                                                                                      \
  X(residual_scale_backward)                                                                                           \
  X(swiglu)                                                                                                            \
  X(linear_swiglu)                                                                                                     \
  X(swiglu_backward)                                                                                                   \
  X(rotary)                                                                                                            \
  X(attention)                                                                                                         \
  X(attention_backward)                                                                                                \
  X(gather_rows)                                                                                                       \
  X(scatter_add_rows)                                                                                                  \
  X(patchify)                                                                                                          \
  X(vit_embed)                                                                                                         \
  X(vit_embed_backward)                                                                                                \
  X(sinusoid)                                                                                                          \
  X(q_sample)                                                                                                          \
  X(sampler_step)                                                                                                      \
  X(diffusion_loss)                                                                                                    \
  X(cross_entropy)                                                                                                     \
  X(best_of_range)                                                                                                     \
  X(draw_normal)                                                                                                       \
  X(draw_below)                                                                                                        \
  X(convert)                                                                                                           \
  X(fill)                                                                                                              \
  X(sum_squares)                                                                                                       \
  X(clip_factor)                                                                                                       \
  X(adamw)                                                                                                             \
  X(average)                                                                                                           \
  X(exchange)

#define HV_OP_MEMBER(name) void (*name)(hv_stream * stream, const hv_##name##_args *args);
typedef struct hv_op_table {
  HV_OPS(HV_OP_MEMBER)
} hv_op_table;
#undef HV_OP_MEMBER

/* hv_linear(stream, &(hv_linear_args){…}) and its like: queues one operation on the stream's device. */
#define HV_OP_CALL(name)                                                                                               \
  static inline void hv_##name(hv_stream *stream, const hv_##name##_args *args) {                                      \
    stream->device->ops->name(stream, args);                                                                           \
  }
HV_OPS(HV_OP_CALL)
#undef HV_OP_CALL

/* Checks the operands of one operation: presence, dtypes, shapes, aliasing that is not allowed. HV_ERR_INTERNAL names
 * the operation and the operand. For devices, which check every call. */
#define HV_OP_CHECK(name) HV_NODISCARD hv_status hv_check_##name(const hv_##name##_args *args);
HV_OPS(HV_OP_CHECK)
#undef HV_OP_CHECK

#ifdef __cplusplus
}
#endif

#endif
