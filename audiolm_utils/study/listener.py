"""A trained model that is asked about sound: transcripts, captions, answers to questions."""

from __future__ import annotations

import numpy as np
import torch

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.evaluation.evaluate import answer_limit
from audiolm_utils.models.folding import prepare_for_inference
from audiolm_utils.models.retrieval import Neighbours
from audiolm_utils.study.hints import HINTED
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.run import ADAPTERS, DEFAULT_RECIPE, get_recipe, load_model


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
            answer; and hint, what the nearest training clip is said to be, where the model was told.
        """
        device = self.model.device
        heard = {name: tensor.to(device) for name, tensor in self.processor.audio_features([clip]).items()}
        encoded, lengths = self.model.encode(**heard)
        features = encoded[0, : int(lengths[0])].float().cpu().numpy()  # (F, E)
        hint = None
        if self.known is not None and task in HINTED:
            hint = self.known.texts[self.known.nearest([features])[0]]
        item = AudioItem(id="clip", path="clip", text="?", task=task, Q=question, hint=hint)
        batch = self.processor([test_prompt(item)], encoder_features=[features]).to(device)
        decoding = self.recipe.decoding() if task == "asr" else {}
        ids = self.model.generate(**batch, max_new_tokens=answer_limit(task, clip), **decoding)
        return {"answer": self.processor.answers(ids)[0]} | ({"hint": hint} if hint else {})
