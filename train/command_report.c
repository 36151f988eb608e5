#include <stddef.h>

#include "train/commands.h"
#include "train/watch/report.h"

typedef struct report_options {
  hv_string_list runs;
  char *out;
} report_options;

static const hv_option options[] = {
    {.key = "out",
     .type = HV_OPTION_PATH,
     .offset = offsetof(report_options, out),
     .fallback = "null",
     .unit = "FILE",
     .doc = "File to write; by default RUN/report.html."},
};

static hv_status work(const void *values, hv_command_result *out) {
  const report_options *given = values;
  const char *run = given->runs.items[0];
  HV_TRY(hv_report_write(run, given->out));
  if (given->out) {
    hv_text_add(&out->text, "%s\n", given->out);
  } else {
    hv_text_add(&out->text, "%s/report.html\n", run);
  }
  return HV_OK;
}

const hv_command hv_command_report = {
    .name = "report",
    .summary = "Write the report of a run, an HTML page.",
    .help = "One file with curves, held-out errors for each action dimension, data, environment,\n"
            "checkpoints, skipped steps and configuration; it needs no network. A run writes it when it\n"
            "ends; this command writes it at any time.\n\n"
            "  hvla-train report runs/lift-tiny\n"
            "  hvla-train report runs/lift-tiny --out lift.html\n",
    .options = options,
    .num_options = sizeof options / sizeof options[0],
    .operands = "RUN",
    .operands_offset = offsetof(report_options, runs),
    .min_operands = 1,
    .max_operands = 1,
    .values_size = sizeof(report_options),
    .work = work,
};
