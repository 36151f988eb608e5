/* HV_LAUNCH; see device.h. Included by device.h alone. */
#ifndef HV_CUDA_LAUNCH_H
#define HV_CUDA_LAUNCH_H

#include "cuda/runtime.h"

/* HV_LAUNCH(kernel, dim3 grid, dim3 block, size_t shared_bytes, hv_stream *stream, arguments …). A template's instance
 * with a comma in its name goes into parentheses. */
#define HV_LAUNCH(kernel, ...) hv_launch(#kernel, kernel, __VA_ARGS__)

static inline bool hv_is_empty(dim3 grid) {
  return grid.x == 0 || grid.y == 0 || grid.z == 0;
}

#ifdef __CUDACC__

enum { HV_SHARED_DEFAULT = 48 << 10 /* more must be asked for, kernel by kernel */ };

template <typename... P, typename... A>
static inline void hv_launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                             hv_stream *stream, A... arguments) {
  if (hv_is_empty(grid)) return;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > HV_SHARED_DEFAULT) {
    error = cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
  }
  if (error == cudaSuccess) {
    kernel<<<grid, block, shared_bytes, (cudaStream_t)hv_stream_queue(stream)>>>(static_cast<P>(arguments)...);
  }
  cudaError_t last = cudaGetLastError(); /* in either case: no later launch may find this one's */
  if (error == cudaSuccess) error = last;
  if (error != cudaSuccess) {
    hv_stream_fail(stream, hv_error(HV_ERR_DEVICE, "cannot launch %s: %s", name, cudaGetErrorString(error)));
  }
}

#else

#include <tuple>

/* Queues a launch; the bytes of its arguments are copied. */
HV_NODISCARD hv_status hv_emu_queue_launch(hv_queue *queue, const hv_emu_launch *launch, size_t argument_bytes);

template <typename... P> struct hv_emu_arguments {
  void (*kernel)(P...);
  std::tuple<P...> values;
  static void run(const void *arguments) {
    const hv_emu_arguments *own = static_cast<const hv_emu_arguments *>(arguments);
    std::apply(own->kernel, own->values);
  }
};

template <typename... P, typename... A>
static inline void hv_launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                             hv_stream *stream, A... arguments) {
  static_assert((std::is_trivially_copyable<P>::value && ...), "arguments travel as bytes");
  static_assert(sizeof(hv_emu_arguments<P...>) <= 4096, "CUDA takes 4 KB of arguments");
  if (hv_is_empty(grid)) return;
  hv_emu_arguments<P...> call = {kernel, std::tuple<P...>(static_cast<P>(arguments)...)};
  hv_emu_launch launch = {name, grid, block, shared_bytes, hv_emu_arguments<P...>::run, &call, 0};
  hv_stream_fail(stream, hv_emu_queue_launch(hv_stream_queue(stream), &launch, sizeof call));
}

#endif

#endif
