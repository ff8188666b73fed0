"""The plan of the full data: its arithmetic by hand, and what the README says of it."""

import re
import shlex
from dataclasses import replace

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from audiolm_utils.app.cli import build_parser
from audiolm_utils.evaluation.accounting import Account, Part
from audiolm_utils.evaluation.architectures import STUDY
from audiolm_utils.models.whisper import num_frames
from audiolm_utils.study import plan
from audiolm_utils.study.full_recipes import STAGES
from audiolm_utils.training.features import DTYPE


def part(name: str, precision: str, flops: int, parameters: int = 0, matrix_bytes: int = 0) -> Part:
    return Part(name, name, parameters, precision, 0, matrix_bytes, 0, flops, 0)


COSTS = Account(
    design=STUDY["base"],
    parts=(
        part("speech encoder", "fp32", 1_000),
        part("audio encoder", "fp32", 200),
        part("connector", "fp32", 30, parameters=50),
        part("LLM", "fp16", 4_000, matrix_bytes=7_000),
        part("LoRA", "fp32", 0, parameters=10),
    ),
    audio_s=10.0,
    batch=1,
    mode="real length",
    audio_tokens=30,
    prompt_tokens=40,
    new_tokens=64,
    kv_cache_bytes=0,
    flops_per_token=100,
)


def test_what_learns_and_what_passes_gradients_on_costs_more():
    assert plan.clip_flops(COSTS) == {"fp32": 1_000 + 200 + 3 * 30, "fp16": 2 * (4_000 + plan.ANSWER_TOKENS * 100)}


def test_gpus_share_a_batch_and_send_gradients_or_layers_too():
    one = plan.Way("one", 1)
    computing = 1_290 / (0.4 * 67e12) + 14_400 / (0.4 * 989e12)
    assert plan.step_seconds(COSTS, one, 8) == pytest.approx((8 * computing, 0))
    four = plan.Way("four", 4, bytes_per_s=10.0)
    assert plan.step_seconds(COSTS, four, 8) == pytest.approx((2 * computing, 2 * 240 * 3 / 4 / 10))
    assert plan.step_seconds(COSTS, replace(four, cut=True), 8)[1] == pytest.approx((480 + 14_000) * 3 / 4 / 10)


def test_clips_are_as_long_as_the_published_sets_say_and_at_most_30_s():
    assert plan.SETS["LibriSpeech"].clip_s == pytest.approx(12.3, abs=0.01)
    assert plan.SETS["WavCaps"].clip_s == plan.SETS["MusicNet"].clip_s == 30
    speech = (0.91 * 1_000 / 909_401 + 0.28 * 960.9 / 281_241) * 3600  # millions of s
    captions = 0.38 * (0.962 * 30 + 0.038 * plan.SETS["Clotho"].clip_s)
    assert plan.clip_seconds("stage1") == pytest.approx((speech + captions) / 1.57, rel=1e-4)
    assert 4 < plan.clip_seconds("stage2") < 30


def test_features_take_what_the_encoders_give():
    speech, audio = plan.feature_bytes_per_hour().values()
    assert speech == DTYPE.itemsize * 1280 * num_frames(16_000 * 30) * 120
    assert audio == DTYPE.itemsize * 768 * 3600 / 0.16


def test_no_way_has_more_gpus_than_the_batch_can_be_shared_by():
    assert all(stage.batch_size % way.gpus == 0 for stage in STAGES for way in plan.WAYS)


@pytest.mark.slow
def test_the_readme_of_the_data_has_the_plan_as_it_is_computed(repository):
    text = (repository / "data" / "README.md").read_text(encoding="utf-8")
    assert plan.plan() in text, "print it anew with `audiolm data --plan`"


def test_the_commands_of_the_plan_are_ones_that_parse(repository):
    text = (repository / "data" / "README.md").read_text(encoding="utf-8")
    block = text.partition("## What the full 1.4 TB set needs")[2].partition("\n## ")[0].replace("\\\n", " ")
    launches = re.findall(r"^accelerate (launch .*)$", block, re.MULTILINE)
    assert len(launches) == 3
    for line in launches:
        launched = launch_command_parser().parse_args(shlex.split(line, comments=True)[1:])
        _validate_launch_command(launched)
        assert (repository / launched.config_file).is_file() and launched.training_script == "audiolm_utils"
        build_parser().parse_args(launched.training_script_args)
    for line in re.findall(r"^audiolm (.*)$", block, re.MULTILINE):
        build_parser().parse_args(shlex.split(line, comments=True))
