"""The figures of notebook 08: losses of stages and LLMs, and what choices of training change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from audiolm_utils.figures.encoders import Rows, read_or_warn
from audiolm_utils.figures.final import FINAL
from audiolm_utils.figures.llm import LADDER, Curves, loss_curves
from audiolm_utils.figures.style import COLOURS, FIGURES, MARKERS, new_figure, reference_line, save_figure, styled
from audiolm_utils.study.results import RESULTS

CHOICES = "pocket/training-choices.json"
WHOLE, CUT, BASE = "whole LLM, LoRA", "20 of 30 layers, QLoRA", "whole LLM, LoRA on attention alone"
OF_LADDER = {"30 layers": WHOLE, "20 layers, NF4": CUT}
OURS = "20 of 30 layers, LoRA"
OF_FINAL = {"base": BASE, "study-final": CUT, "ours": OURS}
STAGES = {"stage1": "final recipes, stage 1", "stage2": "final recipes, stage 2"}
ABOUT = {  # panels of the choices: title, arms beside the first
    "precision": ("autocast to bfloat16", "bfloat16 weights"),
    "clipping": ("no clipping", "AutoClip"),
}
SMOOTH = 5  # steps whose mean is a point of a curve


def stage_curves(ladder: Mapping[str, Any], final: Mapping[str, Any] | None) -> dict[str, dict[str, Curves]]:
    """Loss curves by panel and LLM, for `loss_curves`: the ladder's steps on audio, then the final recipes' stages.

    Args:
        ladder: of `run_or_load_ladder`.
        final: of `run_or_load_final`; None leaves its panels out.
    """
    panels: dict[str, dict[str, Any]] = {"ladder, on audio": {}}
    for row in ladder["training"]:
        if label := OF_LADDER.get(row["rung"]):
            panels["ladder, on audio"].setdefault(label, []).append(row["stages"][-1]["loss_curve"])
    for row in final["training"] if final else ():
        for name, title in STAGES.items():
            curve = next(stage["loss_curve"] for stage in row["stages"] if stage["name"] == name)
            panels.setdefault(title, {}).setdefault(OF_FINAL[row["recipe"]], []).append(curve)
    return panels


@styled()
def choices(row: Mapping[str, Any]) -> Figure:
    """Loss by step under each choice of precision and of clipping, and the median time of a step.

    Args:
        row: of `run_or_load_training_choices`.
    """
    arms = list(row["step_s"])
    size = {"figsize": (14.6, 5.4)}
    figure, (*curves, times) = new_figure(1, len(ABOUT) + 1, figure=size)
    for ax, (title, others) in zip(curves, ABOUT.items(), strict=True):
        for place, arm in enumerate((arms[0], *others)):
            for n, learned in enumerate(r for r in row["training"] if r["arm"] == arm):
                smooth = np.convolve(learned["losses"], np.ones(SMOOTH) / SMOOTH, "valid")
                look: dict[str, Any] = {
                    "color": COLOURS[place],
                    "marker": MARKERS[place],
                    "linestyle": "-" if n == 0 else "--",
                }
                look |= {"label": arm if n == 0 else None, "markevery": (3 * place, 9), "markersize": 6}
                ax.plot(np.arange(SMOOTH, len(learned["losses"]) + 1), smooth, **look)
        ax.set(title=title, xlabel="step")
        ax.legend(loc="upper right", fontsize=11.5)
    curves[0].set(ylabel=f"training loss, mean of {SMOOTH} steps", ylim=(0, None))
    curves[1].sharey(curves[0])
    for y, arm in enumerate(arms):
        cost = row["step_s"][arm]
        times.barh(y, cost["median"], 0.62, xerr=cost["iqr"] / 2, color=COLOURS[2], capsize=4)
        end = (cost["median"] + cost["iqr"] / 2, y)
        times.annotate(f"{cost['median']:.2f}", end, (6, 0), textcoords="offset points", va="center", fontsize=12)
    times.set(title="a step of each", xlabel="seconds, median and IQR", ylim=(len(arms) - 0.45, -0.55))
    times.set_yticks(range(len(arms)), [arm.replace(", ", ",\n").replace(" to ", " to\n") for arm in arms])
    times.set_xlim(0, 1.25 * max(cost["median"] + cost["iqr"] / 2 for cost in row["step_s"].values()))
    times.grid(axis="y", visible=False)
    return figure


@styled()
def gradient_norms(training: Rows) -> Figure:
    """The gradient's norm before clipping, by step, and each arm's limit: a panel an arm that has limits, first seed.

    Args:
        training: of the row of `run_or_load_training_choices`.
    """
    rows = [row for row in training if row["seed"] == training[0]["seed"]]
    limits = {str(row["limits"]): row for row in reversed(rows) if "limits" in row}  # the first of those alike
    shown = list(reversed(limits.values()))
    size = {"figsize": (5.6 * len(shown), 4.4)}
    figure, axes = new_figure(1, len(shown), sharey=True, squeeze=False, figure=size)
    for ax, row in zip(axes[0], shown, strict=True):
        steps = range(1, len(row["grad_norms"]) + 1)
        ax.semilogy(steps, row["grad_norms"], "o", color=COLOURS[0], markersize=6, label="norm of the gradient")
        if len(set(row["limits"])) == 1:
            reference_line(ax, row["limits"][0], "limit")
        else:
            ax.semilogy(steps, row["limits"], "--", color="0.35", linewidth=1.5, label="limit")
        ax.set(title=row["arm"], xlabel="step")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
    axes[0][0].set(ylabel="norm")
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def generate(out: Path | str = FIGURES, results: Path = RESULTS) -> list[Path]:
    """Draw the saved figures again from the result files; an absent one is warned of, and its part left out."""
    ladder, final, measured = (read_or_warn(results / name) for name in (LADDER, FINAL, CHOICES))
    drawn = {"08_loss_curves": loss_curves(stage_curves(ladder, final))} if ladder else {}
    if measured:
        drawn |= {"08_training_choices": choices(measured), "08_gradient_norms": gradient_norms(measured["training"])}
    return [path for name, figure in drawn.items() for path in save_figure(name, figure, out)]
