#include "infer/model_card.h"

#include <inttypes.h>
#include <string.h>

#include "core/base/build_commit.h"

/* The rest of a card, from this heading on, is about training; an export of an export keeps it. */
static const char training_heading[] = "\n## Training\n";

static void add_model(const hv_model_card *card, hv_text *out) {
  const hv_config *config = &card->directory->model.config;
  const hv_safetensors *tensors = card->directory->tensors;
  int64_t parameters = 0;
  int32_t count = hv_safetensors_count(tensors);
  for (int32_t i = 0; i < count; i++) parameters += hv_safetensors_get(tensors, i)->count;
  hv_text_add(out, "## Model\n\n| | |\n|---|---|\n| objective | `%s` |\n", hv_objective_name(config->objective));
  hv_text_add(out, "| weights | %" PRId64 " numbers in %" PRId32 " tensors, %s |\n", parameters, count,
              card->dtype ? card->dtype : "as they were stored");
  hv_text_add(out, "| cameras |");
  for (int32_t i = 0; i < config->num_cameras; i++) hv_text_add(out, "%s `%s`", i ? "," : "", config->cameras[i]);
  hv_text_add(out, ", resized to %" PRId32 " × %" PRId32 " pixels |\n", config->vision[0].image_size,
              config->vision[0].image_size);
  if (config->state_dim > 0) {
    hv_text_add(out, "| state | %" PRId32 " numbers |\n", config->state_dim);
  } else {
    hv_text_add(out, "| state | none |\n");
  }
  hv_text_add(out, "| action | %" PRId32 " numbers a step, %" PRId32 " step%s in a prediction |\n", config->action_dim,
              config->action_chunk, config->action_chunk == 1 ? "" : "s");
  for (int32_t i = 0; i < config->num_towers; i++) {
    const hv_vision_config *tower = &config->vision[i];
    hv_text_add(out, "| vision | `%s`: width %" PRId32 ", %" PRId32 " blocks |\n", tower->prefix, tower->width,
                tower->depth);
  }
  const char *family =
      json_string_value(json_object_get(json_object_get(card->directory->model.document, "llm"), "model_type"));
  hv_text_add(out, "| language model | `%s`: width %" PRId32 ", %" PRId32 " layers, vocabulary %" PRId32 " |\n",
              family ? family : "?", config->llm.hidden_size, config->llm.num_hidden_layers, config->llm.vocab_size);
}

static bool has_width(const json_t *entry, const char *quantity, int32_t dims) {
  return json_array_size(json_object_get(json_object_get(entry, quantity), "mean")) == (size_t)dims;
}

const char *hv_model_card_key(const json_t *statistics, int32_t action_dim, int32_t state_dim) {
  const char *key;
  json_t *entry;
  json_object_foreach((json_t *)(uintptr_t)statistics, key, entry) {
    if (!has_width(entry, "action", action_dim)) continue;
    if (state_dim == 0 || has_width(entry, "proprio", state_dim)) return key;
  }
  return json_object_iter_key(json_object_iter((json_t *)(uintptr_t)statistics));
}

/* A command that runs as it is once the pictures exist; its state is the mean of the data. */
static void add_example(const hv_model_card *card, hv_text *out) {
  const hv_config *config = &card->directory->model.config;
  const char *key = hv_model_card_key(card->statistics, config->action_dim, config->state_dim);
  const char *told = json_string_value(json_object_get(json_object_get(card->run->config, "data"), "instruction"));
  bool plain = told && !strpbrk(told, "\"\\$`!\n");
  hv_text_add(out, "```sh\nhvla-infer predict --model .");
  for (int32_t i = 0; i < config->num_cameras; i++)
    hv_text_add(out, " --image %s=%s.png", config->cameras[i], config->cameras[i]);
  hv_text_add(out, " \\\n  --instruction \"%s\"", plain ? told : "what the robot should do");
  if (key) hv_text_add(out, " --unnorm-key %s", key);
  const json_t *proprio = json_object_get(json_object_get(card->statistics, key ? key : ""), "proprio");
  const json_t *mean = json_object_get(proprio, "mean");
  if (config->state_dim > 0) hv_text_add(out, " \\\n  --state \"");
  for (int32_t i = 0; i < config->state_dim; i++)
    hv_text_add(out, "%s%.4g", i ? "," : "", json_number_value(json_array_get(mean, (size_t)i)));
  hv_text_add(out, "%s\n```\n", config->state_dim > 0 ? "\"" : "");
}

static void add_usage(const hv_model_card *card, hv_text *out) {
  hv_text_add(out, "\n## Use\n\n");
  if (card->usage) {
    hv_text_add(out, "%s", card->usage);
    return;
  }
  add_example(card, out);
  hv_text_add(out,
              "\nIn a C or C++ program: `hvla_load` and `hvla_predict` of `hvla.h`. To train it further, name this "
              "directory in `init_from`\nof a configuration for `hvla-train run`.\n");
}

static void add_data(const json_t *statistics, hv_text *out) {
  hv_text_add(out,
              "\n### Data\n\n| key of the statistics | frames | episodes | action | state |\n|---|---|---|---|---|\n");
  const char *key;
  json_t *entry;
  json_object_foreach((json_t *)(uintptr_t)statistics, key, entry) {
    const json_t *action = json_object_get(json_object_get(entry, "action"), "mean");
    const json_t *state = json_object_get(json_object_get(entry, "proprio"), "mean");
    hv_text_add(out, "| `%s` | %" PRId64 " | %" PRId64 " | %zu | %zu |\n", key,
                (int64_t)json_integer_value(json_object_get(entry, "num_transitions")),
                (int64_t)json_integer_value(json_object_get(entry, "num_trajectories")), json_array_size(action),
                json_array_size(state));
  }
  hv_text_add(out, "\nFrames and episodes are those that the statistics were computed from; `hvla-train` uses the "
                   "training split.\n");
}

static void add_errors(const json_t *line, hv_text *out) {
  static const char *const heads[] = {"diffusion", "autoregressive", "ensemble", "mean_action"};
  hv_text_add(out, "\n### Held-out errors\n\n");
  if (!line) {
    hv_text_add(out, "Not known: the run's metrics have no measurement on held-out demonstrations.\n");
    return;
  }
  hv_text_add(out,
              "The newest measurement on held-out demonstrations, after step %" PRId64 ": loss %.4f. Mean absolute "
              "errors of the\naction in normalised units (−1 and 1 are the 1 %% and 99 %% quantiles of the data), over "
              "all its dimensions together\nand for each dimension:\n\n| | together | each |\n|---|---|---|\n",
              (int64_t)json_integer_value(json_object_get(line, "step")),
              json_number_value(json_object_get(line, "held_out_loss")));
  for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
    char key[64];
    snprintf(key, sizeof key, "error_%s", heads[i]);
    const json_t *error = json_object_get(line, key);
    if (!json_is_number(error)) continue;
    hv_text_add(out, "| %s | %.4f |", i == 3 ? "always the mean action" : heads[i], json_number_value(error));
    snprintf(key, sizeof key, "error_%s_dims", heads[i]);
    const json_t *dims = json_object_get(line, key);
    for (size_t d = 0; d < json_array_size(dims); d++)
      hv_text_add(out, " %.3f", json_number_value(json_array_get(dims, d)));
    hv_text_add(out, " |\n");
  }
}

static void add_run(const hv_run_record *run, hv_text *out) {
  if (run->last) {
    hv_text_add(out, "\n### Run\n\n%" PRId64 " steps; the last one's loss was %.4f.\n",
                (int64_t)json_integer_value(json_object_get(run->last, "step")),
                json_number_value(json_object_get(run->last, "loss")));
  }
  add_errors(run->held_out, out);
  size_t length = strlen(run->config_text);
  hv_text_add(out,
              "\n### Configuration\n\nThe run's `config.yaml`, with overrides and defaults filled in:"
              "\n\n```yaml\n%s%s```\n",
              run->config_text, length > 0 && run->config_text[length - 1] == '\n' ? "" : "\n");
}

static void add_training(const hv_model_card *card, hv_text *out) {
  const char *before = card->source_card ? strstr(card->source_card, training_heading) : NULL;
  if (!card->run->config && before) {
    hv_text_add(out, "%s", before);
    return;
  }
  hv_text_add(out, "%s", training_heading);
  add_data(card->statistics, out);
  if (card->run->config) {
    add_run(card->run, out);
    return;
  }
  hv_text_add(out,
              "\n### Configuration and held-out errors\n\nNot known: when the model was exported, it lay in no run "
              "directory with a usable\n`config.yaml`.\n%s",
              hv_text_string(&card->run->doubts));
}

hv_status hv_model_card_format(const hv_model_card *card, hv_text *out) {
  hv_text_add(out,
              "---\nlibrary_name: hybridvla\npipeline_tag: robotics\ntags: [robotics, vision-language-action]\n---\n"
              "\n# A HybridVLA model\n\nA policy that looks at camera pictures, reads an instruction and answers "
              "with an action. Written by\n`hvla-infer export`, version %s, commit %s.\n\n",
              HVLA_VERSION, hv_build_commit());
  add_model(card, out);
  add_usage(card, out);
  add_training(card, out);
  return out->failed ? hv_error_memory("the model's card") : HV_OK;
}
