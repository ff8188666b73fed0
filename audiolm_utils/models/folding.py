"""Preparing a trained model for inference: adapters folded, matrices laid out for decoding or in 8 bits."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel

from audiolm_utils.models.cpu_experts import lay_out_experts
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.precision import (
    DTYPES,
    Int8Embedding,
    cast,
    fast_encoder_precision,
    is_int8,
    quantise,
    require_cpu,
)

PRECISIONS = ("fp32", "int8")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGEST_KEPT = 32 * 2**20  # bytes of what glibc keeps for the next tensor at most, once as large a one was let go


@torch.no_grad()
def fold_adapters(module: nn.Module, then: Callable[[nn.Module], nn.Module] | None = None) -> int:
    """Add LoRA to the floating-point weights it adapts and remove it, in place; returns how many layers that were.

    The outputs stay as they were, up to rounding, and each such layer is one product instead of three; experts, whose
    adapters are added up anew for each token, count as one layer a block. Quantised layers keep their adapters: folded,
    they would have to be rounded again.

    Args:
        module: with adapters.
        then: what takes each folded layer and gives what stands in its place, before the next one is folded.
    """
    folded = 0
    adapted = [name for name, layer in module.named_modules() if isinstance(layer, LoraLayer)]
    for name in adapted:  # names, not the layers, whose weights they would keep in memory
        if name.endswith(".base_layer"):  # an expert's second adapter, inside the first
            continue
        base = _folded(module.get_submodule(name))
        if base is not None:
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, base if then is None else then(base))
            folded += 1
    return folded


def _folded(layer: nn.Module) -> nn.Module | None:
    """The layer below an adapter with the adapter in its weights; None where it is to be left."""
    if isinstance(layer, ParamWrapper):
        return layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    if not isinstance(layer, LoraLayer) or type(layer.get_base_layer()) is not nn.Linear:
        return None
    base = layer.get_base_layer()
    base.weight.data = base.weight.data.clone()  # a changed page of a checkpoint's file stays in memory with the file
    layer.merge()
    return base


@torch.no_grad()
def lay_out_for_decoding(module: nn.Module) -> None:
    """Store the matrices of a CPU model's linear layers and experts column by column, in place; values and shapes stay.

    A token alone multiplies each matrix by one vector. Row by row this is a dot product per output, too short to keep
    a narrow model's memory busy; column by column it is a few long additions into outputs that stay in the cache.

    Every tensor is copied, a matrix of one row too, which lies in both orders: it may be a view of a checkpoint's file,
    which stays in memory while one is left.
    """
    by_columns = {"memory_format": torch.contiguous_format}
    matrices = {layer.weight for layer in module.modules() if type(layer) is nn.Linear}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and type(tensor) in (nn.Parameter, torch.Tensor):
            tensor.data = tensor.data.t().clone(**by_columns).t() if tensor in matrices else tensor.data.clone()
    lay_out_experts(module)


@torch.no_grad()
def llm_to_int8(llm: PreTrainedModel) -> None:
    """Bring a causal LLM on a CPU to 8 bits, in place: its linear layers, output layer and embedding table.

    Adapters are folded and each float weight is let go before the next one is touched. A table that is tied to the
    output layer stays so: both share 8-bit rows. Experts, norms and an embedding of another class than torch's stay as
    they are. Raises ValueError where the LLM is in 8 or 4 bits already, or not on a CPU.
    """
    if is_int8(llm) or getattr(llm.config, "quantization_config", None) is not None:
        raise ValueError(
            "the LLM's weights are in 8 or 4 bits already and cannot be rounded again: "
            "load the model with llm_precision 'fp32' or 'bf16' to prepare it in int8"
        )
    require_cpu(llm)
    table = llm.get_input_embeddings()
    tied = table.weight is getattr(llm.get_output_embeddings(), "weight", None)
    fold_adapters(llm, quantise)
    quantise(llm)
    if type(table) is nn.Embedding:
        llm.set_input_embeddings(Int8Embedding(llm.get_output_embeddings() if tied else table))
        llm.config.tie_word_embeddings = False  # neither has a `weight` that transformers could tie
    llm.float()


def prepare_for_inference(model: AudioLMForConditionalGeneration, precision: str = "fp32") -> None:
    """Fold a trained model's adapters and lay its weights out for decoding, in place.

    From then on it answers, and raises ValueError where it is to learn or to be saved.

    Args:
        model: loaded, on a CPU for "int8".
        precision: "fp32" keeps the weights' own type. "int8": the LLM as [`llm_to_int8`] has it, both encoders in
            [`fast_encoder_precision`]; where that is "bf16" the projector too, else this and the CTC head in float32.

    Raises:
        ValueError: the precision is another, or the model cannot be brought to int8.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "int8":
        require_cpu(model)
        with memory_given_back():
            llm_to_int8(model.language_model)
            precision_of_encoders = fast_encoder_precision()
            for encoder in (model.speech_encoder, model.audio_encoder):
                if encoder is not None and not is_int8(encoder):
                    fold_adapters(encoder)
                    cast(encoder, precision_of_encoders)
            model.projector.to(DTYPES[precision_of_encoders])
            if model.ctc is not None:
                model.ctc.float()
            lay_out_for_decoding(model)
    else:
        fold_adapters(model)
        lay_out_for_decoding(model)
    model.prepared = f"prepare_for_inference(model, {precision!r})"


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Let what is freed in here go back to the system at once, where glibc would keep it for the next tensor."""
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)
    try:
        yield
    finally:
        gc.collect()
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)  # activations come and go as quickly as before
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT)
