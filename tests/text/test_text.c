/* Prompts against the ids that Hugging Face's Llama tokenizer gives (tests/fixtures/tokenizer), lower case against
 * Python's, and what is refused. */
#include "core/io/json.h"
#include "core/text/prompt.h"
#include "tests/check.h"

#define TOKENIZER HVLA_SOURCE_DIR "/data/tokenizer/llama2-tokenizer.model"

static int open_tokenizer(void **state) {
  return hv_tokenizer_open(TOKENIZER, (hv_tokenizer **)state) ? -1 : 0;
}

static int close_tokenizer(void **state) {
  hv_tokenizer_close(*state);
  return 0;
}

/* The special token ids of a 7B model. */
static hv_config llama_config(void) {
  return (hv_config){.llm = {.vocab_size = 32064},
                     .token_bos = 1,
                     .token_eos = 2,
                     .token_pad = 32000,
                     .token_bod = 32001,
                     .token_eod = 32002,
                     .token_empty = 29871};
}

static void prompts_have_the_ids_of_hugging_face(void **state) {
  hv_config config = llama_config();
  json_t *cases;
  assert_ok(hv_json_load(HVLA_SOURCE_DIR "/tests/fixtures/tokenizer/ids.json", &cases));
  assert_int_equal(json_array_size(cases), 43);
  size_t index;
  json_t *entry;
  json_array_foreach(cases, index, entry) {
    const char *instruction = json_string_value(json_object_get(entry, "instruction"));
    const json_t *ids = json_object_get(entry, "ids");
    hv_token_list list;
    assert_ok(hv_prompt_encode(*state, &config, instruction, &list));
    if (list.count != json_array_size(ids)) fail_msg("%s: %zu ids", instruction, list.count);
    for (size_t i = 0; i < list.count; i++) {
      if (list.ids[i] != json_integer_value(json_array_get(ids, i))) fail_msg("%s: id %zu differs", instruction, i);
    }
    hv_token_list_free(&list);
  }
  json_decref(cases);
}

static void text_like_a_special_token_stays_text(void **state) {
  hv_config config = llama_config();
  hv_token_list list;
  assert_ok(hv_prompt_encode(*state, &config, "say </s> and <s> and <unk>", &list));
  assert_int_equal(list.ids[0], config.token_bos);
  for (size_t i = 1; i < list.count; i++) assert_true(list.ids[i] > 2);
  hv_token_list_free(&list);
}

static void a_phi_prompt_gets_no_empty_token(void **state) {
  hv_config config = llama_config();
  config.token_empty = 5;
  hv_token_list list;
  assert_ok(hv_prompt_encode(*state, &config, "lift", &list));
  assert_int_equal(list.ids[list.count - 1], 5);
  size_t with = list.count;
  hv_token_list_free(&list);
  config.token_empty = -1;
  assert_ok(hv_prompt_encode(*state, &config, "lift", &list));
  assert_int_equal(list.count, with - 1);
  hv_token_list_free(&list);
}

static void lower_case_is_pythons(void **state) {
  (void)state;
  /* The right-hand sides are the output of Python's str.lower. */
  static const char *const pairs[][2] = {
      {"", ""},
      {"ABC xyz 123", "abc xyz 123"},
      {"ÀÉÎÕÜ ŁÓDŹ", "àéîõü łódź"},
      {"ΣΗΚΩΣΕ ΤΟΝ ΚΥΒΟ ΤΗΣ", "σηκωσε τον κυβο της"},
      {"ΑΣ. ΑΣΑ Σ 'ΑΣ' ΑΣ\u0301", "ας. ασα σ 'ας' ας\u0301"},
      {"B'Σ ˡΣ ᲜΣᶧ Σ'˥Σ", "b'ς ˡσ ნςᶧ σ'˥ς"},
      {"İI\u0307Iı", "i\u0307i\u0307iı"},
      {"STRAẞE ǅ Ⅷ Ⓐ", "straße ǆ ⅷ ⓐ"},
      {"\u212A\u2126\u212B", "k\u03C9\u00E5"},
      {"ԱՒ Ꭰᏸ Ა Ⴀ", "աւ ꭰᏸ ა ⴀ"},
      {"\U00010400 \U0001E900", "\U00010428 \U0001E922"},
      {"🟥 中文 العربية", "🟥 中文 العربية"},
  };
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    char *lower;
    assert_ok(hv_lower_case(pairs[i][0], strlen(pairs[i][0]), &lower));
    assert_string_equal(lower, pairs[i][1]);
    free(lower);
  }
}

static void text_that_is_no_utf8_is_refused(void **state) {
  hv_config config = llama_config();
  static const char *const bad[] = {"\xff", "lift \xc3(", "\xed\xa0\x80", "\xf4\x90\x80\x80", "cut \xe2\x82"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    hv_token_list list;
    assert_error(hv_prompt_encode(*state, &config, bad[i], &list), "instruction", "UTF-8");
    assert_null(list.ids);
  }
  char *large = malloc(HV_MAX_INSTRUCTION + 2);
  assert_non_null(large);
  memset(large, 'a', HV_MAX_INSTRUCTION + 1);
  large[HV_MAX_INSTRUCTION + 1] = '\0';
  hv_token_list list;
  assert_error(hv_prompt_encode(*state, &config, large, &list), "65537 bytes");
  free(large);
}

static void pieces_are_found_by_id(void **state) {
  assert_int_equal(hv_tokenizer_size(*state), 32000);
  assert_string_equal(hv_tokenizer_piece(*state, 29871), "▁");
  assert_string_equal(hv_tokenizer_piece(*state, 2), "</s>");
  assert_null(hv_tokenizer_piece(*state, 32000));
  assert_null(hv_tokenizer_piece(*state, -1));
}

static void a_tokenizer_must_fit_its_model(void **state) {
  hv_config config = llama_config();
  assert_ok(hv_prompt_check_tokenizer(*state, &config, "tokenizer.model"));
  config.llm.vocab_size = 280;
  assert_error(hv_prompt_check_tokenizer(*state, &config, "tokenizer.model"), "tokenizer.model", "32000", "280");
  hv_token_list list;
  assert_error(hv_prompt_encode(*state, &config, "lift", &list), "vocabulary has 280");
  config = llama_config();
  config.token_bod = 31999;
  assert_error(hv_prompt_check_tokenizer(*state, &config, "tokenizer.model"), "bod 31999");
  config = llama_config();
  config.token_empty = 32010;
  assert_error(hv_prompt_check_tokenizer(*state, &config, "tokenizer.model"), "empty", "32010");
}

static void other_files_are_no_tokenizer(void **state) {
  (void)state;
  hv_tokenizer *tokenizer;
  void *folder = NULL;
  assert_int_equal(make_folder(&folder), 0);
  assert_error(hv_tokenizer_open("/nonexistent/tokenizer.model", &tokenizer), "/nonexistent/tokenizer.model");
  const char *path = in_folder(folder, "tokenizer.model");
  write_text(path, "version https://git-lfs.github.com/spec/v1\n");
  assert_error(hv_tokenizer_open(path, &tokenizer), path, "Git LFS pointer, not the SentencePiece file");
  write_text(path, "something else");
  assert_error(hv_tokenizer_open(path, &tokenizer), path, "cannot be read as a SentencePiece model");
  assert_error(hv_tokenizer_open(folder, &tokenizer), folder, "not a regular file");
  write_text(path, "");
  assert_error(hv_tokenizer_open(path, &tokenizer), path);
  assert_int_equal(remove_folder(&folder), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(prompts_have_the_ids_of_hugging_face), cmocka_unit_test(text_like_a_special_token_stays_text),
      cmocka_unit_test(a_phi_prompt_gets_no_empty_token),     cmocka_unit_test(lower_case_is_pythons),
      cmocka_unit_test(text_that_is_no_utf8_is_refused),      cmocka_unit_test(pieces_are_found_by_id),
      cmocka_unit_test(a_tokenizer_must_fit_its_model),       cmocka_unit_test(other_files_are_no_tokenizer),
  };
  return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
