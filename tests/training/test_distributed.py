"""Two processes on the CPU (gloo) train what one process trains, stage by stage, with the code of a recipe: each with
the whole LLM (DDP), or with a part of its layers (FSDP).

Run as a module in a folder that `prepare` made, it is one of these processes.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.augment import AugmentedViews, NoiseAndGain, SpanMask
from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.study.recipe import TRAINABLE_PARTS, Stage
from audiolm_utils.study.train import build_model, share_batch, train_stage
from audiolm_utils.training.callbacks import TimeLimit
from audiolm_utils.training.distill import Distillation
from audiolm_utils.training.sharding import LAUNCHED, SETTINGS
from audiolm_utils.training.trainer import AudioLMTrainer, training_arguments
from tests import tiny

TEXTS = ["on", "sea bed", "to a", "be my", "eel", "go", "ha ha", "an ox", "dew"]  # 4 + 4 + 1 clips an epoch
NOISE = NoiseAndGain(noise_p=0.8)
ALIGN = Stage(
    *("align", "ctc", 5, ("projector", "ctc")),
    batch_size=2,
    accumulation=2,
    span_mask=SpanMask(),
    views=AugmentedViews(NOISE),
)
LANGUAGE = Stage(
    *("language", "lm", 5, TRAINABLE_PARTS),
    batch_size=4,
    ctc_weight=0.3,
    from_audio=True,
    wave_augment=NOISE,
    span_mask=SpanMask(),
)
SPEAK = Stage("speak", "lm", 5, ("lora",), batch_size=4, from_audio=True)
KEPT = replace(SPEAK, name="kept", distill=Distillation(top_k=8, label_weight=0.5))
OWN = replace(SPEAK, name="own", distill=Distillation("on-policy", max_new_tokens=4))
STAGES = (ALIGN, LANGUAGE, KEPT, OWN)
# No attention in the projector: its key bias has no gradient but rounding, which AdamW makes as large as any other.
STACK = ProjectorConfig(**{**tiny.MLP, "num_layers": 0})
MODULE, ROOT = "tests.training.test_distributed", Path(__file__).resolve().parents[2]
SAVED = 4  # in the second epoch
ARGUMENTS = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_total_limit": 2}
FSDP = {LAUNCHED: "true", **SETTINGS}
LAUNCHES = [pytest.param({}, id="DDP"), pytest.param(FSDP, id="FSDP")]


def prepare(folder: Path) -> None:
    """Write tiny models and clips."""
    tiny.write_speech_model(folder / "parts" / "speech")
    tiny.write_text_model(folder / "parts" / "text")
    items = tiny.write_items(folder / "cache", TEXTS, source="tts")
    (folder / "items.json").write_text(json.dumps([asdict(item) for item in items]))


def train(folder: Path, steps: int | None = None) -> dict[str, int]:
    """Train the stages, the last one for fewer steps if asked.

    Returns what this process did of what one should do, and how many numbers of the LLM's frozen layers it holds.
    """
    items = [AudioItem(**item) for item in json.loads((folder / "items.json").read_text())]
    lora = {"lora": tiny.LORA, "speech_lora": tiny.LORA}
    recipe = tiny.make_recipe(folder / "parts", "tiny", stages=STAGES, **lora)
    recipe = replace(recipe, projector=STACK)
    model, processor = build_model(recipe, items)
    teacher, _ = build_model(replace(recipe, seed=1), items)
    done = {"encoded": 0, "saved": 0}

    def count(name, function):
        def counted(*args, **kwargs):
            done[name] += 1
            return function(*args, **kwargs)

        return counted

    model.save_pretrained = count("saved", model.save_pretrained)
    for stage in STAGES:
        cached = not stage.from_audio
        encode = model.speech_encoder.forward
        if cached:
            model.speech_encoder.forward = count("encoded", encode)
        if stage is LANGUAGE and steps:
            break_off_after(steps)
        arguments = {"save_steps": SAVED, **ARGUMENTS}
        train_stage(recipe, stage, model, processor, items, folder / stage.name, teacher, **arguments)
        model.speech_encoder.forward = encode
    layers = [p for n, p in model.language_model.named_parameters() if ".layers." in n and "lora_" not in n]
    return done | {"held": sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in layers)}


def break_off_after(steps: int) -> None:
    """End this process at the loss after some steps, as a crash would."""
    compute_loss, calls = AudioLMTrainer.compute_loss, []

    def crash(*args, **kwargs):
        calls.append(0)
        if len(calls) > steps:
            os._exit(0)
        return compute_loss(*args, **kwargs)

    AudioLMTrainer.compute_loss = crash


def launch(folder: Path, *arguments: str, module: str = MODULE, **environment: str) -> None:
    """Run a module in two processes and wait."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    command += [f"--master_port={port}", "-m", module, str(folder), *arguments]
    extra = {"AUDIOLM_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", **environment}
    run = subprocess.run(command, env={**os.environ, **extra}, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]


def files_of(folder: Path) -> set[str]:
    """What a stage's folder and its checkpoints hold, the states of the processes' random numbers apart."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith("rng_state")}


def history(folder: Path) -> list[dict]:
    """Losses, gradient norms and learning rates of a stage by step; how full an epoch is depends on the batches."""
    state = json.loads((folder / f"checkpoint-{SAVED}" / "trainer_state.json").read_text())
    return [{name: value for name, value in row.items() if name != "epoch"} for row in state["log_history"]]


def done_files(alone: Path, together: Path) -> list[Path]:
    """What each process did: the one of a run alone, and the two of a run together."""
    return [alone / "done.json", *(together / f"done-{rank}.json" for rank in (0, 1))]


def assert_same_stages(one: Path, other: Path) -> None:
    """Equal to float rounding: the sums of the same gradients, in another order."""
    for stage in STAGES:
        rows = [json.loads((folder / stage.name / "stage.json").read_text())["loss_curve"] for folder in (one, other)]
        assert [step for step, _ in rows[0]] == [1, 2, 3, 4, 5]
        assert rows[0] == [[step, pytest.approx(loss, abs=1.1e-4)] for step, loss in rows[1]]  # four digits are kept
        for row, same in zip(history(one / stage.name), history(other / stage.name), strict=True):
            assert row == pytest.approx(same, rel=1e-5)
        states = [load_file(folder / stage.name / "model.safetensors") for folder in (one, other)]
        for name, value in states[0].items():
            torch.testing.assert_close(states[1][name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert states[0].keys() == states[1].keys()
        assert files_of(one / stage.name) == files_of(other / stage.name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of one process's run."""
    folder = tmp_path_factory.mktemp("alone")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOLM_CACHE", str(folder / "cache"))
        done = train(folder)
    assert min(done.values()) > 0
    (folder / "done.json").write_text(json.dumps(done))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("environment", LAUNCHES)
def test_two_processes_train_what_one_trains(alone, tmp_path, environment):
    prepare(tmp_path)
    launch(tmp_path, **environment)
    assert_same_stages(alone, tmp_path)
    only, first, second = (json.loads(path.read_text()) for path in done_files(alone, tmp_path))
    assert first["held"] == second["held"] == only["held"] / (2 if environment else 1)
    assert first["encoded"] > 0 and first["saved"] > 0
    assert second["encoded"] == second["saved"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "launches",
    [
        pytest.param([{}, {}], id="DDP"),
        pytest.param([FSDP, FSDP], id="FSDP"),
        pytest.param([FSDP, {}], id="FSDP, then DDP"),
    ],
)
def test_two_processes_resume_as_one_that_was_not_broken_off(alone, tmp_path, launches):
    prepare(tmp_path)
    launch(tmp_path, str(SAVED), **launches[0])
    assert not (tmp_path / "language" / "stage.json").exists()
    launch(tmp_path, **launches[1])
    assert_same_stages(alone, tmp_path)


def test_a_batch_is_shared_whatever_the_number_of_processes():
    stage = replace(ALIGN, batch_size=6, accumulation=4)
    assert [share_batch(stage, n) for n in (1, 2, 3, 4)] == [(6, 4), (6, 2), (2, 4), (6, 1)]
    with pytest.raises(ValueError, match=r"5 processes cannot share .* 'align', 4 x 6 clips"):
        share_batch(stage, 5)


def test_processes_that_would_each_train_alone_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    if torch.cuda.is_available():
        pytest.skip("with a GPU they find each other")
    with pytest.raises(RuntimeError, match=r"2 processes were started but this one sees 1: .*ACCELERATE_USE_CPU"):
        training_arguments(tmp_path)


def test_a_time_limit_is_for_one_process(tmp_path):
    arguments = training_arguments(tmp_path, use_cpu=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    arguments.distributed_state.num_processes = 2
    try:
        with pytest.raises(RuntimeError, match="2 processes at different steps"):
            TimeLimit(1).on_train_begin(arguments, None, None, lr_scheduler=scheduler)
    finally:
        arguments.distributed_state.num_processes = 1


def test_fsdp_in_the_arguments_is_refused_naming_the_launch(parts, tmp_path):
    arguments = training_arguments(tmp_path, use_cpu=True)
    arguments.fsdp = True
    with pytest.raises(ValueError, match=r"no training argument here: launch with .*fsdp\.yaml"):
        AudioLMTrainer(model=tiny.build(parts)[0], args=arguments)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_accelerate_knows_every_key_of_the_configuration(repository, name):
    config = ClusterConfig.from_yaml_file(str(repository / "configs" / "accelerate" / f"{name}.yaml"))
    assert (config.num_processes, config.mixed_precision) == (-1, "no")  # processes are given at each launch


@pytest.mark.parametrize(("name", "found"), [("ddp", {}), ("fsdp", FSDP)])
def test_a_launch_by_the_configuration_gives_processes_what_they_are_tested_with(repository, name, found):
    file = repository / "configs" / "accelerate" / f"{name}.yaml"
    argv = ["--config_file", str(file), "--num_processes", "2", "-m", "audiolm_utils", "study", "full-base"]
    environment = prepare_multi_gpu_env(_validate_launch_command(launch_command_parser().parse_args(argv))[0])
    assert {key: environment.get(key, "").lower() for key in FSDP} == (found or dict.fromkeys(FSDP, ""))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    report = train(place, *map(int, sys.argv[2:]))
    (place / f"done-{os.environ['RANK']}.json").write_text(json.dumps(report))
