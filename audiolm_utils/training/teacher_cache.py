"""What a teacher says at every labelled token of a batch, computed once and kept on disk.

Shape legend: B batch, S sequence, N labelled tokens of a batch, K kept tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiolm_utils.models.listening import AUDIO_INPUTS
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.splice import IGNORE_INDEX
from audiolm_utils.training.distill_losses import TopK, keep_top_k
from audiolm_utils.training.features import FeatureCache, module_hash

DIGIT = 2048  # float16 holds every whole number up to it, so two digits hold a token id


def teacher_hash(teacher: AudioLMForConditionalGeneration) -> str:
    """32 hexadecimal digits that name a teacher's exact weights and how it listens."""
    config = teacher.config
    settings = {"compress": config.compress, "padded": config.pad_to_30s, "audio_token_id": config.audio_token_id}
    return module_hash(teacher, projector=config.projector, **settings)


def teacher_inputs(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A training batch without what is the student's alone: its CTC targets."""
    return {name: value for name, value in batch.items() if name != "ctc_labels"}


def row_keys(batch: Mapping[str, torch.Tensor], *, answers: bool = True) -> list[str]:
    """A hash of each row's prompt, audio and (with `answers`) labels; how far the row is padded has no influence."""
    audio = list(zip(AUDIO_INPUTS[::2], AUDIO_INPUTS[1::2], strict=True))
    keys = []
    for i, (ids, mask, labels) in enumerate(
        zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ):
        real = mask.bool()
        parts = [ids[real], labels[real]] if answers else [ids[real & (labels == IGNORE_INDEX)]]
        for name, lengths in audio:
            if name in batch:
                axis = -1 if name == "input_features" else 0
                parts.append(batch[name][i].narrow(axis, 0, int(batch[lengths][i])))
        digest = hashlib.sha256()
        for part in parts:
            digest.update(f"|{part.dtype}|{tuple(part.shape)}|".encode())
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        keys.append(digest.hexdigest()[:32])
    return keys


class TeacherCache:
    """A teacher's [`TopK`] at every labelled token, asked for once a row and kept as a [`FeatureCache`].

    One file belongs to one teacher's weights, K, temperature and width of the logits. An entry's key is the hash of its
    prompt, answer and audio features, so whatever changes what the teacher hears or is asked is another entry. A token
    takes 6 K + 2 bytes: log-probabilities in float16, and ids in two digits of base 2048.

    Look at [`lost_mass`]: of the shipped model's answers 64 tokens leave out 0.8 % at temperature 1, and 53 % at 2.

    Args:
        folder: of all teachers' files.
        teacher: in eval mode.
        top_k: K.
        temperature: that the logits are divided by; see [`keep_top_k`].
        vocab_size: how many of its logits count; those from there on are the padding of a wider LLM.
    """

    def __init__(
        self,
        folder: Path | str,
        teacher: AudioLMForConditionalGeneration,
        *,
        top_k: int,
        temperature: float,
        vocab_size: int,
    ) -> None:
        self.teacher, self.top_k, self.temperature, self.vocab_size = teacher, top_k, temperature, vocab_size
        name = f"{teacher_hash(teacher)}-k{top_k}-t{temperature}-v{vocab_size}"
        self.store = FeatureCache(folder, name)
        self._lost: dict[str, np.ndarray] = {}

    def targets(self, batch: Mapping[str, torch.Tensor]) -> TopK:
        """The teacher's distributions at the N labelled tokens of a batch, row by row; absent rows are asked for.

        The first answer is read back from what is kept, so that it is the same as every later one.
        """
        counts = _labelled(batch["labels"])
        keys = [key for key, n in zip(row_keys(batch), counts, strict=True) if n]
        rows = dict(zip(keys, [i for i, n in enumerate(counts) if n], strict=True))
        found = {key: self._read(key) for key in rows}
        if missing := {key: i for key, i in rows.items() if found[key] is None}:
            self._ask(batch, missing)
            found |= {key: self._read(key) for key in missing}
        device = batch["labels"].device
        parts = [torch.as_tensor(found[key], device=device) for key in keys]
        if not parts:
            parts = [torch.zeros(0, 3 * self.top_k + 1, device=device)]
        values, high, low = torch.cat(parts).split([self.top_k + 1, self.top_k, self.top_k], dim=1)
        return TopK((high * DIGIT + low).long(), values.log_softmax(-1))  # rounded, they summed to nearly 1

    def lost_mass(self) -> dict[str, float]:
        """Mean and largest probability of the bucket, at the tokens of all rows that [`targets`] gave."""
        lost = np.concatenate([*self._lost.values(), np.zeros(0, np.float32)])
        return {"mean": float(lost.mean()), "max": float(lost.max())} if lost.size else {"mean": 0.0, "max": 0.0}

    def _read(self, key: str) -> np.ndarray | None:
        try:
            array = self.store[key].astype(np.float32)
        except KeyError:  # absent, or damaged
            return None
        self._lost[key] = np.exp(array[:, self.top_k])
        return array

    @torch.no_grad()
    def _ask(self, batch: Mapping[str, torch.Tensor], missing: dict[str, int]) -> None:
        rows = list(missing.values())
        some = {name: value[rows] for name, value in teacher_inputs(batch).items()}
        logits = self.teacher(**some).logits[:, : self.vocab_size]
        ids, log_probs = keep_top_k(logits, self.top_k, self.temperature)
        arrays = torch.cat([log_probs, ids // DIGIT, ids % DIGIT], dim=1).cpu().numpy()  # float32, exact
        ends = np.cumsum(_labelled(some["labels"]))[:-1]
        self.store.add_batch(dict(zip(missing, np.split(arrays, ends), strict=True)))
        self.store.flush()


def _labelled(labels: torch.Tensor) -> list[int]:
    """How many labelled tokens each row of (B, S) has: the first column is predicted by nothing."""
    return (labels[:, 1:] != IGNORE_INDEX).sum(1).tolist()
