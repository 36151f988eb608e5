#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "core/io/json.h"
#include "train/commands.h"
#include "train/watch/run_status.h"

typedef struct status_options {
  hv_string_list runs;
  bool json, follow;
} status_options;

static const hv_option options[] = {
    {.key = "follow",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(status_options, follow),
     .fallback = "false",
     .doc = "Show it again every two seconds until the run ends."},
    HV_JSON_OPTION(status_options),
};

static hv_status work(const void *values, hv_command_result *out) {
  static const double refresh_seconds = 2;
  const status_options *given = values;
  hv_status status = HV_OK;
  json_t *object = NULL;
  hv_run_history history = {0};
  HV_CHECK(hv_run_history_read(given->runs.items[0], &history));
  HV_CHECK(hv_run_status_make(&history, &object));
  if (given->json) {
    HV_CHECK(hv_json_format_line(object, &out->text));
    hv_text_add(&out->text, "\n");
  } else {
    /* Clears the screen, to replace what was shown before. */
    if (given->follow && isatty(STDOUT_FILENO)) hv_text_add(&out->text, "\033[H\033[2J");
    hv_run_status_format(&history, object, &out->text);
  }
  if (given->follow && strcmp(history.state, "running") == 0) out->again_after = refresh_seconds;
done:
  json_decref(object);
  hv_run_history_free(&history);
  return status;
}

const hv_command hv_command_status = {
    .name = "status",
    .summary = "Show the state and progress of a run.",
    .help = "Shows, also while the run goes on, what its directory says: the step, the time left, losses, held-out\n"
            "errors, the newest checkpoint, skipped steps, and whether its process is alive.\n\n"
            "  hvla-train status runs/lift-tiny\n"
            "  hvla-train status runs/lift-tiny --follow\n"
            "  hvla-train status runs/lift-tiny --json | jq .seconds_left\n",
    .options = options,
    .num_options = sizeof options / sizeof options[0],
    .operands = "RUN",
    .operands_offset = offsetof(status_options, runs),
    .min_operands = 1,
    .max_operands = 1,
    .values_size = sizeof(status_options),
    .work = work,
};
