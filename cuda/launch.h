/* HV_LAUNCH; see device.h. Included by device.h alone. */
#ifndef HV_CUDA_LAUNCH_H
#define HV_CUDA_LAUNCH_H

#include "cuda/runtime.h"

/* HV_LAUNCH(kernel, dim3 grid, dim3 block, size_t shared_bytes, hv_stream *stream, arguments …). A template instance
 * with a comma in its name goes into parentheses. */
#define HV_LAUNCH(kernel, ...) hv_launch(#kernel, kernel, false, hv_ahead{nullptr, 0}, __VA_ARGS__)

/* HV_LAUNCH_EARLY(kernel, hv_ahead ahead, grid, block, …): see device.h. */
#define HV_LAUNCH_EARLY(kernel, ...) hv_launch(#kernel, kernel, true, __VA_ARGS__)

/* Device memory that a kernel reads before hv_wait_for_previous(); none: {nullptr, 0}. */
struct hv_ahead {
  const void *from;
  size_t bytes;
};

static inline bool hv_is_empty(dim3 grid) {
  return grid.x == 0 || grid.y == 0 || grid.z == 0;
}

/* Whether an HV_LAUNCH_EARLY launch does begin early. It must follow another kernel of this stream in the same
 * recording: only then is it known which kernels it overlaps, and that none of them writes its hv_ahead. */
static inline bool hv_begins_early(hv_stream *stream, const void *kernel) {
  const hv_cuda_stream *own = (const hv_cuda_stream *)stream;
  return own->recording && own->behind_launch && hv_runtime_card(hv_stream_runtime(stream))->starts_early &&
         hv_kernel_waits(kernel);
}

#ifdef __CUDACC__

enum { HV_SHARED_DEFAULT = 48 << 10 /* above this, a kernel's attribute must be set */ };

template <typename... P, typename... A>
static inline void hv_launch(const char *name, void (*kernel)(P...), bool early, hv_ahead, dim3 grid, dim3 block,
                             size_t shared_bytes, hv_stream *stream, A... arguments) {
  if (hv_is_empty(grid)) return;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > HV_SHARED_DEFAULT) {
    /* Always the most: the limit is the kernel's, and another thread may be about to launch it with more than here. */
    error = cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, HV_SHARED_LIMIT);
  }
  cudaLaunchAttribute programmatic = {};
  programmatic.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  programmatic.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &programmatic;
  config.numAttrs = early && hv_begins_early(stream, (const void *)kernel);
  config.stream = (cudaStream_t)hv_stream_queue(stream);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
  cudaError_t last = cudaGetLastError(); /* cleared in any case, or the next launch would report it */
  if (error == cudaSuccess) error = last;
  if (error != cudaSuccess) {
    hv_stream_fail(stream, hv_error(HV_ERR_DEVICE, "cannot launch %s: %s", name, cudaGetErrorString(error)));
    return;
  }
  ((hv_cuda_stream *)stream)->behind_launch = true;
}

#else

#include <tuple>

/* Queues a launch with a copy of its arguments' bytes. */
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
static inline void hv_launch(const char *name, void (*kernel)(P...), bool early, hv_ahead ahead, dim3 grid, dim3 block,
                             size_t shared_bytes, hv_stream *stream, A... arguments) {
  static_assert((std::is_trivially_copyable<P>::value && ...), "arguments are copied as bytes");
  static_assert(sizeof(hv_emu_arguments<P...>) <= 4096, "CUDA takes at most 4 KB of arguments");
  if (hv_is_empty(grid)) return;
  hv_emu_arguments<P...> call = {kernel, std::tuple<P...>(static_cast<P>(arguments)...)};
  bool now = early && hv_begins_early(stream, (const void *)kernel);
  hv_emu_launch launch = {name,  grid, block, shared_bytes, hv_emu_arguments<P...>::run,
                          &call, 0,    now,   ahead.from,   ahead.bytes};
  hv_stream_fail(stream, hv_emu_queue_launch(hv_stream_queue(stream), &launch, sizeof call));
  ((hv_cuda_stream *)stream)->behind_launch = true;
}

#endif

#endif
