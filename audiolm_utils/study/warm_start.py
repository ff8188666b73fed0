"""A shipped model as the start of another: of one that hears with a second encoder too, or that has another LLM."""

from __future__ import annotations

import re

import torch
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.models.configuration import AudioLMConfig
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.torch_file import read_safetensors
from audiolm_utils.models.weights import DERIVED
from audiolm_utils.study.run import ADAPTERS


@torch.no_grad()
def start_from(model: AudioLMForConditionalGeneration, name: str) -> None:
    """Let an untrained model begin as a shipped one: what that has learned, and no influence of further encoders yet.

    The model hears the same speech encoder in its first stream and has the shipped one's projector, as wide or wider;
    in what this has more of (rows and columns of a second stream, tokens of the CTC vocabulary), the model computes
    what the shipped one does. Columns of further streams are zero and learn; tokens that are new to CTC get the mean
    bias. A connector that was shipped without LoRA of an LLM fits every LLM with its embedding table; the model's own
    LoRA then stays as it is, and so does a speech encoder that has none. An LLM that was cut out of the shipped one's
    takes over the LoRA of the layers that it kept.

    Raises:
        ValueError: the two have other frozen parts, or a tensor of one has no place in the other.
    """
    config = AudioLMConfig.from_pretrained(ADAPTERS / name)
    layers = kept_layers(model.config.text_model, config.text_model) if config.lora else None
    for part in ("speech_model", "text_model") if config.lora and layers is None else ("speech_model",):
        if (ours := getattr(model.config, part)) != (theirs := getattr(config, part)):
            raise ValueError(f"{name} was trained with {part}={theirs!r} and cannot start a model with {ours!r}")
    shipped = read_safetensors(ADAPTERS / name / SAFE_WEIGHTS_NAME)
    own = {key: tensor.clone() for key, tensor in model.own_state_dict().items()}
    width = model.speech_encoder.hidden_size
    streams = sum(part.hidden_size for part in (model.speech_encoder, model.audio_encoder) if part is not None)
    for key, tensor in own.items():
        source = _of_kept_layer(key, layers) if layers else key
        source = source if source in shipped else source.replace("body.norm.0.", "body.norm.")
        if source not in shipped:
            if "body.norm." not in key and not (key.startswith("language_model.") and config.lora is None):
                raise ValueError(f"{name} has no {source}: it does not fit a model with {key}")
            continue  # the norm of a further stream, or the LoRA of an LLM that has learned nothing yet
        if key == "ctc.token_ids":
            continue
        theirs, place = shipped[source].to(tensor), tensor
        if key == "ctc.bias":
            theirs = _biases(theirs, shipped["ctc.token_ids"], own["ctc.token_ids"])
        elif theirs.shape == tensor.shape:
            pass
        elif key.endswith("body.mix.bias"):
            place = tensor[:width]
        elif key.endswith("body.mix.weight"):  # (E, E, 5)
            tensor[:width] = 0
            place = tensor[:width, :width]
        elif key.endswith("body.mlp.0.weight"):  # (hidden, frames E)
            tensor.zero_()
            place = tensor.view(len(tensor), -1, streams)[..., :width]
            theirs = theirs.view(len(theirs), -1, width)
        if place.shape != theirs.shape:
            raise ValueError(f"{source} of {name} is {tuple(theirs.shape)}; expected {tuple(place.shape)}")
        place.copy_(theirs)
    model.load_own_state_dict(own, origin=name)


def kept_layers(reference: str | None, whole: str | None) -> list[int] | None:
    """Places in the LLM `whole` of the layers of one that was cut out of it; None where `reference` was not."""
    names = [str(name).removeprefix("pocket:") for name in (reference, whole)]
    derived = DERIVED.get(names[0])
    return derived.settings.get("layers") if derived is not None and derived.base == names[1] else None


def _of_kept_layer(key: str, layers: list[int]) -> str:
    if not key.startswith("language_model."):
        return key
    return re.sub(r"\.layers\.(\d+)\.", lambda place: f".layers.{layers[int(place[1])]}.", key)


def _biases(theirs: torch.Tensor, their_ids: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Biases of the blank and of `ids` from those of another vocabulary."""
    known = dict(zip(their_ids.tolist(), theirs[1:], strict=True))
    mean = theirs[1:].mean()
    return torch.stack([theirs[0], *(known.get(token, mean) for token in ids.tolist())])
