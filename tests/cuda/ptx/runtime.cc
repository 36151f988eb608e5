/* The CUDA runtime's functions that cuda/ and nvcc's launch stubs call, for the PTX machine; cuda_runtime_api.h
 * describes them. All work is done when it is queued, or kept while a stream is captured. Where CUDA refuses a call in
 * a capture, this does; other threads are not restricted by it (cudaStreamCaptureModeThreadLocal). */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <map>
#include <memory>
#include <mutex>

#include "tests/cuda/ptx/machine.h"

enum { DEFAULT_SHARED = 48 << 10, MOST_SHARED = 227 << 10, VERSION = 13000, MULTIPROCESSORS = 132 };
enum : unsigned { MOST_THREADS = 1024, MOST_DEEP = 64, MOST_HIGH = 65535 };

struct CUgraph_st {
  std::vector<std::function<void()>> work;
  bool valid = true;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};
typedef std::shared_ptr<CUgraph_st> capture;
struct CUstream_st {
  capture into; /* its open capture */
};
struct CUevent_st {
  capture in; /* the capture in which it was recorded last */
  double seconds = 0;
};

namespace {

std::recursive_mutex one_at_a_time;
typedef std::lock_guard<std::recursive_mutex> lock;
thread_local capture own_capture; /* that this thread has begun */
thread_local cudaError_t last;
std::string fault; /* of a kernel, until a synchronisation returns it */
std::string told;  /* the fault that was returned last */
std::map<const void *, size_t> shared_limits;

std::map<const void *, std::string> names; /* of kernels, by the function that the host calls */

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

const ptx_kernel *kernel_of(const void *function) {
  auto name = names.find(function);
  return name == names.end() ? nullptr : ptx_find_kernel(name->second.c_str());
}

cudaError_t refuse(const capture &in, cudaError_t error) {
  in->valid = false;
  return result(error);
}

/* What waits for the card, or changes its memory, is refused while the thread captures, and spoils the capture. */
cudaError_t outside_capture() {
  return own_capture ? refuse(own_capture, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t synchronize(const capture &in) {
  lock own(one_at_a_time);
  if (own_capture) return outside_capture();
  if (in) return refuse(in, cudaErrorStreamCaptureUnsupported);
  if (fault.empty()) return cudaSuccess;
  told.swap(fault);
  fault.clear();
  return result(cudaErrorIllegalAddress);
}

bool is_spoilt(cudaStream_t stream) {
  return stream->into && !stream->into->valid;
}

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

bool can_launch(const cudaLaunchConfig_t *config, const void *function) {
  dim3 grid = config->gridDim, block = config->blockDim;
  if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) return false;
  if (grid.x > INT32_MAX || grid.y > MOST_HIGH || grid.z > MOST_HIGH || block.z > MOST_DEEP) return false;
  if ((uint64_t)block.x * block.y * block.z > MOST_THREADS) return false;
  auto limit = shared_limits.find(function);
  if (config->dynamicSmemBytes > (limit == shared_limits.end() ? (size_t)DEFAULT_SHARED : limit->second)) return false;
  for (unsigned i = 0; i < config->numAttrs; i++) {
    if (config->attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization) return false;
  }
  return true;
}

} // namespace

void ptx_queue(void *stream, std::function<void()> work) {
  lock own(one_at_a_time);
  capture into = ((cudaStream_t)stream)->into;
  if (into) {
    into->work.push_back(std::move(work));
  } else {
    work();
  }
}

extern "C" {

void **__cudaRegisterFatBinary(void *) {
  static void *handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterFunction(void **, const char *function, char *, const char *name, int, uint3 *, uint3 *, dim3 *,
                            dim3 *, int *) {
  names[function] = name;
}

/* Kernels are launched by cudaLaunchKernelExC alone. The stubs also hold nvcc's own way to launch. */
cudaError_t __cudaGetKernel(cudaKernel_t *, const void *) {
  return result(cudaErrorNotSupported);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void **, size_t, cudaStream_t) {
  return result(cudaErrorNotSupported);
}
unsigned __cudaPopCallConfiguration(dim3 *, dim3 *, size_t *, void *) {
  return (unsigned)result(cudaErrorNotSupported);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) {
  lock own(one_at_a_time);
  if (is_spoilt(config->stream)) return result(cudaErrorStreamCaptureInvalidated);
  const ptx_kernel *kernel = kernel_of(function);
  if (!kernel) return result(cudaErrorInvalidDeviceFunction);
  if (!can_launch(config, function)) return result(cudaErrorInvalidValue);
  std::vector<uint8_t> parameters;
  for (size_t i = 0; i < kernel->parameter_count; i++) {
    parameters.resize(kernel->parameters[i].offset + kernel->parameters[i].size);
    memcpy(&parameters[kernel->parameters[i].offset], arguments[i], kernel->parameters[i].size);
  }
  ptx_dim grid = {config->gridDim.x, config->gridDim.y, config->gridDim.z};
  ptx_dim block = {config->blockDim.x, config->blockDim.y, config->blockDim.z};
  uint32_t shared_bytes = (uint32_t)config->dynamicSmemBytes;
  ptx_queue(config->stream, [=] {
    if (fault.empty()) ptx_run(kernel->name, parameters, grid, block, shared_bytes, &fault);
  });
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
  lock own(one_at_a_time);
  if (!kernel_of(function)) return result(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > MOST_SHARED) {
    return result(cudaErrorInvalidValue);
  }
  shared_limits[function] = (size_t)value;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, const void *function) {
  if (!kernel_of(function)) return result(cudaErrorInvalidDeviceFunction);
  memset((void *)out, 0, sizeof *out);
  out->ptxVersion = 90;
  out->binaryVersion = 90;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *out) {
  *out = VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *out) {
  *out = VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *out) {
  *out = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
  return result(index == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int index) {
  if (index != 0) return result(cudaErrorInvalidDevice);
  memset((void *)out, 0, sizeof *out);
  snprintf(out->name, sizeof out->name, "PTX on the CPU");
  out->major = 9;
  out->multiProcessorCount = MULTIPROCESSORS;
  size_t available;
  ptx_room(&available, &out->totalGlobalMem);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *out, int, int) {
  out[0] = '\0';
  return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error) {
  static thread_local char text[32];
  if (error == cudaErrorIllegalAddress) return told.c_str();
  snprintf(text, sizeof text, "error %d", (int)error);
  return text;
}
const char *cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress" : "see cudaError in driver_types.h";
}
cudaError_t cudaGetLastError() {
  cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

cudaError_t cudaMalloc(void **out, size_t bytes) {
  lock own(one_at_a_time);
  *out = nullptr;
  if (own_capture) return outside_capture();
  *out = ptx_allocate(bytes);
  return result(*out ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void *memory) {
  lock own(one_at_a_time);
  if (own_capture) return outside_capture();
  return result(!memory || ptx_release(memory) ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaMallocHost(void **out, size_t bytes) {
  *out = nullptr;
  if (own_capture) return outside_capture();
  *out = malloc(bytes);
  if (!*out) return result(cudaErrorMemoryAllocation);
  memset(*out, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void *memory) {
  free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
  lock own(one_at_a_time);
  ptx_room(available, all);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  lock own(one_at_a_time);
  if (is_spoilt(stream)) return result(cudaErrorStreamCaptureInvalidated);
  if (kind != cudaMemcpyDefault) return result(cudaErrorInvalidMemcpyDirection);
  void *into = ptx_view(to, bytes), *of = ptx_view(from, bytes);
  if (!into || !of) return result(cudaErrorInvalidValue);
  ptx_queue(stream, [=] { memcpy(into, of, bytes); });
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument) {
  ptx_queue(stream, [=] { function(argument); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
  *out = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return synchronize(stream->into);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  lock own(one_at_a_time);
  if (stream->into) return result(cudaErrorIllegalState);
  stream->into = std::make_shared<CUgraph_st>();
  own_capture = stream->into;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) {
  lock own(one_at_a_time);
  *out = nullptr;
  if (!stream->into) return result(cudaErrorIllegalState);
  capture ended = std::move(stream->into);
  own_capture.reset();
  if (!ended->valid) return result(cudaErrorStreamCaptureInvalidated);
  *out = new CUgraph_st(*ended);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
  *out = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  for (const std::function<void()> &work : graph->work) ptx_queue(stream, work);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) {
  *out = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *out) {
  *out = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  lock own(one_at_a_time);
  event->in = stream->into;
  event->seconds = now();
  return cudaSuccess;
}
/* CUDA would let a stream that waits for an event of a capture join it. This project captures one stream at a time. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  lock own(one_at_a_time);
  if (event->in == stream->into) return cudaSuccess;
  return refuse(stream->into ? stream->into : event->in, cudaErrorStreamCaptureIsolation);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return event->in ? refuse(event->in, cudaErrorCapturedEvent) : synchronize(nullptr);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->in ? refuse(event->in, cudaErrorCapturedEvent) : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = (float)(1e3 * (end->seconds - begin->seconds));
  return cudaSuccess;
}

} // extern "C"
