"""A trained model that is asked about sound: transcripts, captions, answers to questions."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria

from audiolm_utils.data.annotations import CAPTION_TASKS, AudioItem
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.evaluation.evaluate import answer_limit
from audiolm_utils.evaluation.profiling import synchronize
from audiolm_utils.models.folding import prepare_for_inference
from audiolm_utils.models.outputs import AudioTokens
from audiolm_utils.models.retrieval import Neighbours
from audiolm_utils.study.hints import HINTED
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.run import ADAPTERS, DEFAULT_RECIPE, get_recipe, load_model

FRAME_S = 0.02  # of the encoders' features
Windows = tuple[tuple[float, float, str | None], ...]


@dataclass(frozen=True)
class Heard:
    """An answer as far as it is there, and what led to it.

    Attributes:
        answer: so far; with beams a later one may begin otherwise.
        hint: what the nearest training clips are said to be, where the model was told.
        ctc: what the CTC head reads, None without a head.
        windows: start and end in seconds of each window of sound behind an audio token, and the text that CTC reads
            there; None where the LLM is not given the window, "" where CTC reads nothing and the LLM is given it.
        seconds: by part: frontend, encoder, hint (where looked up), connector, prefill (to the first token) and decode
            (all further tokens); the last two once they are known.
        tokens: of the answer so far, its end token included.
        done: whether this is the whole answer.
    """

    answer: str = ""
    hint: str | None = None
    ctc: str | None = None
    windows: Windows = ()
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    done: bool = False


class Listener:
    """The trained model of a recipe, ready for answers, with what its hints come from.

    Args:
        recipe: whose model listens.
        precision: of its weights, see [`prepare_for_inference`]; "int8" is on a CPU.

    Raises:
        FileNotFoundError: the recipe's model is not trained yet; the message has the command.
    """

    def __init__(self, recipe: str | Recipe = DEFAULT_RECIPE, precision: str = "fp32") -> None:
        self.recipe = get_recipe(recipe)
        self.model, self.processor = load_model(self.recipe)
        prepare_for_inference(self.model.cpu() if precision == "int8" else self.model, precision)
        self.known = Neighbours.load(ADAPTERS / self.recipe.name) if self.recipe.hints else None

    @torch.no_grad()
    def __call__(self, clip: np.ndarray, task: str = "asr", question: str | None = None) -> dict[str, str]:
        """Answer about one clip.

        Args:
            clip: float32 (samples,), mono at 16 kHz, up to 30 s.
            task: one of `TASKS`, such as "asr", "audiocaption", "QA".
            question: for "QA".

        Returns:
            answer; and hint, what the nearest training clips are said to be, where the model was told.
        """
        features = self._encode(self._heard(clip))
        hint = self._hint(features, task)
        ids = self.model.generate(**self._inputs(clip, features, task, question, hint))
        answer = self._agreed(self.processor.answers(ids)[0], features, task)
        return {"answer": answer} | ({"hint": hint} if hint else {})

    @torch.no_grad()
    def token_ids(
        self, clip: np.ndarray, task: str = "asr", question: str | None = None, limit: int | None = None
    ) -> list[int]:
        """The tokens that a call generates, the end token too, or the first `limit` of them."""
        features = self._encode(self._heard(clip))
        inputs = self._inputs(clip, features, task, question, self._hint(features, task))
        most = {"max_new_tokens": min(inputs["max_new_tokens"], limit)} if limit else {}
        return self.model.generate(**inputs | most)[0].tolist()

    def text(self, ids: list[int]) -> str:
        """What generated tokens say, without special tokens and without any thought."""
        return self.processor.answers([ids])[0]

    def stream(self, clip: np.ndarray, task: str = "asr", question: str | None = None) -> Iterator[Heard]:
        """Answer about one clip as a call does, timed: first what is known before any word, then at every token.

        Arguments and errors are those of a call. A reader that goes away ends the computation.
        """
        seconds: dict[str, float] = {}
        device = self.model.device
        with torch.no_grad():
            with _timed(seconds, "frontend", device):
                heard = self._heard(clip)
            with _timed(seconds, "encoder", device):
                features = self._encode(heard)
            hint = None
            if self.known is not None and task in HINTED:
                with _timed(seconds, "hint", device):
                    hint = self._hint(features, task)
            inputs = self._inputs(clip, features, task, question, hint)
            audio = {name: inputs[name] for name in ("encoder_features", "encoder_lengths")}
            with _timed(seconds, "connector", device):
                tokens = self.model.embed_audio(**audio)
            ctc, windows = self._read(tokens, len(features))
        said = Heard(hint=hint, ctc=ctc, windows=windows, seconds=seconds)
        yield said
        # `generate` connects once more, which has its place among the seconds already
        first = before = time.perf_counter() + seconds["connector"]
        for ids, now in _steps(lambda each: self.model.generate(**inputs, stopping_criteria=[each]), device):
            answer = self.processor.answers([ids])[0]
            if now is None:
                said = replace(said, answer=self._agreed(answer, features, task), done=True)
            else:
                first = first if said.tokens else now
                parts = {"prefill": max(0.0, first - before), "decode": now - first}
                said = replace(said, answer=answer, seconds=seconds | parts, tokens=said.tokens + 1)
            yield said

    def _heard(self, clip: np.ndarray) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in self.processor.audio_features([clip]).items()}

    def _encode(self, heard: dict[str, torch.Tensor]) -> np.ndarray:
        encoded, lengths = self.model.encode(**heard)
        return encoded[0, : int(lengths[0])].float().cpu().numpy()  # (F, E)

    def _hint(self, features: np.ndarray, task: str) -> str | None:
        if self.known is None or task not in HINTED:
            return None
        return self.known.told([features])[0]

    def _agreed(self, answer: str, features: np.ndarray, task: str) -> str:
        """Of a caption what like clips agree on with it; any other answer as it is."""
        if self.known is None or task not in CAPTION_TASKS:
            return answer
        return self.known.agreed([features], [answer])[0]

    def _inputs(
        self, clip: np.ndarray, features: np.ndarray, task: str, question: str | None, hint: str | None
    ) -> dict[str, Any]:
        """What `generate` is given: the prompt with the clip's encoder features (F, E), and how to decode."""
        item = AudioItem(id="clip", path="clip", text="?", task=task, Q=question, hint=hint)
        batch = self.processor([test_prompt(item)], encoder_features=[features]).to(self.model.device)
        decoding = self.recipe.decoding() if task == "asr" else {}
        return {**batch, "max_new_tokens": answer_limit(task, clip), **decoding}

    def _read(self, tokens: AudioTokens, frames: int) -> tuple[str | None, Windows]:
        """What CTC reads off one clip's audio tokens, and each window as in [`Heard`]."""
        projector = self.model.config.projector_config
        count, pieces = int(tokens.counts[0]), {}
        ctc = None
        if self.model.ctc is not None and tokens.log_probs is not None:
            decode = self.processor.tokenizer.decode
            peaks = self.model.ctc.peaks(tokens.log_probs, tokens.counts)[0].nonzero().flatten().tolist()
            ids = self.model.ctc.greedy(tokens.log_probs, tokens.counts)[0]
            ctc = decode(ids).strip()
            pieces = {place: decode([each]) for place, each in zip(peaks, ids, strict=True)}
        given = range(count) if tokens.keep is None else tokens.keep[0].nonzero().flatten().tolist()
        texts: dict[int, str] = {}
        for place in given:
            window = place // projector.num_queries
            texts[window] = texts.get(window, "") + pieces.get(place, "")
        size, end = projector.window_frames * FRAME_S, frames * FRAME_S
        number = -(-count // projector.num_queries)
        return ctc, tuple((n * size, min((n + 1) * size, end), texts.get(n)) for n in range(number))


@contextmanager
def _timed(seconds: dict[str, float], part: str, device: torch.device) -> Iterator[None]:
    """Write down how long the block takes on the device."""
    synchronize(device)
    start = time.perf_counter()
    yield
    synchronize(device)
    seconds[part] = time.perf_counter() - start


class _Watched(StoppingCriteria):
    """Passes on the best answer's token ids and the time after every step, with beams too; ends when told to."""

    def __init__(self, out: queue.SimpleQueue[Any], device: torch.device) -> None:
        self.out, self.device, self.stopped = out, device, threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        synchronize(self.device)
        self.out.put((input_ids[0].tolist(), time.perf_counter()))
        return torch.full((len(input_ids),), self.stopped.is_set(), device=input_ids.device)


def _steps(
    generate: Callable[[StoppingCriteria], torch.Tensor], device: torch.device
) -> Iterator[tuple[list[int], float | None]]:
    """Token ids and clock of each step of `generate`, which runs in a thread; then its result, without a clock."""
    out: queue.SimpleQueue[Any] = queue.SimpleQueue()
    watched = _Watched(out, device)

    def run() -> None:
        try:
            out.put((generate(watched)[0].tolist(), None))
        except BaseException as error:
            out.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    now: float | None = 0.0
    try:
        while now is not None:
            if isinstance(step := out.get(), BaseException):
                raise step
            ids, now = step
            yield ids, now
    finally:
        watched.stopped.set()
        thread.join()
