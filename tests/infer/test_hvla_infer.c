/* hvla-infer predict and bench on tiny models: what they print, what each option changes, and what is refused. */
#include <math.h>

#include "core/image/image.h"
#include "core/io/safetensors.h"
#include "tests/check.h"
#include "tests/infer/program.h"
#include "tests/infer/tiny_directory.h"

#define STATE "--state=0.3,-1.5,0.2,0.9,2.5"
#define PICTURES "--image front=front.png --image wrist=wrist.jpg"
#define GOOD "predict --model hybrid " PICTURES " --instruction 'Pick up the Red cube' " STATE " "

static char *folder;

/* Writes one of the image fixtures as a file. */
static void write_picture(const hv_safetensors *file, const char *name, const char *to) {
  const hv_file_tensor *bytes = hv_safetensors_find(file, name);
  assert_non_null(bytes);
  assert_ok(hv_write_file_atomic(in_folder(folder, to), bytes->data, bytes->size));
}

static void write_draws(const char *name, int values, int timestep_count) {
  hv_safetensors_writer *writer;
  float draws[2 * TINY_ACTIONS] = {0.5f, -1.0f, 0.25f};
  int32_t timestep[2] = {37, 0};
  assert_ok(hv_safetensors_writer_open(in_folder(folder, name), &writer));
  assert_ok(hv_safetensors_writer_declare(writer, "noise", HV_F32, 2, (int64_t[]){2, values}));
  assert_ok(hv_safetensors_writer_declare(writer, "ar_noise", HV_F32, 2, (int64_t[]){2, TINY_ACTIONS}));
  assert_ok(hv_safetensors_writer_declare(writer, "ar_timestep", HV_I32, 1, (int64_t[]){timestep_count}));
  assert_ok(hv_safetensors_writer_write(writer, draws, (size_t)values * 2 * sizeof *draws));
  assert_ok(hv_safetensors_writer_write(writer, draws, sizeof draws));
  assert_ok(hv_safetensors_writer_write(writer, timestep, (size_t)timestep_count * sizeof *timestep));
  assert_ok(hv_safetensors_writer_commit(writer));
}

static int enter(void **state) {
  hv_safetensors *file;
  if (make_folder(state)) return -1;
  folder = *state;
  write_tiny_directory(in_folder(folder, "hybrid"), &(tiny_directory_options){.small = 1, .keys = 2});
  write_tiny_directory(in_folder(folder, "full"), &(tiny_directory_options){.keys = 1});
  write_tiny_directory(in_folder(folder, "tokens"),
                       &(tiny_directory_options){.small = 1, .objective = "autoregressive", .keys = 1, .no_state = 1});
  assert_ok(hv_safetensors_open(HVLA_SOURCE_DIR "/tests/fixtures/image/pictures.safetensors", &file));
  write_picture(file, "file.rgba8.png", "front.png");
  write_picture(file, "file.yuv420_q75.jpg", "wrist.jpg");
  hv_safetensors_close(file);
  write_text(in_folder(folder, "broken.png"), "\x89PNG\r\n\x1a\nand then nothing");
  write_text(in_folder(folder, "empty.png"), "");
  write_draws("draws.safetensors", TINY_ACTIONS, 1);
  write_draws("narrow.safetensors", TINY_ACTIONS - 1, 1);
  write_draws("steps.safetensors", TINY_ACTIONS, 2);
  return 0;
}

static void assert_chunk(const json_t *document, const char *key) {
  const json_t *rows = json_object_get(document, key);
  if (json_array_size(rows) != TINY_CHUNK) fail_msg("%s has no %d rows", key, TINY_CHUNK);
  for (size_t h = 0; h < TINY_CHUNK; h++) {
    assert_int_equal(json_array_size(json_array_get(rows, h)), TINY_ACTIONS);
    for (size_t d = 0; d < TINY_ACTIONS; d++) assert_true(json_is_real(json_array_get(json_array_get(rows, h), d)));
  }
}

static void predicts_with_both_heads(void **state) {
  (void)state;
  json_t *found = infer_json(folder, GOOD "--unnorm-key lift --json");
  assert_chunk(found, "action");
  assert_chunk(found, "diffusion");
  assert_chunk(found, "diffusion_normalized");
  assert_chunk(found, "autoregressive");
  assert_int_equal(json_array_size(json_object_get(found, "tokens")), TINY_VALUES);
  assert_int_equal(json_array_size(json_object_get(found, "confidences")), TINY_VALUES);
  assert_string_equal(json_string_value(json_object_get(found, "used")), "diffusion");
  assert_true(json_equal(json_object_get(found, "action"), json_object_get(found, "diffusion")));
  double sum = 0;
  for (size_t i = 0; i < TINY_VALUES; i++) {
    json_int_t id = json_integer_value(json_array_get(json_object_get(found, "tokens"), i));
    assert_in_range(id, TINY_ACTION_BASE - 256, TINY_ACTION_BASE - 1);
    sum += json_real_value(json_array_get(json_object_get(found, "confidences"), i)) / TINY_VALUES;
  }
  double confidence = json_real_value(json_object_get(found, "confidence"));
  assert_true(fabs(confidence - sum) < 1e-6 && confidence > 0 && confidence < 0.96);
  static const char *const times[] = {"set_up", "input", "vision", "prefill", "denoise", "decode"};
  const json_t *timing = json_object_get(found, "timing_ms");
  double parts = 0, total = json_real_value(json_object_get(timing, "total"));
  for (int i = 0; i < 6; i++) {
    double part = json_real_value(json_object_get(timing, times[i]));
    assert_true(part > 0);
    parts += part;
  }
  assert_true(fabs(parts - total) < 1e-9 * total);

  json_t *mean = infer_json(folder, GOOD "--unnorm-key lift --json --theta 0");
  assert_string_equal(json_string_value(json_object_get(mean, "used")), "ensemble");
  assert_true(json_equal(json_object_get(mean, "diffusion"), json_object_get(found, "diffusion")));
  for (size_t i = 0; i < TINY_ACTIONS - 1; i++) {
    double both = json_real_value(json_array_get(json_array_get(json_object_get(mean, "diffusion"), 1), i)) +
                  json_real_value(json_array_get(json_array_get(json_object_get(mean, "autoregressive"), 1), i));
    double action = json_real_value(json_array_get(json_array_get(json_object_get(mean, "action"), 1), i));
    assert_true(fabs(action - both / 2) < 1e-9);
  }
  json_decref(mean);
  json_decref(found);
}

static void leaves_out_what_a_mode_does_not_compute(void **state) {
  (void)state;
  json_t *found = infer_json(folder, GOOD "--unnorm-key lift --json --mode diffusion");
  assert_non_null(json_object_get(found, "diffusion"));
  assert_null(json_object_get(found, "autoregressive"));
  assert_null(json_object_get(found, "tokens"));
  assert_null(json_object_get(found, "confidence"));
  json_decref(found);
  found = infer_json(folder, GOOD "--unnorm-key lift --json --mode autoregressive");
  assert_string_equal(json_string_value(json_object_get(found, "used")), "autoregressive");
  assert_null(json_object_get(found, "diffusion"));
  assert_null(json_object_get(found, "diffusion_normalized"));
  json_decref(found);
  found = infer_json(folder, "predict --model tokens " PICTURES " --instruction go --json");
  assert_string_equal(json_string_value(json_object_get(found, "used")), "autoregressive");
  json_decref(found);
}

/* A misspelt name in a file of draws is not read, and the draw comes from the seed instead: a warning says so. */
static void draws_that_nothing_reads_are_told(void **state) {
  (void)state;
  hv_safetensors_writer *writer;
  float draws[2 * TINY_ACTIONS] = {0};
  assert_ok(hv_safetensors_writer_open(in_folder(folder, "misspelt.safetensors"), &writer));
  assert_ok(hv_safetensors_writer_declare(writer, "noise", HV_F32, 2, (int64_t[]){2, TINY_ACTIONS}));
  assert_ok(hv_safetensors_writer_declare(writer, "ar_nose", HV_F32, 2, (int64_t[]){2, TINY_ACTIONS}));
  for (int i = 0; i < 2; i++) assert_ok(hv_safetensors_writer_write(writer, draws, sizeof draws));
  assert_ok(hv_safetensors_writer_commit(writer));
  char *out, *errors;
  assert_int_equal(run_infer(folder, GOOD "--unnorm-key lift --json --noise misspelt.safetensors", &out, &errors), 0);
  assert_non_null(strstr(errors, "warning"));
  assert_non_null(strstr(errors, "ar_nose is none of noise"));
  free(out);
  free(errors);
}

/* Each option changes the prediction as it should, and the same options give the same prediction. */
static void options_reach_the_policy(void **state) {
  (void)state;
  static const char *const variants[] = {"",
                                         "--seed 1",
                                         "--sampler ddpm",
                                         "--ddim-steps 10",
                                         "--noise draws.safetensors",
                                         "--dtype bf16",
                                         "--unnorm-key drawer"};
  enum { COUNT = sizeof variants / sizeof *variants };
  json_t *found[COUNT];
  for (int i = 0; i < COUNT; i++) {
    char arguments[512];
    const char *key = strstr(variants[i], "--unnorm-key") ? "" : "--unnorm-key lift";
    snprintf(arguments, sizeof arguments, GOOD "%s --mode diffusion --json %s", key, variants[i]);
    json_t *document = infer_json(folder, arguments), *again = infer_json(folder, arguments);
    found[i] = json_incref(json_object_get(document, "action"));
    assert_true(json_equal(found[i], json_object_get(again, "action")));
    for (int k = 0; k < i; k++) assert_false(json_equal(found[i], found[k]));
    json_decref(document);
    json_decref(again);
  }
  for (int i = 0; i < COUNT; i++) json_decref(found[i]);

  json_t *noise = infer_json(folder, GOOD "--unnorm-key lift --json --mode autoregressive --seed 3");
  json_t *random =
      infer_json(folder, GOOD "--unnorm-key lift --json --mode autoregressive --seed 3 --ar-condition random");
  json_t *denoised =
      infer_json(folder, GOOD "--unnorm-key lift --json --mode autoregressive --seed 3 --ar-condition denoised");
  assert_false(json_equal(json_object_get(noise, "confidences"), json_object_get(random, "confidences")));
  assert_false(json_equal(json_object_get(noise, "confidences"), json_object_get(denoised, "confidences")));
  assert_chunk(denoised, "diffusion_normalized");
  json_decref(noise);
  json_decref(random);
  json_decref(denoised);
}

static void threads_do_not_change_the_answer(void **state) {
  (void)state;
  json_t *one = infer_json(folder, GOOD "--unnorm-key lift --json --threads 1");
  json_t *two = infer_json(folder, GOOD "--unnorm-key lift --json --threads 2");
  json_object_del(one, "timing_ms");
  json_object_del(two, "timing_ms");
  assert_true(json_equal(one, two));
  json_decref(one);
  json_decref(two);
}

static void prints_a_table_for_people(void **state) {
  (void)state;
  char *out, *errors;
  assert_int_equal(run_infer(folder, GOOD "--unnorm-key lift", &out, &errors), 0);
  static const char *const words[] = {"action ", "diffusion ", "autoregressive ", "confidence ", "theta 0.96", " ms: "};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (!strstr(out, words[i])) fail_msg("the table lacks \"%s\":\n%s", words[i], out);
  assert_string_equal(errors, "");
  free(out);
  free(errors);
}

static void helps(void **state) {
  (void)state;
  static const char *const calls[] = {"--help", "predict --help", "bench --help", "export --help", "--version"};
  static const char *const words[] = {"predict", "--ar-condition", "--random-weights", "--shard-size", HVLA_VERSION};
  for (int i = 0; i < 5; i++) {
    char *out, *errors;
    assert_int_equal(run_infer(folder, calls[i], &out, &errors), 0);
    assert_non_null(strstr(out, words[i]));
    assert_string_equal(errors, "");
    free(out);
    free(errors);
  }
}

static void refuses_wrong_input(void **state) {
  (void)state;
#define WITHOUT_PICTURES "predict --model hybrid --unnorm-key lift --instruction go " STATE " "
#define WITHOUT_STATE "predict --model hybrid --unnorm-key lift --instruction go " PICTURES " "
  infer_refuses(folder, "", "predict, bench");
  infer_refuses(folder, "serve", "serve", "predict, bench");
  infer_refuses(folder, "predict", "--model", "--instruction");
  infer_refuses(folder, GOOD "--unnorm-kay lift", "--unnorm-kay", "did you mean --unnorm-key");
  infer_refuses(folder, GOOD "--unnorm-key lfit", "lfit", "lift", "drawer", "dataset_statistics.json");
  infer_refuses(folder, GOOD, "lift", "drawer");
  infer_refuses(folder, GOOD "--unnorm-key lift --mode both", "both", "ensemble");
  infer_refuses(folder, GOOD "--unnorm-key lift --ddim-steps 30", "DDIM with 30", "25 and 34");
  infer_refuses(folder, WITHOUT_PICTURES, "front, wrist");
  infer_refuses(folder, WITHOUT_PICTURES "--image front=front.png", "the camera wrist", "front, wrist");
  infer_refuses(folder, WITHOUT_PICTURES PICTURES " --image top=front.png", "no camera top", "front, wrist");
  infer_refuses(folder, WITHOUT_PICTURES "--image front.png", "--image front.png", "front=picture.png");
  infer_refuses(folder, WITHOUT_PICTURES "--image front=nothing.png --image wrist=wrist.jpg", "nothing.png",
                "No such file");
  infer_refuses(folder, WITHOUT_PICTURES "--image front=broken.png --image wrist=wrist.jpg", "broken.png");
  infer_refuses(folder, WITHOUT_PICTURES "--image front=empty.png --image wrist=wrist.jpg", "empty.png", "empty");
  infer_refuses(folder, WITHOUT_STATE, "0 values", "takes 5");
  infer_refuses(folder, WITHOUT_STATE "--state 1,2,3", "3 values", "takes 5");
  infer_refuses(folder, WITHOUT_STATE "--state 1,2,x,4,5", "value 2 is no number");
  infer_refuses(folder, WITHOUT_STATE "--state 1,2,nan,4,5", "value 2 is no number");
  infer_refuses(folder, WITHOUT_STATE "--state 1,2,3,4,", "value 4 is no number");
  infer_refuses(folder, GOOD "--unnorm-key lift --noise narrow.safetensors", "narrow.safetensors: noise", "[2, 6]",
                "[2, 7]");
  infer_refuses(folder, GOOD "--unnorm-key lift --noise steps.safetensors", "ar_timestep", "[2]", "[1]");
  infer_refuses(folder, GOOD "--unnorm-key lift --noise front.png", "front.png");
  infer_refuses(folder, GOOD "--unnorm-key lift --noise hybrid/model.safetensors", "none of noise");
  infer_refuses(folder, GOOD "--unnorm-key lift --device abacus", "abacus");
  infer_refuses(folder, "predict --model nowhere " PICTURES " --instruction go", "nowhere");
  infer_refuses(folder, "predict --model tokens " PICTURES " --instruction go --mode ensemble", "autoregressive",
                "no noise head");
  infer_refuses(folder, "predict --model tokens " PICTURES " --instruction go --ar-condition noise", "no condition");
  infer_refuses(folder, "predict --model tokens " PICTURES " --instruction go --state 1", "1 values", "no state");
  infer_refuses(folder, "bench", "--config FILE --random-weights");
  infer_refuses(folder, "bench --config front.png --random-weights", "front.png");
  infer_refuses(folder, "bench --config front.png", "--random-weights");
  must_shell("cd '%s' && cp -r hybrid vast && sed -i 's/\"vocab_size\": *[0-9]*/\"vocab_size\": 16000000/; "
             "s/\"intermediate_size\": *[0-9]*/\"intermediate_size\": 1000000/; s/\"num_hidden_layers\": *[0-9]*/"
             "\"num_hidden_layers\": 1024/' vast/config.json",
             folder);
  infer_refuses(folder, "bench --model vast", "do not fit config.json", "[16000000, 32] is expected");
}

static void measures(void **state) {
  (void)state;
  json_t *found = infer_json(folder, "bench --model full --repeat 3 --json");
  const json_t *ms = json_object_get(found, "ms"), *stages = json_object_get(found, "stages");
  double low = json_real_value(json_object_get(ms, "min")), middle = json_real_value(json_object_get(ms, "median"));
  assert_true(low > 0 && low <= middle && middle <= json_real_value(json_object_get(ms, "max")));
  assert_true(fabs(json_real_value(json_object_get(found, "hz")) * middle - 1000) < 1e-6);
  static const char *const names[] = {"vision", "prefill", "denoise", "decode"};
  for (int i = 0; i < 4; i++) assert_true(json_real_value(json_object_get(stages, names[i])) > 0);
  /* The whole vocabulary is read once, and for each of the 14 tokens only the 256 rows of actions. */
  json_int_t bytes = json_integer_value(json_object_get(found, "bytes_read"));
  assert_true(bytes > (32064 + 14 * 256) * 32 * 4 && bytes < 3 * 32064 * 32 * 4);
  assert_true(json_integer_value(json_object_get(found, "peak_memory_bytes")) > 2 * 32064 * 32 * 4);
  double light = json_real_value(json_object_get(found, "speed_of_light"));
  assert_true(light > 0);
  assert_string_equal(json_string_value(json_object_get(found, "mode")), "ensemble");
  json_decref(found);

  write_text(
      in_folder(folder, "run.yaml"),
      "model: {model_type: hybridvla, action_dim: 2, action_chunk: 1, cameras: [a], projector: linear, vision: "
      "[{prefix: vision_backbone.featurizer, width: 16, depth: 2, num_heads: 2, mlp_width: 16, patch_size: 14, "
      "image_size: 14, layer_norm_eps: 1e-6, class_token: false, register_tokens: 0, layer_scale: false, "
      "pre_norm: false, activation: gelu, image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5]}], llm: "
      "{model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
      "num_key_value_heads: 2, rms_norm_eps: 1e-5, rope_theta: 10000.0, vocab_size: 300, hidden_act: silu}, "
      "diffusion: {steps: 100, schedule: squaredcos_cap_v2}, action_tokens: {base: 290, bins: 256}, "
      "special_tokens: {bos: 1, eos: 2, pad: 297, bod: 298, eod: 299, empty: 5}}\ntrain: {batch_size: 1}\n");
  found = infer_json(folder, "bench --config run.yaml --random-weights --mode diffusion --repeat 2 --json");
  assert_string_equal(json_string_value(json_object_get(found, "mode")), "diffusion");
  assert_true(json_real_value(json_object_get(json_object_get(found, "stages"), "decode")) == 0);
  json_decref(found);
}

static void measures_loading(void **state) {
  (void)state;
  json_t *found = infer_json(folder, "bench --model full --load --repeat 3 --json");
  double load = json_real_value(json_object_get(json_object_get(found, "load_s"), "median"));
  double read = json_real_value(json_object_get(json_object_get(found, "read_s"), "median"));
  double touch = json_real_value(json_object_get(json_object_get(found, "touch_s"), "median"));
  assert_true(load > 0 && read > 0 && touch > 0);
  assert_true(fabs(json_real_value(json_object_get(found, "ratio")) - read / load) < 1e-9);
  assert_true(json_real_value(json_object_get(found, "bytes")) > 2 * 32064 * 32 * 4);
  json_decref(found);
  char *out, *errors;
  assert_int_equal(run_infer(folder, "bench --model full --load --repeat 1", &out, &errors), 0);
  assert_non_null(strstr(out, "sequential read"));
  assert_string_equal(errors, "");
  free(out);
  free(errors);
  infer_refuses(folder, "bench --load --config run.yaml --random-weights", "--load", "--model");
  infer_refuses(folder, "bench --load --model nowhere", "nowhere");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(predicts_with_both_heads),
      cmocka_unit_test(leaves_out_what_a_mode_does_not_compute),
      cmocka_unit_test(draws_that_nothing_reads_are_told),
      cmocka_unit_test(options_reach_the_policy),
      cmocka_unit_test(threads_do_not_change_the_answer),
      cmocka_unit_test(prints_a_table_for_people),
      cmocka_unit_test(helps),
      cmocka_unit_test(refuses_wrong_input),
      cmocka_unit_test(measures),
      cmocka_unit_test(measures_loading),
  };
  return cmocka_run_group_tests(tests, enter, remove_folder);
}
