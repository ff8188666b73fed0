"""Metrics equal their reference implementations, and the original code's scoring faults stay away."""

import hashlib
import json
import warnings

import jiwer
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

from audiolm_utils.evaluation import metrics
from audiolm_utils.evaluation.evaluate import score_phones
from audiolm_utils.evaluation.metrics import (
    bootstrap_ci,
    normalize_english,
    normalizer_version,
    per,
    phone_errors,
    spelling_table,
    wer,
    word_errors,
)

WORDS = ["zebra", "lamp", "green", "walks", "slowly", "window", "table", "sings"]
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8)

# The normaliser


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Please, try AGAIN!", "please try again"),
        ("  two\tspaces \n here ", "2 spaces here"),
        ("She won't; he's gone.", "she will not he has gone"),
        ("You've got mail", "you have got mail"),
        ("let's go, they're late", "let us go they are late"),
        ("I'm gonna wait", "i am going to wait"),
        ("um, the uh line mm-hmm", "the line"),
        ("[music] the (low) hum <noise>", "the hum"),
        ("Mr. Grey and Dr. Green", "mister gray and doctor green"),
        ("press one oh one", "press 101"),
        ("double oh seven", "007"),
        ("one two three four", "1234"),
        ("nineteen ninety nine", "1999"),
        ("two thousand and twenty four", "2024"),
        ("the twenty first caller", "the 21st caller"),
        ("one hundred and twenty three", "123"),
        ("1,000,000 callers", "1000000 callers"),
        ("thirty two point five degrees", "32.5 degrees"),
        ("ten dollars and fifty cents", "$10.50"),
        ("$20 million", "$20000000"),
        ("five percent", "5%"),
        ("dial 555-1234", "dial 555 1234"),
        ("press pound", "press pound"),
        ("A B C", "a b c"),
        ("naïve café", "naive cafe"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normalizer_table(text, expected):
    assert normalize_english(text) == expected


@pytest.fixture
def fresh_normalizer():
    """The normaliser built anew in the test, and again after it."""
    for function in (metrics._normalizer, metrics.spelling_table):
        function.cache_clear()
    yield
    for function in (metrics._normalizer, metrics.spelling_table):
        function.cache_clear()


def test_spellings_are_american_whatever_else_is_installed():
    assert normalize_english("Colours or colour, the theatre's grey") == "colors or color the theater is gray"
    assert wer(["the colour"], ["the color"]) == 0


def test_the_table_is_that_of_openai_whisper():
    assert len(spelling_table()) == 1739
    assert hashlib.sha256(metrics._spelling_file()).hexdigest().startswith("6607f948be9824d2")


def test_the_version_says_what_the_normaliser_does():
    """Golden digits: where they change, the word error rates in data/results have to be computed again."""
    assert normalizer_version() == (
        f"whisper english, transformers {transformers.__version__}, rules cfd01b7d84bd, spellings 6607f948be98"
    )


@pytest.mark.parametrize("change", ["fillers", "numbers", "spellings"])
def test_another_normaliser_has_another_version(fresh_normalizer, monkeypatch, change):
    before = normalizer_version()
    if change == "fillers":
        monkeypatch.setattr(metrics._normalizer(), "ignore_patterns", r"\b(hmm|mm)\b")
    elif change == "numbers":
        monkeypatch.setattr(metrics._normalizer(), "standardize_numbers", str)
    else:
        monkeypatch.setattr(metrics, "_spelling_file", lambda: b'{"colour": "color"}')
        metrics.spelling_table.cache_clear(), metrics._normalizer.cache_clear()
    assert normalizer_version() != before


def test_without_the_table_there_is_no_other_rate_but_an_error(fresh_normalizer, monkeypatch):
    """It was optional: the same answers had two word error rates, by what happened to be installed."""

    def absent(package):
        raise ModuleNotFoundError(f"No module named {package!r}")

    monkeypatch.setattr(metrics, "files", absent)
    with pytest.raises(RuntimeError, match=r"No module named 'whisper_normalizer'.*pip install"):
        wer(["the colour"], ["the color"])


def test_the_working_directory_does_not_matter(fresh_normalizer, tmp_path, monkeypatch):
    """PRIOR_DEFECTS 26: the normaliser's file was looked up in the current directory."""
    monkeypatch.chdir(tmp_path)
    assert wer(["Good-bye."], ["good bye"]) == 0


# WER


def test_wer_returns_its_number_and_prints_nothing(capsys):
    """PRIOR_DEFECTS 26: the WER function printed and returned nothing."""
    assert wer(["the green lamp sings"], ["the lamp sings loudly"]) == 0.5
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "words"),
    [
        ("the green lamp", "the green lamp", 0, 3),
        ("the green lamp", "the lamp", 1, 3),
        ("the green lamp", "the green green lamp", 1, 3),
        ("the green lamp", "a green lamp", 1, 3),
        ("the green lamp", "", 3, 3),
        ("lamp", "the green window sings", 4, 1),
        ("", "the lamp", 2, 0),
        ("...?", "", 1, 1),  # Whisper's normaliser leaves "." of an ellipsis
        ("", "", 0, 0),
        ("You're late.", "you are late", 0, 3),
    ],
)
def test_word_errors_table(reference, hypothesis, errors, words):
    assert word_errors(reference, hypothesis) == (errors, words)


@given(sentences)
def test_wer_of_equal_texts_is_zero(words):
    text = " ".join(words)
    assert wer([text], [text.title() + "."]) == 0


@given(sentences, st.data())
def test_every_dropped_or_inserted_word_is_one_error(words, data):
    kept = data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))
    shorter = [word for word, keep in zip(words, kept, strict=True) if keep]
    assert word_errors(" ".join(words), " ".join(shorter)) == (len(words) - len(shorter), len(words))
    if shorter:
        assert word_errors(" ".join(shorter), " ".join(words)) == (len(words) - len(shorter), len(shorter))


@given(st.lists(st.tuples(sentences, st.lists(st.sampled_from(WORDS), max_size=8)), min_size=1, max_size=5))
def test_wer_is_the_ratio_of_the_word_errors_and_jiwers(pairs):
    references = [" ".join(reference) for reference, _ in pairs]
    hypotheses = [" ".join(hypothesis) for _, hypothesis in pairs]
    counts = np.array([word_errors(r, h) for r, h in zip(references, hypotheses, strict=True)]).sum(axis=0)
    assert wer(references, hypotheses) == pytest.approx(counts[0] / counts[1])
    assert wer(references, hypotheses) == pytest.approx(jiwer.wer(references, hypotheses))


def test_references_without_words_are_left_out_and_counted():
    with pytest.warns(UserWarning, match="leaves out 2 of 3 references"):
        assert wer(["[noise]", "the lamp", "um"], ["the", "the lamp", ""]) == 0


@pytest.mark.parametrize(
    ("references", "hypotheses", "error", "message"),
    [
        (["a", "b"], ["a"], ValueError, "2 references for 1 hypotheses"),
        (["[noise]"], ["a"], ValueError, "None of 1 references has a word"),
        ([], [], ValueError, "None of 0"),
        ("the lamp", ["the lamp"], TypeError, "not single strings"),
        (["lamp"], "lamp", TypeError, "not single strings"),
    ],
)
def test_wer_refuses(references, hypotheses, error, message):
    with pytest.raises(error, match=message):
        wer(references, hypotheses)


def test_committed_rates_are_those_of_this_normaliser(repository):
    """The spelling table became a dependency after they were measured: it changes none of them."""
    results = repository / "data" / "results" / "pocket"
    quality = json.loads((results / "pocket-quick.json").read_text())["quality"]
    rows = [json.loads(line) for line in (results / "pocket-quick.samples.jsonl").read_text().splitlines()]
    for name, scores in quality.items():
        own = [row for row in rows if row["test_set"] == name]
        for key, metric in {"hypothesis": "wer"}.items() | {
            (field, f"{field}_wer") for field in ("ctc", "joint", "reference_decoder", "cascade")
        }:
            found = wer([row["reference"] for row in own], [row[key] for row in own])
            assert round(found, 4) == scores[metric], (name, key)


# PER


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "phones"),
    [
        ("HH AH L OW", "HH AH L OW", 0, 4),
        ("HH AH L OW", "  HH  AH\tL OW\n", 0, 4),
        ("HH AH L OW", "HH AH OW", 1, 4),
        ("HH AH L OW", "HH EH L OW", 1, 4),
        ("HH AH L OW", "HH AH L OW OW", 1, 4),
        ("HH AH L OW", "hh AH0 L OW", 2, 4),  # as they stand: no case, stress or phone set is guessed
        ("HH AH L OW", "", 4, 4),
        ("AA", "T UW T", 3, 1),
    ],
)
def test_phone_errors_table(reference, hypothesis, errors, phones):
    assert phone_errors(reference, hypothesis) == (errors, phones)
    assert per([reference], [hypothesis]) == errors / phones


def test_per_is_over_all_phones_and_not_a_mean_of_rates():
    assert per(["AA", "T UW T"], ["", "T UW T"]) == 1 / 4


def test_phones_are_not_words_to_the_normaliser():
    """As words, "HH IH M" and "UH" would be changed: "uh" is a filler."""
    assert per(["B UH K"], ["B K"]) == pytest.approx(1 / 3)
    assert word_errors("B UH K", "B K") == (0, 2)


@pytest.mark.parametrize(
    ("references", "hypotheses", "error", "message"),
    [
        (["AA", "T"], ["AA"], ValueError, "2 references for 1 hypotheses"),
        (["AA", " "], ["AA", "T"], ValueError, "reference of hypothesis 'T' has no phone"),
        ([], [], ValueError, "no references"),
        ("AA", ["AA"], TypeError, "not single strings"),
    ],
)
def test_per_refuses(references, hypotheses, error, message):
    with pytest.raises(error, match=message):
        per(references, hypotheses)


def test_answers_in_phones_are_scored_with_an_interval_over_recordings():
    rows = [
        {"recording": "one", "reference": "B UH K", "hypothesis": "B UH K"},
        {"recording": "two", "reference": "AA", "hypothesis": ""},
    ]
    score = score_phones(rows)
    assert score == {"per": 0.25, "ci95": [0.0, 1.0], "n": 2, "phones": 4}
    assert score_phones(rows * 50)["ci95"] == [0.0, 1.0]  # two recordings stay two


# Intervals


@st.composite
def counted(draw):
    """Errors and words of 2 to 30 samples."""
    size = draw(st.integers(2, 30))
    words = draw(numpy_arrays(int, size, elements=st.integers(1, 20)))
    return draw(numpy_arrays(int, size, elements=st.integers(0, 25))), words


@settings(deadline=None)
@given(counted(), st.integers(0, 100))
def test_the_interval_holds_the_point_estimate_and_lies_among_the_ratios(data, seed):
    errors, words = data
    low, high = bootstrap_ci(errors, words, n_resamples=2_000, seed=seed)
    assert low - 1e-9 <= errors.sum() / words.sum() <= high + 1e-9
    assert (errors / words).min() - 1e-9 <= low and high <= (errors / words).max() + 1e-9


@settings(deadline=None, max_examples=25)
@given(counted(), st.floats(0.5, 0.9))
def test_a_higher_level_gives_a_wider_interval(data, level):
    narrow, wide = (bootstrap_ci(*data, n_resamples=500, level=each) for each in (level, 0.99))
    assert wide[0] <= narrow[0] and narrow[1] <= wide[1]


def test_interval_of_a_mean_is_the_normal_one():
    hits = np.random.default_rng(0).random(2_000) < 0.3
    low, high = bootstrap_ci(hits, np.ones(2_000))
    half = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 2_000)
    assert (low, high) == pytest.approx((hits.mean() - half, hits.mean() + half), abs=0.002)


def test_blocks_widen_the_interval_as_fewer_independent_samples_do():
    errors, words = np.repeat([0, 1, 2, 3, 4, 5, 6, 7], 50), np.full(400, 10)
    speakers = np.repeat(list("abcdefgh"), 50)
    low, high = bootstrap_ci(errors, words, groups=speakers)
    assert (low, high) == bootstrap_ci(50 * np.arange(8), np.full(8, 500))
    alone = bootstrap_ci(errors, words)
    assert high - low > 5 * (alone[1] - alone[0])


def test_same_seed_same_interval_in_any_number_of_blocks(monkeypatch):
    errors, words = np.arange(40) % 7, np.arange(40) % 11 + 5
    first = bootstrap_ci(errors, words, seed=7)
    monkeypatch.setattr(metrics, "RESAMPLES_AT_ONCE", 37)
    assert bootstrap_ci(errors, words, seed=7) == first
    assert bootstrap_ci(errors, words, seed=8) != first


def test_samples_without_words_neither_divide_by_zero_nor_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap_ci([1, 0, 0], [2, 0, 0], n_resamples=200)
    assert low == high == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(errors=[1], totals=[2]), "1 group"),
        (dict(errors=[1, 2], totals=[2, 2], groups=["a", "a"]), "1 group"),
        (dict(errors=[1, 2], totals=[2, 2], groups=["a"]), "1 groups for 2 samples"),
        (dict(errors=[1, 2], totals=[2]), "same shape"),
        (dict(errors=[1, 2], totals=[2, -1]), "no total below 0"),
        (dict(errors=[1, float("nan")], totals=[2, 2]), "finite"),
        (dict(errors=[0, 0], totals=[0, 0]), "0 in total"),
        (dict(errors=[[1, 2]], totals=[[2, 2]]), "flat"),
        (dict(errors=[1, 2], totals=[2, 2], level=95), "level 95"),
        (dict(errors=[1, 2], totals=[2, 2], n_resamples=0), "n_resamples 0"),
    ],
)
def test_bootstrap_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci(**arguments)
