"""The trained models that the web demo can ask: which there are, and the few that are kept in memory."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict

import torch

from audiolm_utils.study import run
from audiolm_utils.study.final_recipes import FINAL_RECIPES, INFERENCE
from audiolm_utils.study.listener import Listener

MENU = ("base", "study-final", "ours", "pocket-quick")
FAVOURITES = ("ours", "pocket-quick")
AT_MOST = 2  # in memory: as many as answer side by side


def trained() -> list[str]:
    """Names on the menu whose model is there; raises FileNotFoundError where none is."""
    names = [name for name in MENU if (run.ADAPTERS / name).is_dir()]
    if not names:
        raise FileNotFoundError(f"{run.ADAPTERS} holds no trained model: {how_to_train(MENU)}")
    return names


def favourite(names: list[str]) -> str:
    """The name that is asked unless another is chosen."""
    return next((name for name in FAVOURITES if name in names), names[0])


def how_to_train(names: list[str] | tuple[str, ...]) -> str:
    """One sentence a command that trains models of these names."""
    commands: dict[str, list[str]] = {}
    for name in names:
        commands.setdefault("final" if name in FINAL_RECIPES else name, []).append(name)
    return " ".join(
        f"`python -m audiolm_utils study {command}` trains {', '.join(of)}." for command, of in commands.items()
    )


def tasks_of(name: str) -> set[str]:
    """Tasks whose answers a recipe's LLM has learned."""
    return {task for stage in run.get_recipe(name).stages if stage.objective == "lm" for task in stage.tasks}


def precision_of(name: str) -> str:
    """In what precision a recipe's model answers here: 8 bits where it was measured so and no GPU is there."""
    return "int8" if INFERENCE.get(name, "").startswith("int8") and not torch.cuda.is_available() else "fp32"


class Shelf:
    """Loads a model when it is first asked, and lets go of the one unused for longest, first, where there are many."""

    def __init__(self, at_most: int = AT_MOST) -> None:
        self.at_most = at_most
        self._models: OrderedDict[str, Listener] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def get(self, name: str) -> Listener:
        """The model of that name, loaded where it is not in memory; raises as [`Listener`] does."""
        with self._lock:
            if name not in self._models:
                while len(self._models) >= self.at_most:
                    self._models.popitem(last=False)
                    gc.collect()  # modules and their hooks refer to each other
                self._models[name] = Listener(name, precision_of(name))
            self._models.move_to_end(name)
            return self._models[name]
