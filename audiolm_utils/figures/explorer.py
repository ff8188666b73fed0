"""An explorer of full-size designs: pick parts, precisions, length and device, and see memory and time follow."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from audiolm_utils.evaluation.accounting import PRECISIONS, Account, account
from audiolm_utils.evaluation.architectures import AUDIO_ENCODERS, LLMS, MODES, QLORA, SPEECH_ENCODERS, STUDY, Design
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.evaluation.roofline import DEVICES, Device, predict
from audiolm_utils.figures.anatomy import FINAL, PARTS, duration
from audiolm_utils.figures.style import COLOURS, HATCHES, new_figure, styled

ENCODER_PRECISIONS = ("fp32", "fp16", "int8")
SCREEN_DPI = 90


@styled()
def overview(costs: Account, device: Device) -> Figure:
    """Memory by part on the left, the roofline's time to the first token by part on the right."""
    figure, axes = new_figure(1, 2, sharey=True, figure={"figsize": (11.0, 3.9)})
    seconds = predict(costs, device)
    names = [PARTS[part.name][0] for part in costs.parts] + ["activations"]
    looks = [PARTS[part.name][1] for part in costs.parts]
    memory = [part.weight_bytes / GIB for part in costs.parts] + [costs.activation_bytes / GIB]
    time = [seconds[part.name] for part in costs.parts] + [0.0]
    titles = (f"{costs.peak_bytes / GIB:.2f} GiB at inference", f"{duration(seconds['ttft_s'])} to the first token")
    labels = ("GiB", f"seconds on {device.name}, {duration(seconds['tpot_s'])} a further token")
    for ax, values, title, label in zip(axes, (memory, time), titles, labels, strict=True):
        for y, (value, look) in enumerate(zip(values, [*looks, 4], strict=True)):
            style = {"color": COLOURS[look], "hatch": HATCHES[look], "edgecolor": "white"}
            ax.barh(y, value, 0.66, **style)
            text = f"{value:.3f}" if label == "GiB" else duration(value) if value else ""
            ax.annotate(text, (value, y), (5, 0), textcoords="offset points", va="center", fontsize=11.5)
        ax.set(title=title, xlabel=label, yticks=np.arange(len(names)), ylim=(len(names) - 0.45, -0.55))
        ax.set_xlim(0, 1.22 * max(values))
        ax.set_yticklabels(names)
        ax.grid(axis="y", visible=False)
    return figure


def explorer(interactive: bool | None = None, *, devices: dict[str, Device] | None = None) -> Any:
    """The explorer: controls above the [`overview`] of what they choose, first the study's final recipe.

    Args:
        interactive: None asks whether a Jupyter server runs this kernel. Without one, as where a notebook is executed
            or read as a page, the overview is returned as a figure.
        devices: by name; the presets of `roofline` where absent.
    """
    devices = devices or DEVICES
    if interactive is None:
        interactive = "JPY_SESSION_NAME" in os.environ  # set by jupyter_server, not by nbclient
    if not interactive:
        return overview(account(STUDY[FINAL]), devices["phone CPU"])
    import ipywidgets as widgets

    def menu(label: str, options: Any, value: Any) -> widgets.Dropdown:
        return widgets.Dropdown(description=label, options=options, value=value, style={"description_width": "8em"})

    final = STUDY[FINAL]
    controls = {
        "speech": menu("speech encoder", list(SPEECH_ENCODERS), final.speech),
        "audio": menu("audio encoder", [("none", None), *((name, name) for name in AUDIO_ENCODERS)], final.audio),
        "encoder_precision": menu("encoders in", ENCODER_PRECISIONS, final.encoder_precision),
        "llm": menu("LLM", list(LLMS), final.llm),
        "llm_precision": menu("LLM in", PRECISIONS, final.llm_precision),
        "mode": menu("it hears", [("30 s, padded", MODES[0]), ("the clip alone", MODES[1])], MODES[0]),
        "device": menu("device", list(devices), "phone CPU"),
        "audio_s": widgets.IntSlider(10, 1, 30, description="clip (s)", continuous_update=False,
                                     style={"description_width": "8em"}),
    }  # fmt: skip
    picture = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        chosen = {name: control.value for name, control in controls.items()}
        device, about = devices[chosen.pop("device")], {name: chosen.pop(name) for name in ("mode", "audio_s")}
        buffer = io.BytesIO()
        overview(account(Design(**chosen, lora=QLORA), **about), device).savefig(buffer, dpi=SCREEN_DPI)
        picture.value = buffer.getvalue()

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    half = len(controls) // 2
    columns = [widgets.VBox(list(controls.values())[:half]), widgets.VBox(list(controls.values())[half:])]
    return widgets.VBox([widgets.HBox(columns), picture])
