/* The emulator's queues, for what else runs in them. */
#ifndef HV_CUDA_EMU_RUNTIME_H
#define HV_CUDA_EMU_RUNTIME_H

#include "cuda/emu/block.h"
#include "cuda/runtime.h"

/* A piece of work in a queue; its payload is a copy of what was queued. */
typedef hv_status (*hv_emu_work)(hv_runtime *runtime, const void *payload);

/* Moves the card's clock on; for work that runs. */
void hv_emu_spend(hv_runtime *runtime, double seconds);

HV_NODISCARD hv_status hv_emu_enqueue(hv_queue *queue, hv_emu_work work, const void *payload, size_t bytes);

#endif
