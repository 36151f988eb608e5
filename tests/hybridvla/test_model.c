/* The whole model, mostly in double: branches that share a prefix equal whole sequences, gradients equal central
 * differences of the loss, parts can be frozen, micro-batches add up, and the plan predicts the memory of a step. */
#include <math.h>

#include "core/base/random.h"
#include "core/tensor/ops.h"
#include "tests/check.h"
#include "tests/hybridvla/tiny_model.h"

enum { SAMPLES = 3, BRANCHES = 3 };

/* ‖a − b‖ / ‖b‖ */
static double relative_error(const double *a, const double *b, int64_t count) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < count; i++) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return size > 0 ? sqrt(difference / size) : sqrt(difference);
}

static void assert_same_gradients(tiny_run *a, tiny_run *b, double tolerance) {
  hv_params *params = hv_model_params(a->model);
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_param *param = hv_params_get(params, id);
    if (!param->trainable) continue;
    double *left = tiny_run_gradient(a, id), *right = tiny_run_gradient(b, id);
    double error = relative_error(left, right, param->rows * param->cols);
    if (!(error <= tolerance)) fail_msg("gradient of %s differs by %g", param->name, error);
    free(left);
    free(right);
  }
}

static void check_shared_prefix(hv_objective objective, bool clip) {
  hv_config config = tiny_config(objective, clip);
  int32_t branches = objective == HV_AUTOREGRESSIVE ? 1 : BRANCHES;
  tiny_batch shared = tiny_batch_make(&config, SAMPLES, branches, 11);
  tiny_batch whole = tiny_batch_repeat(&config, &shared, branches);
  tiny_run a = tiny_run_open(&config, HV_F64, SAMPLES, branches, NULL, 0);
  tiny_run b = tiny_run_open(&config, HV_F64, SAMPLES * branches, 1, NULL, 0);
  double loss = tiny_run_step(&a, &shared.batch, true, false);
  double expected = tiny_run_step(&b, &whole.batch, true, false);
  assert_true(expected > 1);
  assert_true(fabs(loss - expected) < 1e-12 * expected);
  assert_same_gradients(&a, &b, 1e-10);
  tiny_run_close(&a);
  tiny_run_close(&b);
  tiny_batch_free(&shared);
  tiny_batch_free(&whole);
}

static void shared_prefix_equals_whole_sequences(void **state) {
  (void)state;
  check_shared_prefix(HV_HYBRID, false);
  check_shared_prefix(HV_HYBRID, true);
  check_shared_prefix(HV_DIFFUSION, false);
}

/* The loss with one element of a parameter moved by `step`. */
static double moved_loss(tiny_run *run, const hv_batch *batch, hv_param_id id, double *values, int64_t element,
                         double step) {
  double original = values[element];
  values[element] = original + step;
  assert_ok(hv_param_write(hv_model_params(run->model), id, HV_F64, values, run->stream));
  double loss = tiny_run_step(run, batch, false, false);
  values[element] = original;
  assert_ok(hv_param_write(hv_model_params(run->model), id, HV_F64, values, run->stream));
  return loss;
}

/* The element with the largest gradient, where a wrong factor shows best. */
static int64_t largest_element(const double *gradient, int64_t count) {
  int64_t largest = 0;
  for (int64_t i = 1; i < count; i++) {
    if (fabs(gradient[i]) > fabs(gradient[largest])) largest = i;
  }
  return largest;
}

static void check_differences(hv_objective objective, bool clip) {
  hv_config config = tiny_config(objective, clip);
  tiny_batch b = tiny_batch_make(&config, 2, 2, 5);
  tiny_run run = tiny_run_open(&config, HV_F64, 2, 2, NULL, 0);
  tiny_run_step(&run, &b.batch, true, false);
  hv_params *params = hv_model_params(run.model);
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_param *param = hv_params_get(params, id);
    int64_t count = param->rows * param->cols;
    if (!param->trainable) continue; /* a model that only denoises does not train its vocabulary head */
    double *values = tiny_run_values(&run, id), *gradient = tiny_run_gradient(&run, id);
    int64_t elements[2] = {largest_element(gradient, count), count / 2};
    if (gradient[elements[0]] == 0) fail_msg("%s has no gradient", param->name);
    for (int i = 0; i < 2; i++) {
      int64_t e = elements[i];
      double step = 1e-5;
      double difference =
          (moved_loss(&run, &b.batch, id, values, e, step) - moved_loss(&run, &b.batch, id, values, e, -step)) /
          (2 * step);
      if (!(fabs(difference - gradient[e]) <= 1e-6 * fabs(difference) + 1e-8)) {
        fail_msg("%s[%lld]: gradient %.12g, difference %.12g", param->name, (long long)e, gradient[e], difference);
      }
    }
    free(values);
    free(gradient);
  }
  tiny_run_close(&run);
  tiny_batch_free(&b);
}

static void gradients_equal_differences(void **state) {
  (void)state;
  check_differences(HV_HYBRID, false);
  check_differences(HV_HYBRID, true);
  check_differences(HV_DIFFUSION, false);
  check_differences(HV_AUTOREGRESSIVE, false);
}

/* Frozen parameters get no gradient; all others get the same gradients as if nothing were frozen. */
static void frozen_parts_change_nothing_else(void **state) {
  (void)state;
  static const char *const patterns[][6] = {
      {"vision_backbone.*", NULL},
      {"vision_backbone.*", "projector.*", NULL},
      {"vision_backbone.dino_featurizer.*", "llm_backbone.llm.model.embed_tokens.*", NULL},
      {"llm_backbone.*", "*embedder.*", NULL},
      {"vision_backbone.siglip_featurizer.blocks.0.*", "llm_backbone.llm.model.layers.0.*", NULL},
      /* Only one part before the decoder is trained; for it, the backward pass must go through the whole decoder. */
      {"vision_backbone.*", "llm_backbone.*", "*embedder.*", "final_layer.*", NULL},
      {"vision_backbone.*", "llm_backbone.*", "projector.*", "final_layer.*", NULL},
      {"vision_backbone.*.blocks.*", "llm_backbone.*", "projector.*", "*embedder.*", "final_layer.*", NULL},
      {"vision_backbone.*r.[!b]*", "llm_backbone.*", "projector.*", "*embedder.*", "final_layer.*", NULL},
  };
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch b = tiny_batch_make(&config, SAMPLES, BRANCHES, 21);
  tiny_run all = tiny_run_open(&config, HV_F64, SAMPLES, BRANCHES, NULL, 0);
  double loss = tiny_run_step(&all, &b.batch, true, false);
  for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
    int count = 0;
    while (patterns[i][count]) count++;
    tiny_run part = tiny_run_open(&config, HV_F64, SAMPLES, BRANCHES, patterns[i], count);
    assert_true(tiny_run_step(&part, &b.batch, true, false) == loss);
    assert_same_gradients(&part, &all, 1e-12);
    hv_params *params = hv_model_params(part.model);
    hv_param_id frozen = hv_params_find(params, "vision_backbone.dino_featurizer.pos_embed");
    if (i < 3) assert_false(hv_present(hv_param_gradient(params, frozen)));
    tiny_run_close(&part);
  }
  tiny_run_close(&all);
  tiny_batch_free(&b);
}

static void micro_batches_add_up(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch b = tiny_batch_make(&config, SAMPLES, BRANCHES, 31);
  tiny_run whole = tiny_run_open(&config, HV_F64, SAMPLES, BRANCHES, NULL, 0);
  tiny_run parts = tiny_run_open(&config, HV_F64, SAMPLES, BRANCHES, NULL, 0);
  double loss = tiny_run_step(&whole, &b.batch, true, false);
  hv_batch first = tiny_batch_part(&config, &b, BRANCHES, 0, 2), second = tiny_batch_part(&config, &b, BRANCHES, 2, 1);
  double sum = tiny_run_step(&parts, &first, true, false);
  sum += tiny_run_step(&parts, &second, true, true);
  assert_true(fabs(sum - loss) < 1e-6 * loss); /* the divisors are single-precision numbers */
  assert_same_gradients(&parts, &whole, 1e-6);
  tiny_run_close(&whole);
  tiny_run_close(&parts);
  tiny_batch_free(&b);
}

/* Noise and timesteps that the device draws depend on (seed, step, sample) alone: a sample gets the same in a batch and
 * by itself. */
static void draws_depend_on_the_sample_alone(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch b = tiny_batch_make(&config, SAMPLES, BRANCHES, 41);
  b.batch.noise = NULL;
  b.batch.timesteps = NULL;
  tiny_run run = tiny_run_open(&config, HV_F64, SAMPLES, BRANCHES, NULL, 0);
  tiny_run_step(&run, &b.batch, false, false);
  const hv_sequence_tables *tables = hv_sequence_get_tables(run.sequence);
  int64_t values = SAMPLES * BRANCHES * 6;
  float together[SAMPLES * BRANCHES * 6], alone[BRANCHES * 6];
  hv_download(run.stream, together, tables->noise.data, (size_t)values * sizeof(float));
  assert_ok(hv_stream_synchronize(run.stream));
  hv_batch last = tiny_batch_part(&config, &b, BRANCHES, 2, 1);
  last.noise = NULL;
  last.timesteps = NULL;
  tiny_run_step(&run, &last, false, false);
  hv_download(run.stream, alone, tables->noise.data, sizeof alone);
  assert_ok(hv_stream_synchronize(run.stream));
  assert_memory_equal(alone, together + 2 * BRANCHES * 6, sizeof alone);
  tiny_run_close(&run);
  tiny_batch_free(&b);
}

/* A batch without noise and timesteps gives the same loss as one with those of seed 3 and step 4, which tiny_run_step
 * uses. */
static void draws_are_those_of_seed_and_step(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch b = tiny_batch_make(&config, SAMPLES, BRANCHES, 41);
  tiny_run run = tiny_run_open(&config, HV_F64, SAMPLES, BRANCHES, NULL, 0);
  uint32_t values = (uint32_t)(config.action_chunk * config.action_dim);
  for (uint32_t i = 0; i < SAMPLES * BRANCHES; i++) {
    uint64_t sample = (uint64_t)b.sample_ids[i / BRANCHES];
    for (uint32_t v = 0; v < values; v++) {
      b.noise[i * values + v] = hv_random_normal(3, HV_RANDOM_NOISE, 4, sample, i % BRANCHES, v);
    }
    b.timesteps[i] =
        (int32_t)hv_random_below(3, HV_RANDOM_TIMESTEP, 4, sample, i % BRANCHES, 0, (uint32_t)config.diffusion_steps);
  }
  double given = tiny_run_step(&run, &b.batch, false, false);
  b.batch.noise = NULL;
  b.batch.timesteps = NULL;
  assert_true(tiny_run_step(&run, &b.batch, false, false) == given);
  tiny_run_close(&run);
  tiny_batch_free(&b);
}

static void plan_is_what_a_step_takes(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_HYBRID, false);
  hv_sequence_limits limits = {.samples = 1, .branches = BRANCHES, .prompt = 6};
  tiny_batch b = tiny_batch_make(&config, 1, BRANCHES, 51);
  for (int training = 0; training < 2; training++) {
    size_t planned = 0;
    assert_ok(hv_model_plan_step(
        &(hv_model_step){.config = &config, .dtype = HV_F32, .limits = limits, .training = training}, &planned, NULL));
    tiny_run run = tiny_run_open(&config, HV_F32, 1, BRANCHES, NULL, 0);
    tiny_run_step(&run, &b.batch, training, false);
    assert_int_equal(run.arena.peak, planned);
    tiny_run_close(&run);
  }
  tiny_batch_free(&b);
}

/* The largest batch that the limits allow has exactly as many rows as hv_sequence_largest says; and kernels are told
 * the longest run of queries, which is the prefix or, with a long chunk, a branch. */
static void counts_are_those_of_the_tables(void **state) {
  (void)state;
  for (int32_t chunk = 2; chunk <= 24; chunk += 22) {
    hv_config config = tiny_config(HV_HYBRID, false);
    config.action_chunk = chunk;
    hv_sequence_limits limits = {.samples = 1, .branches = BRANCHES, .prompt = 6};
    tiny_batch b = tiny_batch_make(&config, 1, BRANCHES, 52);
    tiny_run run = tiny_run_open(&config, HV_F32, 1, BRANCHES, NULL, 0);
    tiny_run_step(&run, &b.batch, false, false);
    hv_sequence_counts counts = *hv_sequence_get_counts(run.sequence), largest = hv_sequence_largest(&config, &limits);
    assert_int_equal(counts.rows, largest.rows);
    assert_int_equal(counts.text_rows, largest.text_rows);
    const hv_segment *segments = hv_sequence_get_tables(run.sequence)->segments.data;
    int32_t longest = 0, most_keys = 0;
    for (int32_t i = 0; i < counts.segments; i++) {
      int32_t keys = segments[i].prefix_rows + segments[i].own_rows;
      if (segments[i].q_rows > longest) longest = segments[i].q_rows;
      if (keys > most_keys) most_keys = keys;
    }
    assert_true(chunk == 2 ? longest == segments[0].q_rows : longest > segments[0].q_rows);
    assert_int_equal(counts.max_segment_rows, longest);
    assert_int_equal(counts.max_key_rows, most_keys);
    tiny_run_close(&run);
    tiny_batch_free(&b);
  }
}

/* Branches differ only in noise, which an autoregressive model does not see: it has one branch, whatever is asked for.
 */
static void action_tokens_have_one_branch(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_AUTOREGRESSIVE, false);
  tiny_batch b = tiny_batch_make(&config, SAMPLES, BRANCHES, 54);
  tiny_run one = tiny_run_open(&config, HV_F64, SAMPLES, 1, NULL, 0);
  tiny_run asked = tiny_run_open(&config, HV_F64, SAMPLES, BRANCHES, NULL, 0);
  assert_true(tiny_run_step(&asked, &b.batch, true, false) == tiny_run_step(&one, &b.batch, true, false));
  assert_same_gradients(&asked, &one, 0);
  assert_int_equal(asked.arena.peak, one.arena.peak);
  hv_sequence_limits limits = {.samples = SAMPLES, .branches = BRANCHES, .prompt = 6};
  assert_int_equal(hv_sequence_largest(&config, &limits).branches, 1);
  tiny_run_close(&one);
  tiny_run_close(&asked);
  tiny_batch_free(&b);
}

/* Steps past an episode's end are masked. If a batch holds nothing else, its loss and gradients are 0, not 0 / 0. */
static void a_batch_of_masked_steps_has_no_loss(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_DIFFUSION, false);
  tiny_batch b = tiny_batch_make(&config, SAMPLES, BRANCHES, 53);
  memset(b.mask, 0, (size_t)SAMPLES * (size_t)config.action_chunk);
  tiny_run run = tiny_run_open(&config, HV_F32, SAMPLES, BRANCHES, NULL, 0);
  assert_true(tiny_run_step(&run, &b.batch, true, false) == 0);
  hv_params *params = hv_model_params(run.model);
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_param *param = hv_params_get(params, id);
    if (!param->trainable) continue;
    double *gradient = tiny_run_gradient(&run, id);
    for (int64_t i = 0; i < param->rows * param->cols; i++) assert_true(gradient[i] == 0);
    free(gradient);
  }
  tiny_run_close(&run);
  tiny_batch_free(&b);
}

/* Recomputing activations in the backward pass gives the same bytes with less memory. */
static void recomputation_changes_nothing(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_HYBRID, false);
  config.llm.num_hidden_layers = 4;
  tiny_batch b = tiny_batch_make(&config, SAMPLES, BRANCHES, 81);
  tiny_run kept = tiny_run_open(&config, HV_F32, SAMPLES, BRANCHES, NULL, 0);
  double loss = tiny_run_step(&kept, &b.batch, true, false);
  size_t peak = kept.arena.peak;
  for (hv_recompute level = HV_RECOMPUTE_CHEAP; level <= HV_RECOMPUTE_BLOCK; level++) {
    tiny_run again = tiny_run_open(&config, HV_F32, SAMPLES, BRANCHES, NULL, 0);
    hv_model_set_recompute(again.model, (hv_recomputation){.level = level});
    assert_true(tiny_run_step(&again, &b.batch, true, false) == loss);
    assert_same_gradients(&again, &kept, 0);
    assert_true(again.arena.peak < peak);
    peak = again.arena.peak;
    tiny_run_close(&again);
  }
  /* Recompute in two of the three layers that allow it: the activations of only one of them exist at a time. */
  tiny_run again = tiny_run_open(&config, HV_F32, SAMPLES, BRANCHES, NULL, 0);
  hv_model_set_recompute(again.model, (hv_recomputation){.level = HV_RECOMPUTE_BLOCK, .layers = 2});
  assert_true(tiny_run_step(&again, &b.batch, true, false) == loss);
  assert_same_gradients(&again, &kept, 0);
  assert_true(again.arena.peak > peak && again.arena.peak < kept.arena.peak);
  tiny_run_close(&again);
  tiny_run_close(&kept);
  tiny_batch_free(&b);
}

/* Losses and gradients in F32 and BF16 are close to those in F64 with the same weights. */
static void precisions_agree(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch b = tiny_batch_make(&config, SAMPLES, BRANCHES, 61);
  tiny_run exact = tiny_run_open(&config, HV_F64, SAMPLES, BRANCHES, NULL, 0);
  tiny_run single = tiny_run_open(&config, HV_F32, SAMPLES, BRANCHES, NULL, 0);
  tiny_run half = tiny_run_open(&config, HV_BF16, SAMPLES, BRANCHES, NULL, 0);
  double loss = tiny_run_step(&exact, &b.batch, true, false);
  assert_true(fabs(tiny_run_step(&single, &b.batch, true, false) - loss) < 1e-5 * loss);
  assert_true(fabs(tiny_run_step(&half, &b.batch, true, false) - loss) < 2e-2 * loss);
  assert_same_gradients(&single, &exact, 1e-4);
  tiny_run_close(&exact);
  tiny_run_close(&single);
  tiny_run_close(&half);
  tiny_batch_free(&b);
}

/* If an earlier error of the stream makes a preparation fail, nothing has changed, and the next preparation succeeds.
 */
static void a_failed_preparation_is_made_up_for(void **state) {
  (void)state;
  enum { POSITIONS = 1000 };
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch b = tiny_batch_make(&config, SAMPLES, BRANCHES, 71);
  tiny_run run = tiny_run_open(&config, HV_F64, SAMPLES, BRANCHES, NULL, 0);
  double before = tiny_run_step(&run, &b.batch, false, false);
  hv_fill(run.stream, &(hv_fill_args){0}); /* no destination */
  assert_error(hv_model_prepare(run.model, POSITIONS, 1, run.stream), "dst is absent");
  assert_ok(hv_model_prepare(run.model, POSITIONS, 1, run.stream));
  assert_true(tiny_run_step(&run, &b.batch, false, false) == before);
  tiny_run_close(&run);
  tiny_batch_free(&b);
}

static void assert_refused(tiny_run *run, const hv_batch *batch, const char *part) {
  hv_status status = hv_sequence_build(run->sequence, batch, 0, 0);
  assert_non_null(status);
  assert_int_equal(hv_status_code(status), HV_ERR_INPUT);
  if (!strstr(hv_status_message(status), part)) fail_msg("\"%s\" lacks \"%s\"", hv_status_message(status), part);
  hv_status_free(status);
}

static void batches_that_cannot_be_counted_are_refused(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_HYBRID, false);
  config.action_chunk = config.action_dim = 1024;
  hv_model_step step = {.config = &config, .limits = {.samples = 1024, .branches = 4, .prompt = 8}};
  size_t arena_bytes = 0;
  assert_error(hv_model_plan_step(&step, &arena_bytes, NULL), "1024 samples", "micro-batches");
}

static void wrong_batches_are_refused(void **state) {
  (void)state;
  hv_config config = tiny_config(HV_HYBRID, false);
  tiny_batch b = tiny_batch_make(&config, SAMPLES, BRANCHES, 71);
  tiny_run run = tiny_run_open(&config, HV_F32, SAMPLES, BRANCHES, NULL, 0);
  b.timesteps[4] = 100;
  assert_refused(&run, &b.batch, "timesteps of sample 1, branch 1, is 100; expected 0 to 99");
  b.timesteps[4] = 99;
  b.prompt_ids[1] = 300;
  assert_refused(&run, &b.batch, "prompt_ids of sample 0, token 1, is 300");
  b.prompt_ids[1] = 3;
  b.prompt_ids[0] = 3;
  assert_refused(&run, &b.batch, "expected <s>, which is 1");
  b.prompt_ids[0] = 1;
  b.actions[7] = NAN;
  assert_refused(&run, &b.batch, "actions of sample 1, value 1, is nan");
  b.actions[7] = 0;
  b.state[0] = INFINITY;
  assert_refused(&run, &b.batch, "state of sample 0");
  b.state[0] = 0;
  b.batch.samples = SAMPLES + 1;
  assert_refused(&run, &b.batch, "expected 1 to 3");
  tiny_run_close(&run);
  tiny_batch_free(&b);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(shared_prefix_equals_whole_sequences),
      cmocka_unit_test(gradients_equal_differences),
      cmocka_unit_test(frozen_parts_change_nothing_else),
      cmocka_unit_test(micro_batches_add_up),
      cmocka_unit_test(draws_depend_on_the_sample_alone),
      cmocka_unit_test(draws_are_those_of_seed_and_step),
      cmocka_unit_test(plan_is_what_a_step_takes),
      cmocka_unit_test(counts_are_those_of_the_tables),
      cmocka_unit_test(action_tokens_have_one_branch),
      cmocka_unit_test(a_batch_of_masked_steps_has_no_loss),
      cmocka_unit_test(recomputation_changes_nothing),
      cmocka_unit_test(precisions_agree),
      cmocka_unit_test(a_failed_preparation_is_made_up_for),
      cmocka_unit_test(batches_that_cannot_be_counted_are_refused),
      cmocka_unit_test(wrong_batches_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
