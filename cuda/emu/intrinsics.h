/* The emulator's version of cuda/intrinsics.h, which documents the functions: CUDA's keywords, built-in variables and
 * functions, as far as kernels here use them, for the host compiler. Included by cuda/device.h alone. */
#ifndef HV_CUDA_EMU_INTRINSICS_H
#define HV_CUDA_EMU_INTRINSICS_H

#include <math.h>
#include <string.h>

#include <type_traits>

#include "cuda/emu/block.h"
#include "cuda/emu/shadow.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (hv_emu_here()->thread)
#define blockIdx (hv_emu_here()->block)
#define blockDim (hv_emu_here()->block_dim)
#define gridDim (hv_emu_here()->grid_dim)

/* One element of shared memory; reading and writing it is checked. */
template <typename T> class hv_shared_element {
public:
  explicit hv_shared_element(T *p_) : p(p_) {}
  hv_shared_element(const hv_shared_element &) = default;
  operator T() const {
    return hv_emu_shared_read(p, sizeof(T)) ? *p : T{};
  }
  const hv_shared_element &operator=(T value) const {
    static_assert(sizeof(T) >= HV_SHADOW_BYTES, "write at least 4 bytes at once: use hv_store");
    if (hv_emu_shared_write(p, sizeof(T))) *p = value;
    return *this;
  }
  /* An element assigned to itself is read and written like any other. */
  // NOLINTNEXTLINE(bugprone-unhandled-self-assignment)
  hv_shared_element &operator=(const hv_shared_element &other) {
    *this = (T)other;
    return *this;
  }
  const hv_shared_element &operator+=(T value) const {
    return *this = (T) * this + value;
  }
  const hv_shared_element &operator*=(T value) const {
    return *this = (T) * this * value;
  }

private:
  T *p;
};

template <typename T> class hv_shared {
public:
  hv_shared() : p(nullptr) {}
  explicit hv_shared(T *p_) : p(p_) {}
  hv_shared_element<T> operator[](ptrdiff_t i) const {
    return hv_shared_element<T>(p + i);
  }
  hv_shared_element<T> operator*() const {
    return hv_shared_element<T>(p);
  }
  hv_shared operator+(ptrdiff_t n) const {
    return hv_shared(p + n);
  }
  hv_shared operator-(ptrdiff_t n) const {
    return hv_shared(p - n);
  }
  hv_shared &operator+=(ptrdiff_t n) {
    p += n;
    return *this;
  }
  T *unchecked() const {
    return p;
  }

private:
  T *p;
};

template <typename T> static inline hv_shared<T> hv_shared_at(size_t offset) {
  if (offset % alignof(T) != 0) hv_emu_fault("takes shared memory at offset %zu, not aligned for its type", offset);
  return hv_shared<T>((T *)(void *)(hv_emu_shared_base() + offset));
}
template <typename To, typename From> static inline hv_shared<To> hv_shared_cast(hv_shared<From> p) {
  return hv_shared<To>((To *)(void *)p.unchecked());
}

static inline bool hv_emu_aligned(const void *p, size_t bytes) {
  if ((uintptr_t)p % bytes == 0) return true;
  hv_emu_fault("accesses %zu bytes at an address that is not a multiple of %zu", bytes, bytes);
  return false;
}
template <int N, typename T> static inline hv_vec<T, N> hv_load(const T *p) {
  hv_vec<T, N> v;
  (void)hv_emu_aligned(p, alignof(decltype(v)));
  hv_emu_device_access(p);
  memcpy(&v, p, sizeof v);
  return v;
}
template <int N, typename T> static inline void hv_store(T *p, hv_vec<T, N> v) {
  (void)hv_emu_aligned(p, alignof(decltype(v)));
  hv_emu_device_access(p);
  memcpy(p, &v, sizeof v);
}
static inline void hv_store_whole(uint32_t *p, hv_vec<uint32_t, 4> v) {
  hv_store(p, v);
}
template <int N, typename T> static inline hv_vec<T, N> hv_load(hv_shared<T> p) {
  hv_vec<T, N> v = {};
  (void)hv_emu_aligned(p.unchecked(), alignof(decltype(v)));
  if (hv_emu_shared_read(p.unchecked(), sizeof v)) memcpy(&v, p.unchecked(), sizeof v);
  return v;
}
template <int N, typename T> static inline void hv_store(hv_shared<T> p, hv_vec<T, N> v) {
  static_assert(sizeof v >= HV_SHADOW_BYTES, "write at least 4 bytes at once");
  (void)hv_emu_aligned(p.unchecked(), alignof(decltype(v)));
  if (hv_emu_shared_write(p.unchecked(), sizeof v)) memcpy(p.unchecked(), &v, sizeof v);
}

static inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline float __uint_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
static inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
static inline int min(int a, int b) {
  return a < b ? a : b;
}
static inline int max(int a, int b) {
  return a > b ? a : b;
}
static inline int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t max(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static inline hv_bf16 hv_round_bf16(float x) {
  uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff}; /* NaN, with the bits that the hardware gives */
  return {(uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

static inline uint32_t hv_pack_bf16(float low, float high) {
  return (uint32_t)hv_round_bf16(low).bits | (uint32_t)hv_round_bf16(high).bits << 16;
}

/* The special function unit flushes subnormal results to 0 (.ftz). */
static inline float hv_exp2_fast(float x) {
  float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

static inline void __syncthreads() {
  hv_emu_barrier();
}

static inline void hv_emu_combine_nothing(void *const *, uint32_t) {}

static inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  hv_emu_meet(mask, hv_emu_combine_nothing, nullptr, true);
}

/* One lane's operand of a shuffle, and its result. */
template <typename T> struct hv_emu_shuffle {
  T value, result;
  int source; /* lane */
};

template <typename T> static void hv_emu_combine_shuffle(void *const *operands, uint32_t mask) {
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    hv_emu_shuffle<T> *own = (hv_emu_shuffle<T> *)operands[__builtin_ctz(rest)];
    if (mask >> own->source & 1u) {
      own->result = ((const hv_emu_shuffle<T> *)operands[own->source])->value;
    } else {
      hv_emu_fault("takes part in a shuffle that reads lane %d, which is not in the mask 0x%08x", own->source, mask);
      own->result = T{};
    }
  }
}
template <typename T> static inline T hv_emu_shuffle_from(uint32_t mask, T value, int source) {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) >= 4, "shuffles move 4 or 8 bytes");
  hv_emu_shuffle<T> own = {value, value, source};
  hv_emu_meet(mask, hv_emu_combine_shuffle<T>, &own, false);
  return own.result;
}
template <typename T> static inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
  int lane = hv_emu_lane();
  return hv_emu_shuffle_from(mask, value, (lane & ~(width - 1)) + (source & (width - 1)));
}
template <typename T> static inline T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32) {
  int lane = hv_emu_lane(), source = lane ^ lanes;
  return hv_emu_shuffle_from(mask, value, source / width > lane / width ? lane : source);
}
template <typename T> static inline T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
  int lane = hv_emu_lane(), source = lane - (int)delta;
  return hv_emu_shuffle_from(mask, value, source < (lane & ~(width - 1)) ? lane : source);
}
template <typename T> static inline T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
  int lane = hv_emu_lane(), source = lane + (int)delta;
  return hv_emu_shuffle_from(mask, value, source > (lane | (width - 1)) ? lane : source);
}

struct hv_emu_vote {
  int predicate;
  uint32_t result;
};
static inline void hv_emu_combine_votes(void *const *operands, uint32_t mask) {
  uint32_t ballot = 0;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    int lane = __builtin_ctz(rest);
    if (((const hv_emu_vote *)operands[lane])->predicate) ballot |= 1u << lane;
  }
  for (uint32_t rest = mask; rest; rest &= rest - 1) ((hv_emu_vote *)operands[__builtin_ctz(rest)])->result = ballot;
}
static inline unsigned __ballot_sync(uint32_t mask, int predicate) {
  hv_emu_vote own = {predicate, 0};
  hv_emu_meet(mask, hv_emu_combine_votes, &own, false);
  return own.result;
}
static inline int __any_sync(uint32_t mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(uint32_t mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

struct hv_emu_mma {
  float *d;
  const uint32_t *a, *b;
};
void hv_emu_combine_mma(void *const *operands, uint32_t mask);

static inline void hv_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  hv_emu_mma own = {d, a, b};
  hv_emu_meet(0xffffffffu, hv_emu_combine_mma, &own, false);
}

struct hv_emu_ldmatrix {
  uint32_t *r;
  const uint16_t *row;
};
void hv_emu_combine_ldmatrix(void *const *operands, uint32_t mask);
void hv_emu_combine_ldmatrix_trans(void *const *operands, uint32_t mask);

/* The registers are written through `own`. */
// NOLINTNEXTLINE(readability-non-const-parameter)
static inline void hv_emu_ldmatrix_rows(uint32_t *r, hv_shared<hv_bf16> row, hv_emu_combine combine) {
  static const uint16_t nothing[8] = {};
  const void *p = row.unchecked();
  bool valid = hv_emu_aligned(p, 16) && hv_emu_shared_read(p, 16);
  hv_emu_ldmatrix own = {r, valid ? (const uint16_t *)p : nothing};
  hv_emu_meet(0xffffffffu, combine, &own, false);
}
static inline void hv_ldmatrix_x4(uint32_t (&r)[4], hv_shared<hv_bf16> row) {
  hv_emu_ldmatrix_rows(r, row, hv_emu_combine_ldmatrix);
}
static inline void hv_ldmatrix_x4_trans(uint32_t (&r)[4], hv_shared<hv_bf16> row) {
  hv_emu_ldmatrix_rows(r, row, hv_emu_combine_ldmatrix_trans);
}

static inline void hv_copy_async(hv_shared<hv_bf16> to, const hv_bf16 *from, bool valid) {
  hv_emu_copy_issue(to.unchecked(), valid ? from : nullptr, 16);
}
static inline void hv_copy_commit() {
  hv_emu_copy_commit();
}
template <int N> static inline void hv_copy_wait() {
  hv_emu_copy_wait(N);
}

static inline void hv_let_next_begin() {}
static inline void hv_wait_for_previous() {
  hv_emu_wait_for_previous();
}

#endif
