#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/io/command.h"

static hv_status run_command(const hv_program *program, const hv_command *command, int argc, const char *const *argv,
                             hv_command_result *out) {
  hv_request request;
  void *values = calloc(1, command->values_size);
  if (!values) return hv_error_memory("the options");
  hv_status status = hv_command_parse(program, command, argc, argv, values, &request);
  if (!status && request == HV_REQUEST_HELP) {
    hv_command_help(program, command, &out->text);
  } else if (!status) {
    status = command->work(values, out);
    hv_command_free(command, values);
  }
  free(values);
  return status;
}

/* What the command line asks for, as text for standard output. */
static hv_status serve(const hv_program *program, int argc, const char *const *argv, hv_command_result *out) {
  size_t command;
  hv_request request;
  HV_TRY(hv_program_select(program, argc, argv, &command, &request));
  if (request == HV_REQUEST_RUN) HV_TRY(run_command(program, program->commands[command], argc, argv, out));
  if (request == HV_REQUEST_HELP) hv_program_help(program, &out->text);
  if (request == HV_REQUEST_VERSION) hv_text_add(&out->text, "%s %s\n", program->name, HVLA_VERSION);
  return out->text.failed ? hv_error_memory("the output") : HV_OK;
}

static hv_status print(const hv_text *text) {
  if (fwrite(hv_text_string(text), 1, text->length, stdout) != text->length || fflush(stdout) != 0)
    return hv_error_errno(errno, "the command is done, but its result cannot be written to standard output");
  return HV_OK;
}

/* Without this, the first file that is opened would get the number of a closed standard stream, and the stream's output
 * would go into it. The stand-in is opened for reading only, so that output to a closed stream still fails. */
static void open_closed_streams(void) {
  for (int fd = 0; fd <= STDERR_FILENO; fd++) {
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDONLY) != fd) return;
  }
}

int hv_program_main(const hv_program *program, int argc, char **argv) {
  /* A file size limit then shows as a failed write, with its message, instead of ending the process. */
  signal(SIGXFSZ, SIG_IGN);
  open_closed_streams();
  hv_command_result result;
  hv_status status;
  do {
    result = (hv_command_result){0};
    status = serve(program, argc, (const char *const *)argv, &result);
    if (!status) status = print(&result.text);
    hv_text_free(&result.text);
    if (!status && result.again_after > 0) usleep((useconds_t)(1e6 * result.again_after));
  } while (!status && result.again_after > 0);
  if (status) {
    hv_log_error("%s: %s", program->name, hv_status_message(status));
    result.exit_code = hv_status_exit_code(status);
  }
  hv_status_free(status);
  return result.exit_code;
}
