#include "train/run/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/log.h"

struct hv_interrupt {
  pthread_t thread;
  sigset_t signals;
  atomic_int received;
  atomic_bool requested, silent;
};

/* If several ranks got different signals, the first of them in this list counts. */
static const struct {
  int number;
  const char *name;
} ending[HV_INTERRUPT_SIGNALS] = {{SIGINT, "Ctrl-C"}, {SIGTERM, "SIGTERM"}, {SIGHUP, "SIGHUP"}, {SIGUSR1, "SIGUSR1"}};

static void *wait_for_signals(void *argument) {
  hv_interrupt *interrupt = argument;
  bool interrupted = false;
  for (;;) {
    int number;
    if (sigwait(&interrupt->signals, &number) != 0) continue;
    if (number == SIGUSR2) {
      atomic_store(&interrupt->requested, true);
      continue;
    }
    if (number == SIGINT && interrupted) _exit(130);
    interrupted |= number == SIGINT;
    if (atomic_load(&interrupt->received) == 0) {
      atomic_store(&interrupt->received, number);
      if (atomic_load(&interrupt->silent)) continue;
      hv_log_info("%s%s: finishing the step or the validation, then writing a checkpoint",
                  isatty(STDERR_FILENO) ? "\n" : "", /* below the progress line of a terminal */
                  hv_interrupt_name(number));
    }
  }
  return NULL;
}

/* Under nohup SIGHUP is ignored, and the run must continue. */
static bool hangup_is_ignored;

static void look_at_hangup(void) {
  struct sigaction action;
  hangup_is_ignored = sigaction(SIGHUP, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

/* Called before any library is initialised: UCX, below Open MPI 5, then takes SIGHUP for its debugger, ignored or not.
 */
__attribute__((section(".preinit_array"), used)) static void (*const look_first)(void) = look_at_hangup;

hv_status hv_interrupt_open(hv_interrupt **out) {
  *out = NULL;
  hv_interrupt *interrupt = calloc(1, sizeof *interrupt);
  if (!interrupt) return hv_error_memory("the signal watcher");
  sigemptyset(&interrupt->signals);
  sigaddset(&interrupt->signals, SIGINT);
  sigaddset(&interrupt->signals, SIGTERM);
  sigaddset(&interrupt->signals, SIGUSR1);
  sigaddset(&interrupt->signals, SIGUSR2);
  if (hangup_is_ignored) {
    signal(SIGHUP, SIG_IGN);
  } else {
    sigaddset(&interrupt->signals, SIGHUP);
  }
  signal(SIGPIPE, SIG_IGN);
  int problem = pthread_sigmask(SIG_BLOCK, &interrupt->signals, NULL);
  if (problem == 0) problem = pthread_create(&interrupt->thread, NULL, wait_for_signals, interrupt);
  if (problem != 0) {
    free(interrupt);
    return hv_error_errno(problem, "cannot start the signal watcher");
  }
  *out = interrupt;
  return HV_OK;
}

void hv_interrupt_close(hv_interrupt *interrupt) {
  if (!interrupt) return;
  pthread_cancel(interrupt->thread);
  pthread_join(interrupt->thread, NULL);
  free(interrupt);
}

void hv_interrupt_tell(const hv_interrupt *interrupt, double numbers[HV_INTERRUPT_SIGNALS]) {
  int received = interrupt ? atomic_load((atomic_int *)(uintptr_t)&interrupt->received) : 0;
  for (int i = 0; i < HV_INTERRUPT_SIGNALS; i++) numbers[i] = ending[i].number == received;
}

int hv_interrupt_hear(const double numbers[HV_INTERRUPT_SIGNALS]) {
  for (int i = 0; i < HV_INTERRUPT_SIGNALS; i++) {
    if (numbers[i] > 0) return ending[i].number;
  }
  return 0;
}

const char *hv_interrupt_name(int signal_number) {
  for (int i = 0; i < HV_INTERRUPT_SIGNALS; i++) {
    if (ending[i].number == signal_number) return ending[i].name;
  }
  return "a signal";
}

void hv_interrupt_silence(hv_interrupt *interrupt) {
  if (interrupt) atomic_store(&interrupt->silent, true);
}

bool hv_interrupt_take_request(hv_interrupt *interrupt) {
  return interrupt && atomic_exchange(&interrupt->requested, false);
}
