"""Loading any causal LLM, in any precision and by either backend, and fitting it with LoRA."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from audiolm_utils.models.configuration import LLM_BACKENDS, LLM_PRECISIONS
from audiolm_utils.models.precision import DTYPES, Int8Embedding, Int8Linear
from audiolm_utils.models.quantised import check_autocast, load_nf4, stored_quantisation
from audiolm_utils.models.torch_file import named_weights

UNSLOTH_TOKENS = 2048  # the longest input it prepares for: 30 s of audio, prompt and answer are far below


def load_llm(
    reference: str,
    *,
    precision: str = "fp32",
    backend: str = "transformers",
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load any causal LLM frozen, in eval mode.

    Args:
        reference: a folder, a hub id, or a GGUF file in either ("folder/model.gguf", "owner/name/model.gguf"), whose
            weights are unpacked.
        precision: "fp32", "fp16", "bf16"; "nf4" for 4 bits, see [`load_nf4`]; "int8" loads float32, which
            [`quantise_base`] brings to 8 bits once adapters are in place.
        backend: "transformers", or "unsloth" for its faster kernels, on an accelerator.
        dtype: compute type in place of the precision's own.
        kwargs: of `from_pretrained`, such as `revision`.

    Raises:
        ValueError: precision or backend are unknown or do not go together, or the checkpoint is in 4 bits already
            and another precision is asked.
        ImportError: bitsandbytes or unsloth is not here.
        RuntimeError: unsloth is asked and there is no accelerator.
    """
    if precision not in LLM_PRECISIONS:
        raise ValueError(f"llm_precision {precision!r} is unknown; expected one of {', '.join(LLM_PRECISIONS)}")
    if backend not in LLM_BACKENDS:
        raise ValueError(f"llm_backend {backend!r} is unknown; expected one of {', '.join(LLM_BACKENDS)}")
    kwargs.setdefault("trust_remote_code", False)  # None would ask at the terminal
    folder, gguf_file = split_gguf(reference)
    if gguf_file is not None and (precision == "nf4" or backend == "unsloth"):
        raise ValueError(
            f"{reference} is a GGUF file, which is unpacked when it is loaded: take llm_backend='transformers' and "
            "llm_precision='fp32', 'fp16', 'bf16' or 'int8', or name the original checkpoint for 'nf4'"
        )
    if backend == "unsloth":
        model = _load_unsloth(folder, precision, dtype, **kwargs)
    elif precision == "nf4":
        model = load_nf4(folder, dtype=dtype, **kwargs)
    else:
        if gguf_file is not None:
            kwargs["gguf_file"] = gguf_file
        elif stored_quantisation(AutoConfig.from_pretrained(folder, **kwargs)).get("load_in_4bit"):
            raise ValueError(f"{reference} holds 4-bit weights; set llm_precision='nf4', {precision!r} was asked")
        with named_weights(folder):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or DTYPES[precision], **kwargs)
    return model.requires_grad_(False).eval()


def split_gguf(reference: str) -> tuple[str, str | None]:
    """Split a reference into folder or hub id and the GGUF file in it; None where it names no file."""
    if not reference.endswith(".gguf"):
        return reference, None
    path = Path(reference)
    if path.is_file():
        return str(path.parent), path.name
    parts = reference.split("/", 2)
    if len(parts) < 3 or not parts[0]:
        raise ValueError(f"there is no file {reference}; on the hub a GGUF file is named owner/name/FILE.gguf")
    return f"{parts[0]}/{parts[1]}", parts[2]


def _load_unsloth(reference: str, precision: str, dtype: torch.dtype | None, **kwargs: Any) -> PreTrainedModel:
    """Load by unsloth's FastLanguageModel, imported here alone: it patches transformers and needs an accelerator."""
    instead = "set llm_backend='transformers', which loads the same checkpoint through transformers and bitsandbytes"
    if precision == "int8":
        raise ValueError(f"unsloth has no llm_precision 'int8'; choose 'nf4' or 'bf16', or {instead}")
    if not torch.cuda.is_available():
        raise RuntimeError(f"llm_backend='unsloth' needs an accelerator, and torch sees none here: {instead}")
    try:
        from unsloth import FastLanguageModel
    except ImportError as error:
        raise ImportError(f"unsloth is not installed: pip install -e '.[gpu]', or {instead}") from error
    model, _ = FastLanguageModel.from_pretrained(
        model_name=reference,
        max_seq_length=UNSLOTH_TOKENS,
        dtype=dtype or (None if precision == "nf4" else DTYPES[precision]),  # None: what the device has
        load_in_4bit=precision == "nf4",
        **kwargs,
    )
    return model


def add_lora(model: PreTrainedModel, lora: dict[str, Any]) -> None:
    """Add a LoRA adapter (Hu et al. 2021) in place; only the adapter's weights train, in float32.

    peft makes them in the type that their layer computes in, where the small steps of training would be rounded away.

    Args:
        model: any transformers model.
        lora: fields of peft's LoraConfig: r, lora_alpha, lora_dropout, target_modules, use_rslora, use_dora...

    Raises:
        TypeError: a field LoraConfig does not have.
        ValueError: no module has one of the target names.
    """
    model.add_adapter(LoraConfig(**lora))
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()
        parameter.requires_grad_(is_adapter(name))


def is_adapter(name: str) -> bool:
    """Whether a parameter or module name belongs to a LoRA adapter."""
    return "lora_" in name


def embedding_rms(model: PreTrainedModel) -> float:
    """Root mean square of the LLM's input embedding table."""
    return float(token_table(model)[:].detach().float().pow(2).mean().sqrt())


def token_table(model: PreTrainedModel) -> torch.Tensor | Int8Embedding:
    """The LLM's input embedding table (vocabulary, D), whose rows are had as `table[token_ids]` in any precision."""
    embedding = model.get_input_embeddings()
    return embedding if isinstance(embedding, Int8Embedding) else embedding.weight


def effective_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict without LoRA adapters that still are the identity (every B matrix zero)."""
    state = module.state_dict()
    if any(tensor.any() for name, tensor in state.items() if "lora_B" in name):
        return state
    plain = {name: tensor for name, tensor in state.items() if not is_adapter(name)}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in plain.items()}


def quantise_base(model: PreTrainedModel) -> None:
    """Bring the linear layers of a float32 LLM on a CPU to 8 bits, in place; adapters and the output layer stay.

    See [`Int8Linear`]: they pass no gradient on, so the model is for inference, and for CTC alignment.
    """
    output = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not output and not is_adapter(name):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Int8Linear(module))


def settle(llm: PreTrainedModel, model: nn.Module, precision: str) -> None:
    """Bring a model's LLM to int8 where that is its precision, and its other parts to the LLM's device, in place."""
    if precision == "int8":
        quantise_base(llm)
    if llm.device.type != "cpu":
        for part in model.children():
            if part is not llm:
                part.to(llm.device)


def plain_config(llm: PreTrainedModel) -> PreTrainedConfig:
    """A copy of the LLM's configuration without how its weights are quantised, which its checkpoint says itself."""
    config = copy.deepcopy(llm.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def check_pass(llm: PreTrainedModel, precision: str, *, learns: bool) -> None:
    """Refuse a pass that would go wrong silently: learning through int8, or 4-bit layers in autocast.

    Args:
        llm: about to run.
        precision: its own.
        learns: whether a loss is asked; it counts only where gradients are recorded.
    """
    if precision == "int8" and learns and torch.is_grad_enabled():
        raise ValueError("an int8 LLM passes no gradient on: train with llm_precision 'fp32', 'bf16' or 'nf4'")
    check_autocast(llm)


def one_product(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Give the output layer its input (B, S, D) with the strides of a fresh tensor.

    `generate` asks for the last position only, a slice (B, 1, D), of which torch 2.13 makes B products; on a CPU in
    bfloat16 it copies the whole layer for them.
    """
    hidden, *rest = args
    return hidden.flatten(0, -2).contiguous().unflatten(0, hidden.shape[:-1]), *rest
