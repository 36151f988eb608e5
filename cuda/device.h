/* What kernels are written with: the only header for CUDA that they include. nvcc compiles it to the hardware's own
 * instructions (intrinsics.h). Any other C++ compiler, with no CUDA toolkit at all, compiles the same kernels for the
 * emulator (emu/intrinsics.h): same names, same fragment layouts, every access to shared memory checked.
 *
 * Kernels are plain CUDA C++ (__global__, __device__, threadIdx, __syncthreads, __shfl_xor_sync …) with these rules:
 * - Shared memory is dynamic only. hv_shared_at<T>(offset) gives a pointer into it, of type hv_shared<T>: T* on CUDA, a
 *   checked pointer in the emulator. Index it as an array; wider accesses go through hv_load and hv_store. Offsets are
 *   multiples of 16 for accesses of 16 bytes; no store is narrower than 4 bytes.
 * - HV_LAUNCH(kernel, grid, block, shared bytes, stream, arguments …) launches. An empty grid does nothing; a launch
 *   error is returned by the stream's next synchronisation. A block has at most 1024 threads, a multiple of 32 wherever
 *   a warp-wide operation is used, and at most HV_SHARED_LIMIT bytes of shared memory.
 * - HV_LAUNCH_EARLY does the same with programmatic dependent launch: the kernel may begin before the kernel ahead of
 *   it in the stream has ended. This happens only in a recording (graph capture), directly behind another kernel, and
 *   if card and compiled code are of compute capability 9.0 or newer (HVLA_EARLY=0 in the environment turns it off).
 *   Every thread calls hv_wait_for_previous(), and before that touches shared memory and registers only. The one
 *   exception is the memory range that is passed as hv_ahead, typically weights: asynchronous copies may read it before
 *   the wait, and nothing in the recording may write it. When all blocks have called hv_let_next_begin(), the next
 *   kernel may begin, if it too was launched early.
 * - Warp-wide operations take the full mask unless there is a reason, and are reached by all its lanes.
 * - No floating-point atomics. Results depend on shapes alone: the order of a sum depends neither on timing nor on the
 *   number of multiprocessors.
 * - Arithmetic is float. f32 never passes through TF32; tensor cores multiply bf16 and add up in float. */
#ifndef HV_CUDA_DEVICE_H
#define HV_CUDA_DEVICE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* A bf16 number as it lies in memory. */
struct hv_bf16 {
  uint16_t bits;
};

/* N neighbouring elements that one access moves, aligned to their size, at most to 16 bytes. */
template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) hv_vec { T at[N]; };

/* Shared memory that a block may use on the cards that offer least (compute capability 8.9). */
enum { HV_SHARED_LIMIT = 99 << 10 };

enum { HV_WARP = 32 };
#define HV_FULL_MASK 0xffffffffu

/* Before loops with constant bounds: arrays stay in registers only if every index is a constant. */
#ifdef __CUDACC__
#define HV_UNROLL _Pragma("unroll")
#else
#define HV_UNROLL
#endif

#ifdef __CUDACC__
#include "cuda/intrinsics.h"
#else
#include "cuda/emu/intrinsics.h"
#endif

#include "cuda/launch.h"

/* From the storage type to float and back, rounding to nearest, ties to even. */
static __device__ __forceinline__ float hv_to_float(float x) {
  return x;
}
static __device__ __forceinline__ float hv_to_float(hv_bf16 x) {
  return __uint_as_float((uint32_t)x.bits << 16);
}
template <typename T> static __device__ __forceinline__ T hv_from_float(float x);
template <> __device__ __forceinline__ float hv_from_float<float>(float x) {
  return x;
}
template <> __device__ __forceinline__ hv_bf16 hv_from_float<hv_bf16>(float x) {
  return hv_round_bf16(x);
}

/* The sum, and the maximum, over a warp; every lane gets it. The order of additions is fixed (butterfly shuffles). */
static __device__ __forceinline__ float hv_warp_sum(float x) {
  for (int offset = HV_WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(HV_FULL_MASK, x, offset);
  return x;
}
static __device__ __forceinline__ float hv_warp_max(float x) {
  for (int offset = HV_WARP / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(HV_FULL_MASK, x, offset));
  return x;
}

/* The sum over a block of whole warps; every thread gets it. `scratch` holds one float for each warp. It may be reused
 * by another hv_block_sum at once, since that starts with a barrier; before any other write to it, a barrier is needed.
 */
static __device__ __forceinline__ float hv_block_sum(float x, hv_shared<float> scratch) {
  int lane = (int)threadIdx.x % HV_WARP, warp = (int)threadIdx.x / HV_WARP, warps = (int)blockDim.x / HV_WARP;
  x = hv_warp_sum(x);
  __syncthreads();
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return hv_warp_sum(lane < warps ? (float)scratch[lane] : 0.0f);
}

/* Number of blocks of `size` that cover `count`. */
static inline unsigned hv_blocks(int64_t count, int64_t size) {
  return (unsigned)((count + size - 1) / size);
}

#endif
