/* Files and directories of core/base: writes are atomic, also if the writer is killed, the disk is full or a signal
 * comes, and durable. fsync and renameat2 are replaced here, so that the test sees what is synced in which order, and
 * can make a sync or a swap of names fail. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "core/base/directory.h"
#include "tests/check.h"

/* The fsync below replaces the C library's and calls the system. It notes the paths that were synced, in order, between
 * spaces. */
static char synced[4096] = " ";
static const char *unsyncable = ""; /* syncing a path with this ending fails */

int fsync(int fd) {
  char link[64], path[1024];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path);
  size_t used = strlen(synced);
  if (length > 0) snprintf(synced + used, sizeof synced - used, "%.*s ", (int)length, path);
  size_t end = strlen(unsyncable);
  if (end > 0 && length > (ssize_t)end && memcmp(path + length - end, unsyncable, end) == 0) {
    errno = EIO;
    return -1;
  }
  return (int)syscall(SYS_fsync, fd);
}

/* The renameat2 below replaces the C library's; with `no_swap` it fails as on a file system that cannot swap two names.
 */
static bool no_swap;

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
  if (!no_swap) return (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
  errno = EINVAL;
  return -1;
}

static void assert_text(const char *path, const char *expected) {
  char *text;
  size_t length;
  assert_ok(hv_read_text(path, 1 << 20, &text, &length));
  assert_string_equal(text, expected);
  assert_int_equal(length, strlen(expected));
  free(text);
}

static void writes_replace_whole_files(void **state) {
  const char *path = in_folder(*state, "a.txt");
  assert_ok(hv_write_file_atomic(path, "one", 3));
  assert_text(path, "one");
  assert_ok(hv_write_file_atomic(path, "another", 7));
  assert_text(path, "another");
  assert_ok(hv_write_file_atomic(path, "", 0));
  assert_text(path, "");
  struct stat info;
  assert_int_equal(chmod(path, 0640), 0);
  assert_ok(hv_write_file_atomic(path, "one", 3));
  assert_int_equal(stat(path, &info), 0);
  assert_int_equal(info.st_mode & 0777, 0640);
  assert_int_equal(count_entries(*state), 1);
  assert_error(hv_write_file_atomic(in_folder(*state, "absent/a.txt"), "x", 1), "absent/a.txt");
}

static void a_writer_shows_nothing_before_its_commit(void **state) {
  const char *path = in_folder(*state, "a.bin");
  write_text(path, "old");
  hv_file_writer *writer;
  assert_ok(hv_file_writer_open(path, &writer));
  for (int i = 0; i < 1000; i++) assert_ok(hv_file_writer_write(writer, "0123456789", 10));
  assert_text(path, "old");
  assert_ok(hv_file_writer_commit(writer));
  struct stat info;
  assert_int_equal(stat(path, &info), 0);
  assert_int_equal(info.st_size, 10000);
  assert_ok(hv_file_writer_open(path, &writer));
  assert_ok(hv_file_writer_write(writer, "new", 3));
  hv_file_writer_abort(writer);
  hv_file_writer_abort(NULL);
  assert_int_equal(stat(path, &info), 0);
  assert_int_equal(info.st_size, 10000);
  assert_int_equal(count_entries(*state), 1);
}

static void a_link_stays_and_what_it_names_is_replaced(void **state) {
  const char *link = in_folder(*state, "link");
  write_text(in_folder(*state, "named"), "old");
  assert_int_equal(symlink("named", link), 0);
  assert_ok(hv_write_file_atomic(link, "new", 3));
  assert_text(in_folder(*state, "named"), "new");
  struct stat info;
  assert_int_equal(lstat(link, &info), 0);
  assert_true(S_ISLNK(info.st_mode));
  assert_int_equal(count_entries(*state), 2);
}

/* A named pipe without a reader or writer is neither opened, which would block, nor replaced. */
static void what_is_no_file_is_refused(void **state) {
  const char *pipe = in_folder(*state, "pipe"), *link = in_folder(*state, "link");
  assert_int_equal(mkfifo(pipe, 0666), 0);
  assert_int_equal(symlink("pipe", link), 0);
  assert_error(hv_write_file_atomic(pipe, "x", 1), pipe, "not a regular file");
  assert_error(hv_write_file_atomic(link, "x", 1), link, "not a regular file");
  assert_error(hv_write_file_atomic(*state, "x", 1), *state, "a directory");
  hv_mapping mapping;
  assert_error(hv_map_file(pipe, &mapping), pipe, "not a regular file");
  struct stat info;
  assert_int_equal(stat(pipe, &info), 0);
  assert_true(S_ISFIFO(info.st_mode));
  assert_int_equal(count_entries(*state), 2);
}

/* The digest that a writer computes is that of the file, whatever pieces it was written in; another byte changes it. */
static void a_digest_tells_files_apart(void **state) {
  const char *path = in_folder(*state, "a.bin"), *other = in_folder(*state, "b.bin");
  hv_file_writer *writer;
  hv_file_digest written, read, changed;
  assert_ok(hv_file_writer_open(path, &writer));
  for (int i = 0; i < 300000; i++) assert_ok(hv_file_writer_write(writer, "0123456789", (size_t)(i % 11)));
  written = hv_file_writer_digest(writer);
  assert_ok(hv_file_writer_commit(writer));
  assert_ok(hv_digest_file(path, &read));
  assert_int_equal(read.size, written.size);
  assert_true(read.xxh3 == written.xxh3);
  write_text(other, "a");
  assert_ok(hv_digest_file(other, &read));
  assert_true(read.xxh3 == 0xe6c632b61e964e1fu); /* what `xxhsum -H3` says of "a" */
  write_text(other, "c");
  assert_ok(hv_digest_file(other, &changed));
  assert_true(changed.size == read.size && changed.xxh3 != read.xxh3);
  assert_error(hv_digest_file(in_folder(*state, "absent"), &read), "absent");
}

/* A child process is killed while it writes: the old file is still whole. */
static void a_killed_writer_leaves_the_old_file(void **state) {
  const char *path = in_folder(*state, "a.bin");
  write_text(path, "old");
  for (int attempt = 0; attempt < 5; attempt++) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
      hv_file_writer *writer;
      static char block[1 << 16];
      if (hv_file_writer_open(path, &writer)) _exit(1);
      for (;;) {
        if (hv_file_writer_write(writer, block, sizeof block)) _exit(1);
        usleep(1000);
      }
    }
    usleep(5000 * (useconds_t)(attempt + 1));
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_text(path, "old");
  }
  write_text(path, "new");
  assert_text(path, "new");
}

/* A limit on file sizes stands in for a full disk. */
static void a_full_disk_leaves_the_old_file(void **state) {
  const char *path = in_folder(*state, "a.bin");
  write_text(path, "old");
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    static char block[1 << 16];
    struct rlimit limit = {.rlim_cur = sizeof block / 2, .rlim_max = sizeof block / 2};
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(3);
    hv_status status = hv_write_file_atomic(path, block, sizeof block);
    bool named = status && hv_status_code(status) == HV_ERR_IO && strstr(hv_status_message(status), path);
    _exit(named ? 0 : 4);
  }
  int result;
  assert_int_equal(waitpid(child, &result, 0), child);
  assert_true(WIFEXITED(result));
  assert_int_equal(WEXITSTATUS(result), 0);
  assert_text(path, "old");
  assert_int_equal(count_entries(*state), 1);
}

/* While the file is being written, a directory takes its name: the commit fails, the directory stays and no temporary
 * file is left. */
static void what_cannot_take_its_place_leaves_nothing(void **state) {
  const char *path = in_folder(*state, "a.bin");
  hv_file_writer *writer;
  assert_ok(hv_file_writer_open(path, &writer));
  assert_ok(hv_file_writer_write(writer, "new", 3));
  assert_int_equal(mkdir(path, 0777), 0);
  assert_error(hv_file_writer_commit(writer), "cannot rename", path);
  assert_int_equal(count_entries(*state), 1);
}

/* Writes ten files into a temporary directory, while the directory that they are to go to gets a non-empty folder "5",
 * which the file of that name cannot replace. */
static hv_status write_ten(const char *directory, void *context) {
  char name[16];
  for (int i = 0; i < 10; i++) {
    snprintf(name, sizeof name, "%d", i);
    write_text(in_folder(directory, name), "x");
  }
  return hv_make_directories(in_folder(context, "5/other"));
}

/* All files arrive or none: those that were moved before the one that failed are removed again. */
static void a_folder_is_filled_whole_or_not(void **state) {
  char path[512];
  snprintf(path, sizeof path, "%s", in_folder(*state, "empty"));
  assert_int_equal(mkdir(path, 0777), 0);
  assert_error(hv_write_directory(path, HV_LEFTOVER_REMOVE, write_ten, path), "cannot rename");
  assert_int_equal(count_entries(path), 1);
  assert_true(hv_file_exists(in_folder(path, "5/other")));
}

/* Writes one file before and one after a signal arrives. */
static hv_status write_interrupted(const char *directory, void *context) {
  const int *number = context;
  HV_TRY(hv_write_file_atomic(in_folder(directory, "first"), "x", 1));
  raise(*number);
  return hv_write_file_atomic(in_folder(directory, "second"), "x", 1);
}

/* The exit code of a process that is signalled while it writes a directory: 0, or 128 + the signal that killed it. */
static int end_of_interrupted(const char *path, int number, bool blocked, bool ignored) {
  pid_t child = fork();
  if (child == 0) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    if (blocked) sigprocmask(SIG_BLOCK, &set, NULL);
    if (ignored) signal(number, SIG_IGN);
    _exit(hv_write_directory(path, HV_LEFTOVER_REFUSE, write_interrupted, &number) == HV_OK ? 0 : 1);
  }
  int end;
  assert_int_equal(waitpid(child, &end, 0), child);
  return WIFSIGNALED(end) ? 128 + WTERMSIG(end) : WEXITSTATUS(end);
}

static void a_signal_leaves_no_part_of_a_folder(void **state) {
  const int signals[] = {SIGINT, SIGTERM, SIGHUP};
  for (int i = 0; i < 3; i++) {
    assert_int_equal(end_of_interrupted(in_folder(*state, "new"), signals[i], false, false), 128 + signals[i]);
    assert_int_equal(count_entries(*state), 0);
  }
  assert_int_equal(mkdir(in_folder(*state, "empty"), 0777), 0);
  assert_int_equal(end_of_interrupted(in_folder(*state, "empty"), SIGTERM, false, false), 128 + SIGTERM);
  assert_int_equal(count_entries(in_folder(*state, "empty")), 0);
  assert_int_equal(end_of_interrupted(in_folder(*state, "nohup"), SIGHUP, false, true), 0);
  assert_int_equal(end_of_interrupted(in_folder(*state, "run"), SIGTERM, true, false), 0);
  assert_true(hv_file_exists(in_folder(*state, "nohup/second")) && hv_file_exists(in_folder(*state, "run/second")));
}

static void maps_read_whole_files(void **state) {
  const char *path = in_folder(*state, "a.bin");
  hv_mapping mapping;
  write_text(path, "mapped");
  assert_ok(hv_map_file(path, &mapping));
  assert_int_equal(mapping.size, 6);
  assert_memory_equal(mapping.data, "mapped", 6);
  hv_unmap(&mapping);
  hv_unmap(&mapping);
  write_text(path, "");
  assert_ok(hv_map_file(path, &mapping));
  assert_null(mapping.data);
  assert_int_equal(mapping.size, 0);
  hv_unmap(&mapping);
  assert_error(hv_map_file(in_folder(*state, "absent"), &mapping), "absent");
  assert_error(hv_map_file(*state, &mapping), *state);
}

static void reads_are_limited(void **state) {
  const char *path = in_folder(*state, "a.txt");
  char *text = NULL;
  size_t length;
  write_text(path, "0123456789");
  assert_ok(hv_read_text(path, 10, &text, &length));
  free(text);
  assert_error(hv_read_text(path, 9, &text, &length), "a.txt", "10 bytes");
  assert_null(text);
}

static void directories_are_made_and_removed(void **state) {
  const char *deep = in_folder(*state, "a/b/c"), *top = in_folder(*state, "a");
  assert_ok(hv_make_directories(deep));
  assert_ok(hv_make_directories(deep));
  assert_true(hv_file_exists(deep));
  write_text(in_folder(*state, "a/b/file"), "x");
  assert_error(hv_make_directories(in_folder(*state, "a/b/file/d")), "a/b/file");
  assert_error(hv_make_directories(""), "cannot make directory");
  assert_ok(hv_sync_directory(deep));
  assert_ok(hv_remove_tree(top));
  assert_false(hv_file_exists(top));
  assert_ok(hv_remove_tree(top));
  assert_error(hv_sync_directory(top), top);
}

/* New directories survive a power failure: after each is made, its parent is synced. */
static void directories_are_made_to_stay(void **state) {
  char own[PATH_MAX], expected[4 * PATH_MAX];
  assert_non_null(realpath(*state, own));
  synced[1] = '\0';
  assert_ok(hv_make_directories(in_folder(*state, "run/checkpoints/step-1")));
  snprintf(expected, sizeof expected, " %s %s/run %s/run/checkpoints ", own, own, own);
  assert_string_equal(synced, expected);
  assert_ok(hv_make_directories(in_folder(*state, "run/checkpoints/step-1")));
  assert_string_equal(synced, expected);
}

/* A file survives a power failure, in its old or new state: the temporary file is synced before the rename, and the
 * directory after it. */
static void files_are_written_to_stay(void **state) {
  char own[PATH_MAX], expected[4 * PATH_MAX];
  assert_non_null(realpath(*state, own));
  const char *path = in_folder(*state, "a.txt");
  for (int i = 0; i < 2; i++) {
    synced[1] = '\0';
    assert_ok(hv_write_file_atomic(path, "one", 3));
    snprintf(expected, sizeof expected, " %s/a.txt.%ld.tmp %s ", own, (long)getpid(), own);
    assert_string_equal(synced, expected);
  }
}

static hv_status write_one(const char *directory, void *context) {
  (void)context;
  write_text(in_folder(directory, "file"), "x");
  synced[1] = '\0'; /* forget the sync of the file itself */
  return HV_OK;
}

/* The same for directories: a new one, one that replaces another, and one that is filled in place. */
static void folders_are_replaced_to_stay(void **state) {
  char own[PATH_MAX], expected[4 * PATH_MAX];
  assert_non_null(realpath(*state, own));
  for (int i = 0; i < 2; i++) {
    assert_ok(hv_write_directory(in_folder(*state, "model"), HV_LEFTOVER_REMOVE, write_one, NULL));
    snprintf(expected, sizeof expected, " %s/model.partial %s ", own, own);
    assert_string_equal(synced, expected);
  }
  assert_int_equal(mkdir(in_folder(*state, "empty"), 0777), 0);
  assert_ok(hv_write_directory(in_folder(*state, "empty"), HV_LEFTOVER_REMOVE, write_one, NULL));
  snprintf(expected, sizeof expected, " %s/empty/.partial %s/empty ", own, own);
  assert_string_equal(synced, expected);
}

static void write_folder(const char *path, const char *content) {
  assert_ok(hv_make_directories(path));
  write_text(in_folder(path, "file"), content);
}

static void assert_folder(const char *path, const char *content) {
  assert_text(in_folder(path, "file"), content);
}

/* On a file system that cannot swap names, the old folder is moved aside first. The name "model.old" may already be
 * taken by a copy of the user's, which must stay. */
static void a_folder_is_replaced_without_a_swap(void **state) {
  char path[512], fresh[512], copy[512];
  snprintf(path, sizeof path, "%s", in_folder(*state, "model"));
  snprintf(fresh, sizeof fresh, "%s", in_folder(*state, "fresh"));
  snprintf(copy, sizeof copy, "%s", in_folder(*state, "model.old"));
  no_swap = true;
  for (int round = 0; round < 2; round++) {
    write_folder(path, "old");
    write_folder(fresh, "new");
    if (round) write_folder(copy, "kept");
    assert_ok(hv_replace_directory(fresh, path));
    assert_folder(path, "new");
    assert_int_equal(count_entries(*state), 1 + round);
  }
  assert_folder(copy, "kept");
  assert_error(hv_replace_directory(in_folder(*state, "absent"), path), "cannot rename", "absent");
  assert_folder(path, "new");
  no_swap = false;
}

/* If the directory cannot be synced, the swap might not survive a power failure: it is undone and the old folder stays.
 */
static void a_folder_stays_where_its_successor_cannot_be_synced(void **state) {
  char path[512], fresh[512], parent[PATH_MAX];
  assert_non_null(realpath(*state, parent));
  snprintf(path, sizeof path, "%s", in_folder(*state, "model"));
  snprintf(fresh, sizeof fresh, "%s", in_folder(*state, "fresh"));
  write_folder(path, "old");
  write_folder(fresh, "new");
  unsyncable = strrchr(parent, '/');
  assert_error(hv_replace_directory(fresh, path), "cannot sync directory");
  unsyncable = "";
  assert_folder(path, "old");
  assert_folder(fresh, "new");
}

/* Run as an ordinary user: the top of a shared disk may be writable but not readable. */
static void a_folder_nobody_may_list_takes_new_ones(void **state) {
  enum { NOBODY = 65534 };
  const char *top = in_folder(*state, "top"), *made = in_folder(*state, "top/run/checkpoints");
  assert_ok(hv_make_directories(top));
  assert_int_equal(chmod(*state, 0711), 0);
  assert_int_equal(chmod(top, 0733), 0);
  pid_t child = fork();
  if (child == 0) {
    if (geteuid() == 0 && (setgid(NOBODY) != 0 || setuid(NOBODY) != 0)) _exit(2);
    _exit(hv_make_directories(made) == HV_OK && hv_write_file_atomic(in_folder(top, "file"), "x", 1) == HV_OK ? 0 : 1);
  }
  int end;
  assert_int_equal(waitpid(child, &end, 0), child);
  assert_int_equal(chmod(top, 0700), 0);
  assert_true(WIFEXITED(end) && WEXITSTATUS(end) == 0);
  assert_true(hv_file_exists(made));
  assert_text(in_folder(top, "file"), "x");
}

/* What a link points at is not part of the tree. */
static void removal_does_not_follow_links(void **state) {
  const char *kept = in_folder(*state, "kept"), *tree = in_folder(*state, "tree");
  assert_ok(hv_make_directories(kept));
  assert_ok(hv_make_directories(tree));
  write_text(in_folder(*state, "kept/file"), "x");
  assert_int_equal(symlink(kept, in_folder(*state, "tree/link")), 0);
  assert_ok(hv_remove_tree(tree));
  assert_text(in_folder(*state, "kept/file"), "x");
}

static void paths_join(void **state) {
  (void)state;
  char *path = hv_path_join("a", "b");
  assert_string_equal(path, "a/b");
  free(path);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(writes_replace_whole_files),
      TEST(a_writer_shows_nothing_before_its_commit),
      TEST(a_link_stays_and_what_it_names_is_replaced),
      TEST(what_is_no_file_is_refused),
      TEST(a_digest_tells_files_apart),
      TEST(a_killed_writer_leaves_the_old_file),
      TEST(a_full_disk_leaves_the_old_file),
      TEST(what_cannot_take_its_place_leaves_nothing),
      TEST(a_folder_is_filled_whole_or_not),
      TEST(a_signal_leaves_no_part_of_a_folder),
      TEST(maps_read_whole_files),
      TEST(reads_are_limited),
      TEST(directories_are_made_and_removed),
      TEST(directories_are_made_to_stay),
      TEST(files_are_written_to_stay),
      TEST(folders_are_replaced_to_stay),
      TEST(a_folder_is_replaced_without_a_swap),
      TEST(a_folder_stays_where_its_successor_cannot_be_synced),
      TEST(a_folder_nobody_may_list_takes_new_ones),
      TEST(removal_does_not_follow_links),
      cmocka_unit_test(paths_join),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
