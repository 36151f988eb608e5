#include "core/hybridvla/sequence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "core/hybridvla/action_tokens.h"

/* Memory that exists twice at the same offset: on the host, where a batch is worked out, and on the device. */
typedef struct region {
  size_t offset;
  int64_t capacity; /* elements */
} region;

/* How many tokens each part of a sequence takes. */
typedef struct lengths {
  int32_t image;          /* V P */
  int32_t state;          /* 1, or 0 without a state */
  int32_t diffusion;      /* t and x_1 … x_H: 1 + H, or 0 */
  int32_t autoregressive; /* <EOD>, empty, H A actions, </s>, or 0 */
  int32_t actions;        /* H A */
  int32_t branch;         /* diffusion + autoregressive */
} lengths;

struct hv_sequence {
  hv_config config;
  hv_device *device;
  hv_sequence_limits limits;
  lengths parts;
  hv_sequence_counts counts;
  hv_sequence_tables tables;
  char *host, *memory;
  hv_event *uploaded; /* recorded when the upload has finished */
  hv_event *read;     /* recorded when the device no longer needs its copy */
  hv_trace *trace;    /* not owned; NULL: none */
  size_t bytes;
  int32_t *id_count; /* [vocabulary + 1]: scratch of the sort by token id */
  bool draws_noise, draws_timesteps;
};

static lengths part_lengths(const hv_config *config) {
  lengths parts = {.image = config->num_cameras * hv_config_patches(config),
                   .state = config->state_dim > 0,
                   .actions = config->action_chunk * config->action_dim};
  if (hv_config_has_diffusion(config)) parts.diffusion = 1 + config->action_chunk;
  if (hv_config_has_autoregression(config)) {
    parts.autoregressive = 1 + (config->token_empty >= 0) + parts.actions + 1;
  }
  parts.branch = parts.diffusion + parts.autoregressive;
  return parts;
}

static int32_t prefix_length(const lengths *parts, int32_t prompt) {
  return prompt + parts->image + 1 + parts->state; /* the prompt counts <s>; 1 is <BOD> */
}

/* Without diffusion there is nothing to draw more than once. */
static int32_t branch_count(const hv_config *config, int32_t branches) {
  return hv_config_has_diffusion(config) ? branches : 1;
}

hv_sequence_counts hv_sequence_largest(const hv_config *config, const hv_sequence_limits *limits) {
  lengths parts = part_lengths(config);
  int32_t b = limits->samples, k = branch_count(config, limits->branches);
  int32_t prefix = prefix_length(&parts, limits->prompt);
  int32_t text = limits->prompt + 1 + k * parts.autoregressive;
  hv_sequence_counts counts = {
      .samples = b,
      .branches = k,
      .rows = b * (prefix + k * parts.branch),
      .branch_rows = b * k * parts.branch,
      .images = b * config->num_cameras,
      .image_rows = b * parts.image,
      .text_rows = b * text,
      .text_unique = b * text < config->llm.vocab_size ? b * text : config->llm.vocab_size,
      .noise_rows = parts.diffusion ? b * k * config->action_chunk : 0,
      .label_rows = parts.autoregressive ? b * k * (parts.actions + 1) : 0,
      .segments = b * (1 + k),
      .query_segments = b * k,
      .max_segment_rows = prefix > parts.branch ? prefix : parts.branch,
      .max_branch_rows = parts.branch,
      .max_key_rows = prefix + parts.branch,
  };
  return counts;
}

/* Adds a table [rows, cols] to the end of the block. Its tensor holds offset + 1 until place_tables gives it an
 * address. */
static void lay(hv_sequence *sequence, hv_tensor *table, hv_dtype dtype, int64_t rows, int64_t cols) {
  *table = hv_tensor_make((void *)(uintptr_t)(sequence->bytes + 1), dtype, rows, cols);
  size_t bytes = (size_t)(rows * cols) * hv_dtype_size(dtype);
  sequence->bytes += (bytes + 255) / 256 * 256;
}

static void lay_tables(hv_sequence *sequence) {
  const hv_config *config = &sequence->config;
  const hv_sequence_counts *largest = &sequence->counts;
  hv_sequence_tables *t = &sequence->tables;
  int64_t b = largest->samples, bk = (int64_t)largest->samples * largest->branches;
  int64_t pixels = (int64_t)config->vision[0].image_size * config->vision[0].image_size * 3;
  lay(sequence, &t->positions, HV_I32, 1, largest->rows);
  lay(sequence, &t->text_ids, HV_I32, 1, largest->text_rows);
  lay(sequence, &t->text_rows, HV_I32, 1, largest->text_rows);
  lay(sequence, &t->image_rows, HV_I32, 1, largest->image_rows);
  lay(sequence, &t->state_rows, HV_I32, 1, b);
  lay(sequence, &t->timestep_rows, HV_I32, 1, bk);
  lay(sequence, &t->x_rows, HV_I32, 1, bk * config->action_chunk);
  lay(sequence, &t->segments, HV_I32, largest->segments, 6);
  lay(sequence, &t->key_groups, HV_I32, largest->segments, 4);
  lay(sequence, &t->branch_rows, HV_I32, 1, largest->branch_rows);
  lay(sequence, &t->branch_positions, HV_I32, 1, largest->branch_rows);
  lay(sequence, &t->identity, HV_I32, 1, largest->branch_rows + 1);
  lay(sequence, &t->branch_segments, HV_I32, largest->query_segments, 6);
  lay(sequence, &t->branch_key_groups, HV_I32, largest->segments, 4);
  lay(sequence, &t->noise_rows, HV_I32, 1, largest->noise_rows);
  lay(sequence, &t->label_rows, HV_I32, 1, largest->label_rows);
  lay(sequence, &t->labels, HV_I32, 1, largest->label_rows);
  lay(sequence, &t->text_unique, HV_I32, 1, largest->text_unique);
  lay(sequence, &t->text_offsets, HV_I32, 1, (int64_t)largest->text_unique + 1);
  lay(sequence, &t->text_sorted_rows, HV_I32, 1, largest->text_rows);
  lay(sequence, &t->state, HV_F32, b, config->state_dim);
  lay(sequence, &t->actions, HV_F32, b, sequence->parts.actions);
  lay(sequence, &t->noise, HV_F32, bk, sequence->parts.actions);
  lay(sequence, &t->noise_mask, HV_F32, 1, bk * config->action_chunk);
  lay(sequence, &t->timesteps, HV_I32, 1, bk);
  lay(sequence, &t->sample_ids, HV_I64, 1, b);
  lay(sequence, &t->seed_step, HV_I64, 1, 2);
  lay(sequence, &t->diffusion_divisor, HV_F32, 1, 1);
  lay(sequence, &t->label_divisor, HV_F32, 1, 1);
  lay(sequence, &t->images, HV_U8, largest->images, pixels);
}

/* Turns the offsets that lay() left into device addresses. */
static void place_tables(hv_sequence *sequence) {
  hv_tensor *tables = (hv_tensor *)&sequence->tables;
  for (size_t i = 0; i < sizeof sequence->tables / sizeof *tables; i++) {
    tables[i].data = sequence->memory + ((uintptr_t)tables[i].data - 1);
  }
}

/* Address of a table in the host block. */
static void *host_of(const hv_sequence *sequence, hv_tensor table) {
  return sequence->host + ((char *)table.data - sequence->memory);
}

/* Counts of tokens have 32 bits. */
static hv_status check_limits(const lengths *parts, const hv_sequence_limits *limits) {
  int64_t longest = prefix_length(parts, limits->prompt) + (int64_t)limits->branches * parts->branch;
  if (longest * limits->samples <= INT32_MAX) return HV_OK;
  return hv_error(HV_ERR_INPUT,
                  "a batch of %d samples with up to %lld tokens each has more than %d tokens, the most that are "
                  "possible; use smaller micro-batches, which add up to the same",
                  limits->samples, (long long)longest, INT32_MAX);
}

hv_status hv_sequence_open(const hv_config *config, hv_device *device, const hv_sequence_limits *limits,
                           hv_sequence **out) {
  *out = NULL;
  hv_status status = HV_OK;
  hv_sequence *sequence = calloc(1, sizeof *sequence);
  if (!sequence) return hv_error_memory("a batch");
  sequence->config = *config;
  sequence->device = device;
  sequence->limits = *limits;
  sequence->limits.branches = branch_count(config, limits->branches);
  sequence->parts = part_lengths(config);
  HV_CHECK(check_limits(&sequence->parts, &sequence->limits));
  sequence->counts = hv_sequence_largest(config, &sequence->limits);
  lay_tables(sequence);
  sequence->id_count = calloc((size_t)config->llm.vocab_size + 1, sizeof *sequence->id_count);
  if (!sequence->id_count) {
    status = hv_error_memory("a batch");
    goto done;
  }
  void *memory;
  HV_CHECK(hv_device_allocate_host(device, sequence->bytes, "a batch on the host", &memory));
  sequence->host = memory;
  HV_CHECK(hv_device_allocate(device, HV_MEMORY_WORKSPACE, sequence->bytes, "a batch", &memory));
  sequence->memory = memory;
  HV_CHECK(hv_event_open(device, &sequence->uploaded));
  HV_CHECK(hv_event_open(device, &sequence->read));
  memset(sequence->host, 0, sequence->bytes);
  place_tables(sequence);
  *out = sequence;
  sequence = NULL;
done:
  hv_sequence_close(sequence);
  return status;
}

void hv_sequence_close(hv_sequence *sequence) {
  if (!sequence) return;
  hv_event_close(sequence->device, sequence->uploaded);
  hv_event_close(sequence->device, sequence->read);
  hv_device_release_host(sequence->device, sequence->host);
  hv_device_release(sequence->device, sequence->memory);
  free(sequence->id_count);
  free(sequence);
}

const hv_sequence_counts *hv_sequence_get_counts(const hv_sequence *sequence) {
  return &sequence->counts;
}

const hv_sequence_tables *hv_sequence_get_tables(const hv_sequence *sequence) {
  return &sequence->tables;
}

/* Sets the tables' sizes to those of the counts. */
static void size_tables(hv_sequence *sequence) {
  const hv_sequence_counts *counts = &sequence->counts;
  hv_sequence_tables *t = &sequence->tables;
  int64_t bk = (int64_t)counts->samples * counts->branches;
  bool diffusion = sequence->parts.diffusion > 0;
  t->images.rows = counts->images;
  t->positions.cols = counts->rows;
  t->text_ids.cols = t->text_rows.cols = t->text_sorted_rows.cols = counts->text_rows;
  t->image_rows.cols = counts->image_rows;
  t->state_rows.cols = t->state.rows = t->actions.rows = t->sample_ids.cols = counts->samples;
  t->timestep_rows.cols = t->timesteps.cols = diffusion ? bk : 0;
  t->noise.rows = diffusion ? bk : 0;
  t->x_rows.cols = t->noise_mask.cols = t->noise_rows.cols = counts->noise_rows;
  t->segments.rows = t->key_groups.rows = t->branch_key_groups.rows = counts->segments;
  t->branch_segments.rows = counts->query_segments;
  t->branch_rows.cols = t->branch_positions.cols = counts->branch_rows;
  t->identity.cols = counts->branch_rows + 1;
  t->label_rows.cols = t->labels.cols = counts->label_rows;
  t->text_unique.cols = counts->text_unique;
  t->text_offsets.cols = counts->text_unique + 1;
}

void hv_sequence_build_largest(hv_sequence *sequence) {
  sequence->counts = hv_sequence_largest(&sequence->config, &sequence->limits);
  size_tables(sequence);
  sequence->draws_noise = sequence->draws_timesteps = sequence->parts.diffusion > 0;
}

static hv_status check_finite(const char *what, const float *values, int64_t count, int64_t per_sample) {
  for (int64_t i = 0; i < count; i++) {
    if (isfinite(values[i])) continue;
    return hv_error(HV_ERR_INPUT, "%s of sample %lld, value %lld, is %g; expected a finite number", what,
                    (long long)(i / per_sample), (long long)(i % per_sample), (double)values[i]);
  }
  return HV_OK;
}

/* The number of tokens of a sample's prompt, checked. */
static hv_status prompt_length(const hv_sequence *sequence, const hv_batch *batch, int32_t sample, int32_t *out) {
  const int32_t *ids = batch->prompt_ids + (int64_t)sample * batch->prompt_stride;
  int32_t vocabulary = sequence->config.llm.vocab_size;
  int32_t length = 0;
  while (length < batch->prompt_stride && ids[length] >= 0) length++;
  for (int32_t i = 0; i < batch->prompt_stride; i++) {
    if (i < length ? ids[i] < vocabulary : ids[i] == -1) continue;
    return hv_error(HV_ERR_INPUT,
                    "prompt_ids of sample %d, token %d, is %d; expected ids from 0 to %d, then -1 to the end", sample,
                    i, ids[i], vocabulary - 1);
  }
  if (length == 0 || ids[0] != sequence->config.token_bos) {
    return hv_error(HV_ERR_INPUT, "prompt_ids of sample %d begin with %d; expected <s>, which is %d", sample, ids[0],
                    sequence->config.token_bos);
  }
  if (length > sequence->limits.prompt) {
    return hv_error(HV_ERR_INPUT, "prompt_ids of sample %d hold %d tokens; memory is planned for at most %d", sample,
                    length, sequence->limits.prompt);
  }
  *out = length;
  return HV_OK;
}

static hv_status check_batch(const hv_sequence *sequence, const hv_batch *batch) {
  const hv_config *config = &sequence->config;
  int32_t branches = sequence->limits.branches;
  if (batch->samples < 1 || batch->samples > sequence->limits.samples) {
    return hv_error(HV_ERR_INPUT, "the batch has %d samples; expected 1 to %d", batch->samples,
                    sequence->limits.samples);
  }
  int64_t b = batch->samples, values = sequence->parts.actions;
  if (config->state_dim > 0) HV_TRY(check_finite("state", batch->state, b * config->state_dim, config->state_dim));
  HV_TRY(check_finite("actions", batch->actions, b * values, values));
  if (!sequence->parts.diffusion) return HV_OK;
  if (batch->noise) HV_TRY(check_finite("noise", batch->noise, b * branches * values, branches * values));
  for (int64_t i = 0; batch->timesteps && i < b * branches; i++) {
    if (batch->timesteps[i] >= 0 && batch->timesteps[i] < config->diffusion_steps) continue;
    return hv_error(HV_ERR_INPUT, "timesteps of sample %lld, branch %lld, is %d; expected 0 to %d",
                    (long long)(i / branches), (long long)(i % branches), batch->timesteps[i],
                    config->diffusion_steps - 1);
  }
  if ((!batch->noise || !batch->timesteps) && !batch->sample_ids) {
    return hv_error(HV_ERR_INTERNAL, "a batch without noise or timesteps needs sample_ids to draw them");
  }
  return HV_OK;
}

/* Counters of what has been placed so far, and the host tables that are filled. */
typedef struct builder {
  const hv_sequence *sequence;
  const hv_batch *batch;
  int32_t row, position, text, image, x, branch_row, noise, label, segment, branch, sample;
  int32_t *positions, *text_ids, *text_rows, *image_rows, *state_rows, *timestep_rows, *x_rows;
  int32_t *branch_rows, *branch_positions, *noise_rows, *label_rows, *labels;
  hv_segment *segments, *branch_segments;
  hv_key_group *key_groups, *branch_key_groups;
} builder;

static builder make_builder(hv_sequence *sequence, const hv_batch *batch) {
  const hv_sequence_tables *t = &sequence->tables;
  return (builder){
      .sequence = sequence,
      .batch = batch,
      .positions = host_of(sequence, t->positions),
      .text_ids = host_of(sequence, t->text_ids),
      .text_rows = host_of(sequence, t->text_rows),
      .image_rows = host_of(sequence, t->image_rows),
      .state_rows = host_of(sequence, t->state_rows),
      .timestep_rows = host_of(sequence, t->timestep_rows),
      .x_rows = host_of(sequence, t->x_rows),
      .branch_rows = host_of(sequence, t->branch_rows),
      .branch_positions = host_of(sequence, t->branch_positions),
      .noise_rows = host_of(sequence, t->noise_rows),
      .label_rows = host_of(sequence, t->label_rows),
      .labels = host_of(sequence, t->labels),
      .segments = host_of(sequence, t->segments),
      .branch_segments = host_of(sequence, t->branch_segments),
      .key_groups = host_of(sequence, t->key_groups),
      .branch_key_groups = host_of(sequence, t->branch_key_groups),
  };
}

static int32_t next_row(builder *b) {
  b->positions[b->row] = b->position++;
  return b->row++;
}

static void add_text(builder *b, int32_t id) {
  b->text_ids[b->text] = id;
  b->text_rows[b->text++] = next_row(b);
}

static void add_prefix(builder *b, int32_t prompt) {
  const hv_config *config = &b->sequence->config;
  const int32_t *ids = b->batch->prompt_ids + (int64_t)b->sample * b->batch->prompt_stride;
  add_text(b, ids[0]);
  for (int32_t i = 0; i < b->sequence->parts.image; i++) b->image_rows[b->image++] = next_row(b);
  for (int32_t i = 1; i < prompt; i++) add_text(b, ids[i]);
  add_text(b, config->token_bod);
  if (config->state_dim > 0) b->state_rows[b->sample] = next_row(b);
}

/* Adds a token of a branch's autoregressive part; `label` is the token that it must predict, −1: none. */
static void add_branch_text(builder *b, int32_t id, int32_t label) {
  if (label >= 0) {
    b->label_rows[b->label] = b->branch_row + (b->row - b->segments[b->segment].own_start);
    b->labels[b->label++] = label;
  }
  add_text(b, id);
}

static void add_autoregressive_part(builder *b) {
  const hv_config *config = &b->sequence->config;
  const float *actions = b->batch->actions + (int64_t)b->sample * b->sequence->parts.actions;
  int32_t count = b->sequence->parts.actions;
  int32_t next = hv_action_token((double)actions[0], config->action_base, config->action_bins);
  if (config->token_empty >= 0) {
    add_branch_text(b, config->token_eod, -1);
    add_branch_text(b, config->token_empty, next);
  } else {
    add_branch_text(b, config->token_eod, next);
  }
  for (int32_t i = 0; i < count; i++) {
    int32_t token = next;
    next = i + 1 < count ? hv_action_token((double)actions[i + 1], config->action_base, config->action_bins)
                         : config->token_eos;
    add_branch_text(b, token, next);
  }
  add_branch_text(b, config->token_eos, -1);
}

static void add_branch(builder *b, int32_t prefix_start, int32_t prefix_rows) {
  const hv_config *config = &b->sequence->config;
  int32_t start = b->row, length = b->sequence->parts.branch;
  b->position = prefix_rows;
  b->segments[b->segment] = (hv_segment){.q_start = start,
                                         .q_rows = length,
                                         .prefix_start = prefix_start,
                                         .prefix_rows = prefix_rows,
                                         .own_start = start,
                                         .own_rows = length};
  if (b->sequence->parts.diffusion) {
    b->timestep_rows[b->branch] = next_row(b);
    for (int32_t h = 0; h < config->action_chunk; h++) {
      b->noise_rows[b->noise++] = b->branch_row + 1 + h;
      b->x_rows[b->x++] = next_row(b);
    }
  }
  if (b->sequence->parts.autoregressive) add_autoregressive_part(b);

  b->key_groups[b->segment] =
      (hv_key_group){.key_start = start, .key_rows = length, .first_segment = b->segment, .segment_count = 1};
  b->branch_key_groups[b->segment] =
      (hv_key_group){.key_start = start, .key_rows = length, .first_segment = b->branch, .segment_count = 1};
  b->branch_segments[b->branch] = b->segments[b->segment];
  b->branch_segments[b->branch].q_start = b->branch_row;
  for (int32_t i = 0; i < length; i++) {
    b->branch_rows[b->branch_row] = start + i;
    b->branch_positions[b->branch_row++] = prefix_rows + i;
  }
  b->segment++;
  b->branch++;
}

static void add_sample(builder *b, int32_t prompt) {
  int32_t branches = b->sequence->limits.branches;
  int32_t start = b->row, rows = prefix_length(&b->sequence->parts, prompt), segment = b->segment;
  b->position = 0;
  b->segments[segment] = (hv_segment){.q_start = start, .q_rows = rows, .own_start = start, .own_rows = rows};
  b->key_groups[segment] =
      (hv_key_group){.key_start = start, .key_rows = rows, .first_segment = segment, .segment_count = 1 + branches};
  b->branch_key_groups[segment] =
      (hv_key_group){.key_start = start, .key_rows = rows, .first_segment = b->branch, .segment_count = branches};
  b->segment++;
  add_prefix(b, prompt);
  for (int32_t k = 0; k < branches; k++) add_branch(b, start, rows);
  b->sample++;
}

/* Sorts the text rows by token id, so that the embedding's gradient is summed in a fixed order. */
static void sort_text(hv_sequence *sequence) {
  const hv_sequence_tables *t = &sequence->tables;
  int32_t *count = sequence->id_count, vocabulary = sequence->config.llm.vocab_size;
  const int32_t *ids = host_of(sequence, t->text_ids), *rows = host_of(sequence, t->text_rows);
  int32_t *unique = host_of(sequence, t->text_unique), *offsets = host_of(sequence, t->text_offsets);
  int32_t *sorted = host_of(sequence, t->text_sorted_rows);
  memset(count, 0, ((size_t)vocabulary + 1) * sizeof *count);
  for (int32_t i = 0; i < sequence->counts.text_rows; i++) count[ids[i] + 1]++;
  int32_t different = 0;
  offsets[0] = 0;
  for (int32_t id = 0; id < vocabulary; id++) {
    if (count[id + 1] > 0) {
      unique[different++] = id;
      offsets[different] = count[id] + count[id + 1];
    }
    count[id + 1] += count[id];
  }
  for (int32_t i = 0; i < sequence->counts.text_rows; i++) sorted[count[ids[i]]++] = rows[i];
  sequence->counts.text_unique = different;
}

/* The unmasked action steps of a sample. */
static int32_t unmasked_steps(const hv_config *config, const hv_batch *batch, int32_t sample) {
  if (!batch->action_mask) return config->action_chunk;
  int32_t steps = 0;
  for (int32_t h = 0; h < config->action_chunk; h++) {
    steps += batch->action_mask[(int64_t)sample * config->action_chunk + h] != 0;
  }
  return steps;
}

void hv_batch_count(const hv_config *config, const hv_batch *batch, int32_t branches, double *diffusion,
                    double *labels) {
  int64_t steps = 0;
  for (int32_t s = 0; s < batch->samples; s++) steps += unmasked_steps(config, batch, s);
  int32_t k = branch_count(config, branches);
  *diffusion = hv_config_has_diffusion(config) ? (double)steps * k * config->action_dim : 0;
  *labels = hv_config_has_autoregression(config)
                ? (double)batch->samples * k * (config->action_chunk * config->action_dim + 1)
                : 0;
}

/* Copies the batch's values (images, state, actions, draws) and sets divisors and mask. */
static void copy_values(hv_sequence *sequence, const hv_batch *batch, uint64_t seed, uint64_t step) {
  const hv_config *config = &sequence->config;
  const hv_sequence_tables *t = &sequence->tables;
  int32_t branches = sequence->limits.branches;
  int64_t b = batch->samples, values = sequence->parts.actions;
  memcpy(host_of(sequence, t->images), batch->images, (size_t)hv_tensor_count(t->images));
  if (config->state_dim > 0) {
    memcpy(host_of(sequence, t->state), batch->state, (size_t)(b * config->state_dim) * sizeof(float));
  }
  memcpy(host_of(sequence, t->actions), batch->actions, (size_t)(b * values) * sizeof(float));
  int64_t *seed_step = host_of(sequence, t->seed_step);
  seed_step[0] = (int64_t)seed;
  seed_step[1] = (int64_t)step;
  if (batch->sample_ids) memcpy(host_of(sequence, t->sample_ids), batch->sample_ids, (size_t)b * sizeof(int64_t));

  double diffusion, labels;
  hv_batch_count(config, batch, branches, &diffusion, &labels);
  if (batch->diffusion_divisor > 0) diffusion = batch->diffusion_divisor;
  if (batch->label_divisor > 0) labels = batch->label_divisor;
  /* A batch whose every step is past its episode's end has a loss of 0, not 0 / 0. */
  *(float *)host_of(sequence, t->diffusion_divisor) = (float)(diffusion > 0 ? diffusion : 1);
  *(float *)host_of(sequence, t->label_divisor) = (float)(labels > 0 ? labels : 1);

  if (!sequence->parts.diffusion) return;
  sequence->draws_noise = !batch->noise;
  sequence->draws_timesteps = !batch->timesteps;
  if (batch->noise) {
    memcpy(host_of(sequence, t->noise), batch->noise, (size_t)(b * branches * values) * sizeof(float));
  }
  if (batch->timesteps) {
    memcpy(host_of(sequence, t->timesteps), batch->timesteps, (size_t)(b * branches) * sizeof(int32_t));
  }
  float *mask = host_of(sequence, t->noise_mask);
  for (int64_t s = 0; s < b; s++) {
    for (int32_t k = 0; k < branches; k++) {
      for (int32_t h = 0; h < config->action_chunk; h++) {
        *mask++ = !batch->action_mask || batch->action_mask[s * config->action_chunk + h] ? 1.0f : 0.0f;
      }
    }
  }
}

hv_status hv_sequence_build(hv_sequence *sequence, const hv_batch *batch, uint64_t seed, uint64_t step) {
  HV_TRY(check_batch(sequence, batch));
  HV_TRY(hv_event_synchronize(sequence->device, sequence->uploaded));
  builder b = make_builder(sequence, batch);
  int32_t longest = 0;
  for (int32_t s = 0; s < batch->samples; s++) {
    int32_t prompt = 0;
    HV_TRY(prompt_length(sequence, batch, s, &prompt));
    add_sample(&b, prompt);
    int32_t prefix = prefix_length(&sequence->parts, prompt);
    if (prefix > longest) longest = prefix;
  }
  int32_t *identity = host_of(sequence, sequence->tables.identity);
  for (int32_t i = 0; i <= b.branch_row; i++) identity[i] = i;

  hv_sequence_limits limits = sequence->limits;
  limits.samples = batch->samples;
  sequence->counts = hv_sequence_largest(&sequence->config, &limits);
  sequence->counts.rows = b.row;
  sequence->counts.text_rows = b.text;
  sequence->counts.max_segment_rows = longest > sequence->parts.branch ? longest : sequence->parts.branch;
  sequence->counts.max_key_rows = longest + sequence->parts.branch;
  sort_text(sequence);
  size_tables(sequence);
  copy_values(sequence, batch, seed, step);
  return HV_OK;
}

void hv_sequence_trace(hv_sequence *sequence, hv_trace *trace) {
  sequence->trace = trace;
}

void hv_sequence_upload(hv_sequence *sequence, hv_stream *stream) {
  hv_event_wait(stream, sequence->read);
  hv_span *span = hv_trace_begin(sequence->trace, HV_TRACE_UPLOAD, "upload", "a batch", stream);
  hv_upload(stream, sequence->memory, sequence->host, sequence->bytes);
  hv_trace_end(span, stream);
  hv_event_record(stream, sequence->uploaded);
}

void hv_sequence_use(hv_sequence *sequence, hv_stream *stream) {
  const hv_sequence_tables *t = &sequence->tables;
  hv_event_wait(stream, sequence->uploaded);
  int32_t branches = sequence->limits.branches;
  if (sequence->draws_noise) {
    hv_draw_normal(stream, &(hv_draw_normal_args){.seed_step = t->seed_step,
                                                  .samples = t->sample_ids,
                                                  .branches = branches,
                                                  .domain = HV_RANDOM_NOISE,
                                                  .y = t->noise});
  }
  if (sequence->draws_timesteps) {
    hv_draw_below(stream, &(hv_draw_below_args){.seed_step = t->seed_step,
                                                .samples = t->sample_ids,
                                                .branches = branches,
                                                .domain = HV_RANDOM_TIMESTEP,
                                                .limit = sequence->config.diffusion_steps,
                                                .y = t->timesteps});
  }
}

void hv_sequence_done(hv_sequence *sequence, hv_stream *stream) {
  hv_event_record(stream, sequence->read);
}
