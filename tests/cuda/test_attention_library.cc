/* Which attentions cuDNN makes plans for, on a machine without a card: cuDNN gets the properties of cards as text.
 * Nothing is launched here; test_attention does that, on a card. */
#include <dlfcn.h>

#include <initializer_list>

#include "cuda/attention_library.h"
#include "tests/check.h"

struct card {
  const char *name;
  int capability, processors, shared_bytes;
};

/* One of each compute capability that the project is built for. */
static const card cards[] = {{"NVIDIA A100-SXM4-80GB", 800, 108, 166912},
                             {"NVIDIA L40S", 890, 142, 101376},
                             {"NVIDIA H100 80GB HBM3", 900, 132, 232448}};

/* A vision tower's attention: q, k and v side by side in one row. */
struct tower {
  int rows, heads, head_dim;
};
static const tower dino = {261, 16, 64}, siglip = {256, 16, 72};

/* The first row of the wider tower. It is never read; only its addresses matter. */
alignas(16) static uint16_t memory[3 * 16 * 72];

static hv_attention_args attention_of(tower t, int images) {
  int width = t.heads * t.head_dim;
  hv_tensor qkv = hv_tensor_make(memory, HV_BF16, (int64_t)images * t.rows, (int64_t)3 * width);
  hv_attention_args a = {};
  a.q = hv_tensor_cols(qkv, 0, width);
  a.k = hv_tensor_cols(qkv, width, width);
  a.v = hv_tensor_cols(qkv, (int64_t)2 * width, width);
  a.out = hv_tensor_make(memory, HV_BF16, (int64_t)images * t.rows, width);
  a.segments = hv_tensor_make(memory, HV_I32, images, 6);
  a.num_heads = a.num_kv_heads = t.heads;
  a.head_dim = t.head_dim;
  a.max_q_rows = a.max_key_rows = t.rows;
  a.uniform = true;
  a.scale = 0.125;
  return a;
}

static hv_attention_library *open_for(card c) {
  hv_attention_library *library;
  char properties[1024];
  snprintf(properties, sizeof properties,
           "{\"cudaDeviceId\":0,\"deviceVer\":%d,\"driverVer\":13000,\"totalGlobalMem\":80000000000,"
           "\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,"
           "\"multiProcessorCount\":%d,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
           "\"maxSharedMemoryPerBlockOptin\":%d,\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,"
           "\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,"
           "\"isTccDriver\":0,\"supportCoopLaunch\":1,\"smClockRateKHz\":1980000,\"memClockRateKHz\":2619000,"
           "\"l2CacheSize\":52428800,\"deviceName\":\"%s\"}",
           c.capability, c.processors, c.shared_bytes, c.name);
  assert_ok(hv_attention_library_open_for(properties, &library));
  return library;
}

static void assert_taken(const char *card_name, hv_attention_library *library, const char *name, tower t, int images) {
  hv_attention_args a = attention_of(t, images);
  if (!hv_attention_library_takes(library, &a)) fail_msg("%s: no engine for %d images of %s", card_name, images, name);
}

static void the_vision_towers_have_engines(void **) {
  for (const card &c : cards) {
    hv_attention_library *library = open_for(c);
    for (int images : {1, 32}) {
      assert_taken(c.name, library, "DINOv2", dino, images);
      assert_taken(c.name, library, "SigLIP", siglip, images);
    }
    hv_attention_library_close(library);
  }
}

static void what_the_contract_leaves_to_the_own_kernel(void **) {
  hv_attention_library *library = open_for(cards[2]);
  hv_attention_args a = attention_of(dino, 2);
  a.uniform = false;
  assert_false(hv_attention_library_takes(library, &a));
  a = attention_of(dino, 2);
  a.causal = true;
  assert_false(hv_attention_library_takes(library, &a));
  a = attention_of(dino, 2);
  a.lse = hv_tensor_make(memory, HV_F32, a.q.rows, dino.heads);
  assert_false(hv_attention_library_takes(library, &a));
  a = attention_of(dino, 2);
  a.q.dtype = a.k.dtype = a.v.dtype = a.out.dtype = HV_F32;
  assert_false(hv_attention_library_takes(library, &a));
  a = attention_of(dino, 2);
  a.k.data = memory + 2;
  assert_false(hv_attention_library_takes(library, &a));
  a = attention_of(dino, 2);
  a.out.row_stride += 4;
  assert_false(hv_attention_library_takes(library, &a));
  a = attention_of({21, 4, 12}, 2);
  assert_false(hv_attention_library_takes(library, &a));
  hv_attention_library_close(library);
}

/* Three heads of keys cannot serve sixteen of queries. cuDNN itself refuses that, and afterwards still accepts other
 * shapes. */
static void what_cudnn_refuses_is_left_to_the_own_kernel(void **) {
  hv_attention_library *library = open_for(cards[0]);
  hv_attention_args a = attention_of(dino, 2);
  a.num_kv_heads = 3;
  for (int i = 0; i < 2; i++) assert_false(hv_attention_library_takes(library, &a));
  a = attention_of(dino, 2);
  assert_true(hv_attention_library_takes(library, &a));
  hv_attention_library_close(library);
}

static void properties_that_are_none_are_refused(void **) {
  hv_attention_library *library;
  hv_status status = hv_attention_library_open_for("no card", &library);
  assert_non_null(status);
  assert_non_null(strstr(hv_status_message(status), "does not know a card"));
  hv_status_free(status);
  hv_attention_library_close(library);
}

int main() {
  void *cudnn = dlopen("libcudnn.so.9", RTLD_LAZY);
  if (!cudnn) {
    printf("skipped: %s\n", dlerror());
    return SKIPPED;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_vision_towers_have_engines),
      cmocka_unit_test(what_the_contract_leaves_to_the_own_kernel),
      cmocka_unit_test(what_cudnn_refuses_is_left_to_the_own_kernel),
      cmocka_unit_test(properties_that_are_none_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
