/* hv_runtime, hv_queue and hv_mark on CUDA. A hv_queue pointer is a cudaStream_t, a hv_mark pointer a cudaEvent_t. */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "cuda/runtime.h"

enum {
  OLDEST_CAPABILITY = 80,  /* asynchronous copies and bf16 tensor cores */
  EARLY_CAPABILITY = 90,   /* programmatic dependent launch */
  OLDEST_FOR_EARLY = 12030 /* CUDA version of driver and runtime that allows such launches in graphs */
};

struct hv_runtime {
  hv_card card;
  int index;
  cudaStream_t *streams; /* the open ones */
  int stream_count;
};

/* CUDA keeps a call's error until cudaGetLastError, which every launch asks: an error returned here must be cleared, or
 * the next launch would report it again. */
static hv_status check(cudaError_t error, const char *doing) {
  if (error == cudaSuccess) return HV_OK;
  (void)cudaGetLastError();
  return hv_error(HV_ERR_DEVICE, "CUDA, %s: %s (%s)", doing, cudaGetErrorString(error), cudaGetErrorName(error));
}

static hv_status check_driver(void) {
  int driver = 0, toolkit = 0, cards = 0;
  cudaError_t error = cudaDriverGetVersion(&driver);
  if (error != cudaSuccess || driver == 0) {
    return hv_error(HV_ERR_DEVICE,
                    "no CUDA driver is installed on this machine; --device cpu runs everything without one");
  }
  HV_TRY(check(cudaRuntimeGetVersion(&toolkit), "asking for the runtime's version"));
  if (driver / 1000 < toolkit / 1000) {
    return hv_error(HV_ERR_DEVICE,
                    "the CUDA driver is for CUDA %d.%d, this build needs %d.%d or newer; --device cpu runs "
                    "everything without it",
                    driver / 1000, driver % 1000 / 10, toolkit / 1000, toolkit % 1000 / 10);
  }
  error = cudaGetDeviceCount(&cards);
  if (error != cudaSuccess || cards == 0) {
    return hv_error(HV_ERR_DEVICE, "no CUDA card is visible (%s); --device cpu runs everything without one",
                    error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error));
  }
  return HV_OK;
}

/* Chooses the card that is asked for. If the process sees only one card, it takes that one: SLURM may show each rank
 * its own card only. */
static hv_status choose_card(int wanted, int *index) {
  int cards = 0;
  HV_TRY(check(cudaGetDeviceCount(&cards), "counting cards"));
  *index = cards == 1 ? 0 : wanted;
  if (wanted >= 0 && *index < cards) return HV_OK;
  return hv_error(HV_ERR_INPUT, "CUDA card %d was asked for; this machine has 0 … %d", wanted, cards - 1);
}

static hv_status begins_early(const hv_card *card, bool *out) {
  int driver = 0, runtime = 0;
  HV_TRY(check(cudaDriverGetVersion(&driver), "asking for the driver's version"));
  HV_TRY(check(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version"));
  *out = 10 * card->major + card->minor >= EARLY_CAPABILITY && driver >= OLDEST_FOR_EARLY &&
         runtime >= OLDEST_FOR_EARLY && !hv_is_switched_off("HVLA_EARLY");
  return HV_OK;
}

static hv_status describe_card(int index, hv_card *card) {
  cudaDeviceProp properties;
  HV_TRY(check(cudaGetDeviceProperties(&properties, index), "asking for a card's properties"));
  snprintf(card->name, sizeof card->name, "%.127s", properties.name);
  card->major = properties.major;
  card->minor = properties.minor;
  card->multiprocessors = properties.multiProcessorCount;
  card->memory_bytes = properties.totalGlobalMem;
  HV_TRY(check(cudaDeviceGetPCIBusId(card->bus, sizeof card->bus, index), "asking for a card's place"));
  HV_TRY(begins_early(card, &card->starts_early));
  if (10 * card->major + card->minor < OLDEST_CAPABILITY) {
    return hv_error(HV_ERR_DEVICE,
                    "CUDA card %d (%s) has compute capability %d.%d; 8.0 or newer is needed, or --device cpu", index,
                    card->name, card->major, card->minor);
  }
  return HV_OK;
}

hv_status hv_runtime_open(const hv_device_options *options, hv_runtime **out) {
  *out = nullptr;
  HV_TRY(check_driver());
  hv_runtime *runtime = (hv_runtime *)calloc(1, sizeof *runtime);
  if (!runtime) return hv_error_memory("the CUDA device");
  hv_status status = choose_card(options ? options->index : 0, &runtime->index);
  if (!status) status = describe_card(runtime->index, &runtime->card);
  if (!status) status = check(cudaSetDevice(runtime->index), "choosing a card");
  if (status) {
    free(runtime);
    return status;
  }
  *out = runtime;
  return HV_OK;
}

void hv_runtime_close(hv_runtime *runtime) {
  if (runtime) free(runtime->streams);
  free(runtime);
}

void hv_runtime_use(const hv_runtime *runtime) {
  /* An error here comes back from the next call. */
  (void)cudaSetDevice(runtime->index);
}

const hv_card *hv_runtime_card(const hv_runtime *runtime) {
  return &runtime->card;
}

bool hv_kernel_waits(const void *kernel) {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) return attributes.ptxVersion >= EARLY_CAPABILITY;
  (void)cudaGetLastError(); /* its launch will report the error */
  return false;
}

hv_status hv_runtime_allocate(hv_runtime *runtime, size_t bytes, const char *what, void **out) {
  *out = nullptr;
  cudaError_t error = cudaMalloc(out, bytes ? bytes : 1);
  if (error != cudaErrorMemoryAllocation) return check(error, "allocating memory");
  (void)cudaGetLastError(); /* cleared, since it is returned below */
  hv_device_room room = hv_runtime_room(runtime);
  return hv_error(HV_ERR_MEMORY, "out of memory on CUDA card %d (%s): %s needs %.3f GB, %.3f of %.3f GB are free",
                  runtime->index, runtime->card.name, what, (double)bytes * 1e-9, (double)room.available * 1e-9,
                  (double)room.all * 1e-9);
}

hv_device_room hv_runtime_room(const hv_runtime *runtime) {
  (void)runtime;
  hv_device_room room = {0, 0};
  (void)cudaMemGetInfo(&room.available, &room.all);
  return room;
}

/* cudaFree may wait for pending work, but does not promise to, so the streams are waited for here.
 * cudaDeviceSynchronize would invalidate what another thread captures on the card, for another device of ours or for
 * other code in the process. */
static void wait_for_streams(const hv_runtime *runtime) {
  hv_runtime_use(runtime);
  for (int i = 0; i < runtime->stream_count; i++) {
    if (cudaStreamSynchronize(runtime->streams[i]) == cudaSuccess) continue;
    (void)cudaGetLastError(); /* an error of the stream's work, which its own synchronisation returns */
  }
}

void hv_runtime_release(hv_runtime *runtime, void *memory) {
  if (!memory) return;
  wait_for_streams(runtime);
  (void)cudaFree(memory);
}

hv_status hv_runtime_allocate_host(hv_runtime *runtime, size_t bytes, const char *what, void **out) {
  (void)runtime;
  *out = nullptr;
  cudaError_t error = cudaMallocHost(out, bytes ? bytes : 1);
  if (error != cudaErrorMemoryAllocation) return check(error, "allocating page-locked memory");
  (void)cudaGetLastError();
  return hv_error(HV_ERR_MEMORY, "out of memory: %s needs %zu bytes of page-locked host memory", what, bytes);
}

void hv_runtime_release_host(hv_runtime *runtime, void *memory) {
  if (!memory) return;
  wait_for_streams(runtime);
  (void)cudaFreeHost(memory);
}

hv_status hv_queue_open(hv_runtime *runtime, hv_queue **out) {
  *out = nullptr;
  size_t bytes = (size_t)(runtime->stream_count + 1) * sizeof *runtime->streams;
  cudaStream_t *streams = (cudaStream_t *)realloc(runtime->streams, bytes), stream = nullptr;
  if (!streams) return hv_error_memory("the list of streams");
  runtime->streams = streams;
  HV_TRY(check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream"));
  streams[runtime->stream_count++] = stream;
  *out = (hv_queue *)stream;
  return HV_OK;
}

void hv_queue_close(hv_runtime *runtime, hv_queue *queue) {
  if (!queue) return;
  cudaStream_t stream = (cudaStream_t)queue;
  int at = 0;
  while (runtime->streams[at] != stream) at++;
  runtime->streams[at] = runtime->streams[--runtime->stream_count];
  (void)cudaStreamSynchronize(stream);
  (void)cudaStreamDestroy(stream);
}

hv_status hv_queue_synchronize(hv_queue *queue) {
  return check(cudaStreamSynchronize((cudaStream_t)queue), "waiting for a stream");
}

hv_status hv_queue_copy(hv_queue *queue, void *to, const void *from, size_t bytes) {
  return check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)queue), "copying");
}

static void CUDART_CB write_clock(void *out) {
  *(double *)out = hv_clock_seconds();
}

hv_status hv_queue_stamp(hv_queue *queue, double *out) {
  return check(cudaLaunchHostFunc((cudaStream_t)queue, write_clock, out), "queueing a look at the clock");
}

hv_status hv_queue_spoil(hv_queue *, void *, size_t) {
  return HV_OK;
}

hv_status hv_queue_record_begin(hv_queue *queue) {
  /* Thread-local mode: calls of other threads do not invalidate the capture, nor does it restrict them. */
  return check(cudaStreamBeginCapture((cudaStream_t)queue, cudaStreamCaptureModeThreadLocal), "beginning a graph");
}

hv_status hv_queue_record_end(hv_queue *queue, hv_recording **out) {
  *out = nullptr;
  cudaGraph_t graph = nullptr;
  HV_TRY(check(cudaStreamEndCapture((cudaStream_t)queue, &graph), "ending a graph"));
  cudaGraphExec_t executable = nullptr;
  hv_status status = check(cudaGraphInstantiate(&executable, graph, 0), "preparing a graph");
  (void)cudaGraphDestroy(graph);
  *out = (hv_recording *)executable;
  return status;
}

hv_status hv_queue_replay(hv_queue *queue, hv_recording *recording) {
  return check(cudaGraphLaunch((cudaGraphExec_t)recording, (cudaStream_t)queue), "launching a graph");
}

void hv_queue_recording_close(hv_recording *recording) {
  if (recording) (void)cudaGraphExecDestroy((cudaGraphExec_t)recording);
}

hv_status hv_mark_open(hv_runtime *runtime, hv_mark **out) {
  (void)runtime;
  cudaEvent_t event = nullptr;
  hv_status status = check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  *out = (hv_mark *)event;
  return status;
}

void hv_mark_close(hv_mark *mark) {
  if (mark) (void)cudaEventDestroy((cudaEvent_t)mark);
}

hv_status hv_mark_record(hv_queue *queue, hv_mark *mark) {
  return check(cudaEventRecord((cudaEvent_t)mark, (cudaStream_t)queue), "recording an event");
}

hv_status hv_mark_wait(hv_queue *queue, hv_mark *mark) {
  return check(cudaStreamWaitEvent((cudaStream_t)queue, (cudaEvent_t)mark, 0), "waiting for an event");
}

hv_status hv_mark_synchronize(hv_mark *mark) {
  return check(cudaEventSynchronize((cudaEvent_t)mark), "waiting for an event");
}

bool hv_mark_passed(const hv_queue *, const hv_mark *mark) {
  bool passed = cudaEventQuery((cudaEvent_t)mark) == cudaSuccess;
  if (!passed) (void)cudaGetLastError(); /* "not ready" is kept as an error, too */
  return passed;
}

struct hv_timer {
  cudaEvent_t begin, end;
};

hv_status hv_timer_open(hv_runtime *, hv_timer **out) {
  hv_timer *timer = (hv_timer *)calloc(1, sizeof *timer);
  *out = timer;
  if (!timer) return hv_error_memory("a timer");
  cudaError_t error = cudaEventCreate(&timer->begin);
  if (error == cudaSuccess) error = cudaEventCreate(&timer->end);
  if (error == cudaSuccess) return HV_OK;
  hv_timer_close(timer);
  *out = nullptr;
  return check(error, "making a timer");
}

void hv_timer_close(hv_timer *timer) {
  if (!timer) return;
  if (timer->begin) (void)cudaEventDestroy(timer->begin);
  if (timer->end) (void)cudaEventDestroy(timer->end);
  free(timer);
}

hv_status hv_timer_begin(hv_timer *timer, hv_queue *queue) {
  return check(cudaEventRecord(timer->begin, (cudaStream_t)queue), "recording an event");
}

hv_status hv_timer_end(hv_timer *timer, hv_queue *queue) {
  return check(cudaEventRecord(timer->end, (cudaStream_t)queue), "recording an event");
}

hv_status hv_timer_seconds(hv_timer *timer, double *out) {
  float milliseconds = 0;
  HV_TRY(check(cudaEventSynchronize(timer->end), "waiting for an event"));
  HV_TRY(check(cudaEventElapsedTime(&milliseconds, timer->begin, timer->end), "reading a timer"));
  *out = 1e-3 * (double)milliseconds;
  return HV_OK;
}
