"""The three recipes that the study ends with: its base, its final one, and ours; trained alike and for as long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from audiolm_utils.data.augment import AugmentedViews, NoiseAndGain, SpanMask
from audiolm_utils.study.recipe import WHISPER_LINEAR, Recipe, Stage, lora_fields

MINUTES = {"align": 4.0, "stage1": 5.0, "stage2": 10.0}  # of processor time, of each recipe and seed
SYNTHETIC, SCENES = 2_000, 400  # clips; of the other kinds all that are there
STAGE1_TASKS = ("asr", "audiocaption")
STAGE2_TASKS = ("asr", "audiocaption", "audiocaption_v2", "QA", "phone_recognition", "gender_recognition")
START = {  # shipped models that the recipes begin with: its connector; ours with its speech encoder and LoRA, too
    "base": "connector",
    "study-final": "connector",
    "ours": "pocket-long",
}
STEPS = 20_000  # more than fit into the minutes

ALIGN = Stage(
    "align",
    "ctc",
    STEPS,
    ("projector", "ctc"),
    prompt_repeats=2,
    tasks=STAGE1_TASKS,
    minutes=MINUTES["align"],
    autocast=True,
    autocast_features=True,
)
STAGE1 = Stage(
    "stage1",
    "lm",
    STEPS,
    ("lora",),
    batch_size=8,
    lora_learning_rate=6e-4,
    prompt_repeats=2,
    tasks=STAGE1_TASKS,
    minutes=MINUTES["stage1"],
    seed_offset=1,
    attention="eager",
    autocast=True,
    autocast_features=True,
)
STAGE2 = replace(STAGE1, name="stage2", tasks=STAGE2_TASKS, minutes=MINUTES["stage2"], seed_offset=2)

BASE = Recipe(
    "base",
    audio_model="pocket:beats-mini",
    pad_to_30s=True,
    ctc_merges=1000,
    answers_as_ctc=True,
    lora=lora_fields(16, "attention"),
    stages=(ALIGN, STAGE1, STAGE2),
    tts_limit=SYNTHETIC,
)
NOISY = AugmentedViews(NoiseAndGain(), count=1)  # a clip is clean, or changed, for the whole training
STUDY_FINAL = replace(
    BASE,
    name="study-final",
    text_model="pocket:smollm2-20-layers",  # 1 billion parameters in place of 3
    llm_precision="nf4",
    lora=lora_fields(16),
    # 4-bit layers compute in float32, and refuse autocast to anything else
    stages=(replace(ALIGN, views=NOISY), *(replace(s, views=NOISY, autocast=False) for s in (STAGE1, STAGE2))),
)
MASKED: dict[str, Any] = {"span_mask": SpanMask(2, 20, 0, 0), "views": NOISY}
OURS = replace(
    BASE,
    name="ours",
    audio_model=None,  # it added nothing to hints, and words are better without
    pad_to_30s=False,
    text_model=STUDY_FINAL.text_model,
    lora=lora_fields(16),
    speech_lora=lora_fields(32, WHISPER_LINEAR),
    ctc_decode_weight=0.5,  # as pocket-quick's, which was chosen on the validation split
    hints=True,
    retrieval_layer=2,  # of 4: nearer clips than by the last, on training clips asked without their own recording
    # Its alignment is what it begins with. Four minutes more of it, on sounds too, cost words, and taught the LLM to
    # believe what the connector knows of training clips by heart, not the hints.
    stages=(
        replace(STAGE1, minutes=MINUTES["align"] + MINUTES["stage1"], **MASKED),
        replace(STAGE2, **MASKED),
    ),
)
FINAL_RECIPES = {recipe.name: recipe for recipe in (BASE, STUDY_FINAL, OURS)}
# How each one's saved model is prepared for answers, see `load_in_a_way`.
INFERENCE = {BASE.name: "folded, by columns", STUDY_FINAL.name: "folded, by columns", OURS.name: "int8, folded"}
