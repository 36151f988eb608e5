/* A fiber: a stack, and the point where its execution stopped. The emulator runs each CUDA thread of a block as one.
 * Switching costs a few nanoseconds on x86-64 and AArch64; elsewhere (or with HV_EMU_UCONTEXT defined) it uses
 * swapcontext. */
#ifndef HV_CUDA_EMU_FIBER_H
#define HV_CUDA_EMU_FIBER_H

#include <stddef.h>

#include "core/base/status.h"

typedef struct hv_fiber {
  void *context; /* where it stopped */
  char *stack;   /* lowest usable byte */
  size_t stack_bytes;
  void *mapping; /* the stack and the guard page below it; NULL for the fiber of a system thread */
  size_t mapping_bytes;
  void *sanitizer; /* a sanitizer's record of it */
} hv_fiber;

/* Maps a fiber's stack. Overrunning it ends the process instead of corrupting other memory. */
HV_NODISCARD hv_status hv_fiber_open(size_t stack_bytes, hv_fiber *out);
void hv_fiber_close(hv_fiber *fiber);

/* The running system thread as a fiber, to switch away from and back to. */
void hv_fiber_adopt_thread(hv_fiber *out);

/* The next switch to the fiber calls entry(argument), which must never return. Whatever it ran before is abandoned. */
void hv_fiber_start(hv_fiber *fiber, void (*entry)(void *), void *argument);

void hv_fiber_switch(hv_fiber *from, hv_fiber *to);

/* The last switch from a fiber before it is started again. */
void hv_fiber_leave(hv_fiber *from, hv_fiber *to);

/* The first thing a fiber's entry does: tells the sanitizer that the switch is complete. */
void hv_fiber_entered(void);

#endif
