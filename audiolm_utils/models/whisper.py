"""The Whisper encoder on a clip's real length, with padding masked everywhere.

Shape legend: B batch, M mel bins, T mel frames (100 a second), F = T / 2 encoder frames (50 a second), D width.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import WhisperConfig, WhisperModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from audiolm_utils.models.torch_file import named_weights

SAMPLES_PER_FRAME = 320  # one encoder frame is 20 ms at 16 kHz
MEL_FRAMES_PER_FRAME = 2
MAX_FRAMES = 1500  # 30 s: the length of Whisper's position table


def num_frames(num_samples: int) -> int:
    """Encoder frames of a clip of `num_samples` at 16 kHz; a started frame counts."""
    return -(-num_samples // SAMPLES_PER_FRAME)


def frame_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Boolean (B, size), True where a position is inside its row's length (B,)."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


class SpeechEncoder(WhisperEncoder):
    """Whisper's encoder (Radford et al. 2022) for any length up to 30 s.

    The published encoder insists on 30 s of mel frames. Here positions are sliced to the batch's
    longest clip, padded frames are zero before each convolution, as the border of a shorter clip
    would be, and are masked in attention, so a clip's features do not depend on its batch.
    """

    @classmethod
    def from_whisper(cls, reference: str) -> SpeechEncoder:
        """Load the encoder of a Whisper checkpoint (local folder or hub id); keys must match exactly."""
        with named_weights(reference):
            source = WhisperModel.from_pretrained(reference).encoder
        encoder = cls(source.config).to(source.dtype)
        encoder.load_state_dict(source.state_dict(), strict=True)
        return encoder.eval()

    @property
    def hidden_size(self) -> int:
        """Width D of the features."""
        config: WhisperConfig = self.config
        return int(config.d_model)

    def forward(
        self, input_features: torch.Tensor, lengths: torch.Tensor, *, padded: bool = False, beside: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode log-mel features.

        Args:
            input_features: float (B, M, T), T even and at most 3,000.
            lengths: int (B,), valid mel frames of each row.
            padded: attend to all T frames, as the published encoder does with its 30 s, not only to the valid ones;
                the frames behind each row's length are dropped afterwards.
            beside: a layer, 1 the first, whose output is given, too.

        Returns:
            features (B, F, D), or (B, F, 2 D) with a layer `beside` the last, zero beyond each row's length, and their
            lengths (B,) in frames.

        Raises:
            ValueError: T is odd or longer than 30 s, the mel bins are not those of the checkpoint, or it has no layer
                `beside`.
        """
        mel_bins, mel_frames = input_features.shape[1:]
        if mel_bins != self.conv1.in_channels:
            raise ValueError(
                f"input_features hold {mel_bins} mel bins; this checkpoint was trained on {self.conv1.in_channels}: "
                "use its own feature extractor"
            )
        if mel_frames % MEL_FRAMES_PER_FRAME or mel_frames > MAX_FRAMES * MEL_FRAMES_PER_FRAME:
            raise ValueError(
                f"input_features hold {mel_frames} mel frames; expected an even number up to "
                f"{MAX_FRAMES * MEL_FRAMES_PER_FRAME} (30 s). Split longer audio into windows."
            )
        if beside is not None and not 1 <= beside <= len(self.layers):
            raise ValueError(f"layer {beside} was asked for; this speech encoder has layers 1 to {len(self.layers)}")
        seen = torch.full_like(lengths, mel_frames) if padded else lengths
        mel_mask = frame_mask(seen, mel_frames)[:, None, :]  # (B, 1, T)
        lengths = (lengths + 1) // MEL_FRAMES_PER_FRAME
        mask = frame_mask((seen + 1) // MEL_FRAMES_PER_FRAME, mel_frames // MEL_FRAMES_PER_FRAME)  # (B, F)

        hidden = input_features.to(self.conv1.weight.dtype) * mel_mask
        hidden = nn.functional.gelu(self.conv1(hidden)) * mel_mask  # (B, D, T)
        hidden = nn.functional.gelu(self.conv2(hidden)).transpose(1, 2)  # (B, F, D)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]

        attention_mask = None
        if not bool(mask.all()):
            attention_mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=mask)
        outputs = []
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
            outputs.append(hidden)
        hidden = self.layer_norm(hidden)
        if beside is not None:
            hidden = torch.cat([hidden, outputs[beside - 1]], dim=-1)
        hidden = hidden[:, : int(lengths.max())]
        return hidden * frame_mask(lengths, hidden.shape[1])[..., None], lengths
