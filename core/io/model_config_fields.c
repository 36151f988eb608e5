#include "core/io/model_config_fields.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

enum { MAX_WIDTH = 1 << 17, MAX_DEPTH = 1024, MAX_VOCABULARY = 1 << 24 };

const hv_choice hv_objective_choices[] = {
    {"hybrid", HV_HYBRID}, {"diffusion", HV_DIFFUSION}, {"autoregressive", HV_AUTOREGRESSIVE}, {NULL, 0}};
static const hv_choice final_norms[] = {{"variance", HV_NORM_VARIANCE}, {"rms", HV_NORM_RMS}, {NULL, 0}};
static const hv_choice projectors[] = {{"fused-gelu-mlp", HV_PROJECTOR_FUSED_GELU_MLP},
                                       {"gelu-mlp", HV_PROJECTOR_GELU_MLP},
                                       {"linear", HV_PROJECTOR_LINEAR},
                                       {NULL, 0}};
static const hv_choice resizes[] = {{"naive", HV_RESIZE_NAIVE}, {"letterbox", HV_RESIZE_LETTERBOX}, {NULL, 0}};
static const hv_choice activations[] = {
    {"gelu", HV_ACT_GELU}, {"gelu_tanh", HV_ACT_GELU_TANH}, {"quick_gelu", HV_ACT_QUICK_GELU}, {NULL, 0}};
static const hv_choice model_types[] = {{"hybridvla", 0}, {NULL, 0}};
static const hv_choice llm_types[] = {{"llama", 0}, {NULL, 0}};
static const hv_choice hidden_acts[] = {{"silu", 0}, {NULL, 0}};
static const hv_choice schedules[] = {{"squaredcos_cap_v2", 0}, {NULL, 0}};

#define INT(type, name, least, most)                                                                                   \
  .key = #name, .kind = HV_FIELD_INT, .offset = offsetof(type, name), .min = (least), .max = (most)
#define CHOICE(type, name, list)                                                                                       \
  .key = #name, .kind = HV_FIELD_CHOICE, .offset = offsetof(type, name), .choices = (list)
#define CONSTANT(name, list) .key = (name), .kind = HV_FIELD_CONSTANT, .choices = (list)

static const hv_field top[] = {
    {CONSTANT("model_type", model_types)},
    {INT(hv_config, action_dim, 1, 1024)},
    {INT(hv_config, action_chunk, 1, 1024)},
    {INT(hv_config, state_dim, 0, 4096), .optional = true},
    {CHOICE(hv_config, objective, hv_objective_choices), .optional = true},
    {CHOICE(hv_config, final_norm, final_norms), .optional = true},
    {CHOICE(hv_config, projector, projectors)},
    {CHOICE(hv_config, image_resize, resizes), .optional = true},
};
static const char *const top_others[] = {"cameras",       "vision",         "llm", "diffusion",
                                         "action_tokens", "special_tokens", NULL};
const hv_section hv_section_top = {top, COUNT(top), top_others};

static const hv_field vision[] = {
    {.key = "prefix", .kind = HV_FIELD_NAME, .offset = offsetof(hv_vision_config, prefix), .max = HV_PREFIX_SIZE},
    {INT(hv_vision_config, width, 1, MAX_WIDTH)},
    {INT(hv_vision_config, depth, 2, MAX_DEPTH)},
    {INT(hv_vision_config, num_heads, 1, MAX_WIDTH)},
    {INT(hv_vision_config, mlp_width, 1, MAX_WIDTH)},
    {INT(hv_vision_config, patch_size, 1, 1024)},
    {INT(hv_vision_config, image_size, 1, 4096)},
    {.key = "layer_norm_eps", .kind = HV_FIELD_REAL, .offset = offsetof(hv_vision_config, layer_norm_eps)},
    {.key = "class_token", .kind = HV_FIELD_BOOL, .offset = offsetof(hv_vision_config, class_token)},
    {INT(hv_vision_config, register_tokens, 0, 1024)},
    {.key = "layer_scale", .kind = HV_FIELD_BOOL, .offset = offsetof(hv_vision_config, layer_scale)},
    {.key = "pre_norm", .kind = HV_FIELD_BOOL, .offset = offsetof(hv_vision_config, pre_norm)},
    {CHOICE(hv_vision_config, activation, activations)},
    {.key = "image_mean", .kind = HV_FIELD_COLOUR, .offset = offsetof(hv_vision_config, image_mean), .min = -1},
    {.key = "image_std", .kind = HV_FIELD_COLOUR, .offset = offsetof(hv_vision_config, image_std)},
};
static const char *const no_others[] = {NULL};
const hv_section hv_section_vision = {vision, COUNT(vision), no_others};

static const hv_field llm[] = {
    {CONSTANT("model_type", llm_types)},
    {INT(hv_llm_config, hidden_size, 1, MAX_WIDTH)},
    {INT(hv_llm_config, intermediate_size, 1, 1 << 20)},
    {INT(hv_llm_config, num_hidden_layers, 1, MAX_DEPTH)},
    {INT(hv_llm_config, num_attention_heads, 1, MAX_WIDTH)},
    {INT(hv_llm_config, num_key_value_heads, 1, MAX_WIDTH)},
    {.key = "rms_norm_eps", .kind = HV_FIELD_REAL, .offset = offsetof(hv_llm_config, rms_norm_eps)},
    {.key = "rope_theta", .kind = HV_FIELD_REAL, .offset = offsetof(hv_llm_config, rope_theta)},
    {INT(hv_llm_config, vocab_size, 1, MAX_VOCABULARY)},
    {CONSTANT("hidden_act", hidden_acts)},
};
static const char *const llm_others[] = {"head_dim",
                                         "rope_scaling",
                                         "attention_bias",
                                         "mlp_bias",
                                         "tie_word_embeddings",
                                         "architectures",
                                         "max_position_embeddings",
                                         "bos_token_id",
                                         "eos_token_id",
                                         "pad_token_id",
                                         "torch_dtype",
                                         "use_cache",
                                         "attention_dropout",
                                         "pretraining_tp",
                                         "initializer_range",
                                         "transformers_version",
                                         NULL};
const hv_section hv_section_llm = {llm, COUNT(llm), llm_others};

static const hv_field diffusion[] = {
    {.key = "steps",
     .kind = HV_FIELD_INT,
     .offset = offsetof(hv_config, diffusion_steps),
     .min = 1,
     .max = HV_MAX_DIFFUSION_STEPS},
    {CONSTANT("schedule", schedules)},
};
const hv_section hv_section_diffusion = {diffusion, COUNT(diffusion), no_others};

static const hv_field action_tokens[] = {
    {.key = "base", .kind = HV_FIELD_INT, .offset = offsetof(hv_config, action_base), .min = 1, .max = MAX_VOCABULARY},
    {.key = "bins", .kind = HV_FIELD_INT, .offset = offsetof(hv_config, action_bins), .min = 2, .max = 65536},
};
const hv_section hv_section_action_tokens = {action_tokens, COUNT(action_tokens), no_others};

static const hv_field tokens[] = {
    {.key = "bos", .kind = HV_FIELD_TOKEN, .offset = offsetof(hv_config, token_bos)},
    {.key = "eos", .kind = HV_FIELD_TOKEN, .offset = offsetof(hv_config, token_eos)},
    {.key = "pad", .kind = HV_FIELD_TOKEN, .offset = offsetof(hv_config, token_pad)},
    {.key = "bod", .kind = HV_FIELD_TOKEN, .offset = offsetof(hv_config, token_bod)},
    {.key = "eod", .kind = HV_FIELD_TOKEN, .offset = offsetof(hv_config, token_eod)},
    {.key = "empty", .kind = HV_FIELD_TOKEN, .offset = offsetof(hv_config, token_empty), .min = -1},
};
const hv_section hv_section_tokens = {tokens, COUNT(tokens), no_others};
