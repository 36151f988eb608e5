/* The emulator's queues, for other code that runs work in them (matmul.cc, nccl.cc). */
#ifndef HV_CUDA_EMU_RUNTIME_H
#define HV_CUDA_EMU_RUNTIME_H

#include "cuda/emu/block.h"
#include "cuda/runtime.h"

/* The function of a piece of work in a queue; the payload is a copy of what was queued. */
typedef hv_status (*hv_emu_work)(hv_runtime *runtime, const void *payload);

/* Advances the card's clock; called by work while it runs. */
void hv_emu_spend(hv_runtime *runtime, double seconds);

HV_NODISCARD hv_status hv_emu_enqueue(hv_queue *queue, hv_emu_work work, const void *payload, size_t bytes);

#endif
