"""Result files: written whole, read back, tabled, and refused where they are not results."""

import pytest

from audiolm_utils.study.pocket_recipes import RECIPES
from audiolm_utils.study.results import provenance, read_result, read_samples, results_table, write_result

RECIPE = RECIPES["pocket-quick"]


def row():
    quality = {"asr": {"wer": 0.25, "ci95": [0.2, 0.3], "n": 130, "ctc_wer": 0.3}}
    return provenance(RECIPE, "0" * 64) | {"quality": quality, "efficiency": {"ttft_s": {"median": 0.4}}}


def test_a_row_comes_back_with_its_samples_and_provenance(tmp_path):
    path = write_result(RECIPE, row(), [{"id": "a", "hypothesis": "é"}], tmp_path)
    assert path == tmp_path / "pocket" / "pocket-quick.json"
    assert read_samples(path) == [{"id": "a", "hypothesis": "é"}]
    stored = read_result(path)
    assert stored["fingerprint"] == RECIPE.fingerprint()
    assert stored["machine"]["cores"] >= 1 and stored["versions"]["torch"]
    assert "/" not in str(stored["machine"])  # no path of this machine


def test_the_table_shows_what_was_measured_and_nothing_else(tmp_path):
    write_result(RECIPE, row(), [], tmp_path)
    (line,) = results_table(tmp_path).to_dict("records")
    assert line["wer"] == 0.25 and line["ctc_wer"] == 0.3 and line["95 % CI"] == "0.200 to 0.300"
    assert "reference_decoder_wer" not in line


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_files_that_are_no_results_are_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json is not a result file"):
        read_result(path)
