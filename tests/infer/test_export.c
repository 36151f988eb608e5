/* hvla-infer export on tiny models: what an exported directory contains, what --verify compares, and that a refused
 * export leaves nothing behind. */
#include <math.h>
#include <sys/stat.h>

#include "core/io/json.h"
#include "core/io/model_directory.h"
#include "core/io/yaml.h"
#include "infer/verify.h"
#include "tests/check.h"
#include "tests/infer/program.h"
#include "tests/infer/tiny_directory.h"

static char *folder;

static int enter(void **state) {
  if (make_folder(state)) return -1;
  folder = *state;
  write_tiny_directory(in_folder(folder, "model"), &(tiny_directory_options){.small = 1, .keys = 2});
  return 0;
}

/* Runs an export, which must succeed; returns what it prints. */
static char *export_to(const char *arguments) {
  char *out, *errors;
  int code = run_infer(folder, arguments, &out, &errors);
  if (code) fail_msg("hvla-infer %s: exit code %d: %s", arguments, code, errors);
  assert_string_equal(errors, "");
  free(errors);
  return out;
}

static void export_quietly(const char *arguments) {
  free(export_to(arguments));
}

/* `name` must contain exactly the tensors of the model, in `dtype`, rounded to nearest even. */
static void assert_tensors(const char *name, hv_dtype dtype) {
  hv_safetensors *before, *after;
  assert_ok(hv_safetensors_open(in_folder(folder, "model"), &before));
  assert_ok(hv_safetensors_open(in_folder(folder, name), &after));
  assert_int_equal(hv_safetensors_count(before), hv_safetensors_count(after));
  for (int32_t i = 0; i < hv_safetensors_count(before); i++) {
    const hv_file_tensor *a = hv_safetensors_get(before, i), *b = hv_safetensors_get(after, i);
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->rank, b->rank);
    assert_memory_equal(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape);
    assert_int_equal(b->dtype, dtype);
    assert_int_equal((uintptr_t)b->data % hv_dtype_size(dtype), 0);
    void *expected = malloc(b->size + 1);
    assert_non_null(expected);
    hv_dtype_convert(dtype, expected, a->dtype, a->data, a->count);
    assert_memory_equal(expected, b->data, b->size);
    free(expected);
  }
  hv_safetensors_close(before);
  hv_safetensors_close(after);
}

#define PREDICT                                                                                                        \
  "--image 'front=" HVLA_SOURCE_DIR "/docs/images/lift.png' --image 'wrist=" HVLA_SOURCE_DIR "/docs/images/lift.png'"  \
  " --instruction 'lift it' --state=0.3,-1.5,0.2,0.9,2.5 --unnorm-key drawer --json --model "

static json_t *predict(const char *name) {
  char arguments[1024];
  snprintf(arguments, sizeof arguments, "predict " PREDICT "%s", name);
  json_t *found = infer_json(folder, arguments);
  json_object_del(found, "timing_ms");
  return found;
}

static void a_copy_is_the_same_model(void **state) {
  (void)state;
  char *said = export_to("export --model model --out copy");
  assert_non_null(strstr(said, "copy: "));
  assert_non_null(strstr(said, "in no run directory"));
  free(said);
  assert_int_equal(count_entries(in_folder(folder, "copy")), 5);
  static const char *const files[] = {"config.json", "tokenizer.model", "dataset_statistics.json"};
  for (int i = 0; i < 3; i++) {
    char *a = hv_path_join(in_folder(folder, "model"), files[i]),
         *b = hv_path_join(in_folder(folder, "copy"), files[i]);
    assert_true(same_bytes(a, b));
    free(a);
    free(b);
  }
  assert_tensors("copy", HV_F32);
  json_t *a = predict("model"), *b = predict("copy");
  assert_true(json_equal(a, b));
  json_decref(a);
  json_decref(b);
}

static void dtypes_are_rounded_to_nearest(void **state) {
  (void)state;
  export_quietly("export --model model --out bf16 --dtype bf16");
  assert_tensors("bf16", HV_BF16);
  export_quietly("export --model model/ --out fp16 --dtype=fp16");
  assert_tensors("fp16", HV_F16);
  json_decref(predict("fp16"));
  export_quietly("export --model bf16 --out wide --dtype fp32");
  json_t *a = predict("bf16"), *b = predict("wide");
  assert_true(json_equal(a, b));
  json_decref(a);
  json_decref(b);
}

static void shards_follow_hugging_faces_convention(void **state) {
  (void)state;
  enum { LIMIT = 100000 };
  assert_int_equal(mkdir(in_folder(folder, "shards"), 0777), 0); /* an empty directory is accepted */
  export_quietly("export --model model --out shards --shard-size 100000");
  assert_tensors("shards", HV_F32);
  json_t *index;
  assert_ok(hv_json_load(in_folder(folder, "shards/model.safetensors.index.json"), &index));
  hv_safetensors *whole;
  assert_ok(hv_safetensors_open(in_folder(folder, "model"), &whole));
  int64_t total = 0;
  for (int32_t i = 0; i < hv_safetensors_count(whole); i++) total += (int64_t)hv_safetensors_get(whole, i)->size;
  assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")), total);
  assert_int_equal(json_object_size(json_object_get(index, "weight_map")), hv_safetensors_count(whole));
  hv_safetensors_close(whole);
  json_decref(index);
  int files = count_entries(in_folder(folder, "shards")) - 5;
  assert_true(files >= 4);
  for (int i = 1; i <= files; i++) {
    char name[64];
    hv_safetensors *shard;
    snprintf(name, sizeof name, "shards/model-%05d-of-%05d.safetensors", i, files);
    assert_ok(hv_safetensors_open(in_folder(folder, name), &shard));
    int64_t bytes = 0;
    for (int32_t t = 0; t < hv_safetensors_count(shard); t++) bytes += (int64_t)hv_safetensors_get(shard, t)->size;
    assert_true(bytes <= LIMIT || hv_safetensors_count(shard) == 1);
    hv_safetensors_close(shard);
  }
  json_t *a = predict("model"), *b = predict("shards");
  assert_true(json_equal(a, b));
  json_decref(a);
  json_decref(b);
  export_quietly("export --model shards --out joined --dtype fp32");
  assert_true(same_bytes(in_folder(folder, "joined/model.safetensors"), in_folder(folder, "copy/model.safetensors")));
}

/* Makes a run directory with a model, whose config.json has this action_chunk. */
static void make_run(const char *name, int64_t action_chunk) {
  char path[512];
  assert_ok(hv_make_directories(in_folder(folder, name)));
  snprintf(path, sizeof path, "%s/%s/model", folder, name);
  write_tiny_directory(path, &(tiny_directory_options){.keys = 1});
  char text[512];
  snprintf(text, sizeof text,
           "# by the test\nmodel: {action_dim: 7, action_chunk: %d, llm: {rms_norm_eps: 1.0e-5}}\n"
           "data: {instruction: stack the cans}\n",
           (int)action_chunk);
  snprintf(path, sizeof path, "%s/config.yaml", name);
  write_text(in_folder(folder, path), text);
  snprintf(path, sizeof path, "%s/metrics.jsonl", name);
  write_text(in_folder(folder, path),
             "{\"step\": 10, \"loss\": 3.5, \"held_out_loss\": 3.75, \"error_diffusion\": 0.5}\n"
             "{\"step\": 20, \"loss\": 2.5, \"held_out_loss\": 2.625, \"error_diffusion\": 0.3125, "
             "\"error_diffusion_dims\": [0.25, 0.375], \"error_mean_action\": 0.75}\n"
             "{\"step\": 30, \"loss\": 1.5}\n"
             "{\"step\": 40, \"lo");
}

static void assert_card(const char *name, const char *const *words, const char *const *absent) {
  char *card = read_file(in_folder(folder, name));
  for (; *words; words++)
    if (!strstr(card, *words)) fail_msg("%s lacks \"%s\":\n%s", name, *words, card);
  for (; absent && *absent; absent++)
    if (strstr(card, *absent)) fail_msg("%s should not say \"%s\":\n%s", name, *absent, card);
  free(card);
}
#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void the_card_tells_what_is_known(void **state) {
  (void)state;
  make_run("run", 2);
  export_quietly("export --model run/model --out told --dtype bf16");
  const char *const *known = WORDS("commit ", "# by the test\nmodel: {action_dim: 7", "| `lift` | 100 | 3 | 7 | 5 |",
                                   "30 steps; the last one's loss was 1.5000", "after step 20: loss 2.6250",
                                   "| diffusion | 0.3125 | 0.250 0.375 |", "| always the mean action | 0.7500 |");
  assert_card("told/README.md", known, WORDS("Not known"));
  assert_card("told/README.md",
              WORDS("bf16", "--image front=front.png --image wrist=wrist.png", "--instruction \"stack the cans\"",
                    "--unnorm-key lift", "--state \""),
              NULL);
  export_quietly("export --model told --out told-again");
  assert_card("told-again/README.md", known, WORDS("Not known"));

  /* The best model comes from an earlier step than the newest one. */
  must_shell("cp -r '%s/run/model' '%s/run/best'", folder, folder);
  write_text(in_folder(folder, "run/best.json"), "{\"step\": 10, \"metric\": \"loss\", \"value\": 3.75}");
  export_quietly("export --model run/best --out told-best");
  assert_card("told-best/README.md", WORDS("10 steps; the last one's loss was 3.5000", "after step 10: loss 3.7500"),
              WORDS("2.6250"));

  /* If best.json is damaged, the step is not known. */
  write_text(in_folder(folder, "run/best.json"), "{\"step\": 10");
  char *said = export_to("export --model run/best --out unknown-best");
  assert_non_null(strstr(said, "run/best.json is not valid JSON"));
  free(said);
  assert_card("unknown-best/README.md", WORDS("# by the test\nmodel: {action_dim: 7"),
              WORDS("3.7500", "2.6250", "1.5000"));

  assert_card("copy/README.md", WORDS("| `drawer` | 100 | 3 |", "Not known"), WORDS("```yaml"));
  make_run("other", 1);
  said = export_to("export --model other/model --out doubted");
  assert_non_null(strstr(said, "configures another model"));
  assert_non_null(strstr(said, "in no run directory with a usable config.yaml"));
  free(said);
  assert_card("doubted/README.md", WORDS("Not known", "configures another model"), WORDS("```yaml", "2.6250"));
}

/* The folder must contain nothing of this name, and no temporary file of it. */
static void assert_absent(const char *name) {
  char partial[128];
  snprintf(partial, sizeof partial, "%s.partial", name);
  assert_false(hv_file_exists(in_folder(folder, name)));
  assert_false(hv_file_exists(in_folder(folder, partial)));
}

/* Writes model/ under another name, with one more tensor, "odd", of `size` bytes. */
static void write_odd_model(const char *name, const char *dtype, const void *data, size_t size) {
  hv_safetensors *tensors;
  hv_text text = {0};
  char file[128];
  must_shell("cp -r '%s/model' '%s/%s'", folder, folder, name);
  assert_ok(hv_safetensors_open(in_folder(folder, "model"), &tensors));
  json_t *header = json_object();
  hv_text_add(&text, "%8s", "");
  json_int_t end = (json_int_t)size, count = end / (strcmp(dtype, "F32") ? 1 : 4);
  json_object_set_new(header, "odd",
                      json_pack("{s:s, s:[I], s:[i, I]}", "dtype", dtype, "shape", count, "data_offsets", 0, end));
  for (int32_t i = 0; i < hv_safetensors_count(tensors); i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(tensors, i);
    json_t *extents = json_array();
    json_int_t begin = end;
    end += (json_int_t)tensor->size;
    for (int32_t d = 0; d < tensor->rank; d++) json_array_append_new(extents, json_integer(tensor->shape[d]));
    json_object_set_new(
        header, tensor->name,
        json_pack("{s:s, s:o, s:[I, I]}", "dtype", tensor->dtype_name, "shape", extents, "data_offsets", begin, end));
  }
  char *json = json_dumps(header, JSON_COMPACT);
  hv_text_add_bytes(&text, json, strlen(json));
  for (int i = 0; i < 8; i++) text.data[i] = (char)(strlen(json) >> (8 * i));
  hv_text_add_bytes(&text, data, size);
  for (int32_t i = 0; i < hv_safetensors_count(tensors); i++)
    hv_text_add_bytes(&text, hv_safetensors_get(tensors, i)->data, hv_safetensors_get(tensors, i)->size);
  snprintf(file, sizeof file, "%s/model.safetensors", name);
  assert_ok(hv_write_file_atomic(in_folder(folder, file), text.data, text.length));
  free(json);
  hv_text_free(&text);
  json_decref(header);
  hv_safetensors_close(tensors);
}

static void values_that_do_not_fit_are_named(void **state) {
  (void)state;
  static const float values[] = {1, 65504, INFINITY, -70000};
  write_odd_model("large", "F32", values, sizeof values);
  infer_refuses(folder, "export --model large --out never --dtype fp16", "large/model.safetensors", "tensor odd",
                "element 3", "-70000", "fp16");
  assert_absent("never");
  export_quietly("export --model large --out large-bf16 --dtype bf16"); /* extra tensors are exported too */
  hv_safetensors *after;
  const hv_file_tensor *odd;
  assert_ok(hv_safetensors_open(in_folder(folder, "large-bf16"), &after));
  assert_ok(hv_safetensors_require(after, "odd", &odd));
  float back[4];
  hv_file_tensor_read_f32(odd, 0, 4, back);
  assert_true(back[2] == INFINITY && fabsf(back[3] + 70000) < 300);
  hv_safetensors_close(after);
  write_odd_model("float8", "F8_E4M3", "abc", 3);
  infer_refuses(folder, "export --model float8 --out never", "float8", "dtypes that are not supported",
                "odd is F8_E4M3");
  assert_absent("never");
}

/* Writes model/ under another name, with one tensor (or only its last value) multiplied by `factor`. */
static void write_changed_model(const char *name, const char *changed, float factor, bool last) {
  hv_safetensors *tensors;
  hv_safetensors_writer *writer;
  char path[512];
  must_shell("cp -r '%s/model' '%s/%s'", folder, folder, name);
  snprintf(path, sizeof path, "%s/%s/model.safetensors", folder, name);
  assert_ok(hv_safetensors_open(in_folder(folder, "model"), &tensors));
  assert_ok(hv_safetensors_writer_open(path, &writer));
  for (int32_t i = 0; i < hv_safetensors_count(tensors); i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(tensors, i);
    assert_ok(hv_safetensors_writer_declare(writer, tensor->name, HV_F32, tensor->rank, tensor->shape));
  }
  for (int32_t i = 0; i < hv_safetensors_count(tensors); i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(tensors, i);
    float *values = malloc(tensor->size), times = strcmp(tensor->name, changed) == 0 ? factor : 1;
    assert_non_null(values);
    hv_file_tensor_read_f32(tensor, 0, tensor->count, values);
    for (int64_t k = last ? tensor->count - 1 : 0; k < tensor->count; k++) values[k] *= times;
    assert_ok(hv_safetensors_writer_write(writer, values, tensor->size));
    free(values);
  }
  assert_ok(hv_safetensors_writer_commit(writer));
  hv_safetensors_close(tensors);
}

static void write_scaled_model(const char *name, const char *scaled, float factor) {
  write_changed_model(name, scaled, factor, false);
}

static void assert_verified(const char *arguments, const char *words) {
  char *said = export_to(arguments);
  if (!strstr(said, words)) fail_msg("hvla-infer %s lacks \"%s\": %s", arguments, words, said);
  free(said);
}

static void verification_predicts_with_both(void **state) {
  (void)state;
  write_tiny_directory(in_folder(folder, "noise"),
                       &(tiny_directory_options){.small = 1, .objective = "diffusion", .keys = 1, .no_state = 1});
  write_tiny_directory(in_folder(folder, "words"),
                       &(tiny_directory_options){.small = 1, .objective = "autoregressive", .keys = 1});
  assert_verified("export --verify --model model --out v1", "9 predictions in 3 modes are equal to the bit");
  assert_verified("export --verify --model noise --out v2 --shard-size 1", "3 predictions in 1 modes are equal");
  assert_verified("export --verify --model words --out v3 --dtype fp32", "3 predictions in 1 modes are equal");
  assert_verified("export --verify --model model --out v4 --dtype bf16",
                  "allowed: 0.1), 84 of 84 action tokens are the same");
  assert_verified("export --verify --model noise --out v5 --dtype fp16", "allowed: 0.02)");
  assert_verified("export --verify --model v4 --out v6 --dtype fp32", "equal to the bit");
  assert_verified("export --verify --model v5 --out v5-bf16 --dtype bf16",
                  "allowed: 0.1)"); /* of the same width, but rounded */

  /* With nine diffusion steps, no stride gives the default of four denoising steps. */
  must_shell("cd '%s' && cp -r noise nine && sed -i 's/\"steps\": *100/\"steps\": 9/' nine/config.json", folder);
  assert_verified("export --verify --model nine --out v10", "3 predictions in 1 modes are equal");

  /* The noise head gives values so far out of range that rounding to bf16 decides to which end an action is clipped. */
  write_scaled_model("touchy", "final_layer.mlp.fc2.weight", 30);
  infer_fails(folder, 1, "export --verify --model touchy --out v7 --dtype bf16", "verification failed", "v7 predicts",
              "mode", "allowed: 0.1");
  write_tiny_directory(in_folder(folder, "silent"), &(tiny_directory_options){.small = 1, .keys = 1, .not_finite = 1});
  infer_refuses(folder, "export --verify --model silent --out v8", "silent cannot predict");
  infer_refuses(folder, "export --verify --model model --out v9 --device abacus", "abacus");
}

/* Puts the statistics of another robot, with two action dimensions, before the model's own. */
static void put_another_robot_first(const char *path) {
  static const char *const members[] = {"mean", "std", "min", "max", "q01", "q99", "mask"};
  json_t *own, *all = json_object();
  assert_ok(hv_json_load(path, &own));
  json_t *other = json_deep_copy(json_object_get(own, "lift"));
  for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
    json_t *values = json_object_get(json_object_get(other, "action"), members[i]);
    while (json_array_size(values) > 2) assert_int_equal(json_array_remove(values, 2), 0);
  }
  assert_int_equal(json_object_set_new(all, "other", other), 0);
  assert_int_equal(json_object_update(all, own), 0);
  assert_ok(hv_json_save(path, all));
  json_decref(own);
  json_decref(all);
}

static void the_models_own_robot_is_predicted_for(void **state) {
  (void)state;
  write_tiny_directory(in_folder(folder, "second"), &(tiny_directory_options){.small = 1, .keys = 1});
  put_another_robot_first(in_folder(folder, "second/dataset_statistics.json"));
  assert_verified("export --verify --model second --out own", "9 predictions in 3 modes are equal to the bit");
  assert_card("own/README.md", WORDS("| `other` |", "--unnorm-key lift"), NULL);
}

static void verification_sees_what_differs(void **state) {
  (void)state;
  hv_safetensors *model, *other, *same;
  hv_text said = {0};
  static const hv_dtype bf16 = HV_BF16;
  write_scaled_model("scaled", "final_layer.mlp.fc1.weight", 1.001f);
  assert_ok(hv_safetensors_open(in_folder(folder, "model"), &model));
  assert_ok(hv_safetensors_open(in_folder(folder, "scaled"), &other));
  assert_ok(hv_safetensors_open(in_folder(folder, "bf16"), &same));
  assert_error(hv_verify_tensors(model, other, NULL), "1 of 69 tensors", "final_layer.mlp.fc1.weight has other values");
  hv_safetensors_close(other);
  write_changed_model("ending", "final_layer.mlp.fc1.weight", 1.001f, true);
  assert_ok(hv_safetensors_open(in_folder(folder, "ending"), &other));
  assert_error(hv_verify_tensors(model, other, NULL), "1 of 69 tensors", "final_layer.mlp.fc1.weight has other values");
  assert_error(hv_verify_tensors(model, same, NULL), "69 of 69 tensors", "another dtype");
  assert_ok(hv_verify_tensors(model, same, &bf16));
  hv_safetensors_close(same);
  assert_ok(hv_safetensors_open(in_folder(folder, "large"), &same));
  assert_error(hv_verify_tensors(model, same, NULL), "holds 70 tensors", "69");
  assert_error(hv_verify_tensors(same, model, NULL), "1 of 70 tensors", "odd is missing");
  hv_safetensors_close(model);
  hv_safetensors_close(other);
  hv_safetensors_close(same);

  json_t *statistics;
  assert_ok(hv_json_load(in_folder(folder, "model/dataset_statistics.json"), &statistics));
  hv_verification what = {
      .before = in_folder(folder, "model"), .after = in_folder(folder, "scaled"), .statistics = statistics};
  assert_error(hv_verify_predictions(&what, &said), "scaled predicts differently", "observation 0, mode ensemble");
  what.tolerance = 0.1;
  assert_ok(hv_verify_predictions(&what, &said));
  must_shell("cd '%s' && cp -r model short && sed -i 's/\"steps\": *[0-9]*/\"steps\": 2/' short/config.json", folder);
  what.before = what.after = in_folder(folder, "short"); /* fewer diffusion steps than are denoised by default */
  assert_ok(hv_verify_predictions(&what, &said));
  must_shell("cd '%s' && cp -r model broken && echo > broken/config.json", folder);
  what.after = in_folder(folder, "broken");
  hv_status broken = hv_verify_predictions(&what, &said);
  assert_int_equal(hv_status_code(broken), HV_ERR_NO);
  assert_error(broken, "broken cannot predict");
  assert_ok(hv_verify_copy(in_folder(folder, "model/tokenizer.model"), in_folder(folder, "short/tokenizer.model")));
  FILE *copy = fopen(in_folder(folder, "short/tokenizer.model"), "r+e");
  assert_non_null(copy);
  assert_int_equal(fputc('?', copy), '?'); /* one byte is changed */
  assert_int_equal(fclose(copy), 0);
  assert_error(hv_verify_copy(in_folder(folder, "model/tokenizer.model"), in_folder(folder, "short/tokenizer.model")),
               "tokenizer.model differs from");
  assert_non_null(strstr(said.data, "allowed: 0.1"));
  hv_text_free(&said);
  json_decref(statistics);
}

static void the_public_folder_is_the_public_codes(void **state) {
  (void)state;
  char *said = export_to("export --model run/model --out public --format public-pt --verify");
  assert_non_null(strstr(said, "not usable by the public code:\n- its sizes are not"));
  assert_non_null(strstr(said, "27 tensors of the vision towers are missing")); /* 12 of a block, 2 of a norm, 13 */
  assert_non_null(strstr(said, "verified: every tensor"));
  free(said);
  assert_int_equal(count_entries(in_folder(folder, "public")), 5);
  assert_true(hv_file_exists(in_folder(folder, "public/checkpoints/step-000030-epoch-00-loss=1.5000.pt")));
  assert_card("public/README.md", WORDS("torch.load(\"checkpoints/step-000030", "\n- 27 tensors", "after step 20"),
              NULL);
  json_t *config, *yaml, *own, *statistics, *expected;
  assert_ok(hv_json_load(in_folder(folder, "public/config.json"), &config));
  assert_ok(hv_yaml_load(in_folder(folder, "public/config.yaml"), &yaml));
  assert_ok(hv_json_load(in_folder(folder, "run/model/config.json"), &own));
  json_t *wanted =
      json_pack("{s:{s:s}, s:i, s:i, s:b, s:i, s:O}", "vla", "base_vlm", "prism-dinosiglip-224px+7b", "action_dim", 7,
                "future_action_window_size", 1, "use_diff", 1, "need_to_sub", 0, "hybridvla", own);
  assert_true(json_equal(config, wanted));
  assert_true(json_equal(yaml, wanted));
  assert_ok(hv_json_load(in_folder(folder, "public/dataset_statistics.json"), &statistics));
  assert_ok(hv_json_load(in_folder(folder, "run/model/dataset_statistics.json"), &expected));
  assert_true(json_equal(statistics, expected));
  json_decref(wanted);
  json_decref(config);
  json_decref(yaml);
  json_decref(own);
  json_decref(statistics);
  json_decref(expected);

  said = export_to("export --model words --out my-openvla --format public-pt --dtype bf16");
  assert_non_null(strstr(said, "rename my-openvla"));
  assert_null(strstr(said, "verified"));
  free(said);
  assert_true(hv_file_exists(in_folder(folder, "my-openvla/checkpoints/hybridvla.pt")));
  make_run("diverged", 2);
  write_text(in_folder(folder, "diverged/metrics.jsonl"), "{\"step\": 10, \"loss\": 1e80}\n");
  json_t *other;
  assert_ok(hv_json_load(in_folder(folder, "diverged/model/config.json"), &other));
  assert_int_equal(json_object_set_new(other, "final_norm", json_string("rms")), 0);
  assert_int_equal(json_object_set_new(other, "image_resize", json_string("letterbox")), 0);
  assert_ok(hv_json_save(in_folder(folder, "diverged/model/config.json"), other));
  json_decref(other);
  said = export_to("export --model diverged/model --out diverged-public --format public-pt");
  assert_non_null(strstr(said, "predict other actions: its final_norm"));
  assert_non_null(strstr(said, "predict other actions: it resizes pictures"));
  free(said);
  assert_true(hv_file_exists(in_folder(folder, "diverged-public/checkpoints/hybridvla.pt")));
  infer_refuses(folder, "export --model large --out never --format public-pt", "tensor odd", "no module");
  write_scaled_model("loud", "final_layer.mlp.fc2.weight", 1e6f);
  infer_refuses(folder, "export --model loud --out never --format public-pt --dtype fp16", "final_layer.mlp.fc2.weight",
                "too large for fp16");
  char *out, *errors;
  assert_int_equal(run_infer_after("ulimit -f 600; trap '' XFSZ;", folder,
                                   "export --model model --out never --format public-pt", &out, &errors),
                   2);
  assert_non_null(strstr(errors, "hybridvla.pt"));
  assert_absent("never");
  free(out);
  free(errors);
}

static void whole_numbers_and_flags_stay_as_they_are(void **state) {
  (void)state;
  static const char bytes[] = {0, 1, 1, 0, 1}, *const dtypes[] = {"U8", "I8", "BOOL"};
  for (int i = 0; i < 3; i++) {
    hv_safetensors *after;
    const hv_file_tensor *odd;
    must_shell("cd '%s' && rm -rf counted counted-bf16", folder);
    write_odd_model("counted", dtypes[i], bytes, sizeof bytes);
    export_quietly("export --model counted --out counted-bf16 --dtype bf16 --verify");
    assert_ok(hv_safetensors_open(in_folder(folder, "counted-bf16"), &after));
    assert_ok(hv_safetensors_require(after, "odd", &odd));
    assert_string_equal(odd->dtype_name, dtypes[i]);
    assert_memory_equal(odd->data, bytes, sizeof bytes);
    hv_safetensors_close(after);
  }
}

static void what_cannot_be_exported_leaves_nothing(void **state) {
  (void)state;
  write_text(in_folder(folder, "file"), "x");
  assert_ok(hv_make_directories(in_folder(folder, "full")));
  write_text(in_folder(folder, "full/letter"), "x");
  infer_refuses(folder, "export --model model", "--out");
  infer_refuses(folder, "export --model nowhere --out never", "nowhere");
  assert_ok(hv_make_directories(in_folder(folder, "kept.partial")));
  infer_refuses(folder, "export --model model --out kept", "kept.partial exists already", "remove it");
  assert_ok(hv_make_directories(in_folder(folder, "ready")));
  export_quietly("export --model model --out ready --verify");
  infer_refuses(folder, "export --model model --out full", "full is not empty");
  infer_refuses(folder, "export --model model --out file", "file: Not a directory");
  infer_refuses(folder, "export --model model --out ''", "--out: must be a path, not an empty string");
  infer_refuses(folder, "export --model model --out model", "not empty");
  infer_refuses(folder, "export --model model --out model/in/it", "in the model directory");
  infer_refuses(folder, "export --model model --out ./model/../model/x", "in the model directory");
  infer_refuses(folder, "export --model model --out never --dtype fp8", "fp8", "bf16");
  infer_refuses(folder, "export --model model --out never --format gguf", "gguf", "safetensors");
  infer_refuses(folder, "export --model model --out never --shard-size 0", "shard-size");
  infer_refuses(folder, "export --model model --out never --shard-size 100000 --format public-pt", "--shard-size",
                "public-pt is one .pt file");
  char *out, *errors;
  assert_int_equal(run_infer_after("mkdir gone && cd gone && rmdir ../gone &&", folder,
                                   "export --model \"$OLDPWD/model\" --out x", &out, &errors),
                   2);
  if (!strstr(errors, "No such file or directory")) fail_msg("from a directory that was removed: %s", errors);
  free(out);
  free(errors);
  assert_false(hv_file_exists(in_folder(folder, "model/in")));
  static const char *const parts[] = {"tokenizer.model", "dataset_statistics.json", "config.json", "model.safetensors"};
  for (int i = 0; i < 4; i++) {
    must_shell("cd '%s' && rm -rf part && cp -r model part && rm 'part/%s'", folder, parts[i]);
    infer_refuses(folder, "export --model part --out never", "part", parts[i]);
  }
  assert_absent("never");
}

static void a_full_disk_leaves_nothing(void **state) {
  (void)state;
  char *out, *errors;
  int code = run_infer_after("ulimit -f 600; trap '' XFSZ;", folder, "export --model model --out never", &out, &errors);
  assert_int_equal(code, 2);
  assert_non_null(strstr(errors, "model.safetensors"));
  assert_absent("never");
  free(out);
  free(errors);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_copy_is_the_same_model),
      cmocka_unit_test(dtypes_are_rounded_to_nearest),
      cmocka_unit_test(shards_follow_hugging_faces_convention),
      cmocka_unit_test(the_card_tells_what_is_known),
      cmocka_unit_test(values_that_do_not_fit_are_named),
      cmocka_unit_test(verification_predicts_with_both),
      cmocka_unit_test(the_models_own_robot_is_predicted_for),
      cmocka_unit_test(verification_sees_what_differs),
      cmocka_unit_test(the_public_folder_is_the_public_codes),
      cmocka_unit_test(whole_numbers_and_flags_stay_as_they_are),
      cmocka_unit_test(what_cannot_be_exported_leaves_nothing),
      cmocka_unit_test(a_full_disk_leaves_nothing),
  };
  return cmocka_run_group_tests(tests, enter, remove_folder);
}
