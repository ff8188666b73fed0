"""Measures of layers against models whose layers are known to matter, or not."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from audiolm_utils.evaluation.layer_importance import answer_loss, block_influences, greedy_order, span_distances

SHAPE = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}


@pytest.fixture
def llm():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.4)).eval()


@pytest.fixture
def batches():
    torch.manual_seed(1)
    ids = torch.randint(0, 30, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    labels = ids.clone()
    labels[:, :3] = -100
    labels[mask == 0] = -100
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": labels},
        {name: tensor[:1] for name, tensor in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))},
    ]


@torch.no_grad()
def silence(llm, layer):
    llm.model.layers[layer].self_attn.o_proj.weight.zero_()
    llm.model.layers[layer].mlp.down_proj.weight.zero_()


def test_the_loss_is_that_of_transformers_over_all_labels(llm, batches):
    counts = [int((b["labels"][:, 1:] != -100).sum()) for b in batches]
    with torch.no_grad():
        losses = [float(llm(**b).loss) for b in batches]
    mean = sum(n * value for n, value in zip(counts, losses, strict=True)) / sum(counts)
    assert answer_loss(llm, batches) == pytest.approx(mean, abs=1e-5)
    assert answer_loss(llm, batches, range(5)) == pytest.approx(mean, abs=1e-5)


def test_leaving_a_silent_layer_out_changes_nothing(llm, batches):
    silence(llm, 2)
    whole = answer_loss(llm, batches)
    assert answer_loss(llm, batches, [0, 1, 3, 4]) == pytest.approx(whole, abs=1e-5)
    assert answer_loss(llm, batches, [0, 2, 3, 4]) != pytest.approx(whole, abs=1e-3)
    assert len(llm.model.layers) == 5  # as before


def test_a_layer_that_adds_nothing_has_no_influence(llm, batches):
    silence(llm, 3)
    influences = block_influences(llm, batches)
    assert influences[3] == pytest.approx(0, abs=1e-6) and min(influences[:3]) > 1e-3


def test_influence_is_the_turn_of_real_tokens_only(llm, batches):
    values = block_influences(llm, batches[:1])
    longer = {name: torch.nn.functional.pad(tensor, (0, 3)) for name, tensor in batches[0].items()}
    assert block_influences(llm, [longer]) == pytest.approx(values, abs=1e-5)
    with torch.no_grad():
        states = llm.model(**{n: batches[0][n] for n in ("input_ids", "attention_mask")}, output_hidden_states=True)
    before, after = states.hidden_states[0], states.hidden_states[1]
    cosine = torch.cosine_similarity(before, after, dim=-1)[batches[0]["attention_mask"].bool()]
    assert values[0] == pytest.approx(1 - float(cosine.mean()), abs=1e-5)


def test_distances_span_layers_at_each_rows_last_token(llm, batches):
    assert len(span_distances(llm, batches, 2)) == 4
    silence(llm, 1)
    silence(llm, 2)
    distances = span_distances(llm, batches, 2)
    assert distances[1] == pytest.approx(0, abs=1e-3) and distances.index(min(distances)) == 1
    with torch.no_grad():
        states = llm.model(**{n: batches[0][n] for n in ("input_ids", "attention_mask")}, output_hidden_states=True)
    last = torch.tensor([6, 3, 6])
    before, after = (states.hidden_states[n][torch.arange(3), last] for n in (0, 2))
    angles = torch.cosine_similarity(before, after, dim=-1).arccos() / math.pi
    assert span_distances(llm, batches[:1], 2)[0] == pytest.approx(float(angles.mean()), abs=1e-5)


def test_the_greedy_order_takes_the_cheapest_layer_each_time(llm, batches):
    order = greedy_order(llm, batches, 2)
    assert len(order) == len(set(order)) == 3
    left = list(range(5))
    for taken in order:
        losses = {layer: answer_loss(llm, batches, [x for x in left if x != layer]) for layer in left}
        assert taken == min(losses, key=losses.get)
        left.remove(taken)
