/* The parts of a model, which the training pass (model.c) and the policy (policy.c) put together in two ways. */
#ifndef HV_HYBRIDVLA_PARTS_H
#define HV_HYBRIDVLA_PARTS_H

#include "core/hybridvla/model.h"

typedef struct hv_model_parts {
  hv_config config;
  hv_device *device;
  hv_dtype dtype; /* T */
  hv_dtype real;  /* S of ops.h: F64 where T is, else F32 */
  hv_params *params;

  hv_vit towers[HV_MAX_TOWERS];
  hv_group_id projector_group;
  hv_mlp projector; /* concatenated vision features → image tokens */

  hv_group_id embed_group;
  hv_param_id embed_tokens; /* [vocabulary, D] */
  hv_decoder_layer *layers; /* num_hidden_layers */
  hv_group_id head_group;   /* the decoder's final norm and the vocabulary head */
  hv_param_id llm_norm, lm_head;

  hv_group_id embedder_group;
  hv_mlp state_embedder;    /* "proprio_embedder"; no layers where state_dim is 0 */
  hv_mlp x_embedder;        /* no layers without diffusion, like the three below */
  hv_mlp timestep_embedder; /* after the sinusoid of HV_TIMESTEP_FEATURES */
  hv_group_id final_group;
  hv_param_id final_norm; /* of final_layer; config.final_norm is its kind */
  hv_mlp final_mlp;

  /* Constants on the device, made by hv_model_prepare. */
  hv_arena constants;
  int64_t max_positions, max_images;
  int64_t preparations;                    /* how often the constants were made, each time elsewhere */
  hv_tensor cos_sin;                       /* [max_positions, head_dim] */
  hv_tensor alpha_bar;                     /* S [1, T] */
  hv_vit_tables vit_tables[HV_MAX_TOWERS]; /* for max_images; fewer images use their first rows */
} hv_model_parts;

enum { HV_TIMESTEP_FEATURES = 256 };
#define HV_FINAL_NORM_EPS 1e-6

/* Declares all parameters. After an error, close what is there. */
HV_NODISCARD hv_status hv_model_parts_open(const hv_config *config, hv_device *device, hv_dtype dtype,
                                           hv_model_parts *parts);
void hv_model_parts_close(hv_model_parts *parts);

/* See hv_model_prepare. */
HV_NODISCARD hv_status hv_model_parts_prepare(hv_model_parts *parts, int64_t max_positions, int64_t max_images,
                                              hv_stream *stream);

/* The model's parts, mutable because layers change the state of the parameter store. */
hv_model_parts *hv_model_get_parts(hv_model *model);

/* The towers' tables for `images` images, 1 … max_images. */
hv_vit_tables hv_model_vit_tables(const hv_model_parts *parts, int32_t tower, int64_t images);

/* Runs one tower: its columns of features [images P, vision width] from U8 [images, S S 3]. `saved` is NULL, or that
 * tower's. */
void hv_model_run_tower(hv_model_parts *parts, int32_t tower, hv_tensor images, hv_tensor features, hv_vit_saved *saved,
                        hv_arena *arena, hv_stream *stream);
/* All of them. `saved` is NULL or one for each tower. */
void hv_model_encode_images(hv_model_parts *parts, hv_tensor images, hv_tensor features, hv_vit_saved *saved,
                            hv_arena *arena, hv_stream *stream);

/* Embedded timesteps [n, D] from I32 [1, n]: sinusoid, then the MLP. The caller provides `sinusoid` [n,
 * HV_TIMESTEP_FEATURES]. */
void hv_model_embed_timesteps(hv_model_parts *parts, hv_tensor timesteps, hv_tensor sinusoid, hv_mlp_saved *saved,
                              hv_tensor out, hv_stream *stream);

/* The noise head: pred [n, A] (S) from hidden [n, D] after the decoder's final norm. */
typedef struct hv_noise_head_saved {
  hv_tensor norm, stats; /* [n, D], [n, 2] */
  hv_mlp_saved mlp;
} hv_noise_head_saved;
void hv_model_take_noise_head(const hv_model_parts *parts, hv_arena *arena, int64_t n, bool training,
                              hv_noise_head_saved *saved);
void hv_model_noise_head(hv_model_parts *parts, hv_tensor hidden, hv_noise_head_saved *saved, hv_tensor pred,
                         hv_stream *stream);

#endif
