"""Published EAT checkpoints, in fairseq's and in the hub's layout, read into [`EatEncoder`] without loose ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from audiolm_utils.models.eat import EatConfig, EatEncoder, position_code
from audiolm_utils.models.torch_file import misfit, read_safetensors, read_torch_file, shapes_of, state_dict_of

PUBLISHED_FRAMES = 1024  # all published models were trained on, and are run on, 10.24 s
HEAD_WIDTH = 64  # of all published models
# Of pretraining (the teacher, the decoder) and of fine-tuning (the classifier): no part of the encoder.
LEFT_OUT = ("_ema", "decoder.", "fc_norm.", "head.")
POSITIONS = "fixed_positional_encoder.positions"

# Published names -> ours; the first fitting one is replaced.
RENAMED = {
    "local_encoder.proj": "patch_embedding",
    "context_encoder.norm": "pre_norm",
    "extra_tokens": "cls",
    "attn.qkv": "attention.self",
    "attn.proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm2": "output.LayerNorm",
}


def eat_from_checkpoint(path: str | Path, *, pad_to_frames: int | None = PUBLISHED_FRAMES) -> EatEncoder:
    """Load an EAT encoder in eval mode.

    Args:
        path: a folder (config.json and model.safetensors, as on the hub or saved by [`EatEncoder`]), the .safetensors
            file in such a folder, or any other file: a fairseq checkpoint of pretraining or fine-tuning.
        pad_to_frames: see [`EatConfig`]; for published checkpoints only, a folder saved by us keeps its own.

    Raises:
        OSError: a file is not there.
        ValueError: it is broken, holds code, or is no EAT checkpoint; missing and unexpected tensors are listed.
    """
    path = Path(path)
    if path.suffix != ".safetensors" and not path.is_dir():
        content = read_torch_file(path, "cfg", "model")
        if isinstance(content["model"], dict):
            content["model"].pop("_ema", None)  # the teacher, a dictionary of its own
        return _from_published(
            state_dict_of(content, "model", path), _model_fields(content["cfg"]), pad_to_frames, path
        )
    folder = path if path.is_dir() else path.parent
    fields = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    if fields.get("model_type") != EatConfig.model_type:
        raise ValueError(f"{folder / CONFIG_NAME} is of model_type {fields.get('model_type')!r}; expected 'eat'.")
    weights = folder / SAFE_WEIGHTS_NAME if path.is_dir() else path
    state = read_safetensors(weights)
    if "embed_dim" in fields:
        return _from_published(state, fields, pad_to_frames, weights)
    return _load(EatEncoder(EatConfig.from_dict(fields)), state, weights)


def _model_fields(cfg: Any) -> dict[str, Any]:
    """The model's fields in a fairseq configuration; a fine-tuned one holds the pretrained one's."""
    model = cfg.get("model") if isinstance(cfg, dict) else None
    model = model if isinstance(model, dict) else {}
    pretrained = model.get("pretrained_model_args")
    return _model_fields(pretrained) if pretrained else model


def _from_published(
    state: dict[str, Tensor], fields: dict[str, Any], pad_to_frames: int | None, origin: Path
) -> EatEncoder:
    """Convert a published state dict; sizes are read off its tensors, heads and norms off `fields`."""
    if fields.get("layer_norm_first"):
        raise ValueError(f"{origin} normalises in front of each layer (layer_norm_first); EAT normalises behind it.")
    state = _renamed(state)
    positions = state.pop(POSITIONS, None)
    try:
        hidden_size = state["cls"].shape[-1]
        intermediate_size = len(state["encoder.layer.0.intermediate.dense.weight"])
    except KeyError as error:
        raise ValueError(f"{origin} lacks {error}, it is no EAT encoder; it holds {sorted(state)[:5]} ...") from None
    config = EatConfig(
        hidden_size=hidden_size,
        num_hidden_layers=1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layer.")),
        num_attention_heads=fields.get("num_heads", hidden_size // HEAD_WIDTH),
        intermediate_size=intermediate_size,
        layer_norm_eps=fields.get("norm_eps", 1e-6),
        pad_to_frames=pad_to_frames,
    )
    encoder = EatEncoder(config)
    if positions is not None:
        places = torch.arange(positions.shape[1])
        expected = position_code(places, encoder.num_patches, hidden_size)
        if expected.shape != positions.shape[1:] or not torch.allclose(positions[0].float(), expected, atol=1e-3):
            raise ValueError(
                f"{origin}: {POSITIONS} is not the sine code of {encoder.num_patches} frequency patches that EAT adds; "
                "was it trained on other mel bins?"
            )
    return _load(encoder, state, origin)


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under our names, without what is no part of the encoder; unknown names stay."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("model.").removeprefix("modality_encoders.IMAGE.")
        if name.startswith(LEFT_OUT):
            continue
        for theirs, ours in RENAMED.items():
            if theirs in name:
                name = name.replace(theirs, ours).replace("blocks.", "encoder.layer.")
                break
        if "attention.self" in name:
            stem, kind = name.rsplit(".", 1)
            renamed |= {
                f"{stem}.{part}.{kind}": v for part, v in zip(("query", "key", "value"), value.chunk(3), strict=True)
            }
        else:
            renamed[name] = value.flatten(1) if name == "patch_embedding.weight" else value
    return renamed


def _load(encoder: EatEncoder, state: dict[str, Tensor], origin: Path) -> EatEncoder:
    """Load `state` strictly and return the encoder in eval mode; `ValueError` lists what does not fit."""
    if wrong := misfit(shapes_of(state), shapes_of(encoder.state_dict())):
        raise ValueError(f"{origin} is no EAT encoder of {encoder.config.num_hidden_layers} layers. {wrong}")
    encoder.load_state_dict(state)
    return encoder.eval()
