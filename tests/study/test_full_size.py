"""The study's rows at full size: sums of parts, beside the published ones, measured once and loaded after."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from audiolm_utils.evaluation.architectures import MODES, STUDY, Sizes
from audiolm_utils.evaluation.full_size import IN_BOTH, TOKENS, llm_dtype, num_parameters
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.evaluation.roofline import Device
from audiolm_utils.study import full_size, results
from audiolm_utils.study.full_size import design_weights, explanations, parts_of, run_or_load_full_size, table
from audiolm_utils.study.published import published_rows
from audiolm_utils.study.results import read_result, read_samples, result_path
from tests.evaluation.test_full_size import tiny_sizes

WEIGHTS = {name: 1000 + n for n, name in enumerate(STUDY)}
DEVICE = Device("made up", {"fp32": 1e11}, 1e10, "a test")


@pytest.fixture(scope="module")
def parameters() -> dict[str, int]:
    return num_parameters(Sizes())


@pytest.fixture(scope="module")
def weights() -> dict[str, int]:
    return design_weights(Sizes())


@pytest.fixture
def timed() -> dict[str, dict]:
    """A time for every part: a power of two each, so that a sum says which parts are in it."""
    names = {part for design in STUDY.values() for mode in MODES for part in parts_of(design, mode)}
    llms = {f"{design.llm}, {mode}" for design in STUDY.values() for mode in MODES}
    llms |= {f"{IN_BOTH}, {mode}, bf16" for mode in MODES}
    names |= {f"{part} {llm}" for part in ("prefill", "next token", f"{TOKENS} tokens") for llm in llms}
    names |= {f"{full_size.V2}, real length, {precision}" for precision in full_size.LOW_PRECISIONS}
    names |= {f"fbank BEATs, 8 clips {how}" for how in ("at once", "in turn")}
    rows = {name: {"median": 2.0**n, "iqr": 2.0**-n, "n": 3} for n, name in enumerate(sorted(names))}
    for name in rows:
        rows[name] |= {"dtype": "bfloat16" if "8B" in name else "float32"}
    return rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of results that is not the repository's; short clips, one repeat, no device measured."""
    monkeypatch.setattr(results, "result_path", lambda recipe, folder=None: result_path(recipe, tmp_path))
    monkeypatch.setattr(full_size, "CLIP_S", 1.0)
    monkeypatch.setattr(full_size, "REPEATS", 1)
    monkeypatch.setattr(full_size, "QUICK_REPEATS", 1)
    monkeypatch.setattr(full_size, "measure_device", lambda: DEVICE)
    return tmp_path


def test_rows_share_every_part_but_those_they_are_about():
    base, turbo, without, eat, distill = (
        parts_of(STUDY[name], "padded") for name in ("base", "turbo", "no BEATs", "EAT", "Distill-Qwen-1.5B")
    )
    assert base == [
        *("log-mel 80, padded", "Whisper-large-v2, padded", "fbank BEATs", "BEATs"),
        *("connector BEATs to Llama-3.2-3B, padded", "prefill Llama-3.2-3B, padded"),
    ]
    assert set(base) ^ set(turbo) == {
        *("log-mel 80, padded", "log-mel 128, padded"),
        *("Whisper-large-v2, padded", "Whisper-large-v3-turbo, padded"),
    }
    assert set(base) ^ set(eat) == {
        *("fbank BEATs", "BEATs", "fbank EAT", "EAT"),
        *("connector BEATs to Llama-3.2-3B, padded", "connector EAT to Llama-3.2-3B, padded"),
    }
    assert set(base) ^ set(without) == {
        *("fbank BEATs", "BEATs"),
        *("connector BEATs to Llama-3.2-3B, padded", "connector to Llama-3.2-3B, padded"),
    }
    assert set(base) ^ set(distill) == {
        f"{part}{llm}, padded"
        for part in ("connector BEATs to ", "prefill ")
        for llm in ("Llama-3.2-3B", "Distill-Qwen-1.5B")
    }


def test_a_row_is_the_sum_of_its_parts(timed):
    rows = table(timed, WEIGHTS)
    assert [(row["row"], row["mode"]) for row in rows] == [(name, mode) for mode in MODES for name in STUDY]
    for row in rows:
        llm = f"{STUDY[row['row']].llm}, {row['mode']}"
        token, tokens = timed[f"next token {llm}"], timed[f"64 tokens {llm}"]
        assert row["ttft_s"] == sum(timed[part]["median"] for part in row["parts"])
        assert (row["token_s"], row["latency_s"]) == (token["median"], row["ttft_s"] + token["median"])
        assert row["tpot_s"] == {key: tokens[key] for key in ("median", "iqr", "n")}
        assert row["latency_64_s"] == row["ttft_s"] + 63 * tokens["median"]
        iqrs = [timed[part]["iqr"] ** 2 for part in row["parts"]]
        assert row["iqr_s"] == pytest.approx(math.sqrt(sum(iqrs) + token["iqr"] ** 2))
        assert row["iqr_64_s"] == pytest.approx(math.sqrt(sum(iqrs) + 63 * tokens["iqr"] ** 2))
        assert row["basis"] == "sum of parts measured apart" and row["weights_bytes"] == WEIGHTS[row["row"]]


def test_rows_say_what_was_timed_in_place_of_their_llm(timed):
    rows = {row["row"]: row for row in table(timed, WEIGHTS)}
    said = {name: (row["llm"], row["llm_dtype"], row["measured_as"]) for name, row in rows.items()}
    without = "arithmetic without LoRA; the study's was kept in"
    assert said["base"] == ("Llama-3.2-3B", "float32", f"LLM in float32 {without} fp16")
    assert said["Llama-3.1-8B 4-bit"] == ("Llama-3.1-8B", "bfloat16", f"LLM in bfloat16 {without} nf4")
    assert said["base + QLoRA"] == said["Llama-3.2-3B 4-bit"]


def test_rows_stand_beside_what_was_published_of_them(timed):
    published = published_rows()
    for row in table(timed, WEIGHTS):
        expected = published.loc[row["row"]]
        assert (row["published_latency_s"], row["published_memory_gb"]) == tuple(expected[["latency_s", "memory_gb"]])


@pytest.mark.slow
def test_weights_explain_the_published_memory(weights):
    base, turbo, without = (weights[name] for name in ("base", "turbo", "no BEATs"))
    lora = 4 * 28 * 8 * ((3072 + 3072) + (3072 + 1024))  # of queries and values, float32
    assert base == 4 * (636_784_640 + 90_311_792 + 25_204_480) + 2 * 3_212_749_824 + lora
    assert turbo - base == 4 * 3 * 48 * 1280  # the first convolution
    assert base - without == 4 * (90_311_792 + 25_204_480 - 22_843_648)
    assert base > 9.1761e9  # so the published GB cannot be 10^9 bytes
    above = [published - own / GIB for published, own in ((9.1761, base), (8.8462, without))]
    assert above == pytest.approx([0.38, 0.40], abs=0.01)


def test_explanations_are_computed_from_parts_and_counts(timed, parameters):
    both, alone = (parameters[f"connector {audio}to {IN_BOTH}"] for audio in ("BEATs ", ""))
    weights = {"base": 4 * (parameters["BEATs"] + both) + 10**9, "no BEATs": 4 * alone + 10**9}
    why = explanations(timed, parameters, {full_size.V2: 100, full_size.TURBO: 101}, weights)
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
        narrower = time[f"connector BEATs to {IN_BOTH}, {mode}"] - time[f"connector to {IN_BOTH}, {mode}"]
        assert beats["saved_s"][mode] == pytest.approx(time["BEATs"] + time["fbank BEATs"] + narrower)
    padding = why["padding"]
    real = [time[f"{name}, real length"] for name in ("log-mel 80", full_size.V2)]
    assert padding["speedup"][full_size.V2] == pytest.approx(time[f"{full_size.V2}, padded"] / real[1])
    assert padding["front_ends_of_encoders"]["real length"] == pytest.approx(
        (real[0] + time["fbank BEATs"]) / (real[1] + time["BEATs"])
    )
    assert (
        why["precision"]["int8"]["speedup"]
        == time[full_size.V2 + ", real length"] / time[full_size.V2 + ", real length, int8"]
    )
    in_bfloat16 = why["LLM in bfloat16"]["speedup"]["64 tokens"]["padded"]
    assert in_bfloat16 == time["64 tokens Llama-3.2-3B, padded"] / time["64 tokens Llama-3.2-3B, padded, bf16"]


def test_it_is_measured_once_and_loaded_after(folder, monkeypatch):
    row = run_or_load_full_size(sizes=tiny_sizes())
    path = folder / "full" / "rows.json"
    assert (row["recipe"], row["scale"], row["audio_s"]) == ("rows", "full", 1.0)
    assert row["llm_tokens"] == {"padded": 92, "real length": 7}
    assert [part["part"] for part in row["parts"]] == [part["part"] for part in read_samples(path)]
    assert len(row["rows"]) == 20 and results.results_table(folder).empty
    assert row["device"] == dataclasses.asdict(DEVICE)
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
    (folder / "full" / "rows.json").write_text("no row")  # which a fresh call does not look at
    run_or_load_full_size(sizes=sizes[1], fresh=True)
    assert measured == [sizes[0], sizes[1], sizes[1]]


@pytest.fixture(scope="module")
def committed():
    path = result_path(full_size.EXPERIMENT)
    return read_result(path), read_samples(path)


@pytest.mark.slow
def test_the_committed_row_is_of_this_code_and_adds_up(committed, monkeypatch, parameters, weights):
    row, samples = committed
    monkeypatch.setattr(full_size, "time_parts", lambda *_, **__: pytest.fail("the committed row does not fit"))
    assert run_or_load_full_size()["created"] == row["created"]
    assert row["parameters"] == parameters
    timed = {part["part"]: part for part in row["parts"]}
    assert row["rows"] == json.loads(json.dumps(table(timed, weights)))
    assert [len(sample["samples_s"]) for sample in samples] == [part["n"] for part in row["parts"]]
    few = {part["part"] for part in row["parts"] if part["n"] < 3}
    assert all("bf16" in part or "Llama-3.1-8B" in part for part in few)
    assert min(part["n"] for part in row["parts"]) >= 2


def test_the_committed_row_says_what_it_is_to_show(committed):
    row = committed[0]
    padding = row["why"]["padding"]
    assert min(padding["speedup"].values()) >= 2.5
    assert max(padding["front_ends_of_encoders"].values()) <= 0.05
    assert row["device"]["flops_per_s"]["fp32"] > 1e9 and row["device"]["bytes_per_s"] > 1e9
    sizes = Sizes()
    assert {each["llm"]: each["llm_dtype"] for each in row["rows"]} == {
        llm: str(llm_dtype(sizes, llm)).removeprefix("torch.") for llm in sizes.llms
    }
