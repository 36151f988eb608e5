/* The rendezvous over TCP, by which ranks meet without MPI, exchange numbers and report errors and late ranks; and who
 * is refused. The ranks are threads of this process. Also: where ranks meet, by the environment, and on which cards
 * they are. */
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "core/base/clock.h"
#include "tests/check.h"
#include "train/ranks/meeting_place.h"
#include "train/ranks/rank_place.h"
#include "train/ranks/rendezvous.h"

enum { MOST = 4 };

typedef struct meeting {
  hv_rendezvous_options options;
  hv_peers *peers;
  hv_status status;
  pthread_t thread;
} meeting;

static void *meet(void *argument) {
  meeting *m = argument;
  m->status = hv_rendezvous_open(&m->options, &m->peers);
  return NULL;
}

/* Lets ranks meet, each in a thread, at a port where rank 0 listens already. Rank r claims to be one of sizes[r]. */
static void meet_all_at(int listener, int port, int ranks, const int *sizes, double timeout, meeting *all) {
  for (int r = 0; r < ranks; r++) {
    all[r] = (meeting){.options = {.rank = r,
                                   .size = sizes[r],
                                   .host = "127.0.0.1",
                                   .port = port,
                                   .listener = r == 0 ? listener : -1,
                                   .timeout = timeout}};
    assert_int_equal(pthread_create(&all[r].thread, NULL, meet, &all[r]), 0);
  }
  for (int r = 0; r < ranks; r++) pthread_join(all[r].thread, NULL);
}

static void meet_all(int ranks, const int *sizes, double timeout, meeting *all) {
  int listener, port;
  assert_ok(hv_rendezvous_listen(0, &listener, &port));
  meet_all_at(listener, port, ranks, sizes, timeout, all);
}

static void close_all(int ranks, meeting *all) {
  for (int r = ranks - 1; r >= 0; r--) {
    hv_peers_close(all[r].peers);
    hv_status_free(all[r].status);
  }
}

static void *gather(void *argument) {
  meeting *m = argument;
  int32_t own = 100 + m->options.rank, found[MOST] = {0};
  m->status = m->peers->methods->gather(m->peers, "numbers", &own, sizeof own, found);
  for (int32_t r = 0; r < m->options.size && !m->status; r++) {
    if (found[r] != 100 + r) m->status = hv_error(HV_ERR_NO, "rank %d gave %d", r, found[r]);
  }
  return NULL;
}

static void each(int ranks, meeting *all, void *(*work)(void *)) {
  for (int r = 0; r < ranks; r++) assert_int_equal(pthread_create(&all[r].thread, NULL, work, &all[r]), 0);
  for (int r = 0; r < ranks; r++) pthread_join(all[r].thread, NULL);
}

static void on_all(int ranks, meeting *all, void *(*work)(void *)) {
  each(ranks, all, work);
  for (int r = 0; r < ranks; r++) assert_ok(all[r].status);
}

static const int four[] = {4, 4, 4, 4};

static void meet_and_watch(meeting *all) {
  meet_all(4, four, 10, all);
  for (int r = 0; r < 4; r++) assert_ok(all[r].status);
  for (int r = 0; r < 4; r++) assert_ok(all[r].peers->methods->watch(all[r].peers));
}

/* Fails unless the rank learns within some seconds of a failure with these words. */
static void expect_failure(const meeting *m, const char *words) {
  hv_status status = HV_OK;
  for (double start = hv_clock_seconds(); !status && hv_clock_seconds() - start < 10; usleep(10000)) {
    status = m->peers->methods->failure(m->peers);
  }
  assert_error(status, words);
}

static void all_hear_what_each_gives(void **state) {
  (void)state;
  meeting all[MOST];
  meet_all(4, four, 10, all);
  on_all(4, all, gather);
  on_all(4, all, gather);
  close_all(4, all);
}

static void a_report_reaches_all(void **state) {
  (void)state;
  meeting all[MOST];
  meet_and_watch(all);
  all[2].peers->methods->report(all[2].peers, "the disk of rank 2 is full");
  for (int r = 0; r < 4; r++) expect_failure(&all[r], "the disk of rank 2 is full");
  close_all(4, all);
}

static void the_rank_that_is_behind_is_named(void **state) {
  (void)state;
  meeting all[MOST];
  meet_and_watch(all);
  for (int r = 0; r < 4; r++) all[r].peers->methods->progress(all[r].peers, r == 3 ? 6 : 7);
  usleep(500000);
  all[1].peers->methods->late(all[1].peers, 7, "all_reduce of x", 5);
  for (int r = 0; r < 4; r++) {
    expect_failure(&all[r], "rank 3 (process ");
    expect_failure(&all[r], "did not come for 5 s: all_reduce of x cannot end on rank 1");
  }
  close_all(4, all);
}

static void where_none_is_behind_the_machine_is_blamed(void **state) {
  (void)state;
  meeting all[MOST];
  meet_and_watch(all);
  for (int r = 0; r < 4; r++) all[r].peers->methods->progress(all[r].peers, 7);
  usleep(500000);
  all[0].peers->methods->late(all[0].peers, 7, "all_reduce of x", 5);
  expect_failure(&all[2], "all_reduce of x did not end for 5 s on rank 0");
  close_all(4, all);
}

/* Rank 0 is connected but does not answer (nobody watches its connections), like a stopped process. */
static void a_silent_rank_0_is_named(void **state) {
  (void)state;
  meeting all[MOST];
  char host[64] = "", name[160];
  assert_int_equal(gethostname(host, sizeof host - 1), 0);
  snprintf(name, sizeof name, "rank 0 (process %d on %s) has been silent for 5 s", (int)getpid(), host);
  meet_all(4, four, 10, all);
  for (int r = 0; r < 4; r++) assert_ok(all[r].status);
  for (int r = 1; r < 4; r++) assert_ok(all[r].peers->methods->watch(all[r].peers));
  for (int r = 1; r < 4; r++) {
    all[r].peers->methods->late(all[r].peers, 6, "all_reduce of x", 5);
    all[r].peers->methods->late(all[r].peers, 7, "all_reduce of x", 5);
    usleep(200000);
    assert_ok(all[r].peers->methods->failure(all[r].peers));
    all[r].peers->methods->late(all[r].peers, 7, "all_reduce of x", 5);
    expect_failure(&all[r], name);
    expect_failure(&all[r], "has been silent for 5 s: all_reduce of x cannot end on rank ");
  }
  close_all(4, all);
}

static void one_that_leaves_in_order_is_no_failure(void **state) {
  (void)state;
  meeting all[MOST];
  meet_and_watch(all);
  hv_peers_close(all[3].peers);
  all[3].peers = NULL;
  usleep(300000);
  for (int r = 0; r < 3; r++) assert_ok(all[r].peers->methods->failure(all[r].peers));
  close_all(4, all);
}

/* Also the ranks that did come are told which are missing. */
static void missing_ranks_are_listed(void **state) {
  (void)state;
  meeting all[MOST];
  meet_all(2, four, 1, all);
  assert_error(all[0].status, "2 of 4 ranks did not connect within 1 s: 2, 3");
  all[0].status = HV_OK;
  assert_ok(all[1].status);
  (void)gather(&all[1]);
  assert_error(all[1].status, "2 of 4 ranks did not connect within 1 s: 2, 3");
  all[1].status = HV_OK;
  close_all(2, all);
}

/* One rank gives up; the others are told which one, and that its own message says why. */
static void a_rank_that_gives_up_is_named_to_all(void **state) {
  (void)state;
  meeting all[MOST];
  meet_all(4, four, 10, all);
  for (int r = 0; r < 4; r++) assert_ok(all[r].status);
  hv_peers_close(all[3].peers);
  all[3].peers = NULL;
  each(3, all, gather);
  for (int r = 0; r < 3; r++) {
    assert_error(all[r].status, "numbers: rank 3 (process ", "has given up: its own message says why");
    all[r].status = HV_OK;
  }
  close_all(4, all);
}

static int knock(int port, const char *words) {
  int s = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
  assert_int_equal(connect(s, (struct sockaddr *)&address, sizeof address), 0);
  assert_int_equal(send(s, words, strlen(words), MSG_NOSIGNAL), (ssize_t)strlen(words));
  return s;
}

/* Strangers are connected before the ranks come, send nothing or nonsense, and stay. */
static void strangers_do_not_keep_ranks_waiting(void **state) {
  (void)state;
  enum { STRANGERS = 8 };
  char flood[2048];
  int listener, port, strangers[STRANGERS];
  meeting all[MOST];
  memset(flood, 'x', sizeof flood - 1);
  flood[sizeof flood - 1] = '\0';
  const char *const words[] = {"", "GET / HTTP/1.1\r\n", flood, "reepalvh"};
  assert_ok(hv_rendezvous_listen(0, &listener, &port));
  for (int i = 0; i < STRANGERS; i++) strangers[i] = knock(port, words[i % 4]);
  meet_all_at(listener, port, 4, four, 4, all);
  for (int r = 0; r < 4; r++) assert_ok(all[r].status);
  on_all(4, all, gather);
  for (int i = 0; i < STRANGERS; i++) (void)close(strangers[i]);
  close_all(4, all);
}

static void *speak(void *argument) {
  meeting *m = argument;
  for (int i = 0; i < 2000; i++) {
    m->peers->methods->late(m->peers, 1, "all_reduce of x", 5);
    hv_status_free(m->peers->methods->failure(m->peers));
    usleep(200);
  }
  return NULL;
}

/* Rank 0 closes connections while other threads are sending on them. */
static void a_rank_may_leave_while_others_speak(void **state) {
  (void)state;
  meeting all[MOST];
  meet_and_watch(all);
  for (int r = 1; r < 4; r++) assert_int_equal(pthread_create(&all[r].thread, NULL, speak, &all[r]), 0);
  usleep(100000);
  hv_peers_close(all[0].peers);
  all[0].peers = NULL;
  for (int r = 1; r < 4; r++) pthread_join(all[r].thread, NULL);
  close_all(4, all);
}

static void a_rank_of_another_run_is_refused(void **state) {
  (void)state;
  const int sizes[] = {2, 8};
  meeting all[MOST];
  meet_all(2, sizes, 5, all);
  assert_error(all[0].status, "rank 1 of 8 (process ", "connected to a run of 2 ranks");
  assert_error(all[1].status, "rank 0 refuses this process: rank 1 of 8");
  all[0].status = all[1].status = HV_OK;
  close_all(2, all);
}

/* A rank of another run, with the same size, comes before the right one: it is refused by the name of its run. A rank
 * without a name is accepted. */
static void a_rank_of_a_run_of_another_name_is_sent_away(void **state) {
  (void)state;
  static const char *const runs[] = {"JOB=1", "JOB=1", NULL};
  int listener, port;
  meeting all[MOST];
  assert_ok(hv_rendezvous_listen(0, &listener, &port));
  hv_rendezvous_options options = {.size = 3, .host = "127.0.0.1", .port = port, .listener = -1, .timeout = 10};
  meeting stranger = {.options = options};
  stranger.options.rank = 1;
  stranger.options.run = "JOB=2";
  for (int r = 0; r < 3; r++) {
    all[r] = (meeting){.options = options};
    all[r].options.rank = r;
    all[r].options.run = runs[r];
    if (r == 0) all[r].options.listener = listener;
    if (r == 1) (void)meet(&stranger);
    assert_int_equal(pthread_create(&all[r].thread, NULL, meet, &all[r]), 0);
  }
  assert_error(stranger.status, "rank 0 refuses this process: rank 1 of 3 (process ",
               "belongs to the run JOB=2, not to JOB=1");
  for (int r = 0; r < 3; r++) pthread_join(all[r].thread, NULL);
  for (int r = 0; r < 3; r++) assert_ok(all[r].status);
  on_all(3, all, gather);
  close_all(3, all);
}

/* If rank 0 itself has no name of the run, it accepts ranks of any name. */
static void a_rank_0_without_a_name_lets_all_in(void **state) {
  (void)state;
  int listener, port;
  meeting all[MOST];
  assert_ok(hv_rendezvous_listen(0, &listener, &port));
  for (int r = 0; r < 2; r++) {
    all[r] = (meeting){.options = {.rank = r, .size = 2, .host = "127.0.0.1", .port = port, .timeout = 10}};
    all[r].options.listener = r == 0 ? listener : -1;
    all[r].options.run = r == 0 ? NULL : "JOB=1";
  }
  on_all(2, all, meet);
  close_all(2, all);
}

/* Two runs of one size without names meet at the same port: the message says what may be wrong. */
static void a_second_rank_of_one_number_is_refused(void **state) {
  (void)state;
  int listener, port;
  meeting first, second, third;
  assert_ok(hv_rendezvous_listen(0, &listener, &port));
  hv_rendezvous_options options = {.size = 3, .host = "127.0.0.1", .port = port, .listener = -1, .timeout = 10};
  first = second = third = (meeting){.options = options};
  first.options.listener = listener;
  second.options.rank = third.options.rank = 1;
  assert_int_equal(pthread_create(&first.thread, NULL, meet, &first), 0);
  (void)meet(&second);
  (void)meet(&third);
  pthread_join(first.thread, NULL);
  assert_ok(second.status);
  assert_error(first.status, "rank 1 of 3 (process ", "already has this rank: does another run meet at the same port?");
  assert_error(third.status, "rank 0 refuses this process: rank 1 of 3", "already has this rank");
  hv_peers_close(second.peers);
}

static void nobody_there_is_one_clear_line(void **state) {
  (void)state;
  int listener, port;
  hv_peers *peers;
  assert_ok(hv_rendezvous_listen(0, &listener, &port));
  (void)close(listener);
  hv_rendezvous_options options = {
      .rank = 1, .size = 2, .host = "127.0.0.1", .port = port, .listener = -1, .timeout = 0.3};
  assert_error(hv_rendezvous_open(&options, &peers), "rank 0 at 127.0.0.1:", "did not answer");
  options.host = "no-such-host.invalid";
  assert_error(hv_rendezvous_open(&options, &peers), "cannot resolve rank 0's host \"no-such-host.invalid\"");
}

static void the_first_host_of_a_node_list_is_found(void **state) {
  (void)state;
  static const char *const lists[][2] = {{"node1", "node1"},
                                         {"node1,node2", "node1"},
                                         {"node[03-07,11],other1", "node03"},
                                         {"node[5]", "node5"},
                                         {"gpu-[1-2]-ib", "gpu-1-ib"},
                                         {"a[1,3],b2", "a1"},
                                         {"rack[2-3]node[04,06],x", "rack2node04"},
                                         {"n[1", "n1"},
                                         {"", ""}};
  for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
    char host[64];
    hv_slurm_first_host(lists[i][0], host, sizeof host);
    assert_string_equal(host, lists[i][1]);
  }
}

static const char *const launch_keys[] = {"MASTER_ADDR",
                                          "MASTER_PORT",
                                          "TORCHELASTIC_USE_AGENT_STORE",
                                          "SLURM_JOB_ID",
                                          "SLURM_STEP_ID",
                                          "SLURM_STEP_NODELIST",
                                          "SLURM_JOB_NODELIST",
                                          "SLURM_LAUNCH_NODE_IPADDR",
                                          "OMPI_COMM_WORLD_RANK",
                                          "PMI_RANK"};

static void expect_place(const hv_launch *launch, const char *host, int port) {
  hv_meeting_place place;
  assert_ok(hv_meeting_place_find(launch, &place));
  assert_string_equal(place.host, host);
  assert_int_equal(place.port, port);
}

static void the_meeting_place_is_read_from_the_environment(void **state) {
  (void)state;
  hv_meeting_place place;
  hv_launch torchrun = {.rank = 1, .size = 2, .rank_key = "RANK"};
  for (size_t i = 0; i < sizeof launch_keys / sizeof launch_keys[0]; i++) unsetenv(launch_keys[i]);
  assert_error(hv_meeting_place_find(&torchrun, &place), "set MASTER_ADDR");
  setenv("MASTER_ADDR", "node1", 1);
  assert_error(hv_meeting_place_find(&torchrun, &place), "MASTER_PORT is \"(not set)\"");
  static const char *const no_ports[] = {"70000", "65535", "0", "29500x", ""};
  for (size_t i = 0; i < sizeof no_ports / sizeof no_ports[0]; i++) {
    setenv("MASTER_PORT", no_ports[i], 1);
    assert_error(hv_meeting_place_find(&torchrun, &place), "MASTER_PORT is", no_ports[i], "from 1 to 65534");
  }
  setenv("MASTER_PORT", "65534", 1);
  expect_place(&torchrun, "node1", 65534);
  setenv("MASTER_PORT", "29500", 1);
  expect_place(&torchrun, "node1", 29500);
  setenv("TORCHELASTIC_USE_AGENT_STORE", "False", 1); /* torchrun does not use the port itself */
  expect_place(&torchrun, "node1", 29500);
  setenv("TORCHELASTIC_USE_AGENT_STORE", "True", 1);
  expect_place(&torchrun, "node1", 29501);
  unsetenv("MASTER_ADDR");
}

/* Every job and every step has a port of its own, because the steps of a job may run at the same time. */
static void the_meeting_place_of_a_slurm_job_is_its_own(void **state) {
  (void)state;
  hv_meeting_place place;
  hv_launch torchrun = {.rank = 1, .size = 2, .rank_key = "RANK"},
            slurm = {.rank = 1, .size = 2, .rank_key = "SLURM_PROCID"};
  for (size_t i = 0; i < sizeof launch_keys / sizeof launch_keys[0]; i++) unsetenv(launch_keys[i]);
  setenv("SLURM_JOB_ID", "4711", 1);
  assert_error(hv_meeting_place_find(&slurm, &place), "SLURM_PROCID makes this rank 1 of 2", "set MASTER_ADDR");
  setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7", 1);
  expect_place(&slurm, "10.0.0.7", 22977);
  setenv("SLURM_JOB_NODELIST", "big[2,4]", 1);
  expect_place(&slurm, "big2", 22977);
  setenv("SLURM_STEP_NODELIST", "node[7-9]", 1);
  setenv("SLURM_STEP_ID", "3", 1);
  expect_place(&slurm, "node7", 22980);
  assert_error(hv_meeting_place_find(&torchrun, &place), "RANK makes this rank 1 of 2", "set MASTER_ADDR");
}

static void two_ranks_on_one_card_are_refused(void **state) {
  (void)state;
  hv_rank_place places[3] = {{.host = "node1", .boot = "a", .card = "0000:1b:00.0"},
                             {.host = "node2", .boot = "b", .card = "0000:1b:00.0"},
                             {.host = "node1", .boot = "a", .card = "0000:1c:00.0"}};
  hv_text text = {0};
  assert_ok(hv_rank_places_check(places, 3));
  snprintf(places[2].card, sizeof places[2].card, "0000:1b:00.0");
  assert_error(hv_rank_places_check(places, 3), "ranks 0 and 2 are both on card 0000:1b:00.0 of node1");
  for (int r = 0; r < 3; r++) places[r].boot[0] = '\0'; /* without boot ids, host names decide */
  assert_error(hv_rank_places_check(places, 3), "ranks 0 and 2 are both");
  assert_ok(hv_rank_places_check(places, 2));
  for (int r = 0; r < 3; r++) places[r].card[0] = '\0';
  assert_ok(hv_rank_places_check(places, 3));
  snprintf(places[1].host, sizeof places[1].host, "node1");
  snprintf(places[1].boot, sizeof places[1].boot, "a");
  snprintf(places[0].device, sizeof places[0].device, "cuda");
  snprintf(places[0].model, sizeof places[0].model, "H100");
  for (int r = 1; r < 3; r++) places[r] = places[0];
  snprintf(places[2].host, sizeof places[2].host, "node2");
  snprintf(places[2].boot, sizeof places[2].boot, "b");
  hv_rank_places_describe(places, 3, &text);
  assert_string_equal(hv_text_string(&text), "3 ranks on 2 hosts: node1 0-1, node2 2; cuda (H100)");
  hv_text_free(&text);
  snprintf(places[1].model, sizeof places[1].model, "A100");
  hv_rank_places_describe(places, 3, &text);
  assert_string_equal(hv_text_string(&text), "3 ranks on 2 hosts: node1 0-1, node2 2; cuda (H100), rank 1 A100");
  hv_text_free(&text);
}

/* A process of this machine is known to have ended, whether its parent has waited for it or not. About another machine,
 * or other process ids (a container), nothing is known. */
static void a_neighbour_that_has_ended_is_known_to_be_gone(void **state) {
  (void)state;
  char host[64] = "";
  hv_device device = {.name = "cuda", .model = "H100", .place = "0000:1b:00.0"};
  hv_rank_place own = hv_rank_place_own(&device), other = own;
  assert_int_equal(gethostname(host, sizeof host - 1), 0);
  assert_string_equal(own.host, host);
  assert_string_equal(own.model, "H100");
  assert_string_equal(own.card, "0000:1b:00.0");
  assert_int_equal(own.pid, getpid());
  assert_false(hv_rank_place_gone(&own, &other));
  other.pid = getppid();
  assert_false(hv_rank_place_gone(&own, &other));
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) _exit(0);
  other.pid = child;
  for (double start = hv_clock_seconds(); !hv_rank_place_gone(&own, &other); usleep(1000)) {
    assert_true(hv_clock_seconds() - start < 10);
  }
  assert_int_equal(waitpid(child, NULL, 0), child);
  assert_true(hv_rank_place_gone(&own, &other));
  other.processes++;
  assert_false(hv_rank_place_gone(&own, &other));
  other.processes--;
  other.boot[0] ^= 1;
  assert_false(hv_rank_place_gone(&own, &other));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(all_hear_what_each_gives),
      cmocka_unit_test(a_report_reaches_all),
      cmocka_unit_test(the_rank_that_is_behind_is_named),
      cmocka_unit_test(where_none_is_behind_the_machine_is_blamed),
      cmocka_unit_test(a_silent_rank_0_is_named),
      cmocka_unit_test(one_that_leaves_in_order_is_no_failure),
      cmocka_unit_test(missing_ranks_are_listed),
      cmocka_unit_test(a_rank_that_gives_up_is_named_to_all),
      cmocka_unit_test(strangers_do_not_keep_ranks_waiting),
      cmocka_unit_test(a_rank_may_leave_while_others_speak),
      cmocka_unit_test(a_rank_of_another_run_is_refused),
      cmocka_unit_test(a_rank_of_a_run_of_another_name_is_sent_away),
      cmocka_unit_test(a_rank_0_without_a_name_lets_all_in),
      cmocka_unit_test(a_second_rank_of_one_number_is_refused),
      cmocka_unit_test(nobody_there_is_one_clear_line),
      cmocka_unit_test(the_first_host_of_a_node_list_is_found),
      cmocka_unit_test(the_meeting_place_is_read_from_the_environment),
      cmocka_unit_test(the_meeting_place_of_a_slurm_job_is_its_own),
      cmocka_unit_test(two_ranks_on_one_card_are_refused),
      cmocka_unit_test(a_neighbour_that_has_ended_is_known_to_be_gone),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
