"""The study's rows as recipes: what each is made of, and each of them end to end on tiny checkpoints in hub layout."""

import json
from dataclasses import replace

import pytest
import torch

from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.prompts import test_prompt as prompt_of
from audiolm_utils.evaluation.architectures import QLORA, SALMONN_LORA, STUDY
from audiolm_utils.evaluation.evaluate import answer_items, score_asr
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.parameters import parameter_report
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.study.full_recipes import AUDIO_MODELS, FULL_RECIPES, full_recipe
from audiolm_utils.study.pocket_recipes import RECIPES
from audiolm_utils.study.train import build_model, train_stage
from tests import tiny
from tests.models.families import FAMILIES, write_family

QUIET = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
LLM_ROWS = [row for row, design in STUDY.items() if design.speech == "Whisper-large-v2" and design.audio == "BEATs"]


def family_of(text_model: str) -> str:
    """Which family a hub id is of."""
    if "DeepSeek" in text_model:
        return "deepseek"
    return "qwen2.5" if "Qwen" in text_model else "llama3"


def quantised_already(text_model: str) -> bool:
    return text_model.endswith("-bnb-4bit")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A tiny checkpoint for each LLM of the recipes, by hub id."""
    root, written = tmp_path_factory.mktemp("hub"), {}
    for reference in {recipe.text_model for recipe in FULL_RECIPES.values()}:
        kind = (family_of(reference), quantised_already(reference))
        folder = root / f"{kind[0]}-{kind[1]}"
        if not folder.exists():
            write_family(folder, kind[0], quantised=kind[1])
        written[reference] = folder
    return written


@pytest.fixture
def items(empty_cache):
    """Two clips to transcribe, and one of each of some other tasks of the two stages."""
    made = tiny.write_items(cache_dir(), ["on to", "sea", "a dog barks", "rain", "two"], source="public", Q="How many?")
    tasks = ("asr", "asr", "audiocaption", "audiocaption_v2", "QA")
    return [replace(item, task=task) for item, task in zip(made, tasks, strict=True)]


def at_toy_size(row, parts, checkpoints):
    """The row's recipe, its references replaced by tiny checkpoints, and two steps in each stage."""
    recipe = FULL_RECIPES[row]
    audio = {AUDIO_MODELS["BEATs"]: "beats", AUDIO_MODELS["EAT"]: "eat"}.get(recipe.audio_model)
    return replace(
        recipe,
        speech_model=str(parts / "speech"),
        audio_model=audio and str(parts / audio),
        text_model=str(checkpoints[recipe.text_model]),
        projector=ProjectorConfig(**tiny.QFORMER),
        stages=tuple(replace(s, steps=2, batch_size=2, learning_rate=1e-3) for s in recipe.stages),
    )


@pytest.mark.parametrize("row", FULL_RECIPES)
def test_each_row_trains_saves_loads_answers_and_is_scored(row, parts, checkpoints, items, tmp_path):
    recipe = at_toy_size(row, parts, checkpoints)
    model, processor = build_model(recipe, items)
    rows = model.language_model.get_input_embeddings().num_embeddings
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for stage in recipe.stages:
        train_stage(recipe, stage, model, processor, items, tmp_path / stage.name, **QUIET)
    after = model.state_dict()
    changed = {k for k, v in before.items() if not torch.equal(v, after[k])}
    assert changed and changed <= model.own_state_dict().keys()
    assert any("lora_B" in k for k in changed) and any(k.startswith("projector.") for k in changed)

    loaded = AudioLMForConditionalGeneration.from_pretrained(tmp_path / "stage2")
    fitting = AudioLMProcessor.from_pretrained(tmp_path / "stage2")
    batch = processor([prompt_of("asr")], audio=[tiny.clip(0.5)], answers=["on to"])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).loss, model.eval()(**batch).loss)
    answers = answer_items(loaded, fitting, items[:2], cache_dir(), progress=False, max_new_tokens=4)
    assert score_asr(answers)["n"] == 2
    assert loaded.language_model.get_input_embeddings().num_embeddings == rows == len(fitting.tokenizer)


# What the recipes are -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", FULL_RECIPES)
def test_each_recipe_is_its_row(row):
    recipe, design = FULL_RECIPES[row], STUDY[row]
    assert (recipe.scale, recipe.llm_precision, recipe.encoder_precision) == (
        "full",
        design.llm_precision,
        design.encoder_precision,
    )
    assert recipe.lora == (QLORA if design.llm_precision == "nf4" else SALMONN_LORA)
    assert (recipe.audio_model is None) == (design.audio is None)
    assert design.llm.removeprefix("Distill-") in recipe.text_model
    assert recipe.audio_token == FAMILIES[family_of(recipe.text_model)].audio_token
    assert quantised_already(recipe.text_model) == row.endswith("4-bit")
    assert [stage.name for stage in recipe.stages] == ["stage1", "stage2"]
    json.dumps(recipe.config(0, 0).to_dict(), default=str)


def test_names_and_fingerprints_are_each_ones_own():
    recipes = [*RECIPES.values(), *FULL_RECIPES.values()]
    assert len({r.name for r in recipes}) == len({r.fingerprint() for r in recipes}) == len(recipes)
    assert FULL_RECIPES["base + QLoRA"].name == "full-base-qlora"
    assert len(LLM_ROWS) == 7  # the base, the distilled Qwen, QLoRA and four builds


def test_an_unknown_row_is_refused_listing_the_known_ones():
    with pytest.raises(ValueError, match=r"no row 'Llama-3\.2-8B'; expected one of base, turbo.*Qwen2\.5-0\.5B 4-bit"):
        full_recipe("Llama-3.2-8B")


# Bad input ------------------------------------------------------------------------------------------------


def test_unsloth_without_an_accelerator_names_the_alternative(parts, checkpoints, items, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = replace(at_toy_size("Llama-3.2-1B 4-bit", parts, checkpoints), llm_backend="unsloth")
    with pytest.raises(RuntimeError, match="set llm_backend='transformers', which loads the same checkpoint"):
        build_model(recipe, items)


def test_a_placeholder_of_another_family_is_refused(parts, checkpoints, items):
    recipe = replace(at_toy_size("base", parts, checkpoints), audio_token="<|image_pad|>")
    with pytest.raises(ValueError, match=r"'<\|image_pad\|>' is not a token of the tokenizer of"):
        build_model(recipe, items)


def test_adapters_for_another_llm_are_refused_saying_how_they_differ(parts, checkpoints, items, tmp_path):
    model, _ = build_model(at_toy_size("Qwen2.5-0.5B 4-bit", parts, checkpoints), items)
    model.save_pretrained(tmp_path)
    other = str(checkpoints[FULL_RECIPES["base"].text_model])
    config = type(model.config).from_pretrained(tmp_path, text_model=other)
    with pytest.raises(ValueError, match=r"another LLM than .*model_type qwen2, now llama.*text_model"):
        AudioLMForConditionalGeneration.from_pretrained(tmp_path, config=config)


# Parameters -----------------------------------------------------------------------------------------------


def test_the_report_counts_4_bit_weights_as_weights(parts, checkpoints, items):
    full, four = (build_model(at_toy_size(row, parts, checkpoints), items)[0] for row in ("base", "base + QLoRA"))
    reports = [parameter_report(model) for model in (full, four)]
    assert reports[0].parts["language_model"] == reports[1].parts["language_model"]
    assert reports[1].parts["language_model LoRA"] == (16_384, 16_384)
    for model, report in zip((full, four), reports, strict=True):
        assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert report.parts["projector"][0] == report.parts["projector"][1]
        assert report.parts["speech_encoder"][1] == report.parts["audio_encoder"][1] == 0
    assert str(reports[1]).splitlines()[-1].startswith("all ")
