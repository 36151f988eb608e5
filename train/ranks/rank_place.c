#include "train/ranks/rank_place.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void read_boot(char *out, size_t size) {
  FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
  if (!file) return;
  if (!fgets(out, (int)size, file)) out[0] = '\0';
  (void)fclose(file);
}

hv_rank_place hv_rank_place_own(const hv_device *device) {
  hv_rank_place place = {.pid = getpid()};
  if (gethostname(place.host, sizeof place.host - 1) != 0) snprintf(place.host, sizeof place.host, "?");
  read_boot(place.boot, sizeof place.boot);
  struct stat space;
  if (stat("/proc/self/ns/pid", &space) == 0) place.processes = (uint64_t)space.st_ino;
  snprintf(place.device, sizeof place.device, "%s", device->name);
  if (device->model) snprintf(place.model, sizeof place.model, "%s", device->model);
  if (device->place) snprintf(place.card, sizeof place.card, "%s", device->place);
  return place;
}

/* A zombie has ended, too: its parent, the launcher, may be dead or too busy to wait for it. Allocates nothing. */
static bool has_ended(pid_t process) {
  char path[32], text[256];
  snprintf(path, sizeof path, "/proc/%d/stat", (int)process);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
  if (file >= 0) (void)close(file);
  if (length <= 0) return kill(process, 0) != 0 && errno == ESRCH;
  text[length] = '\0';
  const char *name_end = strrchr(text, ')'); /* "PID (NAME) STATE …" */
  return name_end && (strncmp(name_end, ") Z", 3) == 0 || strncmp(name_end, ") X", 3) == 0);
}

bool hv_rank_place_gone(const hv_rank_place *own, const hv_rank_place *other) {
  if (own->pid == other->pid || !own->boot[0] || !own->processes) return false;
  if (strcmp(own->boot, other->boot) != 0 || own->processes != other->processes) return false;
  return has_ended((pid_t)other->pid);
}

static bool same_machine(const hv_rank_place *a, const hv_rank_place *b) {
  return strcmp(a->boot, b->boot) == 0 && (a->boot[0] || strcmp(a->host, b->host) == 0);
}

hv_status hv_rank_places_check(const hv_rank_place *places, int32_t count) {
  for (int32_t b = 1; b < count; b++) {
    for (int32_t a = 0; a < b; a++) {
      const hv_rank_place *first = &places[a], *second = &places[b];
      if (!first->card[0] || strcmp(first->card, second->card) != 0 || !same_machine(first, second)) continue;
      return hv_error(HV_ERR_INPUT,
                      "ranks %d and %d are both on card %s of %s: start one rank for each card (LOCAL_RANK, or what "
                      "mpirun or srun sets instead, chooses the card)",
                      a, b, second->card, second->host);
    }
  }
  return HV_OK;
}

/* The end of the run of ranks that begins at `first` and is on one machine. */
static int32_t same_host_until(const hv_rank_place *places, int32_t count, int32_t first) {
  int32_t end = first + 1;
  while (end < count && same_machine(&places[first], &places[end])) end++;
  return end;
}

void hv_rank_places_describe(const hv_rank_place *places, int32_t count, hv_text *out) {
  int32_t hosts = 0;
  for (int32_t r = 0; r < count; r = same_host_until(places, count, r)) hosts++;
  hv_text_add(out, "%d ranks on %d host%s:", count, hosts, hosts > 1 ? "s" : "");
  for (int32_t r = 0; r < count;) {
    int32_t end = same_host_until(places, count, r);
    hv_text_add(out, "%s %s %d", r > 0 ? "," : "", places[r].host, r);
    if (end - r > 1) hv_text_add(out, "-%d", end - 1);
    r = end;
  }
  hv_text_add(out, "; %s", places[0].device);
  if (places[0].model[0]) hv_text_add(out, " (%s)", places[0].model);
  for (int32_t r = 1; r < count; r++) {
    if (strcmp(places[r].model, places[0].model) != 0) hv_text_add(out, ", rank %d %s", r, places[r].model);
  }
}
