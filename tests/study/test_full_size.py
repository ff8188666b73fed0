"""The encoder rows at full size: sums of parts, beside the published ones, measured once and loaded after."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from audiolm_utils.evaluation.full_size import MODES, Sizes, num_parameters
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.study import full_size, results
from audiolm_utils.study.full_size import ROWS, explanations, parts_of, run_or_load_full_size, table, weights_of
from audiolm_utils.study.results import read_result, read_samples, result_path
from tests.evaluation.test_full_size import tiny_sizes


@pytest.fixture(scope="module")
def parameters() -> dict[str, int]:
    return num_parameters(Sizes())


@pytest.fixture
def timed() -> dict[str, dict[str, float]]:
    """A time for every part: a power of two each, so that a sum says which parts are in it."""
    names = {part for speech, audio, _ in ROWS.values() for mode in MODES for part in parts_of(speech, audio, mode)}
    names |= {f"next token, {mode}" for mode in MODES}
    names |= {f"{full_size.V2}, real length, {precision}" for precision in full_size.LOW_PRECISIONS}
    names |= {f"fbank BEATs, 8 clips {how}" for how in ("at once", "in turn")}
    return {name: {"median": 2.0**n, "iqr": 2.0**-n} for n, name in enumerate(sorted(names))}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of results that is not the repository's."""
    for name in ("result_path", "write_result"):
        original = getattr(results, name)
        monkeypatch.setattr(full_size, name, lambda *arguments, f=original: f(*arguments, tmp_path))
    monkeypatch.setattr(full_size, "CLIP_S", 1.0)
    monkeypatch.setattr(full_size, "REPEATS", 1)
    monkeypatch.setattr(full_size, "QUICK_REPEATS", 1)
    return tmp_path


def test_rows_share_every_part_but_those_they_are_about():
    base, turbo, without, eat = (parts_of(*ROWS[name][:2], "padded") for name in ("base", "turbo", "no BEATs", "EAT"))
    assert base == [
        *("log-mel 80, padded", "Whisper-large-v2, padded", "fbank BEATs", "BEATs"),
        *("connector, padded", "prefill, padded"),
    ]
    assert set(base) ^ set(turbo) == {
        *("log-mel 80, padded", "log-mel 128, padded"),
        *("Whisper-large-v2, padded", "Whisper-large-v3-turbo, padded"),
    }
    assert set(base) ^ set(eat) == {"fbank BEATs", "BEATs", "fbank EAT", "EAT"}
    assert set(base) ^ set(without) == {
        *("fbank BEATs", "BEATs"),
        *("connector, padded", "connector without audio encoder, padded"),
    }


def test_a_row_is_the_sum_of_its_parts(timed, parameters):
    rows = table(timed, parameters)
    assert [(row["row"], row["mode"]) for row in rows] == [(name, mode) for mode in MODES for name in ROWS]
    for row in rows:
        token = f"next token, {row['mode']}"
        assert row["ttft_s"] == sum(timed[part]["median"] for part in row["parts"])
        assert row["latency_s"] == row["ttft_s"] + timed[token]["median"]
        assert row["iqr_s"] == pytest.approx(math.sqrt(sum(timed[p]["iqr"] ** 2 for p in [*row["parts"], token])))
        assert row["basis"] == "sum of parts measured apart"


def test_rows_stand_beside_what_was_published_of_them(timed, parameters):
    rows = {(row["row"], row["mode"]): row for row in table(timed, parameters)}
    published = {name: rows[name, "padded"] for name in ROWS}
    assert {name: (row["published_latency_s"], row["published_memory_gb"]) for name, row in published.items()} == {
        "base": (0.4795, 9.1761),
        "turbo": (0.5238, 9.2139),
        "no BEATs": (0.3285, 8.8462),
        "EAT": (0.3680, 10.9199),
    }


def test_weights_explain_the_published_memory(parameters):
    base, turbo, without = (weights_of(*ROWS[name][:2], parameters) for name in ("base", "turbo", "no BEATs"))
    assert base == 4 * (636_784_640 + 90_311_792 + 25_204_480) + 2 * 3_212_749_824
    assert turbo - base == 4 * 3 * 48 * 1280  # the first convolution
    assert base - without == 4 * (90_311_792 + 25_204_480 - 22_843_648)
    assert base > 9.1761e9  # so the published GB cannot be 10^9 bytes
    above = [published - weights / GIB for published, weights in ((9.1761, base), (8.8462, without))]
    assert above == pytest.approx([0.39, 0.40], abs=0.01)


def test_explanations_are_computed_from_parts_and_counts(timed, parameters):
    why = explanations(timed, parameters, {full_size.V2: 100, full_size.TURBO: 101})
    json.dumps(why)
    time = {name: part["median"] for name, part in timed.items()}
    assert why["turbo"][full_size.TURBO] == {
        "parameters": 636_968_960,
        "flops_30s": 101,
        "padded_s": time["Whisper-large-v3-turbo, padded"],
        "real length_s": time["Whisper-large-v3-turbo, real length"],
    }
    beats = why["no BEATs"]
    assert beats["beats_weights_gib"] == pytest.approx(0.3364, abs=1e-4)
    assert beats["beats_weights_gib"] + beats["connector_weights_gib"] == pytest.approx(beats["weights_saved_gib"])
    assert (beats["published_saved_gb"], beats["published_saved_s"]) == (0.3299, 0.151)
    assert beats["published_eat_over_none_s"] == pytest.approx(0.0395)
    for mode in MODES:
        narrower = time[f"connector, {mode}"] - time[f"connector without audio encoder, {mode}"]
        assert beats["saved_s"][mode] == pytest.approx(time["BEATs"] + time["fbank BEATs"] + narrower)
    padding = why["padding"]
    real = [time[f"{name}, real length"] for name in ("log-mel 80", full_size.V2)]
    assert padding["speedup"][full_size.V2] == pytest.approx(time[f"{full_size.V2}, padded"] / real[1])
    assert padding["front_ends_of_encoders"]["real length"] == pytest.approx(
        (real[0] + time["fbank BEATs"]) / (real[1] + time["BEATs"])
    )


def test_it_is_measured_once_and_loaded_after(folder, monkeypatch):
    row = run_or_load_full_size(sizes=tiny_sizes())
    path = folder / "full" / "encoders.json"
    assert (row["recipe"], row["scale"], row["audio_s"]) == ("encoders", "full", 1.0)
    assert row["llm_tokens"] == {"padded": 92, "real length": 7}
    assert [part["part"] for part in row["parts"]] == [part["part"] for part in read_samples(path)]
    assert len(row["rows"]) == 8 and results.results_table(folder).empty
    measured = []
    monkeypatch.setattr(full_size, "time_parts", lambda *_, **__: measured.append(1) or pytest.skip("measured again"))
    assert json.loads(json.dumps(row)) == run_or_load_full_size(sizes=tiny_sizes())
    assert not measured


def test_other_sizes_or_a_fresh_call_are_measured_again(folder, monkeypatch, timed):
    measured = []

    def time_parts(sizes, *_, **__):
        measured.append(sizes)
        return [{"part": name, "samples_s": [], **part} for name, part in timed.items()]

    monkeypatch.setattr(full_size, "time_parts", time_parts)
    sizes = [tiny_sizes(), dataclasses.replace(tiny_sizes(), prompt_tokens=5)]
    for each in (sizes[0], sizes[0], sizes[1]):
        run_or_load_full_size(sizes=each)
    run_or_load_full_size(sizes=sizes[1], fresh=True)
    assert measured == [sizes[0], sizes[1], sizes[1]]


@pytest.fixture(scope="module")
def committed():
    path = result_path(full_size.EXPERIMENT)
    return read_result(path), read_samples(path)


def test_the_committed_row_is_of_this_code_and_adds_up(committed, monkeypatch, parameters):
    row, samples = committed
    monkeypatch.setattr(full_size, "time_parts", lambda *_, **__: pytest.fail("the committed row does not fit"))
    assert run_or_load_full_size()["created"] == row["created"]
    assert row["parameters"] == parameters
    timed = {part["part"]: part for part in row["parts"]}
    assert row["rows"] == json.loads(json.dumps(table(timed, parameters)))
    assert [len(sample["samples_s"]) for sample in samples] == [part["n"] for part in row["parts"]]
    assert min(part["n"] for part in row["parts"]) >= 3


def test_the_committed_row_says_what_it_is_to_show(committed):
    padding = committed[0]["why"]["padding"]
    assert min(padding["speedup"].values()) >= 2.5
    assert max(padding["front_ends_of_encoders"].values()) <= 0.05
