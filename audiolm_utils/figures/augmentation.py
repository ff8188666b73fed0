"""The figures of notebook 07: clips in noise, and what training with noise and gain changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from audiolm_utils.figures.encoders import Rows, read_or_warn
from audiolm_utils.figures.style import COLOURS, FIGURES, MARKERS, new_figure, save_figure, styled
from audiolm_utils.study.results import RESULTS

AUGMENTATION = "pocket/augmentation.json"
ARMS = {"clean": "trained without augmentation", "study": "with noise and gain, p = 0.3 each"}
METRICS = {"wer": "word error rate", "cider_d": "CIDEr-D"}
PANELS = {
    ("prompts", "white"): "recorded prompts\nin white noise",
    ("prompts", "recorded"): "recorded prompts\nover recorded sounds",
    ("tts", "white"): "synthetic speech\nin white noise",
    ("tts", "recorded"): "synthetic speech\nover recorded sounds",
    ("captions", "white"): "captions of sounds\nin white noise",
}
SHOWN = (("prompts", "white"), ("prompts", "recorded"), ("captions", "white"))


def panel_rows(rows: Rows, test_set: str, noise: str, arm: str) -> list[Mapping[str, Any]]:
    """An arm's rows on a test set, clean first, then from the highest SNR down."""
    kept = [r for r in rows if (r["test_set"], r["arm"]) == (test_set, arm) and r["noise"] in ("none", noise)]
    return sorted(kept, key=lambda r: -np.inf if r["snr_db"] is None else -r["snr_db"])


def snr_labels(rows: Rows) -> list[str]:
    """Tick labels of some rows: "clean", then the SNR in dB."""
    return ["clean" if row["snr_db"] is None else f"{row['snr_db']:g}" for row in rows]


@styled()
def noise_curves(scores: Rows, panels: Sequence[tuple[str, str]] = SHOWN) -> Figure:
    """WER or CIDEr-D against SNR, one panel a test set and kind of noise, one line an arm.

    Args:
        scores: rows of `paired.scores`: lines with 95 % intervals, and a small dot for each seed.
        panels: keys of `PANELS`.
    """
    figure, axes = new_figure(1, len(panels), squeeze=False, figure={"figsize": (4.1 * len(panels), 4.6)})
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in scores)]
    for (test_set, noise), ax in zip(panels, axes[0], strict=True):
        for place, arm in enumerate(arms):
            rows = panel_rows(scores, test_set, noise, arm)
            x = np.arange(len(rows)) + 0.24 * (place - (len(arms) - 1) / 2)
            values = np.array([row["value"] for row in rows])
            spread = np.abs(np.array([row["ci95"] for row in rows]).T - values)
            look = {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 6, "label": ARMS[arm]}
            ax.errorbar(x, values, yerr=spread, capsize=3, elinewidth=1.2, linestyle=("-", "--")[place], **look)
            for offset, row in zip(x, rows, strict=True):
                seeds = row["by_seed"]
                ax.plot([offset + 0.09] * len(seeds), seeds, ".", color=COLOURS[place], markersize=5)
        ax.set(
            xticks=range(len(rows)), xlabel="SNR (dB)", ylabel=METRICS[rows[0]["metric"]], title=PANELS[test_set, noise]
        )
        ax.set_xticklabels(snr_labels(rows))
        ax.set_ylim(0, 1 if rows[0]["metric"] == "wer" else None)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(arms))
    return figure


@styled()
def difference_curves(differences: Rows, panels: Sequence[tuple[str, str]] = SHOWN) -> Figure:
    """Score with augmentation minus score without, with the paired 95 % interval, by panel."""
    figure, axes = new_figure(1, len(panels), squeeze=False, figure={"figsize": (4.1 * len(panels), 3.8)})
    for (test_set, noise), ax in zip(panels, axes[0], strict=True):
        rows = panel_rows(differences, test_set, noise, "study")
        values = np.array([row["difference"] for row in rows])
        spread = np.abs(np.array([row["ci95"] for row in rows]).T - values)
        ax.errorbar(range(len(rows)), values, yerr=spread, fmt="o", capsize=4, color=COLOURS[1])
        ax.axhline(0.0, color="0.35", linestyle="--", linewidth=1.5)
        better = "lower" if rows[0]["metric"] == "wer" else "higher"
        ax.set(
            xlabel="SNR (dB)",
            ylabel=f"Δ {METRICS[rows[0]['metric']]}\n({better} is better)",
            title=PANELS[test_set, noise],
        )
        ax.set(xticks=range(len(rows)), xlim=(-0.5, len(rows) - 0.5))
        ax.set_xticklabels(snr_labels(rows))
    return figure


@styled()
def spectrograms(mels: Mapping[str, np.ndarray], frames_per_second: int = 100) -> Figure:
    """Log-mel features (M, T) side by side on one colour scale, by title."""
    figure, axes = new_figure(
        1, len(mels), sharey=True, squeeze=False, figure={"figsize": (2.9 * len(mels) + 0.6, 3.1)}
    )
    low, high = min(mel.min() for mel in mels.values()), max(mel.max() for mel in mels.values())
    for ax, (title, mel) in zip(axes[0], mels.items(), strict=True):
        extent = (0, mel.shape[1] / frames_per_second, 0, mel.shape[0])
        image = ax.imshow(mel, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high)
        ax.set(title=title, xlabel="time (s)")
        ax.grid(False)
    axes[0][0].set_ylabel("mel bin")
    figure.colorbar(image, ax=axes[0], label="log-mel")
    return figure


def generate(out: Path | str = FIGURES, results: Path = RESULTS) -> list[Path]:
    """Draw the saved figure again from its result file; where that is absent it is warned of."""
    row = read_or_warn(results / AUGMENTATION)
    return [] if row is None else save_figure("07_augmentation", noise_curves(row["scores"]), out)
