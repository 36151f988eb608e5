#include <signal.h>
#include <stddef.h>

#include "core/base/log.h"
#include "core/tensor/nan_watch.h"
#include "train/commands.h"
#include "train/device.h"
#include "train/ranks/launch.h"
#include "train/run/interrupt.h"
#include "train/run/run.h"

/* Exit codes of a run that a signal ended: 130 as shells report Ctrl-C; 75 (EX_TEMPFAIL) asks a batch system to requeue
 * the job. */
enum { EXIT_INTERRUPTED = 130, EXIT_TERMINATED = 75 };

typedef struct run_options {
  char *config, *device, *trace;
  hv_string_list sets;
  bool resume, debug_nan;
} run_options;

static const hv_option options[] = {
    HV_CONFIG_OPTION(run_options),
    HV_SET_OPTION(run_options),
    {.key = "resume",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(run_options, resume),
     .fallback = "false",
     .doc = "Continue from the newest undamaged checkpoint in the run directory; start anew if it has none at all."},
    {.key = "debug-nan",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(run_options, debug_nan),
     .fallback = "false",
     .doc = "Check the parameters and then every result, and stop at the first that is not finite, naming the layer "
            "that made it. Slow."},
    HV_DEVICE_OPTION(run_options),
    HV_TRACE_OPTION(run_options),
};

/* An error on one of several ranks ends them all, since the others may not learn of it. */
static void end_all_ranks(hv_comm *comm, hv_status status) {
  if (!comm || comm->size == 1) return;
  hv_log_error("rank %d: %s", comm->rank, hv_status_message(status));
  hv_comm_abort(comm, hv_status_exit_code(status));
}

static hv_status work(const void *values, hv_command_result *out) {
  const run_options *given = values;
  hv_status status = HV_OK;
  hv_train_config config = {0};
  hv_interrupt *interrupt = NULL;
  hv_device *device = NULL;
  hv_nan_watch *nan_watch = NULL;
  hv_comm *comm = NULL;
  hv_trace *trace = NULL;
  hv_launch launch;
  int signal_number = 0;
  HV_CHECK(hv_train_config_load(given->config, (const char *const *)given->sets.items, given->sets.count, &config));
  HV_CHECK(hv_train_config_check_run(&config));
  HV_CHECK(hv_interrupt_open(&interrupt));
  HV_CHECK(hv_launch_read(&launch));
  if (launch.rank > 0) hv_log_set_level(HV_LOG_WARNING);
  HV_CHECK(
      hv_train_open_device(given->device ? given->device : config.device, config.threads, launch.local_rank, &device));
  if (given->debug_nan) HV_CHECK(hv_nan_watch_open(device, &nan_watch));
  HV_CHECK(
      hv_launch_open_comm(&launch, device, (hv_transport)config.parallel.transport, config.parallel.timeout, &comm));
  if (given->trace) HV_CHECK(hv_trace_open(given->trace, comm->rank, &trace));
  comm->trace = trace;
  hv_run_options how = {.comm = comm, .resume = given->resume, .trace = trace, .interrupt = interrupt};
  HV_CHECK(hv_run(&config, device, &how, &signal_number));
  if (signal_number == 0) {
    hv_log_info("done: %s/model", config.output);
  } else {
    hv_log_info("stopped by %s; a checkpoint was written, --resume continues from it",
                hv_interrupt_name(signal_number));
    out->exit_code = signal_number == SIGINT ? EXIT_INTERRUPTED : EXIT_TERMINATED;
  }
done:
  if (status) end_all_ranks(comm, status);
  hv_comm_close(comm);
  status = hv_status_first(status, hv_trace_close(trace));
  hv_nan_watch_close(nan_watch);
  hv_device_close(device);
  hv_interrupt_close(interrupt);
  hv_train_config_free(&config);
  return status;
}

const hv_command hv_command_run = {
    .name = "run",
    .summary = "Train a model on demonstrations.",
    .help = "Makes a run directory (the configuration's `output`): config.yaml as resolved, metrics.jsonl,\n"
            "checkpoints/step-N/ to resume from, and model/, the newest model as hvla-infer reads it.\n\n"
            "  hvla-train run --config configs/lift-tiny.yaml\n"
            "  hvla-train run --config configs/lift-tiny.yaml --set optimizer.learning_rate=5e-4 --set output=runs/b\n"
            "  hvla-train run --config configs/lift-tiny.yaml --resume\n\n"
            "After Ctrl-C or SIGTERM the run finishes the step or the validation, writes a checkpoint and ends\n"
            "with exit code 130 or 75; --resume continues it as if nothing had happened. A second Ctrl-C ends\n"
            "it at once.\n",
    .options = options,
    .num_options = sizeof options / sizeof options[0],
    .values_size = sizeof(run_options),
    .work = work,
    .more_help = hv_train_config_list,
};
