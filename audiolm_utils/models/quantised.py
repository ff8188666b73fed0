"""LLMs of 4 bits by bitsandbytes: NF4 with double quantisation, on a CPU and on CUDA (QLoRA, Dettmers et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from audiolm_utils.models.torch_file import named_weights


def load_nf4(reference: str, *, dtype: torch.dtype | None = None, **kwargs: Any) -> PreTrainedModel:
    """Load a causal LLM with 4-bit linear layers, quantised here or, as `*-bnb-4bit` checkpoints are, already.

    Weights are read and quantised one by one: the whole model is never there unquantised. It comes onto the CUDA
    device where there is one, else the CPU. The output layer and the embeddings keep 16 or 32 bits.

    This stands in for peft's `prepare_model_for_kbit_training`, which casts all that is not quantised to float32.
    With float32 or float16 as compute type the rest is float32 here too, against float16's overflows. With bfloat16
    it stays bfloat16: norms compute in float32 whatever their weight is kept in, and frozen weights gain nothing from
    a wider copy, while the embeddings would take twice their memory (Llama-3.2-3B's 0.79 GB more) and so would every
    activation. What learns is float32 in each case, the connector and LoRA; so are the logits of the loss.

    Args:
        reference: a folder or hub id.
        dtype: what 4-bit layers compute in; None is [`compute_dtype`] of the device.
        kwargs: of `from_pretrained`.

    Raises:
        ImportError: bitsandbytes is not here.
        ValueError: the checkpoint is quantised already, in another format than NF4.
    """
    require_bitsandbytes()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    compute = dtype or compute_dtype(device)
    config = AutoConfig.from_pretrained(reference, **kwargs)
    if stored := stored_quantisation(config):
        if not (stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4"):
            found = stored.get("bnb_4bit_quant_type") if stored.get("load_in_4bit") else stored.get("quant_method")
            raise ValueError(f"{reference} is quantised already, as {found!r}, not nf4; use its unquantised original")
        # Such a checkpoint names the type that its maker's GPU computed in.
        config.quantization_config = {**stored, "bnb_4bit_compute_dtype": str(compute).removeprefix("torch.")}
    else:
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    rest = torch.bfloat16 if compute == torch.bfloat16 else torch.float32
    with named_weights(reference):
        model = AutoModelForCausalLM.from_pretrained(
            reference, config=config, dtype=rest, device_map={"": device}, **kwargs
        )
    keep_as_loaded(model)
    return model


def require_bitsandbytes() -> None:
    """Raise ImportError with the mend where bitsandbytes cannot be imported."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "4-bit weights (llm_precision='nf4') need bitsandbytes, which cannot be imported: "
            "pip install 'bitsandbytes>=0.46.1', or choose another llm_precision such as 'bf16'"
        ) from error


def compute_dtype(device: torch.device) -> torch.dtype:
    """What 4-bit layers compute in on a device: float32 on a CPU, bfloat16 on a GPU that has it, else float16.

    On the CPUs measured here bfloat16 trained three times slower than float32.
    """
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def stored_quantisation(config: PreTrainedConfig) -> dict[str, Any]:
    """How a checkpoint's weights are quantised in its files, as its configuration says; {} where they are not."""
    stored = getattr(config, "quantization_config", None) or {}
    return stored if isinstance(stored, dict) else stored.to_dict()


def keep_as_loaded(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from changing 4-bit layers as they run.

    On a CPU with AVX-512 it repacks the weights of a layer for inference, on its first pass in eval mode with an input
    that needs no gradient, as a frozen LLM's first layer has throughout LoRA training. A repacked layer computes in
    bfloat16 and passes no gradient on, without a word, and one whose outputs are no multiple of 32 fails. A bias is
    brought to the type that its layer computes in, which the first pass would do.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            if module.bias is not None:
                module.bias.data = module.bias.data.to(module.compute_dtype)


def check_autocast(model: PreTrainedModel) -> None:
    """Refuse autocast to another type than the model's 4-bit layers compute in.

    The two would mix silently in each layer: weights unpacked to one type and multiplied in the other.
    """
    quantisation = getattr(model.config, "quantization_config", None)
    kind = model.device.type
    if not isinstance(quantisation, BitsAndBytesConfig) or not torch.is_autocast_enabled(kind):
        return
    compute, autocast = quantisation.bnb_4bit_compute_dtype, torch.get_autocast_dtype(kind)
    if compute != autocast:
        raise ValueError(
            f"autocast is to {autocast} and the LLM's 4-bit layers compute in {compute}: train without autocast "
            f"(fp16=False, bf16=False), or load the model with dtype={autocast}"
        )
