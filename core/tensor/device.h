/* A device: memory, streams and a table of operations (ops.h). The model, the policy and the trainer reach every
 * processor through this header and know nothing else of it.
 *
 * Work is queued on a stream and runs in the order of queueing; different streams are ordered by events alone.
 * Operations return nothing: an error on the device surfaces, with its message, at the next hv_stream_synchronize.
 * A device and its streams may be used by one thread at a time, unless a device says otherwise.
 */
#ifndef HV_TENSOR_DEVICE_H
#define HV_TENSOR_DEVICE_H

#include "core/base/status.h"
#include "core/base/text.h"
#include "core/tensor/memory.h"
#include "core/tensor/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct hv_op_table;

typedef struct hv_device hv_device;
typedef struct hv_stream hv_stream;
typedef struct hv_event hv_event;
typedef struct hv_recording hv_recording;
struct hv_comm;
struct hv_comm_options;

/* Memory of a device in bytes; 0 where it is not known. */
typedef struct hv_device_room {
  size_t available, all;
} hv_device_room;

typedef struct hv_device_methods {
  void (*close)(hv_device *device);

  /* Device memory, aligned to 256 bytes; contents undefined. `what` names it in an out-of-memory message. */
  hv_status (*allocate)(hv_device *device, size_t bytes, const char *what, void **out);
  void (*release)(hv_device *device, void *memory);
  hv_device_room (*room)(hv_device *device);
  /* Host memory from which copies run at full speed (page-locked where that matters). */
  hv_status (*allocate_host)(hv_device *device, size_t bytes, const char *what, void **out);
  void (*release_host)(hv_device *device, void *memory);

  hv_status (*stream_open)(hv_device *device, hv_stream **out);
  void (*stream_close)(hv_stream *stream);
  hv_status (*stream_synchronize)(hv_stream *stream); /* waits; returns the first error since the last call */

  hv_status (*event_open)(hv_device *device, hv_event **out);
  void (*event_close)(hv_event *event);
  void (*event_record)(hv_stream *stream, hv_event *event);
  void (*event_wait)(hv_stream *stream, hv_event *event); /* later work on the stream starts after the event */
  hv_status (*event_synchronize)(hv_event *event);        /* waits until the event's stream has passed it */

  /* A timestamp: *out becomes the host's clock (hv_clock_seconds) when the stream reaches this point. */
  void (*stamp)(hv_stream *stream, double *out);

  /* Queued copies of `bytes` bytes; the host memory must stay untouched until the stream has passed the copy. */
  void (*upload)(hv_stream *stream, void *to, const void *from_host, size_t bytes);
  void (*download)(hv_stream *stream, void *to_host, const void *from, size_t bytes);

  /* Recording (graph capture), see hv_stream_record_begin; all four are NULL if a device gains nothing by it. */
  hv_status (*record_begin)(hv_stream *stream);
  hv_status (*record_end)(hv_stream *stream, hv_recording **out);
  void (*replay)(hv_stream *stream, hv_recording *recording);
  void (*recording_close)(hv_recording *recording);

  /* See hv_device_write_choices; all three are NULL if a device makes no such choices. */
  void (*write_choices)(const hv_device *device, hv_text *out);
  hv_status (*read_choices)(hv_device *device, const char *text, bool *fits);
  bool (*measure_choices)(hv_device *device, bool on);

  /* Opens the device's own communicator (NCCL for CUDA; core/tensor/comm.h); NULL if it has none. */
  hv_status (*comm_open)(hv_device *device, const struct hv_comm_options *options, struct hv_comm **out);
} hv_device_methods;

struct hv_device {
  const char *name; /* "cpu", "plan", "emu", "cuda" */
  const hv_device_methods *methods;
  const struct hv_op_table *ops;
  bool host_memory;               /* its memory is host memory: the host may copy it, also while the device works */
  bool zeroes_memory;             /* what it allocates is all 0, without being touched */
  const char *model;              /* name of the hardware, "NVIDIA H100 80GB HBM3"; NULL: nothing beyond `name` */
  const char *place;              /* PCI address of a card ("0000:1b:00.0"), which two ranks may not share; or NULL */
  hv_memory_account memory;       /* of what hv_device_allocate gave out; others may read `held` and `peak` */
  struct hv_nan_watch *nan_watch; /* nan_watch.h; NULL: nobody looks at results */
};

/* Devices put their own state behind this head. */
struct hv_stream {
  hv_device *device;
};

/* Allocates device memory and enters it in the account under `kind`; `what` names it in messages. Out of memory:
 * HV_ERR_MEMORY with a table of what this device holds by kind, and of what others hold. */
HV_NODISCARD hv_status hv_device_allocate(hv_device *device, hv_memory_kind kind, size_t bytes, const char *what,
                                          void **out);
void hv_device_release(hv_device *device, void *memory); /* NULL is allowed */
void hv_device_close(hv_device *device);                 /* NULL is allowed */

static inline hv_device_room hv_device_get_room(hv_device *device) {
  return device->methods->room(device);
}
HV_NODISCARD static inline hv_status hv_device_allocate_host(hv_device *device, size_t bytes, const char *what,
                                                             void **out) {
  return device->methods->allocate_host(device, bytes, what, out);
}
static inline void hv_device_release_host(hv_device *device, void *memory) {
  if (memory) device->methods->release_host(device, memory);
}
HV_NODISCARD static inline hv_status hv_stream_open(hv_device *device, hv_stream **out) {
  return device->methods->stream_open(device, out);
}
static inline void hv_stream_close(hv_stream *stream) {
  if (stream) stream->device->methods->stream_close(stream);
}
HV_NODISCARD static inline hv_status hv_stream_synchronize(hv_stream *stream) {
  return stream->device->methods->stream_synchronize(stream);
}
HV_NODISCARD static inline hv_status hv_event_open(hv_device *device, hv_event **out) {
  return device->methods->event_open(device, out);
}
static inline void hv_event_close(hv_device *device, hv_event *event) {
  if (event) device->methods->event_close(event);
}
static inline void hv_event_record(hv_stream *stream, hv_event *event) {
  stream->device->methods->event_record(stream, event);
}
static inline void hv_event_wait(hv_stream *stream, hv_event *event) {
  stream->device->methods->event_wait(stream, event);
}
/* Does not report errors of the stream's work: hv_stream_synchronize does. Returns at once for an event that was never
 * recorded. */
HV_NODISCARD static inline hv_status hv_event_synchronize(hv_device *device, hv_event *event) {
  return device->methods->event_synchronize(event);
}
static inline void hv_stream_stamp(hv_stream *stream, double *out) {
  stream->device->methods->stamp(stream, out);
}
static inline void hv_upload(hv_stream *stream, void *to, const void *from_host, size_t bytes) {
  if (bytes) stream->device->methods->upload(stream, to, from_host, bytes);
}
static inline void hv_download(hv_stream *stream, void *to_host, const void *from, size_t bytes) {
  if (bytes) stream->device->methods->download(stream, to_host, from, bytes);
}

/* Recording is what CUDA calls graph capture: a sequence of operations and copies is queued much faster by replaying it
 * than call by call. Between hv_stream_record_begin and hv_stream_record_end, work queued on the stream is recorded
 * instead of executed; each hv_stream_replay queues all of it. Pointers and shapes are fixed by the recording, memory
 * contents are read anew. A recording must not write a weight that one of its own hv_linear or hv_norm reads: a card
 * prefetches weights before earlier operations of the recording have ended. The same sequence must have been executed
 * once before, since nothing can be allocated meanwhile. hv_stream_synchronize, events, and copies of host memory that
 * is not hv_device_allocate_host's are errors of the recording. HV_ERR_DEVICE is worth another try: on a card, another
 * thread of the process can invalidate a recording. */
static inline bool hv_device_records(const hv_device *device) {
  return device->methods->record_begin != NULL;
}
HV_NODISCARD static inline hv_status hv_stream_record_begin(hv_stream *stream) {
  return stream->device->methods->record_begin(stream);
}
/* The caller owns the recording, which can be replayed on streams of the same device. After an error there is no
 * recording, and the stream is usable. */
HV_NODISCARD static inline hv_status hv_stream_record_end(hv_stream *stream, hv_recording **out) {
  return stream->device->methods->record_end(stream, out);
}
static inline void hv_stream_replay(hv_stream *stream, hv_recording *recording) {
  stream->device->methods->replay(stream, recording);
}
/* Call it when all replays have ended; NULL is allowed. */
static inline void hv_recording_close(hv_device *device, hv_recording *recording) {
  if (recording) device->methods->recording_close(recording);
}

/* Choices are the algorithms of matrix products that a device picks when it first meets a shape; another process may
 * pick others, and round differently. The choices made so far can be written as text and read by another process, which
 * then gives the same bytes; they replace its own choices for the same shapes. If the text comes from another kind of
 * device, *fits is false and nothing is read. */
static inline bool hv_device_chooses(const hv_device *device) {
  return device->methods->write_choices != NULL;
}
static inline void hv_device_write_choices(const hv_device *device, hv_text *out) {
  device->methods->write_choices(device, out);
}
HV_NODISCARD static inline hv_status hv_device_read_choices(hv_device *device, const char *text, bool *fits) {
  return device->methods->read_choices(device, text, fits);
}

/* While this is on, a device times the candidates for each new shape and chooses the fastest, unless the shape was
 * measured or read before; while off, it takes its library's first guess. Measured operations run several times, and
 * those that add to memory add several times: results computed meanwhile are of no use, and nothing may be recorded.
 * Returns false if the device has nothing to measure. */
static inline bool hv_device_measure_choices(hv_device *device, bool on) {
  return device->methods->measure_choices && device->methods->measure_choices(device, on);
}

/* Opens the device in the shared library libhvla-<name>.so, which exports
 *   hv_status hv_device_module_open(const hv_device_options *options, hv_device **out);
 * It is looked for beside the program, in ../lib beside it, and on the loader's path. A missing library, driver or
 * card is one line that says what is missing. */
typedef struct hv_device_options {
  int index;   /* which card; if just one is visible, that one */
  int threads; /* of the CPU; 0: as many as there are processors */
} hv_device_options;

HV_NODISCARD hv_status hv_device_load(const char *name, const hv_device_options *options, hv_device **out);

#ifdef __cplusplus
}
#endif

#endif
