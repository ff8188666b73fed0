"""Scores of captions equal published ones to the last digits, and the study's number keeps its own name."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolm_utils.evaluation import captions
from audiolm_utils.evaluation.captions import (
    TOKENIZERS,
    MissingToolError,
    caption_tokens,
    cider_d,
    nota_spider,
    ptb_tokens,
    spice,
    spice_missing,
    spider,
)
from audiolm_utils.evaluation.evaluate import score_captions

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no java here")
WITHOUT_JAVA = [name for name in TOKENIZERS if name != "ptb"]


@pytest.fixture
def example(data_root) -> dict:
    """The example of the aac-metrics documentation, with the scores that its tests assert."""
    path = data_root / "metric_aac_metrics" / "expected_doc_example.json"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    return json.loads(path.read_text())


class Audiocaps:
    """CoNeTTE's captions of the AudioCaps test set: hypotheses, references, the scores of each, those of all."""

    def __init__(self, folder: Path):
        rows = [json.loads(line) for line in (folder / "outputs_audiocaps_test.jsonl").read_text().splitlines()]
        self.hypotheses = [row["cand"] for row in rows]
        self.references = [row["refs"] for row in rows]
        self.scores = {name: np.array([row["scores"][name] for row in rows]) for name in ("cider_d", "spice", "spider")}
        lines = (folder / "scores_audiocaps_test.yaml").read_text().splitlines()
        found = dict(line.rsplit(": ", 1) for line in lines)
        self.corpus = {name: float(found[f"audiocaps_test/best_fense.cands.{name}"]) for name in self.scores}


@pytest.fixture(scope="module")
def audiocaps(data_root) -> Audiocaps:
    folder = data_root / "metric_conette"
    if not folder.exists():
        pytest.skip(f"no {folder.name}")
    return Audiocaps(folder)


# CIDEr-D


@pytest.mark.parametrize("tokenize", [*WITHOUT_JAVA, pytest.param("ptb", marks=needs_java)])
def test_cider_d_of_the_aac_metrics_example(example, tokenize):
    corpus, scores = cider_d(example["candidates"], example["references"], tokenize=tokenize)
    assert corpus == pytest.approx(example["expected"]["cider_d_corpus"], abs=example["atol"])
    assert scores == pytest.approx(example["expected"]["cider_d_sentences"], abs=example["atol"])


@pytest.mark.parametrize("tokenize", WITHOUT_JAVA)
def test_cider_d_of_912_audiocaps_captions(audiocaps, tokenize):
    corpus, scores = cider_d(audiocaps.hypotheses, audiocaps.references, tokenize=tokenize)
    assert len(scores) == 912
    np.testing.assert_allclose(scores, audiocaps.scores["cider_d"], rtol=0, atol=1e-14)
    assert corpus == pytest.approx(audiocaps.corpus["cider_d"], abs=1e-14)


@needs_java
def test_ptb_tokens_are_not_what_those_were_scored_with(audiocaps):
    corpus, scores = cider_d(audiocaps.hypotheses, audiocaps.references, tokenize="ptb")
    off = np.abs(scores - audiocaps.scores["cider_d"])
    assert (off > 1e-12).sum() == 122
    assert off.max() == pytest.approx(0.0303, abs=1e-4)
    assert corpus - audiocaps.corpus["cider_d"] == pytest.approx(2.32e-5, abs=1e-7)


@needs_java
def test_ptb_tokens_table():
    texts = ['A woman\'s "soft" voice, (low).', "", "  two\nlines\t here ", "...", 'A woman\'s "soft" voice, (low).']
    said = "a woman 's soft voice -lrb- low -rrb-"  # pycocoevalcap drops brackets in upper case alone
    assert ptb_tokens(texts) == [said, "", "two lines here", "", said]
    assert ptb_tokens(["", " "]) == ["", ""]


def test_without_java_the_ptb_tokenizer_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingToolError, match=r"'ptb' needs `java` on the PATH.*apt install"):
        cider_d(["a", "b"], [["a"], ["b"]], tokenize="ptb")


def test_an_unknown_tokenizer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no tokenizer 'PTB'; known are 'words', 'whitespace', 'ptb'"):
        cider_d(["a", "b"], [["a"], ["b"]], tokenize="PTB")


PERFECT = ["a dog barks twice nearby", "rain falls on a tin roof", "a child laughs in the park"]


def test_a_perfect_score_is_10_whatever_the_case_and_stops():
    """PRIOR_DEFECTS 25: identical captions with a capital and a full stop scored 461 of 1000, not all."""
    references = [[caption.capitalize() + "."] for caption in PERFECT]
    corpus, scores = cider_d(PERFECT, references)
    assert corpus == pytest.approx(10) and scores == pytest.approx([10, 10, 10])
    swapped, _ = cider_d([r[0] for r in references], [[caption] for caption in PERFECT])
    assert swapped == pytest.approx(10)


@pytest.mark.parametrize(("words", "best"), [(1, 2.5), (2, 5), (3, 7.5), (4, 10)])
def test_the_best_score_of_short_captions(words, best):
    captions = [" ".join(caption.split()[:words]) for caption in ("dogs bark very loud", "rain falls on tin")]
    assert cider_d(captions, [[caption] for caption in captions])[0] == pytest.approx(best)


def test_an_empty_hypothesis_scores_zero():
    """PRIOR_DEFECTS 31: an empty hypothesis was rejected."""
    _, scores = cider_d(["", PERFECT[1], "?"], [[caption] for caption in PERFECT])
    assert scores == pytest.approx([0, 10, 0])


@given(st.permutations(range(3)))
def test_cider_d_does_not_depend_on_the_order_of_captions(order):
    hypotheses = ["a dog barks", "rain on a roof", "the park"]
    _, scores = cider_d(hypotheses, [[caption] for caption in PERFECT])
    _, shuffled = cider_d([hypotheses[n] for n in order], [[PERFECT[n]] for n in order])
    np.testing.assert_allclose(shuffled, scores[list(order)])


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog, barking.", "a dog barking"),
        ("the woman\u2019s 'old' t-shirt -- again!", "the woman's old t-shirt again"),
        ("Ünder 2 bells", "ünder 2 bells"),
        ("...", ""),
    ],
)
def test_caption_tokens(caption, tokens):
    assert caption_tokens(caption) == tokens


@pytest.mark.parametrize(
    ("hypotheses", "references", "error", "message"),
    [
        (["a"], [["a"]], ValueError, "at least 2 captions"),
        (["a", "b"], [["a"]], ValueError, "1 references for 2 hypotheses"),
        (["a", "b"], [["a"], []], ValueError, "row 1"),
        (["a", "b"], [["a"], ["b", "!"]], ValueError, "row 1"),
        (["a", "b"], ["a", "b"], TypeError, "row 0 are one string 'a'"),
        ([], [], ValueError, "at least 2 captions"),
        ("ab", [["a"], ["b"]], TypeError, "must be lists"),
    ],
)
def test_cider_d_refuses(hypotheses, references, error, message):
    with pytest.raises(error, match=message):
        cider_d(hypotheses, references)


# The study's number


def test_the_study_lower_cases_hypotheses_alone():
    """PRIOR_DEFECTS 25. Of four words the first and the last differ: 2 of 4 words, 1 of 3 pairs, 0 of 2, 0 of 1."""
    references = ["A dog barks twice.", "Some rain falls now."]
    assert nota_spider(["A dog barks twice", "some rain falls now"], references) == pytest.approx(
        1000 * (2 / 4 + 1 / 3) / 4
    )
    assert cider_d(["a dog barks twice", "some rain falls now"], [[r] for r in references])[0] == pytest.approx(10)


def test_the_study_calls_a_perfect_score_1000_and_the_same_captions_written_properly_479():
    """Golden: the study's own code gives 1000.0 and 478.9081 (its four digits)."""
    assert nota_spider(PERFECT, PERFECT) == pytest.approx(1000)
    assert nota_spider([c.upper() for c in PERFECT], PERFECT) == pytest.approx(1000)
    assert nota_spider(PERFECT, [c.capitalize() + "." for c in PERFECT]) == pytest.approx(478.9081, abs=5e-5)


def test_the_study_on_audiocaps(audiocaps):
    """Golden, from the study's own code on the first reference: as it stands, and with a capital and a full stop."""
    first = [references[0] for references in audiocaps.references]
    assert nota_spider(audiocaps.hypotheses, first) == pytest.approx(67.6568, abs=5e-5)
    assert nota_spider(audiocaps.hypotheses, [c.capitalize() + "." for c in first]) == pytest.approx(40.0519, abs=5e-5)
    assert nota_spider(audiocaps.hypotheses, first) / 100 == pytest.approx(
        cider_d(audiocaps.hypotheses, [[c] for c in first], tokenize="whitespace")[0]
    )


def test_an_empty_caption_of_the_study_scores_zero():
    assert nota_spider(["", PERFECT[1]], PERFECT[:2]) == pytest.approx(500)


@pytest.mark.parametrize(
    ("hypotheses", "references", "error", "message"),
    [
        (["a"], ["a"], ValueError, "at least 2 captions"),
        (["a", "b"], ["a"], ValueError, "1 references for 2 hypotheses"),
        (["a", "b"], [["a"], ["b"]], TypeError, "row 0 is .*'a'.*: give one string"),
        ("ab", ["a", "b"], TypeError, "must be lists"),
    ],
)
def test_nota_spider_refuses(hypotheses, references, error, message):
    with pytest.raises(error, match=message):
        nota_spider(hypotheses, references)


# SPICE and SPIDEr


@pytest.fixture
def corenlp(monkeypatch, tmp_path) -> Path:
    """A folder that stands in for that of the CoreNLP models, without any; nothing is downloaded."""
    monkeypatch.setattr(captions, "CORENLP_FOLDER", tmp_path)
    monkeypatch.setattr("pycocoevalcap.spice.spice.get_stanford_models", lambda: pytest.fail("it would download"))
    return tmp_path


FILES = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


@pytest.mark.parametrize("java", [True, False])
@pytest.mark.parametrize("present", [(), FILES[:1], FILES[1:], FILES])
def test_what_spice_lacks_is_said_with_the_mend(corenlp, monkeypatch, java, present):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java" if java else None)
    for name in present:
        (corenlp / name).touch()
    message = spice_missing()
    if java and present == FILES:
        assert message is None
        return
    assert ("`java` on the PATH" in message) != java
    assert all((name in message) == (name not in present) for name in FILES)
    assert (str(corenlp) in message) == ("stanford-corenlp-full-2015-12-09.zip" in message) == (present != FILES)
    for score in (spice, spider):
        with pytest.raises(MissingToolError) as error:
            score(PERFECT, [[caption] for caption in PERFECT])
        assert str(error.value) == message


def test_the_folder_is_where_spice_looks_for_its_models():
    manifest_folder = captions.CORENLP_FOLDER.parent
    assert (manifest_folder / "spice-1.0.jar").is_file()
    assert (captions.CORENLP_FOLDER / "SceneGraphParser-1.0.jar").is_file()


def test_spider_is_the_mean_of_cider_d_and_spice(audiocaps, monkeypatch):
    published = (audiocaps.corpus["spice"], audiocaps.scores["spice"])
    monkeypatch.setattr(captions, "spice", lambda hypotheses, references, tokenize: published)
    corpus, scores = spider(audiocaps.hypotheses, audiocaps.references)
    np.testing.assert_allclose(scores, audiocaps.scores["spider"], rtol=0, atol=1e-14)
    assert corpus == pytest.approx(audiocaps.corpus["spider"], abs=1e-14)
    np.testing.assert_array_equal(
        (audiocaps.scores["cider_d"] + audiocaps.scores["spice"]) / 2, audiocaps.scores["spider"]
    )


@pytest.fixture
def java(corenlp, monkeypatch) -> Path:
    """A `java` in place of SPICE's, which scores a caption by the share of its words that its first reference has.

    Returns its note: JSON of what it was given and allowed.
    """
    for name in FILES:
        (corenlp / name).touch()
    monkeypatch.setattr("pycocoevalcap.spice.spice.get_stanford_models", lambda: None)
    monkeypatch.setattr("pycocoevalcap.spice.spice.__file__", str(corenlp / "spice.py"))  # its files go beside it
    note, program = corenlp / "note.json", corenlp / "bin" / "java"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "arguments = sys.argv[1:]\n"
        "rows = json.load(open(next(a for a in arguments if os.path.isfile(a) and not a.endswith('.jar'))))\n"
        f"json.dump([rows, os.environ['JDK_JAVA_OPTIONS']], open({str(note)!r}, 'w'))\n"
        "if any('crash' in row['test'] for row in rows): sys.exit(3)\n"
        "scores = []\n"
        "for row in rows:\n"
        "    words = row['test'].split()\n"
        "    share = sum(word in row['refs'][0].split() for word in words) / len(words)\n"
        "    scores.append({'image_id': row['image_id'], 'scores': {'All': {'f': share}}})\n"
        "json.dump(scores, open(arguments[arguments.index('-out') + 1], 'w'))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return note


def test_spice_hands_tokens_to_its_program_and_reads_its_scores(java, monkeypatch):
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-Dmine=1")
    corpus, scores = spice(["A dog.", "?", "a loud bell"], [["the dog"], ["rain"], ["A bell!", "bells"]])
    np.testing.assert_allclose(scores, [1 / 2, 0, 2 / 3])
    assert corpus == pytest.approx((1 / 2 + 2 / 3) / 3)
    rows, options = json.loads(java.read_text())
    assert [(row["test"], row["refs"]) for row in rows] == [
        ("a dog", ["the dog"]),
        ("a loud bell", ["a bell", "bells"]),  # the empty one is not asked about
    ]
    assert options.startswith("-Dmine=1 --add-opens=java.base/java.lang=ALL-UNNAMED")
    assert os.environ["JDK_JAVA_OPTIONS"] == "-Dmine=1"


def test_a_failing_program_is_an_error_and_leaves_the_environment(java, monkeypatch):
    monkeypatch.delenv("JDK_JAVA_OPTIONS", raising=False)
    with pytest.raises(RuntimeError, match="SPICE's Java program ended with status 3"):
        spice(["a crash"], [["a crash"]])
    assert "JDK_JAVA_OPTIONS" not in os.environ


def test_nothing_said_scores_zero_without_asking(java):
    assert spice(["", "!"], [["a"], ["b"]])[0] == 0
    assert not java.exists()


# Scored answers


def described(hypotheses: list[str]) -> list[dict]:
    return [
        {"recording": caption, "hypothesis": hypothesis, "references": [caption]}
        for hypothesis, caption in zip(hypotheses, PERFECT, strict=True)
    ]


def test_a_score_that_cannot_be_had_is_absent_and_said(corenlp):
    with pytest.warns(UserWarning, match="spider is left out. SPICE needs .*stanford-corenlp-3.6.0.jar"):
        score = score_captions(described(PERFECT), further=["spider"])
    assert score["cider_d"] == 10 and "spider" not in score


def test_further_scores_stand_beside_cider_d(java):
    score = score_captions(described(["a dog", "rain falls on a tin roof", ""]), further=["spice", "spider"])
    assert score["spice"] == pytest.approx(2 / 3, abs=1e-4)
    assert score["spider"] == pytest.approx((score["cider_d"] + score["spice"]) / 2, abs=1e-4)


def test_an_unknown_caption_score_is_refused():
    with pytest.raises(
        ValueError, match=r"no caption scores \['meteor'\]; known are \['sbert_sim', 'spice', 'spider'\]"
    ):
        score_captions(described(PERFECT), further=["meteor"])
