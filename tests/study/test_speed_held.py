"""The speed that has to hold: a ratio too large fails by name, and only on the kind of machine that it is held on."""

import json
from functools import partial

import pytest

from audiolm_utils.app import cli
from audiolm_utils.evaluation import frontends, profiling
from audiolm_utils.evaluation.profiling import Timing
from audiolm_utils.study import ratios, speed_held
from audiolm_utils.study.ratios import PAIRS, measure_ratios
from audiolm_utils.study.speed_held import (
    hold_speed,
    machine_kind,
    ratio_table,
    read_table,
    row_of,
    slower,
    write_table,
)

FBANK = "filter banks, 8 clips: batched / single"


def timings(**medians):
    return {name: Timing.of([value]) for name, value in medians.items()}


def committed(**medians):
    return {name: {"median": value, "iqr": 0.0, "n": 15} for name, value in medians.items()}


@pytest.fixture
def measured(monkeypatch):
    """What is measured in place of the real ratios; a test fills it in."""
    found = {}
    monkeypatch.setattr(speed_held, "PAIRS", found)
    monkeypatch.setattr(speed_held, "measure_ratios", lambda pairs: timings(**pairs))
    return found


def test_only_what_got_worse_by_more_than_a_fifth_is_named_with_both_values_and_the_mend():
    before = committed(a=0.1, b=0.1, c=0.1, d=2.0)
    lines = slower(timings(a=0.1199, b=0.1201, c=0.02, d=2.5, new=9.0), before)
    assert [*lines] == ["b", "d"] and lines["b"].startswith("b is 0.120 ")
    assert lines["d"] == (
        "d is 2.500 (IQR 0.000), 25% above the committed 2.000: run it again with nothing beside, find what slowed it, "
        "or accept it with `audiolm bench --accept`"
    )
    assert slower(timings(a=1.0), {}) == {}


def test_the_table_shows_both_values(monkeypatch):
    monkeypatch.setattr(speed_held, "machine_kind", lambda: "some CPU, 2 threads, avx2")
    rows = ratio_table(timings(a=0.1, b=0.5), committed(a=0.2)).splitlines()
    assert rows[0].endswith("some CPU, 2 threads, avx2")
    assert [row.split() for row in rows[-2:]] == [["a", "0.100", "0.000", "1", "0.200"], ["b", "0.500", "0.000", "1"]]


def test_the_kind_of_machine_is_its_processor_threads_and_features(monkeypatch):
    monkeypatch.setattr(speed_held, "machine", lambda: {"cpu": "some CPU"})
    monkeypatch.setattr(speed_held.torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(speed_held, "cpu_flags", lambda: frozenset({"fpu", "amx_bf16", "avx2"}))
    assert machine_kind() == "some CPU, 3 threads, avx2 amx_bf16"
    monkeypatch.setattr(speed_held, "cpu_flags", lambda: frozenset({"fpu"}))
    assert machine_kind() == "some CPU, 3 threads, no features known"


def test_another_kind_of_machine_has_nothing_to_compare_with_and_is_told_how(measured, tmp_path):
    measured["a"] = 5.0
    write_table(tmp_path / "bench.json", {"another": row_of(timings(a=0.1))})
    text, lines = hold_speed(path=tmp_path / "bench.json")
    assert lines == [] and f"Nothing was compared: {tmp_path}/bench.json has no such ratio for {machine_kind()}" in text
    assert text.endswith("`audiolm bench --accept` writes it; commit the file.")


def test_what_is_accepted_stands_beside_other_kinds_and_is_held_from_then_on(measured, tmp_path):
    path = tmp_path / "bench.json"
    write_table(path, {"another": row_of(timings(a=0.1))})
    measured |= {"a": 0.5, "b": 0.5}
    text, lines = hold_speed(accept=True, path=path)
    assert lines == [] and text.endswith(f"written to {path} for {machine_kind()}; commit it")
    kinds = read_table(path)
    assert {kind: {n: r["median"] for n, r in row["ratios"].items()} for kind, row in kinds.items()} == {
        "another": {"a": 0.1},
        machine_kind(): {"a": 0.5, "b": 0.5},
    }
    assert {"created", "git_commit", "versions"} < kinds["another"].keys()
    measured |= {"a": 0.61, "new": 1.0}
    text, (line,) = hold_speed(path=path)
    assert line.startswith("a is 0.610") and "Not compared: new:" in text
    hold_speed(accept=True, path=path)
    assert hold_speed(path=path)[1] == []


@pytest.mark.parametrize("kinds", [None, [], {"x": 1}, {"x": {"ratios": {"a": {"iqr": 1}}}}, {"x": {"ratios": 3}}])
def test_a_table_that_is_none_is_named(tmp_path, kinds):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"recipe": "bench", "kinds": kinds}))
    with pytest.raises(ValueError, match=r"bench\.json has no ratios by kind of machine; restore it, or delete it"):
        read_table(path)


def test_the_committed_table_is_sound():
    for row in read_table().values():
        assert row["ratios"].keys() <= PAIRS.keys()


def test_a_ratio_is_that_of_neighbouring_calls(monkeypatch):
    """A machine that slows down slows both sides of a call: every ratio stays what it was."""
    clock, calls = [0.0], []
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: clock[0])

    def work(amount):
        calls.append(amount)
        clock[0] += amount * 2.0 ** (len(calls) // 2.01)

    def pair(folder):
        (folder / "its own").touch()
        return partial(work, 1), partial(work, 2)

    (ratio,) = measure_ratios({"work": pair}, repeats=5).values()
    assert calls == [1, 2] * 7 and ratio == Timing(0.5, 0.0, 5, (0.5,) * 5)


def test_what_got_worse_is_measured_once_more_and_the_better_counts(monkeypatch, tmp_path):
    path, asked = tmp_path / "bench.json", []
    write_table(path, {machine_kind(): row_of(timings(a=0.1, b=0.1, c=0.1))})
    found = iter([timings(a=0.1, b=0.2, c=0.3), timings(b=0.11, c=0.4)])
    monkeypatch.setattr(speed_held, "measure_ratios", lambda pairs: asked.append([*pairs]) or next(found))
    monkeypatch.setattr(speed_held, "PAIRS", dict.fromkeys("abc"))
    text, (line,) = hold_speed(path=path)
    assert asked == [["a", "b", "c"], ["b", "c"]]
    assert line.startswith("c is 0.300") and "0.110" in text and "0.200" not in text


def test_the_command_fails_where_a_ratio_got_worse(monkeypatch, capsys):
    monkeypatch.setattr("audiolm_utils.study.bench.benchmark", lambda *, fresh: "tables")
    answers = {False: ("ratios", ["a is 2"]), True: ("written", [])}
    monkeypatch.setattr(speed_held, "hold_speed", lambda *, accept: answers[accept])
    assert cli.main(["bench"]) == 1
    assert capsys.readouterr() == ("tables\n\nratios\n", "audiolm: slower: a is 2\n")
    assert cli.main(["bench", "--accept"]) == 0
    assert capsys.readouterr() == ("tables\n\nwritten\n", "")


@pytest.mark.slow
def test_a_side_that_is_slowed_on_purpose_is_found(one_thread, monkeypatch, tmp_path):
    path = tmp_path / "bench.json"
    monkeypatch.setattr(speed_held, "PAIRS", {FBANK: PAIRS[FBANK]})
    monkeypatch.setattr(speed_held, "measure_ratios", partial(measure_ratios, repeats=45))
    hold_speed(accept=True, path=path)
    assert hold_speed(path=path)[1] == []
    fast = frontends.kaldi_fbank

    def slow(clips, config):
        for _ in range(2 * len(clips) // ratios.CLIPS):  # a batch is computed three times
            fast(clips, config)
        return fast(clips, config)

    monkeypatch.setattr(frontends, "kaldi_fbank", slow)
    (line,) = hold_speed(path=path)[1]
    assert line.startswith(FBANK)
