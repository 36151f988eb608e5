/* What kernels are written with; the only header they include for CUDA's sake. nvcc compiles it to the hardware's own
 * instructions. Any other C++ compiler, with no CUDA toolkit at all, compiles the same kernels against the emulated
 * twin (emu/intrinsics.h): same names, same layouts of fragments, every access to shared memory checked.
 *
 * Kernels are plain CUDA C++ (__global__, __device__, threadIdx, __syncthreads, __shfl_xor_sync …) with these rules:
 * - Shared memory is dynamic only. hv_shared_at<T>(offset) gives a pointer into it, of type hv_shared<T>: T* on CUDA, a
 *   checked pointer in the emulator. Index it as an array; wider accesses go through hv_load and hv_store. Offsets are
 *   multiples of 16 where 16 bytes are moved at once; a thread writes at least 4 at once.
 * - HV_LAUNCH(kernel, grid, block, shared bytes, stream, arguments …) launches; a grid without blocks does nothing, and
 *   what goes wrong is kept for the stream's next synchronisation. A block has at most 1024 threads, a multiple of 32
 *   wherever a warp-wide operation is used, and at most HV_SHARED_LIMIT bytes of shared memory.
 * - HV_LAUNCH_EARLY launches a kernel that may begin before the launches before it on the stream are over, and does so
 *   in a recording, straight behind another launch, on cards that can and in a build for them (compute capability 9.0;
 *   HVLA_EARLY=0 in the environment: nowhere). All its threads call hv_wait_for_previous(), until when a kernel touches
 *   shared memory and registers alone; what it is given as its hv_ahead it may read before, by asynchronous copies, and
 *   nothing in that recording writes there. Behind hv_let_next_begin() in all blocks the next launch, if it is an early
 *   one, begins.
 * - Warp-wide operations take the full mask unless there is a reason, and are reached by all its lanes.
 * - No floating-point atomics. Results depend on shapes alone: no sum's order on timing or on the number of
 *   multiprocessors.
 * - Arithmetic is float. f32 never passes through TF32; bf16 × bf16 with float sums is what tensor cores do here.
 */
#ifndef HV_CUDA_DEVICE_H
#define HV_CUDA_DEVICE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* A bf16 number as it lies in memory. */
struct hv_bf16 {
  uint16_t bits;
};

/* N neighbouring elements that move together, aligned to their size or to 16 bytes if they have more. */
template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) hv_vec { T at[N]; };

/* Shared memory of a block on the smallest card (compute capability 8.9). */
enum { HV_SHARED_LIMIT = 99 << 10 };

enum { HV_WARP = 32 };
#define HV_FULL_MASK 0xffffffffu

/* In front of a loop whose bounds are known: register arrays are indexed by constants only. */
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

/* Storage to arithmetic and back, rounding to nearest, ties to even. */
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

/* The sum, the largest, over a warp; every lane gets it. The tree is fixed. */
static __device__ __forceinline__ float hv_warp_sum(float x) {
  for (int offset = HV_WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(HV_FULL_MASK, x, offset);
  return x;
}
static __device__ __forceinline__ float hv_warp_max(float x) {
  for (int offset = HV_WARP / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(HV_FULL_MASK, x, offset));
  return x;
}

/* The sum over a block of whole warps; every thread gets it. `scratch` holds one float a warp; the call begins and ends
 * with a barrier, so it may be used again at once. */
static __device__ __forceinline__ float hv_block_sum(float x, hv_shared<float> scratch) {
  int lane = (int)threadIdx.x % HV_WARP, warp = (int)threadIdx.x / HV_WARP, warps = (int)blockDim.x / HV_WARP;
  x = hv_warp_sum(x);
  __syncthreads();
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return hv_warp_sum(lane < warps ? (float)scratch[lane] : 0.0f);
}

/* How many blocks of `size` cover `count`. */
static inline unsigned hv_blocks(int64_t count, int64_t size) {
  return (unsigned)((count + size - 1) / size);
}

#endif
