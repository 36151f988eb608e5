/* Random draws as functions: the value at (seed, domain, step, sample, branch, element) never depends on the order of
 * drawing, on the number of ranks or threads, or on the device. Philox 4x32-10 (Salmon et al. 2011); C and CUDA include
 * this header and get the same bits: it uses + − × fma sqrt and its own polynomials only. Every sum of a product is
 * written as fmaf, so that nothing is left for a compiler to contract; keep it so, and compile without contraction all
 * the same (-ffp-contract=off, nvcc -fmad=false).
 *
 * (seed, domain, step) give a 64-bit key by one run of the cipher; under that key, (sample, branch, element / 4) is the
 * counter of a block of four words. A kernel that draws many numbers derives the key once and takes a block for four
 * neighbouring elements; the functions of six arguments do both for one element.
 */
#ifndef HV_BASE_RANDOM_H
#define HV_BASE_RANDOM_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/base/host_device.h"

/* What a number is drawn for. Values are part of the format of a run: a resumed run draws the same numbers, so an entry
 * is never renumbered. */
typedef enum hv_random_domain {
  HV_RANDOM_NOISE = 0,           /* training: eps of (sample, branch) */
  HV_RANDOM_TIMESTEP = 1,        /* training: t of (sample, branch) */
  HV_RANDOM_INIT = 2,            /* parameters of a fresh model; sample: hash of the name, element: of the parameter */
  HV_RANDOM_SHUFFLE = 3,         /* order of frames; step: epoch */
  HV_RANDOM_POLICY_NOISE = 4,    /* prediction: where the denoising chain starts */
  HV_RANDOM_POLICY_AR_NOISE = 5, /* prediction: x that the action tokens attend to */
  HV_RANDOM_POLICY_AR_TIMESTEP = 6, /* prediction: t that the action tokens attend to */
  HV_RANDOM_POLICY_STEP_NOISE = 7,  /* prediction: noise of DDPM steps; branch: timestep */
} hv_random_domain;

typedef struct hv_random_block {
  uint32_t word[4];
} hv_random_block;

/* Philox 4x32 with ten rounds. */
HV_HOST_DEVICE static inline hv_random_block hv_philox(hv_random_block counter, uint64_t key) {
  uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t product0 = (uint64_t)0xD2511F53u * counter.word[0];
    uint64_t product1 = (uint64_t)0xCD9E8D57u * counter.word[2];
    counter.word[0] = (uint32_t)(product1 >> 32) ^ counter.word[1] ^ key0;
    counter.word[1] = (uint32_t)product1;
    counter.word[2] = (uint32_t)(product0 >> 32) ^ counter.word[3] ^ key1;
    counter.word[3] = (uint32_t)product0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

HV_HOST_DEVICE static inline uint64_t hv_random_key(uint64_t seed, int domain, uint64_t step) {
  hv_random_block counter = {{(uint32_t)step, (uint32_t)(step >> 32), (uint32_t)domain, 0}};
  hv_random_block block = hv_philox(counter, seed);
  return (uint64_t)block.word[1] << 32 | block.word[0];
}

/* The words of elements 4 · quad … 4 · quad + 3. */
HV_HOST_DEVICE static inline hv_random_block hv_random_words(uint64_t key, uint64_t sample, uint32_t branch,
                                                             uint32_t quad) {
  hv_random_block counter = {{quad, branch, (uint32_t)sample, (uint32_t)(sample >> 32)}};
  return hv_philox(counter, key);
}

/* log(u) for u in [2^-33, 1], within 1 ulp: u = m 2^e with m in [sqrt(1/2), sqrt(2)), log(1 + f) by a polynomial. */
HV_HOST_DEVICE static inline float hv_random_log(float u) {
  uint32_t bits;
  memcpy(&bits, &u, sizeof bits);
  int32_t exponent = (int32_t)(bits - 0x3f3504f3u) >> 23;
  bits -= (uint32_t)exponent << 23;
  float m;
  memcpy(&m, &bits, sizeof m);
  float f = m - 1.0f, e = (float)exponent;
  float p = 0x1.24da9ap-4f;
  p = fmaf(p, f, -0x1.d9f4d6p-4f);
  p = fmaf(p, f, 0x1.dda7cep-4f);
  p = fmaf(p, f, -0x1.fc5b4cp-4f);
  p = fmaf(p, f, 0x1.23d6b6p-3f);
  p = fmaf(p, f, -0x1.555ed8p-3f);
  p = fmaf(p, f, 0x1.999d5p-3f);
  p = fmaf(p, f, -0x1.fffff2p-3f);
  p = fmaf(p, f, 0x1.555554p-2f);
  float square = f * f;
  /* log 2 in two parts, the first with few enough bits that e times it is exact. */
  float low = fmaf(e, -0x1.bd0106p-13f, fmaf(p * f, square, -0.5f * square));
  return fmaf(e, 0x1.63p-1f, f + low);
}

/* sqrt(−2 log u) at the angle of `turn` / 2^32 of a full turn: its cosine part and its sine part are two independent
 * normals. u is (radius + 1/2) / 2^32, so the tails reach 6.7. */
HV_HOST_DEVICE static inline void hv_random_box_muller(uint32_t radius, uint32_t turn, float *cosine, float *sine) {
  float length = sqrtf(-2.0f * hv_random_log(fmaf((float)radius, 0x1p-32f, 0x1p-33f)));
  /* The nearest quarter turn and, exactly, what is left: t in [−1/8, 1/8) turns. */
  uint32_t quarter = (turn + 0x20000000u) >> 30;
  float t = (float)(int32_t)(turn - (quarter << 30)) * 0x1p-32f;
  float s = t * t;
  float p = 0x1.4bc87cp+5f;
  p = fmaf(p, s, -0x1.32ca9ep+6f);
  p = fmaf(p, s, 0x1.466bbap+6f);
  p = fmaf(p, s, -0x1.4abbcep+5f);
  float sin_t = fmaf(p * s, t, 0x1.921fb6p+2f * t);
  float q = 0x1.db64dp+5f;
  q = fmaf(q, s, -0x1.55cb98p+6f);
  q = fmaf(q, s, 0x1.03c1eap+6f);
  q = fmaf(q, s, -0x1.3bd3ccp+4f);
  float cos_t = fmaf(q, s, 1.0f);
  float c = quarter & 1u ? sin_t : cos_t, d = quarter & 1u ? cos_t : sin_t;
  *cosine = (quarter + 1u) & 2u ? -(length * c) : length * c;
  *sine = quarter & 2u ? -(length * d) : length * d;
}

/* Four standard normals: those of elements 4 · quad … 4 · quad + 3. */
HV_HOST_DEVICE static inline void hv_random_normals(uint64_t key, uint64_t sample, uint32_t branch, uint32_t quad,
                                                    float out[4]) {
  hv_random_block block = hv_random_words(key, sample, branch, quad);
  hv_random_box_muller(block.word[0], block.word[1], &out[0], &out[1]);
  hv_random_box_muller(block.word[2], block.word[3], &out[2], &out[3]);
}

HV_HOST_DEVICE static inline float hv_random_normal(uint64_t seed, int domain, uint64_t step, uint64_t sample,
                                                    uint32_t branch, uint32_t element) {
  float quad[4];
  hv_random_normals(hv_random_key(seed, domain, step), sample, branch, element / 4u, quad);
  return quad[element % 4u];
}

/* Uniform in [0, 1), a multiple of 2^-24. */
HV_HOST_DEVICE static inline float hv_random_uniform(uint64_t seed, int domain, uint64_t step, uint64_t sample,
                                                     uint32_t branch, uint32_t element) {
  hv_random_block block = hv_random_words(hv_random_key(seed, domain, step), sample, branch, element / 4u);
  return (float)(block.word[element % 4u] >> 8) * 0x1p-24f;
}

/* One of 0 … limit − 1, limit > 0; the chances of two values differ by less than limit / 2^64. */
HV_HOST_DEVICE static inline uint32_t hv_random_below(uint64_t seed, int domain, uint64_t step, uint64_t sample,
                                                      uint32_t branch, uint32_t element, uint32_t limit) {
  hv_random_block block = hv_random_words(hv_random_key(seed, domain, step), sample, branch, element / 2u);
  uint32_t high = block.word[element % 2u * 2u], low = block.word[element % 2u * 2u + 1u];
  return (uint32_t)(((uint64_t)high * limit + ((uint64_t)low * limit >> 32)) >> 32);
}

#endif
