"""The audio-event encoders by reference: trained here, saved by us, or published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from transformers.utils import CONFIG_NAME

from audiolm_utils.models.beats import BeatsConfig, BeatsEncoder
from audiolm_utils.models.beats_checkpoint import beats_from_checkpoint, beats_from_published
from audiolm_utils.models.eat import EatConfig, EatEncoder
from audiolm_utils.models.eat_checkpoint import eat_from_checkpoint
from audiolm_utils.models.torch_file import read_torch_file
from audiolm_utils.models.weights import resolve

AudioEncoder: TypeAlias = BeatsEncoder | EatEncoder

LOADERS = {BeatsConfig.model_type: beats_from_checkpoint, EatConfig.model_type: eat_from_checkpoint}


def load_audio_encoder(reference: str) -> AudioEncoder:
    """Load an audio encoder in eval mode, its parameters frozen.

    Args:
        reference: "pocket:beats-mini" or "pocket:eat-mini"; a folder with config.json and model.safetensors, saved by
            us or EAT's from the hub; a published BEATs, OpenBEATs or EAT checkpoint file (.pt), or EAT's .safetensors.

    Raises:
        OSError: nothing is there; a hub id must be downloaded first.
        ValueError: the name is unknown, or the file is broken, holds code, or is no such encoder.
    """
    path = Path(resolve(reference))
    if not path.exists():
        raise FileNotFoundError(
            f"{reference} is no file or folder; give 'pocket:beats-mini', 'pocket:eat-mini' or a downloaded checkpoint."
        )
    if path.is_dir():
        encoder = _from_folder(path)
    elif path.suffix == ".safetensors":
        encoder = eat_from_checkpoint(path)
    else:
        content = read_torch_file(path, "cfg", "model")
        flat = isinstance(content["cfg"], dict) and "encoder_layers" in content["cfg"]  # EAT's nests its parts
        encoder = beats_from_published(content, path) if flat else eat_from_checkpoint(path)
    encoder.requires_grad_(False)
    return encoder


def _from_folder(folder: Path) -> AudioEncoder:
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(
            f"{folder} has no {CONFIG_NAME}; expected a saved BEATs or EAT encoder, or name its file."
        )
    model_type = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")).get("model_type")
    if model_type not in LOADERS:
        raise ValueError(f"{folder} holds a model of type {model_type!r}; expected one of {sorted(LOADERS)}.")
    return LOADERS[model_type](folder)
