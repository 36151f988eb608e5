/* hvla-train: trains HybridVLA, and tells what a model makes of a batch. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "train/commands.h"

static const hv_train_command *const all[] = {&hv_command_run,   &hv_command_check, &hv_command_config,
                                              &hv_command_bench, &hv_command_plan,  &hv_command_status,
                                              &hv_command_model, &hv_command_report};
enum { COMMANDS = sizeof all / sizeof all[0] };

static void add_help(const hv_program *program, size_t command, hv_text *out) {
  if (command == COMMANDS) {
    hv_program_help(program, out);
    return;
  }
  hv_command_help(program, &all[command]->command, out);
  if (all[command]->more_help) all[command]->more_help(out);
}

static hv_status do_work(const hv_program *program, const hv_train_command *chosen, int argc, const char *const *argv,
                         hv_command_result *out, hv_request *request) {
  void *values = calloc(1, chosen->values_size);
  if (!values) return hv_error_memory("the options");
  hv_status status = hv_command_parse(program, &chosen->command, argc, argv, values, request);
  if (!status && *request == HV_REQUEST_RUN) {
    status = chosen->work(values, out);
    hv_command_free(&chosen->command, values);
  }
  free(values);
  return status;
}

/* What the command line asks for, as text for standard output. */
static hv_status serve(int argc, const char *const *argv, hv_command_result *out) {
  hv_command commands[COMMANDS];
  for (size_t i = 0; i < COMMANDS; i++) commands[i] = all[i]->command;
  hv_program program = {
      .name = "hvla-train",
      .summary = "Trains HybridVLA, a vision-language-action model, on robot demonstrations.",
      .commands = commands,
      .num_commands = COMMANDS,
  };
  size_t command;
  hv_request request;
  HV_TRY(hv_program_select(&program, argc, argv, &command, &request));
  if (request == HV_REQUEST_RUN) {
    HV_TRY(do_work(&program, all[command], argc, argv, out, &request));
  }
  if (request == HV_REQUEST_HELP) add_help(&program, command, &out->text);
  if (request == HV_REQUEST_VERSION) hv_text_add(&out->text, "%s %s\n", program.name, HVLA_VERSION);
  return out->text.failed ? hv_error_memory("the output") : HV_OK;
}

static hv_status print(const hv_text *text) {
  if (fwrite(hv_text_string(text), 1, text->length, stdout) != text->length || fflush(stdout) != 0)
    return hv_error_errno(errno, "cannot write to standard output");
  return HV_OK;
}

int main(int argc, char **argv) {
  /* A file size limit then shows as a failed write, with its message, instead of ending the process. */
  signal(SIGXFSZ, SIG_IGN);
  hv_command_result result;
  hv_status status;
  do {
    result = (hv_command_result){0};
    status = serve(argc, (const char *const *)argv, &result);
    if (!status) status = print(&result.text);
    hv_text_free(&result.text);
    if (!status && result.again_after > 0) usleep((useconds_t)(1e6 * result.again_after));
  } while (!status && result.again_after > 0);
  if (status) {
    fprintf(stderr, "hvla-train: %s\n", hv_status_message(status));
    result.exit_code = hv_status_exit_code(status);
  }
  hv_status_free(status);
  return result.exit_code;
}
