#include "core/text/tokenizer.h"

#include <sentencepiece_processor.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "core/base/file.h"

struct hv_tokenizer {
  sentencepiece::SentencePieceProcessor processor;
};

// The library reports by status; exceptions come from the standard library, and none may reach C.
template <class Function> static hv_status guarded(const char *what, Function function) {
  try {
    return function();
  } catch (const std::bad_alloc &) {
    return hv_error_memory(what);
  } catch (const std::exception &error) {
    return hv_error(HV_ERR_INTERNAL, "%s: %s", what, error.what());
  }
}

static hv_status load(const char *path, hv_tokenizer **out) {
  return guarded("a tokenizer", [&]() -> hv_status {
    std::unique_ptr<hv_tokenizer> tokenizer(new hv_tokenizer);
    const sentencepiece::util::Status loaded = tokenizer->processor.Load(path);
    if (!loaded.ok()) {
      return hv_error(HV_ERR_INPUT, "%s cannot be read as a SentencePiece model: %s", path, loaded.ToString().c_str());
    }
    *out = tokenizer.release();
    return HV_OK;
  });
}

// A more precise error than the library's, if there is one: no regular file, or what a failed download left in its
// place.
static hv_status explain(const char *path) {
  hv_mapping file;
  HV_TRY(hv_map_file(path, &file));
  hv_status status = hv_check_download(path, "SentencePiece", file.data, file.size);
  hv_unmap(&file);
  return status;
}

hv_status hv_tokenizer_open(const char *path, hv_tokenizer **out) {
  *out = nullptr;
  hv_status status = load(path, out);
  if (!status) return HV_OK;
  hv_status reason = explain(path);
  if (!reason) return status;
  hv_status_free(status);
  return reason;
}

void hv_tokenizer_close(hv_tokenizer *tokenizer) {
  delete tokenizer;
}

int32_t hv_tokenizer_size(const hv_tokenizer *tokenizer) {
  return tokenizer->processor.GetPieceSize();
}

hv_status hv_tokenizer_encode(const hv_tokenizer *tokenizer, const char *text, size_t size, hv_token_list *out) {
  *out = hv_token_list{nullptr, 0};
  return guarded("token ids", [&]() -> hv_status {
    std::vector<int> ids;
    const sentencepiece::util::Status encoded = tokenizer->processor.Encode(std::string(text, size), &ids);
    if (!encoded.ok()) return hv_error(HV_ERR_INTERNAL, "the tokenizer failed: %s", encoded.ToString().c_str());
    out->ids = static_cast<int32_t *>(std::malloc((ids.size() + 1) * sizeof(int32_t)));
    if (!out->ids) return hv_error_memory("token ids");
    for (size_t i = 0; i < ids.size(); i++) out->ids[i] = ids[i];
    out->count = ids.size();
    return HV_OK;
  });
}

const char *hv_tokenizer_piece(const hv_tokenizer *tokenizer, int32_t id) {
  if (id < 0 || id >= hv_tokenizer_size(tokenizer)) return nullptr;
  return tokenizer->processor.IdToPiece(id).c_str();
}

void hv_token_list_free(hv_token_list *list) {
  std::free(list->ids);
  *list = hv_token_list{nullptr, 0};
}
