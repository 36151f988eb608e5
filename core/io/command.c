#include "core/io/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/nearest.h"
#include "core/io/option_value.h"

enum { HELP_WIDTH = 100, HELP_INDENT = 26 };

static bool is_help(const char *argument) {
  return strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0;
}

hv_status hv_program_select(const hv_program *program, int argc, const char *const *argv, size_t *command,
                            hv_request *request) {
  *command = program->num_commands;
  *request = HV_REQUEST_RUN;
  hv_text names = {0};
  for (size_t i = 0; i < program->num_commands; i++) {
    hv_text_add(&names, "%s%s", i ? ", " : "", program->commands[i]->name);
  }
  hv_status status = HV_OK;
  hv_nearest nearest = {.name = argc > 1 ? argv[1] : ""};
  if (argc < 2) {
    status = hv_error(HV_ERR_INPUT, "a command is needed: %s (%s --help explains them)", hv_text_string(&names),
                      program->name);
  } else if (is_help(argv[1]) || strcmp(argv[1], "help") == 0) {
    *request = HV_REQUEST_HELP;
  } else if (strcmp(argv[1], "--version") == 0) {
    *request = HV_REQUEST_VERSION;
  } else {
    for (size_t i = 0; i < program->num_commands; i++) {
      if (strcmp(argv[1], program->commands[i]->name) == 0) *command = i;
      hv_nearest_offer(&nearest, program->commands[i]->name);
    }
    if (*command == program->num_commands) {
      status = hv_error(HV_ERR_INPUT, "%s has no command %s; %s%s%s has %s", program->name, argv[1],
                        nearest.best ? "did you mean " : "", nearest.best ? nearest.best : "",
                        nearest.best ? "? It" : "it", hv_text_string(&names));
    }
  }
  hv_text_free(&names);
  return status;
}

typedef struct line {
  const hv_program *program;
  const hv_command *command;
  void *out;
  bool *given; /* for each option */
} line;

static hv_status unknown_option(const line *l, const char *name) {
  hv_nearest nearest = {.name = name};
  for (size_t i = 0; i < l->command->num_options; i++) hv_nearest_offer(&nearest, l->command->options[i].key);
  hv_nearest_offer(&nearest, "help");
  const char *best = nearest.best;
  return hv_error(HV_ERR_INPUT, "unknown option --%s%s%s%s (%s %s --help lists the options)", name,
                  best ? "; did you mean --" : "", best ? best : "", best ? "?" : "", l->program->name,
                  l->command->name);
}

static const hv_option *find_option(const hv_command *command, const char *name, size_t length) {
  for (size_t i = 0; i < command->num_options; i++) {
    const char *key = command->options[i].key;
    if (strncmp(key, name, length) == 0 && key[length] == '\0') return &command->options[i];
  }
  return NULL;
}

static hv_status set_value(const line *l, const hv_option *option, const char *text) {
  bool *given = &l->given[option - l->command->options];
  hv_status status;
  if (option->type == HV_OPTION_STRING_LIST) {
    status = hv_string_list_append((hv_string_list *)((char *)l->out + option->offset), text);
  } else if (*given) {
    status = hv_error(HV_ERR_INPUT, "is given twice");
  } else {
    status = hv_option_set_text(option, text, l->out);
  }
  *given = true;
  return hv_error_context(status, "--%s", option->key);
}

/* One `--name`, `--name value` or `--name=value` at argv[*at]; moves *at to the last argument used. */
static hv_status read_option(const line *l, int argc, const char *const *argv, int *at) {
  const char *name = argv[*at] + 2;
  size_t length = strcspn(name, "=");
  const hv_option *option = find_option(l->command, name, length);
  if (!option) {
    char copy[128];
    snprintf(copy, sizeof copy, "%.*s", (int)(length < 100 ? length : 100), name);
    return unknown_option(l, copy);
  }
  if (name[length] == '=') return set_value(l, option, name + length + 1);
  if (option->type == HV_OPTION_BOOL) return set_value(l, option, "true");
  if (*at + 1 >= argc) {
    return hv_error(HV_ERR_INPUT, "--%s needs a value%s%s", option->key, option->unit ? ": " : "",
                    option->unit ? option->unit : "");
  }
  return set_value(l, option, argv[++*at]);
}

static hv_status read_operand(const line *l, const char *text) {
  const hv_command *command = l->command;
  if (!command->operands) {
    return hv_error(HV_ERR_INPUT, "unexpected argument %s: %s %s takes options (--name value) only", text,
                    l->program->name, command->name);
  }
  hv_string_list *operands = (hv_string_list *)((char *)l->out + command->operands_offset);
  if (command->max_operands && operands->count == command->max_operands) {
    return hv_error(HV_ERR_INPUT, "unexpected argument %s: %s %s takes at most %zu (%s)", text, l->program->name,
                    command->name, command->max_operands, command->operands);
  }
  return hv_string_list_append(operands, text);
}

/* Sets defaults; all required options and operands that are missing go into one error. */
static hv_status complete(const line *l) {
  const hv_command *command = l->command;
  hv_text missing = {0};
  hv_status status = HV_OK;
  for (size_t i = 0; i < command->num_options && !status; i++) {
    const hv_option *option = &command->options[i];
    if (l->given[i]) continue;
    if (option->fallback) {
      status = hv_error_context(hv_option_set_text(option, option->fallback, l->out), "--%s", option->key);
    } else {
      hv_text_add(&missing, "%s--%s%s%s", missing.length ? ", " : "", option->key, option->unit ? " " : "",
                  option->unit ? option->unit : "");
    }
  }
  if (command->operands) {
    const hv_string_list *operands = (const hv_string_list *)((const char *)l->out + command->operands_offset);
    if (operands->count < command->min_operands) {
      hv_text_add(&missing, "%s%s", missing.length ? ", " : "", command->operands);
    }
  }
  if (!status && missing.length > 0) {
    status = hv_error(HV_ERR_INPUT, "missing: %s (%s %s --help explains them)", missing.data, l->program->name,
                      command->name);
  }
  hv_text_free(&missing);
  return status;
}

static hv_status read_line(const line *l, int argc, const char *const *argv) {
  bool only_operands = false;
  for (int i = 2; i < argc; i++) {
    bool dashed = strncmp(argv[i], "--", 2) == 0;
    if (only_operands || !dashed) {
      HV_TRY(read_operand(l, argv[i]));
    } else if (argv[i][2] == '\0') {
      only_operands = true;
    } else {
      HV_TRY(read_option(l, argc, argv, &i));
    }
  }
  return complete(l);
}

/* "--" ends the options, so a --help after it is an operand. */
static bool asks_for_help(int argc, const char *const *argv) {
  for (int i = 2; i < argc && strcmp(argv[i], "--") != 0; i++) {
    if (is_help(argv[i])) return true;
  }
  return false;
}

hv_status hv_command_parse(const hv_program *program, const hv_command *command, int argc, const char *const *argv,
                           void *out, hv_request *request) {
  for (size_t i = 0; i < command->num_options; i++) hv_option_zero(&command->options[i], out);
  if (command->operands) *(hv_string_list *)((char *)out + command->operands_offset) = (hv_string_list){0};
  *request = asks_for_help(argc, argv) ? HV_REQUEST_HELP : HV_REQUEST_RUN;
  if (*request == HV_REQUEST_HELP) return HV_OK;
  bool *given = calloc(command->num_options + 1, sizeof *given);
  if (!given) return hv_error_memory("the command line");
  line l = {.program = program, .command = command, .out = out, .given = given};
  hv_status status = read_line(&l, argc, argv);
  free(given);
  if (status) hv_command_free(command, out);
  return hv_error_context(status, "%s %s", program->name, command->name);
}

void hv_command_free(const hv_command *command, void *values) {
  hv_options_free(command->options, command->num_options, values);
  if (command->operands) hv_string_list_free((hv_string_list *)((char *)values + command->operands_offset));
}

/* Words of `text` from column `column` on, wrapped, later lines indented. */
static void add_wrapped(hv_text *out, const char *text, int column) {
  int at = column;
  while (*text) {
    text += strspn(text, " ");
    int length = (int)strcspn(text, " ");
    if (at > column && at + 1 + length > HELP_WIDTH) {
      hv_text_add(out, "\n%*s", column, "");
      at = column;
    } else if (at > column) {
      hv_text_add(out, " ");
      at++;
    }
    hv_text_add(out, "%.*s", length, text);
    at += length;
    text += length;
  }
  hv_text_add(out, "\n");
}

void hv_help_entry(const char *left, int indent, const char *text, hv_text *out) {
  int width = (int)strlen(left) + 2;
  hv_text_add(out, "  %s", left);
  if (width + 2 > indent) {
    hv_text_add(out, "\n%*s", indent, "");
  } else {
    hv_text_add(out, "%*s", indent - width, "");
  }
  add_wrapped(out, text, indent);
}

static void add_entry(hv_text *out, const char *left, const char *text) {
  hv_help_entry(left, HELP_INDENT, text, out);
}

static void add_option(hv_text *out, const hv_option *option) {
  hv_text left = {0}, right = {0};
  hv_text_add(&left, "--%s", option->key);
  if (option->type != HV_OPTION_BOOL) hv_text_add(&left, " %s", option->unit ? option->unit : "VALUE");
  hv_text_add(&right, "%s", option->doc);
  if (option->type == HV_OPTION_ENUM) {
    hv_text_add(&right, " ");
    size_t start = right.length;
    hv_option_describe(option, &right);
    if (!right.failed) right.data[start] = 'O';
    hv_text_add(&right, ".");
  } else if (option->min != 0 || option->max != 0) {
    hv_text_add(&right, " From %.15g to %.15g.", option->min, option->max);
  }
  if (option->type == HV_OPTION_STRING_LIST) hv_text_add(&right, " May be given several times.");
  bool quiet = option->type == HV_OPTION_BOOL || option->type == HV_OPTION_STRING_LIST;
  if (!option->fallback) {
    hv_text_add(&right, " Required.");
  } else if (!quiet && strcmp(option->fallback, "null") != 0) {
    hv_text_add(&right, " Default: %s.", option->fallback);
  }
  add_entry(out, hv_text_string(&left), hv_text_string(&right));
  hv_text_free(&left);
  hv_text_free(&right);
}

void hv_command_help(const hv_program *program, const hv_command *command, hv_text *out) {
  hv_text_add(out, "%s %s: %s\n\nUsage: %s %s%s%s%s\n\nOptions:\n", program->name, command->name, command->summary,
              program->name, command->name, command->num_options ? " [options]" : "", command->operands ? " " : "",
              command->operands ? command->operands : "");
  for (size_t i = 0; i < command->num_options; i++) add_option(out, &command->options[i]);
  add_entry(out, "--help", "This text.");
  if (command->help) hv_text_add(out, "\n%s", command->help);
  if (command->more_help) command->more_help(out);
}

void hv_program_help(const hv_program *program, hv_text *out) {
  hv_text_add(out, "%s: ", program->name);
  add_wrapped(out, program->summary, 0);
  hv_text_add(out, "\nUsage: %s COMMAND [options]\n\nCommands:\n", program->name);
  for (size_t i = 0; i < program->num_commands; i++) {
    add_entry(out, program->commands[i]->name, program->commands[i]->summary);
  }
  hv_text_add(out, "\n%s COMMAND --help explains a command and its options; %s --version prints the version.\n",
              program->name, program->name);
}
