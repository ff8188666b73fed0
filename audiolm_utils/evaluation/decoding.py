"""What a token costs in decoding: one step of several LLMs after the same prompt, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from audiolm_utils.evaluation.profiling import measure_together
from audiolm_utils.models.routing import active_parameters


@torch.no_grad()
def decoding_cost(
    models: Mapping[str, PreTrainedModel], *, prompt_tokens: int = 64, repeats: int = 20
) -> list[dict[str, Any]]:
    """Time one step of greedy decoding, batch 1, for each of several LLMs of one vocabulary.

    Steps of all models take turns, so that a machine's drift meets all alike, and each model takes its step after the
    same prompt of random tokens. How many threads: `torch.set_num_threads`, before.

    Args:
        models: the LLMs by name; the first is what others are compared with. They stay as they are: lay out their
            weights before, see [`lay_out_for_decoding`].
        prompt_tokens: before the step, in its cache.
        repeats: of the step, after two that are not kept.

    Returns:
        One row a model: name, threads, active_parameters (those that a token passes), tpot_s summary, and speedup of
        the medians over the first model.

    Raises:
        ValueError: there is no model.
    """
    if not models:
        raise ValueError("there is no model to time: give {'dense': llm, ...}")
    steps = {name: _step(llm.eval(), prompt_tokens) for name, llm in models.items()}
    first = next(iter(models.values()))
    timings = measure_together(steps, warmup=2, repeats=repeats, device=first.device)
    base = next(iter(timings.values())).median
    return [
        {
            "name": name,
            "threads": torch.get_num_threads(),
            "active_parameters": active_parameters(llm),
            "tpot_s": timings[name].summary(),
            "speedup": round(base / timings[name].median, 3),
        }
        for name, llm in models.items()
    ]


def _step(llm: PreTrainedModel, prompt_tokens: int) -> Callable[[], torch.Tensor]:
    ids = torch.randint(llm.config.vocab_size, (1, prompt_tokens + 1), generator=torch.Generator().manual_seed(0))
    ids, cache = ids.to(llm.device), DynamicCache(config=llm.config)
    llm(ids[:, :-1], past_key_values=cache, logits_to_keep=1)

    def step() -> torch.Tensor:
        token = llm(ids[:, -1:], past_key_values=cache).logits.argmax(-1)
        cache.crop(-1)
        return token

    return step
