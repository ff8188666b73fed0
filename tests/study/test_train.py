"""Carrying out a recipe on tiny models: what learns, what comes back, and going on where it stopped."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from audiolm_utils.data.annotation_table import AnnotationTable
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.models.configuration import EXPERT_PARAMETERS
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.moe import MoEPlan
from audiolm_utils.models.routing import is_router
from audiolm_utils.study.recipe import TRAINABLE_PARTS, Recipe, Stage
from audiolm_utils.study.train import PARTS, build_model, select_trainable, stage_items, train_stage
from audiolm_utils.training.distill import Distillation
from audiolm_utils.training.teacher_cache import teacher_hash
from tests import tiny

TEXTS = ["on", "sea bed", "to a", "be my"]
QUIET = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
ALIGN = Stage("align", "ctc", 3, ("projector", "ctc"), batch_size=2)


@pytest.fixture
def recipe(parts) -> Recipe:
    return tiny.make_recipe(parts, "tiny", lora=tiny.LORA, speech_lora=tiny.LORA, stages=(ALIGN,))


@pytest.fixture
def items(empty_cache):
    root = cache_dir()
    train = tiny.write_items(root, TEXTS, source="tts")
    prompts = [replace(i, id=f"prompt{n}", source="asterisk") for n, i in enumerate(train[:2])]
    test = [replace(train[0], id="test0", text="xyz", split="test")]
    return train + prompts + test


def test_a_built_model_reads_what_training_texts_are_spelled_with(recipe, items):
    model, processor = build_model(recipe, items)
    letters = processor.tokenizer.convert_ids_to_tokens(model.ctc.token_ids.tolist())
    assert set(letters) == set("onseabdtmy") | {"\u0120"}  # not the test split's x, y, z but for "my"
    assert model.config.audio_token_id == processor.audio_token_id
    again, _ = build_model(recipe, items)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    other, _ = build_model(replace(recipe, seed=1), items)
    assert not torch.equal(other.projector.body.mix.weight, model.projector.body.mix.weight)


@pytest.fixture
def routed(parts, tmp_path) -> Recipe:
    """A recipe on a mixture of experts, whose attention and experts have LoRA."""
    mixture = tiny.write_mixture(parts, tmp_path / "mixture", MoEPlan("shared", 4, 2, 0.5, "fitted"))
    lora = {**tiny.LORA, "target_parameters": list(EXPERT_PARAMETERS)}
    recipe = tiny.make_recipe(parts, "routed", lora=lora, speech_lora=tiny.LORA, stages=(ALIGN,))
    return replace(recipe, text_model=str(mixture))


@pytest.mark.parametrize("part", TRAINABLE_PARTS)
def test_exactly_the_named_parts_learn(routed, items, part):
    assert PARTS.keys() == set(TRAINABLE_PARTS)
    model, _ = build_model(routed, items)
    select_trainable(model, [part])
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    prefix = {"lora": "language_model.", "speech_lora": "speech_encoder."}.get(part, f"{part}.")
    wanted = {n for n, _ in model.named_parameters() if n.startswith(prefix) and ("lora" not in part or "lora_" in n)}
    if part == "router":
        gates = ("gate", "shared_expert_gate")
        wanted = {f"language_model.model.layers.{layer}.mlp.{gate}.weight" for layer in (0, 1) for gate in gates}
    assert learning == wanted != set()


def test_prompts_are_repeated_and_only_training_speech_is_used(items):
    ids = [i.id for i in stage_items(replace(ALIGN, prompt_repeats=3), items)]
    assert sorted(ids) == sorted([f"item{n}" for n in range(4)] + ["prompt0", "prompt1"] * 3)


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_table_gives_a_table_of_the_items_that_a_list_gives(items, repeats):
    mixed = [*items, replace(items[0], id="other", task="QA", Q="Is it?", source="here")]
    for tasks in (("asr",), ("asr", "QA")):
        stage = replace(ALIGN, prompt_repeats=repeats, tasks=tasks)
        table = stage_items(stage, AnnotationTable.from_items(mixed))
        assert isinstance(table, AnnotationTable) and list(table) == stage_items(stage, mixed)


def test_a_stage_trains_its_parts_and_writes_its_row(recipe, items, tmp_path):
    model, processor = build_model(recipe, items)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    row = train_stage(recipe, ALIGN, model, processor, items, tmp_path / "align", **QUIET)
    assert (row["name"], row["steps"]) == ("align", 3)
    assert [step for step, _ in row["loss_curve"]] == [1, 2, 3]
    assert row["final_loss"] == row["loss_curve"][-1][1]
    assert json.loads((tmp_path / "align" / "stage.json").read_text()) == row
    changed = {k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"projector", "ctc"}
    saved = AudioLMForConditionalGeneration.from_pretrained(tmp_path / "align")
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_finished_stage_is_not_trained_again(recipe, items, tmp_path):
    model, processor = build_model(recipe, items)
    row = train_stage(recipe, ALIGN, model, processor, items, tmp_path / "align", **QUIET)
    fresh, _ = build_model(recipe, items)
    again = train_stage(recipe, ALIGN, fresh, processor, items, tmp_path / "align", **QUIET)
    assert again["loss_curve"] == row["loss_curve"]
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_broken_off_stage_goes_on_to_the_same_weights(recipe, items, tmp_path, monkeypatch):
    model, processor = build_model(recipe, items)
    whole = train_stage(recipe, ALIGN, model, processor, items, tmp_path / "whole", **QUIET)
    fresh, _ = build_model(recipe, items)
    saving = {**QUIET, "save_steps": 2}
    align, calls = type(fresh).align, []

    def power_cut(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return align(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(fresh), "align", power_cut)
        train_stage(recipe, ALIGN, fresh, processor, items, tmp_path / "broken", **saving)
    (tmp_path / "broken" / ".checkpoint-3-killed.part").mkdir()  # what a kill leaves
    other, _ = build_model(recipe, items)
    row = train_stage(recipe, ALIGN, other, processor, items, tmp_path / "broken", **saving)
    assert not list(tmp_path.glob("broken/*.part"))
    assert row["loss_curve"] == whole["loss_curve"]
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_autocast_ends_with_its_stage(recipe, items, tmp_path):
    cast = replace(ALIGN, autocast=True)
    model, processor = build_model(replace(recipe, stages=(cast,)), items)
    before = {name: weight.dtype for name, weight in model.named_parameters()}
    train_stage(recipe, cast, model, processor, items, tmp_path / "cast", **QUIET)
    assert "forward" not in vars(model) or not hasattr(model.forward, "__wrapped__")  # as accelerate leaves it
    assert {name: weight.dtype for name, weight in model.named_parameters()} == before
    speak = replace(SPEAK, autocast=True)  # fails where the stage behind has no autocast for its bfloat16 matrices
    assert train_stage(recipe, speak, model, processor, items, tmp_path / "speak", **QUIET)["steps"] == speak.steps


def test_a_language_stage_from_audio_trains_both_adapters(recipe, items, tmp_path):
    model, processor = build_model(recipe, items)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stage = Stage("language", "lm", 2, TRAINABLE_PARTS, batch_size=2, accumulation=2, ctc_weight=0.3, from_audio=True)
    train_stage(recipe, stage, model, processor, items, tmp_path / "language", **QUIET)
    assert model.ctc_weight == 0.3
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed <= model.own_state_dict().keys()
    assert {k.split(".")[0] for k in changed} == {"projector", "ctc", "speech_encoder", "language_model"}
    assert not (cache_dir() / "features").exists()


SPEAK = Stage("speak", "lm", 4, ("lora",), batch_size=2)


@pytest.mark.parametrize("method", ["kl", "hidden", "on-policy", "sequence"])
def test_a_stage_learns_from_a_teacher_and_says_so(recipe, items, tmp_path, method):
    recipe = replace(recipe, speech_lora=None)  # the two hear the same features
    teacher, _ = build_model(replace(recipe, seed=1), items)
    model, processor = build_model(recipe, items)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    how = {"kl": {"top_k": 4}, "on-policy": {"max_new_tokens": 3}}.get(method, {})
    stage = replace(SPEAK, distill=Distillation(method, **how))
    row = train_stage(recipe, stage, model, processor, items, tmp_path / "speak", teacher, **QUIET)
    assert row["teacher"] == teacher_hash(teacher)
    assert ("lost_mass" in row) == (method == "kl")
    assert json.loads((tmp_path / "speak" / "stage.json").read_text()) == row
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith("language_model.") and "lora_" in k for k in changed)
    kept = {p.suffix for p in (cache_dir() / "teachers").rglob("*")} if (cache_dir() / "teachers").exists() else set()
    assert (".f16" in kept, ".jsonl" in kept) == (method == "kl", method in ("kl", "sequence"))
    again, _ = build_model(recipe, items)
    assert train_stage(recipe, stage, again, processor, items, tmp_path / "speak", **QUIET) == row  # without a teacher
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_stage_that_distils_needs_a_teacher_and_another_takes_none_up(recipe, items, tmp_path):
    model, processor = build_model(recipe, items)
    with pytest.raises(ValueError, match="'speak' distils and has no teacher"):
        train_stage(
            recipe, replace(SPEAK, distill=Distillation()), model, processor, items, tmp_path / "speak", **QUIET
        )
    teacher, _ = build_model(replace(recipe, seed=1), items)
    rows = []
    for name, given in (("with", teacher), ("without", None)):
        fresh, _ = build_model(recipe, items)
        rows.append(train_stage(recipe, SPEAK, fresh, processor, items, tmp_path / name, given, **QUIET))
    assert rows[0]["loss_curve"] == rows[1]["loss_curve"]
    assert "teacher" not in rows[0]


def test_a_stage_of_some_minutes_ends_with_them_over_all_its_runs(recipe, items, tmp_path, monkeypatch):
    second = itertools.count()
    monkeypatch.setattr(
        "audiolm_utils.study.train._clock", lambda device: lambda: float(next(second))
    )  # a second a look
    stage = replace(SPEAK, steps=500, minutes=1.0)
    model, processor = build_model(recipe, items)
    align, calls = type(model).forward, []

    def power_cut(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return align(self, *args, **kwargs)

    saving = {**QUIET, "save_steps": 5}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(model), "forward", power_cut)
        train_stage(recipe, stage, model, processor, items, tmp_path / "speak", **saving)
    row = train_stage(recipe, stage, build_model(recipe, items)[0], processor, items, tmp_path / "speak", **saving)
    assert row["minutes"] == pytest.approx(1, abs=0.06)
    assert 20 < row["steps"] < 60
    assert [step for step, _ in row["loss_curve"]] == list(range(1, row["steps"] + 1))


def test_a_mixture_learns_its_router_and_comes_back(routed, items, tmp_path):
    """Two steps of LoRA on attention and experts with the whole router, saved, loaded: the same answers."""
    model, processor = build_model(routed, items)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stage = Stage("route", "lm", 2, ("lora", "router"), batch_size=2, router_loss_weight=0.1)
    train_stage(routed, stage, model, processor, items, tmp_path / "route", **QUIET)
    assert model.router_loss_weight == 0.1
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {k for k in changed if not is_router(k)} == {k for k in before if k.startswith("language_") and "lora_" in k}
    assert {k for k in changed if is_router(k)} == {k for k in before if is_router(k)}
    assert any(".experts." in k for k in changed)
    saved = AudioLMForConditionalGeneration.from_pretrained(tmp_path / "route")
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in model.state_dict().items())
    prompts = processor(["Repeat.", "What is said?"], audio=[tiny.clip(0.5), tiny.clip(0.9)])
    answers = [m.eval().generate(**prompts, max_new_tokens=8) for m in (model, saved)]
    assert torch.equal(*answers)
    fresh, _ = build_model(routed, items)
    train_stage(routed, stage, fresh, processor, items, tmp_path / "route", **QUIET)  # finished: it is loaded
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in model.state_dict().items())
