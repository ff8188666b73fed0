"""SALMONN-style checkpoints: loaded strictly, and computing what SALMONN's own steps compute on the same tensors."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear, pad
from transformers import LlamaForCausalLM, WhisperModel

from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.salmonn import load_salmonn, read_salmonn, salmonn_config, salmonn_name
from tests import tiny

State = dict[str, torch.Tensor]
SPEECH, AUDIO, TEXT, HIDDEN, RANK, HEADS, LAYERS = 32, 16, 32, 24, 2, 2, 2
WINDOW, LORA_ALPHA = 17, 32
SECRET = "what the run keeps to itself"
BERT = "speech_Qformer.bert."


def salmonn_shapes(audio: bool, lora_suffix: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters that SALMONN trains, for the tiny models."""
    shapes: dict[str, tuple[int, ...]] = {"speech_query_tokens": (1, 1, HIDDEN)}

    def add(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    add("ln_speech", SPEECH)
    if audio:
        add("ln_audio", AUDIO)
    add(f"{BERT}embeddings.LayerNorm", HIDDEN)
    for i in range(LAYERS):
        layer = f"{BERT}encoder.layer.{i}"
        for kind, width in (("attention", HIDDEN), ("crossattention", SPEECH + AUDIO * audio)):
            add(f"{layer}.{kind}.self.query", HIDDEN, HIDDEN)
            add(f"{layer}.{kind}.self.key", HIDDEN, width)
            add(f"{layer}.{kind}.self.value", HIDDEN, width)
            add(f"{layer}.{kind}.output.dense", HIDDEN, HIDDEN)
            add(f"{layer}.{kind}.output.LayerNorm", HIDDEN)
        add(f"{layer}.intermediate_query.dense", 4 * HIDDEN, HIDDEN)
        add(f"{layer}.output_query.dense", HIDDEN, 4 * HIDDEN)
        add(f"{layer}.output_query.LayerNorm", HIDDEN)
    add("speech_llama_proj", TEXT, HIDDEN)
    for i in range(2):
        for target, out in (("q_proj", 32), ("v_proj", 16)):
            lora = f"llama_model.base_model.model.model.layers.{i}.self_attn.{target}.lora_"
            shapes[f"{lora}A{lora_suffix}.weight"] = (RANK, TEXT)
            shapes[f"{lora}B{lora_suffix}.weight"] = (out, RANK)
    return shapes


def salmonn_state(audio: bool = True, lora_suffix: str = ".default") -> State:
    """Random tensors of those shapes; norms near 1."""
    draw = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=draw) * 0.3 + (("LayerNorm.w" in name) or ("ln_" in name and "w" in name))
        for name, shape in salmonn_shapes(audio, lora_suffix).items()
    }


def write(path: Path, state: State) -> Path:
    """The file that SALMONN's trainer writes."""
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    config = {"model": {"llama_path": "x", "token": SECRET}, "run": {"seed": 42}}
    torch.save({"model": state, "optimizer": optimizer, "config": config, "scaler": None, "epoch": 3}, path)
    return path


def build(parts: Path, path: Path, audio: bool = True, **fields) -> AudioLMForConditionalGeneration:
    """A tiny model of the configuration that a file needs."""
    needed = salmonn_config(path, num_attention_heads=HEADS, lora_alpha=LORA_ALPHA)
    return tiny.build(parts, audio_model="beats" if audio else None, **{**needed, **fields})[0]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return write(tmp_path / "salmonn.pth", salmonn_state())


# SALMONN's steps in plain operations ------------------------------------------------------------------------


def attend(state: State, name: str, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """BERT's attention with its residual norm: (W, Q, H) over (W, K, E) -> (W, Q, H)."""
    q, k, v = (
        linear(x, state[f"{name}.self.{part}.weight"], state[f"{name}.self.{part}.bias"]).unflatten(-1, (HEADS, -1))
        for part, x in (("query", queries), ("key", keys), ("value", keys))
    )
    scores = torch.einsum("wqhd,wkhd->whqk", q, k) / math.sqrt(HIDDEN // HEADS)
    mixed = torch.einsum("whqk,wkhd->wqhd", scores.softmax(-1), v).flatten(-2)
    return add_norm(state, f"{name}.output", mixed, queries)


def add_norm(state: State, name: str, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    out = linear(hidden, state[f"{name}.dense.weight"], state[f"{name}.dense.bias"])
    norm = f"{name}.LayerNorm"
    return layer_norm(out + residual, (HIDDEN,), state[f"{norm}.weight"], state[f"{norm}.bias"], 1e-12)


def salmonn_tokens(state: State, speech: torch.Tensor, audio: torch.Tensor | None) -> torch.Tensor:
    """Speech (1, F, E) and flat audio patches (1, N, D) -> audio tokens (1, W, LLM width)."""
    frames = layer_norm(speech, (SPEECH,), state["ln_speech.weight"], state["ln_speech.bias"])
    if audio is not None:
        audio = layer_norm(audio, (AUDIO,), state["ln_audio.weight"], state["ln_audio.bias"])
        frames = torch.cat([frames, pad(audio, (0, 0, 0, frames.shape[1] - audio.shape[1]))], -1)
    starts = range(0, frames.shape[1] - WINDOW + 1, WINDOW)
    windows = torch.cat([frames[:, start : start + WINDOW] for start in starts])  # (W, 17, E)
    embeddings = f"{BERT}embeddings.LayerNorm"
    hidden = state["speech_query_tokens"].expand(len(windows), -1, -1)
    hidden = layer_norm(hidden, (HIDDEN,), state[f"{embeddings}.weight"], state[f"{embeddings}.bias"], 1e-12)
    for i in range(LAYERS):
        layer = f"{BERT}encoder.layer.{i}"
        hidden = attend(state, f"{layer}.attention", hidden, hidden)
        hidden = attend(state, f"{layer}.crossattention", hidden, windows)
        dense = f"{layer}.intermediate_query.dense"
        inner = gelu(linear(hidden, state[f"{dense}.weight"], state[f"{dense}.bias"]))
        hidden = add_norm(state, f"{layer}.output_query", inner, hidden)
    tokens = linear(hidden, state["speech_llama_proj.weight"], state["speech_llama_proj.bias"])
    return tokens.reshape(1, -1, TEXT)


# The whole path ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("audio", [True, False], ids=["with BEATs", "without"])
@torch.no_grad()
def test_audio_tokens_are_those_of_salmonns_steps(parts, tmp_path, audio):
    state = salmonn_state(audio)
    model = build(parts, write(tmp_path / "x.pth", state), audio)
    load_salmonn(model, tmp_path / "x.pth")
    processor = tiny.AudioLMProcessor.from_config(model.config)
    batch = processor.audio_features([tiny.clip(3.0), tiny.clip(1.2, seed=1)])
    tokens = model.embed_audio(**batch)
    assert tokens.counts.tolist() == [88, 88]
    whisper = WhisperModel.from_pretrained(parts / "speech").encoder.eval()
    for row in range(2):
        speech = whisper(batch["input_features"][row : row + 1]).last_hidden_state  # all 1,500 frames
        patches = None
        if audio:
            frames = int(batch["fbank_lengths"][row])
            fbank = batch["fbank"][row : row + 1, :frames]
            patches = model.audio_encoder(fbank, torch.tensor([frames]))[0].flatten(1, 2)
            assert patches.shape[1] == frames // 16 * 2
        expected = salmonn_tokens(state, speech, patches)
        torch.testing.assert_close(tokens.inputs[row : row + 1], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_projector_alone_equals_salmonns_to_the_last_window(parts, checkpoint):
    model = build(parts, checkpoint)
    load_salmonn(model, checkpoint)
    speech, audio = torch.randn(1, 1500, SPEECH), torch.randn(1, 1496, AUDIO)  # 30 s: 187 steps of 8 patches
    features = torch.cat([speech, pad(audio, (0, 0, 0, 4))], -1)
    tokens, counts = model.projector(features, torch.tensor([1500]))
    assert counts.tolist() == [88]
    torch.testing.assert_close(tokens, salmonn_tokens(read_salmonn(checkpoint), speech, audio), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_llm_answers_as_one_with_salmonns_lora_merged_in(parts, checkpoint):
    state = read_salmonn(checkpoint)
    model = build(parts, checkpoint)
    load_salmonn(model, checkpoint)
    processor = tiny.AudioLMProcessor.from_config(model.config)
    batch = processor(["Say."], [tiny.clip(1.0)])
    logits = model(**batch).logits

    llm = LlamaForCausalLM.from_pretrained(parts / "text").eval()
    for i, layer in enumerate(llm.model.layers):
        for target in ("q_proj", "v_proj"):
            lora = f"llama_model.base_model.model.model.layers.{i}.self_attn.{target}.lora_"
            change = state[f"{lora}B.weight"] @ state[f"{lora}A.weight"] * (LORA_ALPHA / RANK)
            getattr(layer.self_attn, target).weight.add_(change)
    embeds = llm.model.embed_tokens(batch["input_ids"])
    audio = {k: v for k, v in batch.items() if k in ("input_features", "feature_lengths", "fbank", "fbank_lengths")}
    embeds[batch["input_ids"] == model.config.audio_token_id] = model.embed_audio(**audio).inputs[0]
    torch.testing.assert_close(logits, llm(inputs_embeds=embeds).logits[:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("suffix", ["", ".default"], ids=["older peft", "newer peft"])
def test_every_tensor_arrives_under_either_of_pefts_names(parts, tmp_path, suffix):
    state = salmonn_state(lora_suffix=suffix)
    model = build(parts, write(tmp_path / "x.pth", state))
    load_salmonn(model, tmp_path / "x.pth")
    loaded = {salmonn_name(name): tensor for name, tensor in model.own_state_dict().items()}
    assert len(loaded) == len(state)
    for name, tensor in state.items():
        assert torch.equal(
            loaded[name.replace(".default", "")], tensor.reshape(loaded[name.replace(".default", "")].shape)
        )


def test_a_loaded_model_is_saved_and_loaded_without_the_file_or_its_secrets(parts, checkpoint, tmp_path):
    model = build(parts, checkpoint)
    load_salmonn(model, checkpoint)
    model.save_pretrained(tmp_path / "saved")
    assert all(SECRET.encode() not in file.read_bytes() for file in (tmp_path / "saved").iterdir())
    assert SECRET.encode() in checkpoint.read_bytes()
    again = AudioLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert again.config.projector_config == model.config.projector_config
    for name, tensor in model.own_state_dict().items():
        assert torch.equal(again.own_state_dict()[name], tensor), name
    processor = tiny.AudioLMProcessor.from_pretrained(tmp_path / "saved")
    batch = processor(["Say."], [tiny.clip(0.5)])
    assert torch.equal(again(**batch).logits, model(**batch).logits)


# What the shapes tell ---------------------------------------------------------------------------------------


def test_the_configuration_is_read_from_the_shapes(checkpoint):
    assert salmonn_config(checkpoint) == {
        "projector": {
            "kind": "qformer",
            "window_frames": 17,
            "num_queries": 1,
            "hidden_size": HIDDEN,
            "num_layers": LAYERS,
            "num_attention_heads": 12,
            "dropout": 0.1,
            "legacy": True,
        },
        "pad_to_30s": True,
        "lora": {"r": RANK, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
    }
    assert salmonn_config(checkpoint, second_per_window=0.5)["projector"]["window_frames"] == 25


def test_a_file_without_lora_needs_none(parts, tmp_path):
    state = {name: tensor for name, tensor in salmonn_state().items() if "lora" not in name}
    path = write(tmp_path / "x.pth", state)
    assert salmonn_config(path)["lora"] is None
    load_salmonn(build(parts, path), path)


def test_another_checkpoint_is_no_salmonn(tmp_path):
    path = write(tmp_path / "x.pth", {"encoder.weight": torch.ones(2), "ln_speech.weight": torch.tensor(1.0)})
    with pytest.raises(
        ValueError, match=r"does not tell \['speech_size', 'text_size', .*'num_layers'\]: it is no SALM"
    ):
        salmonn_config(path)


# What does not fit ------------------------------------------------------------------------------------------


def refusal(parts: Path, fitting: Path, state: State, **fields) -> str:
    """Why a model that fits one file refuses a state; it must be as it was."""
    model = build(parts, fitting, **fields)
    before = {name: tensor.clone() for name, tensor in model.own_state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_salmonn(model, write(fitting.parent / "other.pth", state))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.own_state_dict().items())
    return str(caught.value)


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(parts, checkpoint):
    state = salmonn_state()
    del state["ln_audio.bias"], state[f"{BERT}encoder.layer.1.output_query.dense.weight"]
    state["speech_encoder.conv1.weight"] = state["beats.layer_norm.weight"] = torch.ones(2)
    state["speech_llama_proj.weight"] = torch.ones(48, HIDDEN)
    state["speech_query_tokens"] = torch.ones(2, HIDDEN)
    message = refusal(parts, checkpoint, state)
    assert f"Missing: ['ln_audio.bias', '{BERT}encoder.layer.1.output_query.dense.weight']" in message
    assert "Unexpected: ['beats.layer_norm.weight', 'speech_encoder.conv1.weight']" in message
    assert "'speech_llama_proj.weight: (48, 24) in the file, (32, 24) in the model'" in message
    assert "'speech_query_tokens: (2, 24) in the file, (1, 1, 24) in the model'" in message
    assert "'text_size: 48 in the file, 32 in the model'" in message and "other.pth" in message


@pytest.mark.parametrize(
    ("change", "size"),
    [
        (lambda name: not name.startswith("ln_audio"), "audio_size: None in the file, 16 in the model"),
        (lambda name: "layer.1." not in name, "num_layers: 1 in the file, 2 in the model"),
        (lambda name: "v_proj" not in name, "lora_targets: ['q_proj'] in the file, ['q_proj', 'v_proj'] in the model"),
        (lambda name: "layers.1." not in name, "lora_layers: 1 in the file, 2 in the model"),
    ],
    ids=["no BEATs", "one layer less", "one target less", "LoRA in one layer less"],
)
def test_sizes_that_differ_are_said_by_name(parts, checkpoint, change, size):
    state = {name: tensor for name, tensor in salmonn_state().items() if change(name)}
    assert size in refusal(parts, checkpoint, state)


def test_another_lora_rank_is_refused(parts, checkpoint):
    lora = {**tiny.LORA, "r": 4}
    message = refusal(parts, checkpoint, salmonn_state(), lora=lora)
    assert "lora_rank: 2 in the file, 4 in the model" in message
    assert message.count(" in the file") == 1 + 8  # the rank, and both matrices of two modules in two layers


def test_both_of_pefts_names_at_once_are_refused(parts, checkpoint):
    message = refusal(parts, checkpoint, salmonn_state() | salmonn_state(lora_suffix=""))
    assert message.count(".default.weight") == 8 and "Missing: []" in message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"projector": tiny.QFORMER, "lora": None}, r"'projector\.body\.position', 'projector\.norm"),
        ({"ctc_vocab_size": 28}, r"have: \['ctc\."),
        ({"speech_lora": tiny.LORA}, r"have: \['speech_encoder\."),
    ],
    ids=["not legacy", "CTC head", "adapted Whisper"],
)
def test_a_model_with_parts_that_salmonn_lacks_is_refused(parts, checkpoint, fields, reason):
    with pytest.raises(ValueError, match=f"trained parts that SALMONN does not .*{reason}.*Build it from"):
        load_salmonn(build(parts, checkpoint, **fields), checkpoint)


@pytest.mark.parametrize(
    "name",
    [
        f"{BERT}embeddings.word_embeddings.weight",
        f"{BERT}embeddings.position_embeddings.weight",
        f"{BERT}encoder.layer.0.intermediate.dense.weight",
        f"{BERT}encoder.layer.1.output.LayerNorm.bias",
        "speech_Qformer.cls.predictions.bias",
    ],
)
def test_the_text_side_that_salmonn_takes_out_is_named(tmp_path, name):
    path = write(tmp_path / "x.pth", {**salmonn_state(), name: torch.ones(3)})
    with pytest.raises(ValueError, match=rf"1 tensors of the Q-Former's text side, .* passes: \['{re.escape(name)}'\]"):
        read_salmonn(path)


def test_buffers_of_frozen_parts_are_left_where_they_are(parts, checkpoint, tmp_path):
    attention = "llama_model.base_model.model.model.layers.0.self_attn"
    buffers = [f"{BERT}embeddings.position_ids", f"{attention}.rotary_emb.inv_freq", f"{attention}.o_proj.SCB"]
    buffers += [f"{attention}.q_proj.base_layer.{k}" for k in ("weight_format", "weight.absmax", "weight.quant_map")]
    buffers += [f"{attention}.o_proj.weight.{k}" for k in ("nested_absmax", "quant_state.bitsandbytes__nf4")]
    state = {**salmonn_state(), **dict.fromkeys(buffers, torch.ones(3))}
    load_salmonn(build(parts, checkpoint), write(tmp_path / "other.pth", state))
    assert read_salmonn(tmp_path / "other.pth").keys() == read_salmonn(checkpoint).keys()


@pytest.mark.parametrize("broken", ["code", "cut", "no model", "list"])
def test_a_file_that_cannot_be_read_says_why(parts, checkpoint, tmp_path, broken):
    path = tmp_path / "broken.pth"
    if broken == "code":
        torch.save({"model": salmonn_state(), "config": tiny.LlamaConfig}, path)
    elif broken == "cut":
        path.write_bytes(checkpoint.read_bytes()[:5000])
    else:
        torch.save({"config": {}} if broken == "no model" else [1], path)
    reason = {"code": "LlamaConfig, an object or code", "cut": "cut short", "no model": "expected", "list": "a list"}
    model = build(parts, checkpoint)
    with pytest.raises(ValueError, match=rf"broken\.pth .*{reason[broken]}"):
        load_salmonn(model, path)
