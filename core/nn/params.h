/* The parameters of a model: declared once by name, held in groups, reached by views.
 *
 * A group (a decoder layer, a tower's block, …) is one contiguous run of elements, padded so that it splits evenly over
 * ranks; gradients, moments and remainders are runs of the same length, so an optimizer or a communicator deals in
 * groups and a layer in parameters. A layer may use the views of a group only between hv_params_use and hv_params_done,
 * and calls hv_params_gradients_ready in backward order once a group's gradients are complete. On one rank these calls
 * check their order, mark the layer in a trace, and write the zeros that are still due (hv_params_zero_gradients). Not
 * thread-safe.
 *
 * On several ranks the store keeps every rank's values equal and its gradients summed (hv_params_distribute). All ranks
 * must then make the same calls in the same order; hv_comm_status of the communicator tells of a lost rank.
 *
 * Order of calls: open → declare groups and parameters → freeze, distribute (optional) → allocate, and
 * allocate_gradients for training → load or initialise values → use.
 */
#ifndef HV_NN_PARAMS_H
#define HV_NN_PARAMS_H

#include "core/tensor/comm.h"
#include "core/tensor/device.h"
#include "core/tensor/trace.h"

enum {
  HV_PARAM_MAX_RANK = 4,
  /* A group's length is a multiple of this: on up to 32 ranks a share then holds whole blocks of 8-bit moments. */
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

/* A parameter under its name in model files. `rows` and `cols` are its matrix form: shape[0] and the product of the
 * rest; rank 1 is one row, and [1, P, W] is P rows of W. */
typedef struct hv_param {
  const char *name; /* owned by the store */
  hv_group_id group;
  int32_t rank;
  int64_t shape[HV_PARAM_MAX_RANK];
  int64_t rows, cols;
  int64_t offset; /* elements from the group's start */
  hv_init init;
  bool decay;        /* weight decay may apply: not a bias, a norm's weight or a LayerScale */
  bool lookup;       /* an embedding table: a step's gradient is 0 in most of its rows */
  bool linear;       /* a linear layer's weight: its gradient is written by hv_param_linear_gradients alone */
  bool trainable;    /* set by hv_params_freeze; true at the start */
  float rate;        /* factor on the learning rate, set by hv_params_scale_rates; 1 at the start */
  hv_param_id stack; /* the first parameter of its stack (hv_params_declare_stacked), or itself */
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

/* Starts a group, to which parameters declared from then on belong. Names are copied. Declarations return no error: the
 * first (no memory, no group) is returned by hv_params_declared, or else by hv_params_allocate, which finds duplicate
 * names. */
hv_group_id hv_params_begin_group(hv_params *params, const char *name);

typedef struct hv_param_spec {
  const char *prefix, *name;        /* the name is "prefix.name"; prefix NULL: `name` alone */
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

/* Declares matrices of equal width (or vectors) that lie one after the other without a gap, so that together they are
 * one matrix: [q | k | v], [gate | up]. Returns the id of the first; the others have the ids that follow. */
hv_param_id hv_params_declare_stacked(hv_params *params, const hv_param_spec *specs, int count);

/* The first error of the declarations so far, for which they returned no usable id; tells it once. */
HV_NODISCARD hv_status hv_params_declared(hv_params *params);

/* Freezes every parameter whose name matches one of the patterns (fnmatch); before allocation. A pattern that matches
 * nothing is an error that names it; so is freezing a part of a stack. */
HV_NODISCARD hv_status hv_params_freeze(hv_params *params, const char *const *patterns, int count);

/* Gives every parameter the factor of the first pattern (fnmatch) that matches its name. A pattern that changes nothing
 * is an error that names it: it matches no parameter, only frozen ones, or those that earlier patterns took. */
HV_NODISCARD hv_status hv_params_scale_rates(hv_params *params, const char *const *patterns, const double *factors,
                                             size_t count);

/* Of what each rank keeps only a 1/size share. Each level includes the ones before it (ZeRO stages 0 to 3). */
typedef enum hv_sharding {
  HV_SHARD_NOTHING,   /* values, gradients and optimizer state are whole on every rank */
  HV_SHARD_OPTIMIZER, /* each rank updates its share of a group, then values are all-gathered */
  HV_SHARD_GRADIENTS, /* a group's gradients are whole from use to gradients_ready; then a share of their sum is kept */
  HV_SHARD_PARAMETERS, /* a group's values are whole only while it is in use */
} hv_sharding;

/* Distributes the store over the ranks of `comm`, which must outlive it; before allocation. With one rank, nothing
 * changes. Sharding needs a number of ranks that divides HV_GROUP_ALIGNMENT, else HV_ERR_INPUT. */
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

/* Begin and end the use of a group's parameters on the stream. Sharded values are all-gathered by hv_params_use, or
 * prefetched before it if the pass uses groups in the same order as the pass before; after hv_params_done another group
 * may get their memory. */
void hv_params_use(hv_params *params, hv_group_id group, hv_stream *stream);
void hv_params_done(hv_params *params, hv_group_id group, hv_stream *stream);

/* From now on every use is a span of the trace (which outlives the store), "backward" if gradients_ready is called in
 * it, else "forward"; NULL: none.
 */
void hv_params_trace(hv_params *params, hv_trace *trace);

/* Between use and done, once in a backward pass: declares the group's gradients complete; those to which nothing was
 * added become 0. Starts their sum over ranks, which overlaps the rest of the pass. */
void hv_params_gradients_ready(hv_params *params, hv_group_id group, hv_stream *stream);

/* Before each forward pass of a training step. `last`: it is the step's last micro-batch, whose gradients_ready sum
 * over ranks; before it, gradients accumulate on each rank alone. Sharded gradients are summed over ranks in every
 * pass, since there is no memory to accumulate them whole. Without this call every pass counts as the last. */
void hv_params_begin_pass(hv_params *params, bool last, hv_stream *stream);

/* After the passes of a step, and before values or gradients are accessed outside of use and done: makes the stream
 * wait for all sums of gradients and all published values. */
void hv_params_end_passes(hv_params *params, hv_stream *stream);

/* After an update of what this rank owns of one group, or of all groups: all-gathers the values, which overlaps later
 * work of the stream; the group's next use waits for it. With HV_SHARD_PARAMETERS it only drops the gathered copy, and
 * the next use gathers. */
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

/* HV_ERR_INTERNAL names the first group since opening for which these calls were out of order: used twice, done or
 * ready without use, or more in use at once than there are slots. */
HV_NODISCARD hv_status hv_params_order_status(const hv_params *params);

/* Views. Absent for a negative id, and while values (or gradients) are sharded and the group is not in use; a gradient
 * also if the parameter is frozen. */
hv_tensor hv_param_value(const hv_params *params, hv_param_id id);
hv_tensor hv_param_gradient(const hv_params *params, hv_param_id id);
/* `count` stacked parameters as one matrix (or vector). Stacked gradients are absent if any of them is frozen. */
hv_tensor hv_param_stacked_value(const hv_params *params, hv_param_id first, int count);
hv_tensor hv_param_stacked_gradient(const hv_params *params, hv_param_id first, int count);

/* A whole group as one row [1, count], for a stream that has waited (hv_params_use, hv_params_end_passes). Gradients
 * are absent if the whole group is frozen; with sharding as the views above. */
hv_tensor hv_group_values(const hv_params *params, hv_group_id group);
hv_tensor hv_group_gradients(const hv_params *params, hv_group_id group);

/* Zeroes all gradients on the stream. Those of linear layers' weights are only marked as zero: their memory is
 * undefined until hv_param_gradient_begin lets a product set it, or hv_params_gradients_ready writes the zeros. Waits
 * for sums that are under way. */
void hv_params_zero_gradients(hv_params *params, hv_stream *stream);

/* Before a linear layer adds to the gradient of `count` stacked weights. True: nothing was added since they were
 * zeroed, and the caller must set the gradient instead of adding to it. */
bool hv_param_gradient_begin(hv_params *params, hv_param_id first, int count, hv_stream *stream);

/* Random initial values as each parameter's `init` says: a function of (seed, name, element). hv_param_initial gives
 * those of one parameter, [rows, cols], to the caller and leaves the store as it is. */
void hv_param_initial(const hv_params *params, hv_param_id id, uint64_t seed, float *values);
HV_NODISCARD hv_status hv_params_initialize(hv_params *params, uint64_t seed, hv_stream *stream);

/* Host copies of one parameter, `count` elements in the order of its shape, converted to or from `dtype` (F32, BF16,
 * F16, F64 as stored in files). They wait for the stream. If values are sharded, a write keeps this rank's share, and a
 * read is a collective call; sharded gradients cannot be read. */
HV_NODISCARD hv_status hv_param_write(hv_params *params, hv_param_id id, hv_dtype dtype, const void *values,
                                      hv_stream *stream);
HV_NODISCARD hv_status hv_param_read(const hv_params *params, hv_param_id id, hv_dtype dtype, void *values,
                                     hv_stream *stream);
HV_NODISCARD hv_status hv_param_read_gradient(const hv_params *params, hv_param_id id, hv_dtype dtype, void *values,
                                              hv_stream *stream);

/* If the device's results are watched (nan_watch.h): HV_ERR_INPUT names the first parameter with a value that is not
 * finite, which the watch, seeing results only, would not find. Collective as hv_param_read is. */
HV_NODISCARD hv_status hv_params_nan_status(const hv_params *params, hv_stream *stream);

#endif
