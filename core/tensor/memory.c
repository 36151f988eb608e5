#include "core/tensor/memory.h"

#include <stdlib.h>

struct hv_memory_block {
  struct hv_memory_block *next;
  const void *memory;
  size_t bytes;
  hv_memory_kind kind;
};

const char *hv_memory_kind_name(hv_memory_kind kind) {
  static const char *const names[HV_MEMORY_KINDS] = {"weights",     "master",    "moments",      "gradients",
                                                     "activations", "workspace", "communication"};
  return names[kind];
}

hv_status hv_memory_enter(hv_memory_account *account, hv_memory_kind kind, const void *memory, size_t bytes) {
  struct hv_memory_block *block = malloc(sizeof *block);
  if (!block) return hv_error_memory("the account of device memory");
  *block = (struct hv_memory_block){.next = account->blocks, .memory = memory, .bytes = bytes, .kind = kind};
  account->blocks = block;
  account->held.bytes[kind] += bytes;
  account->held.total += bytes;
  if (account->held.total > account->peak.total) account->peak = account->held;
  return HV_OK;
}

void hv_memory_strike(hv_memory_account *account, const void *memory) {
  for (struct hv_memory_block **link = &account->blocks; *link; link = &(*link)->next) {
    struct hv_memory_block *block = *link;
    if (block->memory != memory) continue;
    account->held.bytes[block->kind] -= block->bytes;
    account->held.total -= block->bytes;
    *link = block->next;
    free(block);
    return;
  }
}

void hv_memory_reset_peak(hv_memory_account *account) {
  account->peak = account->held;
}

void hv_memory_close(hv_memory_account *account) {
  while (account->blocks) {
    struct hv_memory_block *next = account->blocks->next;
    free(account->blocks);
    account->blocks = next;
  }
  *account = (hv_memory_account){0};
}

static void add_line(const char *indent, const char *name, size_t bytes, hv_text *out) {
  hv_text_add(out, "%s%-13s %10.3f GB\n", indent, name, (double)bytes * 1e-9);
}

void hv_memory_table(const hv_memory_use *use, const char *indent, hv_text *out) {
  for (int kind = 0; kind < HV_MEMORY_KINDS; kind++) {
    if (use->bytes[kind] > 0) add_line(indent, hv_memory_kind_name((hv_memory_kind)kind), use->bytes[kind], out);
  }
  add_line(indent, "total", use->total, out);
}
