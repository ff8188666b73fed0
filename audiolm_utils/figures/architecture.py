"""The architecture of a full-size design, drawn from the modules that are built for it."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from audiolm_utils.evaluation.accounting import DEFAULT, Account, Part, fbank_frames, speech_frames
from audiolm_utils.evaluation.architectures import Sizes
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.figures.style import COLOURS, new_figure, styled
from audiolm_utils.models.whisper import MEL_FRAMES_PER_FRAME

FROZEN, TRAINED = "white", COLOURS[3]
TOP, MIDDLE, BOTTOM = 0.8, 0.53, 0.26


@styled()
def architecture(costs: Account, sizes: Sizes = DEFAULT) -> Figure:
    """Boxes for the parts, with layers, width, parameters, precision and bytes; arrows with the shapes between them."""
    parts = {part.name: part for part in costs.parts}
    built = modules(costs, sizes)
    heard = "audio encoder" in parts
    top = TOP if heard else MIDDLE
    frames = speech_frames(costs.audio_s, costs.mode)
    figure, axes = new_figure(figure={"figsize": (12.6, 5.2)})
    axes.set(xlim=(0, 15), ylim=(0, 1))
    axes.axis("off")

    speech = built["speech encoder"].config
    clip = f"clip\n{costs.audio_s:g} s"
    clip += ",\npadded\nto 30 s" if costs.mode == "padded" else ""
    _box(axes, 0.75, MIDDLE, 1.3, 0.34, clip)
    mel = (speech.num_mel_bins, frames * MEL_FRAMES_PER_FRAME)
    _box(axes, 2.75, top, 1.4, 0.2, f"log-mel\n{mel[0]} × {mel[1]}")
    text = _describe(parts["speech encoder"], speech.encoder_layers, speech.d_model)
    _box(axes, 5.35, top, 2.7, 0.36, text, title=parts["speech encoder"].model + "\nencoder")
    _arrow(axes, (1.4, MIDDLE + 0.05 * heard), (2.05, top))
    _arrow(axes, (3.45, top), (4.0, top))
    widths = str(speech.d_model)
    if heard:
        audio = built["audio encoder"].config
        _box(axes, 2.75, BOTTOM, 1.4, 0.2, f"fbank\n{audio.num_mel_bins} × {fbank_frames(costs.audio_s)}")
        text = _describe(parts["audio encoder"], audio.num_hidden_layers, audio.hidden_size)
        _box(axes, 5.35, BOTTOM, 2.7, 0.32, text, title=parts["audio encoder"].model)
        _arrow(axes, (1.4, MIDDLE - 0.05), (2.05, BOTTOM))
        _arrow(axes, (3.45, BOTTOM), (4.0, BOTTOM))
        _arrow(axes, (6.7, BOTTOM), (8.1, MIDDLE - 0.06))
        widths += f" + {audio.hidden_size}"
    _arrow(axes, (6.7, top), (8.1, MIDDLE + 0.06 * heard))
    axes.text(7.4, MIDDLE, f"{frames} ×\n({widths})", ha="center", va="center", fontsize=11,
              bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip

    former = built["connector"].body
    config = former.config
    text = _describe(parts["connector"], config.num_layers, config.hidden_size)
    text += f"\na query for {config.window_frames} frames"
    _box(axes, 9.35, MIDDLE, 2.4, 0.42, text, title="window Q-Former", trained=True)
    _arrow(axes, (10.55, MIDDLE), (11.55, MIDDLE))
    axes.text(11.05, MIDDLE + 0.05, f"{costs.audio_tokens}\ntokens", ha="center", va="bottom", fontsize=11.5)
    llm = built["LLM"].config
    text = _describe(parts["LLM"], llm.num_hidden_layers, llm.hidden_size)
    _box(axes, 12.95, MIDDLE, 2.7, 0.36, text, title=parts["LLM"].model)
    if "LoRA" in parts:
        lora = parts["LoRA"]
        text = f"LoRA, {lora.model}: {_count(lora.parameters)}, {lora.precision}"
        _box(axes, 12.95, 0.91, 2.7, 0.13, text, trained=True)
        _arrow(axes, (12.95, 0.84), (12.95, MIDDLE + 0.18))
    _arrow(axes, (12.95, 0.22), (12.95, MIDDLE - 0.18))
    axes.text(12.95, 0.2, f"prompt, {costs.prompt_tokens} tokens", ha="center", va="top", fontsize=12)
    _arrow(axes, (14.3, MIDDLE), (14.72, MIDDLE))
    axes.text(14.75, MIDDLE, "text", va="center", fontsize=12, rotation=90)
    total = (
        f"weights {costs.weight_bytes / GIB:.2f} GiB, at inference {costs.peak_bytes / GIB:.2f} GiB; filled: trained"
    )
    axes.text(0.1, 0.0, total, fontsize=12)
    return figure


def modules(costs: Account, sizes: Sizes = DEFAULT) -> dict[str, Any]:
    """The design's modules by the name of their part, built on the meta device."""
    design = costs.design
    with torch.device("meta"):
        built: dict[str, Any] = {"speech encoder": sizes.speech_encoder(design.speech)}
        if design.audio:
            built["audio encoder"] = sizes.audio_encoder(design.audio)
        built["connector"] = sizes.connector(design.audio, design.llm, costs.mode)
        built["LLM"] = sizes.language_model(design.llm)
    return built


def _describe(part: Part, layers: int, width: int) -> str:
    size = f"{_count(part.parameters)} parameters\n{part.precision}: {part.weight_bytes / GIB:.2f} GiB"
    return f"{layers} layers, {width} wide\n{size}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, title: str = "", trained: bool = False
) -> None:
    corner, fill = (x - width / 2, y - height / 2), TRAINED if trained else FROZEN
    style = "round,pad=0,rounding_size=0.05"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, mutation_aspect=0.3, fc=fill, ec=COLOURS[0], lw=2)
    )
    if not title:
        axes.text(x, y, text, ha="center", va="center", fontsize=12)
        return
    lines = title.splitlines()
    size = 12 if max(map(len, lines)) <= 18 else 10
    axes.text(x, y + height / 2 - 0.025, title, ha="center", va="top", fontsize=size, fontweight="bold")
    axes.text(x, y - 0.03 * len(lines), text, ha="center", va="center", fontsize=11.5, linespacing=1.25)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 2, "color": COLOURS[0]})
