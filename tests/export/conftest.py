"""Tiny models, as torch has them and as exported folders."""

import pytest

from audiolm_utils.data.prompts import test_prompt as prompt_of
from audiolm_utils.evaluation.evaluate import answer_limit
from audiolm_utils.export.exporter import export_model
from audiolm_utils.models.retrieval import Neighbours
from tests import tiny

OURS = {"audio_model": "beats", "lora": tiny.LORA, "speech_lora": {**tiny.LORA, "target_modules": ["q_proj", "fc1"]}}
OURS |= tiny.COMPRESSED
PLAIN = {"audio_model": "eat", "projector": tiny.QFORMER, "pad_to_30s": True}
DURATIONS_S = (0.001, 0.03, 0.19, 0.5, 1.37, 2.9)
HINTED, AGREED = ("audiocaption", "QA"), ("audiocaption",)


@pytest.fixture(scope="session")
def clips():
    """Clips of odd lengths, some shorter than a frame."""
    return [tiny.clip(seconds, seed) for seed, seconds in enumerate(DURATIONS_S)]


@pytest.fixture(scope="session")
def ours(parts, clips, tmp_path_factory):
    """(model, processor, neighbours, folder): two encoders, LoRA, CTC, compression, hints; the folder is exported."""
    model, processor = tiny.build(parts, **OURS)
    features = [model.encode(**processor.audio_features([clip]))[0][0].detach().numpy() for clip in clips]
    known = Neighbours.of(features, [f"sound {n}" for n in range(len(clips))], 4)
    folder = tmp_path_factory.mktemp("ours")
    export_model(
        *tiny.build(parts, **OURS), folder, ctc_decode_weight=0.5, neighbours=known, hinted=HINTED, agreed=AGREED
    )  # the model that is compared keeps its adapters apart
    return model, processor, known, folder


@pytest.fixture(scope="session")
def plain(parts, tmp_path_factory):
    """(model, processor, folder): a Q-Former that reads 30 s of Whisper and of EAT, without a CTC head."""
    folder = tmp_path_factory.mktemp("plain")
    export_model(*tiny.build(parts, **PLAIN), folder)
    return *tiny.build(parts, **PLAIN), folder


def torch_tokens(model, processor, clip, instruction, task="asr", **decoding):
    """What torch answers: token ids, the end token too."""
    batch = processor([instruction], audio=[clip])
    return model.generate(**batch, max_new_tokens=answer_limit(task, clip), **decoding)[0].tolist()


def instruction_of(task, question=None, hint=None):
    """A task's test prompt, with its hint."""
    from audiolm_utils.data.annotations import AudioItem

    return prompt_of(AudioItem(id="clip", path="clip", text="?", task=task, Q=question, hint=hint))
