#include "tests/train/program.h"

#include <fcntl.h>
#include <time.h>

#include "core/io/safetensors.h"
#include "tests/check.h"

#define PROGRAM HVLA_BINARY_DIR "/train/hvla-train"

int run_train(const char *prefix, const char *arguments, char **output) {
  return run_shell(output, NULL, "%s '%s' %s", prefix, PROGRAM, arguments);
}

void expect_train(int code, const char *arguments, ...) {
  char *output;
  int found = run_train("", arguments, &output);
  if (found != code) fail_msg("hvla-train %s ended with %d, not %d:\n%s", arguments, found, code, output);
  va_list words;
  va_start(words, arguments);
  for (const char *word; (word = va_arg(words, const char *)) != NULL;) {
    if (!strstr(output, word)) fail_msg("the output of hvla-train %s lacks \"%s\":\n%s", arguments, word, output);
  }
  va_end(words);
  free(output);
}

pid_t start_train(const char *arguments, const char *log) {
  return start_shell("exec '%s' %s > '%s' 2>&1", PROGRAM, arguments, log);
}

void wait_for_text(const char *path, const char *text) {
  char *content = NULL;
  for (int tries = 0; tries < 6000; tries++) {
    free(content);
    content = NULL;
    hv_status status = hv_read_text(path, 1 << 24, &content, NULL);
    bool found = !status && strstr(content, text);
    hv_status_free(status);
    if (found) {
      free(content);
      return;
    }
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
  }
  fail_msg("%s never held \"%s\", but:\n%s", path, text, content ? content : "nothing");
}

static const char tiny_config[] =
    "model:\n"
    "  model_type: hybridvla\n"
    "  action_dim: 7\n"
    "  action_chunk: 1\n"
    "  state_dim: 9\n"
    "  cameras: [front]\n"
    "  projector: gelu-mlp\n"
    "  vision:\n"
    "    - {prefix: vision_backbone.featurizer, width: 16, depth: 2, num_heads: 2, mlp_width: 32, patch_size: 14,\n"
    "       image_size: 28, layer_norm_eps: 1e-6, class_token: false, register_tokens: 0, layer_scale: false,\n"
    "       pre_norm: false, activation: gelu, image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5]}\n"
    "  llm: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2,\n"
    "        num_key_value_heads: 1, rms_norm_eps: 1e-5, rope_theta: 10000.0, vocab_size: 1024, hidden_act: silu}\n"
    "  diffusion: {steps: 100, schedule: squaredcos_cap_v2}\n"
    "  action_tokens: {base: 1000, bins: 256}\n"
    "  special_tokens: {bos: 1, eos: 2, pad: 1000, bod: 1001, eod: 1002, empty: 924}\n"
    "tokenizer: " HVLA_SOURCE_DIR "/tests/fixtures/tokenizer/small.model\n"
    "output: %s\n"
    "threads: 1\n"
    "log_interval: 1\n"
    "data:\n"
    "  files: " DEMONSTRATIONS "\n"
    "  train_split: train\n"
    "  cameras: {front: agentview_image}\n"
    "  state_keys: [robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos]\n"
    "  instruction: lift the cube\n"
    "train: {steps: 6, batch_size: 4, branches: 2, freeze: []}\n"
    "optimizer: {learning_rate: 3e-3, weight_decay: 0.01}\n"
    "checkpoint: {interval: 3}\n";

const char *write_tiny_config(const char *folder, const char *output) {
  static char path[512];
  char text[sizeof tiny_config + 512];
  snprintf(path, sizeof path, "%s/tiny.yaml", folder);
  snprintf(text, sizeof text, tiny_config, output);
  write_text(path, text);
  return path;
}

json_t *read_metrics(const char *run) {
  char *text = read_file(in_folder(run, "metrics.jsonl")), *rest = NULL;
  json_t *lines = json_array();
  for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
    json_error_t problem;
    json_t *object = json_loads(line, 0, &problem);
    if (!object) fail_msg("a line of metrics is no JSON: %s: %s", line, problem.text);
    assert_int_equal(json_array_append_new(lines, object), 0);
  }
  free(text);
  return lines;
}

json_t *last_metrics(const char *run, const char *key) {
  json_t *lines = read_metrics(run), *last = NULL;
  for (size_t i = json_array_size(lines); i > 0 && !last; i--) {
    json_t *line = json_array_get(lines, i - 1);
    if (json_object_get(line, key)) last = json_incref(line);
  }
  json_decref(lines);
  return last;
}

double number_in(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  if (!json_is_number(value)) fail_msg("%s is missing or no number", key);
  return json_number_value(value);
}

const char *in_run(const char *folder, const char *name, const char *file) {
  static char paths[4][1024];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s/%s", folder, name, file);
  return path;
}

const char *run_arguments(const char *folder, const char *name, const char *rest) {
  static char arguments[4096];
  const char *config = write_tiny_config(folder, "unset");
  int length =
      snprintf(arguments, sizeof arguments, "run --config '%s' --set 'output=%s/%s' %s", config, folder, name, rest);
  assert_true(length < (int)sizeof arguments);
  return arguments;
}

void assert_same_state(const char *folder, const char *a, const char *b, int step) {
  char file[128];
  snprintf(file, sizeof file, "checkpoints/step-%d/training.safetensors", step);
  if (!same_bytes(in_run(folder, a, file), in_run(folder, b, file))) fail_msg("%s and %s differ at %d", a, b, step);
  const char *model = "model/model.safetensors";
  if (!same_bytes(in_run(folder, a, model), in_run(folder, b, model))) fail_msg("%s's model is not %s's", a, b);
}

void flip_a_bit(const char *path) {
  int fd = open(path, O_RDWR);
  assert_true(fd >= 0);
  off_t middle = lseek(fd, 0, SEEK_END) / 2;
  unsigned char byte;
  assert_int_equal(pread(fd, &byte, 1, middle), 1);
  byte ^= 4;
  assert_int_equal(pwrite(fd, &byte, 1, middle), 1);
  close(fd);
}

void spoil_model(const char *path, float value) {
  hv_safetensors *file;
  const hv_file_tensor *bias;
  hv_mapping bytes;
  assert_ok(hv_safetensors_open(path, &file));
  assert_ok(hv_safetensors_require(file, "final_layer.mlp.fc2.bias", &bias));
  assert_ok(hv_map_file(path, &bytes));
  const uint8_t *at = memmem(bytes.data, bytes.size, bias->data, bias->size);
  assert_non_null(at);
  int fd = open(path, O_WRONLY);
  assert_int_equal(pwrite(fd, &value, sizeof value, at - bytes.data), sizeof value);
  close(fd);
  hv_unmap(&bytes);
  hv_safetensors_close(file);
}
