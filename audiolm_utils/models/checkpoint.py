"""Saving and loading what a model learned: connector, adapters and routers in safetensors, other parts by reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, cached_file

from audiolm_utils.data.cache import atomic_path
from audiolm_utils.models.configuration import AudioLMConfig
from audiolm_utils.models.llm import is_adapter
from audiolm_utils.models.routing import is_router
from audiolm_utils.models.torch_file import misfit, read_safetensors, shapes_of

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel as Base
else:
    Base = object

FROZEN_PARTS = ("speech_encoder.", "audio_encoder.", "language_model.")
BASE_FIELDS = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)


class OwnWeights(Base):
    """The part of [`AudioLMForConditionalGeneration`] that reads and writes its own weights, strictly."""

    prepared = ""  # the call that folded the model's adapters

    def refuse_prepared(self, deed: str, now: bool = True) -> None:
        """Raise ValueError where the model was prepared for inference and is `now` to be saved or trained."""
        if self.prepared and now:
            raise ValueError(
                f"this model cannot be {deed}: {self.prepared} folded its adapters into its weights. Load it again "
                "with from_pretrained, and prepare it only where it answers"
            )

    def own_state_dict(self) -> dict[str, torch.Tensor]:
        """Connector, adapter and router tensors: everything but the frozen parts."""
        state = self.state_dict()
        return {k: v for k, v in state.items() if not k.startswith(FROZEN_PARTS) or is_adapter(k) or is_router(k)}

    def load_own_state_dict(self, state: dict[str, torch.Tensor], origin: str = "state dict") -> None:
        """Load connector, adapters and routers strictly.

        Raises:
            ValueError: keys are missing or unexpected, or a shape differs; all are listed with `origin`.
        """
        if wrong := misfit(shapes_of(state), shapes_of(self.own_state_dict())):
            raise ValueError(f"{origin} does not fit the model. {wrong} Use the configuration it was saved with.")
        self.load_state_dict(state, strict=False)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        state_dict: dict[str, torch.Tensor] | None = None,
        is_main_process: bool = True,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        """Write config.json and model.safetensors with connector and adapters; frozen parts stay references.

        `dtype` (such as torch.float16) stores floating tensors in that type; loading casts them back. Each file is
        replaced whole or not at all, so that what was saved there before stays loadable.

        Raises:
            ValueError: the model was prepared for inference.
            DiskFullError: the disk has no room for them.
        """
        self.refuse_prepared("saved")
        if not is_main_process:
            return
        folder = Path(save_directory)
        own = self.own_state_dict()
        tensors = {k: (state_dict or own)[k].detach().cpu().contiguous() for k in own}
        if dtype is not None:
            tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
        self.config.architectures = [type(self).__name__]
        with atomic_path(folder / SAFE_WEIGHTS_NAME) as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
            self.config.save_pretrained(partial.parent)
            os.replace(partial.with_name(CONFIG_NAME), folder / CONFIG_NAME)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Self:
        """Load frozen parts by reference, then connector and adapters strictly, in eval mode.

        Raises:
            OSError: the folder or hub id has no config.json or model.safetensors.
            ValueError: the weights do not fit the configuration, or were trained on another LLM.
        """
        name = str(pretrained_model_name_or_path)
        given = kwargs.pop("config", None)
        saved = AudioLMConfig.from_pretrained(name, **kwargs)
        base = saved.text_config
        model = cls.from_parts(given or saved, dtype=dtype)
        check_base(base, model.config, name)
        weights = cached_file(name, SAFE_WEIGHTS_NAME, **kwargs)
        model.load_own_state_dict(read_safetensors(weights), origin=str(weights))
        return model.eval()


def check_base(trained_on: PreTrainedConfig, config: AudioLMConfig, origin: str) -> None:
    """Raise ValueError where connector and adapters were trained on an LLM of another kind or shape than `config`'s."""
    now = config.text_config
    differing = [
        f"{field} {getattr(trained_on, field, None)}, now {getattr(now, field, None)}"
        for field in BASE_FIELDS
        if getattr(trained_on, field, None) != getattr(now, field, None)
    ]
    if differing:
        raise ValueError(
            f"{origin} was trained on another LLM than {config.text_model}: {'; '.join(differing)}. "
            "Name the LLM that it was trained on as text_model in its config.json, or train it on this one."
        )
