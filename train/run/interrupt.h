/* SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 as flags that the training loop polls between steps. SIGUSR1 does what
 * SIGTERM does: it is what mpirun hands on to its ranks without ending them itself. So does SIGHUP, of a terminal that
 * is closed, unless it is ignored (nohup). SIGUSR2 ends nothing: it asks for a checkpoint and the model now. SIGPIPE is
 * ignored: what reads the log (`2>&1 | tee`) gets the terminal's Ctrl-C, too, and is gone before the checkpoint is
 * written.
 *
 * One thread waits for the signals (sigwait), and every other thread blocks them: no system call is interrupted and no
 * handler runs. The first one is remembered, a second SIGINT ends the process at once with exit code 130.
 */
#ifndef HV_TRAIN_RUN_INTERRUPT_H
#define HV_TRAIN_RUN_INTERRUPT_H

#include "core/base/status.h"

typedef struct hv_interrupt hv_interrupt;

/* Blocks the signals in the calling thread and in all that it starts later, so it is called before there are others. */
HV_NODISCARD hv_status hv_interrupt_open(hv_interrupt **out);
void hv_interrupt_close(hv_interrupt *interrupt); /* NULL is allowed */

/* numbers[i] becomes 1 if the i-th of the signals that end a run came first, else 0; ranks sum these. NULL: no signal
 * came. */
enum { HV_INTERRUPT_SIGNALS = 4 };
void hv_interrupt_tell(const hv_interrupt *interrupt, double numbers[HV_INTERRUPT_SIGNALS]);

/* The signal that ends the run, from those sums and so the same on all ranks; 0: none. */
int hv_interrupt_hear(const double numbers[HV_INTERRUPT_SIGNALS]);

/* "Ctrl-C", "SIGTERM", … */
const char *hv_interrupt_name(int signal_number);

/* From now on a signal no longer logs that a checkpoint follows: the run has failed, and a launcher that ends the job
 * signals its ranks. NULL is allowed. */
void hv_interrupt_silence(hv_interrupt *interrupt);

/* Whether SIGUSR2 has come since this was last asked. */
bool hv_interrupt_take_request(hv_interrupt *interrupt);

#endif
