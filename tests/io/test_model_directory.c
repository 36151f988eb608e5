/* Model directories, with those of the parity fixtures: they are opened, fill the parameters, name what does not fit,
 * and are written whole or not at all, also if the disk is full or the process is killed. */
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "core/base/directory.h"
#include "core/cpu/cpu.h"
#include "core/io/json.h"
#include "core/io/model_directory.h"
#include "tests/check.h"

#define PARITY HVLA_SOURCE_DIR "/tests/fixtures/parity/"

/* A fixture's model directory, and a parameter store that declares its tensors. */
typedef struct store {
  hv_model_directory directory;
  hv_device *device;
  hv_stream *stream;
  hv_params *params;
} store;

static hv_param_spec spec_of(const hv_file_tensor *tensor) {
  hv_param_spec spec = {.name = tensor->name, .init = HV_INIT_ZERO};
  for (int32_t i = 0; i < tensor->rank; i++) spec.shape[i] = tensor->shape[i];
  return spec;
}

/* Declares all tensors of the file but the last `left_out`. */
static store open_store(const char *path, int32_t left_out) {
  store s;
  assert_ok(hv_model_directory_open(path, &s.directory));
  assert_ok(hv_cpu_device_open(&(hv_device_options){.threads = 1}, &s.device));
  assert_ok(hv_stream_open(s.device, &s.stream));
  assert_ok(hv_params_open(s.device, HV_F32, &s.params));
  hv_params_begin_group(s.params, "all");
  for (int32_t i = 0; i < hv_safetensors_count(s.directory.tensors) - left_out; i++) {
    hv_param_spec spec = spec_of(hv_safetensors_get(s.directory.tensors, i));
    hv_params_declare(s.params, &spec);
  }
  assert_ok(hv_params_allocate(s.params));
  return s;
}

static void close_store(store *s) {
  hv_params_close(s->params);
  hv_stream_close(s->stream);
  hv_device_close(s->device);
  hv_model_directory_close(&s->directory);
}

static void assert_same_values(store *s, const hv_safetensors *file, double tolerance) {
  for (hv_param_id id = 0; id < hv_params_count(s->params); id++) {
    const hv_param *param = hv_params_get(s->params, id);
    const hv_file_tensor *tensor;
    assert_ok(hv_safetensors_require(file, param->name, &tensor));
    float *a = malloc((size_t)tensor->count * sizeof *a), *b = malloc((size_t)tensor->count * sizeof *b);
    assert_true(a && b);
    hv_file_tensor_read_f32(tensor, 0, tensor->count, a);
    assert_ok(hv_param_read(s->params, id, HV_F32, b, s->stream));
    for (int64_t i = 0; i < tensor->count; i++) {
      double scale = a[i] < 0 ? -a[i] : a[i];
      assert_float_equal(a[i], b[i], (float)(tolerance * (scale + 1e-4)));
    }
    free(a);
    free(b);
  }
}

static void the_file_says_what_the_config_does_not(void **state) {
  (void)state;
  hv_model_directory directory;
  assert_ok(hv_model_directory_open(PARITY "clip", &directory));
  assert_false(directory.model.config.vision[0].patch_bias);
  assert_true(directory.model.config.vision[0].class_position);
  hv_model_directory_close(&directory);
  assert_ok(hv_model_directory_open(PARITY "one_arm", &directory));
  for (int i = 0; i < directory.model.config.num_towers; i++) {
    assert_true(directory.model.config.vision[i].patch_bias);
    assert_false(directory.model.config.vision[i].class_position);
  }
  hv_model_directory_close(&directory);
}

static void parameters_are_filled_from_the_file(void **state) {
  (void)state;
  store s = open_store(PARITY "one_arm", 2);
  hv_text unexpected = {0};
  assert_ok(hv_model_directory_fill(&s.directory, s.params, s.stream, &unexpected));
  assert_same_values(&s, s.directory.tensors, 0);
  int32_t count = hv_safetensors_count(s.directory.tensors);
  char expected[512];
  snprintf(expected, sizeof expected, "%s\n%s\n", hv_safetensors_get(s.directory.tensors, count - 2)->name,
           hv_safetensors_get(s.directory.tensors, count - 1)->name);
  assert_string_equal(unexpected.data, expected);
  hv_text_free(&unexpected);
  close_store(&s);
}

/* Published towers bring a last block, a final norm and a pooling layer that are never run: these do not count as
 * unexpected tensors. The configuration's depth decides which block is the last, so the tower is made a block shorter
 * than in the file. No parameter is declared, so that every other tensor is unexpected. */
static void what_checkpoints_carry_along_is_expected(void **state) {
  (void)state;
  store s = open_store(PARITY "one_arm", INT32_MAX);
  hv_vision_config *tower = &s.directory.model.config.vision[0];
  hv_text unexpected = {0};
  char carried[HV_PREFIX_SIZE + 32], read[HV_PREFIX_SIZE + 32];
  tower->depth--;
  snprintf(carried, sizeof carried, "%s.blocks.%d.", tower->prefix, tower->depth - 1);
  snprintf(read, sizeof read, "%s.blocks.%d.", tower->prefix, tower->depth - 2);
  assert_ok(hv_model_directory_fill(&s.directory, s.params, s.stream, &unexpected));
  assert_null(strstr(unexpected.data, carried));
  assert_non_null(strstr(unexpected.data, read));
  snprintf(carried, sizeof carried, "%s.norm.weight", tower->prefix);
  assert_true(hv_vision_is_unused(tower, carried));
  snprintf(carried, sizeof carried, "%s.attn_pool.latent", tower->prefix);
  assert_true(hv_vision_is_unused(tower, carried));
  assert_false(hv_vision_is_unused(tower, "llm_backbone.llm.model.norm.weight"));
  hv_text_free(&unexpected);
  close_store(&s);
}

static void all_misfits_are_told_at_once(void **state) {
  (void)state;
  store s = open_store(PARITY "one_arm", 0);
  hv_params *params;
  assert_ok(hv_params_open(s.device, HV_F32, &params));
  hv_params_begin_group(params, "all");
  const hv_file_tensor *tensor = hv_safetensors_find(s.directory.tensors, "x_embedder.mlp.fc1.weight");
  hv_param_spec spec = spec_of(tensor);
  char found[64], expected[64];
  hv_format_shape("F32", spec.shape, tensor->rank, found, sizeof found);
  spec.shape[0] += 3;
  hv_format_shape("", spec.shape, tensor->rank, expected, sizeof expected);
  hv_params_declare(params, &spec);
  hv_params_declare(params, &(hv_param_spec){.name = "not.there", .shape = {4, 5}});
  hv_params_declare(params, &(hv_param_spec){.name = "nor.this", .shape = {6}});
  assert_ok(hv_params_allocate(params));
  assert_error(hv_model_directory_fill(&s.directory, params, s.stream, NULL), "3 of 3 parameters",
               "x_embedder.mlp.fc1.weight is ", found, expected, "not.there is missing; [4, 5]", "nor.this is missing",
               "one_arm");
  hv_params_close(params);
  close_store(&s);
}

/* A file without the tensors that a tower is recognised by, and with integers in place of a parameter. */
static void what_no_parameter_can_be_is_told(void **state) {
  static const int64_t values[2] = {1, 2};
  const char *path = in_folder(*state, "odd");
  store s = open_store(PARITY "one_arm", 0);
  hv_safetensors_writer *writer;
  hv_model_directory directory;
  hv_params *params;
  assert_ok(hv_make_directories(path));
  assert_ok(hv_model_config_save(in_folder(path, "config.json"), &s.directory.model));
  assert_ok(hv_safetensors_writer_open(in_folder(path, "model.safetensors"), &writer));
  assert_ok(hv_safetensors_writer_declare(writer, "whole.numbers", HV_I64, 1, (const int64_t[]){2}));
  assert_ok(hv_safetensors_writer_write(writer, values, sizeof values));
  assert_ok(hv_safetensors_writer_commit(writer));
  assert_ok(hv_model_directory_open(path, &directory));
  assert_false(directory.model.config.vision[0].patch_bias);
  assert_false(directory.model.config.vision[0].class_position);
  assert_ok(hv_params_open(s.device, HV_F32, &params));
  hv_params_begin_group(params, "all");
  hv_params_declare(params, &(hv_param_spec){.name = "whole.numbers", .shape = {2}});
  assert_ok(hv_params_allocate(params));
  assert_error(hv_model_directory_check(&directory, params), "1 of 1 parameters", "whole.numbers has dtype I64",
               "F32, BF16, F16 or F64 is expected");
  hv_params_close(params);
  hv_model_directory_close(&directory);
  close_store(&s);
}

/* Tensors that are carried along without being parameters: one with more elements than are written at a time, and
 * integers, which are never rounded. */
static void what_is_carried_comes_whole(void **state) {
  enum { MANY = 600001 };
  static const int64_t ids[3] = {1, -2, INT64_MAX};
  const char *from = in_folder(*state, "carried.safetensors"), *path = in_folder(*state, "carrying");
  float *values = malloc(MANY * sizeof *values);
  assert_non_null(values);
  for (int i = 0; i < MANY; i++) values[i] = (float)(i % 251);
  store s = open_store(PARITY "one_arm", 0);
  hv_safetensors_writer *writer;
  hv_safetensors *carry;
  assert_ok(hv_safetensors_writer_open(from, &writer));
  assert_ok(hv_safetensors_writer_declare(writer, "ids", HV_I64, 1, (const int64_t[]){3}));
  assert_ok(hv_safetensors_writer_declare(writer, "many", HV_F32, 2, (const int64_t[]){1, MANY}));
  assert_ok(hv_safetensors_writer_write(writer, ids, sizeof ids));
  assert_ok(hv_safetensors_writer_write(writer, values, MANY * sizeof *values));
  assert_ok(hv_safetensors_writer_commit(writer));
  assert_ok(hv_safetensors_open(from, &carry));
  for (int convert = 0; convert < 2; convert++) {
    hv_model_save save = {
        .model = &s.directory.model, .dtype = HV_BF16, .carry = carry, .convert_carried = convert == 1};
    const hv_file_tensor *many, *three;
    hv_safetensors *back;
    assert_ok(hv_model_directory_save(path, &save, NULL));
    assert_ok(hv_safetensors_open(path, &back));
    assert_ok(hv_safetensors_require(back, "ids", &three));
    assert_int_equal(three->dtype, HV_I64);
    assert_memory_equal(three->data, ids, sizeof ids);
    assert_ok(hv_safetensors_require(back, "many", &many));
    assert_int_equal(many->dtype, convert ? HV_BF16 : HV_F32);
    assert_int_equal(many->count, MANY);
    for (int i = 0; i < MANY; i++) {
      float found;
      hv_file_tensor_read_f32(many, i, 1, &found);
      if (found != values[i]) fail_msg("element %d is %g", i, (double)found);
    }
    hv_safetensors_close(back);
  }
  hv_safetensors_close(carry);
  close_store(&s);
  free(values);
}

static void a_folder_without_a_model_is_named(void **state) {
  hv_model_directory directory;
  assert_error(hv_model_directory_open(in_folder(*state, "absent"), &directory), "absent",
               "is not a directory; a model is");
  assert_error(hv_model_directory_open(*state, &directory), *state, "holds no config.json");
  assert_ok(hv_make_directories(in_folder(*state, "run/model")));
  write_text(in_folder(*state, "run/model/config.json"), "{}");
  assert_error(hv_model_directory_open(in_folder(*state, "run"), &directory), "run is a run directory", "run/model");
}

static void a_saved_model_opens_the_same(void **state) {
  static const struct {
    hv_dtype dtype;
    double tolerance;
  } cases[] = {{HV_F32, 0}, {HV_BF16, 0x1p-8}, {HV_F16, 0x1p-10}};
  char parent[256], path[300];
  snprintf(parent, sizeof parent, "%s/saved", (const char *)*state);
  snprintf(path, sizeof path, "%s/model/", parent);
  assert_ok(hv_make_directories(parent));
  json_t *statistics = json_pack("{s:{s:i}}", "lift", "num_transitions", 3), *config;
  store s = open_store(PARITY "one_arm", 3);
  assert_ok(hv_model_config_to_json(&s.directory.model, &config));
  assert_ok(hv_model_directory_fill(&s.directory, s.params, s.stream, NULL));
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    hv_model_save save = {.model = &s.directory.model,
                          .params = s.params,
                          .dtype = cases[i].dtype,
                          .carry = i == 0 ? s.directory.tensors : NULL,
                          .tokenizer_path = HVLA_SOURCE_DIR "/data/tokenizer/llama2-tokenizer.model",
                          .statistics = statistics};
    assert_ok(hv_model_directory_save(path, &save, s.stream));
    assert_int_equal(count_entries(parent), 1);
    assert_int_equal(count_entries(path), 4);
    hv_model_directory back;
    assert_ok(hv_model_directory_open(path, &back));
    assert_memory_equal(&back.model.config, &s.directory.model.config, sizeof back.model.config);
    assert_true(json_equal(back.model.document, config));
    int32_t all = hv_safetensors_count(s.directory.tensors);
    assert_int_equal(hv_safetensors_count(back.tensors), i == 0 ? all : all - 3);
    assert_int_equal(hv_safetensors_get(back.tensors, 0)->dtype, cases[i].dtype);
    assert_same_values(&s, back.tensors, cases[i].tolerance);
    hv_model_directory_close(&back);
    char *file = hv_model_directory_statistics(path);
    json_t *read;
    assert_ok(hv_json_load(file, &read));
    assert_true(json_equal(read, statistics));
    json_decref(read);
    free(file);
  }
  json_decref(statistics);
  json_decref(config);
  close_store(&s);
}

static hv_status save_plain(store *s, const char *path) {
  hv_model_save save = {
      .model = &s->directory.model, .params = s->params, .dtype = HV_F32, .leftover = HV_LEFTOVER_REMOVE};
  return hv_model_directory_save(path, &save, s->stream);
}

/* A limit on the size of files simulates a full disk: the write fails half-way. */
static void a_full_disk_leaves_the_old_model(void **state) {
  char parent[256], path[300];
  snprintf(parent, sizeof parent, "%s/full", (const char *)*state);
  snprintf(path, sizeof path, "%s/model", parent);
  store s = open_store(PARITY "one_arm", 0);
  assert_ok(hv_model_directory_fill(&s.directory, s.params, s.stream, NULL));
  assert_ok(hv_make_directories(parent));
  assert_ok(save_plain(&s, path));
  signal(SIGXFSZ, SIG_IGN);
  struct rlimit old, small;
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
  small = (struct rlimit){.rlim_cur = 20000, .rlim_max = old.rlim_max};
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
  hv_status status = save_plain(&s, path);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
  assert_error(status, "cannot save the model", "model.safetensors", "File too large");
  assert_int_equal(count_entries(parent), 1);
  hv_model_directory back;
  assert_ok(hv_model_directory_open(path, &back));
  assert_same_values(&s, back.tensors, 0);
  hv_model_directory_close(&back);
  close_store(&s);
}

/* What the child of the next test does until it is killed. */
static int save_for_ever(const char *path) {
  store s = open_store(PARITY "one_arm", 0);
  assert_ok(hv_model_directory_fill(&s.directory, s.params, s.stream, NULL));
  while (!save_plain(&s, path)) continue;
  return 1;
}

static void a_killed_save_leaves_a_whole_model(void **state) {
  char path[256];
  snprintf(path, sizeof path, "%s/killed", (const char *)*state);
  store s = open_store(PARITY "one_arm", 0);
  assert_ok(hv_model_directory_fill(&s.directory, s.params, s.stream, NULL));
  assert_ok(save_plain(&s, path));
  unsigned random = 1;
  for (int round = 0; round < 12; round++) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
      execl("/proc/self/exe", "test_model_directory", path, (char *)NULL);
      _exit(127);
    }
    random = random * 1103515245u + 12345u;
    usleep(20000 + random / 65536 % 60000);
    kill(child, SIGKILL);
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_true(WIFSIGNALED(result));
    hv_model_directory back;
    assert_ok(hv_model_directory_open(path, &back));
    assert_same_values(&s, back.tensors, 0);
    hv_model_directory_close(&back);
  }
  assert_ok(save_plain(&s, path));
  char partial[300];
  snprintf(partial, sizeof partial, "%s.partial", path);
  assert_false(hv_file_exists(partial));
  close_store(&s);
}

static void a_directory_takes_anothers_place(void **state) {
  char fresh[256], path[256];
  snprintf(fresh, sizeof fresh, "%s/fresh", (const char *)*state);
  snprintf(path, sizeof path, "%s/place", (const char *)*state);
  for (int round = 0; round < 2; round++) {
    assert_ok(hv_make_directories(fresh));
    write_text(in_folder(fresh, round ? "second" : "first"), "x");
    assert_ok(hv_replace_directory(fresh, path));
    assert_false(hv_file_exists(fresh));
    assert_int_equal(count_entries(path), 1);
    assert_true(hv_file_exists(in_folder(path, round ? "second" : "first")));
  }
  assert_error(hv_replace_directory(fresh, path), "cannot rename", fresh);
  assert_true(hv_file_exists(in_folder(path, "second")));
  write_text(fresh, "a file");
  assert_error(hv_replace_directory(path, fresh), fresh, "is not a directory");
}

static hv_status write_two(const char *directory, void *fails) {
  write_text(in_folder(directory, "a"), "new");
  assert_ok(hv_make_directories(in_folder(directory, "b/c")));
  return fails ? hv_error(HV_ERR_INPUT, "as was to be shown") : HV_OK;
}

/* An empty directory is filled in place: it may be a mount point, or the only place that the user may write to. */
static void an_empty_directory_stays_and_is_filled(void **state) {
  char path[256], link[256];
  struct stat before, after;
  snprintf(path, sizeof path, "%s/empty", (const char *)*state);
  snprintf(link, sizeof link, "%s/link", (const char *)*state);
  assert_ok(hv_make_directories(path));
  assert_int_equal(symlink("empty", link), 0);
  assert_int_equal(stat(path, &before), 0);
  assert_error(hv_write_directory(link, HV_LEFTOVER_REFUSE, write_two, path), "as was to be shown");
  assert_int_equal(count_entries(path), 0);
  assert_ok(hv_write_directory(link, HV_LEFTOVER_REFUSE, write_two, NULL));
  assert_int_equal(stat(path, &after), 0);
  assert_int_equal(before.st_ino, after.st_ino);
  assert_int_equal(count_entries(path), 2);
  assert_true(hv_file_exists(in_folder(path, "a")));
  assert_true(hv_file_exists(in_folder(path, "b/c")));
  /* A directory that is not empty is replaced as a whole, also if the path is a link to it. */
  write_text(in_folder(path, "d"), "old");
  assert_error(hv_write_directory(link, HV_LEFTOVER_REFUSE, write_two, path), "as was to be shown");
  assert_int_equal(count_entries(path), 3);
  assert_ok(hv_write_directory(link, HV_LEFTOVER_REFUSE, write_two, NULL));
  assert_int_equal(count_entries(path), 2);
  assert_int_equal(lstat(link, &after), 0);
  assert_true(S_ISLNK(after.st_mode));
}

static void what_others_keep_beside_it_stays(void **state) {
  char path[256], kept[300];
  snprintf(path, sizeof path, "%s/beside", (const char *)*state);
  snprintf(kept, sizeof kept, "%s.partial", path);
  assert_ok(hv_make_directories(kept));
  write_text(in_folder(kept, "mine"), "x");
  assert_error(hv_write_directory(path, HV_LEFTOVER_REFUSE, write_two, NULL), kept, "exists already");
  assert_true(hv_file_exists(in_folder(kept, "mine")));
  assert_false(hv_file_exists(path));
  assert_ok(hv_write_directory(path, HV_LEFTOVER_REMOVE, write_two, NULL));
  assert_false(hv_file_exists(kept));
}

int main(int argc, char **argv) {
  if (argc > 1) return save_for_ever(argv[1]);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_file_says_what_the_config_does_not),
      cmocka_unit_test(parameters_are_filled_from_the_file),
      cmocka_unit_test(the_file_says_what_the_config_does_not),
      cmocka_unit_test(what_checkpoints_carry_along_is_expected),
      cmocka_unit_test(all_misfits_are_told_at_once),
      cmocka_unit_test(a_folder_without_a_model_is_named),
      cmocka_unit_test(a_saved_model_opens_the_same),
      cmocka_unit_test(a_full_disk_leaves_the_old_model),
      cmocka_unit_test(what_no_parameter_can_be_is_told),
      cmocka_unit_test(what_is_carried_comes_whole),
      cmocka_unit_test(a_killed_save_leaves_a_whole_model),
      cmocka_unit_test(a_directory_takes_anothers_place),
      cmocka_unit_test(an_empty_directory_stays_and_is_filled),
      cmocka_unit_test(what_others_keep_beside_it_stays),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
