"""The study's models at full size, as recipes: one for each row of its tables, on checkpoints of the model hub.

They need the hub (Meta's checkpoints are gated), BEATs' or EAT's own checkpoint, the public sets, and for training a
GPU. Vary one with `dataclasses.replace`: other references run the same recipe on other checkpoints, tiny ones
included, and `llm_backend="unsloth"` loads the same LLM through unsloth.
"""

from __future__ import annotations

from typing import Any

from audiolm_utils.evaluation.architectures import STUDY, Design
from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.study.full_size import CLIP_S, EXPERIMENT
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.results import read_result, result_path

SPEECH_MODELS = {
    "Whisper-large-v2": "openai/whisper-large-v2",
    "Whisper-large-v3-turbo": "openai/whisper-large-v3-turbo",
}
AUDIO_MODELS = {  # downloaded by hand, see the README's table of encoders
    "BEATs": "BEATs_iter3_plus_AS2M.pt",
    "EAT": "EAT-base_epoch30_finetune_AS2M",
}
TEXT_MODELS = {
    "Llama-3.2-3B": "meta-llama/Llama-3.2-3B-Instruct",
    "Distill-Qwen-1.5B": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
}
UNSLOTH_BUILDS = {  # quantised by unsloth; any backend loads them
    "Llama-3.2-1B": "unsloth/Llama-3.2-1B-Instruct-bnb-4bit",
    "Llama-3.2-3B": "unsloth/Llama-3.2-3B-Instruct-bnb-4bit",
    "Llama-3.1-8B": "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
    "Qwen2.5-0.5B": "unsloth/Qwen2.5-0.5B-Instruct-bnb-4bit",
}
# Special tokens that the chat formats leave unused. unsloth pads Qwen with <|vision_pad|>: that one is taken.
AUDIO_TOKENS = {"Llama": "<|reserved_special_token_0|>", "Qwen": "<|image_pad|>", "Distill": "<|image_pad|>"}

DAY_S = 86_400
# bytedance/SALMONN, configs/config.yaml: 30 epochs of 3,000 steps of 8 clips, from a learning rate of 3e-5
SALMONN: dict[str, Any] = {
    "objective": "lm",
    "steps": 90_000,
    "trainable": ("projector", "lora"),
    "batch_size": 8,
    "learning_rate": 3e-5,
    "lora_learning_rate": 3e-5,
    "prompt_repeats": 1,
    "from_audio": True,  # features of 1.5 million clips would not fit on a disk
}
STAGES = (
    Stage("stage1", tasks=("asr", "audiocaption"), **SALMONN),
    Stage(
        "stage2",
        tasks=("asr", "audiocaption_v2", "QA", "phone_recognition", "gender_recognition"),
        seed_offset=1,
        **SALMONN,
    ),
)


def full_recipe(row: str) -> Recipe:
    """The recipe of a row of the study's tables; raises ValueError listing the rows for an unknown one."""
    if row not in STUDY:
        raise ValueError(f"the study has no row {row!r}; expected one of {', '.join(STUDY)}")
    design = STUDY[row]
    return Recipe(
        name=f"full-{row.lower().replace(' + ', '-').replace(' ', '-')}",
        scale="full",
        speech_model=SPEECH_MODELS[design.speech],
        audio_model=None if design.audio is None else AUDIO_MODELS[design.audio],
        text_model=_text_model(row, design),
        audio_token=AUDIO_TOKENS[design.llm.split("-")[0].rstrip("0123456789.")],
        projector=ProjectorConfig(),  # SALMONN's windows of 0.34 s, at each clip's real length
        compress=False,
        ctc_head=False,  # 3 tokens a second are fewer than the letters or words of speech
        lora=None if design.lora is None else dict(design.lora),
        encoder_precision=design.encoder_precision,
        llm_precision=design.llm_precision,
        stages=STAGES,
        seed=42,
    )


def _text_model(row: str, design: Design) -> str:
    """Rows that the study names "4-bit" are unsloth's builds; "+ QLoRA" quantises the original when it is loaded."""
    return (UNSLOTH_BUILDS if row.endswith("4-bit") else TEXT_MODELS)[design.llm]


FULL_RECIPES = {row: full_recipe(row) for row in STUDY}


def cpu_time(recipe: Recipe) -> str:
    """How long the training of a full recipe would take on the CPU that measured the rows at full size, in words.

    A lower bound: a clip costs its way to the first token, and the LLM's reading of it once more for the gradients. A
    recipe of another name is taken for the base.
    """
    measured = read_result(result_path(EXPERIMENT))
    name = next((row for row, known in FULL_RECIPES.items() if known.name == recipe.name), "base")
    row = next(row for row in measured["rows"] if (row["row"], row["mode"]) == (name, "real length"))
    seconds = {part["part"]: part["median"] for part in measured["parts"]}
    clips = sum(stage.steps * stage.batch_size * stage.accumulation for stage in recipe.stages)
    days = clips * (row["ttft_s"] + seconds[row["parts"][-1]]) / DAY_S
    return f"{clips:,} clips of {CLIP_S:.0f} s take {measured['machine']['cores']} cores at least {days:.1f} days"
