#include "data/loader.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/thread_pool.h"
#include "core/image/resize.h"
#include "data/sample_order.h"

typedef struct batch_slot batch_slot;

typedef struct sample_job {
  hv_job job; /* first, so that a pointer to it is one to the sample_job */
  hv_loader *loader;
  batch_slot *slot;
  int32_t index; /* of the sample in its batch */
  hv_status failure;
} sample_job;

/* Memory of one batch. Batch number m lives in slot m mod num_slots. */
struct batch_slot {
  hv_loader_batch public;
  uint8_t *images, *action_mask;
  int32_t *prompt_ids, *instructions;
  float *state, *actions;
  int64_t *sample_ids, *frames;
  sample_job *jobs;
  uint64_t number;
  int32_t pending; /* jobs that have not ended; guarded by the loader's mutex */
  bool scheduled, lent;
};

typedef struct frame_size {
  int32_t width, height;
} frame_size;

/* One worker's own memory. */
typedef struct scratch {
  uint8_t *frame;        /* as stored */
  hv_resizer **resizers; /* [num_sizes] */
} scratch;

typedef enum cached { CACHE_ABSENT, CACHE_FILLING, CACHE_READY } cached;

struct hv_loader {
  const hv_demonstrations *demonstrations;
  hv_config config;
  hv_loader_options options;     /* with defaults filled in; of the pointers only `prompts` is used after opening */
  int64_t frames;                /* n */
  float *actions, *state;        /* normalised: [n, A], [n, S] */
  float *neutral;                /* [A] the value of a relative dimension past an episode's end */
  bool *repeats;                 /* [A] dimensions that repeat the last action there instead */
  frame_size *sizes;             /* the different sizes of stored frames */
  size_t num_sizes, image_bytes; /* bytes of one resized frame */
  uint8_t *cache;                /* [n, V, image_bytes], or NULL */
  _Atomic uint8_t *cache_states; /* [n, V] */
  scratch *scratches;            /* [threads] */
  hv_thread_pool *pool;
  batch_slot *slots;
  int32_t num_slots;
  uint64_t next_number;   /* of the batch that hv_loader_next gives */
  uint64_t counted_first; /* the global batch whose steps were counted last */
  int64_t counted_steps;
  bool counted;
  hv_status failure; /* kept: every later call returns it */
  atomic_bool stopping;
  pthread_mutex_t mutex;
  pthread_cond_t finished;
};

static int64_t frame_of(const hv_loader *loader, uint64_t sample) {
  uint64_t n = (uint64_t)loader->frames;
  if (loader->options.sequential) return (int64_t)(sample * n / (uint64_t)loader->options.samples);
  return hv_sample_order(loader->options.seed, sample / n, loader->frames, (int64_t)(sample % n));
}

/* Action steps from `frame` to the end of its episode, H at most. */
static int32_t steps_left(const hv_loader *loader, const hv_episode *episode, int64_t frame) {
  int64_t left = episode->first + episode->frames - frame;
  return left < loader->config.action_chunk ? (int32_t)left : loader->config.action_chunk;
}

static void fill_actions(const hv_loader *loader, batch_slot *slot, int32_t index, int64_t frame, int32_t steps) {
  int32_t chunk = loader->config.action_chunk, dims = loader->config.action_dim;
  float *out = slot->actions + (int64_t)index * chunk * dims;
  uint8_t *mask = slot->action_mask + (int64_t)index * chunk;
  memcpy(out, loader->actions + frame * dims, (size_t)steps * (size_t)dims * sizeof *out);
  memset(mask, 1, (size_t)steps);
  memset(mask + steps, 0, (size_t)(chunk - steps));
  const float *last = out + (int64_t)(steps - 1) * dims;
  for (int32_t h = steps; h < chunk; h++) {
    for (int32_t d = 0; d < dims; d++) {
      out[(int64_t)h * dims + d] = loader->repeats[d] ? last[d] : loader->neutral[d];
    }
  }
}

static hv_resizer *find_resizer(const hv_loader *loader, int worker, const hv_frames *frames) {
  size_t i = 0;
  while (loader->sizes[i].width != frames->width || loader->sizes[i].height != frames->height) i++;
  return loader->scratches[worker].resizers[i];
}

static hv_status fill_image(hv_loader *loader, int worker, const hv_episode *episode, int64_t frame, int32_t camera,
                            uint8_t *out) {
  int64_t entry = frame * loader->config.num_cameras + camera;
  uint8_t *kept = loader->cache ? loader->cache + (size_t)entry * loader->image_bytes : NULL;
  if (kept && atomic_load_explicit(&loader->cache_states[entry], memory_order_acquire) == CACHE_READY) {
    memcpy(out, kept, loader->image_bytes);
    return HV_OK;
  }
  hv_frames *frames = episode->cameras[camera];
  uint8_t *stored = loader->scratches[worker].frame;
  HV_TRY(frames->read(frames, frame - episode->first, stored));
  hv_resizer_run(find_resizer(loader, worker, frames), stored, out);
  uint8_t absent = CACHE_ABSENT;
  if (kept && atomic_compare_exchange_strong(&loader->cache_states[entry], &absent, CACHE_FILLING)) {
    memcpy(kept, out, loader->image_bytes);
    atomic_store_explicit(&loader->cache_states[entry], CACHE_READY, memory_order_release);
  }
  return HV_OK;
}

static hv_status fill_sample(hv_loader *loader, int worker, batch_slot *slot, int32_t index) {
  const hv_config *config = &loader->config;
  int64_t frame = slot->frames[index];
  const hv_episode *episode = hv_demonstrations_episode_of(loader->demonstrations, frame);
  slot->instructions[index] = episode->instruction;
  if (loader->options.prompts) {
    int32_t stride = loader->options.prompt_stride;
    memcpy(slot->prompt_ids + (int64_t)index * stride, loader->options.prompts + (int64_t)episode->instruction * stride,
           (size_t)stride * sizeof *slot->prompt_ids);
  }
  if (config->state_dim > 0) {
    memcpy(slot->state + (int64_t)index * config->state_dim, loader->state + frame * config->state_dim,
           (size_t)config->state_dim * sizeof *slot->state);
  }
  fill_actions(loader, slot, index, frame, steps_left(loader, episode, frame));
  for (int32_t camera = 0; camera < config->num_cameras; camera++) {
    size_t at = ((size_t)index * (size_t)config->num_cameras + (size_t)camera) * loader->image_bytes;
    HV_TRY(fill_image(loader, worker, episode, frame, camera, slot->images + at));
  }
  return HV_OK;
}

static void run_job(hv_job *base, int worker) {
  sample_job *job = (sample_job *)base;
  hv_loader *loader = job->loader;
  if (!atomic_load(&loader->stopping)) job->failure = fill_sample(loader, worker, job->slot, job->index);
  pthread_mutex_lock(&loader->mutex);
  if (--job->slot->pending == 0) pthread_cond_signal(&loader->finished);
  pthread_mutex_unlock(&loader->mutex);
}

/* How many action steps of the samples [first, first + count) are not past an episode's end. The last count is kept:
 * the micro-batches of one global batch ask for the same. */
static int64_t count_steps(hv_loader *loader, uint64_t first, int32_t count) {
  if (loader->counted && loader->counted_first == first) return loader->counted_steps;
  int64_t steps = 0;
  for (int32_t i = 0; i < count; i++) {
    int64_t frame = frame_of(loader, first + (uint64_t)i);
    steps += steps_left(loader, hv_demonstrations_episode_of(loader->demonstrations, frame), frame);
  }
  loader->counted = true;
  loader->counted_first = first;
  loader->counted_steps = steps;
  return steps;
}

/* Hands the samples of batch `number` to the workers, unless a sequential pass has ended before it. */
static void schedule(hv_loader *loader, batch_slot *slot, uint64_t number) {
  const hv_loader_options *options = &loader->options;
  uint64_t share = (uint64_t)(options->global_batch / options->ranks);
  uint64_t parts = share / (uint64_t)options->batch;
  uint64_t base = options->first_sample + number / parts * (uint64_t)options->global_batch;
  uint64_t first = base + (uint64_t)options->rank * share + number % parts * (uint64_t)options->batch;
  uint64_t end = options->sequential ? (uint64_t)options->samples : UINT64_MAX;
  slot->number = number;
  slot->scheduled = base < end;
  if (!slot->scheduled) return;
  int32_t samples = first >= end ? 0 : options->batch;
  if (samples > 0 && (uint64_t)samples > end - first) samples = (int32_t)(end - first);
  slot->public.batch.samples = samples;
  slot->public.first_sample = base;
  slot->public.global_samples = options->global_batch;
  if ((uint64_t)options->global_batch > end - base) slot->public.global_samples = (int32_t)(end - base);
  slot->public.global_steps = count_steps(loader, base, slot->public.global_samples);
  slot->pending = samples;
  for (int32_t i = 0; i < samples; i++) {
    slot->sample_ids[i] = (int64_t)(first + (uint64_t)i);
    slot->frames[i] = frame_of(loader, first + (uint64_t)i);
    hv_thread_pool_submit(loader->pool, &slot->jobs[i].job);
  }
}

int64_t hv_loader_samples(const hv_loader *loader) {
  return loader->options.samples;
}

hv_status hv_loader_next(hv_loader *loader, const hv_loader_batch **out) {
  *out = NULL;
  batch_slot *slot = &loader->slots[loader->next_number % (uint64_t)loader->num_slots];
  if (slot->lent) return hv_error(HV_ERR_INTERNAL, "the loader's batches are all lent; release one first");
  if (!loader->failure && slot->scheduled) {
    pthread_mutex_lock(&loader->mutex);
    while (slot->pending > 0) pthread_cond_wait(&loader->finished, &loader->mutex);
    pthread_mutex_unlock(&loader->mutex);
    for (int32_t i = 0; i < slot->public.batch.samples; i++) {
      loader->failure = hv_status_first(loader->failure, slot->jobs[i].failure);
      slot->jobs[i].failure = HV_OK;
    }
  }
  if (loader->failure) {
    return hv_error(hv_status_code(loader->failure), "%s", hv_status_message(loader->failure));
  }
  if (!slot->scheduled) return HV_OK;
  slot->lent = true;
  loader->next_number++;
  *out = &slot->public;
  return HV_OK;
}

void hv_loader_release(hv_loader *loader, const hv_loader_batch *batch) {
  batch_slot *slot = (batch_slot *)(uintptr_t)batch;
  slot->lent = false;
  schedule(loader, slot, slot->number + (uint64_t)loader->num_slots);
}

static hv_status check_options(const hv_demonstrations *d, const hv_loader_options *options) {
  const hv_config *config = options->config;
  if (hv_demonstrations_cameras(d) != config->num_cameras) {
    return hv_error(HV_ERR_INPUT, "the data give %d cameras, the model has %d", hv_demonstrations_cameras(d),
                    config->num_cameras);
  }
  if (hv_demonstrations_action_dim(d) != config->action_dim || options->statistics->action.dims != config->action_dim) {
    return hv_error(HV_ERR_INPUT, "actions have %d dimensions and their statistics %d; the model's action_dim is %d",
                    hv_demonstrations_action_dim(d), options->statistics->action.dims, config->action_dim);
  }
  if (config->state_dim > 0 &&
      (hv_demonstrations_state_dim(d) != config->state_dim || options->statistics->proprio.dims != config->state_dim)) {
    return hv_error(HV_ERR_INPUT, "the state has %d dimensions and its statistics %d; the model's state_dim is %d",
                    hv_demonstrations_state_dim(d), options->statistics->proprio.dims, config->state_dim);
  }
  for (int64_t i = 0; options->prompts && i < hv_demonstrations_episodes(d); i++) {
    const hv_episode *episode = hv_demonstrations_episode(d, i);
    if (episode->instruction >= 0) continue;
    return hv_error(HV_ERR_INPUT, "%s: %s: has no instruction", episode->file, episode->name);
  }
  if (options->batch < 1 || options->threads < 1 || options->read_ahead < 1) {
    return hv_error(HV_ERR_INPUT, "batch (%d), reader threads (%d) and batches read ahead (%d) must be at least 1",
                    options->batch, options->threads, options->read_ahead);
  }
  return HV_OK;
}

/* Fills in the defaults, and checks that a global batch is the same number of batches on every rank. */
static hv_status settle_batches(hv_loader_options *options, int64_t frames) {
  if (options->samples < 1 || options->samples > frames) options->samples = frames;
  if (options->ranks == 0) options->ranks = 1;
  if (options->ranks < 1 || options->rank < 0 || options->rank >= options->ranks) {
    return hv_error(HV_ERR_INPUT, "rank %d of %d does not exist", options->rank, options->ranks);
  }
  int64_t together = (int64_t)options->ranks * options->batch;
  if (options->global_batch == 0 && together <= INT32_MAX) options->global_batch = (int32_t)together;
  if (options->global_batch < 1 || options->global_batch % together != 0) {
    return hv_error(HV_ERR_INPUT, "the global batch of %d samples is no multiple of %d ranks times %d samples a batch",
                    options->global_batch, options->ranks, options->batch);
  }
  if (options->first_sample % (uint64_t)options->global_batch != 0) {
    return hv_error(HV_ERR_INPUT, "sample %llu, where reading begins, is no multiple of the global batch of %d",
                    (unsigned long long)options->first_sample, options->global_batch);
  }
  return HV_OK;
}

static hv_status normalize_all(const hv_value_statistics *statistics, const float *values, int64_t n, float **out) {
  int32_t dims = statistics->dims;
  double *row = malloc((size_t)dims * sizeof *row);
  *out = malloc((size_t)n * (size_t)dims * sizeof **out);
  if (!row || !*out) {
    free(row);
    return hv_error_memory("normalised data");
  }
  for (int64_t i = 0; i < n; i++) {
    for (int32_t d = 0; d < dims; d++) row[d] = values[i * dims + d];
    hv_normalize(statistics, row, *out + i * dims);
  }
  free(row);
  return HV_OK;
}

static hv_status prepare_numbers(hv_loader *loader, const hv_loader_options *options) {
  const hv_demonstrations *d = loader->demonstrations;
  const hv_value_statistics *action = &options->statistics->action;
  HV_TRY(normalize_all(action, hv_demonstrations_actions(d), loader->frames, &loader->actions));
  if (loader->config.state_dim > 0) {
    HV_TRY(normalize_all(&options->statistics->proprio, hv_demonstrations_state(d), loader->frames, &loader->state));
  }
  loader->neutral = calloc((size_t)action->dims, sizeof *loader->neutral);
  loader->repeats = calloc((size_t)action->dims, sizeof *loader->repeats);
  if (!loader->neutral || !loader->repeats) return hv_error_memory("the neutral action");
  for (int32_t i = 0; i < action->dims; i++) {
    loader->neutral[i] = (float)hv_normalize_value(action, i, 0.0);
    loader->repeats[i] = !action->mask[i] || (options->absolute && options->absolute[i]);
  }
  return HV_OK;
}

static hv_status add_size(hv_loader *loader, const hv_frames *frames) {
  for (size_t i = 0; i < loader->num_sizes; i++) {
    if (loader->sizes[i].width == frames->width && loader->sizes[i].height == frames->height) return HV_OK;
  }
  frame_size *sizes = realloc(loader->sizes, (loader->num_sizes + 1) * sizeof *sizes);
  if (!sizes) return hv_error_memory("a list of sizes");
  sizes[loader->num_sizes++] = (frame_size){frames->width, frames->height};
  loader->sizes = sizes;
  return HV_OK;
}

/* Gives every worker resizers and memory for one stored frame. */
static hv_status prepare_scratch(hv_loader *loader) {
  const hv_demonstrations *d = loader->demonstrations;
  size_t largest = 1;
  for (int64_t i = 0; i < hv_demonstrations_episodes(d); i++) {
    for (int32_t c = 0; c < loader->config.num_cameras; c++) {
      const hv_frames *frames = hv_demonstrations_episode(d, i)->cameras[c];
      HV_TRY(add_size(loader, frames));
      size_t bytes = (size_t)frames->width * (size_t)frames->height * 3;
      if (bytes > largest) largest = bytes;
    }
  }
  loader->scratches = calloc((size_t)loader->options.threads, sizeof *loader->scratches);
  if (!loader->scratches) return hv_error_memory("a loader's scratch");
  const hv_vision_config *vision = &loader->config.vision[0];
  for (int32_t i = 0; i < loader->options.threads; i++) {
    scratch *own = &loader->scratches[i];
    own->frame = malloc(largest);
    own->resizers = calloc(loader->num_sizes + 1, sizeof(hv_resizer *));
    if (!own->frame || !own->resizers) return hv_error_memory("a loader's scratch");
    for (size_t s = 0; s < loader->num_sizes; s++) {
      HV_TRY(hv_resizer_open_frame(loader->sizes[s].width, loader->sizes[s].height, vision->image_size,
                                   loader->config.image_resize, vision->image_mean, &own->resizers[s]));
    }
  }
  return HV_OK;
}

static hv_status prepare_cache(hv_loader *loader) {
  size_t entries = (size_t)loader->frames * (size_t)loader->config.num_cameras;
  if (entries == 0 || loader->options.cache_bytes / entries < loader->image_bytes) return HV_OK;
  loader->cache = malloc(entries * loader->image_bytes);
  loader->cache_states = calloc(entries, sizeof *loader->cache_states);
  return loader->cache && loader->cache_states ? HV_OK : hv_error_memory("the cache of resized frames");
}

static hv_status prepare_slot(hv_loader *loader, batch_slot *slot) {
  const hv_config *config = &loader->config;
  size_t samples = (size_t)loader->options.batch, chunk = (size_t)config->action_chunk;
  size_t stride = loader->options.prompts ? (size_t)loader->options.prompt_stride : 0;
  slot->images = malloc(samples * (size_t)config->num_cameras * loader->image_bytes + 1);
  slot->state = malloc((samples * (size_t)config->state_dim + 1) * sizeof *slot->state);
  slot->actions = malloc(samples * chunk * (size_t)config->action_dim * sizeof *slot->actions);
  slot->action_mask = malloc(samples * chunk);
  slot->prompt_ids = malloc((samples * stride + 1) * sizeof *slot->prompt_ids);
  slot->instructions = malloc(samples * sizeof *slot->instructions);
  slot->sample_ids = malloc(samples * sizeof *slot->sample_ids);
  slot->frames = malloc(samples * sizeof *slot->frames);
  slot->jobs = calloc(samples, sizeof *slot->jobs);
  if (!slot->images || !slot->state || !slot->actions || !slot->action_mask || !slot->prompt_ids ||
      !slot->instructions || !slot->sample_ids || !slot->frames || !slot->jobs) {
    return hv_error_memory("a batch");
  }
  for (size_t i = 0; i < samples; i++) {
    slot->jobs[i] = (sample_job){.job = {.run = run_job}, .loader = loader, .slot = slot, .index = (int32_t)i};
  }
  slot->public = (hv_loader_batch){
      .batch = {.images = slot->images,
                .prompt_ids = loader->options.prompts ? slot->prompt_ids : NULL,
                .prompt_stride = (int32_t)stride,
                .state = config->state_dim > 0 ? slot->state : NULL,
                .actions = slot->actions,
                .action_mask = slot->action_mask,
                .sample_ids = slot->sample_ids},
      .frames = slot->frames,
      .instructions = slot->instructions,
  };
  return HV_OK;
}

static hv_status prepare_slots(hv_loader *loader) {
  loader->num_slots = loader->options.read_ahead + 1;
  loader->slots = calloc((size_t)loader->num_slots, sizeof *loader->slots);
  if (!loader->slots) return hv_error_memory("batches");
  for (int32_t i = 0; i < loader->num_slots; i++) HV_TRY(prepare_slot(loader, &loader->slots[i]));
  return HV_OK;
}

hv_status hv_loader_open(const hv_demonstrations *demonstrations, const hv_loader_options *options, hv_loader **out) {
  *out = NULL;
  HV_TRY(check_options(demonstrations, options));
  hv_loader *loader = calloc(1, sizeof *loader);
  if (!loader) return hv_error_memory("a loader");
  pthread_mutex_init(&loader->mutex, NULL);
  pthread_cond_init(&loader->finished, NULL);
  loader->demonstrations = demonstrations;
  loader->config = *options->config;
  loader->options = *options;
  loader->frames = hv_demonstrations_frames(demonstrations);
  size_t side = (size_t)options->config->vision[0].image_size;
  loader->image_bytes = side * side * 3;
  hv_status status = HV_OK;
  HV_CHECK(settle_batches(&loader->options, loader->frames));
  HV_CHECK(prepare_numbers(loader, options));
  HV_CHECK(prepare_scratch(loader));
  HV_CHECK(prepare_cache(loader));
  HV_CHECK(prepare_slots(loader));
  HV_CHECK(hv_thread_pool_open(options->threads, &loader->pool));
  for (int32_t i = 0; i < loader->num_slots; i++) schedule(loader, &loader->slots[i], (uint64_t)i);
done:
  if (status) {
    hv_loader_close(loader);
    return status;
  }
  *out = loader;
  return HV_OK;
}

static void free_slot(batch_slot *slot, int32_t samples) {
  for (int32_t i = 0; slot->jobs && i < samples; i++) hv_status_free(slot->jobs[i].failure);
  free(slot->images);
  free(slot->state);
  free(slot->actions);
  free(slot->action_mask);
  free(slot->prompt_ids);
  free(slot->instructions);
  free(slot->sample_ids);
  free(slot->frames);
  free(slot->jobs);
}

void hv_loader_close(hv_loader *loader) {
  if (!loader) return;
  atomic_store(&loader->stopping, true);
  hv_thread_pool_close(loader->pool);
  for (int32_t i = 0; loader->slots && i < loader->num_slots; i++) free_slot(&loader->slots[i], loader->options.batch);
  for (int32_t i = 0; loader->scratches && i < loader->options.threads; i++) {
    scratch *own = &loader->scratches[i];
    for (size_t s = 0; own->resizers && s < loader->num_sizes; s++) hv_resizer_close(own->resizers[s]);
    free(own->resizers);
    free(own->frame);
  }
  free(loader->scratches);
  free(loader->slots);
  free(loader->sizes);
  free(loader->cache);
  free(loader->cache_states);
  free(loader->actions);
  free(loader->state);
  free(loader->neutral);
  free(loader->repeats);
  hv_status_free(loader->failure);
  pthread_cond_destroy(&loader->finished);
  pthread_mutex_destroy(&loader->mutex);
  free(loader);
}
