"""Recipes: what cannot be is refused, and every field shows in the fingerprint."""

import dataclasses
import json

import pytest

from audiolm_utils.data.augment import AugmentedViews, NoiseAndGain, SpanMask, WaveAugment
from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.study import recipe as module
from audiolm_utils.study.pocket_recipes import RECIPES
from audiolm_utils.study.recipe import TRAINABLE_PARTS, Recipe, Stage, lora_fields
from audiolm_utils.training.distill import Distillation

STAGE = Stage("align", "ctc", 10, ("projector",))
OTHER_STAGE = {
    "name": "other",
    "objective": "lm",
    "steps": 11,
    "trainable": ("projector", "ctc"),
    "batch_size": 8,
    "accumulation": 2,
    "learning_rate": 2e-3,
    "lora_learning_rate": 1e-4,
    "ctc_weight": 0.3,
    "prompt_repeats": 4,
    "from_audio": True,
    "wave_augment": WaveAugment(gain_db=1),
    "span_mask": SpanMask(time_size=5),
    "seed_offset": 1,
    "tasks": ("asr", "audiocaption"),
    "views": AugmentedViews(NoiseAndGain()),
    "distill": Distillation(),
    "minutes": 5.0,
    "router_loss_weight": 0.1,
    "attention": "eager",
    "autocast": True,
    "autocast_features": True,
}
DISTILLED = {
    "method": "hidden",
    "temperature": 2.0,
    "label_weight": 0.5,
    "top_k": 8,
    "beta": 0.5,
    "on_policy": 0.25,
    "layer_map": ((1, 2),),
    "matching": "cosine",
    "max_new_tokens": 9,
}
METHOD = {"on_policy": "on-policy", "max_new_tokens": "sequence", "layer_map": "hidden", "matching": "hidden"}
OTHER = {
    "name": "other",
    "scale": "full",
    "speech_model": "openai/whisper-large-v2",
    "text_model": "x/y",
    "audio_token": "<|audio|>",
    "projector": ProjectorConfig(window_frames=5),
    "ctc_merges": 500,
    "answers_as_ctc": True,
    "compress": False,
    "lora": lora_fields(4),
    "speech_lora": lora_fields(4),
    "stages": (STAGE,),
    "ctc_decode_weight": 0.5,
    "tts_limit": 100,
    "seed": 1,
    "audio_model": "pocket:beats-mini",
    "pad_to_30s": True,
    "encoder_precision": "int8",
    "llm_precision": "nf4",
    "llm_backend": "unsloth",
    "ctc_head": False,
    "num_beams": 4,
    "hints": True,
    "retrieval_layer": 2,
}


def test_every_field_is_covered_here():
    assert OTHER.keys() == {f.name for f in dataclasses.fields(Recipe)}
    assert OTHER_STAGE.keys() == {f.name for f in dataclasses.fields(Stage)}
    assert DISTILLED.keys() == {f.name for f in dataclasses.fields(Distillation)}


@pytest.mark.parametrize("name", OTHER)
def test_the_fingerprint_changes_with_each_field(name):
    base = Recipe("base")
    assert dataclasses.replace(base, **{name: OTHER[name]}).fingerprint() != base.fingerprint()


@pytest.mark.parametrize("name", OTHER_STAGE)
def test_the_fingerprint_changes_with_each_field_of_a_stage(name):
    stage = dataclasses.replace(STAGE, objective="lm") if name == "distill" else STAGE
    base = Recipe("base", stages=(stage,))
    changed = dataclasses.replace(stage, **{name: OTHER_STAGE[name]})
    assert dataclasses.replace(base, stages=(changed,)).fingerprint() != base.fingerprint()


def test_the_fingerprint_repeats_and_follows_the_training_code(monkeypatch):
    before = Recipe("base").fingerprint()
    assert before == Recipe("base").fingerprint()
    assert len(before) == 12 and int(before, 16) >= 0
    monkeypatch.setattr(module, "TRAINING_VERSION", module.TRAINING_VERSION + 1)
    assert Recipe("base").fingerprint() != before


def test_fields_that_came_later_leave_older_fingerprints_as_they_were():
    assert RECIPES["pocket-quick"].fingerprint() == "6ff988995db3"  # of the committed row and adapter
    later = {"tasks": ("asr",), "views": None, "distill": None, "minutes": None, "router_loss_weight": 0.0}
    assert dataclasses.replace(STAGE, **later) == STAGE


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match=r"'align' trains unknown parts \['encoder'\].*speech_lora"):
        Stage("align", "ctc", 10, ("projector", "encoder"))


def test_training_the_encoder_needs_audio():
    with pytest.raises(ValueError, match="from_audio=True"):
        Stage("adapt", "ctc", 10, ("speech_lora",))
    assert Stage("adapt", "ctc", 10, ("speech_lora",), from_audio=True).from_audio


def test_views_are_of_cached_features():
    with pytest.raises(ValueError, match="from_audio=False"):
        Stage("adapt", "ctc", 10, ("projector",), from_audio=True, views=AugmentedViews(NoiseAndGain()))


def test_minutes_are_more_than_none():
    with pytest.raises(ValueError, match="'align' has minutes=0; expected more than 0"):
        Stage("align", "ctc", 10, ("projector",), minutes=0)


@pytest.mark.parametrize("field", DISTILLED)
def test_the_fingerprint_changes_with_each_field_of_a_distillation(field):
    speak = dataclasses.replace(STAGE, objective="lm")
    how = Distillation(**{"method": METHOD.get(field, "kl"), field: DISTILLED[field]})
    plain = Distillation(METHOD.get(field, "kl"))
    prints = {Recipe("base", stages=(dataclasses.replace(speak, distill=d),)).fingerprint() for d in (None, plain, how)}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "ctc"}, "'speak' distils answers; it needs objective='lm', not 'ctc'"),
        ({"distill": Distillation(top_k=4), "span_mask": SpanMask()}, "span_mask or wave_augment change.*top_k=None"),
        ({"distill": Distillation(top_k=4), "wave_augment": WaveAugment()}, "or augment by views"),
        ({"ctc_weight": 0.3}, "has a ctc_weight that label_weight=0 takes away"),
        ({"router_loss_weight": 0.3}, "has a router_loss_weight that label_weight=0 takes away"),
    ],
)
def test_a_stage_that_cannot_distil_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Stage(
            **{
                "name": "speak",
                "steps": 5,
                "trainable": ("lora",),
                "objective": "lm",
                "distill": Distillation(),
                **fields,
            }
        )


def test_labels_beside_or_of_the_teacher_may_have_ctc():
    fixed = {"name": "speak", "steps": 5, "trainable": ("lora",), "objective": "lm", "ctc_weight": 0.3}
    for how in (Distillation(label_weight=1.0), Distillation("sequence")):
        assert Stage(distill=how, span_mask=SpanMask(), **fixed).distill == how


@pytest.mark.parametrize("precision", ["bf16", "fp16", "nf4"])
def test_training_a_router_in_few_bits_is_refused(precision):
    route = Stage("route", "lm", 10, ("router", "lora"))
    with pytest.raises(ValueError, match=rf"trains the router in stage 'route', .* '{precision}' rounds .* to 'fp32'"):
        Recipe("x", stages=(route,), llm_precision=precision)
    assert Recipe("x", stages=(route,)).llm_precision == "fp32"


def test_training_through_an_int8_llm_is_refused():
    through = Stage("speak", "lm", 10, ("lora",))
    with pytest.raises(ValueError, match=r"stage 'speak'.*int8 passes no gradient.*nf4"):
        Recipe("base", llm_precision="int8", stages=(STAGE, through))
    assert Recipe("base", llm_precision="int8", stages=(STAGE,)).llm_precision == "int8"


def test_recipes_are_frozen_and_know_their_fields():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe("base").seed = 2
    with pytest.raises(TypeError, match="speach_model"):
        Recipe("base", speach_model="x")


def test_the_configuration_carries_every_part():
    recipe = Recipe(
        "base", ctc_merges=500, speech_lora=lora_fields(4), compress=True, llm_precision="nf4", llm_backend="unsloth"
    )
    config = recipe.config(audio_token_id=7, ctc_vocab_size=30)
    assert (config.audio_token_id, config.ctc_vocab_size, config.ctc_merges, config.compress) == (
        7,
        30,
        500,
        True,
    )
    assert config.projector == recipe.projector.to_dict()
    assert (config.llm_precision, config.llm_backend) == ("nf4", "unsloth")
    assert (config.lora, config.speech_lora) == (recipe.lora, recipe.speech_lora)
    assert (config.speech_model, config.text_model) == (recipe.speech_model, recipe.text_model)


def test_lora_fields():
    assert lora_fields(8, ("q_proj",)) == {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj"],
    }
    assert lora_fields(8, "attention")["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    every = lora_fields(8, "all-linear", use_rslora=True, use_dora=True)
    assert every == {**lora_fields(8), "use_rslora": True, "use_dora": True}


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_of_the_table_can_be(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.scale in ("pocket", "full")
    assert recipe.stages
    json.dumps(dataclasses.asdict(recipe))
    for stage in recipe.stages:
        assert set(stage.trainable) <= set(TRAINABLE_PARTS)
        assert "lora" not in stage.trainable or recipe.lora
        assert "speech_lora" not in stage.trainable or recipe.speech_lora
