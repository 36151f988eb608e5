/* SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 as questions that the training loop asks between two steps. SIGUSR1
 * does what SIGTERM does: it is what mpirun hands on to its ranks without ending them itself. So does SIGHUP, of a
 * terminal that is closed, unless it is ignored (nohup). SIGUSR2 ends nothing: it asks for a checkpoint and the model
 * now. SIGPIPE is ignored: what reads the log (`2>&1 | tee`) gets the terminal's Ctrl-C, too, and is gone before the
 * checkpoint is written.
 *
 * A thread waits for the signals, which every other thread blocks: nothing is interrupted and no handler runs. The
 * first one is remembered, a second SIGINT ends the process at once with exit code 130.
 */
#ifndef HV_TRAIN_RUN_INTERRUPT_H
#define HV_TRAIN_RUN_INTERRUPT_H

#include "core/base/status.h"

typedef struct hv_interrupt hv_interrupt;

/* Blocks the signals in the calling thread and in all that it starts later, so it is called before there are others. */
HV_NODISCARD hv_status hv_interrupt_open(hv_interrupt **out);
void hv_interrupt_close(hv_interrupt *interrupt); /* NULL is allowed */

/* A number for each signal that ends a run, 1: it was the first that came; ranks add them up. NULL: none came. */
enum { HV_INTERRUPT_SIGNALS = 4 };
void hv_interrupt_tell(const hv_interrupt *interrupt, double numbers[HV_INTERRUPT_SIGNALS]);

/* The signal that ends the run by those sums, the same on all ranks; 0: none. */
int hv_interrupt_hear(const double numbers[HV_INTERRUPT_SIGNALS]);

/* "Ctrl-C", "SIGTERM", … */
const char *hv_interrupt_name(int signal_number);

/* Says no more that a checkpoint follows a signal: the run fails, and a launcher that ends the job signals its ranks.
 * NULL is allowed. */
void hv_interrupt_silence(hv_interrupt *interrupt);

/* Whether SIGUSR2 has come since this was last asked. */
bool hv_interrupt_take_request(hv_interrupt *interrupt);

#endif
