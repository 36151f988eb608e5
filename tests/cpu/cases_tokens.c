/* Cases of gathering and scattering rows, patches, vision tokens and conversions (op_cases.h), against plain loops. */
#include <math.h>

#include "tests/check.h"
#include "tests/cpu/op_cases.h"

/* `count` different numbers of 0 … total − 1 in random order. */
static int32_t *distinct(op_env *env, int64_t count, int64_t total) {
  int32_t *all = (int32_t *)op_array(env, total);
  for (int32_t i = 0; i < total; i++) all[i] = i;
  for (int64_t i = 0; i < count; i++) {
    int64_t other = i + op_below(env, total - i);
    int32_t value = all[i];
    all[i] = all[other];
    all[other] = value;
  }
  return all;
}

static void gather_rows(op_env *env) {
  int64_t src_rows = op_size(env), count = op_size(env), d = op_width(env, count), extra = op_below(env, 4);
  bool to_list = op_coin(env), from_list = count > src_rows || op_coin(env);
  int32_t *from = (int32_t *)op_array(env, count), *to = distinct(env, count, count + extra);
  for (int32_t i = 0; i < count; i++) from[i] = from_list ? (int32_t)op_below(env, src_rows) : i;
  for (int32_t i = 0; i < count && !to_list; i++) to[i] = i;
  op_operand src = op_random(env, OP_T, src_rows, d, 1, 0), dst = op_random(env, OP_T_OR_F32, count + extra, d, 1, 0);
  op_operand from_rows = from_list ? op_ints(env, 1, count, from) : op_absent();
  op_operand to_rows = to_list ? op_ints(env, 1, count, to) : op_absent();
  double *expected = op_array(env, (count + extra) * d);
  memcpy(expected, dst.host, (size_t)((count + extra) * d) * sizeof *expected);
  for (int64_t i = 0; i < count; i++) {
    memcpy(expected + to[i] * d, src.host + from[i] * d, (size_t)d * sizeof *expected);
  }
  OP_RUN(env, gather_rows, .src = src.at[side], .src_rows = from_rows.at[side], .dst = dst.at[side],
         .dst_rows = to_rows.at[side], .count = count);
  op_compare_within(env, "dst", &dst, expected, 0);
}

static void scatter_add_rows(op_env *env) {
  int64_t src_rows = op_size(env), count = op_size(env), d = op_width(env, count), dst_rows = count + op_below(env, 4);
  int32_t *offsets = (int32_t *)op_array(env, count + 1), *from = (int32_t *)op_array(env, 6 * count);
  int32_t *to = distinct(env, count, dst_rows);
  for (int64_t j = 0; j < count; j++) {
    offsets[j + 1] = offsets[j] + (int32_t)op_below(env, 6);
    for (int32_t i = offsets[j]; i < offsets[j + 1]; i++) from[i] = (int32_t)op_below(env, src_rows);
  }
  op_operand src = op_random(env, OP_T, src_rows, d, 1, 0), dst = op_random(env, OP_T_OR_F32, dst_rows, d, 1, 0);
  op_operand from_rows = op_ints(env, 1, 6 * count, from), offset_list = op_ints(env, 1, count + 1, offsets);
  op_operand to_rows = op_ints(env, 1, count, to);
  double *expected = op_array(env, dst_rows * d);
  memcpy(expected, dst.host, (size_t)(dst_rows * d) * sizeof *expected);
  for (int64_t j = 0; j < count; j++) {
    for (int32_t i = offsets[j]; i < offsets[j + 1]; i++) {
      for (int64_t c = 0; c < d; c++) expected[to[j] * d + c] += src.host[from[i] * d + c];
    }
  }
  OP_RUN(env, scatter_add_rows, .src = src.at[side], .src_rows = from_rows.at[side], .offsets = offset_list.at[side],
         .dst_rows = to_rows.at[side], .dst = dst.at[side]);
  op_compare(env, "dst", &dst, expected);
}

static void patchify(op_env *env) {
  int64_t patch = 1 + op_below(env, 14), side_patches = 1 + op_below(env, 5), size = patch * side_patches;
  int64_t images = 1 + op_below(env, 3), patches = side_patches * side_patches, cols = 3 * patch * patch;
  double mean[3] = {0.485, 0.456, 0.406}, std[3] = {0.229, 0.224, 0.225};
  op_operand bytes = op_bytes(env, images, size * size * 3), y = op_result(env, OP_T, images * patches, cols);
  double *expected = op_array(env, images * patches * cols);
  for (int64_t row = 0; row < images * patches; row++) {
    int64_t image = row / patches, top = row % patches / side_patches * patch, left = row % side_patches * patch;
    for (int64_t col = 0; col < cols; col++) {
      int64_t channel = col / (patch * patch), py = col / patch % patch, px = col % patch;
      double byte = bytes.host[((image * size + top + py) * size + left + px) * 3 + channel];
      expected[row * cols + col] = (byte / 255 - mean[channel]) / std[channel];
    }
  }
  OP_RUN(env, patchify, .images = bytes.at[side], .image_size = (int32_t)size, .patch_size = (int32_t)patch,
         .mean = {mean[0], mean[1], mean[2]}, .std = {std[0], std[1], std[2]}, .y = y.at[side]);
  op_compare(env, "y", &y, expected);
}

/* The numbers that shape a vision tower's tokens. */
typedef struct tokens {
  int64_t images, patches, registers, d;
  int64_t cls, cls_position; /* 0 or 1 */
} tokens;

static tokens random_tokens(op_env *env) {
  tokens t = {.images = 1 + op_below(env, 3), .patches = 1 + op_below(env, 40)};
  t.d = op_width(env, t.patches);
  t.registers = op_coin(env) ? 1 + op_below(env, 4) : 0;
  t.cls = op_below(env, 4) > 0;
  t.cls_position = t.cls ? op_below(env, 2) : 0;
  return t;
}

static void vit_embed(op_env *env) {
  tokens t = random_tokens(env);
  int64_t d = t.d, prefix = t.cls + t.registers, rows = prefix + t.patches;
  op_operand patches = op_random(env, OP_T, t.images * t.patches, d, 1, 0);
  op_operand cls = t.cls ? op_random(env, OP_T, 1, d, 1, 0) : op_absent();
  op_operand registers = t.registers ? op_random(env, OP_T, t.registers, d, 1, 0) : op_absent();
  op_operand position = op_random(env, OP_T, t.patches + t.cls_position, d, 1, 0);
  op_operand y = op_result(env, OP_T, t.images * rows, d);
  double *expected = op_array(env, t.images * rows * d);
  for (int64_t i = 0; i < t.images * rows * d; i++) {
    int64_t image = i / d / rows, token = i / d % rows, c = i % d;
    if (token < t.cls) {
      expected[i] = cls.host[c] + (t.cls_position ? position.host[c] : 0);
    } else if (token < prefix) {
      expected[i] = registers.host[(token - t.cls) * d + c];
    } else {
      int64_t patch = token - prefix;
      expected[i] = patches.host[(image * t.patches + patch) * d + c] + position.host[(patch + t.cls_position) * d + c];
    }
  }
  OP_RUN(env, vit_embed, .patches = patches.at[side], .cls_token = cls.at[side], .reg_token = registers.at[side],
         .pos_embed = position.at[side], .images = t.images, .y = y.at[side]);
  op_compare(env, "y", &y, expected);
}

static void vit_embed_backward(op_env *env) {
  tokens t = random_tokens(env);
  int64_t d = t.d, prefix = t.cls + t.registers, rows = prefix + t.patches, positions = t.patches + t.cls_position;
  op_operand dy = op_random(env, OP_T, t.images * rows, d, 1, 0);
  op_operand dpatches = op_result(env, OP_T, t.images * t.patches, d);
  op_operand dcls = t.cls ? op_random(env, OP_T_OR_F32, 1, d, 1, 0) : op_absent();
  op_operand dregisters = t.registers ? op_random(env, OP_T_OR_F32, t.registers, d, 1, 0) : op_absent();
  op_operand dposition = op_below(env, 4) > 0 ? op_random(env, OP_T_OR_F32, positions, d, 1, 0) : op_absent();
  double *patch_sum = op_array(env, t.images * t.patches * d), *cls_sum = op_array(env, d);
  double *register_sum = op_array(env, t.registers * d), *position_sum = op_array(env, positions * d);
  if (dcls.host) memcpy(cls_sum, dcls.host, (size_t)d * sizeof *cls_sum);
  if (dregisters.host) memcpy(register_sum, dregisters.host, (size_t)(t.registers * d) * sizeof *register_sum);
  if (dposition.host) memcpy(position_sum, dposition.host, (size_t)(positions * d) * sizeof *position_sum);
  for (int64_t i = 0; i < t.images * rows * d; i++) {
    int64_t image = i / d / rows, token = i / d % rows, c = i % d, patch = token - prefix;
    double value = dy.host[i];
    if (token < t.cls) cls_sum[c] += value;
    if (token < t.cls && t.cls_position) position_sum[c] += value;
    if (token >= t.cls && token < prefix) register_sum[(token - t.cls) * d + c] += value;
    if (patch < 0) continue;
    patch_sum[(image * t.patches + patch) * d + c] = value;
    position_sum[(patch + t.cls_position) * d + c] += value;
  }
  OP_RUN(env, vit_embed_backward, .dy = dy.at[side], .dpatches = dpatches.at[side], .dcls_token = dcls.at[side],
         .dreg_token = dregisters.at[side], .dpos_embed = dposition.at[side], .images = t.images,
         .prefix_tokens = prefix, .has_cls_token = t.cls == 1, .cls_has_position = t.cls_position == 1);
  op_compare(env, "dpatches", &dpatches, patch_sum);
  if (dcls.host) op_compare(env, "dcls_token", &dcls, cls_sum);
  if (dregisters.host) op_compare(env, "dreg_token", &dregisters, register_sum);
  if (dposition.host) op_compare(env, "dpos_embed", &dposition, position_sum);
}

static void sinusoid(op_env *env) {
  int64_t n = op_size(env), half = op_width(env, n);
  int32_t *timesteps = (int32_t *)op_array(env, n);
  for (int64_t i = 0; i < n; i++) timesteps[i] = (int32_t)op_below(env, 100);
  op_operand list = op_ints(env, 1, n, timesteps), y = op_result(env, OP_T, n, 2 * half);
  double *expected = op_array(env, n * 2 * half);
  for (int64_t i = 0; i < n * half; i++) {
    int64_t row = i / half, j = i % half;
    double angle = timesteps[row] * pow(10000, -(double)j / (double)half);
    expected[row * 2 * half + j] = cos(angle);
    expected[row * 2 * half + half + j] = sin(angle);
  }
  OP_RUN(env, sinusoid, .timesteps = list.at[side], .y = y.at[side]);
  op_compare(env, "y", &y, expected);
}

static void convert(op_env *env) {
  int64_t n = op_size(env), d = op_width(env, n);
  op_operand src = op_random(env, OP_T_OR_F32, n, d, 1, 0), dst = op_result(env, OP_T_OR_F32, n, d);
  OP_RUN(env, convert, .src = src.at[side], .dst = dst.at[side]);
  op_compare(env, "dst", &dst, src.host);
}

static void fill(op_env *env) {
  int64_t n = op_size(env), d = op_width(env, n);
  double value = op_coin(env) ? 0 : op_normal(env);
  op_operand dst = op_result(env, OP_T_OR_F32, n, d), list = op_int_result(env, 1, d);
  double *expected = op_array(env, n * d), *sevens = op_array(env, d);
  for (int64_t i = 0; i < n * d; i++) expected[i] = value;
  for (int64_t i = 0; i < d; i++) sevens[i] = -7;
  OP_RUN(env, fill, .dst = dst.at[side], .value = value);
  OP_RUN(env, fill, .dst = list.at[side], .value = -7);
  op_compare(env, "dst", &dst, expected);
  op_compare_within(env, "integers", &list, sevens, 0);
}

const op_case op_token_cases[] = {
    {"gather_rows", gather_rows},
    {"scatter_add_rows", scatter_add_rows},
    {"patchify", patchify},
    {"vit_embed", vit_embed},
    {"vit_embed_backward", vit_embed_backward},
    {"sinusoid", sinusoid},
    {"convert", convert},
    {"fill", fill},
    {NULL, NULL},
};
