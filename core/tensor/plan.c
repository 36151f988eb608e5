#include "core/tensor/plan.h"

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
  hv_plan_machine machine;
  double now; /* the host's time */
} plan_device;

typedef struct plan_stream {
  hv_stream head;
  hv_status error;
  double end;    /* when its work is done */
  void *scratch; /* NULL until a matrix product is queued */
} plan_stream;

typedef struct plan_event {
  plan_device *device;
  double at;
} plan_event;

static plan_device *plan_of(hv_stream *stream) {
  return (plan_device *)stream->device;
}

/* Moves the host's time forward: it waits. */
static void pass_time(plan_device *device, double until) {
  if (until > device->now) device->now = until;
}

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
  hv_device_release(stream->device, plan->scratch);
  free(plan);
}

static hv_status plan_stream_synchronize(hv_stream *stream) {
  plan_stream *plan = (plan_stream *)stream;
  hv_status error = plan->error;
  pass_time(plan_of(stream), plan->end);
  plan->error = HV_OK;
  return error;
}

static hv_status plan_event_open(hv_device *device, hv_event **out) {
  plan_event *event = calloc(1, sizeof *event);
  *out = (hv_event *)event;
  if (!event) return hv_error_memory("an event of the plan device");
  event->device = (plan_device *)device;
  return HV_OK;
}

static void plan_event_close(hv_event *event) {
  free(event);
}

static void plan_event_record(hv_stream *stream, hv_event *event) {
  ((plan_event *)event)->at = hv_plan_stream_end(stream);
}

static void plan_event_wait(hv_stream *stream, hv_event *event) {
  hv_plan_stream_delay(stream, ((const plan_event *)event)->at);
}

static hv_status plan_event_synchronize(hv_event *event) {
  const plan_event *plan = (const plan_event *)event;
  pass_time(plan->device, plan->at);
  return HV_OK;
}

static void plan_stamp(hv_stream *stream, double *out) {
  *out = hv_plan_stream_end(stream);
}

static void plan_upload(hv_stream *stream, void *to, const void *from_host, size_t bytes) {
  double rate = plan_of(stream)->machine.upload_bytes_per_s;
  (void)to;
  (void)from_host;
  if (rate > 0) ((plan_stream *)stream)->end = hv_plan_stream_end(stream) + (double)bytes / rate;
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
    .event_wait = plan_event_wait,
    .event_synchronize = plan_event_synchronize,
    .stamp = plan_stamp,
    .upload = plan_upload,
    .download = plan_download,
};

/* Time of one operation on the machine. */
static double seconds_of(const hv_plan_machine *machine, const hv_op_cost *cost) {
  double arithmetic = machine->flops_per_s > 0 ? cost->matrix_flops / machine->flops_per_s : 0;
  double traffic = machine->bytes_per_s > 0 ? cost->bytes / machine->bytes_per_s : 0;
  return arithmetic > traffic ? arithmetic : traffic;
}

static hv_status take_scratch(plan_stream *stream) {
  size_t bytes = plan_of(&stream->head)->machine.stream_bytes;
  if (stream->scratch || bytes == 0) return HV_OK;
  return hv_device_allocate(stream->head.device, HV_MEMORY_WORKSPACE, bytes, "scratch of operations", &stream->scratch);
}

static void record(hv_stream *stream, hv_status error, const hv_op_cost *cost) {
  plan_stream *plan = (plan_stream *)stream;
  plan_device *device = plan_of(stream);
  hv_plan_counts *counts = &device->counts;
  counts->operations++;
  if (!error && cost->matrix_flops > 0) error = take_scratch(plan);
  if (error) {
    plan->error = hv_status_first(plan->error, error);
    return;
  }
  double seconds = seconds_of(&device->machine, cost);
  counts->matrix_flops += cost->matrix_flops;
  counts->bytes += cost->bytes;
  counts->weight_bytes += cost->weight_bytes;
  counts->seconds += seconds;
  plan->end = hv_plan_stream_end(stream) + seconds;
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

hv_status hv_plan_device_set_machine(hv_device *plan, const hv_plan_machine *machine) {
  void *held;
  ((plan_device *)plan)->machine = *machine;
  if (machine->device_bytes == 0) return HV_OK;
  return hv_device_allocate(plan, HV_MEMORY_WORKSPACE, machine->device_bytes, "the open device", &held);
}

double hv_plan_device_now(const hv_device *plan) {
  return ((const plan_device *)plan)->now;
}

double hv_plan_stream_end(const hv_stream *stream) {
  double end = ((const plan_stream *)stream)->end, now = hv_plan_device_now(stream->device);
  return end > now ? end : now;
}

void hv_plan_stream_delay(hv_stream *stream, double until) {
  plan_stream *plan = (plan_stream *)stream;
  if (until > plan->end) plan->end = until;
}
