#include "train/watch/skipped_step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/watch/rank_figures.h"

/* What each rank sends about its worst micro-batch. */
enum { PART, FINITE, LOSS, FIGURES };

/* The first micro-batch of this rank whose loss is not finite, else the one with the largest. trainer->losses are
 * contributions to the mean over the whole batch, so they are scaled to means over a micro-batch; all have the same
 * size. */
static void find_own(const hv_trainer *trainer, int32_t ranks, double out[FIGURES]) {
  for (int32_t part = 0; part < trainer->parts; part++) {
    double loss =
        trainer->weights.diffusion * trainer->losses[part][0] + trainer->weights.ce * trainer->losses[part][1];
    bool finite = isfinite(loss);
    if (part > 0 && finite && loss * ranks * trainer->parts <= out[LOSS]) continue;
    out[PART] = part;
    out[FINITE] = finite;
    out[LOSS] = finite ? loss * ranks * trainer->parts : 0;
    if (!finite) return;
  }
}

static hv_suspect make_suspect(const hv_trainer *trainer, int32_t rank, const double figures[FIGURES]) {
  int32_t samples = trainer->limits.samples;
  int64_t micro_batches = (int64_t)rank * trainer->parts + (int64_t)figures[PART];
  return (hv_suspect){.rank = rank,
                      .finite = figures[FINITE] != 0,
                      .loss = figures[LOSS],
                      .first_sample = trainer->samples - hv_trainer_batch(trainer) + micro_batches * samples,
                      .samples = samples};
}

hv_status hv_suspects_find(const hv_trainer *trainer, hv_suspect out[HV_MAX_SUSPECTS], int *count) {
  int32_t ranks = trainer->comm ? trainer->comm->size : 1, worst = 0;
  double own[FIGURES] = {0};
  *count = 0;
  double(*all)[FIGURES] = calloc((size_t)ranks, sizeof *all);
  if (!all) return hv_error_memory("the ranks' losses");
  find_own(trainer, ranks, own);
  hv_status status = hv_rank_figures_gather(trainer->comm, "the losses of a skipped step", own, FIGURES, all[0]);
  for (int32_t r = 0; r < ranks && !status; r++) {
    if (all[r][FINITE] == 0 && *count < HV_MAX_SUSPECTS) out[(*count)++] = make_suspect(trainer, r, all[r]);
    if (all[r][LOSS] > all[worst][LOSS]) worst = r;
  }
  if (!status && *count == 0) out[(*count)++] = make_suspect(trainer, worst, all[worst]);
  free(all);
  return status;
}

/* "lift.hdf5/demo_3:17" */
static json_t *describe_sample(const hv_run_data *data, int64_t sample) {
  int64_t frame = hv_run_data_frame(data, sample);
  const hv_episode *episode = hv_demonstrations_episode_of(data->train, frame);
  const char *slash = strrchr(episode->file, '/');
  return json_sprintf("%s/%s:%lld", slash ? slash + 1 : episode->file, episode->name,
                      (long long)(frame - episode->first));
}

json_t *hv_suspects_describe(const hv_suspect *suspects, int count, const hv_run_data *data) {
  enum { MOST_FRAMES = 64 };
  json_t *list = json_array();
  for (int i = 0; i < count; i++) {
    const hv_suspect *suspect = &suspects[i];
    json_t *frames = json_array();
    for (int32_t s = 0; s < suspect->samples && s < MOST_FRAMES; s++) {
      json_array_append_new(frames, describe_sample(data, suspect->first_sample + s));
    }
    json_array_append_new(list, json_pack("{s:i, s:o, s:I, s:i, s:o}", "rank", (int)suspect->rank, "loss",
                                          suspect->finite ? json_real(suspect->loss) : json_null(), "first_sample",
                                          (json_int_t)suspect->first_sample, "samples", (int)suspect->samples, "frames",
                                          frames));
  }
  return list;
}

/* "sample 22 (", "samples 22 to 27 (" */
static void add_samples(const json_t *suspect, hv_text *out) {
  long long first = json_integer_value(json_object_get(suspect, "first_sample"));
  long long count = json_integer_value(json_object_get(suspect, "samples"));
  if (count == 1) {
    hv_text_add(out, "sample %lld (", first);
  } else {
    hv_text_add(out, "samples %lld to %lld (", first, first + count - 1);
  }
}

void hv_suspects_tell(int64_t step, hv_skip_reason reason, const json_t *description, hv_text *out) {
  static const char *const why[] = {"", "a gradient is not finite", "a spike of the loss",
                                    "a spike of the gradients' norm"};
  enum { SHOWN = 4 };
  size_t i, f;
  const json_t *suspect, *frame;
  hv_text_add(out, "step %lld changed nothing: %s", (long long)step, why[reason]);
  json_array_foreach(description, i, suspect) {
    const json_t *loss = json_object_get(suspect, "loss"), *frames = json_object_get(suspect, "frames");
    hv_text_add(out, "; rank %d, ", (int)json_integer_value(json_object_get(suspect, "rank")));
    add_samples(suspect, out);
    json_array_foreach(frames, f, frame) {
      if (f < SHOWN) hv_text_add(out, "%s%s", f ? ", " : "", json_string_value(frame));
    }
    hv_text_add(out, "%s), ", json_array_size(frames) > SHOWN ? ", …" : "");
    if (json_is_real(loss)) {
      hv_text_add(out, "whose loss of %.6g is the largest", json_real_value(loss));
    } else {
      hv_text_add(out, "loss not finite");
    }
  }
}
