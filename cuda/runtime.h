/* The few runtime services that the device needs, thin over CUDA (runtime.cu) and made again for the emulator
 * (emu/runtime.cc): memory, queues of work, marks that order queues.
 *
 * The emulator's are hostile. Memory starts as NaN between guard zones, which are looked at when a queue is waited for
 * (with AddressSanitizer, touching one ends the process). A queue runs nothing until it must: when it is waited for,
 * when memory is released, or when a queue that runs has to wait for a mark in it: a forgotten mark is noticed. With
 * HVLA_EMU_INTERLEAVE=1 in the environment other queues go on between the tasks of the one that runs: queues that share
 * memory are noticed. The order of blocks, threads and such turns comes from a seed, the environment's HVLA_EMU_SEED.
 * Nothing may be allocated or released while a queue records, and only page-locked host memory is copied there, as on
 * CUDA; the first HVLA_EMU_DISTURB recordings come to nothing, as where another thread of the process waits for a card.
 * The card has as much memory as HVLA_EMU_MEMORY says in bytes, by default what the machine has; HVLA_EMU_TAKEN of it,
 * by default nothing, is as if other processes held it; HVLA_EMU_LOCKABLE bytes of host memory can be page-locked.
 */
#ifndef HV_CUDA_RUNTIME_H
#define HV_CUDA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/status.h"
#include "core/tensor/device.h"

typedef struct hv_runtime hv_runtime; /* a card in use */
typedef struct hv_queue hv_queue;     /* work in order: a CUDA stream */
typedef struct hv_mark hv_mark;       /* a place in a queue: a CUDA event */
typedef struct hv_timer hv_timer;     /* the time between two places in a queue */

typedef struct hv_card {
  char name[128];
  int major, minor; /* compute capability */
  int multiprocessors;
  bool starts_early; /* what HV_LAUNCH_EARLY asks for */
  size_t memory_bytes;
  char bus[32]; /* its place in the machine; "" where several processes may have it */
} hv_card;

/* Whether the environment does without something, "HVLA_EARLY=0", for comparing (docs/performance.md):
 *   HVLA_CUDNN  cuDNN for the vision towers' attention; the own kernel runs (attention_library.h)
 *   HVLA_EARLY  launches that begin before the ones before them are over (HV_LAUNCH_EARLY) */
static inline bool hv_is_switched_off(const char *variable) {
  const char *text = getenv(variable);
  return text && strcmp(text, "0") == 0;
}

/* Whether a kernel waits where HV_LAUNCH_EARLY lets it begin. What is made for cards before compute capability 9.0 has
 * no such instruction, on whatever card it runs: newer ones take it, too. */
bool hv_kernel_waits(const void *kernel);

/* Errors say in one line what is missing: driver, card, a new enough one. */
HV_NODISCARD hv_status hv_runtime_open(const hv_device_options *options, hv_runtime **out);
void hv_runtime_close(hv_runtime *runtime);
/* Makes the card the one that the calling thread's next calls mean. */
void hv_runtime_use(const hv_runtime *runtime);
const hv_card *hv_runtime_card(const hv_runtime *runtime);

/* Device memory and page-locked host memory, aligned to 256 bytes. `what` is for the message. Releasing waits for all
 * queues; NULL is allowed. */
HV_NODISCARD hv_status hv_runtime_allocate(hv_runtime *runtime, size_t bytes, const char *what, void **out);
void hv_runtime_release(hv_runtime *runtime, void *memory);
hv_device_room hv_runtime_room(const hv_runtime *runtime);
HV_NODISCARD hv_status hv_runtime_allocate_host(hv_runtime *runtime, size_t bytes, const char *what, void **out);
void hv_runtime_release_host(hv_runtime *runtime, void *memory);

HV_NODISCARD hv_status hv_queue_open(hv_runtime *runtime, hv_queue **out);
void hv_queue_close(hv_runtime *runtime, hv_queue *queue); /* finishes its work first */
HV_NODISCARD hv_status hv_queue_synchronize(hv_queue *queue);
HV_NODISCARD hv_status hv_queue_copy(hv_queue *queue, void *to, const void *from, size_t bytes);
/* *out = the host's clock when the queue comes here. */
HV_NODISCARD hv_status hv_queue_stamp(hv_queue *queue, double *out);
/* Says that the contents no longer matter: the emulator makes them NaN, CUDA does nothing. */
HV_NODISCARD hv_status hv_queue_spoil(hv_queue *queue, void *memory, size_t bytes);

/* Between begin and end, what is queued is kept instead of being done; see hv_stream_record_begin in
 * core/tensor/device.h. On CUDA a recording is a graph. */
HV_NODISCARD hv_status hv_queue_record_begin(hv_queue *queue);
HV_NODISCARD hv_status hv_queue_record_end(hv_queue *queue, hv_recording **out);
HV_NODISCARD hv_status hv_queue_replay(hv_queue *queue, hv_recording *recording);
void hv_queue_recording_close(hv_recording *recording);

HV_NODISCARD hv_status hv_mark_open(hv_runtime *runtime, hv_mark **out);
void hv_mark_close(hv_mark *mark);
HV_NODISCARD hv_status hv_mark_record(hv_queue *queue, hv_mark *mark);
HV_NODISCARD hv_status hv_mark_wait(hv_queue *queue, hv_mark *mark); /* a mark never recorded is no obstacle */
HV_NODISCARD hv_status hv_mark_synchronize(hv_mark *mark);           /* the caller waits; likewise */
/* Whether the queue in which the mark was recorded last has passed it; of any thread. */
bool hv_mark_passed(const hv_queue *queue, const hv_mark *mark);

/* By the card's clock. In the emulator no time passes but what hv_emu_spend says. */
HV_NODISCARD hv_status hv_timer_open(hv_runtime *runtime, hv_timer **out);
void hv_timer_close(hv_timer *timer);
HV_NODISCARD hv_status hv_timer_begin(hv_timer *timer, hv_queue *queue);
HV_NODISCARD hv_status hv_timer_end(hv_timer *timer, hv_queue *queue);
HV_NODISCARD hv_status hv_timer_seconds(hv_timer *timer, double *out); /* waits for the end */

/* A stream of this device: the operations' view of a queue. */
typedef struct hv_cuda_stream {
  hv_stream head;
  hv_queue *queue;
  hv_status error; /* the first met while queueing, until the next synchronisation */
  void *scratch;   /* device memory of operations in this stream */
  size_t scratch_bytes;
  bool recording, recorded; /* right now; ever */
  bool behind_launch;       /* what was queued last is a kernel's launch */
  void **outgrown;          /* scratch that recordings may still use, released with the stream */
  int outgrown_count;
} hv_cuda_stream;

/* For queueing anything but a kernel's launch (launch.h). */
static inline hv_queue *hv_stream_queue(hv_stream *stream) {
  hv_cuda_stream *own = (hv_cuda_stream *)stream;
  own->behind_launch = false;
  return own->queue;
}

/* Keeps the first error for the stream's next synchronisation; takes ownership, HV_OK is allowed. */
void hv_stream_fail(hv_stream *stream, hv_status error);

/* Device memory for the launches of one operation, undefined, valid until the stream's next operation asks. It grows
 * when needed and never shrinks, so a repeated sequence of operations allocates nothing. NULL (the stream then has an
 * error, and the operation gives up) without memory. */
void *hv_stream_scratch(hv_stream *stream, size_t bytes);

hv_runtime *hv_stream_runtime(hv_stream *stream);

#endif
