/* Programs with commands: `hvla-train run --config FILE`. A command is a table of options (options.h), a help text and
 * a function that does the work; a program is a list of commands, and its main() calls hv_program_main. */
#ifndef HV_IO_COMMAND_H
#define HV_IO_COMMAND_H

#include "core/io/options.h"

typedef struct hv_command_result {
  hv_text text;       /* printed on standard output when the command succeeds */
  int exit_code;      /* 0 at the start; an error's own code wins over it */
  double again_after; /* seconds after which the command is to be run again (`status --follow`); 0: it is done */
} hv_command_result;

/* One command and its long options. */
typedef struct hv_command {
  const char *name;                /* "predict" */
  const char *summary;             /* one line, for the program's list of commands */
  const char *help;                /* what a newcomer needs: paragraphs and examples, printed below the options */
  void (*more_help)(hv_text *out); /* goes below the help; NULL: nothing */
  const hv_option *options;
  size_t num_options;
  const char *operands;   /* placeholder of the arguments that are no options: "FILE…"; NULL: there may be none */
  size_t operands_offset; /* of an hv_string_list in the struct */
  size_t min_operands, max_operands; /* max 0: any number */
  size_t values_size;                /* of the struct that the options describe */
  hv_status (*work)(const void *values, hv_command_result *out);
} hv_command;

typedef struct hv_program {
  const char *name;    /* "hvla-infer" */
  const char *summary; /* one or two sentences */
  const hv_command *const *commands;
  size_t num_commands;
} hv_program;

/* What the command line asks for. */
typedef enum hv_request { HV_REQUEST_RUN, HV_REQUEST_HELP, HV_REQUEST_VERSION } hv_request;

/* argv[1] chooses the command: *command is its index, or num_commands for `--help` and `--version` of the program
 * itself. An unknown one names the nearest. */
HV_NODISCARD hv_status hv_program_select(const hv_program *program, int argc, const char *const *argv, size_t *command,
                                         hv_request *request);

/* Reads argv[2…] into *out (whose fields are zeroed first): `--name value`, `--name=value`, flags, repeated lists,
 * operands, `--` before operands that begin with a dash. `--help` anywhere gives HV_REQUEST_HELP and leaves *out empty.
 */
HV_NODISCARD hv_status hv_command_parse(const hv_program *program, const hv_command *command, int argc,
                                        const char *const *argv, void *out, hv_request *request);
void hv_command_free(const hv_command *command, void *values);

/* Help texts, 100 columns wide, ending in a newline. */
void hv_program_help(const hv_program *program, hv_text *out);
void hv_command_help(const hv_program *program, const hv_command *command, hv_text *out);

/* An entry of a help text's list: `left`, and from column `indent` on the wrapped text, below `left` if that is too
 * wide. */
void hv_help_entry(const char *left, int indent, const char *text, hv_text *out);

/* All of a program: does what the command line asks for, prints the result on standard output or an error on standard
 * error, and returns the exit code. A result that cannot be printed is an error, even though the work is done. Nothing
 * else prints results or decides the exit code. */
int hv_program_main(const hv_program *program, int argc, char **argv);

/* An option that many commands have, in a struct of type `type_` with a field of this name. */
#define HV_JSON_OPTION(type_)                                                                                          \
  {                                                                                                                    \
    .key = "json", .type = HV_OPTION_BOOL, .offset = offsetof(type_, json), .fallback = "false",                       \
    .doc = "Print one JSON object and nothing else."                                                                   \
  }

#endif
