#include "tests/shell.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>

#include "tests/check.h"

/* The reading end of a pipe, and what has been read from it. */
typedef struct stream {
  int fd; /* -1 once the end is reached: it is closed then */
  char *text;
  size_t size, capacity;
} stream;

/* Returns the end to write to. The caller closes it as soon as the child has inherited it: the reader sees the end of
 * the stream only when the last copy of it is closed. */
static int stream_open(stream *s) {
  int ends[2];
  assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
  *s = (stream){.fd = ends[0], .capacity = 1 << 12};
  s->text = malloc(s->capacity);
  assert_non_null(s->text);
  return ends[1];
}

static void stream_read(stream *s) {
  if (s->size + 1 == s->capacity) {
    s->capacity *= 2;
    s->text = realloc(s->text, s->capacity);
    assert_non_null(s->text);
  }
  ssize_t got = read(s->fd, s->text + s->size, s->capacity - 1 - s->size);
  if (got < 0 && errno == EINTR) return;
  assert_true(got >= 0);
  s->size += (size_t)got;
  if (got > 0) return;
  (void)close(s->fd);
  s->fd = -1;
}

/* The text without its zero bytes, which would cut a C string short. */
static char *stream_text(stream *s) {
  size_t kept = 0;
  for (size_t i = 0; i < s->size; i++) {
    if (s->text[i]) s->text[kept++] = s->text[i];
  }
  s->text[kept] = '\0';
  return s->text;
}

/* Reads both streams to their ends, whichever has data: a program that fills one pipe while we wait for the other would
 * block for ever. */
static void read_streams(stream streams[2]) {
  while (streams[0].fd >= 0 || streams[1].fd >= 0) {
    struct pollfd ready[2];
    for (int i = 0; i < 2; i++) ready[i] = (struct pollfd){.fd = streams[i].fd, .events = POLLIN}; /* -1 is ignored */
    if (poll(ready, 2, -1) < 0) {
      assert_int_equal(errno, EINTR);
      continue;
    }
    for (int i = 0; i < 2; i++) {
      if (streams[i].fd >= 0 && ready[i].revents) stream_read(&streams[i]);
    }
  }
}

static char *format_line(const char *format, va_list values) {
  char *line;
  assert_true(vasprintf(&line, format, values) >= 0);
  return line;
}

/* Starts the line with the file descriptors `out` and `errors` as its standard output and error. */
static pid_t start_line(const char *line, int out, int errors) {
  pid_t process = fork();
  assert_true(process >= 0);
  if (process == 0) {
    if (dup2(out, STDOUT_FILENO) >= 0 && dup2(errors, STDERR_FILENO) >= 0) {
      execl("/bin/sh", "sh", "-c", line, (char *)NULL);
    }
    _exit(127);
  }
  return process;
}

static int run_line(const char *line, char **out, char **errors) {
  stream streams[2] = {{.fd = -1}, {.fd = -1}};
  int to_out = stream_open(&streams[0]), to_errors = errors ? stream_open(&streams[1]) : to_out;
  pid_t process = start_line(line, to_out, to_errors);
  (void)close(to_out);
  if (errors) (void)close(to_errors);
  read_streams(streams);
  *out = stream_text(&streams[0]);
  if (errors) *errors = stream_text(&streams[1]);
  return wait_for_exit(process);
}

int run_shell(char **out, char **errors, const char *format, ...) {
  va_list values;
  va_start(values, format);
  char *line = format_line(format, values);
  va_end(values);
  int code = run_line(line, out, errors);
  free(line);
  return code;
}

void must_shell(const char *format, ...) {
  va_list values;
  char *output;
  va_start(values, format);
  char *line = format_line(format, values);
  va_end(values);
  int code = run_line(line, &output, NULL);
  if (code != 0) fail_msg("%s\nended with %d:\n%s", line, code, output);
  free(output);
  free(line);
}

pid_t start_shell(const char *format, ...) {
  va_list values;
  va_start(values, format);
  char *line = format_line(format, values);
  va_end(values);
  pid_t process = start_line(line, STDOUT_FILENO, STDERR_FILENO);
  free(line);
  return process;
}

int wait_for_exit(pid_t process) {
  int status;
  while (waitpid(process, &status, 0) != process) assert_int_equal(errno, EINTR);
  return exit_code_of(status);
}

int exit_code_of(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
