#include "infer/public_checkpoint.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/directory.h"
#include "core/base/file.h"
#include "core/io/json.h"
#include "core/io/yaml.h"

enum { NAME_SIZE = 96, LLAMA_TOKENS = 32000, PHI_TOKENS = 50257 };

struct hv_public_checkpoint {
  const hv_export_source *source;
  const hv_dtype *to;
  hv_torch_tensor *tensors;
  size_t count;
  char file[NAME_SIZE]; /* of the .pt */
  hv_text obstacles;
};

/* The public code's modules, in its order; tensors of any other module come after theirs. */
static const char *const modules[] = {"vision_backbone",  "projector",  "llm_backbone", "x_embedder",
                                      "proprio_embedder", "t_embedder", "final_layer"};
enum { MODULES = sizeof modules / sizeof *modules, FIRST_SMALL = 3 };

static int module_of(const char *name) {
  size_t length = strcspn(name, ".");
  int i = 0;
  while (i < MODULES && !(strlen(modules[i]) == length && memcmp(name, modules[i], length) == 0)) i++;
  return i;
}

/* By module, then by name, with block 10 after block 9. */
static int compare_tensors(const void *a, const void *b) {
  const char *x = ((const hv_torch_tensor *)a)->name, *y = ((const hv_torch_tensor *)b)->name;
  int difference = module_of(x) - module_of(y);
  return difference ? difference : strverscmp(x, y);
}

static hv_status list_tensors(hv_public_checkpoint *self) {
  const hv_safetensors *tensors = self->source->directory.tensors;
  int32_t count = hv_safetensors_count(tensors);
  self->tensors = calloc((size_t)count + 1, sizeof *self->tensors);
  if (!self->tensors) return hv_error_memory("a list of tensors");
  for (int32_t i = 0; i < count; i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(tensors, i);
    const char *dot = strchr(tensor->name, '.');
    if (!dot || dot == tensor->name || dot[1] == '\0')
      return hv_error(HV_ERR_INPUT,
                      "%s: tensor %s belongs to no module: a name such as projector.projector.0.weight "
                      "is expected",
                      tensor->file, tensor->name);
    self->tensors[self->count++] =
        (hv_torch_tensor){.name = tensor->name, .source = tensor, .dtype = hv_export_dtype(tensor, self->to)};
  }
  qsort(self->tensors, self->count, sizeof *self->tensors, compare_tensors);
  return HV_OK;
}

/* The public code's form of name, if step, epoch and loss are known and the name is not too long, which the loss of a
 * diverged run can make it. */
static void name_file(hv_public_checkpoint *self) {
  const json_t *last = self->source->run.last;
  const json_t *step = json_object_get(last, "step"), *loss = json_object_get(last, "loss");
  double epoch = json_number_value(json_object_get(last, "epoch"));
  int length = NAME_SIZE;
  if (json_is_integer(step) && json_is_number(loss) && epoch >= 0 && epoch < 1e6)
    length = snprintf(self->file, sizeof self->file, "step-%06" PRId64 "-epoch-%02d-loss=%.4f.pt",
                      (int64_t)json_integer_value(step), (int)epoch, json_number_value(loss));
  if (length >= NAME_SIZE) snprintf(self->file, sizeof self->file, "hybridvla.pt");
}

static bool is_phi(const hv_public_checkpoint *self) {
  const json_t *llm = json_object_get(self->source->directory.model.document, "llm");
  const char *type = json_string_value(json_object_get(llm, "model_type"));
  return type && strcmp(type, "phi") == 0;
}

static bool has(const hv_public_checkpoint *self, const char *prefix, const char *name) {
  char whole[512];
  snprintf(whole, sizeof whole, "%s.%s", prefix, name);
  return hv_safetensors_find(self->source->directory.tensors, whole) != NULL;
}

/* Counts the missing tensors that no prediction uses but the public code's strict loading requires: the tower's last
 * block, last norm and pooling. */
static int count_missing(const hv_public_checkpoint *self, const hv_vision_config *tower) {
  static const char *const pooling[] = {"latent",       "q.weight",       "q.bias",      "kv.weight", "kv.bias",
                                        "proj.weight",  "proj.bias",      "norm.weight", "norm.bias", "mlp.fc1.weight",
                                        "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"};
  const hv_safetensors *tensors = self->source->directory.tensors;
  char first[160], name[256];
  int missing = !has(self, tower->prefix, "norm.weight") + !has(self, tower->prefix, "norm.bias");
  snprintf(first, sizeof first, "%s.blocks.0.", tower->prefix);
  for (int32_t i = 0; i < hv_safetensors_count(tensors); i++) {
    const char *whole = hv_safetensors_get(tensors, i)->name;
    if (strncmp(whole, first, strlen(first)) != 0) continue;
    snprintf(name, sizeof name, "blocks.%" PRId32 ".%s", tower->depth - 1, whole + strlen(first));
    missing += !has(self, tower->prefix, name);
  }
  for (size_t i = 0; strstr(tower->prefix, "siglip") && i < sizeof pooling / sizeof *pooling; i++) {
    snprintf(name, sizeof name, "attn_pool.%s", pooling[i]);
    missing += !has(self, tower->prefix, name);
  }
  return missing;
}

/* Whether decoder, projector and towers have the sizes of a model that the public code builds. */
static bool has_public_sizes(const hv_public_checkpoint *self) {
  const hv_config *config = &self->source->directory.model.config;
  const hv_llm_config *llm = &config->llm;
  const hv_vision_config *first = &config->vision[0], *second = &config->vision[1];
  if (llm->num_hidden_layers != 32 || first->width != 1024 || first->depth != 24) return false;
  if (is_phi(self)) {
    return llm->hidden_size == 2560 && llm->vocab_size == 50304 && config->num_towers == 1 &&
           config->projector == HV_PROJECTOR_GELU_MLP;
  }
  return llm->hidden_size == 4096 && llm->vocab_size == 32064 && config->num_towers == 2 && second->width == 1152 &&
         second->depth == 27 && config->projector == HV_PROJECTOR_FUSED_GELU_MLP;
}

static void find_obstacles(hv_public_checkpoint *self) {
  const hv_config *config = &self->source->directory.model.config;
  int missing = 0;
  if (!has_public_sizes(self))
    hv_text_add(&self->obstacles, "- its sizes are not those of either model that the public code builds\n");
  if (config->final_norm != HV_NORM_VARIANCE)
    hv_text_add(&self->obstacles, "- the public code would predict other actions: its final_norm is always variance\n");
  if (config->image_resize != (is_phi(self) ? HV_RESIZE_LETTERBOX : HV_RESIZE_NAIVE))
    hv_text_add(&self->obstacles,
                "- the public code would predict other actions: it resizes pictures in another way (image_resize)\n");
  for (int32_t i = 0; i < config->num_towers; i++) missing += count_missing(self, &config->vision[i]);
  if (missing > 0)
    hv_text_add(&self->obstacles,
                "- %d tensors of the vision towers are missing: no prediction uses them, but the public code requires "
                "them (the last block, the last norm, SigLIP's attn_pool)\n",
                missing);
  for (int m = FIRST_SMALL; hv_config_has_diffusion(config) && m < MODULES; m++) {
    size_t i = 0;
    while (i < self->count && module_of(self->tensors[i].name) != m) i++;
    if (i == self->count)
      hv_text_add(
          &self->obstacles,
          "- %s is missing: without it the public code leaves every small module (x_embedder, t_embedder, …) at "
          "random values\n",
          modules[m]);
  }
}

hv_status hv_public_checkpoint_open(const hv_export_source *source, const hv_dtype *to, hv_public_checkpoint **out) {
  *out = NULL;
  hv_public_checkpoint *self = calloc(1, sizeof *self);
  if (!self) return hv_error_memory("a checkpoint");
  self->source = source;
  self->to = to;
  name_file(self);
  hv_status status = list_tensors(self);
  if (!status) find_obstacles(self);
  if (!status && self->obstacles.failed) status = hv_error_memory("a checkpoint");
  if (status) {
    hv_public_checkpoint_close(self);
    return status;
  }
  *out = self;
  return HV_OK;
}

void hv_public_checkpoint_close(hv_public_checkpoint *checkpoint) {
  if (!checkpoint) return;
  hv_text_free(&checkpoint->obstacles);
  free(checkpoint->tensors);
  free(checkpoint);
}

const char *hv_public_checkpoint_obstacles(const hv_public_checkpoint *checkpoint) {
  return hv_text_string(&checkpoint->obstacles);
}

/* The keys that the public code reads, and under `hybridvla` the config.json of the model directory; the same in YAML.
 */
static hv_status write_config(const hv_public_checkpoint *self, const char *path, const char *yaml) {
  const hv_config *config = &self->source->directory.model.config;
  json_t *own;
  HV_TRY(hv_model_config_to_json(&self->source->directory.model, &own));
  json_t *document =
      json_pack("{s:{s:s}, s:i, s:i, s:b, s:i, s:o}", "vla", "base_vlm",
                is_phi(self) ? "phi-2+3b" : "prism-dinosiglip-224px+7b", "action_dim", config->action_dim,
                "future_action_window_size", config->action_chunk - 1, "use_diff", hv_config_has_diffusion(config),
                "need_to_sub", (is_phi(self) ? PHI_TOKENS : LLAMA_TOKENS) - config->action_base, "hybridvla", own);
  if (!document) return hv_error_memory(path);
  hv_status status = hv_json_save(path, document);
  if (!status) status = hv_yaml_save(yaml, NULL, document);
  json_decref(document);
  return status;
}

static hv_status write_card(const hv_public_checkpoint *self, const char *path) {
  hv_text usage = {0}, card = {0};
  hv_text_add(&usage,
              "The public HybridVLA code loads this folder by the path of `checkpoints/%s`. The path must not contain "
              "`openvla`:\nthat code would expect another format. There is no tokenizer: that code fetches `%s`. With "
              "PyTorch alone:\n\n```python\nmodel = torch.load(\"checkpoints/%s\", weights_only=True)[\"model\"]\n"
              "```\n",
              self->file, is_phi(self) ? "microsoft/phi-2" : "meta-llama/Llama-2-7b-hf", self->file);
  if (self->obstacles.length > 0)
    hv_text_add(&usage, "\nNot usable by the public code:\n\n%s", hv_text_string(&self->obstacles));
  hv_status status = usage.failed ? hv_error_memory(path) : HV_OK;
  if (!status) status = hv_export_card(self->source, self->to, hv_text_string(&usage), &card);
  if (!status) status = hv_write_file_atomic(path, hv_text_string(&card), card.length);
  hv_text_free(&usage);
  hv_text_free(&card);
  return status;
}

typedef struct writing {
  const hv_public_checkpoint *checkpoint;
  hv_torch_progress *progress;
  void *context;
} writing;

static hv_status write_folder(const char *directory, void *context) {
  const writing *job = context;
  const hv_public_checkpoint *self = job->checkpoint;
  char *config = hv_path_join(directory, "config.json"), *statistics = hv_model_directory_statistics(directory);
  char *yaml = hv_path_join(directory, "config.yaml"), *card = hv_path_join(directory, "README.md"),
       *folder = hv_path_join(directory, "checkpoints");
  char *file = folder ? hv_path_join(folder, self->file) : NULL;
  hv_status status = HV_OK;
  if (!config || !yaml || !statistics || !card || !file) {
    status = hv_error_memory(directory);
    goto done;
  }
  HV_CHECK(write_config(self, config, yaml));
  HV_CHECK(hv_json_save(statistics, self->source->statistics));
  HV_CHECK(write_card(self, card));
  HV_CHECK(hv_make_directories(folder));
  HV_CHECK(hv_torch_file_write(file, self->tensors, self->count, job->progress, job->context));
  status = hv_sync_directory(folder);
done:
  free(config);
  free(yaml);
  free(statistics);
  free(card);
  free(folder);
  free(file);
  return status;
}

hv_status hv_public_checkpoint_write(const hv_public_checkpoint *checkpoint, const char *out,
                                     hv_torch_progress *progress, void *context) {
  writing job = {.checkpoint = checkpoint, .progress = progress, .context = context};
  return hv_error_context(hv_write_directory(out, HV_LEFTOVER_REFUSE, write_folder, &job),
                          "cannot write the checkpoint");
}

hv_status hv_public_checkpoint_verify(const hv_public_checkpoint *checkpoint, const char *out,
                                      hv_torch_progress *progress, void *context) {
  char name[NAME_SIZE + 16];
  snprintf(name, sizeof name, "checkpoints/%s", checkpoint->file);
  char *path = hv_path_join(out, name);
  if (!path) return hv_error_memory("a path");
  hv_status status = hv_torch_file_compare(path, checkpoint->tensors, checkpoint->count, progress, context);
  free(path);
  return status;
}
