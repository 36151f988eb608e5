/* Command lines of the programs: options, operands, help, the messages about mistakes, and output that cannot be
 * written. */
#include "core/io/command.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>

#include "core/base/log.h"
#include "tests/check.h"

typedef struct settings {
  char *model;
  hv_string_list images, files;
  int64_t steps;
  double theta;
  int32_t mode;
  bool json;
} settings;

static const char *const modes[] = {"ensemble", "diffusion", NULL};

static const hv_option options[] = {
    {"model", HV_OPTION_PATH, offsetof(settings, model), NULL, 0, 0, NULL, NULL, "DIR", "Model directory."},
    {"image", HV_OPTION_STRING_LIST, offsetof(settings, images), "[]", 0, 0, NULL, NULL, "NAME=FILE",
     "A camera's picture."},
    {"ddim-steps", HV_OPTION_INT, offsetof(settings, steps), "4", 1, 100, NULL, NULL, "N", "Steps of the sampler."},
    {"theta", HV_OPTION_FLOAT, offsetof(settings, theta), "0.96", 0, 1, NULL, NULL, "X",
     "Confidence above which both heads are averaged, "
     "which is the paper's value and rarely needs another one, whatever the robot."},
    {"mode", HV_OPTION_ENUM, offsetof(settings, mode), "ensemble", 0, 0, modes, NULL, "MODE", "Which head acts."},
    {"json", HV_OPTION_BOOL, offsetof(settings, json), "false", 0, 0, NULL, NULL, NULL, "Print one JSON object."},
};
static const hv_command predict = {.name = "predict",
                                   .summary = "one action",
                                   .help = "Example:\n  hvla-infer predict --model DIR\n",
                                   .options = options,
                                   .num_options = sizeof options / sizeof *options};
static const hv_command inspect = {.name = "inspect",
                                   .summary = "what files hold",
                                   .options = options + 5,
                                   .num_options = 1,
                                   .operands = "FILE…",
                                   .operands_offset = offsetof(settings, files),
                                   .min_operands = 1,
                                   .max_operands = 2};
static const hv_command *const commands[] = {&predict, &inspect};
static const hv_program program = {"hvla-infer", "Predicts actions.", commands, 2};

/* Parses a command line of words separated by blanks. */
static hv_status parse(const char *line, settings *out, hv_request *request) {
  static char copy[512];
  const char *argv[32];
  int argc = 0;
  snprintf(copy, sizeof copy, "%s", line);
  for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
  memset(out, 0xa5, sizeof *out);
  size_t command;
  hv_status status = hv_program_select(&program, argc, argv, &command, request);
  if (status || command == program.num_commands) return status;
  return hv_command_parse(&program, commands[command], argc, argv, out, request);
}

static void options_are_read(void **state) {
  (void)state;
  settings s;
  hv_request request;
  assert_ok(
      parse("hvla-infer predict --model m --image front=a.png --theta=0.5 --image wrist=b.jpg --mode diffusion --json",
            &s, &request));
  assert_int_equal(request, HV_REQUEST_RUN);
  assert_string_equal(s.model, "m");
  assert_int_equal(s.images.count, 2);
  assert_string_equal(s.images.items[1], "wrist=b.jpg");
  assert_int_equal(s.steps, 4);
  assert_float_equal(s.theta, 0.5, 0);
  assert_int_equal(s.mode, 1);
  assert_true(s.json);
  hv_command_free(commands[0], &s);
  assert_ok(parse("hvla-infer predict --model null_model --json=false", &s, &request));
  assert_false(s.json);
  hv_command_free(commands[0], &s);
}

static void operands_are_read(void **state) {
  (void)state;
  settings s;
  hv_request request;
  assert_ok(parse("hvla-infer inspect a.hdf5 --json -- --odd-name", &s, &request));
  assert_int_equal(s.files.count, 2);
  assert_string_equal(s.files.items[0], "a.hdf5");
  assert_string_equal(s.files.items[1], "--odd-name");
  assert_true(s.json);
  hv_command_free(commands[1], &s);
  assert_ok(parse("hvla-infer inspect a.hdf5", &s, &request)); /* the least number of operands */
  assert_int_equal(s.files.count, 1);
  assert_false(s.json);
  hv_command_free(commands[1], &s);
}

static void mistakes_are_explained(void **state) {
  (void)state;
  static const struct {
    const char *line, *message;
  } cases[] = {
      {"hvla-infer", "a command is needed: predict, inspect"},
      {"hvla-infer perdict", "no command perdict; did you mean predict? It has predict, inspect"},
      {"hvla-infer wibble", "it has predict, inspect"},
      {"hvla-infer predict", "missing: --model DIR"},
      {"hvla-infer predict --modle m", "unknown option --modle; did you mean --model?"},
      {"hvla-infer predict --modle=m", "unknown option --modle; did you mean --model?"},
      {"hvla-infer predict --model", "--model needs a value: DIR"},
      {"hvla-infer predict --model m --model n", "--model: is given twice"},
      {"hvla-infer predict --model m --ddim-steps 0", "--ddim-steps: must be an integer from 1 to 100, not 0"},
      {"hvla-infer predict --model m --ddim-steps few", "--ddim-steps: must be an integer"},
      {"hvla-infer predict --model m --ddim-steps 1234567890123456789012",
       "--ddim-steps: must be an integer from 1 to 100, not \"1234567890123456789012\""},
      {"hvla-infer predict --model m --theta 1e999", "--theta: must be a number from 0 to 1, not \"1e999\""},
      {"hvla-infer predict --model m --ddim-steps [1", "--ddim-steps: must be an integer from 1 to 100, not \"[1\""},
      {"hvla-infer predict --model m --mode ensembl", "did you mean ensemble?"},
      {"hvla-infer predict --model m --json=maybe", "true or false"},
      {"hvla-infer predict --model m extra", "unexpected argument extra"},
      {"hvla-infer inspect --json", "missing: FILE…"},
      {"hvla-infer inspect a b c", "unexpected argument c"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    settings s;
    hv_request request;
    assert_error(parse(cases[i].line, &s, &request), cases[i].message);
  }
}

static void help_is_given_wherever_it_stands(void **state) {
  (void)state;
  settings s;
  hv_request request;
  assert_ok(parse("hvla-infer --help", &s, &request));
  assert_int_equal(request, HV_REQUEST_HELP);
  assert_ok(parse("hvla-infer --version", &s, &request));
  assert_int_equal(request, HV_REQUEST_VERSION);
  assert_ok(parse("hvla-infer predict --modle m --help", &s, &request));
  assert_int_equal(request, HV_REQUEST_HELP);
  hv_command_free(commands[0], &s);
}

static void help_names_every_option(void **state) {
  (void)state;
  hv_text text = {0};
  hv_command_help(&program, commands[0], &text);
  assert_string_equal(
      text.data,
      "hvla-infer predict: one action\n\n"
      "Usage: hvla-infer predict [options]\n\n"
      "Options:\n"
      "  --model DIR             Model directory. Required.\n"
      "  --image NAME=FILE       A camera's picture. May be given several times.\n"
      "  --ddim-steps N          Steps of the sampler. From 1 to 100. Default: 4.\n"
      "  --theta X               Confidence above which both heads are averaged, which is the paper's value\n"
      "                          and rarely needs another one, whatever the robot. From 0 to 1. Default:\n"
      "                          0.96.\n"
      "  --mode MODE             Which head acts. One of ensemble, diffusion. Default: ensemble.\n"
      "  --json                  Print one JSON object.\n"
      "  --help                  This text.\n\n"
      "Example:\n  hvla-infer predict --model DIR\n");
  hv_text_free(&text);
  hv_command_help(&program, commands[1], &text);
  assert_non_null(strstr(text.data, "Usage: hvla-infer inspect [options] FILE…\n"));
  hv_text_free(&text);
  hv_program_help(&program, &text);
  assert_string_equal(text.data, "hvla-infer: Predicts actions.\n\n"
                                 "Usage: hvla-infer COMMAND [options]\n\n"
                                 "Commands:\n"
                                 "  predict                 one action\n"
                                 "  inspect                 what files hold\n\n"
                                 "hvla-infer COMMAND --help explains a command and its options; "
                                 "hvla-infer --version prints the version.\n");
  hv_text_free(&text);
}

/* A command that writes a file and logs a warning. */
static hv_status write_note(const void *values, hv_command_result *out) {
  const hv_string_list *files = values;
  FILE *note = fopen(files->items[0], "w");
  if (!note) return hv_error_errno(errno, "cannot write %s", files->items[0]);
  hv_log_warning("a word of warning");
  fputs("a note", note);
  if (fclose(note) != 0) return hv_error_errno(errno, "cannot write %s", files->items[0]);
  hv_text_add(&out->text, "a note is written\n");
  return HV_OK;
}

static const hv_command note = {
    .name = "note", .operands = "FILE", .min_operands = 1, .values_size = sizeof(hv_string_list), .work = write_note};
static const hv_command *const note_commands[] = {&note};
static const hv_program note_program = {"hvla-note", "Writes notes.", note_commands, 1};

/* Runs the command above with one standard stream closed and the other going to a file; returns the exit code. */
static int note_without(int closed, const char *path, const char *words) {
  pid_t child = fork();
  if (child == 0) {
    int other = open(words, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(other, STDOUT_FILENO);
    dup2(other, STDERR_FILENO);
    close(other);
    close(closed);
    char *argv[] = {"hvla-note", "note", (char *)(uintptr_t)path, NULL};
    _exit(hv_program_main(&note_program, 3, argv));
  }
  int end;
  assert_int_equal(waitpid(child, &end, 0), child);
  return WIFEXITED(end) ? WEXITSTATUS(end) : -1;
}

static void assert_text(const char *path, const char *expected) {
  char *text;
  assert_ok(hv_read_text(path, 4096, &text, NULL));
  if (!strstr(text, expected)) fail_msg("%s holds \"%s\", not \"%s\"", path, text, expected);
  free(text);
}

/* With standard output or error closed, the file that is opened next must not take the stream's number. The command
 * does its work; a result that cannot be printed is an error, a log line that cannot be printed is none. */
static void a_closed_stream_is_no_file(void **state) {
  const char *path = in_folder(*state, "note"), *words = in_folder(*state, "words");
  assert_int_equal(note_without(STDOUT_FILENO, path, words), 2);
  assert_text(words, "the command is done, but its result cannot be written to standard output: Bad file descriptor");
  assert_int_equal(note_without(STDERR_FILENO, path, words), 0);
  assert_text(words, "a note is written\n");
  hv_file_digest digest;
  assert_ok(hv_digest_file(path, &digest));
  assert_int_equal(digest.size, strlen("a note"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(options_are_read),
      cmocka_unit_test(operands_are_read),
      cmocka_unit_test(mistakes_are_explained),
      cmocka_unit_test(help_is_given_wherever_it_stands),
      cmocka_unit_test(help_names_every_option),
      cmocka_unit_test_setup_teardown(a_closed_stream_is_no_file, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
