"""Generation: a batch answers as its clips do alone, however it is decoded; and what the output layer is given."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SuppressTokensLogitsProcessor

from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from tests import tiny

TEXTS = ["Repeat the speech.", "Say what was said, word for word.", "What?"]
DECODERS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "joint": {"ctc_decode_weight": 0.5},
    "joint beams": {"num_beams": 3, "ctc_decode_weight": 0.5},
}
PADDING = tiny.SPECIAL.index("<|im_start|>")  # not 0: beam search of transformers takes 0 for none
STEPS = 12


def clips() -> list:
    return [tiny.clip(0.5, 1), tiny.clip(1.7, 2), tiny.clip(0.93, 3)]


@pytest.fixture(scope="module")
def pair(parts):
    return tiny.build(parts, **tiny.COMPRESSED, lora=tiny.LORA)


def answer(pair, rows=slice(None), **generation) -> list[list[int]]:
    """The answers to some of the clips in one batch."""
    model, processor = pair
    batch = processor(TEXTS[rows], audio=clips()[rows])
    return model.generate(**batch, **{"max_new_tokens": STEPS, "pad_token_id": PADDING, **generation}).tolist()


def answers_alone(pair, **generation) -> list[list[int]]:
    return [answer(pair, slice(i, i + 1), **generation)[0] for i in range(len(TEXTS))]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_batch_is_its_clips_and_each_row_stops_at_its_own_end(pair, decoder):
    decoding = DECODERS[decoder]
    said = [
        token for row in answers_alone(pair, eos_token_id=tiny.SPECIAL.index(tiny.END), **decoding) for token in row
    ]
    runs = {end: answers_alone(pair, eos_token_id=end, **decoding) for end in sorted(set(said))[:10]}
    end = max(runs, key=lambda token: len({len(row) for row in runs[token]}))  # rows end as differently as they can
    alone = runs[end]
    assert len({len(row) for row in alone}) > 1
    assert any(len(row) < STEPS for row in alone)
    together = answer(pair, eos_token_id=end, **decoding)
    for row, wanted in zip(together, alone, strict=True):
        assert row[: len(wanted)] == wanted
        assert set(row[len(wanted) :]) <= {PADDING}
        assert end not in wanted[:-1]
        assert wanted[-1] == end or len(wanted) == STEPS


def test_an_answer_may_have_several_ends(pair):
    free = answer(pair, eos_token_id=-1)
    ends = [row[3] for row in free]
    for row, wanted in zip(answer(pair, eos_token_id=ends), free, strict=True):
        step = min(wanted.index(end) for end in ends if end in wanted)
        assert row[: step + 1] == wanted[: step + 1]
        assert set(row[step + 1 :]) <= {PADDING}


def test_joint_decoding_keeps_the_callers_own_logits_processors(pair):
    first = answer(pair, ctc_decode_weight=0.5)[0][0]
    other = answer(pair, ctc_decode_weight=0.5, logits_processor=[SuppressTokensLogitsProcessor([first])])
    assert other[0][0] != first


@pytest.mark.parametrize("beams", [1, 3])
def test_logits_are_computed_of_the_last_position_only(pair, beams):
    model, _ = pair
    head, seen = model.language_model.get_output_embeddings(), []
    hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    answer(pair, num_beams=beams, max_new_tokens=3, eos_token_id=-1)
    hook.remove()
    shape = (beams * len(TEXTS), 1, head.in_features)
    assert [tuple(hidden.shape) for hidden in seen] == [shape] * 3
    assert {hidden.stride() for hidden in seen} == {torch.empty(shape).stride()}


class Operators(TorchDispatchMode):
    """Notes the names of operators and the size of what each makes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_the_output_layer_is_one_product_whatever_slice_it_is_given(parts, rows):
    model = AudioLMForConditionalGeneration.from_parts(tiny.make_config(parts), dtype=torch.bfloat16)
    head = model.language_model.get_output_embeddings()
    last = torch.randn(rows, 5, head.in_features).bfloat16()[:, -1:]
    with Operators() as operators:
        logits = head(last)
    assert "mm" in operators.names
    assert not {"bmm", "copy_"} & operators.names
    torch.testing.assert_close(logits, torch.nn.functional.linear(last.clone(), head.weight))
