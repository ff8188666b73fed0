"""Small twins of the full-size models: the same classes, a few thousand weights."""

from audiolm_utils.evaluation.architectures import LLMS, Sizes

SMALL_LLM = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 300}
SMALL_LLM |= {"num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = Sizes(
    whisper={"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128},
    beats={"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    | {"patch_embed_dim": 32, "conv_pos": 16, "conv_pos_groups": 4},
    eat={"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    | {"pad_to_frames": 1024},
    projector={"hidden_size": 48, "num_attention_heads": 4},
    llms={name: {**fields, **SMALL_LLM} for name, fields in LLMS.items()},
    prompt_tokens=8,
)
