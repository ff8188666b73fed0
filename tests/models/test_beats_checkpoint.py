"""BEATs checkpoints: published layouts load to the last tensor, everything else is refused by name."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiolm_utils.models.beats import BeatsEncoder
from audiolm_utils.models.beats_checkpoint import SHARED_BIAS, beats_from_checkpoint, beats_from_published
from tests.golden import read_beats


@pytest.fixture
def content() -> dict:
    """A checkpoint in the published layout, the shared bias in each layer."""
    content, _ = read_beats()
    state = {name: tensor for name, tensor in content["model"].items() if "_pad" not in name}
    state |= {SHARED_BIAS.format(layer): state[SHARED_BIAS.format(0)].clone() for layer in (1, 2)}
    return {"cfg": content["cfg"], "model": state}


def load(content: dict) -> BeatsEncoder:
    return beats_from_published(content, "BEATs.pt")


def test_a_published_file_loads_whole_in_eval_mode(content, tmp_path, caplog):
    torch.save(content, tmp_path / "BEATs.pt")
    encoder = beats_from_checkpoint(tmp_path / "BEATs.pt")
    assert not encoder.training
    config = encoder.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_buckets, config.max_distance) == (32, 3, 32, 40)
    assert torch.equal(
        encoder.layers[2].attention.gate.weight, content["model"]["encoder.layers.2.self_attn.grep_linear.weight"]
    )
    assert torch.equal(encoder.position_norm.bias, content["model"]["encoder.layer_norm.bias"])
    assert torch.equal(encoder.position_conv.magnitude, content["model"]["encoder.pos_conv.0.weight_g"])
    assert caplog.records == []


def test_what_a_cfg_does_not_say_is_the_published_codes_default(content):
    for name in ("deep_norm", "max_distance", "fbank_mean", "fbank_std"):
        content["cfg"].pop(name)
    config = load(content).config
    assert (config.deep_norm, config.max_distance) == (False, 1280)
    assert (config.fbank["mean"], config.fbank["std"]) == (15.41663, 13.11164)


def test_openbeats_own_normalisation_is_kept(content):
    content["cfg"] |= {"fbank_mean": 11.7, "fbank_std": 3.25}
    fbank = load(content).config.fbank
    assert (fbank["mean"], fbank["std"]) == (11.7, 6.5)  # the published code divides by twice fbank_std


def test_the_classifier_and_openbeats_helpers_are_left_out_and_said_so(content, caplog):
    content["model"] |= {
        "predictor.weight": torch.zeros(527, 32),
        "predictor.bias": torch.zeros(527),
        "patch_embedding_pad.weight": torch.ones(1, 1, 16, 16),
        "raw2fbank_pad.weight": torch.ones(1, 1, 400),
    }
    with caplog.at_level(logging.WARNING):
        load(content)
    assert "BEATs.pt: left out" in caplog.text
    assert "patch_embedding_pad.weight, predictor.bias, predictor.weight, raw2fbank_pad.weight" in caplog.text


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(content):
    state = content["model"]
    del state["encoder.layers.1.self_attn.grep_a"], state[SHARED_BIAS.format(0)]
    state["encoder.layers.3.fc1.bias"] = torch.zeros(64)
    state["layer_norm.weight"] = torch.ones(17)
    with pytest.raises(ValueError, match=r"BEATs\.pt is no BEATs encoder") as caught:
        load(content)
    message = str(caught.value)
    assert f"Missing: ['{SHARED_BIAS.format(0)}', 'encoder.layers.1.self_attn.grep_a']" in message
    assert "Unexpected: ['encoder.layers.3.fc1.bias']" in message
    assert "layer_norm.weight: (17,) in the file, (16,) in the model" in message


def test_a_layer_with_a_bias_of_its_own_is_refused(content):
    content["model"][SHARED_BIAS.format(2)] += 1
    with pytest.raises(ValueError, match="layer 2 has a relative position bias of its own"):
        load(content)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("input_patch_size", 8),
        ("conv_bias", True),
        ("activation_fn", "glu"),
        ("layer_norm_first", True),
        ("relative_position_embedding", False),
        ("gru_rel_pos", False),
    ],
)
def test_an_option_of_no_released_model_is_refused(content, option, value):
    content["cfg"][option] = value
    with pytest.raises(ValueError, match=rf"BEATs\.pt has {option}={value!r} in its cfg; only"):
        load(content)


def test_a_tokenizer_is_refused(content):
    content["model"]["quantize_layer.0.weight"] = torch.zeros(32, 32)
    with pytest.raises(ValueError, match=r"BEATs\.pt is a BEATs tokenizer"):
        load(content)


@pytest.mark.parametrize("cfg", [{"model": {"embed_dim": 768}}, "text", {}])
def test_the_cfg_of_another_model_is_refused(content, cfg):
    with pytest.raises(ValueError, match="'cfg' is not that of BEATs"):
        load({**content, "cfg": cfg})


@pytest.fixture
def folder(parts, tmp_path) -> Path:
    return Path(shutil.copytree(parts / "beats", tmp_path / "beats"))


def test_a_folder_in_float16_loads_as_float32(folder):
    weights = folder / "model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(half, weights, metadata={"format": "pt"})
    encoder = beats_from_checkpoint(folder)
    assert not encoder.training
    assert encoder.dtype == torch.float32
    assert all(torch.equal(tensor, half[name].float()) for name, tensor in encoder.state_dict().items())


def test_a_folder_is_loaded_strictly(folder):
    weights = folder / "model.safetensors"
    state = load_file(weights)
    state["layers.0.fc3.bias"] = state.pop("layers.0.fc1.bias")
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"Missing: \['layers\.0\.fc1\.bias'\]\. Unexpected: \['layers\.0\.fc3\.bias'\]"
    ):
        beats_from_checkpoint(folder)


def test_a_truncated_folder_is_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is no whole safetensors file"):
        beats_from_checkpoint(folder)


def test_a_folder_of_another_model_is_refused(parts):
    with pytest.raises(ValueError, match="model_type 'eat'; expected 'beats'"):
        beats_from_checkpoint(parts / "eat")


@pytest.mark.parametrize("kind", ["text", "truncated", "state dict", "code"])
def test_a_broken_or_foreign_file_is_refused(content, tmp_path, kind):
    path = tmp_path / "BEATs.pt"
    match kind:
        case "text":
            path.write_text("BEATs")
        case "truncated":
            torch.save(content, path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "state dict":
            torch.save(content["model"], path)
        case "code":
            torch.save({**content, "cfg": Path("run")}, path)
    with pytest.raises(ValueError, match=r"BEATs\.pt"):
        beats_from_checkpoint(path)
