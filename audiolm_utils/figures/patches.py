"""The teaching pictures of notebook 03: patches of a filter bank, their positions, and their place on the speech clock.

Shape legend: T fbank frames (100 a second), M mel bins, N time steps of 160 ms, P frequency patches, F speech frames of
20 ms, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.figures.style import COLOURS, FIGURES, MARKERS, new_figure, save_figure, styled
from audiolm_utils.models.fbank import FbankConfig, kaldi_fbank
from audiolm_utils.models.patches import PATCH, cut_patches
from audiolm_utils.models.streams import align_in_time, flatten_patches, reduce_frequency

FRAME_S, STEP_S = 0.02, 0.16
HEARD = ListedColormap(["white", COLOURS[2]])
ORDERS = {"flat": "flat, as in the study", "aligned": "aligned in time, as here"}


def sweep(seconds: float = 1.28, low: float = 200.0, high: float = 6_000.0) -> np.ndarray:
    """A tone (samples,) at 16 kHz that rises from `low` to `high` Hz, equal steps of pitch in equal times."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    rate = np.log(high / low) / seconds
    return (0.5 * np.sin(2 * np.pi * low / rate * (np.exp(rate * t) - 1))).astype(np.float32)


def pairings(steps: int, bands: int = 8) -> dict[str, np.ndarray]:
    """How much of each patch is in each speech frame's audio vector, (F, N, P), in the flat and in the aligned order.

    Read off the functions themselves: each patch of the grid is a one-hot vector.
    """
    frames = steps * round(STEP_S / FRAME_S)
    grid = torch.eye(steps * bands).reshape(1, steps, bands, -1)
    one = torch.tensor([steps]), torch.tensor([frames])
    made = {"flat": flatten_patches(grid, frames), "aligned": align_in_time(reduce_frequency(grid), *one, frames)}
    return {order: weights[0].reshape(frames, steps, bands).numpy() for order, weights in made.items()}


def paired_levels(fbank: torch.Tensor) -> dict[str, np.ndarray]:
    """Level of each speech frame's audio vector (F,) in both orders, the mean of each patch of fbank (1, T, M)."""
    grid = cut_patches(fbank).mean(-1, keepdim=True)  # (1, N, P, 1)
    weights = pairings(*grid.shape[1:3])
    return {order: np.einsum("fnp,np->f", w, grid[0, ..., 0].numpy()) for order, w in weights.items()}


@styled()
def patch_grid(fbank: np.ndarray, title: str = "") -> Figure:
    """A normalised filter bank (T, M) with the borders of its 16 × 16 patches."""
    figure, axes = new_figure(figure={"figsize": (9.0, 3.4)})
    seconds = len(fbank) / 100
    image = axes.imshow(fbank.T, origin="lower", aspect="auto", extent=(0, seconds, 0, fbank.shape[1]))
    for n in range(len(fbank) // PATCH + 1):
        axes.axvline(n * PATCH / 100, color="white", linewidth=0.9)
    for p in range(1, fbank.shape[1] // PATCH):
        axes.axhline(p * PATCH, color="white", linewidth=0.9)
    axes.set(xlabel="time (s), a line every 160 ms", ylabel="mel bin", yticks=range(0, fbank.shape[1] + 1, 2 * PATCH))
    axes.set_title(title)
    axes.grid(False)
    figure.colorbar(image, label="normalised")
    return figure


@styled()
def position_bias(bias: np.ndarray, gates: np.ndarray, bands: int = 8) -> Figure:
    """Relative position bias (H, 2 L - 1) by distance in tokens, and how often a gate scales it by how much.

    Args:
        bias: of every head, distances from 1 - L to L - 1.
        gates: (H, queries), the factors of one layer.
        bands: tokens of one time step, for the ticks.
    """
    figure, (left, right) = new_figure(1, 2, figure={"figsize": (11.0, 3.9)}, width_ratios=[1.7, 1])
    reach = bias.shape[1] // 2
    distance = np.arange(-reach, reach + 1)
    order = np.argsort(bias[:, reach])
    for rank, head in enumerate(order[[0, len(order) // 3, 2 * len(order) // 3, -1]]):
        left.plot(distance, bias[head], color=COLOURS[rank], linewidth=1.4, label=f"head {head}")
    far = reach // bands // 4 * 4 * bands
    left.set(xlabel=f"distance in tokens, {bands} a time step", ylabel="bias added to the score", xlim=(-far, far))
    left.set(xticks=np.arange(-far, far + 1, far // 2), title="what a distance is worth")
    left.legend(loc="upper left", bbox_to_anchor=(1, 1), handlelength=1.2)
    right.hist(gates.ravel(), bins=40, color=COLOURS[2])
    right.set(xlabel="gate of a query", ylabel="queries × heads", title="times the query's gate")
    return figure


@styled()
def position_similarity(codes: np.ndarray, steps: int, bands: int, places: Sequence[tuple[int, int]]) -> Figure:
    """Cosine of the position code of some (step, band) with those of all places; codes (N * P, D), time-major."""
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    figure, axes = new_figure(1, len(places), sharey=True, squeeze=False, figure={"figsize": (4.6 * len(places), 2.9)})
    for ax, (step, band) in zip(axes[0], places, strict=True):
        similarity = (unit @ unit[step * bands + band]).reshape(steps, bands)
        image = ax.imshow(similarity.T, origin="lower", aspect="auto", vmin=similarity.min(), vmax=1)
        ax.plot(step, band, MARKERS[0], mfc="none", mec="black", markersize=13, markeredgewidth=2)
        ax.set(xlabel="time step", title=f"step {step}, band {band}", yticks=range(0, bands, 2))
        ax.grid(False)
    axes[0][0].set_ylabel("frequency band")
    figure.colorbar(image, ax=axes[0], label="cosine")
    return figure


@styled()
def time_alignment(fbank: torch.Tensor, shown: int = 4) -> Figure:
    """What each order pairs a speech frame with, and the level that it hears over time; fbank (1, T, 128)."""
    figure, axes = new_figure(1, 3, figure={"figsize": (13.6, 3.9)}, width_ratios=[1, 1, 1.35])
    for ax, (order, weights) in zip(axes[:2], pairings(shown, fbank.shape[2] // PATCH).items(), strict=True):
        heard = weights.sum(1).T > 0  # (P, F)
        extent = (0, heard.shape[1], -0.5, len(heard) - 0.5)
        ax.imshow(heard, origin="lower", aspect="auto", extent=extent, vmin=0, vmax=1, cmap=HEARD)
        for n in range(1, shown):
            ax.axvline(n * STEP_S / FRAME_S, color=COLOURS[1], linewidth=1.2, linestyle="--")
        ax.set(xlabel="speech frame of 20 ms", title=ORDERS[order], xticks=range(0, heard.shape[1] + 1, 8))
        ax.grid(False)
    axes[0].set(ylabel="frequency bands it is given")
    axes[1].set_yticklabels([])
    levels = paired_levels(fbank)
    time = (np.arange(len(levels["flat"])) + 0.5) * FRAME_S
    axes[2].plot(time, levels["flat"], color=COLOURS[3], linewidth=1.6, label=ORDERS["flat"])
    axes[2].plot(time, levels["aligned"], color=COLOURS[0], linestyle="--", label=ORDERS["aligned"])
    axes[2].set(xlabel="time (s)", ylabel="level it is given", title="a tone that rises steadily")
    axes[2].legend(loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=2, handlelength=1.4, columnspacing=1.2)
    return figure


def generate(out: Path | str = FIGURES) -> list[Path]:
    """Draw the saved figure again, of a tone made by a formula."""
    fbank, _ = kaldi_fbank([sweep()], FbankConfig())
    return save_figure("03_time_alignment", time_alignment(fbank), out)
