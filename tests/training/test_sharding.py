"""Cutting the LLM among processes: when it is asked, and what is refused. That it trains alike: `test_distributed`."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from audiolm_utils.training.sharding import LAUNCHED, SETTINGS, fsdp_launched, llm_layers, shard_llm
from tests import tiny


def launched(monkeypatch, **settings) -> None:
    """As if accelerate had launched this process with FSDP."""
    for name, value in {LAUNCHED: "true", **SETTINGS, **settings}.items():
        monkeypatch.setenv(name, value)


def test_a_process_knows_whether_it_was_launched_with_fsdp(monkeypatch):
    monkeypatch.delenv(LAUNCHED, raising=False)
    assert not fsdp_launched()
    launched(monkeypatch)
    assert fsdp_launched()


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_are_refused_by_name(monkeypatch, name):
    launched(monkeypatch, **{name: "1"})
    with pytest.raises(ValueError, match=rf"not supported: {name.lower()} is 1\. Take those of .*fsdp\.yaml"):
        fsdp_launched()
    monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=f"{name.lower()} is not given"):
        fsdp_launched()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_layers_are_found_in_any_llm(kind):
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 9}
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    layers = llm_layers(llm)
    assert len(layers) == 3
    assert {type(layer).__name__ for layer in layers} == set(llm._no_split_modules)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_packed_weights_are_refused_naming_the_alternative(parts, precision):
    model, _ = tiny.build(parts, llm_precision=precision)
    with pytest.raises(ValueError, match=rf"llm_precision='{precision}': launch with configs/accelerate/ddp\.yaml"):
        shard_llm(model, torch.device("cpu"))


def test_an_llm_without_known_layers_is_refused(parts):
    model, _ = tiny.build(parts)
    model.language_model._no_split_modules = None
    with pytest.raises(ValueError, match=r"LlamaForCausalLM does not say which modules are its layers"):
        shard_llm(model, torch.device("cpu"))
