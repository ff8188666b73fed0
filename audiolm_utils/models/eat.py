"""EAT (Chen et al. 2024, "EAT: Self-Supervised Pre-Training with Efficient Audio Transformer").

A transformer over square patches of a filter bank, with one CLS token in front that stands for the clip. Its layers
normalise behind each residual, which is BERT's layer and no vision transformer's; so they are transformers' BERT.

Shape legend: B batch, T fbank frames (100 a second), M mel bins, N = T // 16 time steps of 160 ms, P = M // 16
frequency patches, L tokens (N * P on a whole grid, time-major), D width.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bert.modeling_bert import BertEncoder

from audiolm_utils.models.fbank import EAT_FBANK, FbankConfig
from audiolm_utils.models.patches import PATCH, cut_patches
from audiolm_utils.models.whisper import frame_mask


class EatConfig(PreTrainedConfig):
    """Configuration of [`EatEncoder`]; the defaults are those of the published base model.

    Attributes:
        fbank: fields of [`FbankConfig`] that differ from published EAT's; the filter bank the encoder was trained on.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the transformer.
        hidden_dropout_prob, attention_probs_dropout_prob: used in training only.
        layer_norm_eps, initializer_range: of all layer norms, of fresh weights.
        pad_to_frames: what shorter clips are padded to, unmasked, as published EAT hears them; None masks padding.

    Raises:
        ValueError: mel bins or `pad_to_frames` are no multiple of 16, the width does not split into heads or into the
            four parts of the position code, or the fields are those of a published checkpoint.
    """

    model_type = "eat"
    hidden_act = "gelu"
    is_decoder = False
    add_cross_attention = False

    fbank: dict[str, Any] | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    pad_to_frames: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if "embed_dim" in kwargs:
            raise ValueError("this is the configuration of a published EAT checkpoint: load it by eat_from_checkpoint.")
        super().__post_init__(**kwargs)
        self.fbank = asdict(replace(EAT_FBANK, **(self.fbank or {})))
        for name, frames in (("fbank.num_mel_bins", self.num_mel_bins), ("pad_to_frames", self.pad_to_frames or 0)):
            if frames % PATCH:
                raise ValueError(f"{name} is {frames}; expected a multiple of {PATCH}.")
        for parts in (4, self.num_attention_heads):
            if self.hidden_size % parts:
                raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {parts}, its number of parts.")

    @property
    def num_mel_bins(self) -> int:
        """Mel bins M of the filter bank."""
        return int((self.fbank or {})["num_mel_bins"])

    @property
    def padding_value(self) -> float:
        """What published EAT pads with: a log-mel energy of zero, normalised. It is louder than most of a clip."""
        fbank = FbankConfig(**(self.fbank or {}))
        return -fbank.mean / fbank.std


class EatEncoder(PreTrainedModel):
    """The encoder of EAT; padding is masked, so a clip's features do not depend on its batch.

    Attributes:
        cls: the CLS token, float (1, 1, D).
    """

    config_class = EatConfig
    base_model_prefix = "eat"
    main_input_name = "fbank"
    _supports_sdpa = True

    def __init__(self, config: EatConfig) -> None:
        super().__init__(config)
        self.num_patches = config.num_mel_bins // PATCH  # P
        self.patch_embedding = nn.Linear(PATCH * PATCH, config.hidden_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.pre_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = BertEncoder(config)
        self.post_init()

    @property
    def hidden_size(self) -> int:
        """Width D of the features."""
        return int(self.config.hidden_size)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.cls)
            init.xavier_uniform_(self.patch_embedding.weight)  # else the position code drowns the patches

    def patchify(self, fbank: Tensor) -> Tensor:
        """Cut a filter bank (B, T, M) into raw patches (B, N * P, 256), time-major; leftover frames are dropped.

        Raises:
            ValueError: the mel bins are not those of the configuration.
        """
        mel_bins = fbank.shape[2]
        if mel_bins != self.num_patches * PATCH:
            raise ValueError(
                f"fbank holds {mel_bins} mel bins; this encoder was trained on {self.num_patches * PATCH}: "
                "use kaldi_fbank with the fields of its config.fbank."
            )
        return cut_patches(fbank).flatten(1, 2)

    def embed(self, fbank: Tensor) -> Tensor:
        """Patch embeddings (B, N, P, D) of a filter bank (B, T, M), before positions."""
        return self.patch_embedding(self.patchify(fbank)).unflatten(1, (-1, self.num_patches))

    def encode_with_cls(self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Run the transformer over any tokens of a grid, the CLS token in front: (B, L, D) -> (B, 1 + L, D).

        Args:
            tokens: patch embeddings without positions.
            mask: bool (B, L), True where a token is valid; the features of other tokens mean nothing. None: all are.
            positions: int64 (B, L), each token's place n * P + p in the grid; None: 0, 1, ... L - 1.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        tokens = tokens + position_code(positions, self.num_patches, tokens.shape[2]).to(tokens.dtype)
        hidden = self.pre_norm(torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], 1))
        attention_mask = None
        if mask is not None and not bool(mask.all()):
            mask = nn.functional.pad(mask, (1, 0), value=True)
            attention_mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=mask)
        return self.encoder(hidden, attention_mask).last_hidden_state

    def encode(self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """[`encode_with_cls`] without the CLS token: (B, L, D) -> (B, L, D)."""
        return self.encode_with_cls(tokens, mask, positions)[:, 1:]

    def forward(self, fbank: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode filter banks.

        Args:
            fbank: float (B, T, M), normalised as `config.fbank` says.
            lengths: int64 (B,), valid frames of each row. A started last patch is dropped, unless it is the only one.

        Returns:
            features (B, N, P, D), zero beyond each row's steps, and int64 steps (B,).

        Raises:
            ValueError: the mel bins are not the encoder's, or `lengths` do not fit `fbank`.
        """
        steps = (lengths // PATCH).clamp(min=1)
        grid = self._encode_clips(fbank, lengths)[:, 1:].unflatten(1, (-1, self.num_patches))[:, : int(steps.max())]
        return grid * frame_mask(steps, grid.shape[1])[..., None, None], steps

    def forward_cls(self, fbank: Tensor, lengths: Tensor) -> Tensor:
        """One vector a clip (B, D), the CLS token's features; arguments and errors as in `forward`."""
        return self._encode_clips(fbank, lengths)[:, 0]

    def _encode_clips(self, fbank: Tensor, lengths: Tensor) -> Tensor:
        """CLS token and whole grid (B, 1 + N * P, D), features beyond a row's end meaningless."""
        if lengths.shape != fbank.shape[:1] or int(lengths.max()) > fbank.shape[1]:
            raise ValueError(f"lengths {lengths.tolist()} do not fit an fbank of shape {tuple(fbank.shape)} (B, T, M).")
        pad_to = self.config.pad_to_frames
        missing = max(pad_to or PATCH, fbank.shape[1]) - fbank.shape[1]
        fbank = nn.functional.pad(fbank.to(self.cls.dtype), (0, 0, 0, missing))
        fbank = fbank.where(
            frame_mask(lengths, fbank.shape[1])[..., None], self.config.padding_value if pad_to else 0.0
        )
        tokens = self.embed(fbank)  # (B, N, P, D)
        heard = lengths.clamp(min=pad_to or PATCH) // PATCH
        mask = frame_mask(heard, tokens.shape[1]).repeat_interleave(self.num_patches, 1)  # (B, N * P)
        return self.encode_with_cls(tokens.flatten(1, 2), mask)


def position_code(positions: Tensor, num_patches: int, width: int) -> Tensor:
    """Published EAT's fixed 2-D sine code, float (..., width), of places n * P + p (...) in a grid of P columns.

    The first half of a code tells the frequency patch p, the second half the time step n; each half holds sines, then
    cosines, of wavelengths from 2 pi to 10000 * 2 pi. There is one for any number of time steps.
    """
    rates = 10000.0 ** -(torch.arange(width // 4, device=positions.device) / (width // 4))
    angles = [places[..., None] * rates for places in (positions % num_patches, positions // num_patches)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], -1)


AutoConfig.register(EatConfig.model_type, EatConfig)
AutoModel.register(EatConfig, EatEncoder)
