/* The loader of batches on the shipped demonstrations and on small files: the order of samples, resuming, ranks, action
 * chunks, masks and pixels. Whole runs are compared byte by byte. */
#include <math.h>

#include "core/image/resize.h"
#include "data/loader.h"
#include "data/sample_order.h"
#include "data/statistics.h"
#include "tests/check.h"
#include "tests/data/demo_file.h"

enum { SIDE = 56, VIEWS = 2, ACTIONS = 7, STATE = 9, PROMPT = 6 };

static const char *const lift[] = {HVLA_SOURCE_DIR "/data/demos/lift.hdf5"};
static const char *const cameras[] = {"agentview_image", "robot0_eye_in_hand_image"};
static const int32_t prompts[PROMPT] = {1, 512, 29871, -1, -1, -1};

/* The demonstrations and the model that a test loads for. */
typedef struct fixture {
  hv_demonstrations *demonstrations;
  hv_dataset_statistics statistics;
  hv_config config;
  int64_t n;
} fixture;

static int enter(void **state) {
  fixture *f = calloc(1, sizeof *f);
  hv_demonstrations_options options = {.files = lift,
                                       .num_files = 1,
                                       .split = "valid",
                                       .cameras = cameras,
                                       .num_cameras = VIEWS,
                                       .default_state = true,
                                       .instruction = "lift the cube",
                                       .action_dim = ACTIONS,
                                       .state_dim = STATE};
  assert_ok(hv_demonstrations_open(&options, &f->demonstrations));
  assert_ok(hv_statistics_compute(f->demonstrations, "lift", NULL, -1, &f->statistics));
  f->config = (hv_config){.action_dim = ACTIONS, .action_chunk = 4, .state_dim = STATE, .num_cameras = VIEWS};
  f->config.vision[0] = (hv_vision_config){.image_size = SIDE, .image_mean = {0.5, 0.5, 0.5}};
  f->n = hv_demonstrations_frames(f->demonstrations);
  *state = f;
  return 0;
}

static void fixture_close(fixture *f) {
  hv_dataset_statistics_free(&f->statistics);
  hv_demonstrations_close(f->demonstrations);
}

static int leave(void **state) {
  fixture_close(*state);
  free(*state);
  return 0;
}

/* All episodes of a small file, for a model whose single tower is `vision`. */
static fixture open_small(const char *path, hv_vision_config vision) {
  static const char *const views[] = {"front_image"};
  hv_demonstrations_options wanted = {
      .files = &path, .num_files = 1, .cameras = views, .num_cameras = 1, .action_dim = ACTIONS, .state_dim = -1};
  fixture f = {.config = {.action_dim = ACTIONS, .action_chunk = 1, .num_cameras = 1, .vision = {vision}}};
  assert_ok(hv_demonstrations_open(&wanted, &f.demonstrations));
  assert_ok(hv_statistics_compute(f.demonstrations, "small", NULL, -1, &f.statistics));
  return f;
}

static hv_loader_options options_of(const fixture *f) {
  return (hv_loader_options){.config = &f->config,
                             .statistics = &f->statistics,
                             .prompts = prompts,
                             .prompt_stride = PROMPT,
                             .batch = 3,
                             .seed = 7,
                             .threads = 2,
                             .read_ahead = 2};
}

/* The next batch; NULL if none is left. */
static const hv_loader_batch *next_batch(hv_loader *loader) {
  const hv_loader_batch *batch;
  assert_ok(hv_loader_next(loader, &batch));
  return batch;
}

/* All data of a number of batches, one after the other. */
typedef struct recording {
  uint8_t *bytes;
  size_t size;
} recording;

static void record(recording *r, const void *data, size_t size) {
  r->bytes = realloc(r->bytes, r->size + size + 1);
  memcpy(r->bytes + r->size, data, size);
  r->size += size;
}

static void record_batch(recording *r, const fixture *f, const hv_loader_batch *b) {
  size_t samples = (size_t)b->batch.samples, chunk = (size_t)f->config.action_chunk;
  record(r, b->batch.sample_ids, samples * sizeof(int64_t));
  record(r, b->frames, samples * sizeof(int64_t));
  record(r, b->batch.images, samples * VIEWS * SIDE * SIDE * 3);
  record(r, b->batch.prompt_ids, samples * PROMPT * sizeof(int32_t));
  record(r, b->batch.state, samples * STATE * sizeof(float));
  record(r, b->batch.actions, samples * chunk * ACTIONS * sizeof(float));
  record(r, b->batch.action_mask, samples * chunk);
}

static recording record_run(const fixture *f, const hv_loader_options *options, int batches) {
  recording r = {0};
  hv_loader *loader;
  assert_ok(hv_loader_open(f->demonstrations, options, &loader));
  for (int i = 0; i < batches; i++) {
    const hv_loader_batch *batch = next_batch(loader);
    assert_non_null(batch);
    record_batch(&r, f, batch);
    hv_loader_release(loader, batch);
  }
  hv_loader_close(loader);
  return r;
}

static void assert_same(recording *a, recording *b) {
  assert_int_equal(a->size, b->size);
  assert_memory_equal(a->bytes, b->bytes, a->size);
  free(b->bytes);
}

static void order_is_a_permutation_of_its_own_each_epoch(void **state) {
  (void)state;
  static const int64_t sizes[] = {1, 2, 3, 4, 5, 16, 17, 523, 5000};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    int64_t n = sizes[s], same = 0, in_place = 0;
    for (uint64_t epoch = 0; epoch < 3; epoch++) {
      uint8_t *seen = calloc((size_t)n, 1);
      for (int64_t i = 0; i < n; i++) {
        int64_t frame = hv_sample_order(11, epoch, n, i);
        assert_in_range(frame, 0, n - 1);
        assert_int_equal(seen[frame]++, 0);
        same += frame == hv_sample_order(11, epoch + 1, n, i);
        in_place += frame == i;
      }
      free(seen);
    }
    /* Two random permutations agree in one place on average. */
    if (n > 100) assert_true(same < 15 && in_place < 15);
  }
  assert_true(hv_sample_order(1, 0, 5000, 9) != hv_sample_order(2, 0, 5000, 9) ||
              hv_sample_order(1, 0, 5000, 10) != hv_sample_order(2, 0, 5000, 10));
}

static void threads_read_ahead_and_cache_change_nothing(void **state) {
  const fixture *f = *state;
  hv_loader_options options = options_of(f);
  enum { BATCHES = 70 }; /* more than two epochs, so that the cache is used */
  options.threads = 1;
  options.read_ahead = 1;
  recording expected = record_run(f, &options, BATCHES);
  options.threads = 2;
  options.read_ahead = 5;
  recording found = record_run(f, &options, BATCHES);
  assert_same(&expected, &found);
  options.threads = 4;
  options.cache_bytes = 1 << 30;
  found = record_run(f, &options, BATCHES);
  assert_same(&expected, &found);
  options.seed++;
  found = record_run(f, &options, BATCHES);
  assert_int_equal(expected.size, found.size);
  assert_memory_not_equal(expected.bytes, found.bytes, expected.size);
  free(found.bytes);
  free(expected.bytes);
}

static void a_run_resumes_from_a_count(void **state) {
  const fixture *f = *state;
  hv_loader_options options = options_of(f);
  enum { FIRST = 23, REST = 20 };
  recording whole = record_run(f, &options, FIRST + REST);
  recording first = record_run(f, &options, FIRST);
  options.first_sample = (uint64_t)FIRST * 3;
  recording rest = record_run(f, &options, REST);
  record(&first, rest.bytes, rest.size);
  free(rest.bytes);
  assert_same(&whole, &first);
  free(whole.bytes);
}

static void every_frame_comes_once_an_epoch(void **state) {
  const fixture *f = *state;
  hv_loader_options options = options_of(f);
  options.batch = 1;
  hv_loader *loader;
  assert_ok(hv_loader_open(f->demonstrations, &options, &loader));
  int64_t *order = malloc((size_t)f->n * sizeof *order), same = 0, sequential = 0;
  for (int epoch = 0; epoch < 2; epoch++) {
    uint8_t *seen = calloc((size_t)f->n, 1);
    for (int64_t i = 0; i < f->n; i++) {
      const hv_loader_batch *batch = next_batch(loader);
      assert_int_equal(seen[batch->frames[0]]++, 0);
      assert_int_equal(batch->batch.sample_ids[0], epoch * f->n + i);
      same += epoch > 0 && order[i] == batch->frames[0];
      sequential += batch->frames[0] == i;
      order[i] = batch->frames[0];
      hv_loader_release(loader, batch);
    }
    free(seen);
  }
  assert_true(same < f->n / 4 && sequential < f->n / 4);
  free(order);
  hv_loader_close(loader);
}

/* Two ranks with two micro-batches a step read together what one rank reads as one batch. */
static void ranks_share_a_global_batch(void **state) {
  const fixture *f = *state;
  enum { STEPS = 9, GLOBAL = 8, PARTS = 2, RANKS = 2, PART = GLOBAL / PARTS / RANKS };
  hv_loader_options options = options_of(f);
  options.batch = GLOBAL;
  hv_loader *whole, *ranks[RANKS];
  assert_ok(hv_loader_open(f->demonstrations, &options, &whole));
  options.batch = PART;
  options.global_batch = GLOBAL;
  options.ranks = RANKS;
  for (int r = 0; r < RANKS; r++) {
    options.rank = r;
    assert_ok(hv_loader_open(f->demonstrations, &options, &ranks[r]));
  }
  for (int step = 0; step < STEPS; step++) {
    const hv_loader_batch *all = next_batch(whole);
    int64_t steps = 0;
    for (int i = 0; i < GLOBAL * f->config.action_chunk; i++) steps += all->batch.action_mask[i];
    assert_int_equal(all->global_steps, steps);
    for (int i = 0; i < RANKS * PARTS; i++) {
      const hv_loader_batch *part = next_batch(ranks[i / PARTS]);
      assert_int_equal(part->batch.samples, PART);
      assert_memory_equal(part->frames, all->frames + i * PART, PART * sizeof *all->frames);
      assert_int_equal(part->first_sample, (uint64_t)step * GLOBAL);
      assert_int_equal(part->global_samples, GLOBAL);
      assert_int_equal(part->global_steps, steps);
      hv_loader_release(ranks[i / PARTS], part);
    }
    hv_loader_release(whole, all);
  }
  hv_loader_close(whole);
  for (int r = 0; r < RANKS; r++) hv_loader_close(ranks[r]);
}

static void pixels_are_the_resized_frames(void **state) {
  const fixture *f = *state;
  hv_loader_options options = options_of(f);
  hv_loader *loader;
  assert_ok(hv_loader_open(f->demonstrations, &options, &loader));
  hv_resizer *resizer;
  assert_ok(hv_resizer_open(84, 84, SIDE, SIDE, &resizer));
  uint8_t *frame = malloc(84 * 84 * 3), *expected = malloc(SIDE * SIDE * 3);
  for (int i = 0; i < 10; i++) {
    const hv_loader_batch *batch = next_batch(loader);
    for (int32_t s = 0; s < batch->batch.samples; s++) {
      const hv_episode *episode = hv_demonstrations_episode_of(f->demonstrations, batch->frames[s]);
      for (int v = 0; v < VIEWS; v++) {
        assert_ok(episode->cameras[v]->read(episode->cameras[v], batch->frames[s] - episode->first, frame));
        hv_resizer_run(resizer, frame, expected);
        size_t at = ((size_t)s * VIEWS + (size_t)v) * SIDE * SIDE * 3;
        assert_memory_equal(batch->batch.images + at, expected, SIDE * SIDE * 3);
      }
    }
    hv_loader_release(loader, batch);
  }
  free(frame);
  free(expected);
  hv_resizer_close(resizer);
  hv_loader_close(loader);
}

/* hv_normalize_value of one dimension, written out here. */
static double scaled(const hv_value_statistics *v, int32_t d, double x) {
  if (v->min[d] == v->max[d]) return 0;
  return 2 * (x - v->q01[d]) / (v->q99[d] - v->q01[d] + 1e-8) - 1;
}

static double clipped(double x) {
  return x < -1 ? -1 : x > 1 ? 1 : x;
}

/* The order is sequential, so that sample i is frame i. Checks its chunk of actions, how it is filled past the
 * episode's end, and the mask. Dimension 0 is treated as absolute, 6 as a gripper. */
static void chunks_are_filled_past_the_end(void **state) {
  fixture *f = *state;
  const int32_t chunk = f->config.action_chunk;
  bool absolute[ACTIONS] = {true};
  f->statistics.action.mask[6] = false;
  hv_loader_options options = options_of(f);
  options.sequential = true;
  options.absolute = absolute;
  hv_loader *loader;
  assert_ok(hv_loader_open(f->demonstrations, &options, &loader));
  const float *actions = hv_demonstrations_actions(f->demonstrations);
  const float *states = hv_demonstrations_state(f->demonstrations);
  int64_t frame = 0, past = 0;
  for (const hv_loader_batch *batch; (batch = next_batch(loader)) != NULL;) {
    for (int32_t s = 0; s < batch->batch.samples; s++, frame++) {
      assert_int_equal(batch->frames[s], frame);
      assert_memory_equal(batch->batch.prompt_ids + s * PROMPT, prompts, sizeof prompts);
      for (int32_t d = 0; d < STATE; d++) {
        double expected = clipped(scaled(&f->statistics.proprio, d, states[frame * STATE + d]));
        assert_true(fabs(batch->batch.state[s * STATE + d] - expected) < 1e-6);
      }
      const hv_episode *episode = hv_demonstrations_episode_of(f->demonstrations, frame);
      int64_t last = episode->first + episode->frames - 1;
      for (int32_t h = 0; h < chunk; h++) {
        bool inside = frame + h <= last;
        past += !inside;
        assert_int_equal(batch->batch.action_mask[s * chunk + h], inside);
        for (int32_t d = 0; d < ACTIONS; d++) {
          const float raw = actions[(inside ? frame + h : last) * ACTIONS + d];
          double expected = d == 6 ? raw : clipped(scaled(&f->statistics.action, d, raw));
          if (!inside && d > 0 && d < 6) expected = scaled(&f->statistics.action, d, 0);
          assert_true(fabs(batch->batch.actions[(s * chunk + h) * ACTIONS + d] - expected) < 1e-6);
        }
      }
    }
    hv_loader_release(loader, batch);
  }
  assert_int_equal(frame, f->n);
  assert_int_equal(past, 2 * (3 + 2 + 1));
  assert_null(next_batch(loader));
  hv_loader_close(loader);
}

/* In a sequential pass, both ranks get the same number of batches, of which the last is short. */
static void sequential_ranks_end_together(void **state) {
  const fixture *f = *state;
  hv_loader_options options = options_of(f);
  options.sequential = true;
  options.batch = 8;
  options.ranks = 2;
  int64_t batches[2] = {0}, samples = 0;
  for (int r = 0; r < 2; r++) {
    options.rank = r;
    hv_loader *loader;
    assert_ok(hv_loader_open(f->demonstrations, &options, &loader));
    for (const hv_loader_batch *batch; (batch = next_batch(loader)) != NULL;) {
      int64_t left = f->n - (int64_t)batch->first_sample;
      assert_int_equal(batch->global_samples, left < 16 ? left : 16);
      samples += batch->batch.samples;
      batches[r]++;
      hv_loader_release(loader, batch);
    }
    hv_loader_close(loader);
  }
  assert_int_equal(batches[0], batches[1]);
  assert_int_equal(samples, f->n);
}

/* A sequential pass can be limited to a number of frames: it takes different ones, spread evenly over all, and never
 * more than there are. */
static void a_sequential_pass_may_be_of_some_frames(void **state) {
  const fixture *f = *state;
  const int64_t wanted[] = {1, 7, f->n - 1, f->n, f->n + 1};
  hv_loader_options options = options_of(f);
  options.sequential = true;
  options.batch = 4;
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    int64_t expected = wanted[i] < f->n ? wanted[i] : f->n, count = 0;
    options.samples = wanted[i];
    hv_loader *loader;
    assert_ok(hv_loader_open(f->demonstrations, &options, &loader));
    assert_int_equal(hv_loader_samples(loader), expected);
    for (const hv_loader_batch *batch; (batch = next_batch(loader)); hv_loader_release(loader, batch)) {
      int64_t steps = 0;
      for (int32_t s = 0; s < batch->batch.samples; s++) assert_int_equal(batch->frames[s], count++ * f->n / expected);
      for (int v = 0; v < batch->batch.samples * f->config.action_chunk; v++) steps += batch->batch.action_mask[v];
      assert_int_equal(batch->global_samples, batch->batch.samples);
      assert_int_equal(batch->global_steps, steps);
    }
    assert_int_equal(count, expected);
    hv_loader_close(loader);
  }
}

static void letterbox_pads_in_the_mean_colour(void **state) {
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  fixture f = open_small(path, (hv_vision_config){.image_size = DEMO_WIDTH, .image_mean = {0.2, 0.4, 0.6}});
  f.config.image_resize = HV_RESIZE_LETTERBOX;
  hv_loader_options options = options_of(&f);
  options.sequential = true;
  hv_loader *loader;
  assert_ok(hv_loader_open(f.demonstrations, &options, &loader));
  const hv_loader_batch *batch = next_batch(loader);
  assert_null(batch->batch.state);
  static const uint8_t colour[] = {51, 102, 153};
  const uint8_t *rgb = batch->batch.images;
  for (size_t x = 0; x < DEMO_WIDTH; x++) {
    assert_memory_equal(rgb + x * 3, colour, 3);
    assert_memory_equal(rgb + (DEMO_WIDTH * (DEMO_WIDTH - 1) + x) * 3, colour, 3);
  }
  for (size_t i = 0; i < DEMO_FRAME; i++) assert_int_equal(rgb[DEMO_WIDTH * 3 + i], demo_pixel(0, 0, i));
  hv_loader_release(loader, batch);
  hv_loader_close(loader);
  fixture_close(&f);
}

/* The episodes' pictures have the same width, but one episode's are taller, and instructions differ. Each frame must be
 * resized from its own size and come with its episode's prompt. */
static void episodes_have_their_own_size_and_prompt(void **state) {
  enum { TALL = 2 * DEMO_HEIGHT, INPUT = 14, TALL_BYTES = TALL * DEMO_WIDTH * 3 };
  static const int32_t two[2][PROMPT] = {{1, 10, -1, -1, -1, -1}, {1, 20, 21, -1, -1, -1}};
  const char *path = in_folder(*state, "small.hdf5"), *images = "/data/demo_1/obs/front_image";
  write_demo_file(path);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  hsize_t shape[] = {(hsize_t)demo_frames(1), TALL, DEMO_WIDTH, 3};
  uint8_t *tall = malloc(shape[0] * TALL_BYTES), stored[TALL_BYTES], expected[INPUT * INPUT * 3];
  for (size_t i = 0; i < shape[0] * TALL_BYTES; i++) tall[i] = (uint8_t)(i * 7 % 251);
  remove_object(file, images);
  put_u8(file, images, 4, shape, tall, H5P_DEFAULT);
  put_text_attribute(file, "/data/demo_1", "ep_meta", "{\"lang\": \"Put it down\"}");
  H5Fclose(file);
  fixture f = open_small(path, (hv_vision_config){.image_size = INPUT, .image_mean = {0.5, 0.5, 0.5}});
  hv_loader_options options = options_of(&f);
  options.sequential = true;
  options.prompts = two[0];
  hv_resizer *resizers[2];
  for (int i = 0; i < 2; i++) {
    assert_ok(hv_resizer_open(DEMO_WIDTH, i ? TALL : DEMO_HEIGHT, INPUT, INPUT, &resizers[i]));
  }
  hv_loader *loader;
  assert_ok(hv_loader_open(f.demonstrations, &options, &loader));
  for (const hv_loader_batch *batch; (batch = next_batch(loader)); hv_loader_release(loader, batch)) {
    for (int32_t s = 0; s < batch->batch.samples; s++) {
      const hv_episode *episode = hv_demonstrations_episode_of(f.demonstrations, batch->frames[s]);
      int other = strcmp(episode->name, "demo_1") == 0;
      assert_ok(episode->cameras[0]->read(episode->cameras[0], batch->frames[s] - episode->first, stored));
      hv_resizer_run(resizers[other], stored, expected);
      assert_memory_equal(batch->batch.images + (size_t)s * sizeof expected, expected, sizeof expected);
      assert_memory_equal(batch->batch.prompt_ids + s * PROMPT, two[other], sizeof two[other]);
      assert_int_equal(batch->instructions[s], other);
    }
  }
  for (int i = 0; i < 2; i++) hv_resizer_close(resizers[i]);
  free(tall);
  hv_loader_close(loader);
  fixture_close(&f);
}

/* A frame that cannot be decompressed is an error that names it, each time the batch is asked for. */
static void unreadable_frames_are_named(void **state) {
  const char *path = in_folder(*state, "small.hdf5");
  write_demo_file(path);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  put_raw_frame(file, 2, "junk", 4);
  H5Fclose(file);
  fixture f = open_small(path, (hv_vision_config){.image_size = 14, .image_mean = {0.5, 0.5, 0.5}});
  hv_loader_options options = options_of(&f);
  options.sequential = true;
  hv_loader *loader;
  assert_ok(hv_loader_open(f.demonstrations, &options, &loader));
  for (int i = 0; i < 2; i++) hv_loader_release(loader, next_batch(loader)); /* frames 0 to 5; frame 7 is bad */
  for (int i = 0; i < 2; i++) {
    const hv_loader_batch *batch;
    hv_status status = hv_loader_next(loader, &batch);
    assert_non_null(status);
    assert_null(batch);
    assert_non_null(strstr(hv_status_message(status), "small.hdf5: /data/demo_1/obs/front_image: frame 2"));
    assert_int_equal(hv_status_exit_code(status), 2);
    hv_status_free(status);
  }
  hv_loader_close(loader);
  fixture_close(&f);
}

static void expect_refusal(const fixture *f, const hv_loader_options *options, const char *says) {
  hv_loader *loader;
  assert_error(hv_loader_open(f->demonstrations, options, &loader), says);
  assert_null(loader);
}

static void what_does_not_fit_the_model_is_refused(void **state) {
  fixture *f = *state;
  hv_loader_options options = options_of(f);
  options.global_batch = 10;
  expect_refusal(f, &options, "10 samples is no multiple of 1 ranks times 3");
  options.global_batch = 6;
  options.first_sample = 3;
  expect_refusal(f, &options, "sample 3");
  options = options_of(f);
  options.threads = 0;
  expect_refusal(f, &options, "at least 1");
  options = options_of(f);
  f->config.num_cameras = 1;
  expect_refusal(f, &options, "2 cameras, the model has 1");
  f->config.num_cameras = VIEWS;
  f->config.state_dim = 7;
  expect_refusal(f, &options, "the model's state_dim is 7");
  f->config.state_dim = STATE;
  f->config.action_dim = 6;
  expect_refusal(f, &options, "the model's action_dim is 6");
}

int main(void) {
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(order_is_a_permutation_of_its_own_each_epoch),
      cmocka_unit_test_setup_teardown(threads_read_ahead_and_cache_change_nothing, enter, leave),
      cmocka_unit_test_setup_teardown(a_run_resumes_from_a_count, enter, leave),
      cmocka_unit_test_setup_teardown(every_frame_comes_once_an_epoch, enter, leave),
      cmocka_unit_test_setup_teardown(ranks_share_a_global_batch, enter, leave),
      cmocka_unit_test_setup_teardown(pixels_are_the_resized_frames, enter, leave),
      cmocka_unit_test_setup_teardown(chunks_are_filled_past_the_end, enter, leave),
      cmocka_unit_test_setup_teardown(sequential_ranks_end_together, enter, leave),
      cmocka_unit_test_setup_teardown(a_sequential_pass_may_be_of_some_frames, enter, leave),
      cmocka_unit_test_setup_teardown(letterbox_pads_in_the_mean_colour, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(episodes_have_their_own_size_and_prompt, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(unreadable_frames_are_named, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(what_does_not_fit_the_model_is_refused, enter, leave),
  };
  return cmocka_run_group_tests_name("loader", tests, NULL, NULL);
}
