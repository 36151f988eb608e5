#include "cuda/emu/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>

#include "core/base/clock.h"
#include "cuda/device.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

enum { POISON = 0xff /* NaN in every floating-point type, −1 in every integer */, GUARD = 16 << 10, ALIGNMENT = 256 };

/* Memory handed out: guard, contents, guard. */
struct allocation {
  allocation *next;
  unsigned char *memory; /* the contents */
  size_t bytes, total;   /* of the contents; of the whole */
  char what[64];
};

/* Page-locked memory handed out. */
struct host_allocation {
  host_allocation *next;
  unsigned char *memory;
  size_t bytes;
};

struct task {
  task *next;
  uint64_t place; /* in its queue, from 1 on */
  hv_emu_work work;
  size_t bytes; /* of the payload */
  alignas(16) unsigned char payload[];
};

/* Tasks in the order of queueing. */
struct task_list {
  task *first, *last;
};

struct hv_recording {
  task_list tasks;
};

static hv_status note_what_is_ahead(hv_runtime *runtime, const void *payload);
static hv_status run_wait(hv_runtime *runtime, const void *payload);

struct hv_queue {
  hv_queue *next;
  hv_runtime *runtime;
  uint64_t identity;
  task_list tasks;
  uint64_t queued;            /* tasks queued so far */
  std::atomic<uint64_t> done; /* tasks that have ended; read by other threads */
  bool waits;                 /* it runs a wait for another queue, which is run meanwhile */
  hv_recording *recording;    /* receives the tasks while recording, else NULL */
  hv_status refusal;          /* why the recording will fail */
  hv_status error;
};

struct hv_mark {
  hv_runtime *runtime;
  uint64_t queue; /* identity; 0: never recorded */
  std::atomic<uint64_t> place;
};

/* The state of a mark when a queue was told to wait for it. */
struct wait_payload {
  uint64_t queue, place;
};

struct hv_runtime {
  hv_card card;
  hv_emu_workers *workers;
  allocation *allocations;
  host_allocation *host_allocations;
  hv_queue *queues;
  uint64_t recordings_to_disturb;
  size_t lockable; /* bytes of host memory that can still be page-locked */
  uint64_t queues_made, seed, launches, turns;
  bool interleaves;
  size_t allocated; /* bytes in use, HVLA_EMU_TAKEN included */
  double clock;     /* seconds */
};

/* A number in the environment. */
static size_t setting(const char *variable, size_t fallback) {
  const char *text = getenv(variable);
  return text ? strtoull(text, nullptr, 10) : fallback;
}

hv_status hv_runtime_open(const hv_device_options *options, hv_runtime **out) {
  *out = nullptr;
  hv_runtime *runtime = (hv_runtime *)calloc(1, sizeof *runtime);
  if (!runtime) return hv_error_memory("the emulated device");
  hv_status status = hv_emu_workers_open(options ? options->threads : 0, &runtime->workers);
  if (status) {
    free(runtime);
    return status;
  }
  runtime->seed = setting("HVLA_EMU_SEED", 0);
  runtime->interleaves = setting("HVLA_EMU_INTERLEAVE", 0) != 0;
  runtime->lockable = setting("HVLA_EMU_LOCKABLE", SIZE_MAX);
  runtime->recordings_to_disturb = setting("HVLA_EMU_DISTURB", 0);
  runtime->allocated = setting("HVLA_EMU_TAKEN", 0);
  size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
  runtime->card =
      hv_card{"emulated card", 8, 9, 1, !hv_is_switched_off("HVLA_EARLY"), setting("HVLA_EMU_MEMORY", machine), ""};
  *out = runtime;
  return HV_OK;
}

static void drain(hv_runtime *runtime);

void hv_runtime_close(hv_runtime *runtime) {
  if (!runtime) return;
  hv_emu_workers_close(runtime->workers);
  free(runtime);
}

void hv_runtime_use(const hv_runtime *) {}

const hv_card *hv_runtime_card(const hv_runtime *runtime) {
  return &runtime->card;
}

bool hv_kernel_waits(const void *) {
  return true;
}

static unsigned char *guard_before(const allocation *a) {
  return a->memory - GUARD;
}
static size_t guard_bytes_after(const allocation *a) {
  return a->total - GUARD - a->bytes;
}

/* Makes all recordings in progress fail, as CUDA does with those of the same thread. */
static void refuse_while_recording(hv_runtime *runtime, const char *what) {
  for (hv_queue *queue = runtime->queues; queue; queue = queue->next) {
    if (!queue->recording) continue;
    queue->refusal = hv_status_first(queue->refusal, hv_error(HV_ERR_INTERNAL, "%s while a queue records", what));
  }
}

hv_status hv_runtime_allocate(hv_runtime *runtime, size_t bytes, const char *what, void **out) {
  *out = nullptr;
  refuse_while_recording(runtime, "memory is asked for");
  hv_device_room room = hv_runtime_room(runtime);
  if (bytes > room.available) {
    return hv_error(HV_ERR_MEMORY, "out of memory on the emulated card: %s needs %zu bytes, %zu of %zu are free", what,
                    bytes, room.available, room.all);
  }
  size_t padded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, total = padded + 2 * GUARD;
  allocation *a = (allocation *)calloc(1, sizeof *a);
  void *memory = total > bytes ? aligned_alloc(ALIGNMENT, total) : nullptr;
  if (!a || !memory) {
    free(a);
    free(memory);
    return hv_error(HV_ERR_MEMORY, "out of memory: %s needs %zu bytes on the emulated card", what, bytes);
  }
  memset(memory, POISON, total);
  *a = allocation{runtime->allocations, (unsigned char *)memory + GUARD, bytes, total, ""};
  snprintf(a->what, sizeof a->what, "%s", what);
  runtime->allocations = a;
  runtime->allocated += bytes;
  ASAN_POISON_MEMORY_REGION(guard_before(a), GUARD);
  ASAN_POISON_MEMORY_REGION(a->memory + bytes, guard_bytes_after(a));
  *out = a->memory;
  return HV_OK;
}

/* The first byte of a guard zone that was overwritten, or NULL. Under AddressSanitizer, which finds this itself, the
 * zone must not be read. */
static const unsigned char *damage(const unsigned char *zone, size_t bytes) {
#ifndef __SANITIZE_ADDRESS__
  for (size_t i = 0; i < bytes; i++) {
    if (zone[i] != POISON) return zone + i;
  }
#endif
  (void)zone, (void)bytes;
  return nullptr;
}

static hv_status check_guards(allocation *a) {
  const unsigned char *at = damage(guard_before(a), GUARD);
  if (!at) at = damage(a->memory + a->bytes, guard_bytes_after(a));
  if (!at) return HV_OK;
  ptrdiff_t offset = at - a->memory;
  memset(guard_before(a), POISON, GUARD);
  memset(a->memory + a->bytes, POISON, guard_bytes_after(a));
  return hv_error(HV_ERR_DEVICE, "device memory was written outside an allocation: at byte %td of %s, which has %zu",
                  offset, a->what, a->bytes);
}

hv_device_room hv_runtime_room(const hv_runtime *runtime) {
  size_t all = runtime->card.memory_bytes;
  return {all > runtime->allocated ? all - runtime->allocated : 0, all};
}

void hv_runtime_release(hv_runtime *runtime, void *memory) {
  if (!memory) return;
  refuse_while_recording(runtime, "memory is given back");
  drain(runtime);
  for (allocation **link = &runtime->allocations; *link; link = &(*link)->next) {
    allocation *a = *link;
    if (a->memory != memory) continue;
    hv_status status = check_guards(a);
    if (status && runtime->queues) {
      runtime->queues->error = hv_status_first(runtime->queues->error, status);
    } else {
      hv_status_free(status);
    }
    *link = a->next;
    runtime->allocated -= a->bytes;
    ASAN_UNPOISON_MEMORY_REGION(guard_before(a), a->total);
    free(guard_before(a));
    free(a);
    return;
  }
}

hv_status hv_runtime_allocate_host(hv_runtime *runtime, size_t bytes, const char *what, void **out) {
  refuse_while_recording(runtime, "memory is asked for");
  host_allocation *a = (host_allocation *)calloc(1, sizeof *a);
  bool fits = bytes <= runtime->lockable;
  *out = fits ? aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT) : nullptr;
  if (!a || !*out) {
    free(a);
    free(*out);
    *out = nullptr;
    return hv_error(HV_ERR_MEMORY, "out of memory: %s needs %zu bytes of page-locked host memory", what, bytes);
  }
  *a = {runtime->host_allocations, (unsigned char *)*out, bytes};
  runtime->host_allocations = a;
  runtime->lockable -= bytes;
  return HV_OK;
}

void hv_runtime_release_host(hv_runtime *runtime, void *memory) {
  if (!memory) return;
  refuse_while_recording(runtime, "memory is given back");
  drain(runtime);
  host_allocation **link = &runtime->host_allocations;
  while ((*link)->memory != memory) link = &(*link)->next;
  host_allocation *a = *link;
  *link = a->next;
  runtime->lockable += a->bytes;
  free(a);
  free(memory);
}

hv_status hv_queue_open(hv_runtime *runtime, hv_queue **out) {
  hv_queue *queue = (hv_queue *)calloc(1, sizeof *queue);
  *out = queue;
  if (!queue) return hv_error_memory("a queue of the emulated device");
  queue->runtime = runtime;
  queue->identity = ++runtime->queues_made;
  queue->next = runtime->queues;
  runtime->queues = queue;
  return HV_OK;
}

static void run_first(hv_queue *queue) {
  task_list *tasks = &queue->tasks;
  task *t = tasks->first;
  tasks->first = t->next;
  if (!tasks->first) tasks->last = nullptr;
  queue->waits = t->work == run_wait;
  if (!queue->error) queue->error = t->work(queue->runtime, t->payload);
  queue->waits = false;
  queue->done = t->place;
  free(t);
}

/* Whether a queue has a next task that need not wait for another queue. */
static bool is_ready(const hv_queue *queue) {
  const task *t = queue->tasks.first;
  if (!t || queue->waits) return false;
  if (t->work != run_wait) return true;
  const wait_payload *mark = (const wait_payload *)t->payload;
  for (const hv_queue *other = queue->runtime->queues; other; other = other->next) {
    if (other->identity == mark->queue && other->done < mark->place) return false;
  }
  return true;
}

/* Of every other queue that has a task ready, runs one or none, as the seed decides. */
static void interleave(hv_queue *queue) {
  hv_runtime *runtime = queue->runtime;
  for (hv_queue *other = runtime->queues; other; other = other->next) {
    bool now = (runtime->seed + ++runtime->turns) * 0x9e3779b97f4a7c15u >> 63;
    if (now && other != queue && is_ready(other)) run_first(other);
  }
}

/* Runs a queue's tasks up to and including `place`. */
static void run_until(hv_queue *queue, uint64_t place) {
  while (queue->tasks.first && queue->tasks.first->place <= place) {
    if (queue->runtime->interleaves) interleave(queue);
    run_first(queue);
  }
}

static void drain(hv_runtime *runtime) {
  for (hv_queue *queue = runtime->queues; queue; queue = queue->next) run_until(queue, queue->queued);
}

void hv_queue_close(hv_runtime *, hv_queue *queue) {
  if (!queue) return;
  run_until(queue, queue->queued);
  hv_queue_recording_close(queue->recording);
  hv_status_free(queue->refusal);
  hv_queue **link = &queue->runtime->queues;
  while (*link != queue) link = &(*link)->next;
  *link = queue->next;
  hv_status_free(queue->error);
  free(queue);
}

hv_status hv_queue_synchronize(hv_queue *queue) {
  if (queue->recording) {
    refuse_while_recording(queue->runtime, "a queue is waited for");
    return hv_error(HV_ERR_INTERNAL, "a queue is waited for while it records");
  }
  run_until(queue, queue->queued);
  hv_status status = queue->error;
  queue->error = HV_OK;
  for (allocation *a = queue->runtime->allocations; a; a = a->next) {
    status = hv_status_first(status, check_guards(a));
  }
  return status;
}

hv_status hv_emu_enqueue(hv_queue *queue, hv_emu_work work, const void *payload, size_t bytes) {
  task *t = (task *)malloc(sizeof *t + bytes);
  if (!t) return hv_error_memory("work for the emulated device");
  t->next = nullptr;
  t->place = queue->recording ? 0 : ++queue->queued;
  t->work = work;
  t->bytes = bytes;
  if (bytes) memcpy(t->payload, payload, bytes);
  task_list *tasks = queue->recording ? &queue->recording->tasks : &queue->tasks;
  if (tasks->last) {
    tasks->last->next = t;
  } else {
    tasks->first = t;
  }
  tasks->last = t;
  return HV_OK;
}

hv_status hv_queue_record_begin(hv_queue *queue) {
  if (queue->recording) return hv_error(HV_ERR_INTERNAL, "a recording is begun inside another one");
  queue->recording = (hv_recording *)calloc(1, sizeof *queue->recording);
  return queue->recording ? HV_OK : hv_error_memory("a recording");
}

/* Drops the recording; returns `why`. */
static hv_status lose_recording(hv_recording **recording, hv_status why) {
  hv_queue_recording_close(*recording);
  *recording = nullptr;
  return why;
}

hv_status hv_queue_record_end(hv_queue *queue, hv_recording **out) {
  hv_status refusal = queue->refusal;
  *out = queue->recording;
  queue->recording = nullptr;
  queue->refusal = HV_OK;
  if (!*out) return hv_error(HV_ERR_INTERNAL, "a recording is ended that was not begun");
  if (refusal) return lose_recording(out, refusal);
  if (queue->runtime->recordings_to_disturb == 0) return HV_OK;
  queue->runtime->recordings_to_disturb--;
  return lose_recording(out, hv_error(HV_ERR_DEVICE, "the recording was lost, as HVLA_EMU_DISTURB asks"));
}

hv_status hv_queue_replay(hv_queue *queue, hv_recording *recording) {
  HV_TRY(hv_emu_enqueue(queue, note_what_is_ahead, &recording, sizeof recording));
  for (const task *t = recording->tasks.first; t; t = t->next) {
    HV_TRY(hv_emu_enqueue(queue, t->work, t->payload, t->bytes));
  }
  return HV_OK;
}

void hv_queue_recording_close(hv_recording *recording) {
  if (!recording) return;
  for (task *t = recording->tasks.first; t;) {
    task *next = t->next;
    free(t);
    t = next;
  }
  free(recording);
}

struct copy_payload {
  void *to;
  const void *from;
  size_t bytes;
};

static hv_status run_copy(hv_runtime *, const void *payload) {
  const copy_payload *c = (const copy_payload *)payload;
  memcpy(c->to, c->from, c->bytes);
  return HV_OK;
}

static bool holds(const unsigned char *memory, size_t size, const void *at, size_t bytes) {
  uintptr_t first = (uintptr_t)memory, wanted = (uintptr_t)at;
  return wanted >= first && wanted + bytes <= first + size;
}

/* Whether the memory is the card's, or page-locked. */
static bool is_known(const hv_runtime *runtime, const void *at, size_t bytes) {
  const allocation *a = runtime->allocations;
  while (a && !holds(a->memory, a->bytes, at, bytes)) a = a->next;
  const host_allocation *h = runtime->host_allocations;
  while (h && !holds(h->memory, h->bytes, at, bytes)) h = h->next;
  return a || h;
}

hv_status hv_queue_copy(hv_queue *queue, void *to, const void *from, size_t bytes) {
  if (queue->recording && !(is_known(queue->runtime, to, bytes) && is_known(queue->runtime, from, bytes))) {
    return hv_error(HV_ERR_INTERNAL, "a recording copies host memory that is not page-locked");
  }
  copy_payload c = {to, from, bytes};
  return hv_emu_enqueue(queue, run_copy, &c, sizeof c);
}

struct spoil_payload {
  void *memory;
  size_t bytes;
};

static hv_status run_spoil(hv_runtime *, const void *payload) {
  const spoil_payload *s = (const spoil_payload *)payload;
  memset(s->memory, POISON, s->bytes);
  return HV_OK;
}

hv_status hv_queue_spoil(hv_queue *queue, void *memory, size_t bytes) {
  spoil_payload s = {memory, bytes};
  return hv_emu_enqueue(queue, run_spoil, &s, sizeof s);
}

static hv_status run_stamp(hv_runtime *, const void *payload) {
  double *const *out = (double *const *)payload;
  **out = hv_clock_seconds();
  return HV_OK;
}

hv_status hv_queue_stamp(hv_queue *queue, double *out) {
  return hv_emu_enqueue(queue, run_stamp, &out, sizeof out);
}

hv_status hv_mark_open(hv_runtime *runtime, hv_mark **out) {
  *out = (hv_mark *)calloc(1, sizeof **out);
  if (!*out) return hv_error_memory("an event of the emulated device");
  (*out)->runtime = runtime;
  return HV_OK;
}

void hv_mark_close(hv_mark *mark) {
  free(mark);
}

/* On CUDA an event in a graph could neither be waited for from outside nor wait for work queued before the graph. */
static hv_status check_outside_recording(const hv_queue *queue) {
  return queue->recording ? hv_error(HV_ERR_INTERNAL, "an event is recorded or waited for in a recording") : HV_OK;
}

hv_status hv_mark_record(hv_queue *queue, hv_mark *mark) {
  HV_TRY(check_outside_recording(queue));
  mark->runtime = queue->runtime;
  mark->queue = queue->identity;
  mark->place = queue->queued;
  return HV_OK;
}

bool hv_mark_passed(const hv_queue *queue, const hv_mark *mark) {
  return queue->done >= mark->place;
}

/* Runs the queue of a mark up to the mark. A queue that was closed has finished its work. */
static hv_status run_wait(hv_runtime *runtime, const void *payload) {
  const wait_payload *mark = (const wait_payload *)payload;
  for (hv_queue *queue = runtime->queues; queue; queue = queue->next) {
    if (queue->identity == mark->queue) run_until(queue, mark->place);
  }
  return HV_OK;
}

hv_status hv_mark_wait(hv_queue *queue, hv_mark *mark) {
  if (mark->queue == 0) return HV_OK;
  HV_TRY(check_outside_recording(queue));
  wait_payload wait = {mark->queue, mark->place};
  return hv_emu_enqueue(queue, run_wait, &wait, sizeof wait);
}

hv_status hv_mark_synchronize(hv_mark *mark) {
  wait_payload wait = {mark->queue, mark->place};
  return mark->queue ? run_wait(mark->runtime, &wait) : HV_OK;
}

void hv_emu_spend(hv_runtime *runtime, double seconds) {
  runtime->clock += seconds;
}

struct hv_timer {
  double begin, end;
  hv_queue *queue;
};

static hv_status run_clock(hv_runtime *runtime, const void *payload) {
  double *const *out = (double *const *)payload;
  **out = runtime->clock;
  return HV_OK;
}

hv_status hv_timer_open(hv_runtime *, hv_timer **out) {
  *out = (hv_timer *)calloc(1, sizeof **out);
  return *out ? HV_OK : hv_error_memory("a timer of the emulated device");
}

void hv_timer_close(hv_timer *timer) {
  free(timer);
}

hv_status hv_timer_begin(hv_timer *timer, hv_queue *queue) {
  double *out = &timer->begin;
  return hv_emu_enqueue(queue, run_clock, &out, sizeof out);
}

hv_status hv_timer_end(hv_timer *timer, hv_queue *queue) {
  double *out = &timer->end;
  timer->queue = queue;
  return hv_emu_enqueue(queue, run_clock, &out, sizeof out);
}

hv_status hv_timer_seconds(hv_timer *timer, double *out) {
  run_until(timer->queue, timer->queue->queued);
  *out = timer->end - timer->begin;
  return HV_OK;
}

/* A launch in a queue; its arguments follow it. */
struct alignas(16) launch_payload {
  hv_emu_launch launch;
  launch_payload *recorded; /* in a recording and its replays: the recorded launch; else NULL */
  uint64_t ahead_sum;       /* in the recorded one: checksum of the memory it may read ahead, when the replay began */
};

/* A checksum of memory (FNV-1a). */
static uint64_t sum_of(const void *memory, size_t bytes) {
  const unsigned char *at = (const unsigned char *)memory;
  uint64_t sum = 0xcbf29ce484222325u;
  for (size_t i = 0; i < bytes; i++) sum = (sum ^ at[i]) * 0x100000001b3u;
  return sum;
}

static hv_status run_launch(hv_runtime *runtime, const void *payload) {
  const launch_payload *queued = (const launch_payload *)payload;
  hv_emu_launch launch = queued->launch;
  if (launch.early && launch.ahead && queued->recorded->ahead_sum != sum_of(launch.ahead, launch.ahead_bytes)) {
    return hv_error(HV_ERR_DEVICE,
                    "kernel %s may read %zu bytes before it waits, but what was recorded before it writes there",
                    launch.name, launch.ahead_bytes);
  }
  launch.arguments = queued + 1;
  launch.seed = runtime->seed * 0x9e3779b97f4a7c15u + ++runtime->launches;
  return hv_emu_run(runtime->workers, &launch);
}

/* When a replay begins: takes the checksums of the memory that its launches may read ahead. */
static hv_status note_what_is_ahead(hv_runtime *, const void *payload) {
  hv_recording *const *recording = (hv_recording *const *)payload;
  for (task *t = (*recording)->tasks.first; t; t = t->next) {
    if (t->work != run_launch) continue;
    launch_payload *recorded = (launch_payload *)t->payload;
    recorded->ahead_sum = sum_of(recorded->launch.ahead, recorded->launch.ahead_bytes);
  }
  return HV_OK;
}

enum { MOST_ARGUMENT_BYTES = 4096 };

hv_status hv_emu_queue_launch(hv_queue *queue, const hv_emu_launch *launch, size_t argument_bytes) {
  alignas(16) unsigned char payload[sizeof(launch_payload) + MOST_ARGUMENT_BYTES];
  *(launch_payload *)payload = {*launch, nullptr, 0};
  memcpy(payload + sizeof(launch_payload), launch->arguments, argument_bytes);
  HV_TRY(hv_emu_enqueue(queue, run_launch, payload, sizeof(launch_payload) + argument_bytes));
  if (!queue->recording) return HV_OK;
  launch_payload *recorded = (launch_payload *)queue->recording->tasks.last->payload;
  recorded->recorded = recorded;
  return HV_OK;
}
