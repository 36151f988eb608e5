/* What cuda/device.h uses of the hardware's instructions; emu/intrinsics.h is the emulator's version.
 * Included by cuda/device.h alone. */
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

/* N elements in one access, of device memory or shared memory; p is aligned as hv_vec is. */
template <int N, typename T> static __device__ __forceinline__ hv_vec<T, N> hv_load(const T *p) {
  return *reinterpret_cast<const hv_vec<T, N> *>(p);
}
template <int N, typename T> static __device__ __forceinline__ void hv_store(T *p, hv_vec<T, N> v) {
  *reinterpret_cast<hv_vec<T, N> *>(p) = v;
}

/* Stores 16 bytes to device memory in one instruction. Bf16 values that were just converted, the compiler would
 * otherwise store 4 bytes at a time. */
static __device__ __forceinline__ void hv_store_whole(uint32_t *p, hv_vec<uint32_t, 4> v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(p)), "r"(v.at[0]), "r"(v.at[1]), "r"(v.at[2]), "r"(v.at[3])
               : "memory");
}

static __device__ __forceinline__ hv_bf16 hv_round_bf16(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

/* Two floats rounded to bf16 and packed into a register, `low` in its low half: an operand of hv_mma. */
static __device__ __forceinline__ uint32_t hv_pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/* 2^x by the special function unit: at most 2 ulp from the correctly rounded result; subnormal results become 0. */
static __device__ __forceinline__ float hv_exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* d += a b on tensor cores (mma.m16n8k16): a [16, 16] and b [16, 8] of bf16, d [16, 8] of float. A warp holds the three
 * as fragments; with g = lane / 4 and t = lane % 4, a lane has these elements, as (row, column):
 *   a[0]: (g, 2t), (g, 2t + 1); a[1]: row g + 8; a[2]: columns + 8; a[3]: both
 *   b[0]: (2t, g), (2t + 1, g); b[1]: rows + 8
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

/* Loads four 8 × 8 matrices of bf16 from shared memory: lane l passes the address of row l % 8 of matrix l / 8, 16
 * aligned bytes. In r[i], lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i; with _trans, of
 * its column l / 4. */
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

/* Copies 16 aligned bytes from device memory to shared memory asynchronously (cp.async); writes zeros if not `valid`
 * (`from` is then not read). The copies that a thread issued since its last commit form a group; hv_copy_wait<N> waits
 * until at most its N latest groups are in flight. Other threads see the bytes after a barrier that follows the wait.
 */
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

/* Programmatic dependent launch; see device.h. The first does nothing if the next launch is not early, the second if
 * this one is not. */
static __device__ __forceinline__ void hv_let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/* Waits until the kernels before this one have ended and their writes are visible. */
static __device__ __forceinline__ void hv_wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#endif
