"""The parameter report: every part counted once, and what learns in it."""

import pytest

from audiolm_utils.models.llm import load_llm, quantise_base
from audiolm_utils.models.parameters import ParameterReport, parameter_report
from tests import tiny
from tests.models.families import write_family


def test_each_part_is_counted_once_and_adapters_apart(parts):
    model, _ = tiny.build(parts, **tiny.COMPRESSED, lora=tiny.LORA, speech_lora=tiny.LORA)
    report = parameter_report(model)
    names = ("speech_encoder", "speech_encoder LoRA", "language_model", "language_model LoRA", "projector", "ctc")
    assert report.parts.keys() == set(names)
    assert report.total == sum(p.numel() for p in model.parameters())  # the tied output layer once
    for name, (total, trainable) in report.parts.items():
        assert trainable == (0 if name in ("speech_encoder", "language_model") else total)
    assert report.parts["language_model LoRA"][0] == 2 * (
        2 * (32 + 32) + 2 * (32 + 16)
    )  # rank 2 on q and v, two layers


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_quantised_weights_count_as_weights(tmp_path, precision):
    folder = str(write_family(tmp_path, "qwen2.5"))  # with biases
    model = load_llm(folder, precision=precision)
    if precision == "int8":
        quantise_base(model)
    assert parameter_report(model).total == parameter_report(load_llm(folder)).total


def test_the_report_is_a_line_a_part_and_one_for_all():
    report = ParameterReport({"language_model": (3_000_000, 0), "projector": (1_000_000, 1_000_000)})
    first, second, last = str(report).splitlines()
    assert first.startswith("language_model ") and "3,000,000" in first and "(0 %)" in first
    assert second.split() == ["projector", "1,000,000,", "of", "them", "learn", "1,000,000", "(100", "%)"]
    assert last.split()[:2] == ["all", "4,000,000,"] and last.endswith("(25 %)")
