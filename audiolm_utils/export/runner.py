"""Answers about sound from an exported model, on onnxruntime and numpy; neither torch nor transformers is imported.

Shape legend: F encoder frames, E encoder width, W windows, N audio tokens, D LLM width, V CTC vocabulary, S positions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from audiolm_utils.export.decoding import JointScores, kept
from audiolm_utils.export.features import SAMPLE_RATE, check_clip, kaldi_fbank, log_mel, num_frames
from audiolm_utils.models.retrieval import Neighbours
from audiolm_utils.models.thoughts import read_answer

CONFIG, TOKENIZER, EMBEDDINGS, NEIGHBOURS = "config.json", "tokenizer.json", "embeddings.npy", "neighbours.npz"
GRAPHS = ("encoder", "connector", "llm")
INSTRUCTION, QUESTION, HINT = "{instruction}", "{Q}", "{hint}"  # places in the prompts of config.json


class Runner:
    """An exported model; it is called as a [`Listener`] is, and answers the same.

    Args:
        folder: that `audiolm export` wrote.
        threads: of onnxruntime; None lets it take one for each core.

    Raises:
        FileNotFoundError: the folder is not a whole exported model.
    """

    def __init__(self, folder: Path | str, threads: int | None = None) -> None:
        folder = Path(folder)
        needed = [CONFIG, TOKENIZER, EMBEDDINGS, *(f"{name}.onnx" for name in GRAPHS)]
        if absent := [name for name in needed if not (folder / name).is_file()]:
            raise FileNotFoundError(
                f"{folder} has no {', '.join(absent)}: write the folder with `audiolm export RECIPE {folder}`"
            )
        self.config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.encoder, self.connector, self.llm = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in GRAPHS
        )
        self.table = np.load(folder / EMBEDDINGS, mmap_mode="r")  # (vocabulary, D), read from the disk as needed
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.known = None
        if self.config["hinted"] or self.config["agreed"]:
            arrays = dict(np.load(folder / NEIGHBOURS))
            self.known = Neighbours(texts=arrays.pop("texts").tolist(), **arrays)

    def __call__(self, clip: np.ndarray, task: str = "asr", question: str | None = None) -> dict[str, str]:
        """Answer about one clip.

        Args:
            clip: float32 (samples,), mono at 16 kHz, up to 30 s.
            task: one of those in config.json, such as "asr", "audiocaption", "QA".
            question: for "QA".

        Returns:
            answer; and hint, what the nearest training clips are said to be, where the model was told.

        Raises:
            ValueError: the clip or the task cannot be used, or the task is "QA" and there is no question.
        """
        features = self.encode(clip)
        hint = self.hint(features, task)
        ids = list(self._generate(clip, features, self.prompt(task, question, hint), task))
        answer = self.text(ids)
        if self.known is not None and task in self.config["agreed"]:
            answer = self.known.agreed([features], [answer])[0]
        return {"answer": answer} | ({"hint": hint} if hint else {})

    def token_ids(
        self, clip: np.ndarray, task: str = "asr", question: str | None = None, limit: int | None = None
    ) -> list[int]:
        """The tokens that a call generates, the end token too, or the first `limit` of them."""
        features = self.encode(clip)
        instruction = self.prompt(task, question, self.hint(features, task))
        return list(islice(self._generate(clip, features, instruction, task), limit))

    def transcribe(self, clip: np.ndarray) -> str:
        """What is said in a clip, float32 (samples,) at 16 kHz."""
        return self(clip)["answer"]

    def encode(self, clip: np.ndarray) -> np.ndarray:
        """Encoder features (F, E) of a clip."""
        clip, config = check_clip(clip), self.config
        feed = {
            "input_features": log_mel(clip, config["mel_bins"], pad_to_30s=config["pad_to_30s"]),
            "frames": np.arange(num_frames(clip)),
        }
        if config["fbank"] is not None:
            feed["fbank"] = kaldi_fbank(clip, config["fbank"])
        return self.encoder.run(None, feed)[0]

    def connect(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """What the LLM may be given of features (F, E): (N, D); and CTC log-probabilities (N, V + 1), or None."""
        size, width = self.connector.get_inputs()[0].shape[1:]
        windows = np.pad(features[:, :width], ((0, -len(features) % size), (0, 0))).reshape(-1, size, width)
        outputs = self.connector.run(None, {"windows": windows, "frames": np.array([len(features)])})
        return outputs[0], outputs[1] if len(outputs) > 1 else None

    def hint(self, features: np.ndarray, task: str) -> str | None:
        """What the nearest known clips are said to be, where the task has hints."""
        if self.known is None or task not in self.config["hinted"]:
            return None
        return self.known.told([features])[0]

    def prompt(self, task: str, question: str | None = None, hint: str | None = None) -> str:
        """The instruction of a task; errors as in a call."""
        if task not in self.config["tasks"]:
            raise ValueError(f"task {task!r} is unknown; expected one of {', '.join(self.config['tasks'])}")
        template: str = self.config["tasks"][task]["hinted" if hint else "prompt"]
        if QUESTION in template and not (question or "").strip():
            raise ValueError(f"task {task!r} has no question: give one, such as 'Do you hear a dog?'")
        before, there, after = template.partition(QUESTION)
        return before.replace(HINT, hint or "") + (str(question) if there else "") + after

    def _generate(self, clip: np.ndarray, features: np.ndarray, instruction: str, task: str) -> Iterator[int]:
        """Tokens of the answer as they come; the length of the clip limits that of the answer."""
        config = self.config
        inputs, log_probs = self.connect(features)
        joint = None
        if task == "asr" and config["ctc_decode_weight"] and log_probs is not None:
            ctc_ids = np.array(config["ctc_token_ids"])
            joint = JointScores(log_probs, ctc_ids, config["end_ids"], config["ctc_decode_weight"])
        if config["compress"] and log_probs is not None:
            inputs = inputs[kept(log_probs)]
        embeds = self._prompt_embeds(instruction, inputs)
        keys = values = np.zeros([n if isinstance(n, int) else 0 for n in self.llm.get_inputs()[1].shape], np.float32)
        fixed, per_second = config["tasks"][task]["tokens"]
        for _ in range(fixed + round(per_second * len(clip) / SAMPLE_RATE)):
            feed = {"inputs_embeds": embeds, "past_keys": keys, "past_values": values}
            logits, keys, values = self.llm.run(None, feed)
            token = int((logits if joint is None else joint(logits)).argmax())
            yield token
            if token in config["end_ids"]:
                return
            if joint is not None:
                joint.add(token)
            embeds = self._embed([token])[None]

    def text(self, ids: list[int]) -> str:
        """What generated tokens say, without special tokens and without any thought."""
        return read_answer(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _prompt_embeds(self, instruction: str, inputs: np.ndarray) -> np.ndarray:
        """The chat prompt (1, S, D) with audio tokens (N, D) in place of its one placeholder."""
        token = self.config["audio_token"]
        if token in instruction:
            raise ValueError(f"the instruction {instruction!r} holds the audio token {token!r}; leave it out")
        chat = self.config["chat"].replace(INSTRUCTION, instruction)
        ids = self.tokenizer.encode(chat, add_special_tokens=False).ids
        place = ids.index(self.config["audio_token_id"])
        return np.concatenate([self._embed(ids[:place]), inputs, self._embed(ids[place + 1 :])])[None]

    def _embed(self, ids: list[int]) -> np.ndarray:
        return self.table[ids].astype(np.float32)
