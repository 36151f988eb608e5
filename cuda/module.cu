/* The device: its methods and its table of operations, over runtime.h. Both libhvla-cuda.so and libhvla-emu.so are made
 * from this source. */
#include <stdlib.h>
#include <string.h>

#include "cuda/attention_library.h"
#include "cuda/comm_nccl.h"
#include "cuda/kernels.h"
#include "cuda/matmul.h"
#include "cuda/runtime.h"

struct cuda_device {
  hv_device head;
  hv_runtime *runtime;
  hv_matmul *matmul;
  hv_attention_library *attention;
};

static cuda_device *device_of(hv_device *device) {
  return (cuda_device *)device;
}

static void close_device(hv_device *device) {
  hv_attention_library_close(device_of(device)->attention);
  hv_matmul_close(device_of(device)->matmul);
  hv_runtime_close(device_of(device)->runtime);
  free(device);
}

static hv_status allocate(hv_device *device, size_t bytes, const char *what, void **out) {
  hv_runtime_use(device_of(device)->runtime);
  return hv_runtime_allocate(device_of(device)->runtime, bytes, what, out);
}

static void release(hv_device *device, void *memory) {
  hv_runtime_release(device_of(device)->runtime, memory);
}

static hv_device_room room(hv_device *device) {
  hv_runtime_use(device_of(device)->runtime);
  return hv_runtime_room(device_of(device)->runtime);
}

static hv_status allocate_host(hv_device *device, size_t bytes, const char *what, void **out) {
  hv_runtime_use(device_of(device)->runtime);
  return hv_runtime_allocate_host(device_of(device)->runtime, bytes, what, out);
}

static void release_host(hv_device *device, void *memory) {
  hv_runtime_release_host(device_of(device)->runtime, memory);
}

static hv_status stream_open(hv_device *device, hv_stream **out) {
  *out = nullptr;
  hv_runtime_use(device_of(device)->runtime);
  hv_cuda_stream *stream = (hv_cuda_stream *)calloc(1, sizeof *stream);
  if (!stream) return hv_error_memory("a stream");
  stream->head.device = device;
  hv_status status = hv_queue_open(device_of(device)->runtime, &stream->queue);
  if (status) {
    free(stream);
    return status;
  }
  *out = &stream->head;
  return HV_OK;
}

static void stream_close(hv_stream *stream) {
  hv_cuda_stream *own = (hv_cuda_stream *)stream;
  hv_queue_close(hv_stream_runtime(stream), own->queue);
  hv_device_release(stream->device, own->scratch);
  for (int i = 0; i < own->outgrown_count; i++) hv_device_release(stream->device, own->outgrown[i]);
  free(own->outgrown);
  hv_status_free(own->error);
  free(own);
}

static hv_status stream_synchronize(hv_stream *stream) {
  hv_cuda_stream *own = (hv_cuda_stream *)stream;
  hv_status first = own->error;
  own->error = HV_OK;
  return hv_status_first(first, hv_queue_synchronize(own->queue));
}

void hv_stream_fail(hv_stream *stream, hv_status error) {
  hv_cuda_stream *own = (hv_cuda_stream *)stream;
  own->error = hv_status_first(own->error, error);
}

hv_runtime *hv_stream_runtime(hv_stream *stream) {
  return device_of(stream->device)->runtime;
}

hv_matmul *hv_stream_matmul(hv_stream *stream) {
  return device_of(stream->device)->matmul;
}

hv_attention_library *hv_stream_attention_library(hv_stream *stream) {
  return device_of(stream->device)->attention;
}

/* Gives up the scratch memory: releases it, or keeps it until the stream is closed if a recording may use it. False if
 * host memory is short. */
static bool retire_scratch(hv_cuda_stream *own) {
  if (!own->recorded || !own->scratch) {
    hv_device_release(own->head.device, own->scratch);
    own->scratch = nullptr;
    return true;
  }
  void **grown = (void **)realloc(own->outgrown, (size_t)(own->outgrown_count + 1) * sizeof *grown);
  if (!grown) return false;
  own->outgrown = grown;
  own->outgrown[own->outgrown_count++] = own->scratch;
  own->scratch = nullptr;
  return true;
}

void *hv_stream_scratch(hv_stream *stream, size_t bytes) {
  hv_cuda_stream *own = (hv_cuda_stream *)stream;
  if (bytes <= own->scratch_bytes) {
    hv_stream_fail(stream, hv_queue_spoil(own->queue, own->scratch, bytes));
    return own->scratch;
  }
  if (own->recording) {
    hv_stream_fail(stream,
                   hv_error(HV_ERR_INTERNAL, "operations need more scratch memory while they are recorded: run the "
                                             "same sequence once before recording it"));
    return nullptr;
  }
  /* Work queued earlier may still use the old memory, so it must end first. This goes through the device's own methods,
   * so that code that wraps and counts these sees it too. */
  hv_stream_fail(stream, hv_stream_synchronize(stream));
  if (!retire_scratch(own)) {
    hv_stream_fail(stream, hv_error_memory("the list of outgrown scratch memory"));
    return nullptr;
  }
  own->scratch_bytes = 0;
  hv_status status =
      hv_device_allocate(stream->device, HV_MEMORY_WORKSPACE, bytes, "scratch of operations", &own->scratch);
  if (!status) own->scratch_bytes = bytes;
  hv_stream_fail(stream, status);
  return own->scratch;
}

static hv_status event_open(hv_device *device, hv_event **out) {
  hv_runtime_use(device_of(device)->runtime);
  return hv_mark_open(device_of(device)->runtime, (hv_mark **)out);
}

static void event_close(hv_event *event) {
  hv_mark_close((hv_mark *)event);
}

static void event_record(hv_stream *stream, hv_event *event) {
  hv_stream_fail(stream, hv_mark_record(hv_stream_queue(stream), (hv_mark *)event));
}

static void event_wait(hv_stream *stream, hv_event *event) {
  hv_stream_fail(stream, hv_mark_wait(hv_stream_queue(stream), (hv_mark *)event));
}

static hv_status event_synchronize(hv_event *event) {
  return hv_mark_synchronize((hv_mark *)event);
}

static void stamp(hv_stream *stream, double *out) {
  hv_stream_fail(stream, hv_queue_stamp(hv_stream_queue(stream), out));
}

static void copy(hv_stream *stream, void *to, const void *from, size_t bytes) {
  hv_runtime_use(hv_stream_runtime(stream));
  hv_stream_fail(stream, hv_queue_copy(hv_stream_queue(stream), to, from, bytes));
}

static hv_status record_begin(hv_stream *stream) {
  hv_runtime_use(hv_stream_runtime(stream));
  hv_status status = hv_queue_record_begin(hv_stream_queue(stream));
  hv_cuda_stream *own = (hv_cuda_stream *)stream;
  own->recording = !status;
  own->recorded |= !status;
  return status;
}

/* An error met while recording is returned here, not by the next synchronisation. */
static hv_status record_end(hv_stream *stream, hv_recording **out) {
  hv_cuda_stream *own = (hv_cuda_stream *)stream;
  hv_status status = hv_status_first(own->error, hv_queue_record_end(own->queue, out));
  own->error = HV_OK;
  own->recording = false;
  if (!status) return HV_OK;
  hv_queue_recording_close(*out);
  *out = nullptr;
  return status;
}

static void replay(hv_stream *stream, hv_recording *recording) {
  hv_runtime_use(hv_stream_runtime(stream));
  hv_stream_fail(stream, hv_queue_replay(hv_stream_queue(stream), recording));
}

static void write_choices(const hv_device *device, hv_text *out) {
  hv_matmul_write_choices(((const cuda_device *)device)->matmul, out);
}

static hv_status read_choices(hv_device *device, const char *text, bool *fits) {
  return hv_matmul_read_choices(device_of(device)->matmul, text, fits);
}

static bool measure_choices(hv_device *device, bool on) {
  return hv_matmul_measure_choices(device_of(device)->matmul, on);
}

#ifdef HV_HAVE_NCCL
static hv_status comm_open(hv_device *device, const hv_comm_options *options, hv_comm **out) {
  return hv_comm_nccl_open(device, device_of(device)->runtime, options, out);
}
#else
static constexpr hv_status (*comm_open)(hv_device *, const hv_comm_options *, hv_comm **) = nullptr;
#endif

static const hv_device_methods methods = {
    .close = close_device,
    .allocate = allocate,
    .release = release,
    .room = room,
    .allocate_host = allocate_host,
    .release_host = release_host,
    .stream_open = stream_open,
    .stream_close = stream_close,
    .stream_synchronize = stream_synchronize,
    .event_open = event_open,
    .event_close = event_close,
    .event_record = event_record,
    .event_wait = event_wait,
    .event_synchronize = event_synchronize,
    .stamp = stamp,
    .upload = copy,
    .download = copy,
    .record_begin = record_begin,
    .record_end = record_end,
    .replay = replay,
    .recording_close = hv_queue_recording_close,
    .write_choices = write_choices,
    .read_choices = read_choices,
    .measure_choices = measure_choices,
    .comm_open = comm_open,
};

/* An operation with wrong operands is not run; the stream's next synchronisation returns the error. */
#define RUN(name)                                                                                                      \
  static void run_##name(hv_stream *stream, const hv_##name##_args *args) {                                            \
    hv_status status = hv_check_##name(args);                                                                          \
    hv_stream_fail(stream, status);                                                                                    \
    if (status) return;                                                                                                \
    hv_runtime_use(hv_stream_runtime(stream));                                                                         \
    hv_cuda_##name(stream, args);                                                                                      \
  }
HV_OPS(RUN)
#undef RUN

#define ENTRY(name) .name = run_##name,
static const hv_op_table operations = {HV_OPS(ENTRY)};
#undef ENTRY

extern "C" __attribute__((visibility("default"))) hv_status hv_device_module_open(const hv_device_options *options,
                                                                                  hv_device **out) {
  *out = nullptr;
  cuda_device *device = (cuda_device *)calloc(1, sizeof *device);
  if (!device) return hv_error_memory("the device");
  device->head.name = HV_MODULE_NAME;
  device->head.methods = &methods;
  device->head.ops = &operations;
  hv_status status = hv_runtime_open(options, &device->runtime);
  if (!status) status = hv_matmul_open(device->runtime, &device->matmul);
  if (!status) status = hv_attention_library_open(&device->attention);
  if (status) {
    hv_matmul_close(device->matmul);
    hv_runtime_close(device->runtime);
    free(device);
    return status;
  }
  const hv_card *card = hv_runtime_card(device->runtime);
  device->head.model = card->name;
  device->head.place = card->bus[0] ? card->bus : nullptr;
  *out = &device->head;
  return HV_OK;
}
