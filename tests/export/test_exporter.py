"""What an exported folder holds, 8 bits near float32, and models that are refused."""

import json

import numpy as np
import pytest

from audiolm_utils.export.exporter import export_model
from audiolm_utils.export.runner import Runner
from audiolm_utils.models.folding import prepare_for_inference
from tests import tiny


def test_the_folder_is_whole_and_says_what_it_is(ours):
    _, processor, known, folder = ours
    graphs = {f"{name}.onnx{end}" for name in ("encoder", "connector", "llm") for end in ("", ".data")}
    others = {"config.json", "tokenizer.json", "embeddings.npy", "neighbours.npz"}
    assert {path.name for path in folder.iterdir()} == graphs | others
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["precision"] == "fp32" and config["hinted"] == ["audiocaption", "QA"]
    assert config["chat"].count(tiny.AUDIO) == 1 and config["end_ids"] == [processor.tokenizer.eos_token_id]
    assert config["tasks"]["asr"]["tokens"] == [12, 12]
    assert np.load(folder / "neighbours.npz")["texts"].tolist() == known.texts


def test_no_file_tells_where_it_was_made(ours, repository):
    *_, folder = ours
    told = [path.name for path in folder.iterdir() for place in (str(repository), "site-packages")
            if place.encode() in path.read_bytes()]  # fmt: skip
    assert told == []


def test_eight_bits_are_near_float32_and_smaller(parts, clips, tmp_path):
    exported = tiny.build(parts, **tiny.COMPRESSED)
    export_model(*exported, tmp_path, int8=True, ctc_decode_weight=0.5)
    with pytest.raises(ValueError, match="cannot be saved: export_model folded its adapters"):
        exported[0].save_pretrained(tmp_path / "saved")
    model, processor = tiny.build(parts, **tiny.COMPRESSED)
    runner = Runner(tmp_path, threads=1)
    assert runner.config["precision"] == "int8" and runner.known is None
    for clip in clips[1:]:
        heard = processor.audio_features([clip])
        expected = model.encode(**heard)[0][0].detach().numpy()
        features = runner.encode(clip)
        assert 0 < np.linalg.norm(features - expected) / np.linalg.norm(expected) < 0.05
        inputs = model.embed_audio(**heard).inputs[0].detach().numpy()
        assert 0 < np.linalg.norm(runner.connect(features)[0] - inputs) / np.linalg.norm(inputs) < 0.2
        assert isinstance(runner.transcribe(clip), str)
    table = np.load(tmp_path / "embeddings.npy")
    assert table.dtype == np.float16
    layers = sum(p.numel() for p in model.language_model.get_decoder().layers.parameters())
    whole = 4 * (layers + table.size)
    assert (tmp_path / "llm.onnx.data").stat().st_size < 0.6 * whole


def test_models_that_cannot_be_exported_are_refused(parts, tmp_path):
    model, processor = tiny.build(parts)
    prepare_for_inference(model, "int8")
    with pytest.raises(ValueError, match="8 or 4 bits already"):
        export_model(model, processor, tmp_path)
    legacy = {"projector": {**tiny.QFORMER, "legacy": True}, "pad_to_30s": True}
    with pytest.raises(ValueError, match="legacy projector is not exported"):
        export_model(*tiny.build(parts, **legacy), tmp_path)
    model, processor = tiny.build(parts, audio_model="eat")
    model.audio_encoder.config.pad_to_frames = 32
    with pytest.raises(ValueError, match="pads every clip to 32 frames"):
        export_model(model, processor, tmp_path)
    assert not list(tmp_path.glob("*.json"))
