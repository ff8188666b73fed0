"""Frozen matrices in bfloat16: the same step as autocast alone, and nothing of it left behind."""

import pytest
import torch
from torch import nn

from audiolm_utils.training.mixed_precision import frozen_in_bfloat16


class Tied(nn.Module):
    """Embedding, a frozen and a learning layer, a LoRA matrix, and an output layer that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(7, 16), nn.Linear(16, 7, bias=False)
        self.frozen, self.learns, self.lora_A = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head.weight = self.table.weight
        self.requires_grad_(False)
        self.learns.requires_grad_(True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.table(tokens)
        hidden = self.lora_A(self.learns(torch.tanh(self.frozen(hidden))))
        return self.head(hidden).float().logsumexp(-1).mean()


def gradient(model: Tied) -> torch.Tensor:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.arange(7)).backward()
    return model.learns.weight.grad.clone()


def test_a_step_is_that_of_autocast_and_only_frozen_matrices_change():
    model = Tied()
    plain = gradient(model)
    with frozen_in_bfloat16(model):
        assert model.frozen.weight.dtype == torch.bfloat16
        others = (model.table, model.head, model.learns, model.lora_A)
        assert {module.weight.dtype for module in others} == {torch.float32}
        torch.testing.assert_close(gradient(model), plain, rtol=0, atol=0)


def test_weights_are_what_they_were_even_after_an_error():
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), frozen_in_bfloat16(model):
        raise RuntimeError("stop")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
