"""How many parameters a model has, and how many of them learn, part by part."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from audiolm_utils.models.llm import is_adapter
from audiolm_utils.models.precision import Int8Embedding, Int8Linear


@dataclass(frozen=True)
class ParameterReport:
    """Parameters of a model by part: name → (all, learning); LoRA is a part of its own.

    `str()` gives one line a part and one for all.
    """

    parts: dict[str, tuple[int, int]]

    @property
    def total(self) -> int:
        """All parameters, a tied weight once, a quantised one as if it were not."""
        return sum(total for total, _ in self.parts.values())

    @property
    def trainable(self) -> int:
        """Those that learn."""
        return sum(trainable for _, trainable in self.parts.values())

    def __str__(self) -> str:
        rows = {**self.parts, "all": (self.total, self.trainable)}
        return "\n".join(
            f"{name:<22}{total:>16,}, of them learn {trainable:>14,} ({100 * trainable / max(1, total):.3g} %)"
            for name, (total, trainable) in rows.items()
        )


def parameter_report(model: nn.Module) -> ParameterReport:
    """Count a model's parameters by its direct parts, adapters apart; 4-bit and int8 layers count their weights."""
    parts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in model.named_parameters():
        packed = getattr(parameter, "quant_state", None)  # bitsandbytes keeps two weights a byte
        count = parameter.numel() if packed is None else math.prod(packed.shape)
        part = parts[_part(name)]
        part[0] += count
        part[1] += count * parameter.requires_grad
    heads = {id(module.rows) for module in model.modules() if isinstance(module, Int8Linear)}
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            parts[_part(name)][0] += module.rows.numel() + (0 if module.bias is None else module.bias.numel())
        elif isinstance(module, Int8Embedding) and id(module.rows) not in heads:
            parts[_part(name)][0] += module.num_embeddings * module.embedding_dim
    return ParameterReport({name: (total, trainable) for name, (total, trainable) in parts.items()})


def _part(name: str) -> str:
    return name.split(".")[0] + (" LoRA" if is_adapter(name) else "")
