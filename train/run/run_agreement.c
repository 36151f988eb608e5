#include "train/run/run_agreement.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "train/run/run_digest.h"

/* What is compared: the configuration's parts, the model in init_from, and the demonstrations. */
typedef struct fingerprints {
  const char *names[HV_COMM_MAX_SUM]; /* the configuration's parts, then `start`, then NULL for the demonstrations */
  double values[HV_COMM_MAX_SUM];
  int count;
} fingerprints;

static hv_status add(fingerprints *to, const char *name, const void *bytes, size_t size) {
  if (to->count == HV_COMM_MAX_SUM) return hv_error(HV_ERR_INTERNAL, "the configuration has too many parts");
  to->names[to->count] = name;
  to->values[to->count++] = (double)(XXH3_64bits(bytes, size) >> 12); /* ranks exchange numbers as doubles */
  return HV_OK;
}

/* Removes the keys that may differ from machine to machine. */
static void forget_machine(json_t *resolved) {
  static const char *const parts[] = {"init_from", "tokenizer", "output", "device", "threads", "bench"};
  static const char *const of_data[] = {"files", "cache_bytes", "threads", "read_ahead"};
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) json_object_del(resolved, parts[i]);
  json_t *data = json_object_get(resolved, "data");
  for (size_t i = 0; i < sizeof of_data / sizeof of_data[0]; i++) json_object_del(data, of_data[i]);
}

static hv_status add_configuration(fingerprints *to, json_t *resolved) {
  const char *name;
  json_t *part;
  json_object_foreach(resolved, name, part) {
    char *text = json_dumps(part, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
    hv_status status = text ? add(to, name, text, strlen(text)) : hv_error_memory("the configuration");
    free(text);
    HV_TRY(status);
  }
  return HV_OK;
}

static const char start[] = "init_from"; /* compared by content, since its path may differ */

static hv_status add_start(fingerprints *to, const hv_model_directory *directory) {
  uint64_t digest;
  HV_TRY(hv_run_digest_model(directory, &digest));
  return add(to, start, &digest, sizeof digest);
}

static hv_status add_demonstrations(fingerprints *to, const hv_run_data *data, uint64_t held_out) {
  uint64_t digest = hv_run_digest_split(held_out, data->train, &data->train_prompts);
  return add(to, NULL, &digest, sizeof digest);
}

/* The error for a part that differs; NULL: the demonstrations. */
static hv_status difference(const hv_train_config *config, const hv_run_data *data, int32_t rank, const char *part) {
  if (part == start) {
    return hv_error(HV_ERR_INPUT,
                    "%s: rank %d starts from a different model than rank 0: give all ranks the same in %s",
                    config->source, rank, start);
  }
  if (part) {
    return hv_error(HV_ERR_INPUT,
                    "%s: `%s` differs between rank %d and rank 0: give all ranks the same configuration and options",
                    config->source, part, rank);
  }
  return hv_error(HV_ERR_INPUT,
                  "%s: rank %d reads different demonstrations than rank 0, %lld episodes with %lld frames to train on: "
                  "give all ranks the same files and tokenizer",
                  config->source, rank, (long long)hv_demonstrations_episodes(data->train),
                  (long long)hv_demonstrations_frames(data->train));
}

hv_status hv_run_check_agreement(const hv_train_config *config, bool resume, const hv_model_directory *directory,
                                 const hv_run_data *data, uint64_t held_out, hv_comm *comm) {
  fingerprints own = {0};
  double first[HV_COMM_MAX_SUM] = {0};
  json_t *resolved = NULL;
  if (comm->size == 1) return HV_OK;
  hv_status status = HV_OK;
  HV_CHECK(hv_train_config_resolve(config, &resolved));
  forget_machine(resolved);
  if (json_object_set_new(resolved, "--resume", json_boolean(resume)) != 0) {
    status = hv_error_memory("the configuration");
    goto done;
  }
  HV_CHECK(add_configuration(&own, resolved));
  HV_CHECK(add_start(&own, directory));
  HV_CHECK(add_demonstrations(&own, data, held_out));
  if (comm->rank == 0) memcpy(first, own.values, sizeof first);
  HV_CHECK(hv_comm_sum(comm, "the configuration", first, own.count));
  for (int i = 0; i < own.count && !status; i++) {
    if (first[i] == own.values[i]) continue;
    status = difference(config, data, comm->rank, own.names[i]);
  }
  status = hv_comm_agree(comm, "comparing configurations", status);
done:
  json_decref(resolved);
  return status;
}
