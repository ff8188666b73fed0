"""Two encoders' caches, read as one: what the projector sees is what the encoders give."""

import numpy as np
import pytest
import torch

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import write_wav
from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.training.dataset import AudioDataset
from audiolm_utils.training.encoding import JoinedFeatures, encode_items, speech_hash
from audiolm_utils.training.features import FeatureCache
from tests import tiny


@pytest.fixture
def items(tmp_path):
    return tiny.write_items(tmp_path, ["one", "two", "three", "four"])


def encoded(pair, items, tmp_path, **options):
    return encode_items(*pair, items, tmp_path, tmp_path / "features", batch_size=3, progress=False, **options)


@torch.no_grad()
@pytest.mark.parametrize("audio_model", ["beats", "eat"])
@pytest.mark.parametrize("padded", [False, True])
def test_cached_features_are_those_of_the_model(parts, items, tmp_path, audio_model, padded):
    model, processor = pair = tiny.build(parts, audio_model=audio_model, pad_to_30s=padded)
    cache = encoded(pair, items, tmp_path)
    assert isinstance(cache, JoinedFeatures) and len(cache) == 4 and set(cache) == {i.id for i in items}
    data, raw = AudioDataset(items, tmp_path, cache), AudioDataset(items, tmp_path)
    for n, item in enumerate(items):
        features, lengths = model.encode(**processor.audio_features([raw[n]["audio"]]))
        assert cache[item.id].dtype == np.float16 and cache[item.id].shape == (int(lengths), 32 + 16)
        np.testing.assert_allclose(data[n]["encoder_features"], features[0].numpy(), atol=8e-3)


def test_encoders_keep_files_of_their_own_so_that_recipes_share_them(parts, items, tmp_path):
    alone = encoded(tiny.build(parts), items, tmp_path)
    both = encoded(tiny.build(parts, audio_model="beats"), items, tmp_path)
    other = encoded(tiny.build(parts, audio_model="eat"), items, tmp_path)
    assert isinstance(alone, FeatureCache)
    assert alone.folder == both.speech.folder == other.speech.folder
    assert both.audio.folder != other.audio.folder
    np.testing.assert_array_equal(both["item0"][:, :32], alone["item0"])
    padded = encoded(tiny.build(parts, audio_model="beats", pad_to_30s=True), items, tmp_path)
    assert padded.speech.folder != both.speech.folder and padded.audio.folder == both.audio.folder
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("features/*/*"))]
    encoded(tiny.build(parts, audio_model="eat"), items, tmp_path)
    assert before == [
        path.stat().st_mtime_ns for path in sorted(tmp_path.glob("features/*/*"))
    ]  # nothing encoded twice


def test_features_in_bfloat16_lie_apart_and_near_those_in_float32(parts, items, tmp_path):
    pair = tiny.build(parts, audio_model="beats", pad_to_30s=True)
    exact, mixed = encoded(pair, items, tmp_path), encoded(pair, items, tmp_path, autocast=True)
    assert exact.speech.folder != mixed.speech.folder and exact.audio.folder != mixed.audio.folder
    for item in items:
        off = np.linalg.norm(mixed[item.id].astype(float) - exact[item.id]) / np.linalg.norm(exact[item.id])
        assert 0 < off < 0.03


def test_encoding_that_was_broken_off_goes_on_to_the_same_bytes(parts, tmp_path, monkeypatch):
    """Rounding depends on the batch: a clip alone and among others may differ in float16."""
    items = []
    for n in range(10):
        write_wav(tmp_path / f"{n}.wav", tiny.clip(0.5 + 0.21 * n, n))
        items.append(AudioItem(id=f"clip{n}", path=f"{n}.wav", text="on", task="asr", duration_s=0.5 + 0.21 * n))
    model, processor = tiny.build(parts)

    def encode(folder):
        how = {"batch_size": 3, "flush_bytes": 4000, "progress": False}  # two clips fill it
        return encode_items(model, processor, items, tmp_path, tmp_path / folder, **how).folder

    whole, audio_features, calls = encode("whole"), processor.audio_features, []

    def power_cut(clips):
        calls.append(clips)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return audio_features(clips)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(processor, "audio_features", power_cut)
        encode("broken")
    assert len(FeatureCache(tmp_path / "broken", whole.name)) == 6
    broken = encode("broken")
    for name in ("features.f16", "index.jsonl"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_a_damaged_stream_is_encoded_again(parts, items, tmp_path):
    pair = tiny.build(parts, audio_model="beats")
    cache = encoded(pair, items, tmp_path)
    clean = cache["item1"]
    path = cache.audio.folder / "features.f16"
    content = bytearray(path.read_bytes())
    content[: len(content)] = bytes(len(content))
    path.write_bytes(content)
    np.testing.assert_array_equal(encoded(pair, items, tmp_path)["item1"], clean)


def test_the_caches_name_tells_padded_from_real_length(parts):
    real, padded = (speech_hash(tiny.build(parts, pad_to_30s=pad)[0]) for pad in (False, True))
    assert real != padded


@torch.no_grad()
def test_a_middle_layer_lies_beside_the_last_and_the_connector_does_not_see_it(parts, items, tmp_path):
    plain, both = (tiny.build(parts, retrieval_layer=layer, **tiny.WITH_CTC) for layer in (None, 1))
    caches = [encoded(pair, items, tmp_path) for pair in (plain, both)]
    assert caches[0].folder != caches[1].folder and caches[1]["item0"].shape[1] == 2 * 32
    np.testing.assert_array_equal(caches[1]["item0"][:, :32], caches[0]["item0"])
    frames = torch.from_numpy(caches[1]["item0"])[None].float()
    lengths = torch.tensor([frames.shape[1]])
    expected = plain[0].embed_audio(frames[..., :32], lengths)
    found = both[0].embed_audio(frames, lengths)
    assert torch.equal(found.inputs, expected.inputs) and torch.equal(found.log_probs, expected.log_probs)
    heard = plain[1].audio_features([tiny.clip(0.7)])
    assert torch.equal(both[0].embed_audio(**heard).inputs, plain[0].embed_audio(**heard).inputs)


def test_a_legacy_model_is_not_cached(parts, items, tmp_path):
    legacy = ProjectorConfig(**{**tiny.QFORMER, "num_queries": 1, "legacy": True}).to_dict()
    with pytest.raises(ValueError, match=r"legacy model cannot be cached.*1,500 frames"):
        encoded(tiny.build(parts, projector=legacy, pad_to_30s=True), items, tmp_path)
