"""The recipes of the pocket corpus' speech that are trained by themselves."""

from __future__ import annotations

from dataclasses import replace

from audiolm_utils.data.augment import SpanMask, WaveAugment
from audiolm_utils.study.recipe import WHISPER_LINEAR, Recipe, Stage, lora_fields

ADAPT = Stage(
    "adapt",
    "ctc",
    900,
    ("projector", "ctc", "speech_lora"),
    learning_rate=4e-4,
    lora_learning_rate=6e-4,
    prompt_repeats=4,
    from_audio=True,
    wave_augment=WaveAugment(),
    span_mask=SpanMask(),
)
POCKET_QUICK = Recipe(
    name="pocket-quick",
    ctc_merges=1000,
    answers_as_ctc=True,
    ctc_decode_weight=0.5,  # chosen on the validation split, see data/results/LOG.md
    lora=lora_fields(16),
    speech_lora=lora_fields(32, WHISPER_LINEAR),
    stages=(
        Stage("align", "ctc", 1400, ("projector", "ctc"), span_mask=SpanMask(2, 20, 0, 0)),
        Stage(
            "language",
            "lm",
            300,
            ("lora",),
            lora_learning_rate=6e-4,
            prompt_repeats=4,
            span_mask=SpanMask(2, 10, 0, 0),
        ),
        ADAPT,
        Stage(
            "listen",
            "lm",
            90,
            ("lora",),
            lora_learning_rate=4e-4,
            prompt_repeats=6,
            from_audio=True,
            wave_augment=WaveAugment(),
            span_mask=SpanMask(),
            seed_offset=2,
        ),
        replace(ADAPT, name="refine", steps=600, seed_offset=1),
    ),
)
# pocket-quick polished: its CTC was undertrained. Trained by name only, from nothing and with one seed; the shipped
# adapter is the mean of two seeds' last stage, both begun with the shipped pocket-quick (model soup, Wortsman et al.
# 2022), see data/results/LOG.md.
POLISH = replace(
    ADAPT,
    name="polish",
    steps=20_000,  # more than fit into the minutes
    minutes=28.0,
    prompt_repeats=12,
    seed_offset=2,
    autocast=True,
)
POCKET_LONG = replace(POCKET_QUICK, name="pocket-long", stages=(*POCKET_QUICK.stages, POLISH))
RECIPES = {POCKET_QUICK.name: POCKET_QUICK}
BY_NAME = {POCKET_LONG.name: POCKET_LONG}  # not among those that `study` trains unasked
