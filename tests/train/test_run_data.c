/* What a run hands to its trainer: each micro-batch knows the losses' divisors of the whole batch that it is part of.
 */
#include "train/run/run_data.h"

#include "tests/check.h"
#include "tests/train/program.h"

enum { MICRO_BATCH = 2, MOST_RANKS = 2, STEPS = 12 };

/* One rank's part of a run. */
typedef struct part {
  hv_run_data data;
  hv_loader *loader;
  hv_loader_source source;
} part;

static void open_part(const hv_train_config *config, const hv_config *model, int32_t rank, int32_t ranks, part *out) {
  assert_ok(hv_run_data_open(config, model, rank, ranks, &out->data));
  assert_ok(hv_run_data_open_training(&out->data, 0, &out->loader));
  out->source = hv_loader_source_make(out->loader, model, (int32_t)config->train.branches);
}

/* Takes one whole batch, all ranks' micro-batches of it, and counts what they hold. */
static void check_batch(const hv_config *model, int32_t branches, part *parts, int32_t ranks, int32_t micro_batches) {
  double told[2] = {0}, counted[2] = {0};
  for (int32_t i = 0; i < ranks * micro_batches; i++) {
    hv_batch_source *source = &parts[i / micro_batches].source.source;
    const hv_batch *batch;
    double diffusion, labels;
    assert_ok(source->next(source, &batch));
    hv_batch_count(model, batch, branches, &diffusion, &labels);
    counted[0] += diffusion;
    counted[1] += labels;
    if (i > 0) assert_true(batch->diffusion_divisor == told[0] && batch->label_divisor == told[1]);
    told[0] = batch->diffusion_divisor;
    told[1] = batch->label_divisor;
    source->release(source, batch);
  }
  if (model->objective != HV_AUTOREGRESSIVE) assert_true(told[0] == counted[0]);
  if (model->objective != HV_DIFFUSION) assert_true(told[1] == counted[1]);
}

static void divisors_are_of_the_whole_batch(void **state) {
  static const char *const objectives[] = {"model.objective=hybrid", "model.objective=diffusion",
                                           "model.objective=autoregressive"};
  const char *path = write_tiny_config(*state, "unset");
  for (int i = 0; i < 3; i++) {
    for (int32_t ranks = 1; ranks <= MOST_RANKS; ranks++) {
      const char *const sets[] = {objectives[i], "model.action_chunk=5", "train.batch_size=8", "train.micro_batch=2"};
      hv_train_config config;
      hv_model_config model;
      hv_model_directory directory;
      part parts[MOST_RANKS];
      assert_ok(hv_train_config_load(path, sets, sizeof sets / sizeof sets[0], &config));
      assert_ok(hv_train_config_model(&config, &model, &directory));
      for (int32_t r = 0; r < ranks; r++) open_part(&config, &model.config, r, ranks, &parts[r]);
      for (int step = 0; step < STEPS; step++) {
        check_batch(&model.config, (int32_t)config.train.branches, parts, ranks, 8 / ranks / MICRO_BATCH);
      }
      for (int32_t r = 0; r < ranks; r++) {
        hv_loader_close(parts[r].loader);
        hv_run_data_close(&parts[r].data);
      }
      hv_model_directory_close(&directory);
      hv_model_config_free(&model);
      hv_train_config_free(&config);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(divisors_are_of_the_whole_batch, make_folder, remove_folder)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
