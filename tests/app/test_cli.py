"""The command line: every command is listed, starts fast, and answers errors in one line."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest

from audiolm_utils import __version__
from audiolm_utils.app import cli

COMMANDS = [
    "weights",
    "data",
    "study",
    "train",
    "evaluate",
    "transcribe",
    "describe",
    "ask",
    "export",
    "bench",
    "figures",
    "results",
    "demo",
    "doctor",
]


def provide(monkeypatch: pytest.MonkeyPatch, name: str, **attributes) -> None:
    """Put a stand-in for a module of the package in place."""
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    monkeypatch.setattr(importlib.import_module(parent), child, module, raising=False)


def provide_run(monkeypatch: pytest.MonkeyPatch, run_or_load) -> None:
    """Put a stand-in for what trains recipes in place; every name is a recipe."""
    provide(monkeypatch, "audiolm_utils.study.run", check_names=lambda names: None, run_or_load=run_or_load)


def test_help_lists_every_command_with_a_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n    {command}" in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "--debug" in capsys.readouterr().out


def test_module_starts_without_loading_torch():
    script = "import sys, audiolm_utils.app.cli as cli; cli.build_parser(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_python_dash_m_tells_the_version():
    command = [sys.executable, "-m", "audiolm_utils", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"audiolm {__version__}"


@pytest.mark.parametrize("argv", [[], ["sing"], ["transcribe"], ["data", "--tts-limit", "0"], ["evaluate"]])
def test_wrong_usage_ends_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "audiolm" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("bad\nvalue"), FileNotFoundError("bad value")])
def test_errors_are_one_line_without_a_trace(monkeypatch, capsys, error):
    def results_table():
        raise error

    provide(monkeypatch, "audiolm_utils.study.results", results_table=results_table)
    assert cli.main(["results"]) == 1
    assert capsys.readouterr().err == "audiolm: bad value\n"
    assert cli.main(["results", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_nobody_foresaw_keeps_its_trace(monkeypatch):
    provide(monkeypatch, "audiolm_utils.study.results", results_table=lambda: {}["wer"])
    with pytest.raises(KeyError):
        cli.main(["results"])


def test_an_error_raised_by_name_in_the_package_is_one_line(monkeypatch, capsys):
    class DownloadError(RuntimeError):
        __module__ = "audiolm_utils.models.weights"

    def resolve(reference):
        raise DownloadError("no network")

    provide(monkeypatch, "audiolm_utils.models.weights", resolve=resolve, POCKET={"whisper-tiny.en": None})
    assert cli.main(["weights"]) == 1
    assert capsys.readouterr().err == "audiolm: no network\n"


def test_a_missing_package_is_named_with_the_mend(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "audiolm_utils.app.demo", None)
    assert cli.main(["demo"]) == 1
    assert "audiolm_utils.app.demo" in capsys.readouterr().err


def test_interruption_says_how_to_go_on(monkeypatch, capsys):
    def run_or_load(recipe, fresh):
        raise KeyboardInterrupt

    provide_run(monkeypatch, run_or_load)
    assert cli.main(["study", "pocket-quick"]) == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_study_runs_the_named_recipes_or_all(monkeypatch, capsys):
    ran = []

    def run_or_load(recipe, fresh, **options):
        ran.append((recipe, fresh, *options.values()))
        return {"recipe": recipe}

    provide_run(monkeypatch, run_or_load)
    provide(monkeypatch, "audiolm_utils.study.pocket_recipes", RECIPES={"a": None, "b": None})
    assert cli.main(["study", "b", "--fresh"]) == 0
    assert json.loads(capsys.readouterr().out) == {"recipe": "b"}
    assert cli.main(["train", "a"]) == 0 and ran.pop() == ("a", False)
    assert cli.main(["train", "a", "--report-to", "tensorboard"]) == 0 and ran.pop() == ("a", False, "tensorboard")
    for name, place in cli.EXPERIMENTS.items():
        module, function = place.split(":")
        provide(monkeypatch, module, **{function: lambda fresh, name=name: run_or_load(name, fresh)})
    assert cli.main(["study"]) == 0
    assert ran == [("b", True), ("a", False), ("b", False), *((name, False) for name in cli.EXPERIMENTS)]


def test_bench_prints_its_tables_and_passes_fresh_on(monkeypatch, capsys):
    provide(monkeypatch, "audiolm_utils.study.bench", benchmark=lambda *, fresh: f"tables, fresh: {fresh}")
    provide(monkeypatch, "audiolm_utils.study.speed_held", hold_speed=lambda *, accept: (f"accept: {accept}", []))
    assert cli.main(["bench"]) == cli.main(["bench", "--fresh"]) == cli.main(["bench", "--accept"]) == 0
    printed = ["tables, fresh: False\n\naccept: False", "tables, fresh: True\n\naccept: False"]
    assert capsys.readouterr().out == "\n".join([*printed, "tables, fresh: False\n\naccept: True", ""])


def test_of_several_processes_each_runs_a_recipe_and_the_first_prints(monkeypatch, capsys):
    ran = []
    provide(
        monkeypatch,
        "audiolm_utils.study.run",
        check_names=lambda names: None,
        run_or_load=lambda recipe, fresh: ran.append(recipe) or {},
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["study", "full-base"]) == 0
        assert capsys.readouterr().out == ("{}\n" if rank == "0" else "")
    assert ran == ["full-base", "full-base"]


@pytest.mark.parametrize("names", [["encoders"], ["pocket-quick", "encoders"], []])
def test_experiments_refuse_several_processes_before_any_recipe_runs(monkeypatch, capsys, names):
    monkeypatch.setenv("WORLD_SIZE", "2")
    provide(
        monkeypatch,
        "audiolm_utils.study.run",
        check_names=lambda names: None,
        run_or_load=lambda *_, **__: pytest.fail("it ran"),
    )
    assert cli.main(["study", *names]) == 1
    assert "encoders" in (error := capsys.readouterr().err) and "run in one process, and 2 were launched" in error


def test_with_ray_each_recipe_and_experiment_is_a_call_on_the_cluster(monkeypatch, capsys):
    def run_on_ray(calls, address):
        assert address == "auto"
        return [{"name": name, "call": call} for name, call in calls.items()]

    provide(monkeypatch, "audiolm_utils.study.cluster", run_on_ray=run_on_ray)
    assert cli.main(["study", "full-base", "encoders", "--ray", "auto", "--report-to", "tensorboard"]) == 0
    printed = capsys.readouterr().out.replace("}\n{", "},{")
    assert json.loads(f"[{printed}]") == [
        {
            "name": "full-base",
            "call": [
                "audiolm_utils.study.run:run_or_load",
                ["full-base"],
                {"fresh": False, "report_to": "tensorboard"},
            ],
        },
        {"name": "encoders", "call": [cli.EXPERIMENTS["encoders"], [], {"fresh": False}]},
    ]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["study", "full-base", "--ray", "auto"]) == 1
    assert "starts processes itself, and 2 were launched: leave out one" in capsys.readouterr().err


def test_without_ray_its_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["study", "pocket-quick", "--ray", "local"]) == 1
    assert capsys.readouterr().err == "audiolm: the package ray is not installed: pip install -e '.[cluster]'\n"


@pytest.mark.parametrize("command", ["study", "evaluate"])
def test_a_data_root_is_looked_below(monkeypatch, capsys, command, tmp_path):
    monkeypatch.setenv("AUDIOLM_DATA_ROOT", "elsewhere")  # put back afterwards
    assert cli.main([command, "full-base", "--data-root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path) in error if command == "study" else "full-base.json" in error
    assert os.environ["AUDIOLM_DATA_ROOT"] == str(tmp_path)


def test_an_unknown_recipe_is_named_with_the_full_ones(capsys):
    assert cli.main(["study", "full-bass"]) == 1
    assert capsys.readouterr().err.startswith(
        "audiolm: recipe 'full-bass' is unknown; expected one of pocket-quick, pocket-long, base, study-final, ours"
    )


def test_an_unknown_recipe_is_refused_before_the_others_run(monkeypatch, capsys):
    monkeypatch.setattr("audiolm_utils.study.run.run_or_load", lambda *_, **__: pytest.fail("it ran"))
    for name, said in (("full-bass", "'full-bass' is unknown"), ("ours", "`study final`")):
        assert cli.main(["study", "pocket-quick", name]) == 1
        assert said in capsys.readouterr().err


def test_the_study_at_full_size_has_one_name():
    assert "full-size" in cli.EXPERIMENTS and "full-size-encoders" not in cli.EXPERIMENTS


def test_every_experiment_of_the_study_is_there():
    assert all(callable(cli.resolve_name(place)) for place in cli.EXPERIMENTS.values())


def test_data_counts_the_clips_at_hand_and_hours_by_manifest_and_task(monkeypatch, capsys):
    def item(path: str, task: str = "asr", split: str = "train") -> SimpleNamespace:
        return SimpleNamespace(path=path, task=task, split=split, duration_s=900.0)

    stages = {"stage1": [item("a")], "stage2": [item("a", "QA"), item("b", "QA", "test"), item("gone", "QA")]}

    def prepare_corpus(items, tts_limit):
        assert tts_limit == 3
        return [i for i in items if i.path != "gone"]

    read = {"read_pocket_manifest": lambda: [item("a"), item("b", split="test")], "prepare_corpus": prepare_corpus}
    provide(monkeypatch, "audiolm_utils.data.corpus", **read)
    provide(monkeypatch, "audiolm_utils.data.stages", read_stage=stages.__getitem__)
    assert cli.main(["data", "--tts-limit", "3"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["base", "asr", "1", "0", "1", "0.50"],
        ["stage1", "asr", "1", "0", "0", "0.25"],
        ["stage2", "QA", "1", "0", "1", "0.50"],
    ]


def test_data_prints_the_plan_of_the_full_data(monkeypatch, capsys):
    provide(monkeypatch, "audiolm_utils.study.plan", plan=lambda: "| a plan |")
    assert cli.main(["data", "--plan"]) == 0
    assert capsys.readouterr().out == "| a plan |\n"


def test_data_checks_an_annotation_and_names_all_its_problems(capsys, tiny_clip):
    rows = [{"path": tiny_clip.name, "text": "good morning", "task": "asr"}]
    annotation = tiny_clip.with_name("annotation.json")
    annotation.write_text(json.dumps({"annotation": rows}))
    assert cli.main(["data", "--check", str(annotation)]) == 0
    assert "1 rows are sound" in capsys.readouterr().out
    assert cli.main(["data", "--check", str(annotation), "--root", str(tiny_clip.parent / "elsewhere")]) == 1
    rows += [{"path": "absent.wav", "text": "x", "task": "sing"}, {"path": "../x.wav", "text": "x", "task": "asr"}]
    annotation.write_text(json.dumps({"annotation": rows}))
    capsys.readouterr()
    assert cli.main(["data", "--check", str(annotation)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "row 2" in lines[0] and "row 3" in lines[1] and len(lines) == 2


@pytest.fixture
def listener(monkeypatch):
    """A stand-in for the model, which tells what it was given; returns the arguments that made it."""
    made = []

    class Listener:
        def __init__(self, recipe="shipped", precision="its own"):
            made.append((recipe, precision))

        def __call__(self, clip, task, question):
            return {"answer": f"{len(clip)} {clip.dtype} {task} {question}"}

    provide(monkeypatch, "audiolm_utils.study.listener", Listener=Listener)
    return made


def test_a_bad_file_is_named_and_skipped(listener, capsys, tiny_clip, tmp_path):
    assert cli.main(["transcribe", str(tmp_path / "absent.wav"), str(tiny_clip)]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"file": str(tiny_clip), "answer": "8000 float32 asr None"}
    assert err.startswith("audiolm: ") and "absent.wav" in err
    assert err.endswith("audiolm: 1 of 2 files have no answer\n") and err.count("\n") == 2
    assert cli.main(["transcribe", str(tiny_clip), "--recipe", "pocket-quick", "--precision", "int8"]) == 0
    assert listener == [("shipped", "its own"), ("pocket-quick", "int8")]


def test_an_exported_model_listens_in_place_of_a_recipe(listener, monkeypatch, capsys, tiny_clip):
    provide(monkeypatch, "audiolm_utils.export.runner", Runner=lambda folder: lambda *_: {"answer": folder.name})
    assert cli.main(["transcribe", "--onnx", "there/exported", str(tiny_clip)]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "exported" and listener == []
    assert cli.main(["transcribe", "--onnx", "exported", "--precision", "int8", str(tiny_clip)]) == 1
    assert "--precision is for recipes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["transcribe", "--onnx", "exported", "--recipe", "ours", str(tiny_clip)])


def test_export_names_the_folder_that_it_wrote(monkeypatch, capsys):
    wrote = []
    provide(monkeypatch, "audiolm_utils.study.on_device", export_recipe=lambda *what, int8: wrote.append((*what, int8)))
    assert cli.main(["export", "ours", "there"]) == cli.main(["export", "ours", "here", "--int8"]) == 0
    assert wrote == [("ours", Path("there"), False), ("ours", Path("here"), True)]
    assert capsys.readouterr().out == "there\nhere\n"


@pytest.mark.parametrize(
    ("argv", "asked"), [(["describe"], "audiocaption None"), (["ask", "What is it?"], "QA What is it?")]
)
def test_folders_are_described_and_asked_about_a_line_a_file(listener, capsys, tiny_clip, tmp_path, argv, asked):
    inside = tmp_path / "sounds" / "deep"
    inside.mkdir(parents=True)
    for name in ("b.WAV", "a.wav"):
        (inside / name).write_bytes(tiny_clip.read_bytes())
    (inside / "notes.txt").write_text("no sound")
    assert cli.main([*argv, str(tmp_path / "sounds")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(Path(line["file"]).name, line["answer"]) for line in lines] == [
        (name, f"8000 float32 {asked}") for name in ("a.wav", "b.WAV")
    ]


def test_a_folder_without_audio_is_an_error(listener, capsys, tmp_path):
    assert cli.main(["describe", str(tmp_path)]) == 1
    assert "holds no audio: expected files ending in .wav" in capsys.readouterr().err and not listener


def test_figures_and_results_print_what_they_made(monkeypatch, capsys, tmp_path):
    figures = importlib.import_module("audiolm_utils.figures")  # it needs the module that is stood in for
    provide(monkeypatch, "audiolm_utils.study.results", results_table=lambda: pd.DataFrame({"wer": [0.25]}))
    monkeypatch.setattr(figures, "generate_all", lambda out: [out / "a.png"], raising=False)
    assert cli.main(["figures", "--out", str(tmp_path)]) == 0
    assert cli.main(["results"]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "a.png") in out and "0.25" in out


def test_warnings_are_one_line(monkeypatch, capsys):
    def results_table():
        warnings.warn("flite cannot be had", UserWarning, stacklevel=2)
        return pd.DataFrame()

    provide(monkeypatch, "audiolm_utils.study.results", results_table=results_table)
    assert cli.main(["results"]) == 0
    assert capsys.readouterr().err == "audiolm: warning: flite cannot be had\n"
