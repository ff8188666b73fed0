"""An exported model answers as torch does, token for token, in a process that has no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from audiolm_utils.data.audio import load_audio
from audiolm_utils.export.exporter import export_model
from audiolm_utils.export.runner import Runner
from audiolm_utils.models.retrieval import Neighbours
from tests import tiny
from tests.export.conftest import AGREED, HINTED, instruction_of, torch_tokens


@torch.no_grad()
def check_parts(model, processor, folder, clips):
    """Encoder features, audio tokens and CTC are those of torch."""
    runner = Runner(folder, threads=1)
    for clip in clips:
        heard = processor.audio_features([clip])
        expected, lengths = model.encode(**heard)
        features = runner.encode(clip)
        assert features.shape == (int(lengths[0]), expected.shape[2])
        np.testing.assert_allclose(features, expected[0].numpy(), atol=1e-4)
        audio = model.embed_audio(**heard)
        inputs, log_probs = runner.connect(features)
        np.testing.assert_allclose(inputs, audio.inputs[0].numpy(), atol=1e-4)
        assert (log_probs is None) == (audio.log_probs is None)
        if log_probs is not None:
            np.testing.assert_allclose(log_probs, audio.log_probs[0].numpy(), atol=1e-3)


def test_two_encoders_with_a_ctc_head_give_what_torch_gives(ours, clips):
    model, processor, _, folder = ours
    check_parts(model, processor, folder, clips)


def test_a_plain_model_gives_what_torch_gives(plain, clips):
    check_parts(*plain, clips)


def test_a_middle_layer_is_there_for_hints_alone(parts, clips, tmp_path):
    model, processor = tiny.build(parts, retrieval_layer=1)
    features = [model.encode(**processor.audio_features([clip]))[0][0].detach().numpy() for clip in clips]
    known = Neighbours.of(features, [f"sound {n}" for n in range(len(clips))], columns=32)
    export_model(*tiny.build(parts, retrieval_layer=1), tmp_path, neighbours=known, hinted=HINTED)
    check_parts(model, processor, tmp_path, clips)
    runner = Runner(tmp_path, threads=1)
    assert [runner.hint(runner.encode(clip), "QA") for clip in clips] == known.told(features)


def test_joint_transcripts_are_torchs_token_for_token(ours, clips):
    model, processor, _, folder = ours
    runner = Runner(folder, threads=1)
    for clip in clips:
        ids = torch_tokens(model, processor, clip, instruction_of("asr"), ctc_decode_weight=0.5)
        assert runner.token_ids(clip) == ids and runner.token_ids(clip, limit=3) == ids[:3]
        assert runner(clip) == {"answer": processor.answers([ids])[0]}
        assert runner.transcribe(clip) == processor.answers([ids])[0]


def test_hinted_answers_are_torchs_token_for_token(ours, clips):
    model, processor, known, folder = ours
    runner = Runner(folder, threads=1)
    for clip in clips[2:4]:
        features = model.encode(**processor.audio_features([clip]))[0][0].detach().numpy()
        hint = known.told([features])[0]
        for task, question in (("audiocaption", None), ("QA", "Is {hint} or {Q} a word?")):
            ids = torch_tokens(model, processor, clip, instruction_of(task, question, hint), task)
            assert runner.token_ids(clip, task, question) == ids
            said = processor.answers([ids])[0]
            answer = known.agreed([features], [said])[0] if task in AGREED else said
            assert runner(clip, task, question) == {"answer": answer, "hint": hint}
        assert set(runner(clip, "gender_recognition")) == {"answer"}


def test_captions_are_agreed_on_without_hints_too(ours, clips, tmp_path):
    known, folder = ours[2], shutil.copytree(ours[-1], tmp_path / "exported")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"hinted": []}), encoding="utf-8")
    runner = Runner(folder, threads=1)
    own = runner.text(runner.token_ids(clips[3], "audiocaption"))
    assert runner(clips[3], "audiocaption") == {"answer": known.agreed([runner.encode(clips[3])], [own])[0]}


def test_plain_answers_are_torchs_token_for_token(plain, clips):
    model, processor, folder = plain
    runner = Runner(folder, threads=1)
    for clip in clips[::2]:
        ids = torch_tokens(model, processor, clip, instruction_of("asr"))
        assert runner.token_ids(clip) == ids
        assert runner(clip)["answer"] == processor.answers([ids])[0]


def test_nothing_of_torch_is_loaded_on_a_device(ours, tiny_clip):
    folder = ours[-1]
    script = (
        "import sys\nfrom audiolm_utils.app.cli import main\n"
        "status = main(['transcribe', '--onnx', sys.argv[1], sys.argv[2]])\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(status, sorted(loaded & {'torch', 'transformers', 'onnx', 'peft', 'pandas', 'safetensors', 'scipy'}))"
    )
    command = [sys.executable, "-c", script, str(folder), str(tiny_clip)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    answer, rest = result.stdout.splitlines()
    assert rest == "0 []"
    expected = Runner(folder)(load_audio(tiny_clip))["answer"]
    assert json.loads(answer) == {"file": str(tiny_clip), "answer": expected}


def test_what_is_missing_is_named_with_the_mend(ours, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json.*llm\.onnx.*audiolm export"):
        Runner(tmp_path)
    shutil.copytree(ours[-1], tmp_path / "cut")
    (tmp_path / "cut" / "embeddings.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no embeddings\.npy: "):
        Runner(tmp_path / "cut")


def test_what_cannot_be_asked_is_refused(ours, clips):
    runner = Runner(ours[-1], threads=1)
    clip = clips[2]
    for arguments, complaint in (
        (("dance",), "task 'dance' is unknown; expected one of asr"),
        (("QA",), "has no question"),
        (("QA", "  "), "has no question"),
        (("QA", f"What is {tiny.AUDIO}?"), "holds the audio token"),
    ):
        with pytest.raises(ValueError, match=complaint):
            runner(clip, *arguments)
    with pytest.raises(ValueError, match="split it"):
        runner(np.zeros(31 * 16_000))
