#include "core/cpu/tile_pack.h"

#include <immintrin.h>

/* 16 × 16 numbers of 32 bits. */
typedef struct square {
  __m512i row[16];
} square;

static inline __attribute__((always_inline)) void transpose(square *s) {
  __m512i t[16], *v = s->row;
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  /* v[i + c]: of each 128 bits, column c of rows i to i + 3 */
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    __m512i low_even = _mm512_shuffle_i32x4(v[c], v[4 + c], 0x88), low_odd = _mm512_shuffle_i32x4(v[c], v[4 + c], 0xdd);
    __m512i high_even = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0x88);
    __m512i high_odd = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0xdd);
    v[c] = _mm512_shuffle_i32x4(low_even, high_even, 0x88);
    v[4 + c] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
    v[8 + c] = _mm512_shuffle_i32x4(low_even, high_even, 0xdd);
    v[12 + c] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
  }
}

/* Masks of the first `count` of 16, or of 32, lanes. */
static inline __mmask16 first_of_16(int64_t count) {
  return count >= 16 ? 0xffff : (__mmask16)((1u << (count > 0 ? count : 0)) - 1);
}

static inline __mmask32 first_of_32(int64_t count) {
  return count >= 32 ? 0xffffffff : (__mmask32)((1u << count) - 1);
}

/* The nearest bf16 number, ties away from zero. */
static inline __m512 nearest(__m512 x) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000);
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), upper));
}

/* The same, except that no finite number becomes infinite. */
static inline __m512 nearest_finite(__m512 x) {
  enum { SMALLER_MAGNITUDE_SIGN_OF_FIRST = 2 };
  return _mm512_range_ps(nearest(x), _mm512_set1_ps(0x1.fep+127f), SMALLER_MAGNITUDE_SIGN_OF_FIRST);
}

/* The upper halves of the numbers of two vectors, interleaved. */
static inline __m512i side_by_side(__m512 low, __m512 high) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(low), 16),
                                 _mm512_castps_si512(high));
}

static inline void split(__m512 low, __m512 high, int row, hv_tile *to) {
  __m512 low_near = nearest_finite(low), high_near = nearest_finite(high);
  _mm512_store_si512(to[0].values[row], side_by_side(low_near, high_near));
  low = _mm512_sub_ps(low, low_near);
  high = _mm512_sub_ps(high, high_near);
  low_near = nearest(low);
  high_near = nearest(high);
  _mm512_store_si512(to[1].values[row], side_by_side(low_near, high_near));
  _mm512_store_si512(to[2].values[row], side_by_side(_mm512_sub_ps(low, low_near), _mm512_sub_ps(high, high_near)));
}

/* Rows of memory, `stride` elements apart: `lines` of up to 32 steps, or `steps` of up to 16 lines. */
typedef struct patch {
  const char *data;
  int64_t stride;
  int64_t lines, steps;
} patch;

/* The processor does not prefetch lines that lie far apart, so this does. */
enum { LINES_AHEAD = 32, CACHE_LINE = 64 };

static inline void fetch_ahead(const void *at, int cache_lines) {
  for (int i = 0; i < cache_lines; i++) _mm_prefetch((const char *)at + (ptrdiff_t)i * CACHE_LINE, _MM_HINT_T1);
}

/* Load steps 0 to 15 of the lines into `low` and steps 16 to 31 into `high`: load_lines one line a row, load_steps one
 * step a row. */
static inline void load_lines(const patch *p, square *low, square *high) {
  __mmask16 low_mask = first_of_16(p->steps), high_mask = first_of_16(p->steps - 16);
  const float *from = (const float *)p->data;
  for (int64_t i = 0; i < 16; i++) {
    bool there = i < p->lines;
    low->row[i] = _mm512_maskz_loadu_epi32(there ? low_mask : 0, from + i * p->stride);
    high->row[i] = _mm512_maskz_loadu_epi32(there ? high_mask : 0, from + i * p->stride + 16);
    fetch_ahead(from + (i + LINES_AHEAD) * p->stride, 2);
  }
}

static inline void load_steps(const patch *p, square *low, square *high) {
  __mmask16 mask = first_of_16(p->lines);
  const float *from = (const float *)p->data;
  for (int64_t i = 0; i < 16; i++) {
    low->row[i] = _mm512_maskz_loadu_epi32(i < p->steps ? mask : 0, from + i * p->stride);
    high->row[i] = _mm512_maskz_loadu_epi32(i + 16 < p->steps ? mask : 0, from + (i + 16) * p->stride);
  }
}

static void pack_f32(const patch *p, bool step_in_row, bool turn, hv_tile *to) {
  square low, high;
  if (step_in_row) {
    load_steps(p, &low, &high);
  } else {
    load_lines(p, &low, &high);
  }
  if (turn) {
    transpose(&low);
    transpose(&high);
  }
  for (int i = 0; i < 16; i++) split(_mm512_castsi512_ps(low.row[i]), _mm512_castsi512_ps(high.row[i]), i, to);
}

/* The same for what is stored as bf16: steps j and j + 16 side by side. */
static inline void load_bf16_lines(const patch *p, square *out) {
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __mmask32 mask = first_of_32(p->steps);
  const uint16_t *from = (const uint16_t *)p->data;
  for (int64_t i = 0; i < 16; i++) {
    __m512i line = _mm512_maskz_loadu_epi16(i < p->lines ? mask : 0, from + i * p->stride);
    out->row[i] = _mm512_permutexvar_epi16(pairs, line);
    fetch_ahead(from + (i + LINES_AHEAD) * p->stride, 1);
  }
}

static inline void load_bf16_steps(const patch *p, square *out) {
  __mmask16 mask = first_of_16(p->lines);
  const uint16_t *from = (const uint16_t *)p->data;
  for (int64_t i = 0; i < 16; i++) {
    __m256i low = _mm256_maskz_loadu_epi16(i < p->steps ? mask : 0, from + i * p->stride);
    __m256i high = _mm256_maskz_loadu_epi16(i + 16 < p->steps ? mask : 0, from + (i + 16) * p->stride);
    out->row[i] = _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  }
}

static void pack_bf16(const patch *p, bool step_in_row, bool turn, hv_tile *to) {
  square both;
  if (step_in_row) {
    load_bf16_steps(p, &both);
  } else {
    load_bf16_lines(p, &both);
  }
  if (turn) transpose(&both);
  for (int i = 0; i < 16; i++) _mm512_store_si512(to->values[i], both.row[i]);
}

void hv_tile_pack(const hv_tile_operand *operand, int64_t line, int64_t step, hv_tile *to) {
  const hv_tensor *t = operand->tensor;
  bool step_in_row = operand->lines_are_columns, turn = operand->left == step_in_row;
  int64_t row = step_in_row ? step : line, col = step_in_row ? line : step;
  patch p = {.stride = t->row_stride};
  p.lines = (step_in_row ? t->cols : t->rows) - line;
  p.steps = (step_in_row ? t->rows : t->cols) - step;
  p.data = (const char *)t->data + (row * t->row_stride + col) * (int64_t)hv_dtype_size(t->dtype);
  if (t->dtype == HV_BF16) {
    pack_bf16(&p, step_in_row, turn, to);
  } else {
    pack_f32(&p, step_in_row, turn, to);
  }
}
