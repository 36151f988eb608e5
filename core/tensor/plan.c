#include <stdlib.h>

#include "core/tensor/op_check.h"

/* Allocations of the plan device start here: far above what an arena of hv_arena_for_plan hands out, so that no two
 * operands seem to overlap. */
static const uintptr_t FIRST_ADDRESS = (uintptr_t)1 << 46;
static const size_t ALIGNMENT = 256;

typedef struct plan_device {
  hv_device head;
  hv_plan_counts counts;
  uintptr_t next_address;
} plan_device;

typedef struct plan_stream {
  hv_stream head;
  hv_status error;
} plan_stream;

static void plan_close(hv_device *device) {
  free(device);
}

static hv_status plan_allocate(hv_device *device, size_t bytes, const char *what, void **out) {
  plan_device *plan = (plan_device *)device;
  (void)what;
  *out = (void *)plan->next_address;
  plan->next_address += (bytes / ALIGNMENT + 1) * ALIGNMENT;
  return HV_OK;
}

static void plan_release(hv_device *device, void *memory) {
  (void)device;
  (void)memory;
}

static hv_device_room plan_room(hv_device *device) {
  (void)device;
  return (hv_device_room){0};
}

/* Host memory is real: callers fill it before they upload it. */
static hv_status plan_allocate_host(hv_device *device, size_t bytes, const char *what, void **out) {
  (void)device;
  *out = calloc(1, bytes > 0 ? bytes : 1);
  return *out ? HV_OK : hv_error(HV_ERR_MEMORY, "out of memory: %s needs %zu bytes", what, bytes);
}

static void plan_release_host(hv_device *device, void *memory) {
  (void)device;
  free(memory);
}

static hv_status plan_stream_open(hv_device *device, hv_stream **out) {
  plan_stream *stream = calloc(1, sizeof *stream);
  if (!stream) return hv_error_memory("a stream of the plan device");
  stream->head.device = device;
  *out = &stream->head;
  return HV_OK;
}

static void plan_stream_close(hv_stream *stream) {
  plan_stream *plan = (plan_stream *)stream;
  hv_status_free(plan->error);
  free(plan);
}

static hv_status plan_stream_synchronize(hv_stream *stream) {
  plan_stream *plan = (plan_stream *)stream;
  hv_status error = plan->error;
  plan->error = HV_OK;
  return error;
}

static hv_status plan_event_open(hv_device *device, hv_event **out) {
  (void)device;
  *out = malloc(1);
  return *out ? HV_OK : hv_error_memory("an event of the plan device");
}

static void plan_event_close(hv_event *event) {
  free(event);
}

static void plan_event_record(hv_stream *stream, hv_event *event) {
  (void)stream;
  (void)event;
}

static hv_status plan_event_synchronize(hv_event *event) {
  (void)event;
  return HV_OK;
}

static void plan_upload(hv_stream *stream, void *to, const void *from_host, size_t bytes) {
  (void)stream;
  (void)to;
  (void)from_host;
  (void)bytes;
}

/* A caller that looks at a result sees zeros. */
static void plan_download(hv_stream *stream, void *to_host, const void *from, size_t bytes) {
  (void)stream;
  (void)from;
  memset(to_host, 0, bytes);
}

static const hv_device_methods methods = {
    .close = plan_close,
    .allocate = plan_allocate,
    .release = plan_release,
    .room = plan_room,
    .allocate_host = plan_allocate_host,
    .release_host = plan_release_host,
    .stream_open = plan_stream_open,
    .stream_close = plan_stream_close,
    .stream_synchronize = plan_stream_synchronize,
    .event_open = plan_event_open,
    .event_close = plan_event_close,
    .event_record = plan_event_record,
    .event_wait = plan_event_record,
    .event_synchronize = plan_event_synchronize,
    .upload = plan_upload,
    .download = plan_download,
};

static void record(hv_stream *stream, hv_status error, const hv_op_cost *cost) {
  plan_stream *plan = (plan_stream *)stream;
  hv_plan_counts *counts = &((plan_device *)stream->device)->counts;
  counts->operations++;
  if (error) {
    plan->error = hv_status_first(plan->error, error);
    return;
  }
  counts->matrix_flops += cost->matrix_flops;
  counts->bytes += cost->bytes;
  counts->weight_bytes += cost->weight_bytes;
}

#define RECORD(name)                                                                                                   \
  static void record_##name(hv_stream *stream, const hv_##name##_args *args) {                                         \
    hv_op_cost cost;                                                                                                   \
    hv_status error = hv_measure_##name(args, &cost);                                                                  \
    record(stream, error, &cost);                                                                                      \
  }
HV_OPS(RECORD)

#define ENTRY(name) .name = record_##name,
static const hv_op_table operations = {HV_OPS(ENTRY)};

hv_status hv_plan_device_open(hv_device **out) {
  *out = NULL;
  plan_device *plan = calloc(1, sizeof *plan);
  if (!plan) return hv_error_memory("the plan device");
  plan->head = (hv_device){.name = "plan", .methods = &methods, .ops = &operations};
  plan->next_address = FIRST_ADDRESS;
  *out = &plan->head;
  return HV_OK;
}

void hv_plan_device_counts(const hv_device *plan, hv_plan_counts *out) {
  *out = ((const plan_device *)plan)->counts;
  out->allocated_bytes = plan->memory.held.total;
  out->peak_bytes = plan->memory.peak.total;
}

void hv_plan_device_reset(hv_device *plan) {
  ((plan_device *)plan)->counts = (hv_plan_counts){0};
  hv_memory_reset_peak(&plan->memory);
}
