"""Words as they are spoken: the transcript form that training targets and split keys share."""

from __future__ import annotations

import re

from num2words import num2words

WORD_SIGNS = {"*": " star ", "#": " pound ", "&": " and ", "%": " percent ", "@": " at ", "+": " plus "}


def spoken_words(text: str) -> str:
    """Return `text` as lower-case words of letters and inner apostrophes, numbers written out, single spaces.

    `"Press 1, or dial 21!"` becomes `"press one or dial twenty one"`.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.lower())
    text = re.sub(r"(\d+)(st|nd|rd|th)\b", lambda m: f" {num2words(int(m[1]), to='ordinal')} ", text)
    text = re.sub(r"\d+", lambda m: f" {num2words(int(m[0]))} ", text.replace(",", " "))
    for sign, word in WORD_SIGNS.items():
        text = text.replace(sign, word)
    text = re.sub(r"[^a-z' ]", " ", text.replace("\u2019", "'"))
    return " ".join(word for word in (w.strip("'") for w in text.split()) if word)
