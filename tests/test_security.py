"""What comes from elsewhere runs nothing here: checkpoints with code in them, remote code, secrets, unsafe calls."""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from audiolm_utils.data.annotation_table import AnnotationTable
from audiolm_utils.models.audio_encoders import load_audio_encoder
from audiolm_utils.models.chat import load_tokenizer
from audiolm_utils.models.llm import load_llm
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.retrieval import FILE, Neighbours
from audiolm_utils.models.salmonn import read_salmonn
from audiolm_utils.models.whisper import SpeechEncoder
from audiolm_utils.study.connector import take_tensors
from audiolm_utils.study.public_corpus import PublicCorpus
from audiolm_utils.study.recipe import Stage
from audiolm_utils.study.results import provenance
from audiolm_utils.study.train import fit_stage
from audiolm_utils.training.dataset import AudioDataset, Collator
from audiolm_utils.training.features import FeatureCache, StaleFeature
from audiolm_utils.training.pretrain import Schedule, fit
from audiolm_utils.training.trainer import AudioLMTrainer, training_arguments
from tests import tiny

SECRETS = {name: f"hf_{number}NobodyMayEverReadThisSecret" for number, name in enumerate((
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"))}  # fmt: skip
TOKENS = re.compile(r"\b(hf_[A-Za-z]{34}|gh[pousr]_\w{36}|github_pat_\w{60,}|sk-[\w-]{32,}|AKIA[0-9A-Z]{16})\b")
BIN, SAFE = "pytorch_model.bin", "model.safetensors"


class Payload:
    """Makes a folder on being unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self):
        return os.mkdir, (str(self.ran),)


@pytest.fixture
def ran(tmp_path) -> Path:
    """Is there once the payload has run."""
    return tmp_path / "the payload ran"


@pytest.fixture
def evil(ran, tmp_path) -> Path:
    """A pickled checkpoint with the payload in it."""
    path = tmp_path / "evil.pt"
    torch.save({"model": {"weight": torch.ones(1)}, "cfg": {}, "state": Payload(ran)}, path)
    return path


def test_the_payload_does_run_where_it_is_unpickled(evil, ran):
    torch.load(evil, weights_only=False)
    assert ran.is_dir()


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory) -> Path:
    """A tiny trained model's folder, with a checkpoint of the Trainer; secrets were in the environment."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name, secret in SECRETS.items():
            patch.setenv(name, secret)
        trainer = make_trainer(parts, folder, max_steps=1, hub_token=SECRETS["HF_TOKEN"])
        trainer.train()
        trainer.save_model(str(folder / "model"))
        row = provenance(tiny.make_recipe(parts, "tiny"), "0" * 64)
    (folder / "row.json").write_text(json.dumps(row))
    return folder


def make_trainer(parts: Path, folder: Path, **arguments) -> AudioLMTrainer:
    model, processor = tiny.build(parts, **tiny.COMPRESSED, lora=tiny.LORA)
    data = AudioDataset(tiny.write_items(folder / "audio", ["on", "to a"]), folder / "audio")
    options = {"use_cpu": True, "disable_tqdm": True, "save_steps": 1, "logging_steps": 1, **arguments}
    args = training_arguments(folder, **options)
    return AudioLMTrainer(
        model=model, objective="ctc", args=args, data_collator=Collator(processor, "ctc"), train_dataset=data
    )


def swapped(folder: Path, name: str, evil: Path, drop: str = "") -> Path:
    """A folder whose file `name` is the pickle; `drop` is another that goes."""
    copy = Path(shutil.copytree(folder, evil.parent / "swapped"))
    if drop:
        (copy / drop).unlink()
    shutil.copy(evil, copy / name)
    return copy


def of_stage(trained: Path, parts: Path, evil: Path) -> None:
    """A finished stage of training."""
    (evil.parent / "stage.json").write_text("{}")
    shutil.copy(evil, evil.parent / SAFE)
    model, _ = tiny.build(parts)
    fit_stage(tiny.make_recipe(parts, "t"), Stage("s", "lm", 1, ("lora",)), model, lambda: (None, None), evil.parent)


def of_pretraining(evil: Path, name: str) -> None:
    """A pretraining run, interrupted or finished."""
    if name == SAFE:
        (evil.parent / "stage.json").write_text("{}")
    shutil.copy(evil, evil.parent / name)
    fit(nn.Linear(1, 1), lambda *_: torch.zeros(1), Schedule(1), evil.parent)


def of_durations(evil: Path, ran: Path) -> None:
    """The lengths of an annotation's clips, kept in the cache."""
    (evil.parent / "durations").mkdir()
    np.save(evil.parent / "durations" / "hash.npy", np.array([Payload(ran)], object), allow_pickle=True)
    corpus = SimpleNamespace(_sha256={"a": "hash"}, root=evil.parent)
    PublicCorpus._with_durations(corpus, SimpleNamespace(name="a"), AnnotationTable.from_items([]))


def resume(trained: Path, parts: Path, evil: Path, name: str) -> None:
    """A checkpoint that the Trainer goes on from."""
    folder = swapped(trained / "checkpoint-1", name, evil)
    make_trainer(parts, evil.parent, max_steps=2).train(resume_from_checkpoint=str(folder))


LOADERS: dict[str, tuple[str, Callable]] = {
    "speech model, bin": (BIN, lambda p, e, t, r: SpeechEncoder.from_whisper(str(swapped(p / "speech", BIN, e, SAFE)))),
    "speech model": (SAFE, lambda p, e, t, r: SpeechEncoder.from_whisper(str(swapped(p / "speech", SAFE, e)))),
    "LLM, bin": (BIN, lambda p, e, t, r: load_llm(str(swapped(p / "text", BIN, e, SAFE)))),
    "LLM": (SAFE, lambda p, e, t, r: load_llm(str(swapped(p / "text", SAFE, e)))),
    "audio encoder, file": ("evil.pt", lambda p, e, t, r: load_audio_encoder(str(e))),
    "BEATs": (SAFE, lambda p, e, t, r: load_audio_encoder(str(swapped(p / "beats", SAFE, e)))),
    "EAT": (SAFE, lambda p, e, t, r: load_audio_encoder(str(swapped(p / "eat", SAFE, e)))),
    "SALMONN": ("evil.pt", lambda p, e, t, r: read_salmonn(e)),
    "trained model": (
        SAFE,
        lambda p, e, t, r: AudioLMForConditionalGeneration.from_pretrained(swapped(t / "model", SAFE, e)),
    ),
    "retrieval table": (FILE, lambda p, e, t, r: Neighbours.load(swapped(p / "text", FILE, e))),
    "finished stage": (SAFE, lambda p, e, t, r: of_stage(t, p, e)),
    "pretraining": ("checkpoint.pt", lambda p, e, t, r: of_pretraining(e, "checkpoint.pt")),
    "pretrained": (SAFE, lambda p, e, t, r: of_pretraining(e, SAFE)),
    "durations": ("hash.npy", lambda p, e, t, r: of_durations(e, r)),
    **{
        f"Trainer {name}": (name, lambda p, e, t, r, name=name: resume(t, p, e, name))
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", SAFE)
    },
}


@pytest.mark.parametrize("loader", LOADERS)
def test_no_loader_runs_what_a_checkpoint_holds_and_the_file_is_named(loader, parts, evil, trained, ran, monkeypatch):
    monkeypatch.setenv("AUDIOLM_CACHE", str(evil.parent))
    name, load = LOADERS[loader]
    with pytest.raises((ValueError, OSError), match=re.escape(name)):
        load(parts, evil, trained, ran)
    assert not ran.exists()


def test_a_shipped_connector_is_read_the_same_way(parts, trained, evil, ran, monkeypatch):
    monkeypatch.setattr("audiolm_utils.study.connector.ADAPTERS", evil.parent)
    swapped(trained / "model", SAFE, evil)
    with pytest.raises(ValueError, match=r"swapped/model\.safetensors"):
        take_tensors(tiny.build(parts)[0], "swapped", ("projector.",))
    assert not ran.exists()


def test_a_cache_of_features_or_of_a_teacher_holds_numbers_only(tmp_path, evil, ran, caplog):
    cache = FeatureCache(tmp_path, "abcd")  # a TeacherCache keeps its answers in one
    cache.add("one", np.ones((3, 4)))
    cache.flush()
    shutil.copy(evil, cache.folder / "features.f16")
    with pytest.raises(StaleFeature, match=r"features\.f16 is damaged"):
        FeatureCache(tmp_path, "abcd")["one"]
    shutil.copy(evil, cache.folder / "index.jsonl")
    assert len(FeatureCache(tmp_path, "abcd")) == 0 and "index.jsonl" in caplog.text
    assert not ran.exists()


@pytest.mark.parametrize("load", [load_llm, load_tokenizer], ids=["LLM", "tokenizer"])
def test_remote_code_is_neither_run_nor_asked_for(parts, tmp_path, ran, monkeypatch, load):
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # transformers would ask at the terminal
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(parts / "text", tmp_path / "remote"))
    code = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.A", "AutoTokenizer": ["evil.A", "evil.A"]}
    for name, further in (("config.json", {"model_type": "evil"}), ("tokenizer_config.json", {})):
        fields = json.loads((folder / name).read_text()) | {"auto_map": code} | further
        (folder / name).write_text(json.dumps(fields | {"tokenizer_class": "EvilTokenizer"}))
    (folder / "tokenizer.json").unlink()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\nclass A: pass\n")
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        load(str(folder))
    assert not ran.exists()


def test_no_secret_of_the_environment_is_written(trained):
    files = [file for file in trained.rglob("*") if file.is_file()]
    assert {"optimizer.pt", "trainer_state.json", "config.json", "row.json"} <= {file.name for file in files}
    held = [file.name for file in files for secret in SECRETS.values() if secret.encode() in file.read_bytes()]
    assert held == []


def test_no_token_stands_in_the_repository(repository):
    assert TOKENS.search("x = 'hf_" + "a" * 34 + "'") and TOKENS.search("ghp_" + "0" * 36)
    folders = [repository / name for name in ("notebooks", "configs", "data", "audiolm_utils", "tests", "tools")]
    ends = (".ipynb", ".json", ".jsonl", ".md", ".py", ".yaml")
    texts = [file for folder in folders for file in folder.rglob("*") if file.suffix in ends]
    assert len(texts) > 100
    assert [str(file) for file in texts if TOKENS.search(file.read_text(encoding="utf-8"))] == []


UNSAFE = ("pickle.load", "pickle.loads", "joblib.load", "pd.read_pickle", "dill.load", "eval", "exec", "os.system")


def test_no_call_loads_pickles_runs_text_or_trusts_remote_code(repository):
    found = []
    for source in (repository / "audiolm_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Call):
                continue
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            name, where = ast.unparse(node.func), f"{source.name}:{node.lineno}"
            wrong = name in UNSAFE or "shell" in options or "True" in (
                options.get("trust_remote_code"), options.get("allow_pickle")
            )  # fmt: skip
            auto = re.fullmatch(r"Auto(Tokenizer|Processor)\.from_pretrained", name) and "chat.py" in source.name
            wrong |= bool(auto) and options.get("trust_remote_code") != "False"
            wrong |= name == "torch.load" and options.get("weights_only") != "True"
            found += [f"{where} {name}"] * wrong
    assert found == []
