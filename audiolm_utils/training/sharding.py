"""The LLM's frozen layers cut among processes by FSDP2 (`fully_shard`), each layer whole only while it runs.

What learns here is small, and the frozen LLM is most of the memory. So nothing else is cut: encoders, connector, LoRA
and the LLM's embeddings are whole in every process, and what learns is trained by data parallelism (DDP), as without
FSDP. Optimizer, checkpoints and saved folders are therefore the same, and a run may go on with or without FSDP.
accelerate's own wrapping cuts all parts: the CTC head's scalars cannot be, the connector reads the LLM's embeddings
from outside of their layer, each checkpoint would hold the whole LLM, and no process could encode clips alone.
"""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from audiolm_utils.models.llm import is_adapter
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration

LAUNCHED = "ACCELERATE_USE_FSDP"  # `accelerate launch` sets it, and the next ones, from its configuration
SETTINGS = {
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
PACKED = ("nf4", "int8")


def fsdp_launched() -> bool:
    """Whether accelerate launched this process with FSDP.

    Raises:
        ValueError: with other settings than those of configs/accelerate/fsdp.yaml, which are all that is supported.
    """
    if os.environ.get(LAUNCHED, "false").lower() != "true":
        return False
    found = {name: os.environ.get(name, "not given").lower() for name in SETTINGS}
    wrong = [f"{name.lower()} is {value}" for name, value in found.items() if value != SETTINGS[name]]
    if wrong:
        raise ValueError(
            f"FSDP was launched with settings that are not supported: {', '.join(wrong)}. "
            "Take those of configs/accelerate/fsdp.yaml"
        )
    return True


def llm_layers(llm: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of a transformers LLM, in order: the modules that it says must not be split."""
    return [module for module in llm.modules() if type(module).__name__ in (llm._no_split_modules or ())]


def shard_llm(model: AudioLMForConditionalGeneration, device: torch.device) -> None:
    """Cut the frozen weights of the LLM's layers among all processes, in place; a model that is cut already stays.

    A layer comes to `device` alone, and is cut before the next: no device ever holds the whole LLM.

    Args:
        model: equal in all processes, which torch.distributed has connected.
        device: where this process computes.

    Raises:
        ValueError: the LLM is kept in 4 or 8 bits, or does not say which modules are its layers.
    """
    llm = model.language_model
    decoder = llm.get_decoder()
    if isinstance(decoder, FSDPModule):
        return
    if (precision := model.config.llm_precision) in PACKED:
        raise ValueError(
            f"FSDP cannot cut the packed weights of an LLM with llm_precision={precision!r}: launch with "
            "configs/accelerate/ddp.yaml, where every process holds all of it"
        )
    if not (layers := llm_layers(llm)):
        raise ValueError(
            f"{type(llm).__name__} does not say which modules are its layers (_no_split_modules): launch with "
            "configs/accelerate/ddp.yaml"
        )
    adapters = {parameter for name, parameter in llm.named_parameters() if is_adapter(name)}
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=adapters)
    cut = {name: parameter for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}
    whole = set(model.parameters()) - set(cut.values())
    fully_shard(decoder, mesh=mesh, ignored_params=whole)  # a root for all layers, which fetches them ahead
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(cut))
