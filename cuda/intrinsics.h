/* The hardware's instructions behind cuda/device.h; emu/intrinsics.h is the twin. Included by cuda/device.h alone. */
#ifndef HV_CUDA_INTRINSICS_H
#define HV_CUDA_INTRINSICS_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* A pointer into the block's shared memory. */
template <typename T> using hv_shared = T *;

extern __shared__ __align__(1024) unsigned char hv_shared_bytes[];

template <typename T> static __device__ __forceinline__ hv_shared<T> hv_shared_at(size_t offset) {
  return reinterpret_cast<T *>(hv_shared_bytes + offset);
}

/* The same memory as elements of another type. */
template <typename To, typename From> static __device__ __forceinline__ hv_shared<To> hv_shared_cast(From *p) {
  return reinterpret_cast<To *>(p);
}

/* N elements at once; p is aligned to their size, or 16 bytes if that is less. Device memory and shared memory alike.
 */
template <int N, typename T> static __device__ __forceinline__ hv_vec<T, N> hv_load(const T *p) {
  return *reinterpret_cast<const hv_vec<T, N> *>(p);
}
template <int N, typename T> static __device__ __forceinline__ void hv_store(T *p, hv_vec<T, N> v) {
  *reinterpret_cast<hv_vec<T, N> *>(p) = v;
}

/* 16 bytes to device memory in one instruction; bf16 that were just rounded the compiler stores 4 bytes at a time. */
static __device__ __forceinline__ void hv_store_whole(uint32_t *p, hv_vec<uint32_t, 4> v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(p)), "r"(v.at[0]), "r"(v.at[1]), "r"(v.at[2]), "r"(v.at[3])
               : "memory");
}

static __device__ __forceinline__ hv_bf16 hv_round_bf16(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

/* Two floats, rounded, as the two halves of a register, `low` in the low half: operands of hv_mma. */
static __device__ __forceinline__ uint32_t hv_pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/* 2^x by the special function unit: within 2 ulp of the number nearest to it. */
static __device__ __forceinline__ float hv_exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* d += a b, a [16, 16] and b [16, 8] of bf16, d [16, 8] of float, held by a warp. With g = lane / 4, t = lane % 4:
 *   a[0]: (g, 2t), (g, 2t + 1); a[1]: row g + 8; a[2]: columns + 8; a[3]: both       (row, column)
 *   b[0]: (2t, g), (2t + 1, g); b[1]: rows + 8                                       (row, column)
 *   d[0], d[1]: (g, 2t), (g, 2t + 1); d[2], d[3]: row g + 8 */
static __device__ __forceinline__ void hv_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ uint32_t hv_shared_address(const void *p) {
  return (uint32_t)__cvta_generic_to_shared(p);
}

/* Four 8 × 8 matrices of bf16 from shared memory: lane l passes the address of row l % 8 of matrix l / 8, 16 aligned
 * bytes. Lane l gets of matrix i in r[i] elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4; transposed: of column
 * l / 4. */
static __device__ __forceinline__ void hv_ldmatrix_x4(uint32_t (&r)[4], hv_shared<hv_bf16> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(hv_shared_address(row))
               : "memory");
}
static __device__ __forceinline__ void hv_ldmatrix_x4_trans(uint32_t (&r)[4], hv_shared<hv_bf16> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(hv_shared_address(row))
               : "memory");
}

/* 16 bytes from device memory to shared memory, both aligned, without waiting; zeros where not `valid` (from is then
 * not read). Copies since the last commit form a group; hv_copy_wait<N> waits until at most the N latest groups of this
 * thread are under way. Other threads see the bytes after a barrier that follows the wait. */
static __device__ __forceinline__ void hv_copy_async(hv_shared<hv_bf16> to, const hv_bf16 *from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(hv_shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
static __device__ __forceinline__ void hv_copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> static __device__ __forceinline__ void hv_copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* Programmatic dependent launch. Both are nothing where a launch, or the next one, is not early. */
static __device__ __forceinline__ void hv_let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/* The launches before this one are over, and what they wrote is there. */
static __device__ __forceinline__ void hv_wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#endif
