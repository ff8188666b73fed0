"""Published BEATs and OpenBEATs checkpoints, and folders of our own, read into [`BeatsEncoder`] without loose ends."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from audiolm_utils.models.beats import BeatsConfig, BeatsEncoder
from audiolm_utils.models.fbank import BEATS_FBANK
from audiolm_utils.models.patches import PATCH
from audiolm_utils.models.torch_file import misfit, read_safetensors, read_torch_file, shapes_of, state_dict_of

logger = logging.getLogger(__name__)

# Our field -> the published one, and what the published code takes where a file does not say.
SIZES = {
    "hidden_size": ("encoder_embed_dim", 768),
    "patch_embed_dim": ("embed_dim", 512),
    "num_hidden_layers": ("encoder_layers", 12),
    "num_attention_heads": ("encoder_attention_heads", 12),
    "intermediate_size": ("encoder_ffn_embed_dim", 3072),
    "conv_pos": ("conv_pos", 128),
    "conv_pos_groups": ("conv_pos_groups", 16),
    "num_buckets": ("num_buckets", 320),
    "max_distance": ("max_distance", 1280),
    "deep_norm": ("deep_norm", False),
}
# Published options with the one value that all released models have, and the default of the published code.
OPTIONS = {
    "input_patch_size": (PATCH, -1),
    "conv_bias": (False, False),
    "activation_fn": ("gelu", "gelu"),
    "layer_norm_first": (False, False),
    "relative_position_embedding": (True, False),
    "gru_rel_pos": (True, False),
}
# No part of the encoder: the classifier of fine-tuned models; OpenBEATs' all-ones helpers, which count padding.
LEFT_OUT = ("predictor.", "patch_embedding_pad.", "raw2fbank_pad.")
TOKENIZER = "quantize"

# Our names -> published ones. "#" is the number of a layer; the first that fits counts.
NAMES = {
    "patch_embedding.": "patch_embedding.",
    "patch_norm.": "layer_norm.",
    "patch_projection.": "post_extract_proj.",
    "position_conv.direction": "encoder.pos_conv.0.weight_v",
    "position_conv.magnitude": "encoder.pos_conv.0.weight_g",
    "position_conv.bias": "encoder.pos_conv.0.bias",
    "position_norm.": "encoder.layer_norm.",
    "position_bias.": "encoder.layers.0.self_attn.relative_attention_bias.",
    "layers.#.attention.gate_scale": "encoder.layers.#.self_attn.grep_a",
    "layers.#.attention.gate.": "encoder.layers.#.self_attn.grep_linear.",
    "layers.#.attention.": "encoder.layers.#.self_attn.",
    "layers.#.attention_norm.": "encoder.layers.#.self_attn_layer_norm.",
    "layers.#.final_norm.": "encoder.layers.#.final_layer_norm.",
    "layers.#.": "encoder.layers.#.",
}
SHARED_BIAS = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


def beats_from_checkpoint(path: str | Path) -> BeatsEncoder:
    """Load a BEATs encoder in eval mode.

    Args:
        path: a folder saved by [`BeatsEncoder`], or a published BEATs or OpenBEATs file (.pt with "cfg" and "model").
            The classifier of a fine-tuned model is left out, with a line in the log.

    Raises:
        OSError: a file is not there.
        ValueError: it is broken, holds code, or is no BEATs encoder; missing and unexpected tensors are listed.
    """
    path = Path(path)
    if not path.is_dir():
        return beats_from_published(read_torch_file(path, "cfg", "model"), path)
    fields = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
    if fields.get("model_type") != BeatsConfig.model_type:
        raise ValueError(f"{path / CONFIG_NAME} is of model_type {fields.get('model_type')!r}; expected 'beats'.")
    weights = path / SAFE_WEIGHTS_NAME
    state = read_safetensors(weights)
    encoder = BeatsEncoder(BeatsConfig.from_dict(fields))
    return _loaded(encoder, state, {name: name for name in encoder.state_dict()}, weights)


def beats_from_published(content: dict[str, Any], path: str | Path) -> BeatsEncoder:
    """Convert the "cfg" and "model" of a published checkpoint; `path` names it in errors (see above)."""
    state = state_dict_of(content, "model", path)
    if any(name.startswith(TOKENIZER) for name in state):
        raise ValueError(f"{path} is a BEATs tokenizer (it has {TOKENIZER}.*); expected a BEATs encoder.")
    encoder = BeatsEncoder(_config(content["cfg"], path))
    left_out = sorted(name for name in state if name.startswith(LEFT_OUT))
    if left_out:
        logger.warning("%s: left out, as no part of the encoder: %s", path, ", ".join(left_out))
    state = {name: tensor for name, tensor in state.items() if name not in left_out}
    shared = state.get(SHARED_BIAS.format(0))
    for layer in range(1, len(encoder.layers)):  # stored once a layer, though the layers share it
        copy = state.pop(SHARED_BIAS.format(layer), shared)
        if shared is not None and copy is not None and not torch.equal(copy, shared):
            raise ValueError(f"{path}: layer {layer} has a relative position bias of its own; expected layer 0's.")
    return _loaded(encoder, state, {name: _published_name(name) for name in encoder.state_dict()}, path)


def _config(cfg: Any, path: str | Path) -> BeatsConfig:
    """Our configuration of a published one; options that no released model has are refused."""
    if not isinstance(cfg, dict) or "encoder_layers" not in cfg:
        held = sorted(cfg)[:6] if isinstance(cfg, dict) else type(cfg).__name__
        raise ValueError(f"{path}: 'cfg' is not that of BEATs (it has no 'encoder_layers'), but {held}.")
    for name, (expected, default) in OPTIONS.items():
        if cfg.get(name, default) != expected:
            raise ValueError(
                f"{path} has {name}={cfg.get(name, default)!r} in its cfg; only {expected!r} is supported."
            )
    mean, std = cfg.get("fbank_mean", BEATS_FBANK.mean), 2 * cfg.get("fbank_std", BEATS_FBANK.std / 2)
    sizes = {ours: cfg.get(published, default) for ours, (published, default) in SIZES.items()}
    return BeatsConfig(fbank=vars(replace(BEATS_FBANK, mean=mean, std=std)), **sizes)


def _published_name(name: str) -> str:
    layer = name.split(".")[1]
    rule = next(rule for rule in NAMES if name.startswith(rule.replace("#", layer)))
    return NAMES[rule].replace("#", layer) + name[len(rule.replace("#", layer)) :]


def _loaded(encoder: BeatsEncoder, state: dict[str, Tensor], names: dict[str, str], path: str | Path) -> BeatsEncoder:
    """Fill `encoder` from `state`, where its tensors have other `names`, in eval mode; all must be there, and fit."""
    expected = {names[name]: shape for name, shape in shapes_of(encoder.state_dict()).items()}
    if wrong := misfit(shapes_of(state), expected):
        raise ValueError(f"{path} is no BEATs encoder of its own configuration. {wrong}")
    encoder.load_state_dict({name: state[published] for name, published in names.items()})
    return encoder.eval()
