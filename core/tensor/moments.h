/* AdamW's moments in 8 bits. As in Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861),
 * every run of HV_MOMENT_BLOCK elements has a scale of its own, so that a large value spoils its neighbours alone, and
 * codes lie closer together near 0:
 *
 *   m = scale₁ sign(c) (c / 127)²,  −127 <= c <= 127;   sqrt(v) = scale₂ (c / 255)²,  0 <= c <= 255
 *
 * with the largest |m| and the largest sqrt(v) of the block as scales. Squares replace the paper's table of 256 values:
 * encoding takes a square root instead of a search. Two traps are avoided:
 * - A v that became 0 beside an m that did not would make a step of m / eps (Li et al., "Memory Efficient Optimizers
 * with 4-bit States", arXiv 2309.01507, section 4.1). Code 0 is kept for v = 0; a smaller v than code 1 is raised to
 * it.
 * - An update that moves a moment by less than half a code's width is lost each time by rounding to nearest: that of v,
 *   which β2 = 0.999 moves by a thousandth, and that of an m small in its block, which would never decay beside a v
 *   that does (from code 9 down, at β1 = 0.9). So codes are dithered: the closer a value lies to the upper code, the
 *   more often it is rounded up. The dither is a Weyl sequence (multiples of the golden ratio modulo 1) in the number
 *   of the update, shifted for each element of the block; it depends on nothing else, so that a run repeats, and
 *   resumes, exactly. An element's m and v share one dither value, which disturbs their ratio least.
 * C and CUDA include this header. */
#ifndef HV_TENSOR_MOMENTS_H
#define HV_TENSOR_MOMENTS_H

#include <math.h>
#include <stdint.h>

#include "core/base/host_device.h"

enum { HV_MOMENT_BLOCK = 256 };

/* The dither of an element's codes, in [0, 1); `element` counts from the block's start. */
HV_HOST_DEVICE static inline float hv_moment_dither(uint32_t update, uint32_t element) {
  uint32_t turn = update * 0x9E3779B9u + element * 0x85EBCA6Bu;
  return (float)(turn >> 8) * 0x1p-24f;
}

HV_HOST_DEVICE static inline float hv_moment1_decode(int8_t code, float scale) {
  float root = (float)code * (1.0f / 127);
  return scale * (root * fabsf(root));
}

HV_HOST_DEVICE static inline int8_t hv_moment1_encode(float m, float scale, float dither) {
  if (scale == 0.0f) return 0;
  float square = 127.0f * 127.0f * (fabsf(m) / scale);
  int code = (int)sqrtf(square);
  float width = (float)(2 * code + 1), above = square - (float)(code * code);
  if (above + dither * width >= width) code++;
  if (code > 127) code = 127;
  return (int8_t)(m < 0.0f ? -code : code);
}

/* sqrt(v) */
HV_HOST_DEVICE static inline float hv_moment2_decode(uint8_t code, float scale) {
  float root = (float)code * (1.0f / 255);
  return scale * (root * root);
}

HV_HOST_DEVICE static inline uint8_t hv_moment2_encode(float root_v, float scale, float dither) {
  if (root_v == 0.0f || scale == 0.0f) return 0;
  int code = (int)(255.0f * sqrtf(root_v / scale) + dither);
  return (uint8_t)(code > 255 ? 255 : code < 1 ? 1 : code);
}

#endif
