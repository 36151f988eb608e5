/* The report of a run (report.html): its contents, that it is valid markup which loads nothing else, and how its curves
 * are drawn. */
#include <math.h>

#include "tests/check.h"
#include "tests/train/program.h"
#include "train/watch/report_chart.h"

static int count(const char *text, const char *word) {
  int found = 0;
  for (const char *at = text; (at = strstr(at, word)) != NULL; at += strlen(word)) found++;
  return found;
}

static void assert_holds(const char *page, const char *const *words) {
  for (; *words; words++) {
    if (!strstr(page, *words)) fail_msg("the report lacks \"%s\"", *words);
  }
}

/* Every tag is closed, and nothing is loaded from elsewhere. */
static void assert_sound(const char *page) {
  static const char *const tags[] = {"svg", "figure", "table", "section", "div", "ul", "pre", "h2", "tr"};
  for (size_t i = 0; i < sizeof tags / sizeof tags[0]; i++) {
    char open[16], close[16];
    snprintf(open, sizeof open, "<%s", tags[i]);
    snprintf(close, sizeof close, "</%s>", tags[i]);
    if (count(page, open) != count(page, close))
      fail_msg("%s opens %d times and closes %d times", tags[i], count(page, open), count(page, close));
  }
  assert_int_equal(count(page, "http"), 0);
  assert_int_equal(count(page, "src="), 0);
  assert_int_equal(count(page, "nan"), 0);
}

/* The page that `hvla-train report` makes of the files in a folder, on the heap. */
static char *report_of(const char *folder) {
  char arguments[1024];
  snprintf(arguments, sizeof arguments, "report '%s'", folder);
  expect_train(0, arguments, "report.html", NULL);
  return read_file(in_folder(folder, "report.html"));
}

static void a_run_leaves_its_report(void **state) {
  static const char *const words[] = {"finished",
                                      "of 6",
                                      "Held-out actions",
                                      "Noise head",
                                      "Vocabulary",
                                      "Throughput",
                                      "Learning rate",
                                      "always the mean action",
                                      "435 frames in 10 episodes",
                                      "88 frames in 2 episodes",
                                      "lift the cube",
                                      "Skipped steps",
                                      "lift.hdf5/demo_",
                                      "_spike",
                                      "<th>checkpoints</th><td>step 6</td>",
                                      "learning_rate: 0.003",
                                      NULL};
  char arguments[2048];
  snprintf(arguments, sizeof arguments,
           "run --config '%s' --set data.valid_split=valid --set validation.samples=3 --set validation.interval=3 "
           "--set watch.spike_factor=1.001 --set watch.spike_window=1 --set validation.keep_best=false",
           write_tiny_config(*state, in_folder(*state, "run")));
  expect_train(0, arguments, NULL);
  char *page = read_file(in_run(*state, "run", "report.html"));
  assert_holds(page, words);
  assert_sound(page);
  assert_int_equal(count(page, "<figure"), 6);
  free(page);

  snprintf(arguments, sizeof arguments, "report '%s/run' --out '%s/other.html'", (const char *)*state,
           (const char *)*state);
  expect_train(0, arguments, "other.html", NULL);
  assert_true(same_bytes(in_folder(*state, "other.html"), in_run(*state, "run", "report.html")));
}

/* A report is made of whatever files of a run there are. */
static void reports_what_there_is(void **state) {
  char arguments[1024];
  write_text(in_folder(*state, "metrics.jsonl"),
             "{\"step\": 1, \"loss\": null}\n{\"step\": 2, \"loss_ce\": 3.5}\n{\"st");
  write_text(in_folder(*state, "config.yaml"), "data: {files: \"<b>&.hdf5\"}\n");
  char *page = report_of(*state);
  assert_non_null(strstr(page, "&lt;b&gt;&amp;.hdf5"));
  assert_null(strstr(page, "<b>&"));
  assert_int_equal(count(page, "<figure"), 1);
  free(page);
  snprintf(arguments, sizeof arguments, "report '%s/none'", (const char *)*state);
  expect_train(2, arguments, "holds no run", NULL);
}

/* The files hold words and numbers that no run writes; they are escaped and do no harm. */
static void reports_what_no_run_writes(void **state) {
  write_text(in_folder(*state, "run.json"), "{\"start\": 1e300, \"end\": 1e308, \"parameters\": 1, \"host\": 3}");
  write_text(in_folder(*state, "metrics.jsonl"),
             "{\"step\": 1, \"skipped\": true, \"skip_reason\": \"<b>\", \"suspects\": [{\"first_sample\": "
             "9223372036854775807, \"samples\": 2, \"frames\": [3, \"<i>\"]}], \"loss_ce\": 1e308}\n"
             "{\"loss_ce\": 4}\n{\"step\": 1e300, \"loss_ce\": 4}\n{\"step\": 3, \"loss_ce\": 5, \"skipped\": true}\n");
  char *page = report_of(*state);
  assert_holds(page, (const char *const[]){"<td>&lt;b&gt;</td>", "<td>?, &lt;i&gt;</td>", "0 ranks on ?, ?",
                                           "<i class=\"c3\"></i>training <b>5</b>", NULL});
  assert_null(strstr(page, "(null)"));
  assert_null(strstr(page, "last started"));
  assert_int_equal(count(page, "<figure"), 1);
  free(page);
}

/* Errors of predictions that are not finite are null in the metrics. They are shown as nan and are never the best. */
static void errors_that_are_no_numbers_are_never_the_best(void **state) {
  write_text(
      in_folder(*state, "metrics.jsonl"),
      "{\"step\": 3, \"held_out_loss\": null, \"error_diffusion\": null, \"error_diffusion_dims\": [null, null], "
      "\"error_autoregressive\": 0.3, \"error_autoregressive_dims\": [0.4, 0.2], \"error_mean_action\": 0.4, "
      "\"error_mean_action_dims\": [0.3, 0.5]}\n");
  char *page = report_of(*state);
  assert_holds(page, (const char *const[]){"<th>diffusion</th><td>nan</td><td>nan</td><td>nan</td>",
                                           "<th>autoregressive</th><td>0.4000</td><td class=\"best\">0.2000</td>",
                                           "<td class=\"best\">0.3000</td><td>0.5000</td>", NULL});
  free(page);
}

/* Writes metrics and files of a run of eighty steps, one of them skipped, in which every figure is different, so that
 * the report can be checked for each. */
static void write_figures(const char *folder) {
  char lines[16384];
  size_t used = 0;
  for (int step = 1; step <= 80; step++) {
    const char *more = "";
    if (step == 10) {
      more = ", \"skipped\": true, \"skip_reason\": \"loss_spike\", \"suspects\": [{\"rank\": 1, "
             "\"first_sample\": 22, \"samples\": 6, \"frames\": [\"lift.hdf5/demo_0:1\"]}]";
    } else if (step == 80) {
      more = ", \"held_out_loss\": 5.25, \"held_out_loss_diffusion\": 0.75, \"held_out_loss_ce\": 4.5, "
             "\"error_diffusion\": 0.4, \"error_diffusion_dims\": [0.2, 0.6], "
             "\"error_autoregressive\": 0.3, \"error_autoregressive_dims\": [0.35, 0.25], "
             "\"error_mean_action\": 0.6, \"error_mean_action_dims\": [0.55, 0.65]";
    }
    used += (size_t)snprintf(lines + used, sizeof lines - used,
                             "{\"step\": %d, \"time\": %d, \"loss_diffusion\": %g, \"loss_ce\": 4%s}\n", step,
                             1000 + step, step == 80 ? 0.5 : 1.25, more);
  }
  assert_true(used < sizeof lines);
  write_text(in_folder(folder, "metrics.jsonl"), lines);
  write_text(in_folder(folder, "config.yaml"), "train: {steps: 90}\n");
  write_text(in_folder(folder, "run.json"), "{\"state\": \"running\", \"start\": 1000}");
}

static void figures_stand_where_they_belong(void **state) {
  static const char *const words[] = {
      "<b>80</b><em>of 90",
      "<b>0.3000</b><em>autoregressive; the mean action 0.6000</em>",
      "<b>1 min 20 s</b>", /* up to the last line of metrics, because nothing says when it ended */
      "<span>skipped steps</span><b>1</b>",
      "<td>1</td><td>22 to 27</td><td>lift.hdf5/demo_0:1</td>",
      "<th>diffusion</th><td class=\"best\">0.2000</td><td>0.6000</td><td>0.4000</td>",
      "<th>autoregressive</th><td>0.3500</td><td class=\"best\">0.2500</td><td>0.3000</td>",
      NULL};
  write_figures(*state);
  char *page = report_of(*state);
  assert_holds(page, words);
  char *noise = strstr(page, "<h3>Noise head"), *tokens = strstr(page, "<h3>Vocabulary head");
  assert_true(noise && tokens && noise < tokens);
  assert_non_null(strstr(tokens, "held out <b>4.5</b>"));
  *tokens = '\0';
  /* Curves are means over several steps; the last point here is one step. */
  assert_non_null(strstr(noise, "training <b>0.5</b>"));
  assert_non_null(strstr(noise, "held out <b>0.75</b>"));
  assert_int_equal(count(noise, ">0</text>"), 2); /* both axes begin at 0 */
  free(page);
}

static void draws_curves_inside_their_frame(void **state) {
  double x[2000], y[2000];
  hv_text drawing = {0};
  (void)state;
  for (int i = 0; i < 2000; i++) {
    x[i] = i;
    y[i] = i == 1000 ? 1e30 : sin(i * 0.01);
  }
  hv_chart chart = {.title = "a < \"b\"", .unit = "", .count = 1, .cut_spikes = true};
  chart.series[0] = (hv_series){.name = "s", .x = x, .y = y, .count = 2000, .colour = 1};
  hv_chart_draw(&chart, &drawing);
  assert_false(drawing.failed);
  assert_non_null(strstr(drawing.data, "a &lt; &quot;b&quot;"));
  assert_true(count(drawing.data, "L") >= 400 && count(drawing.data, "L") <= 520); /* neighbours are averaged */
  assert_null(strstr(strstr(drawing.data, "<svg"), "e+"));                         /* a spike stays near the frame */
  assert_non_null(strstr(drawing.data, "spikes are cut off, the highest is 1e+30</small>"));
  assert_non_null(strstr(drawing.data, ">0</text>"));
  assert_non_null(strstr(drawing.data, ">-1</text>")); /* the tick below the lowest value */
  hv_text_free(&drawing);

  y[10] = 100; /* a spike among few values */
  chart.series[0].count = 20;
  hv_chart_draw(&chart, &drawing);
  assert_null(strstr(drawing.data, "cut off"));
  assert_non_null(strstr(drawing.data, ">100</text>"));
  hv_text_free(&drawing);

  chart.series[0].count = 0;
  hv_chart_draw(&chart, &drawing);
  assert_int_equal(drawing.length, 0);
  y[0] = 0;
  chart.series[0].count = 1; /* a single point spans nothing */
  hv_chart_draw(&chart, &drawing);
  assert_null(strstr(drawing.data, "nan"));
  assert_null(strstr(drawing.data, "inf"));
  hv_text_free(&drawing);

  y[0] = 5e-324; /* nor does a subnormal number */
  hv_chart_draw(&chart, &drawing);
  assert_int_equal(count(drawing.data, ">0</text>"), 2);
  hv_text_free(&drawing);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_run_leaves_its_report, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(reports_what_there_is, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(reports_what_no_run_writes, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(errors_that_are_no_numbers_are_never_the_best, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(figures_stand_where_they_belong, make_folder, remove_folder),
      cmocka_unit_test(draws_curves_inside_their_frame),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
