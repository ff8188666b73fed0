"""Reading torch files: tensors come out, code does not run, and broken files say what they are."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolm_utils.models.torch_file import read_torch_file, state_dict_of


class Runs:
    """Would create a file on being unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


CONTENT = {"model": {"weight": torch.arange(600.0).reshape(20, 30)}, "cfg": {"layers": 2, "name": "x"}, "epoch": 3}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_the_entries_asked_for_come_out_and_no_others(tmp_path, zipped):
    torch.save(CONTENT, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    read = read_torch_file(tmp_path / "x.pt", "model", "cfg")
    assert set(read) == {"model", "cfg"} and read["cfg"] == CONTENT["cfg"]
    state = state_dict_of(read, "model", tmp_path / "x.pt")
    assert torch.equal(state["weight"], CONTENT["model"]["weight"])


@pytest.mark.parametrize("save", [torch.save, lambda x, path: pickle.dump(x, path.open("wb"), protocol=2)])
def test_code_inside_is_refused_by_name_and_does_not_run(tmp_path, save):
    save({"model": {"weight": 1.0}, "config": Runs(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds \w+\.mkdir, an object or code .* It is refused"):
        read_torch_file(tmp_path / "x.pt", "model")
    assert not (tmp_path / "ran").exists()


def test_objects_are_refused_by_name(tmp_path):
    torch.save({"model": {}, "accuracy": np.float64(0.5)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"numpy.*scalar, an object or code"):
        read_torch_file(tmp_path / "x.pt", "model")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_file_cut_short_says_so(tmp_path, share, zipped):
    path = tmp_path / "x.pt"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"x\.pt \([\d,]+ bytes\) is no whole file of torch.save: it is cut short"):
        read_torch_file(path, "model")


@pytest.mark.parametrize("data", [b"RIFF" + bytes(100), b"hello there", b"{}", bytes(64)], ids=repr)
@pytest.mark.filterwarnings("ignore:.*pickle protocol")
def test_another_type_of_file_says_so(tmp_path, data):
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(ValueError, match="cut short or of another type"):
        read_torch_file(tmp_path / "x.pt", "model")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        read_torch_file(tmp_path / "absent.pt", "model")
    with pytest.raises(IsADirectoryError):
        read_torch_file(tmp_path, "model")


@pytest.mark.parametrize(
    ("content", "held"),
    [([1, 2], "a list"), (torch.ones(2), "a Tensor"), ({"state": 1, "b": 2}, r"2 entries, such as \['b', 'state'\]")],
    ids=["list", "tensor", "other keys"],
)
def test_another_kind_of_checkpoint_says_what_it_holds(tmp_path, content, held):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"holds {held}; expected a dictionary with \['model'\]"):
        read_torch_file(tmp_path / "x.pt", "model")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([torch.ones(1)], "'model' is a list; expected a dictionary of tensors by name"),
        ({}, "'model' is empty"),
        ({"a": torch.ones(1), "b": 2.0}, r"these are none: \['b'\]"),
    ],
    ids=["list", "empty", "number"],
)
def test_an_entry_that_is_no_state_dict_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        state_dict_of({"model": state}, "model", "x.pt")
