/* Starting from a model of another shape: which of the new model's values are copied from it, and which are new.
 *
 * A dimension of the actions has a column of x_embedder.mlp.fc1, a row of final_layer.mlp.fc2 and a bias; a dimension
 * of the state has a column of proprio_embedder.mlp.fc1. Each of these in the new model is copied from one in the old
 * model, or gets random initial values (hv_param_initial); so do whole parts that the old model lacks, the state
 * embedder or the noise head. No parameter belongs to a camera or to a step of the action chunk, so both may change
 * freely; nothing else of the architecture may change.
 */
#ifndef HV_TRAIN_ADAPT_H
#define HV_TRAIN_ADAPT_H

#include "core/io/model_directory.h"
#include "core/io/options.h"

typedef struct hv_adaptation {
  /* For each dimension of the new model, the old model's dimension that it continues; −1: none. Empty: the dimension of
   * the same number, if there is one. */
  const hv_int_list *action_dims, *state_dims;
  uint64_t seed; /* for random initial values */
} hv_adaptation;

/* Fills the parameters (allocated before) of a model of architecture `to` from the directory. Everything that does not
 * fit is listed in one HV_ERR_INPUT, after which nothing has been written. `report` says line by line what was
 * continued and what is new, and stays empty where the models have the same shape; `unexpected` as in
 * hv_model_directory_fill. */
HV_NODISCARD hv_status hv_adapt_model(const hv_model_directory *directory, const hv_config *to,
                                      const hv_adaptation *adaptation, hv_params *params, hv_stream *stream,
                                      hv_text *report, hv_text *unexpected);

#endif
