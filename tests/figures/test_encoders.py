"""The figures of notebook 03 show the numbers they are given, and are drawn again from the result files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from audiolm_utils.figures import encoders, patches
from audiolm_utils.figures.encoders import (
    EXPERIMENTS,
    GROUPS,
    TEST_SETS,
    ablations,
    experiment,
    full_size_parts,
    probes,
)
from audiolm_utils.models.eat import position_code
from audiolm_utils.study.published import published_encoders

ARMS = ("base", "no BEATs", "EAT")
SECONDS = dict(zip(GROUPS, (0.01, 8.0, 1.5, 0.25, 3.0), strict=True))  # of each part, by its group


def full_size():
    """Rows whose parts are one a group, twice as slow where padded."""
    modes = {"padded": 2.0, "real length": 1.0}
    parts = [
        {"part": f"{group}, {mode}", "group": group, "median": factor * SECONDS[group]}
        for mode, factor in modes.items()
        for group in GROUPS
    ]
    rows = [
        {"row": row, "mode": mode, "token_s": 0.5, "latency_s": 13.26 * factor + 0.5, "weights_bytes": 3 * 2**30}
        | {"parts": [f"{group}, {mode}" for group in GROUPS if row != "no BEATs" or group != "audio_encoders"]}
        for mode, factor in modes.items()
        for row in ("base", "turbo", "no BEATs", "EAT", "Llama-3.2-1B 4-bit")
    ]
    return {"recipe": "rows", "audio_s": 10.0, "parts": parts, "rows": rows}


def probe_rows():
    known = [("log-mel", None), ("whisper-tiny.en", None)]
    known += [(f"{name}-mini", stage) for name in ("beats", "eat") for stage in ("random", "final")]
    return [
        {"set": subset, "features": features, "pooling": "mean+std", "accuracy": 0.3 + 0.1 * n, "n": 40}
        | {"ci95": [0.2 + 0.1 * n, 0.35 + 0.1 * n], "folds": [0.3 + 0.1 * n] * 5}
        | ({"stage": stage} if stage else {})
        for subset in ("esc10", "esc50")
        for n, (features, stage) in enumerate(known)
    ]


def trained():
    metric = dict(zip(TEST_SETS, (*["wer"] * 2, *["cider_d"] * 3, "accuracy"), strict=True))
    rows = [
        {"test_set": name, "metric": metric[name], "arm": arm, "n": 9, "by_seed": [0.1, 0.3], "ci95": [-0.1, 0.5]}
        for name in TEST_SETS
        for arm in ARMS
    ]
    gains = [row | {"difference": 0.2 if row["arm"] == "EAT" else -0.05} for row in rows if row["arm"] != "base"]
    return {"recipe": "encoders", "scores": [row | {"value": 0.625} for row in rows], "differences": gains}


def texts(figure) -> str:
    """Every piece of text in a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_stands_as_published_beside_what_was_measured(name):
    published = published_encoders()
    alone, beside = experiment(published, None, name), experiment(published, full_size(), name)
    assert (len(alone.axes), len(beside.axes)) == (2, 4)
    values = published[published["experiment"] == name]["latency_s"]
    assert all(f"{value:.4f}" in texts(alone) for value in values)
    assert "measured" not in texts(alone)
    assert all(text in texts(beside) for text in ("27.02", "13.76", "3.0000", "padded to 30 s", "real length"))


def test_parts_add_up_to_the_latency_and_come_in_the_order_they_run():
    figure = full_size_parts(full_size())
    for ax, mode in zip(figure.axes, encoders.MODES, strict=True):
        ends = [bars[0].get_x() + bars[0].get_width() for bars in ax.containers]
        assert ends == sorted(ends) and len(ends) == len(GROUPS)
        row = next(r for r in full_size()["rows"] if (r["row"], r["mode"]) == ("base", mode))
        assert ends[-1] == pytest.approx(sum(SECONDS.values()) * (2 if mode == "padded" else 1) + row["token_s"])
    assert ax.containers[list(GROUPS).index("audio_encoders")][2].get_width() == 0  # the row without BEATs
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(encoders.ROW_NAMES.values())


def test_probes_show_every_encoder_with_its_folds():
    figure = probes(probe_rows())
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[0] == "log-mel" and "BEATs-mini, + sound names" in labels and len(labels) == 6
    assert "BEATs-mini, pretrained" not in labels
    assert [len(line.get_ydata()) for line in figure.axes[1].lines].count(5) == 6
    assert len(probes([row for row in probe_rows() if row["set"] == "esc10"]).axes) == 1


def test_ablations_shade_the_better_side():
    row = trained()
    figure = ablations(row["scores"], row["differences"])
    assert len(figure.axes) == len(TEST_SETS)
    first, last = figure.axes[0], figure.axes[-1]
    assert "base: WER 0.625, n = 9" in first.get_title("left") and "base: accuracy 0.625" in last.get_title("left")
    drawn = {round(float(x), 3) for line in first.lines for x in np.atleast_1d(line.get_xdata())}
    assert {-0.05, 0.2, 0.1, 0.3, 0.0} <= drawn
    (lower,), (higher,) = first.patches, last.patches
    assert lower.get_extents().x1 == pytest.approx(first.transData.transform((0, 0))[0])
    assert higher.get_extents().x0 == pytest.approx(last.transData.transform((0, 0))[0])


def test_pairings_are_one_band_each_in_the_flat_order_and_all_bands_when_aligned():
    pairs = patches.pairings(steps=3)
    assert all(weights.shape == (24, 3, 8) for weights in pairs.values())
    for weights in pairs.values():
        np.testing.assert_allclose(weights.sum((1, 2)), 1, atol=1e-6)
    step, band = np.divmod(pairs["flat"].reshape(24, -1).argmax(1), 8)
    assert step.tolist() == [n // 8 for n in range(24)] and band.tolist() == [n % 8 for n in range(24)]
    np.testing.assert_allclose(pairs["aligned"].sum(1), 1 / 8, atol=1e-6)


def test_a_steady_tone_is_heard_steadily_only_when_aligned():
    fbank, _ = patches.kaldi_fbank([patches.sweep(low=440, high=441)], patches.FbankConfig())
    levels = patches.paired_levels(fbank)
    assert np.ptp(levels["flat"]) > 0.5 > 0.1 > np.ptp(levels["aligned"])


def test_teaching_pictures_are_drawn():
    assert len(patches.patch_grid(np.zeros((48, 128)), "zeros").axes[0].lines) == 4 + 7
    figure = patches.position_bias(np.arange(4)[:, None] * np.ones((1, 99)), np.ones((4, 50)))
    assert {text for text in texts(figure).splitlines() if text.startswith("head")} == {f"head {n}" for n in range(4)}
    codes = position_code(torch.arange(80), 8, 16).numpy()
    first, second = patches.position_similarity(codes, 10, 8, [(2, 1), (7, 5)]).axes[:2]
    assert first.images[0].get_array()[1, 2] == pytest.approx(1) == pytest.approx(second.images[0].get_array()[5, 7])


def test_saved_figures_are_drawn_from_the_result_files_there_are(tmp_path):
    with pytest.warns(UserWarning, match=r"rows\.json is absent"):
        names = {path.name for path in encoders.generate(tmp_path / "none", tmp_path)}
    kinds = ("png", "svg")
    assert names == {f"03_{name}_experiments.{kind}" for name in ("whisper", "beats") for kind in kinds}
    rows = {"full/rows": full_size(), "pocket/encoders": trained()}
    rows["pocket/mini-encoders"] = {"recipe": "mini-encoders", "probe": probe_rows()}
    for name, row in rows.items():
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(row))
    names |= {f"03_{name}.{kind}" for name in ("full_size_parts", "probes", "ablations") for kind in kinds}
    assert {path.name for path in encoders.generate(tmp_path / "all", tmp_path)} == names
    assert [path.name for path in patches.generate(tmp_path)] == ["03_time_alignment.png", "03_time_alignment.svg"]
