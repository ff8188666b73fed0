"""A wider model begins as the shipped one: the same tokens and CTC scores, and what is new learns."""

import dataclasses

import pytest
import torch

from audiolm_utils.models.cut import keep_layers
from audiolm_utils.models.llm import load_llm
from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.models.weights import DerivedWeights
from audiolm_utils.study import warm_start
from audiolm_utils.study.recipe import Stage
from audiolm_utils.study.train import build_model
from audiolm_utils.study.warm_start import start_from
from tests import tiny

PLAIN = ProjectorConfig(**{**tiny.MLP, "num_layers": 0})
ALIGN = Stage("align", "ctc", 1, ("projector", "ctc"), batch_size=2, prompt_repeats=1)


@pytest.fixture
def shipped(parts, tmp_path, monkeypatch):
    """A recipe without a second encoder, its random model saved where shipped ones stand, and its items."""
    monkeypatch.setattr(warm_start, "ADAPTERS", tmp_path)
    items = tiny.write_items(tmp_path, ["a quick fox", "a lazy dog"])
    recipe = dataclasses.replace(
        tiny.make_recipe(parts, "shipped", lora=tiny.LORA, speech_lora=tiny.LORA, stages=(ALIGN,)), projector=PLAIN
    )
    model, processor = build_model(recipe, items)
    with torch.no_grad():
        for tensor in model.own_state_dict().values():
            if tensor.is_floating_point() and tensor.dim():
                tensor.add_(torch.randn_like(tensor) * 0.05)
    model.save_pretrained(tmp_path / "shipped")
    return recipe, model.eval(), processor, items


def wider(recipe, parts, items, texts):
    """The untrained model with a second encoder and more words."""
    more = [*items, *(dataclasses.replace(items[0], id=text, text=text) for text in texts)]
    return build_model(dataclasses.replace(recipe, audio_model=str(parts / "beats"), seed=3), more)


def test_a_wider_model_hears_as_the_shipped_one_and_reads_the_same(shipped, parts):
    recipe, model, processor, items = shipped
    other, hears = wider(recipe, parts, items, ["zebra vex"])
    start_from(other, "shipped")
    other.eval()
    clips = [tiny.clip(0.7), tiny.clip(1.1, 1)]
    with torch.no_grad():
        ours = other.embed_audio(**hears.audio_features(clips))
        theirs = model.embed_audio(**processor.audio_features(clips))
    known = [0, *other.ctc.classes(model.ctc.token_ids.tolist()).tolist()]
    scores = ours.log_probs[..., known].log_softmax(-1)
    torch.testing.assert_close(scores, theirs.log_probs, atol=1e-4, rtol=1e-4)
    assert len(other.ctc.token_ids) > len(model.ctc.token_ids)
    audio = other.projector.body.mlp[0].weight.view(-1, PLAIN.window_frames, sum(other.projector.body.norm.sizes))
    assert not audio[..., other.speech_encoder.hidden_size :].any()
    lora = {n: t for n, t in other.own_state_dict().items() if "lora_" in n}
    assert lora and all(torch.equal(t, model.own_state_dict()[n]) for n, t in lora.items())


def test_another_llm_is_refused_by_name(shipped, parts, tmp_path):
    recipe, _, _, items = shipped
    folder = tiny.write_text_model(tmp_path / "other")
    other, _ = wider(dataclasses.replace(recipe, text_model=str(folder)), parts, items, [])
    with pytest.raises(ValueError, match=r"shipped was trained with text_model=.*cannot start a model with .*other"):
        start_from(other, "shipped")


def test_a_cut_llm_takes_over_the_adapters_of_the_layers_it_kept(shipped, parts, tmp_path, monkeypatch):
    recipe, model, _, items = shipped
    whole = load_llm(recipe.text_model)
    last = whole.config.num_hidden_layers - 1
    cut = str(tiny.write_cut(parts, tmp_path, [last]))
    monkeypatch.setitem(warm_start.DERIVED, cut, DerivedWeights(recipe.text_model, keep_layers, {"layers": [last]}))
    other, _ = build_model(dataclasses.replace(recipe, text_model=cut), items)
    start_from(other, "shipped")
    theirs = model.own_state_dict()
    lora = {n: t for n, t in other.own_state_dict().items() if n.startswith("language_model.") and "lora_" in n}
    assert lora and last > 0
    assert all(torch.equal(t, theirs[n.replace(".layers.0.", f".layers.{last}.")]) for n, t in lora.items())


def test_another_shape_is_named(shipped, parts):
    recipe, _, _, items = shipped
    other, _ = wider(dataclasses.replace(recipe, projector=dataclasses.replace(PLAIN, hidden_size=8)), parts, items, [])
    with pytest.raises(ValueError, match=r"projector\.body\.mlp\.0\.\w+ of shipped is \(16, .*; expected \(8, "):
        start_from(other, "shipped")


def test_a_connector_alone_starts_any_llm_and_leaves_its_adapters_as_they_are(shipped, parts, tmp_path):
    recipe, _, _, items = shipped
    alone = dataclasses.replace(recipe, lora=None, audio_model=str(parts / "beats"))
    aligned, _ = build_model(alone, items)
    aligned.save_pretrained(tmp_path / "connector")
    folder = tiny.write_text_model(tmp_path / "other")
    untrained = {"text_model": str(folder), "speech_lora": None, "lora": tiny.LORA, "seed": 4}
    other, _ = wider(dataclasses.replace(recipe, **untrained), parts, items, [])
    adapters = {n: t.clone() for n, t in other.own_state_dict().items() if "lora_" in n}
    start_from(other, "connector")
    own = other.own_state_dict()
    assert adapters and all(torch.equal(tensor, own[name]) for name, tensor in adapters.items())
    learned = {n: t for n, t in aligned.own_state_dict().items() if n.startswith("projector.")}
    assert learned and all(torch.equal(tensor, own[name]) for name, tensor in learned.items())
