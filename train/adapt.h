/* Starting from a model of another shape: what its values become in the new one.
 *
 * A dimension of the actions has a column of x_embedder.mlp.fc1, a row of final_layer.mlp.fc2 and a bias; a number of
 * the state has a column of proprio_embedder.mlp.fc1. Each of the new model's continues one of the old model's, or
 * begins as in a model made from nothing. So does all of a part that the old model lacks: the state's embedder, the
 * noise head. No parameter belongs to a camera or to a place in the action chunk, so both may change freely; anything
 * else of the architecture may not.
 */
#ifndef HV_TRAIN_ADAPT_H
#define HV_TRAIN_ADAPT_H

#include "core/io/model_directory.h"
#include "core/io/options.h"

typedef struct hv_adaptation {
  /* For each of the new model's dimensions the old model's that it continues, −1: none. Empty: the same numbers, as
   * far as both go. */
  const hv_int_list *action_dims, *state_dims;
  uint64_t seed; /* of new values */
} hv_adaptation;

/* Fills the parameters (allocated before) of a model of architecture `to` from the directory. Everything that does not
 * fit is listed in one HV_ERR_INPUT, and nothing is written then. `report` says line by line what was continued and
 * what is new, and stays empty where the models have the same shape; `unexpected` as in hv_model_directory_fill. */
HV_NODISCARD hv_status hv_adapt_model(const hv_model_directory *directory, const hv_config *to,
                                      const hv_adaptation *adaptation, hv_params *params, hv_stream *stream,
                                      hv_text *report, hv_text *unexpected);

#endif
