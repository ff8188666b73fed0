"""The figure of notebook 11 shows the numbers it is given, and is drawn again from its result file."""

import json

import pytest

from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.figures import on_device
from audiolm_utils.figures.on_device import engines


def row() -> dict:
    """Four engines whose numbers are 1 to 4 in place."""
    names = [(e, p) for p in ("fp32", "int8") for e in ("torch", "onnxruntime")]
    return {
        "recipe": "on-device",
        "parity": [
            {"engine": e, "precision": p, "task": "asr", "n": 50, "same_tokens": 50, "wer": 0.1 * n}
            for n, (e, p) in enumerate(names, 1)
        ],
        "costs": [
            {"engine": e, "precision": p, "resident_bytes": n * GIB}
            | {"times": [{"audio_s": s, "answer_s": {"median": n * s / 10, "iqr": 0.1, "n": 5}} for s in (3.0, 10.0)]}
            for n, (e, p) in enumerate(names, 1)
        ],
    }


def test_bars_are_the_rows_numbers():
    axes = engines(row()).axes
    widths = [[bar.get_width() for bar in ax.patches] for ax in axes]
    assert widths == [[1, 2, 3, 4], [1, 2, 3, 4], pytest.approx([0.1, 0.2, 0.3, 0.4])]
    assert [label.get_text() for label in axes[0].get_yticklabels()][-1] == "onnxruntime, int8"


def test_the_figure_is_drawn_from_its_file_and_skipped_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="on-device.json"):
        assert on_device.generate(tmp_path, tmp_path) == []
    (tmp_path / on_device.ON_DEVICE).parent.mkdir()
    (tmp_path / on_device.ON_DEVICE).write_text(json.dumps(row()))
    assert [path.name for path in on_device.generate(tmp_path, tmp_path)] == ["11_on_device.png", "11_on_device.svg"]
