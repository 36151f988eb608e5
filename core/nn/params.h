/* The parameters of a model: declared once by name, held in groups, reached by views.
 *
 * A group (a decoder layer, a tower's block, …) is one contiguous run of elements, padded so that it splits evenly over
 * ranks; gradients, moments and remainders are runs of the same length, so an optimizer or a communicator deals in
 * groups and a layer in parameters. A layer may follow its views only between hv_params_use and hv_params_done of their
 * group, and calls hv_params_gradients_ready in backward order once a group's gradients are complete; on one rank these
 * only check the order of calls. Not thread-safe.
 *
 * On several ranks the store keeps every rank's values equal and its gradients summed (hv_params_distribute). All ranks
 * then make the same calls in the same order; a rank that is lost is what hv_comm_status of the communicator says.
 *
 * Life: open → groups and parameters declared → (distribute) → allocate (or allocate_gradients too) → values loaded or
 * initialised → used.
 */
#ifndef HV_NN_PARAMS_H
#define HV_NN_PARAMS_H

#include "core/tensor/comm.h"
#include "core/tensor/device.h"
#include "core/tensor/trace.h"

enum {
  HV_PARAM_MAX_RANK = 4,
  /* Elements; a group's length is a multiple, so that on up to 32 ranks a share is whole blocks of 8-bit moments. */
  HV_GROUP_ALIGNMENT = 8192,
};

typedef enum hv_init {
  HV_INIT_NORMAL, /* N(0, 0.02) */
  HV_INIT_XAVIER, /* uniform, ±sqrt(6 / (in + out)) */
  HV_INIT_ZERO,
  HV_INIT_ONE,
} hv_init;

typedef int32_t hv_param_id; /* index into the declaration order; negative: no such parameter */
typedef int32_t hv_group_id;

/* A parameter as files name it. `rows` and `cols` are its matrix form: shape[0] and the product of the rest, one row
 * for rank 1 and for leading ones ([1, P, W] is P rows of W). */
typedef struct hv_param {
  const char *name; /* owned by the store */
  hv_group_id group;
  int32_t rank;
  int64_t shape[HV_PARAM_MAX_RANK];
  int64_t rows, cols;
  int64_t offset; /* elements from the group's start */
  hv_init init;
  bool decay;        /* weight decay may apply: not a bias, a norm's weight or a LayerScale */
  bool lookup;       /* rows are looked up by ids, so that a step's gradient is 0 in most of them */
  bool linear;       /* a linear layer's weight: its gradient is written by hv_param_linear_gradients alone */
  bool trainable;    /* set by hv_params_freeze; true at the start */
  float rate;        /* factor on the learning rate, set by hv_params_scale_rates; 1 at the start */
  hv_param_id stack; /* the first of those it is stacked with, itself where it stands alone */
} hv_param;

typedef struct hv_group {
  const char *name;
  int64_t count;          /* elements, a multiple of HV_GROUP_ALIGNMENT */
  bool trainable;         /* any parameter of it is */
  bool lookup;            /* any parameter of it is */
  hv_param_id first, end; /* its parameters */
} hv_group;

typedef struct hv_params hv_params;

/* The device must outlive it. */
HV_NODISCARD hv_status hv_params_open(hv_device *device, hv_dtype dtype, hv_params **out);
void hv_params_close(hv_params *params); /* NULL is allowed */

/* Starts a group; parameters declared from then on belong to it. Names are copied. Errors of declarations (memory, a
 * name twice, no group) are remembered and returned by hv_params_allocate. */
hv_group_id hv_params_begin_group(hv_params *params, const char *name);

typedef struct hv_param_spec {
  const char *prefix, *name;        /* of "prefix.name"; prefix NULL: the name is whole */
  int64_t shape[HV_PARAM_MAX_RANK]; /* up to the first 0 */
  hv_init init;
  bool decay, lookup, linear;
} hv_param_spec;

hv_param_id hv_params_declare(hv_params *params, const hv_param_spec *spec);

/* A linear layer's weight [rows, cols], from N(0, 0.02); a bias, a norm's weight or a LayerScale [count]. */
hv_param_id hv_params_declare_matrix(hv_params *params, const char *prefix, const char *name, int64_t rows,
                                     int64_t cols);
hv_param_id hv_params_declare_vector(hv_params *params, const char *prefix, const char *name, int64_t count,
                                     hv_init init);

/* Declares matrices (or vectors) of equal width one behind the other without a gap, so that together they are one
 * matrix: [q | k | v], [gate | up]. Returns the first; the others follow. */
hv_param_id hv_params_declare_stacked(hv_params *params, const hv_param_spec *specs, int count);

/* Freezes every parameter whose name one of the patterns (fnmatch) matches; before allocation. A pattern that matches
 * nothing is an error that names it, and so is freezing a part of a stack. */
HV_NODISCARD hv_status hv_params_freeze(hv_params *params, const char *const *patterns, int count);

/* Gives every parameter the factor of the first pattern (fnmatch) that matches its name. A pattern that changes nothing
 * is an error that names it: it matches no parameter, only frozen ones, or those that earlier patterns took. */
HV_NODISCARD hv_status hv_params_scale_rates(hv_params *params, const char *const *patterns, const double *factors,
                                             size_t count);

/* What each rank keeps a 1/size share of, instead of all of it; each kind includes the ones before it. */
typedef enum hv_sharding {
  HV_SHARD_NOTHING,    /* values, gradients and optimizer state are whole on every rank */
  HV_SHARD_OPTIMIZER,  /* a rank updates its share of each group; then values are gathered */
  HV_SHARD_GRADIENTS,  /* a group's gradients are whole from its use to ready, then a share of their sum is kept */
  HV_SHARD_PARAMETERS, /* a group's values are whole only while it is in use */
} hv_sharding;

/* Spreads the store over the ranks of `comm`, which must outlive it; before allocation. With one rank, nothing changes.
 * Sharding needs a number of ranks that divides HV_GROUP_ALIGNMENT, else HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_params_distribute(hv_params *params, hv_comm *comm, hv_sharding sharding);

HV_NODISCARD hv_status hv_params_allocate(hv_params *params);

/* Gradient memory for the trainable groups, in `dtype` (the parameters' own, or F32). */
HV_NODISCARD hv_status hv_params_allocate_gradients(hv_params *params, hv_dtype dtype);

int32_t hv_params_count(const hv_params *params);
int32_t hv_params_group_count(const hv_params *params);
const hv_param *hv_params_get(const hv_params *params, hv_param_id id);
const hv_group *hv_params_group(const hv_params *params, hv_group_id group);
hv_param_id hv_params_find(const hv_params *params, const char *name); /* -1: none */
hv_dtype hv_params_dtype(const hv_params *params);
hv_device *hv_params_device(const hv_params *params);
int64_t hv_params_total(const hv_params *params); /* elements of all parameters, without padding */

/* Declares that the layers of `group` are about to run, or have run, on the stream. Sharded values are gathered by use,
 * or ahead of it where the order of uses is that of the pass before; their memory is given to another group some time
 * after done. */
void hv_params_use(hv_params *params, hv_group_id group, hv_stream *stream);
void hv_params_done(hv_params *params, hv_group_id group, hv_stream *stream);

/* From now on every use is a span of the trace (which outlives the store), with its gradients a backward one; NULL:
 * none.
 */
void hv_params_trace(hv_params *params, hv_trace *trace);

/* Between use and done, once in a backward pass: the group's gradients are complete, 0 where nothing was added. Their
 * sum over ranks is begun here and goes on beside the rest of the pass. */
void hv_params_gradients_ready(hv_params *params, hv_group_id group, hv_stream *stream);

/* Before each forward pass that a backward pass follows: is it the `last` one of a step, whose gradients_ready sum over
 * ranks? In those before it gradients are added up on each rank alone; sharded ones are summed in every pass, there
 * being no room for more. Without this call every pass is the last of its step. */
void hv_params_begin_pass(hv_params *params, bool last, hv_stream *stream);

/* After the passes of a step, and before group views are read or changed in any other way than between use and done:
 * makes the stream wait until all gradients are summed and all values that were published have come. */
void hv_params_end_passes(hv_params *params, hv_stream *stream);

/* After an update of what this rank owns of one group, or of all: brings all ranks' values together, beside what the
 * stream does next. The group's next use waits for it. */
void hv_params_publish_group(hv_params *params, hv_group_id group, hv_stream *stream);
void hv_params_publish(hv_params *params, hv_stream *stream);

/* The communicator, NULL on one rank. */
hv_comm *hv_params_comm(const hv_params *params);
hv_sharding hv_params_sharding(const hv_params *params); /* HV_SHARD_NOTHING on one rank */

/* What this rank updates of a group: elements [first, first + count), all of it without sharding. Gradients are absent
 * where nothing in the group is trained; they hold the sum over ranks after hv_params_end_passes. */
typedef struct hv_owned {
  int64_t first, count;
  hv_tensor values, gradients; /* [1, count] */
} hv_owned;
hv_owned hv_group_owned(const hv_params *params, hv_group_id group);

/* The first breach of the order of these calls since the store was opened: a group used twice, done or ready without
 * use. HV_ERR_INTERNAL names the group. */
HV_NODISCARD hv_status hv_params_order_status(const hv_params *params);

/* Views. An absent tensor for a negative id; the gradient is absent too where the parameter is frozen, and either while
 * it is sharded and its group not in use. */
hv_tensor hv_param_value(const hv_params *params, hv_param_id id);
hv_tensor hv_param_gradient(const hv_params *params, hv_param_id id);
/* `count` stacked parameters as one matrix (or vector). Stacked gradients are absent if any of them is frozen. */
hv_tensor hv_param_stacked_value(const hv_params *params, hv_param_id first, int count);
hv_tensor hv_param_stacked_gradient(const hv_params *params, hv_param_id first, int count);

/* A whole group as one row, for a stream that has waited (hv_params_use, hv_params_end_passes): values [1, count],
 * gradients [1, count] (absent where nothing in it is trained); under sharding as the views above. */
hv_tensor hv_group_values(const hv_params *params, hv_group_id group);
hv_tensor hv_group_gradients(const hv_params *params, hv_group_id group);

/* Sets all gradients to 0 on the stream; those of linear layers' weights only in name: what their memory holds has no
 * meaning until hv_param_gradient_begin or hv_params_gradients_ready. Sums that are under way are waited for. */
void hv_params_zero_gradients(hv_params *params, hv_stream *stream);

/* Before a linear layer adds to the gradient of `count` stacked weights: whether nothing was added since they were
 * zeroed, so that it must set the gradient instead. */
bool hv_param_gradient_begin(hv_params *params, hv_param_id first, int count, hv_stream *stream);

/* Random initial values as each parameter's `init` says: a function of (seed, name, element). hv_param_initial gives
 * those of one parameter, [rows, cols], to the caller and leaves the store as it is. */
void hv_param_initial(const hv_params *params, hv_param_id id, uint64_t seed, float *values);
HV_NODISCARD hv_status hv_params_initialize(hv_params *params, uint64_t seed, hv_stream *stream);

/* Host copies of one parameter, `count` elements in the order of its shape, converted to or from `dtype`
 * (F32, BF16, F16, F64 as stored in files). They wait for the stream. Where values are sharded, a write keeps this
 * rank's share, and a read is a collective call; sharded gradients cannot be read. */
HV_NODISCARD hv_status hv_param_write(hv_params *params, hv_param_id id, hv_dtype dtype, const void *values,
                                      hv_stream *stream);
HV_NODISCARD hv_status hv_param_read(const hv_params *params, hv_param_id id, hv_dtype dtype, void *values,
                                     hv_stream *stream);
HV_NODISCARD hv_status hv_param_read_gradient(const hv_params *params, hv_param_id id, hv_dtype dtype, void *values,
                                              hv_stream *stream);

/* Where the device's results are watched (nan_watch.h), which tells of what operations write and not of what they read:
 * HV_ERR_INPUT names the first parameter that holds a value that is not finite. Collective as a read is. */
HV_NODISCARD hv_status hv_params_nan_status(const hv_params *params, hv_stream *stream);

#endif
