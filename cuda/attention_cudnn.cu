/* hv_attention_library on cuDNN's C backend interface. An operation is described as a graph of descriptors, from which
 * the library makes an execution plan for an engine; each shape's plan is made once and kept. */
#include <cudnn.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "cuda/attention.h"
#include "cuda/attention_library.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define LIBRARY "libcudnn.so." TEXT(CUDNN_MAJOR)

enum { OLDEST = 91301 /* the first version with attention as one operation */, WORKSPACE_LIMIT = 256 << 20 };
enum { UID_Q = 1, UID_K, UID_V, UID_OUT, UID_SCALE, UIDS = UID_SCALE };
enum { MOST_ENGINES = 8, MOST_DESCRIPTORS = 10 + MOST_ENGINES };

/* The library's functions in use. */
#define FUNCTIONS(X)                                                                                                   \
  X(GetVersion)                                                                                                        \
  X(GetErrorString)                                                                                                    \
  X(Create)                                                                                                            \
  X(Destroy)                                                                                                           \
  X(SetStream)                                                                                                         \
  X(BackendCreateDescriptor)                                                                                           \
  X(BackendDestroyDescriptor)                                                                                          \
  X(BackendSetAttribute)                                                                                               \
  X(BackendGetAttribute)                                                                                               \
  X(BackendFinalize)                                                                                                   \
  X(BackendExecute)

#define MEMBER(name) decltype(&cudnn##name) name;
struct functions {
  FUNCTIONS(MEMBER)
};
#undef MEMBER

/* What a plan is made for. Compared as bytes. */
struct shape {
  int64_t segments, rows, stride_q, stride_k, stride_v, stride_out;
  int32_t heads, key_heads, head_dim, unused;
};

struct plan {
  plan *next;
  shape key;
  cudnnBackendDescriptor_t made[MOST_DESCRIPTORS]; /* in the order made */
  int count;
  cudnnBackendDescriptor_t execution; /* among them; NULL if no engine takes the shape */
  int64_t workspace;
};

struct hv_attention_library {
  void *file; /* NULL: not in use, takes nothing */
  functions dnn;
  cudnnHandle_t handle;          /* of the open card; NULL with hv_attention_library_open_for */
  cudnnBackendDescriptor_t card; /* the properties given to that, else NULL */
  plan *plans;
};

static bool look_up(hv_attention_library *library) {
#define LOOK_UP(name)                                                                                                  \
  *(void **)&library->dnn.name = dlsym(library->file, "cudnn" #name);                                                  \
  if (!library->dnn.name) return false;
  FUNCTIONS(LOOK_UP)
#undef LOOK_UP
  return true;
}

/* Why the library cannot be used; NULL if it can. */
static const char *open_cudnn(hv_attention_library *library) {
  library->file = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE); /* never unloaded, as cuBLASLt (matmul.cu) */
  if (!library->file) return LIBRARY " was not found";
  if (!look_up(library)) return LIBRARY " lacks a function of the backend interface";
  if (library->dnn.GetVersion() < OLDEST) return LIBRARY " is older than 9.13.1";
  return nullptr;
}

static const char *open_on_card(hv_attention_library *library) {
  if (hv_is_switched_off("HVLA_CUDNN")) return "HVLA_CUDNN is 0";
  const char *why = open_cudnn(library);
  if (why) return why;
  if (library->dnn.Create(&library->handle) != CUDNN_STATUS_SUCCESS) return LIBRARY " does not start on this card";
  return nullptr;
}

hv_status hv_attention_library_open(hv_attention_library **out) {
  *out = (hv_attention_library *)calloc(1, sizeof **out);
  if (!*out) return hv_error_memory("cuDNN");
  const char *why = open_on_card(*out);
  if (!why) return HV_OK;
  hv_log_info("cuDNN is not used for the vision towers' attention (%s): the built-in kernel runs instead", why);
  if ((*out)->file) dlclose((*out)->file);
  (*out)->file = nullptr;
  return HV_OK;
}

static void close_plan(const functions *dnn, plan *p) {
  while (p->count > 0) (void)dnn->BackendDestroyDescriptor(p->made[--p->count]);
  free(p);
}

void hv_attention_library_close(hv_attention_library *library) {
  if (!library) return;
  while (library->plans) {
    plan *next = library->plans->next;
    close_plan(&library->dnn, library->plans);
    library->plans = next;
  }
  if (library->card) (void)library->dnn.BackendDestroyDescriptor(library->card);
  if (library->handle) (void)library->dnn.Destroy(library->handle);
  if (library->file) dlclose(library->file);
  free(library);
}

/* Makes descriptors, sets their attributes and finalizes them; after the first failure all further calls do nothing. */
struct builder {
  const functions *dnn;
  plan *p;
  cudnnStatus_t status;
};

static cudnnBackendDescriptor_t make(builder *b, cudnnBackendDescriptorType_t type) {
  cudnnBackendDescriptor_t made = nullptr;
  if (b->status == CUDNN_STATUS_SUCCESS) b->status = b->dnn->BackendCreateDescriptor(type, &made);
  if (b->status == CUDNN_STATUS_SUCCESS) b->p->made[b->p->count++] = made;
  return made;
}

static void set(builder *b, cudnnBackendDescriptor_t to, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values) {
  if (b->status == CUDNN_STATUS_SUCCESS) b->status = b->dnn->BackendSetAttribute(to, name, type, count, values);
}

static void link(builder *b, cudnnBackendDescriptor_t to, cudnnBackendAttributeName_t name,
                 cudnnBackendDescriptor_t what) {
  set(b, to, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &what);
}

static void finalize(builder *b, cudnnBackendDescriptor_t what) {
  if (b->status == CUDNN_STATUS_SUCCESS) b->status = b->dnn->BackendFinalize(what);
}

static cudnnBackendDescriptor_t make_tensor(builder *b, int64_t uid, cudnnDataType_t type, const int64_t sizes[4],
                                            const int64_t strides[4], bool by_value) {
  int64_t alignment = by_value ? sizeof(float) : 16;
  cudnnBackendDescriptor_t tensor = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  set(b, tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
  set(b, tensor, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(b, tensor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
  set(b, tensor, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, sizes);
  set(b, tensor, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
  if (by_value) set(b, tensor, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
  finalize(b, tensor);
  return tensor;
}

/* A matrix of rows, `stride` elements apart, each with its heads side by side, described as [segments, heads, rows,
 * head_dim]. */
static cudnnBackendDescriptor_t make_rows(builder *b, int64_t uid, int64_t heads, int64_t stride) {
  const shape *s = &b->p->key;
  const int64_t sizes[4] = {s->segments, heads, s->rows, s->head_dim};
  const int64_t strides[4] = {s->rows * stride, s->head_dim, stride, 1};
  return make_tensor(b, uid, CUDNN_DATA_BFLOAT16, sizes, strides, false);
}

static cudnnBackendDescriptor_t make_graph(builder *b, const hv_attention_library *library) {
  const shape *s = &b->p->key;
  const int64_t one[4] = {1, 1, 1, 1};
  cudnnBackendDescriptor_t q = make_rows(b, UID_Q, s->heads, s->stride_q);
  cudnnBackendDescriptor_t k = make_rows(b, UID_K, s->key_heads, s->stride_k);
  cudnnBackendDescriptor_t v = make_rows(b, UID_V, s->key_heads, s->stride_v);
  cudnnBackendDescriptor_t out = make_rows(b, UID_OUT, s->heads, s->stride_out);
  cudnnBackendDescriptor_t scale = make_tensor(b, UID_SCALE, CUDNN_DATA_FLOAT, one, one, true);
  cudnnBackendDescriptor_t attention = make(b, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
  link(b, attention, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, q);
  link(b, attention, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, k);
  link(b, attention, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, v);
  link(b, attention, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, out);
  link(b, attention, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scale);
  finalize(b, attention);
  cudnnBackendDescriptor_t graph = make(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (library->handle) set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &library->handle);
  link(b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, attention);
  finalize(b, graph);
  return graph;
}

/* Makes the plan of the `index`-th engine that the heuristics list, if there is one. */
static cudnnStatus_t try_engine(builder *b, const hv_attention_library *library, cudnnBackendDescriptor_t heuristics,
                                int index) {
  builder own = {b->dnn, b->p, CUDNN_STATUS_SUCCESS};
  cudnnBackendDescriptor_t engines[MOST_ENGINES] = {};
  int64_t found = 0;
  for (int i = 0; i <= index; i++) engines[i] = make(&own, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  if (own.status == CUDNN_STATUS_SUCCESS) {
    own.status = b->dnn->BackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                             index + 1, &found, engines);
  }
  if (own.status == CUDNN_STATUS_SUCCESS && found <= index) own.status = CUDNN_STATUS_NOT_SUPPORTED;
  cudnnBackendDescriptor_t execution = make(&own, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  if (library->card)
    link(&own, execution, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, library->card);
  else
    set(&own, execution, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &library->handle);
  link(&own, execution, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engines[index]);
  finalize(&own, execution);
  int64_t workspace = 0;
  if (own.status == CUDNN_STATUS_SUCCESS) {
    own.status = b->dnn->BackendGetAttribute(execution, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                             nullptr, &workspace);
  }
  if (own.status == CUDNN_STATUS_SUCCESS && workspace > WORKSPACE_LIMIT) own.status = CUDNN_STATUS_NOT_SUPPORTED;
  if (own.status == CUDNN_STATUS_SUCCESS) {
    b->p->execution = execution;
    b->p->workspace = workspace;
  }
  return own.status;
}

static void choose_engine(builder *b, const hv_attention_library *library, cudnnBackendDescriptor_t graph) {
  cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
  cudnnBackendDescriptor_t heuristics = make(b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  link(b, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  set(b, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  if (library->card) link(b, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, library->card);
  finalize(b, heuristics);
  if (b->status != CUDNN_STATUS_SUCCESS) return;
  b->status = CUDNN_STATUS_NOT_SUPPORTED;
  for (int i = 0; i < MOST_ENGINES && b->status != CUDNN_STATUS_SUCCESS; i++) {
    int kept = b->p->count;
    b->status = try_engine(b, library, heuristics, i);
    if (b->status == CUDNN_STATUS_SUCCESS) return;
    while (b->p->count > kept) (void)b->dnn->BackendDestroyDescriptor(b->p->made[--b->p->count]);
  }
}

hv_status hv_attention_library_open_for(const char *properties, hv_attention_library **out) {
  hv_attention_library *library = *out = (hv_attention_library *)calloc(1, sizeof **out);
  if (!library) return hv_error_memory("cuDNN");
  const char *why = open_cudnn(library);
  if (why) return hv_error(HV_ERR_DEVICE, "%s", why);
  plan none = {};
  builder b = {&library->dnn, &none, CUDNN_STATUS_SUCCESS};
  library->card = make(&b, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  set(&b, library->card, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)strlen(properties),
      properties);
  finalize(&b, library->card);
  if (b.status == CUDNN_STATUS_SUCCESS) return HV_OK;
  return hv_error(HV_ERR_DEVICE, "cuDNN does not know a card with these properties (%s)",
                  library->dnn.GetErrorString(b.status));
}

static void build(hv_attention_library *library, plan *p) {
  builder b = {&library->dnn, p, CUDNN_STATUS_SUCCESS};
  cudnnBackendDescriptor_t graph = make_graph(&b, library);
  choose_engine(&b, library, graph);
  if (b.status == CUDNN_STATUS_SUCCESS) return;
  hv_log_info("cuDNN has no attention for %lld rows of %d heads of %d (%s): the built-in kernel runs instead",
              (long long)p->key.rows, p->key.heads, p->key.head_dim, library->dnn.GetErrorString(b.status));
  p->execution = nullptr;
}

static bool find_plan(hv_attention_library *library, const shape *key, plan **out) {
  for (*out = library->plans; *out; *out = (*out)->next) {
    if (memcmp(&(*out)->key, key, sizeof *key) == 0) return true;
  }
  *out = (plan *)calloc(1, sizeof **out);
  if (!*out) return false;
  (*out)->key = *key;
  build(library, *out);
  (*out)->next = library->plans;
  library->plans = *out;
  return true;
}

static bool fits(const hv_attention_args *a) {
  return a->uniform && !a->causal && !hv_present(a->lse) && a->q.dtype == HV_BF16 &&
         hv_attention_is_wide(a->head_dim, a->q, a->k, a->v, a->out);
}

static shape shape_of(const hv_attention_args *a) {
  shape s;
  memset(&s, 0, sizeof s);
  s.segments = a->segments.rows;
  s.rows = a->max_q_rows;
  s.stride_q = a->q.row_stride;
  s.stride_k = a->k.row_stride;
  s.stride_v = a->v.row_stride;
  s.stride_out = a->out.row_stride;
  s.heads = a->num_heads;
  s.key_heads = a->num_kv_heads;
  s.head_dim = a->head_dim;
  return s;
}

/* Pointers are passed in a descriptor, which cannot be changed once it is finalized: each launch makes a new one. */
static hv_status execute(const hv_attention_library *library, const plan *p, hv_stream *stream,
                         const hv_attention_args *a, void *workspace) {
  const functions *dnn = &library->dnn;
  static const int64_t uids[UIDS] = {UID_Q, UID_K, UID_V, UID_OUT, UID_SCALE};
  float scale = (float)a->scale;
  void *data[UIDS] = {a->q.data, a->k.data, a->v.data, a->out.data, &scale};
  plan launch = {};
  builder b = {dnn, &launch, dnn->SetStream(library->handle, (cudaStream_t)hv_stream_queue(stream))};
  cudnnBackendDescriptor_t variant = make(&b, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  set(&b, variant, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, UIDS, uids);
  set(&b, variant, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, UIDS, data);
  set(&b, variant, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  finalize(&b, variant);
  if (b.status == CUDNN_STATUS_SUCCESS) b.status = dnn->BackendExecute(library->handle, p->execution, variant);
  if (variant) (void)dnn->BackendDestroyDescriptor(variant);
  if (b.status == CUDNN_STATUS_SUCCESS) return HV_OK;
  return hv_error(HV_ERR_DEVICE, "cuDNN, attention: %s; set HVLA_CUDNN=0 in the environment to run without cuDNN",
                  dnn->GetErrorString(b.status));
}

/* The plan of an operation; NULL if cuDNN does not take it. */
static const plan *plan_for(hv_attention_library *library, const hv_attention_args *args) {
  plan *p = nullptr;
  if (!library->file || !fits(args)) return nullptr;
  shape key = shape_of(args);
  return find_plan(library, &key, &p) && p->execution ? p : nullptr;
}

bool hv_attention_library_takes(hv_attention_library *library, const hv_attention_args *args) {
  return plan_for(library, args) != nullptr;
}

bool hv_attention_library_run(hv_attention_library *library, hv_stream *stream, const hv_attention_args *args) {
  const plan *p = plan_for(library, args);
  if (!p) return false;
  void *workspace = hv_stream_scratch(stream, p->workspace > 0 ? (size_t)p->workspace : 1);
  if (workspace) hv_stream_fail(stream, execute(library, p, stream, args, workspace));
  return true;
}
