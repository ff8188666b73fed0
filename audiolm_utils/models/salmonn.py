"""SALMONN-style checkpoints (Tang et al. 2024): the names of their tensors, and loading them strictly.

Such a `.pth` holds what its trainer trained: the norm of each encoder's stream, queries, Q-Former, projection and the
LLM's LoRA, beside optimizer and run configuration, of which nothing is kept here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.models.torch_file import misfit, read_torch_file, shapes_of, state_dict_of
from audiolm_utils.models.whisper import MAX_FRAMES

if TYPE_CHECKING:
    from audiolm_utils.models.modeling import AudioLMForConditionalGeneration

QFORMER = "speech_Qformer.bert."
NAMES = (  # beginnings of this package's names, and SALMONN's; the first that fits counts
    ("projector.body.norm.0.", "ln_speech."),
    ("projector.body.norm.1.", "ln_audio."),
    ("projector.body.norm.", "ln_speech."),
    ("projector.body.queries", "speech_query_tokens"),
    ("projector.body.qformer.layernorm.", f"{QFORMER}embeddings.LayerNorm."),
    ("projector.body.qformer.encoder.", f"{QFORMER}encoder."),
    ("projector.body.proj.", "speech_llama_proj."),
    ("language_model.", "llama_model.base_model.model."),
)
REQUIRED_SIZES = ("speech_size", "text_size", "hidden_size", "num_queries", "num_layers")
# The trainer leaves out frozen parameters but not buffers: these describe frozen parts, quantised ones included.
FROZEN_BUFFERS = re.compile(
    r"\.position_ids$|\.rotary_emb\.inv_freq$|\.SCB$|\.weight_format$"
    r"|\.weight\.((nested_)?(absmax|quant_map)|quant_state\.\w+)$"
)
# BERT's text side, which SALMONN takes out of its Q-Former: queries never pass it.
TEXT_SIDE = re.compile(
    r"^speech_Qformer\.(cls\.|bert\.(embeddings\.(word|position)_embeddings|encoder\.layer\.\d+\.(intermediate|output))\.)"
)


def salmonn_sizes(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """What tensors' shapes, by SALMONN's names, say about the model that they need.

    Returns:
        widths `speech_size` of Whisper, `audio_size` of BEATs, `text_size` of the LLM; `hidden_size`, `num_queries`
        and `num_layers` of the Q-Former; `lora_rank`, `lora_targets` (names of modules) and `lora_layers` (how many
        layers of the LLM have LoRA). None or 0 where the tensors that would tell are absent.
    """

    def size(name: str, axis: int) -> int | None:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) >= (axis + 1 if axis >= 0 else -axis) else None

    layers = {m[1] for name in shapes if (m := re.match(rf"{re.escape(QFORMER)}encoder\.layer\.(\d+)\.", name))}
    lora = sorted(name for name in shapes if name.endswith(".lora_A.weight"))
    return {
        "speech_size": size("ln_speech.weight", 0),
        "audio_size": size("ln_audio.weight", 0),
        "text_size": size("speech_llama_proj.weight", 0),
        "hidden_size": size("speech_query_tokens", -1),
        "num_queries": size("speech_query_tokens", -2),
        "num_layers": len(layers),
        "lora_rank": size(lora[0], 0) if lora else None,
        "lora_targets": sorted({name.split(".")[-3] for name in lora}),
        "lora_layers": len({m[1] for name in lora if (m := re.search(r"\.layers\.(\d+)\.", name))}),
    }


def salmonn_name(name: str) -> str:
    """SALMONN's name of one of this package's trained tensors; "" for what SALMONN does not have."""
    for ours, theirs in NAMES:
        if name.startswith(ours):
            name = theirs + name[len(ours) :]
            return name.replace("attention.attention.", "attention.self.").replace(".default.weight", ".weight")
    return ""


def read_salmonn(path: str | Path) -> dict[str, torch.Tensor]:
    """Trained tensors of a SALMONN-style `.pth` by name, LoRA's without the adapter name that newer peft writes.

    Buffers of frozen parts are left out. The file's run configuration may hold an access token; it is dropped unseen.

    Raises:
        OSError, ValueError: as [`read_torch_file`]; the file holds the text side of BERT that SALMONN takes out.
    """
    state = state_dict_of(read_torch_file(path, "model"), "model", path)
    if text_side := sorted(filter(TEXT_SIDE.search, state)):
        raise ValueError(
            f"{path} holds {len(text_side)} tensors of the Q-Former's text side, which SALMONN takes out and no query "
            f"passes: {text_side}. Remove them from its 'model' entry."
        )
    kept = {name: tensor for name, tensor in state.items() if not FROZEN_BUFFERS.search(name)}
    short = {name: re.sub(r"(\.lora_[AB])\.default\.weight$", r"\1.weight", name) for name in kept}
    return {name if short[name] in kept else short[name]: tensor for name, tensor in kept.items()}


def salmonn_config(
    path: str | Path,
    *,
    second_per_window: float = 0.333333,
    num_attention_heads: int = 12,
    lora_alpha: int = 32,
) -> dict[str, Any]:
    """Fields of [`AudioLMConfig`] that a checkpoint needs, from its tensors' shapes.

    The keyword arguments leave no trace in shapes; their defaults are SALMONN's. A checkpoint with overlapping windows
    (`second_stride` other than `second_per_window`) cannot be told from others either, and is not supported.

    Raises:
        OSError, ValueError: as [`read_salmonn`]; or tensors are missing that every such checkpoint has.
    """
    found = salmonn_sizes(shapes_of(read_salmonn(path)))
    if absent := [key for key in REQUIRED_SIZES if not found[key]]:
        raise ValueError(f"{path} does not tell {absent}: it is no SALMONN-style checkpoint, or not a whole one")
    projector = ProjectorConfig(
        window_frames=round(MAX_FRAMES * second_per_window / 30),
        num_attention_heads=num_attention_heads,
        dropout=0.1,
        legacy=True,
        **{key: found[key] for key in ("num_queries", "hidden_size", "num_layers")},
    )
    lora = {"r": found["lora_rank"], "lora_alpha": lora_alpha, "lora_dropout": 0.1}
    return {
        "projector": projector.to_dict(),
        "pad_to_30s": True,
        "lora": lora | {"target_modules": found["lora_targets"]} if found["lora_rank"] else None,
    }


def load_salmonn(model: AudioLMForConditionalGeneration, path: str | Path) -> None:
    """Load a SALMONN-style `.pth` into a model with a legacy projector, strictly, in place.

    Args:
        model: with the same encoders' widths, LLM and LoRA as the checkpoint; see [`salmonn_config`].
        path: the file.

    Raises:
        OSError, ValueError: as [`read_salmonn`]; the model has trained parts that SALMONN does not have, or tensors
            are missing, unexpected or of another shape: all are listed, after the sizes that differ.
    """
    own = model.own_state_dict()
    names = {name: salmonn_name(name) for name in own}
    if foreign := sorted(name for name, theirs in names.items() if not theirs):
        raise ValueError(
            f"this model has trained parts that SALMONN does not have: {foreign}. Build it from the fields that "
            f"salmonn_config({str(path)!r}) gives, without a CTC head or an adapter of the speech encoder."
        )
    state = read_salmonn(path)
    # SALMONN's queries have a leading axis of 1
    want = {theirs: (1, *own[n].shape) if n.endswith("queries") else tuple(own[n].shape) for n, theirs in names.items()}
    have = shapes_of(state)
    if wrong := misfit(have, want):
        found, needed = salmonn_sizes(have), salmonn_sizes(want)
        sizes = [f"{k}: {found[k]} in the file, {needed[k]} in the model" for k in found if found[k] != needed[k]]
        raise ValueError(
            f"{path} does not fit the model. Sizes: {sizes}. {wrong} "
            "Build the model from salmonn_config(path), and with the encoders and the LLM of the checkpoint."
        )
    model.load_own_state_dict({n: state[theirs].reshape(own[n].shape) for n, theirs in names.items()}, str(path))
