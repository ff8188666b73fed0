"""The choice of layers: three criteria, the lowest loss is chosen, and the committed cuts are those."""

import pytest

from audiolm_utils.models.weights import DERIVED
from audiolm_utils.study import ladder_row, layer_choice
from audiolm_utils.study.ladder import SIZES
from audiolm_utils.study.layer_choice import choose_layers
from audiolm_utils.study.results import read_result, result_path


@pytest.fixture
def tiny_choice(base, lessons, monkeypatch):
    monkeypatch.setattr(layer_choice, "WHOLE", base)
    monkeypatch.setattr(layer_choice, "CUTS", (1,))
    monkeypatch.setattr(layer_choice, "A_TASK", 1)
    monkeypatch.setattr(layer_choice, "_validation", lambda data: {t: [i for i in data.training if i.task == t] * 3
                                                                   for t in layer_choice.TASKS})  # fmt: skip
    return lessons


def test_the_cut_of_lowest_loss_is_chosen(tiny_choice):
    chosen = choose_layers(tiny_choice)
    assert {row["criterion"] for row in chosen["cuts"]} == {"block influence", "nearest span", "greedy loss"}
    assert all(len(row["kept"]) == row["layers"] == 1 for row in chosen["cuts"])
    best = min(chosen["cuts"], key=lambda row: row["loss"])
    assert chosen["chosen"] == {"1": best["kept"]} and len(chosen["order"]) == 1


def test_the_greedy_order_is_kept_and_found_again(tiny_choice, monkeypatch):
    first = choose_layers(tiny_choice)
    monkeypatch.setattr(layer_choice, "greedy_order", lambda *_: pytest.fail("computed again"))
    assert choose_layers(tiny_choice) == first


def test_the_committed_row_is_of_this_code_and_these_cuts():
    row = read_result(result_path(ladder_row.EXPERIMENT))
    assert row["fingerprint"] == ladder_row.fingerprint()
    for size, kept in row["layers"]["chosen"].items():
        assert DERIVED[SIZES[f"{size} layers"].removeprefix("pocket:")].settings["layers"] == kept
