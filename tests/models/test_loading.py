"""Models loaded in several threads at once are whole, and so are those that follow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from transformers import PreTrainedModel

from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from tests import tiny


def test_threads_that_load_at_once_leave_weights_tied(parts, tmp_path):
    tiny.build(parts)[0].save_pretrained(tmp_path)
    before = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(AudioLMForConditionalGeneration.from_pretrained, [tmp_path] * 24))
    for llm in (model.language_model for model in models):
        assert llm.config.tie_word_embeddings and llm.lm_head.weight is llm.model.embed_tokens.weight
    assert PreTrainedModel.tie_weights is before
