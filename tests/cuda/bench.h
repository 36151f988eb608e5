/* A device with one stream, for tests that launch kernels of their own. */
#ifndef HV_TESTS_CUDA_BENCH_H
#define HV_TESTS_CUDA_BENCH_H

#include "cuda/device.h"
#include "tests/check.h"

extern "C" hv_status hv_device_module_open(const hv_device_options *options, hv_device **out);

typedef struct bench {
  hv_device *device;
  hv_stream *stream;
  void *memory[16];
  int memory_count;
} bench;

static inline bench bench_open_threads(int threads) {
  bench b = {};
  hv_device_options options = {0, threads};
  assert_ok(hv_device_module_open(&options, &b.device));
  assert_ok(hv_stream_open(b.device, &b.stream));
  return b;
}

static inline bench bench_open(void) {
  return bench_open_threads(2);
}

static inline void bench_close(bench *b) {
  hv_stream_close(b->stream);
  for (int i = 0; i < b->memory_count; i++) hv_device_release(b->device, b->memory[i]);
  hv_device_close(b->device);
}

/* Device memory, valid until the bench is closed. */
template <typename T> static inline T *bench_memory(bench *b, size_t count) {
  assert_true(b->memory_count < 16);
  void *memory;
  assert_ok(hv_device_allocate(b->device, HV_MEMORY_WORKSPACE, count * sizeof(T), "memory of a test", &memory));
  b->memory[b->memory_count++] = memory;
  return (T *)memory;
}

template <typename T> static inline T *bench_upload(bench *b, const T *values, size_t count) {
  T *memory = bench_memory<T>(b, count);
  hv_upload(b->stream, memory, values, count * sizeof(T));
  assert_ok(hv_stream_synchronize(b->stream));
  return memory;
}

template <typename T> static inline void bench_download(bench *b, T *values, const T *from, size_t count) {
  hv_download(b->stream, values, from, count * sizeof(T));
  assert_ok(hv_stream_synchronize(b->stream));
}

#endif
