/* Elementary functions that vectorise: branch-free polynomials for float, within about 2 ulp where not said otherwise,
 * and the C library's for double. */
#ifndef HV_CPU_VECTOR_MATH_H
#define HV_CPU_VECTOR_MATH_H

#include <math.h>

#include "core/cpu/kernel.h"

/* Loops vectorise only over what is inlined, and some compilers find these too long. */
#define HV_INLINED static inline __attribute__((always_inline))

#ifdef HV_CPU_DOUBLE

HV_INLINED real real_exp(real x) {
  return exp(x);
}
HV_INLINED real real_log(real x) {
  return log(x);
}
HV_INLINED real real_sqrt(real x) {
  return sqrt(x);
}
/* Φ(x), the normal distribution. */
HV_INLINED real real_normal_cdf(real x) {
  return 0.5 * erfc(-x * 0.70710678118654752440);
}

#else

/* exp: x = n log 2 + r with |r| <= log 2 / 2, exp(r) by a polynomial, times 2^n in two steps that cannot overflow
 * before the result does. 0 below −87.3, where the result would be subnormal. */
HV_INLINED real real_exp(real x) {
  real clamped = x < -87.3f ? -87.3f : (x > 89.0f ? 89.0f : x);
  real shifted = clamped * 0x1.715476p+0f + 0x1.8p+23f; /* the integer n in the low bits */
  real n = shifted - 0x1.8p+23f;
  real r = clamped - n * 0x1.63p-1f + n * 0x1.bd0106p-13f;
  real p = 0x1.6d4926p-10f;
  p = p * r + 0x1.121072p-7f;
  p = p * r + 0x1.5554e4p-5f;
  p = p * r + 0x1.5554d8p-3f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  int32_t bits = (int32_t)n;
  int32_t half = bits >> 1;
  uint32_t low_bits = (uint32_t)(half + 127) << 23, high_bits = (uint32_t)(bits - half + 127) << 23; /* of NaN too */
  real low, high;
  memcpy(&low, &low_bits, sizeof low);
  memcpy(&high, &high_bits, sizeof high);
  real result = p * low * high;
  return x < -87.3f ? 0.0f : result;
}

HV_INLINED real real_log(real x) {
  return logf(x);
}
HV_INLINED real real_sqrt(real x) {
  return sqrtf(x);
}

/* With t = |x| / sqrt 2: an odd polynomial for erf below 1, exp of a polynomial for erfc above. The lower tail keeps
 * its relative accuracy down to x = −8.4, where it becomes 0. */
HV_INLINED real real_normal_cdf(real x) {
  real t = fabsf(x) * 0x1.6a09e6p-1f;
  real s = t * t;
  real p = 0x1.4a9dacp-14f;
  p = p * s - 0x1.a46b4p-11f;
  p = p * s + 0x1.541636p-8f;
  p = p * s - 0x1.b7fb38p-6f;
  p = p * s + 0x1.ce2d18p-4f;
  p = p * s - 0x1.81273ep-2f;
  p = p * s + 0x1.20dd74p+0f;
  real half_erf = 0.5f * t * p;
  real u = t > 6.0f ? 6.0f : t;
  real q = 0x1.8ec256p-28f;
  q = q * u - 0x1.338e2ep-22f;
  q = q * u + 0x1.b09176p-18f;
  q = q * u - 0x1.70c4aep-14f;
  q = q * u + 0x1.abe572p-11f;
  q = q * u - 0x1.684124p-8f;
  q = q * u + 0x1.cb8c18p-6f;
  q = q * u - 0x1.cc79p-4f;
  q = q * u - 0x1.426aep-1f;
  q = q * u - 0x1.219d2ap+0f;
  q = q * u + 0x1.22d2ccp-11f;
  real half_erfc = t > 6.0f ? 0.0f : 0.5f * real_exp(q);
  real lower = t < 1.0f ? 0.5f - half_erf : half_erfc;
  return x < 0 ? lower : 1.0f - lower;
}

#endif

HV_INLINED real real_sigmoid(real x) {
  return 1 / (1 + real_exp(-x));
}

/* Density of the normal distribution. */
HV_INLINED real real_normal_density(real x) {
  return (real)0.39894228040143267794 * real_exp((real)-0.5 * x * x);
}

#endif
