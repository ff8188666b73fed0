"""Scores of captions against references: CIDEr-D, SPICE, SPIDEr, and the study's number of that name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pycocoevalcap
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.spice.spice import Spice
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

CORENLP_FILES = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
CORENLP_FOLDER = Path(pycocoevalcap.__path__[0]) / "spice" / "lib"
CORENLP_ARCHIVE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
JAVA_MEND = "On Debian: `apt install default-jre-headless`."
# SPICE's cache reads private fields of these packages, which Java 16 and later forbid; Java 8 ignores the setting.
OPENED_PACKAGES = ("java.lang", "java.math", "java.net", "java.text", "java.util", "java.util.concurrent")


class MissingToolError(RuntimeError):
    """A program or file outside the package index that a score needs."""


def caption_tokens(caption: str) -> str:
    """Return a caption in lower case, without punctuation, its tokens parted by one space.

    Apostrophes and hyphens inside a word stay, so "woman's" is one token (the PTB tokenizer makes two).
    """
    return " ".join(re.findall(r"\w+(?:['-]\w+)*", caption.lower().replace("\u2019", "'")))


def ptb_tokens(captions: Sequence[str]) -> list[str]:
    """Return captions as COCO's evaluation has them: Penn Treebank tokens in lower case, without punctuation.

    Brackets become "-lrb-" and "-rrb-", hyphens inside a word stay. The tokenizer is Stanford's, which `pycocoevalcap`
    ships; it needs `java` and raises `MissingToolError` without.
    """
    if shutil.which("java") is None:
        raise MissingToolError(f"The tokenizer 'ptb' needs `java` on the PATH. {JAVA_MEND} Or take 'words'.")
    texts = [" ".join(caption.split()) for caption in captions]
    given = {text: [{"caption": text}] for text in texts if text}  # an empty line would be dropped
    tokens = PTBTokenizer().tokenize(given)
    return [tokens[text][0] if text else "" for text in texts]


TOKENIZERS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "words": lambda captions: [caption_tokens(caption) for caption in captions],
    "whitespace": lambda captions: [" ".join(caption.lower().split()) for caption in captions],
    "ptb": ptb_tokens,
}


def cider_d(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "words"
) -> tuple[float, np.ndarray]:
    """Return CIDEr-D (Vedantam et al. 2015) of the corpus and of each caption, by `pycocoevalcap`.

    From 0 to 10. A caption of fewer than four words has no 4-grams, so even a perfect one stays below 10 (one word:
    2.5). An empty hypothesis scores 0. N-grams are weighed by how many captions' references hold them, so scores of
    different test sets do not compare, and at least two captions are needed. Raises `ValueError` for fewer, for
    differing counts and for a caption without a reference or with an empty one.

    Args:
        tokenize: applied to both sides. "words" ([`caption_tokens`]) and "whitespace" (lower case, split at spaces)
            both give the 912 published AudioCaps scores of CoNeTTE to 2e-15. "ptb" ([`ptb_tokens`], needs Java) is
            what COCO's evaluation does: it splits "woman's" in two, which moves 122 of those 912 by up to 0.03 and
            the corpus by 2e-5. All three give the example of the aac-metrics documentation.
    """
    tokens, references_of = tokenized(hypotheses, references, tokenize)
    if len(tokens) < 2:
        raise ValueError("cider_d needs at least 2 captions: with one, every n-gram has weight log(1) = 0.")
    return _cider_d(tokens, references_of)


def nota_spider(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return the number that the study calls SPIDEr: CIDEr-D times 100, with one reference each. It is not SPIDEr.

    From 0 to 1000, where SPIDEr ends at 5.5; there is no SPICE in it. Tokens are parted at spaces, punctuation
    included, and only hypotheses are lower-cased, so a reference with a capital and a full stop cannot be matched.
    It serves to compare with the study's published numbers and for nothing else. Raises as [`cider_d`] does, but a
    reference may be empty.
    """
    check_pairs(references, hypotheses)
    for row, reference in enumerate(references):
        if not isinstance(reference, str):
            raise TypeError(f"The reference of row {row} is {reference!r}: give one string, as the study has one.")
    if len(hypotheses) < 2:
        raise ValueError("nota_spider needs at least 2 captions: with one, every n-gram has weight log(1) = 0.")
    return 100 * _cider_d([h.lower() for h in hypotheses], [[reference] for reference in references])[0]


def _cider_d(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """CIDEr-D of captions whose tokens are parted by spaces."""
    scorer = CiderScorer()
    for hypothesis, captions in zip(hypotheses, references, strict=True):
        scorer += (hypothesis, list(captions))
    corpus, each = scorer.compute_score()
    return float(corpus), each


def spice_missing() -> str | None:
    """Say what SPICE lacks on this machine and how to get it, or None where it can run."""
    wants = []
    if shutil.which("java") is None:
        wants.append(f"`java` on the PATH. {JAVA_MEND}")
    if absent := [name for name in CORENLP_FILES if not (CORENLP_FOLDER / name).is_file()]:
        wants.append(
            f"{' and '.join(absent)} in {CORENLP_FOLDER}. They are in "
            f"{CORENLP_ARCHIVE}: put them there themselves, without a folder around them."
        )
    return " ".join(f"SPICE needs {want}" for want in wants) or None


def spice(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "words"
) -> tuple[float, np.ndarray]:
    """Return SPICE (Anderson et al. 2016), from 0 to 1, of the corpus and of each caption, by `pycocoevalcap`.

    An empty hypothesis scores 0. Nothing is downloaded: raises `MissingToolError` with what [`spice_missing`] says
    where Java or the CoreNLP models are absent; `RuntimeError` where the Java program fails; `ValueError` as
    [`cider_d`] does, but one caption is enough.
    """
    tokens, references_of = tokenized(hypotheses, references, tokenize)
    if message := spice_missing():
        raise MissingToolError(message)
    scores = np.zeros(len(tokens))
    rows = [row for row, hypothesis in enumerate(tokens) if hypothesis]
    if rows:
        with _java_opened():
            try:
                _, found = Spice().compute_score(
                    {row: references_of[row] for row in rows}, {row: [tokens[row]] for row in rows}
                )
            except subprocess.CalledProcessError as error:
                raise RuntimeError(f"SPICE's Java program ended with status {error.returncode}; see above.") from error
        scores[rows] = [score["All"]["f"] for score in found]
    return float(scores.mean()), scores


@contextmanager
def _java_opened() -> Iterator[None]:
    """Let Java programs that are started within read the private fields of `OPENED_PACKAGES`."""
    name, before = "JDK_JAVA_OPTIONS", os.environ.get("JDK_JAVA_OPTIONS")
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED_PACKAGES]
    os.environ[name] = " ".join([*filter(None, [before]), *opened])
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def spider(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "words"
) -> tuple[float, np.ndarray]:
    """Return SPIDEr (Liu et al. 2017), the mean of CIDEr-D and SPICE, of the corpus and of each caption.

    From 0 to 5.5. Raises as [`cider_d`] and [`spice`] do.
    """
    of_cider, of_spice = (score(hypotheses, references, tokenize=tokenize) for score in (cider_d, spice))
    return (of_cider[0] + of_spice[0]) / 2, (of_cider[1] + of_spice[1]) / 2


def tokenized(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: str = "words"
) -> tuple[list[str], list[list[str]]]:
    """Return hypotheses and the references of each, tokens parted by single spaces, after checking them."""
    check_pairs(references, hypotheses)
    if tokenize not in TOKENIZERS:
        raise ValueError(f"There is no tokenizer {tokenize!r}; known are {', '.join(map(repr, TOKENIZERS))}.")
    for row, captions in enumerate(references):
        if isinstance(captions, str):
            raise TypeError(f"References of row {row} are one string {captions!r}; give a list of strings.")
    tokens = iter(TOKENIZERS[tokenize]([*hypotheses, *(caption for captions in references for caption in captions)]))
    own = [next(tokens) for _ in hypotheses]
    references_of = [[next(tokens) for _ in captions] for captions in references]
    for row, captions in enumerate(references_of):
        if not captions or not all(captions):
            raise ValueError(f"References of row {row} hold an empty one, or none: {list(references[row])!r}.")
    return own, references_of


def check_pairs(references: Sequence[object], hypotheses: Sequence[str]) -> None:
    """Raise where the two are not lists of one length."""
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TypeError("references and hypotheses must be lists, not single strings.")
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references for {len(hypotheses)} hypotheses: one each is needed.")
