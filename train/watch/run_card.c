#include "train/watch/run_card.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "core/base/build_commit.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/io/json.h"

struct hv_run_card {
  int file;
  char *run, *path;
  char *made_directory; /* the topmost directory that was missing; NULL: none was */
  bool made;            /* the file, by this process */
  json_t *object;       /* NULL until the run begins */
};

/* The error if another process holds the lock; names it if run.json does. */
static hv_status refuse(const char *run, const char *path) {
  json_t *card = NULL;
  hv_status_free(hv_json_load(path, &card));
  const char *host = json_string_value(json_object_get(card, "host"));
  char who[256] = "which is just starting";
  if (host) {
    snprintf(who, sizeof who, "process %lld on %s", (long long)json_integer_value(json_object_get(card, "pid")), host);
  }
  hv_status status =
      hv_error(HV_ERR_INPUT,
               "%s: another run is going on there (%s); wait for its end, stop it, or choose another output", run, who);
  json_decref(card);
  return status;
}

/* Tries several times, since hv_run_card_held has the lock for a moment, too: looking at a run must not keep one from
 * starting. errno tells why it failed. */
static bool take_lock(int file) {
  enum { TRIES = 20, PAUSE_US = 10000 };
  for (int tries = 1; flock(file, LOCK_EX | LOCK_NB) != 0; tries++) {
    if (errno != EWOULDBLOCK || tries == TRIES) return false;
    usleep(PAUSE_US);
  }
  return true;
}

/* The topmost missing one among the directory `path` and those above it; *out is NULL if none is missing. */
static hv_status find_missing(const char *path, char **out) {
  char *copy = strdup(path);
  *out = NULL;
  if (!copy) return hv_error_memory("a directory name");
  for (char *at = copy + (*copy == '/');; at++) {
    bool last = *at == '\0';
    if (!last && *at != '/') continue;
    *at = '\0';
    if (!hv_file_exists(copy)) {
      *out = copy;
      return HV_OK;
    }
    if (last) break;
    *at = '/';
  }
  free(copy);
  return HV_OK;
}

/* Removes `path` and the directories above it up to `top`, as far as they are empty. */
static void remove_directories(const char *path, const char *top) {
  char *copy = strdup(path);
  while (copy && (rmdir(copy) == 0 || errno == ENOENT) && strlen(copy) > strlen(top)) {
    *strrchr(copy, '/') = '\0';
  }
  free(copy);
}

/* Opens the file, making it and the directory if they are missing. */
static hv_status open_file(hv_run_card *card) {
  if (!card->made_directory) HV_TRY(find_missing(card->run, &card->made_directory));
  HV_TRY(hv_make_directories(card->run));
  card->file = open(card->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  card->made = card->file >= 0;
  if (!card->made && errno == EEXIST) card->file = open(card->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  return card->file >= 0 ? HV_OK : hv_error_errno(errno, "cannot open %s", card->path);
}

/* If another process has the lock, the file is that one's. */
static hv_status lock_file(hv_run_card *card) {
  if (take_lock(card->file)) return HV_OK;
  if (errno == EWOULDBLOCK) {
    card->made = false;
    return refuse(card->run, card->path);
  }
  hv_log_warning("%s cannot be locked (%s): nothing keeps a second run out of this directory", card->path,
                 strerror(errno));
  return HV_OK;
}

/* Whether the file was removed after it was opened here and before it was locked: a run that fails to start removes its
 * file. */
static bool was_removed(const hv_run_card *card) {
  struct stat own;
  return fstat(card->file, &own) == 0 && own.st_nlink == 0;
}

hv_status hv_run_card_open(const char *run, hv_run_card **out) {
  hv_status status = HV_OK;
  *out = NULL;
  hv_run_card *card = calloc(1, sizeof *card);
  if (!card) return hv_error_memory("the run's card");
  card->file = -1;
  card->run = strdup(run);
  card->path = hv_path_join(run, "run.json");
  if (!card->run || !card->path) {
    status = hv_error_memory("the run's card");
    goto done;
  }
  HV_CHECK(open_file(card));
  HV_CHECK(lock_file(card));
  while (was_removed(card)) {
    close(card->file);
    card->file = -1;
    HV_CHECK(open_file(card));
    HV_CHECK(lock_file(card));
  }
  *out = card;
  card = NULL;
done:
  hv_run_card_close(card);
  return status;
}

/* Removes what was made for a run that did not begin, while the lock is held, so that no other run uses it yet. */
static void remove_made(const hv_run_card *card) {
  hv_status moved = hv_run_card_check(card);
  if (card->made && !moved) (void)unlink(card->path);
  if (card->made_directory && !moved) remove_directories(card->run, card->made_directory);
  hv_status_free(moved);
}

void hv_run_card_close(hv_run_card *card) {
  if (!card) return;
  if (!card->object && card->path) remove_made(card);
  if (card->file >= 0) close(card->file);
  json_decref(card->object);
  free(card->made_directory);
  free(card->run);
  free(card->path);
  free(card);
}

/* Allocates disk blocks for that many bytes without changing the file's length; true also if the file system cannot. */
static bool take_room(int file, size_t bytes) {
  return fallocate(file, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) == 0 || errno == EOPNOTSUPP || errno == ENOSYS;
}

/* Writes in place, since a file renamed over this one would not carry the lock. Takes room first and truncates last, so
 * that a full disk leaves the file as it was. */
static hv_status write_card(const hv_run_card *card) {
  hv_text text = {0};
  hv_status status = hv_json_format(card->object, &text);
  if (!status) {
    bool written = take_room(card->file, text.length) &&
                   pwrite(card->file, hv_text_string(&text), text.length, 0) == (ssize_t)text.length &&
                   ftruncate(card->file, (off_t)text.length) == 0;
    if (!written) status = hv_error_errno(errno, "cannot write %s", card->path);
  }
  hv_text_free(&text);
  return status;
}

static json_t *describe_split(const hv_demonstrations *split) {
  if (!split) return json_null();
  return json_pack("{s:I, s:I}", "episodes", (json_int_t)hv_demonstrations_episodes(split), "frames",
                   (json_int_t)hv_demonstrations_frames(split));
}

static json_t *describe_data(const hv_run_data *data) {
  enum { MOST_INSTRUCTIONS = 100 };
  json_t *instructions = json_array(), *cameras = json_array();
  int32_t count = hv_demonstrations_instructions(data->train);
  for (int32_t i = 0; i < count && i < MOST_INSTRUCTIONS; i++) {
    json_array_append_new(instructions, hv_json_text(hv_demonstrations_instruction(data->train, i)));
  }
  for (int32_t c = 0; c < data->model.num_cameras; c++) {
    json_array_append_new(cameras, json_string(data->model.cameras[c]));
  }
  return json_pack("{s:o, s:o, s:i, s:o, s:o, s:i, s:i, s:i}", "train", describe_split(data->train), "valid",
                   describe_split(data->valid), "instruction_count", (int)count, "instructions", instructions,
                   "cameras", cameras, "action_dim", (int)data->model.action_dim, "action_chunk",
                   (int)data->model.action_chunk, "state_dim", (int)data->model.state_dim);
}

static int64_t count_trainable(const hv_params *params) {
  int64_t total = 0;
  for (hv_param_id i = 0; i < hv_params_count(params); i++) {
    const hv_param *param = hv_params_get(params, i);
    if (param->trainable) total += param->rows * param->cols;
  }
  return total;
}

static json_t *describe(const hv_run_facts *facts) {
  const hv_trainer *trainer = facts->trainer;
  char host[256] = "";
  struct utsname system;
  gethostname(host, sizeof host - 1);
  if (uname(&system) != 0) system = (struct utsname){.sysname = "unknown"};
  json_t *card =
      json_pack("{s:s, s:I, s:s, s:f, s:i, s:s, s:I, s:s, s:s, s:s, s:o}", "state", "running", "pid",
                (json_int_t)getpid(), "host", host, "start", hv_wall_seconds(), "ranks", (int)facts->data->ranks,
                "device", trainer->device->name, "processors", (json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "version",
                HVLA_VERSION, "commit", hv_build_commit(), "dtype", hv_dtype_name(hv_train_config_dtype(facts->config)),
                "system", json_sprintf("%s %s %s", system.sysname, system.release, system.machine));
  json_t *work =
      json_pack("{s:I, s:I, s:I, s:I, s:I, s:o}", "first_step", (json_int_t)trainer->step, "steps",
                (json_int_t)facts->trainer->total_steps, "batch_size", (json_int_t)facts->config->train.batch_size,
                "parameters", (json_int_t)hv_params_total(trainer->params), "trainable",
                (json_int_t)count_trainable(trainer->params), "data", describe_data(facts->data));
  if (!card || !work || json_object_update(card, work) != 0) {
    json_decref(card);
    card = NULL;
  }
  json_decref(work);
  return card;
}

hv_status hv_run_card_begin(hv_run_card *card, const hv_run_facts *facts) {
  card->object = describe(facts);
  hv_status status = card->object ? write_card(card) : hv_error_memory("the run's card");
  if (!status) return HV_OK;
  json_decref(card->object);
  card->object = NULL;
  return status;
}

hv_status hv_run_card_end(hv_run_card *card, const char *state, const char *message) {
  if (!card->object) return HV_OK;
  json_object_set_new(card->object, "state", json_string(state));
  json_object_set_new(card->object, "end", json_real(hv_wall_seconds()));
  if (message) json_object_set_new(card->object, "message", hv_json_text(message));
  return write_card(card);
}

/* Compares contents: some network file systems give a file a new inode number when it is written. */
static bool holds_the_same(int own, const char *path) {
  char here[4096], there[4096];
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  bool same = true;
  ssize_t size = 1;
  for (off_t at = 0; same && size > 0; at += size) {
    size = pread(own, here, sizeof here, at);
    same = size >= 0 && pread(file, there, sizeof there, at) == size && memcmp(here, there, (size_t)size) == 0;
  }
  close(file);
  return same;
}

hv_status hv_run_card_check(const hv_run_card *card) {
  struct stat own, found;
  if (!card || fstat(card->file, &own) != 0) return HV_OK;
  bool there = stat(card->path, &found) == 0;
  /* If the disk does not answer, it is not known where the directory is; writing there will fail by itself. */
  if (!there && errno != ENOENT && errno != ENOTDIR) return HV_OK;
  if (there && found.st_dev == own.st_dev && found.st_ino == own.st_ino) return HV_OK;
  if (there && holds_the_same(card->file, card->path)) return HV_OK;
  return hv_error(HV_ERR_INPUT,
                  "%s is %s: the run's directory was moved, removed or replaced while it went on; nothing more is "
                  "written there",
                  card->path, there ? "another file than the one this run began with" : "gone");
}

bool hv_run_card_held(const char *run, int *unknown) {
  char *path = hv_path_join(run, "run.json");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  free(path);
  *unknown = 0;
  if (file < 0) return false;
  int problem = flock(file, LOCK_SH | LOCK_NB) != 0 ? errno : 0;
  close(file);
  if (problem != EWOULDBLOCK) *unknown = problem;
  return problem == EWOULDBLOCK;
}
