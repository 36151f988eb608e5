/* The few runtime services that the device needs, a thin layer over CUDA (runtime.cu) that the emulator implements as
 * well (emu/runtime.cc): memory, queues of work (CUDA streams), marks that order queues (CUDA events).
 *
 * The emulator is built to expose mistakes:
 * - Memory starts as NaN between guard zones, which are checked whenever a queue is waited for (with AddressSanitizer,
 *   touching one ends the process).
 * - A queue runs nothing until it must: when it is waited for, when memory is released, or when another queue waits for
 *   a mark in it. So a missing wait shows as wrong data.
 * - HVLA_EMU_INTERLEAVE=1 in the environment: between two tasks of the running queue, other queues may run one, so that
 *   queues which use the same memory without an order show. That order, and that of blocks and threads, comes from the
 *   seed HVLA_EMU_SEED.
 * - As on CUDA, nothing may be allocated or released while a queue records, and only page-locked host memory is copied
 *   in a recording. The first HVLA_EMU_DISTURB recordings fail, as one does on a card if another thread of the process
 *   waits for the card.
 * - The card has HVLA_EMU_MEMORY bytes of memory (default: as much as the machine), of which HVLA_EMU_TAKEN (default 0)
 *   count as used by other processes; at most HVLA_EMU_LOCKABLE bytes of host memory can be page-locked. */
#ifndef HV_CUDA_RUNTIME_H
#define HV_CUDA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/status.h"
#include "core/tensor/device.h"

typedef struct hv_runtime hv_runtime; /* an open card */
typedef struct hv_queue hv_queue;     /* work in order: a CUDA stream */
typedef struct hv_mark hv_mark;       /* a place in a queue: a CUDA event */
typedef struct hv_timer hv_timer;     /* the time between two places in a queue */

typedef struct hv_card {
  char name[128];
  int major, minor; /* compute capability */
  int multiprocessors;
  bool starts_early; /* takes programmatic dependent launches (HV_LAUNCH_EARLY) */
  size_t memory_bytes;
  char bus[32]; /* PCI bus id, which identifies it within the machine; "": it may be shared by several processes */
} hv_card;

/* Whether the environment turns something off, as in HVLA_EARLY=0, for comparison (docs/performance.md):
 *   HVLA_CUDNN  cuDNN for the vision towers' attention; the built-in kernel runs instead (attention_library.h)
 *   HVLA_EARLY  launches that begin before the kernel ahead of them has ended (HV_LAUNCH_EARLY) */
static inline bool hv_is_switched_off(const char *variable) {
  const char *text = getenv(variable);
  return text && strcmp(text, "0") == 0;
}

/* Whether the loaded code of a kernel contains the wait that HV_LAUNCH_EARLY needs. Code compiled for compute
 * capabilities before 9.0 has no such instruction, and newer cards may run that code, too. */
bool hv_kernel_waits(const void *kernel);

/* On failure one line says what is missing: driver, card, or a new enough one. */
HV_NODISCARD hv_status hv_runtime_open(const hv_device_options *options, hv_runtime **out);
void hv_runtime_close(hv_runtime *runtime);
/* Makes the card current for the calling thread (cudaSetDevice). */
void hv_runtime_use(const hv_runtime *runtime);
const hv_card *hv_runtime_card(const hv_runtime *runtime);

/* Device memory and page-locked host memory, aligned to 256 bytes. `what` names its use in error messages. Releasing
 * waits for all queues; NULL is allowed. */
HV_NODISCARD hv_status hv_runtime_allocate(hv_runtime *runtime, size_t bytes, const char *what, void **out);
void hv_runtime_release(hv_runtime *runtime, void *memory);
hv_device_room hv_runtime_room(const hv_runtime *runtime);
HV_NODISCARD hv_status hv_runtime_allocate_host(hv_runtime *runtime, size_t bytes, const char *what, void **out);
void hv_runtime_release_host(hv_runtime *runtime, void *memory);

HV_NODISCARD hv_status hv_queue_open(hv_runtime *runtime, hv_queue **out);
void hv_queue_close(hv_runtime *runtime, hv_queue *queue); /* finishes its work first */
HV_NODISCARD hv_status hv_queue_synchronize(hv_queue *queue);
HV_NODISCARD hv_status hv_queue_copy(hv_queue *queue, void *to, const void *from, size_t bytes);
/* *out = the host's clock (hv_clock_seconds) when the queue reaches this point. */
HV_NODISCARD hv_status hv_queue_stamp(hv_queue *queue, double *out);
/* Declares the contents undefined: the emulator makes them NaN, CUDA does nothing. */
HV_NODISCARD hv_status hv_queue_spoil(hv_queue *queue, void *memory, size_t bytes);

/* Between begin and end, work is recorded instead of executed; see hv_stream_record_begin in core/tensor/device.h. On
 * CUDA this is graph capture, and a recording is an executable graph. */
HV_NODISCARD hv_status hv_queue_record_begin(hv_queue *queue);
HV_NODISCARD hv_status hv_queue_record_end(hv_queue *queue, hv_recording **out);
HV_NODISCARD hv_status hv_queue_replay(hv_queue *queue, hv_recording *recording);
void hv_queue_recording_close(hv_recording *recording);

HV_NODISCARD hv_status hv_mark_open(hv_runtime *runtime, hv_mark **out);
void hv_mark_close(hv_mark *mark);
HV_NODISCARD hv_status hv_mark_record(hv_queue *queue, hv_mark *mark);
/* The queue, or the caller, waits for a mark; for one that was never recorded it does not wait. */
HV_NODISCARD hv_status hv_mark_wait(hv_queue *queue, hv_mark *mark);
HV_NODISCARD hv_status hv_mark_synchronize(hv_mark *mark);
/* Whether the queue in which the mark was last recorded has passed it. Any thread may call it. */
bool hv_mark_passed(const hv_queue *queue, const hv_mark *mark);

/* The card's clock. In the emulator it advances only by hv_emu_spend. */
HV_NODISCARD hv_status hv_timer_open(hv_runtime *runtime, hv_timer **out);
void hv_timer_close(hv_timer *timer);
HV_NODISCARD hv_status hv_timer_begin(hv_timer *timer, hv_queue *queue);
HV_NODISCARD hv_status hv_timer_end(hv_timer *timer, hv_queue *queue);
HV_NODISCARD hv_status hv_timer_seconds(hv_timer *timer, double *out); /* waits until the end is reached */

/* A stream of this device, over a queue. */
typedef struct hv_cuda_stream {
  hv_stream head;
  hv_queue *queue;
  hv_status error; /* the first one while queueing; returned by the next synchronisation */
  void *scratch;   /* device memory, see hv_stream_scratch */
  size_t scratch_bytes;
  bool recording, recorded; /* now; ever */
  bool behind_launch;       /* the last thing queued was a kernel */
  void **outgrown;          /* former scratch that recordings may still use; released with the stream */
  int outgrown_count;
} hv_cuda_stream;

/* For queueing anything but a kernel (launch.h). */
static inline hv_queue *hv_stream_queue(hv_stream *stream) {
  hv_cuda_stream *own = (hv_cuda_stream *)stream;
  own->behind_launch = false;
  return own->queue;
}

/* Keeps the first error for the stream's next synchronisation; takes ownership, HV_OK is allowed. */
void hv_stream_fail(hv_stream *stream, hv_status error);

/* Device memory for the kernels of one operation, contents undefined, valid until the stream's next operation asks for
 * scratch. It grows when needed and never shrinks, so a repeated sequence of operations allocates nothing. NULL if
 * memory is short: the stream then has an error, and the operation returns. */
void *hv_stream_scratch(hv_stream *stream, size_t bytes);

hv_runtime *hv_stream_runtime(hv_stream *stream);

#endif
