"""Published EAT checkpoints: every layout gives the same encoder, and what does not fit is named and refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiolm_utils.models.eat import EatConfig, EatEncoder
from audiolm_utils.models.eat_checkpoint import eat_from_checkpoint

IMAGE = "modality_encoders.IMAGE."
MODEL = {"num_heads": 4, "embed_dim": 32, "layer_norm_first": False, "norm_eps": 1e-6}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(Path(__file__).with_name("eat_golden.safetensors"))


@pytest.fixture
def state(golden) -> dict[str, torch.Tensor]:
    """A pretraining checkpoint's tensors, decoder included."""
    return {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}


def write_pretrained(path: Path, state: dict[str, torch.Tensor], **fields) -> Path:
    cfg = {"model": MODEL | fields, "task": {"target_length": 1024}}
    torch.save({"cfg": cfg, "model": state | {"_ema": {"blocks.0.norm1.weight": torch.ones(1)}}}, path)
    return path


def write_fine_tuned(path: Path, state: dict[str, torch.Tensor]) -> Path:
    head = {"fc_norm.weight": torch.ones(32), "head.weight": torch.ones(527, 32), "head.bias": torch.ones(527)}
    kept = {f"model.{key}": value for key, value in state.items() if "decoder" not in key}
    cfg = {"model": {"mixup": 0.7, "pretrained_model_args": {"model": MODEL}}}
    torch.save({"cfg": cfg, "model": kept | head}, path)
    return path


def write_hub(folder: Path, state: dict[str, torch.Tensor], **fields) -> Path:
    folder.mkdir()
    head = {"model.fc_norm.weight": torch.ones(32), "model.head.weight": torch.ones(527, 32)}
    names = {key: "model." + key.removeprefix(IMAGE).replace("context_encoder.norm", "pre_norm") for key in state}
    kept = {name: state[key] for key, name in names.items() if "decoder" not in key}
    save_file(kept | head, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "eat", "depth": 2} | MODEL | fields))
    return folder


@torch.no_grad()
def check_golden(encoder: EatEncoder, golden: dict[str, torch.Tensor]) -> None:
    """The encoder makes of the clip what the published model does, in published padding."""
    assert not encoder.training
    encoder.config.pad_to_frames = 384
    fbank, lengths = golden["fbank"].float(), torch.tensor([200])
    grid = encoder(fbank, lengths)[0]
    torch.testing.assert_close(grid.flatten(1, 2), golden["padded"][:, 1:97], atol=1e-4, rtol=0)
    torch.testing.assert_close(encoder.forward_cls(fbank, lengths), golden["padded"][:, 0], atol=1e-4, rtol=0)


def test_a_pretrained_fairseq_checkpoint(state, golden, tmp_path):
    check_golden(eat_from_checkpoint(write_pretrained(tmp_path / "a.pt", state)), golden)


def test_a_fine_tuned_fairseq_checkpoint(state, golden, tmp_path):
    check_golden(eat_from_checkpoint(write_fine_tuned(tmp_path / "a.pt", state)), golden)


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_hub_checkpoint(state, golden, tmp_path, file):
    check_golden(eat_from_checkpoint(write_hub(tmp_path / "hub", state) / file), golden)


def test_published_checkpoints_are_padded_as_they_were_trained(state, tmp_path):
    path = write_pretrained(tmp_path / "a.pt", state)
    assert eat_from_checkpoint(path).config.pad_to_frames == 1024
    assert eat_from_checkpoint(path, pad_to_frames=None).config.pad_to_frames is None


def test_heads_are_64_wide_where_the_file_does_not_say(tmp_path):
    rows = {"attn.qkv": (384, 128), "attn.proj": (128, 128), "norm1": (128,), "norm2": (128,)}
    rows |= {"mlp.fc1": (8, 128), "mlp.fc2": (128, 8)}
    shapes = {f"blocks.0.{name}": shape for name, shape in rows.items()}
    shapes |= {"local_encoder.proj": (128, 1, 16, 16), "pre_norm": (128,)}
    state = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    torch.save({"cfg": None, "model": state | {"extra_tokens": torch.zeros(1, 1, 128)}}, tmp_path / "a.pt")
    config = eat_from_checkpoint(tmp_path / "a.pt").config
    assert (config.num_attention_heads, config.intermediate_size, config.num_hidden_layers) == (2, 8, 1)


def test_a_folder_saved_here_keeps_its_padding(tmp_path):
    torch.manual_seed(0)
    config = EatConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8, pad_to_frames=64
    )
    encoder = EatEncoder(config)
    encoder.save_pretrained(tmp_path)
    loaded = eat_from_checkpoint(tmp_path)
    assert loaded.config.pad_to_frames == 64 and not loaded.training
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in encoder.state_dict().items())


def test_missing_and_unexpected_and_misshapen_tensors_are_listed(state, tmp_path):
    del state["blocks.1.mlp.fc2.bias"]
    state |= {"blocks.0.gamma": torch.ones(32), "blocks.1.norm2.weight": torch.ones(31)}
    path = write_pretrained(tmp_path / "a.pt", state)
    with pytest.raises(ValueError, match=r"a\.pt is no EAT encoder") as error:
        eat_from_checkpoint(path)
    assert "Missing: ['encoder.layer.1.output.dense.bias']" in str(error.value)
    assert "blocks.0.gamma" in str(error.value)
    assert "encoder.layer.1.output.LayerNorm.weight: (31,) in the file, (32,) in the model" in str(error.value)


def test_another_model_is_refused_by_name(tmp_path):
    torch.save({"cfg": {}, "model": {"post_extract_proj.weight": torch.ones(2)}}, tmp_path / "beats.pt")
    with pytest.raises(ValueError, match=r"beats\.pt lacks 'cls', it is no EAT encoder.*post_extract_proj\.weight"):
        eat_from_checkpoint(tmp_path / "beats.pt")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    with pytest.raises(ValueError, match=r"model_type 'whisper'; expected 'eat'"):
        eat_from_checkpoint(tmp_path)


def test_other_positions_are_refused(state, tmp_path):
    state[IMAGE + "fixed_positional_encoder.positions"] = torch.zeros(1, 192, 32)
    with pytest.raises(ValueError, match=r"positions is not the sine code of 8 frequency patches"):
        eat_from_checkpoint(write_pretrained(tmp_path / "a.pt", state))


def test_layers_that_normalise_first_are_refused(state, tmp_path):
    with pytest.raises(ValueError, match=r"layer_norm_first.*EAT normalises behind"):
        eat_from_checkpoint(write_pretrained(tmp_path / "a.pt", state, layer_norm_first=True))


def test_code_in_a_checkpoint_is_refused(state, tmp_path):
    class Trap:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"cfg": Trap(), "model": state}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt holds .*print"):
        eat_from_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("file", ["model.safetensors", "a.pt"])
def test_a_truncated_file_is_refused_by_name(state, tmp_path, file):
    path = write_pretrained(tmp_path / "a.pt", state) if file == "a.pt" else write_hub(tmp_path / "hub", state) / file
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"{file}.* is no whole .*file.*Download it again"):
        eat_from_checkpoint(path)


@pytest.mark.parametrize(
    ("file", "named"), [("a.pt", "a.pt"), ("", "config.json"), ("model.safetensors", "config.json")]
)
def test_a_missing_file_is_named(tmp_path, file, named):
    with pytest.raises(FileNotFoundError, match=named):
        eat_from_checkpoint(tmp_path / file)


def test_a_folder_without_weights_is_named(state, tmp_path):
    folder = write_hub(tmp_path / "hub", state)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        eat_from_checkpoint(folder)
