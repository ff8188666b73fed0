"""The whole model: batches equal single clips, strict files, frozen parts that stay frozen."""

import json
import resource
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from audiolm_utils.data.cache import DiskFullError
from audiolm_utils.models.listening import AUDIO_INPUTS
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.moe import MoEPlan
from audiolm_utils.models.routing import is_router
from tests import tiny

VARIANTS = {
    "mlp": {"projector": tiny.MLP},
    "qformer": {"projector": tiny.QFORMER, "lora": tiny.LORA},
    "compressed": {**tiny.COMPRESSED, "lora": tiny.LORA},
    "compressed qformer": {**tiny.COMPRESSED, "projector": tiny.QFORMER},
    "beats": {"projector": tiny.QFORMER, "audio_model": "beats"},
    "eat compressed padded": {**tiny.COMPRESSED, "audio_model": "eat", "pad_to_30s": True},
}
TEXTS = ["Repeat the speech.", "Say what was said, word for word.", "What?"]  # of different lengths
ANSWERS = ["press one", "a", "good bye now"]


def clips() -> list:
    return [tiny.clip(0.5, 1), tiny.clip(1.7, 2), tiny.clip(0.93, 3)]


def audio_of(batch) -> dict[str, torch.Tensor]:
    return {k: batch[k] for k in AUDIO_INPUTS if k in batch}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, parts):
    """A model in eval mode and its processor, of each variant; tests leave them as they were."""
    return tiny.build(parts, **VARIANTS[request.param])


@pytest.fixture
def compressed(parts):
    """A fresh model with CTC head, compression and LoRA, to change at will."""
    return tiny.build(parts, **VARIANTS["compressed"])


# Batches --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_audio_tokens_do_not_depend_on_the_batch(pair):
    model, processor = pair
    together = model.embed_audio(**processor.audio_features(clips()))
    for i, clip in enumerate(clips()):
        alone = model.embed_audio(**processor.audio_features([clip]))
        n = int(alone.counts)
        assert together.counts[i] == n == processor.num_audio_tokens(len(clip))
        torch.testing.assert_close(together.inputs[i, :n], alone.inputs[0], atol=5e-5, rtol=0)
        if alone.keep is not None:
            assert torch.equal(together.keep[i, :n], alone.keep[0])
            assert not together.keep[i, n:].any()


@torch.no_grad()
def test_the_summed_loss_of_a_batch_is_that_of_its_rows(pair):
    model, processor = pair
    batch = processor(TEXTS, audio=clips(), answers=ANSWERS)
    together = model(**batch, num_items_in_batch=1)
    alone = [
        model(**processor([t], audio=[c], answers=[a]), num_items_in_batch=1)
        for t, c, a in zip(TEXTS, clips(), ANSWERS, strict=True)
    ]
    torch.testing.assert_close(together.loss, sum(o.loss for o in alone), atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(together.logits, torch.cat([o.logits for o in alone]), atol=2e-4, rtol=0)
    labelled = sum(len(a) + 1 for a in ANSWERS)
    torch.testing.assert_close(model(**batch).loss, together.loss / labelled)


@torch.no_grad()
def test_the_loss_is_the_llms_own(parts):
    model, processor = tiny.build(parts)
    batch = processor(TEXTS, audio=clips(), answers=ANSWERS)
    tokens = model.embed_audio(**audio_of(batch))
    embeds = model.language_model.get_input_embeddings()(batch["input_ids"])
    for i, n in enumerate(tokens.counts.tolist()):
        embeds[i, batch["input_ids"][i] == processor.audio_token_id] = tokens.inputs[i, :n]
    wanted = model.language_model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"])
    torch.testing.assert_close(model(**batch).loss, wanted.loss)


@torch.no_grad()
def test_next_token_logits_do_not_depend_on_the_batch(pair):
    model, processor = pair
    together = model(**processor(TEXTS, audio=clips())).logits
    for i, (text, clip) in enumerate(zip(TEXTS, clips(), strict=True)):
        alone = model(**processor([text], audio=[clip])).logits
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-4, rtol=0)


def test_generated_tokens_do_not_depend_on_the_batch_and_each_row_stops_at_its_own_end(pair):
    model, processor = pair
    endless = [
        model.generate(**processor([t], audio=[c]), max_new_tokens=14, eos_token_id=-1)[0].tolist()
        for t, c in zip(TEXTS, clips(), strict=True)
    ]
    end, steps = most_spread_end(endless)
    assert len(set(steps)) > 1  # rows end at different steps
    generation = {"max_new_tokens": 14, "eos_token_id": end, "pad_token_id": 0}
    together = model.generate(**processor(TEXTS, audio=clips()), **generation)
    for row, free, step in zip(together.tolist(), endless, steps, strict=True):
        assert row[: step + 1] == free[: step + 1]
        assert set(row[step + 1 :]) <= {0}


def most_spread_end(rows: list[list[int]]) -> tuple[int, list[int]]:
    """The token whose first places in the rows differ most, and those places (a row's last where absent)."""
    ends = {t: [r.index(t) if t in r else len(r) - 1 for r in rows] for r in rows for t in r}
    end = max(sorted(ends), key=lambda t: (len(set(ends[t])), max(ends[t]) - min(ends[t])))
    return end, ends[end]


def test_generation_ends_at_the_llms_own_end_token(compressed):
    model, processor = compressed
    batch = processor(TEXTS[:1], audio=clips()[:1])
    free = model.generate(**batch, max_new_tokens=6, eos_token_id=-1)[0].tolist()
    model.language_model.generation_config.eos_token_id = free[2]
    assert model.generate(**batch, max_new_tokens=6)[0].tolist() == free[: free.index(free[2]) + 1]


@torch.no_grad()
def test_cached_encoder_features_are_the_audio(pair):
    model, processor = pair
    features, lengths = model.encode(**processor.audio_features(clips()))
    cached = [f[:n].numpy() for f, n in zip(features, lengths.tolist(), strict=True)]
    from_cache = model(**processor(TEXTS, encoder_features=cached, answers=ANSWERS))
    from_audio = model(**processor(TEXTS, audio=clips(), answers=ANSWERS))
    torch.testing.assert_close(from_cache.loss, from_audio.loss)


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 2 * tiny.SAMPLE_RATE))
@torch.no_grad()
def test_the_processor_promises_the_right_number_of_tokens(pair, samples):
    model, processor = pair
    tokens = model.embed_audio(**processor.audio_features([tiny.clip(samples / tiny.SAMPLE_RATE)]))
    assert tokens.counts.item() == tokens.inputs.shape[1] == processor.num_audio_tokens(samples)


def test_a_prompt_of_another_audio_is_refused_naming_the_row(pair):
    model, processor = pair
    batch = processor(TEXTS, audio=clips(), answers=ANSWERS)
    wrong = audio_of(processor(TEXTS, audio=[clips()[i] for i in (0, 2, 1)]))
    with pytest.raises(ValueError, match=r"row 1 has \d+ audio placeholders for \d+"):
        model(**{**batch, **wrong})
    with pytest.raises(ValueError, match=r"row 1 has \d+ audio placeholders for \d+"):
        model.generate(batch["input_ids"], batch["attention_mask"], **wrong)


def test_audio_is_needed_where_a_prompt_has_a_place_for_it(pair):
    model, _ = pair
    audio_token, mask = torch.tensor([[model.config.audio_token_id]]), torch.tensor([[1]])
    with pytest.raises(ValueError, match="1 audio placeholders for 0 audio tokens"):
        model(audio_token, mask)
    with pytest.raises(ValueError, match="feature_lengths"):
        model(audio_token, mask, input_features=torch.zeros(1, 80, 4))


def test_fbanks_are_needed_where_there_is_an_audio_encoder(parts):
    model, processor = tiny.build(parts, audio_model="beats")
    batch = processor.audio_features(clips())
    with pytest.raises(ValueError, match="fbank and fbank_lengths"):
        model.embed_audio(**{k: batch[k] for k in ("input_features", "feature_lengths")})
    with pytest.raises(ValueError, match="encoder_features with encoder_lengths"):
        model.embed_audio(torch.zeros(1, 9, 48))


@torch.no_grad()
def test_a_batch_without_audio_is_text_to_the_llm(pair):
    model, _ = pair
    ids, mask = torch.tensor([[7, 8, 9, 10]]), torch.ones(1, 4, dtype=torch.long)
    expected = model.language_model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(model(ids, mask, ids).loss, expected)


@torch.no_grad()
@pytest.mark.parametrize(("precision", "close"), [("fp16", 2e-2), ("bf16", 0.15), ("int8", 0.3)])
def test_encoders_run_in_lower_precision_and_the_choice_is_saved(parts, tmp_path, precision, close):
    both = {"audio_model": "beats"}
    full, processor = tiny.build(parts, **both)
    model, _ = tiny.build(parts, **both, encoder_precision=precision)
    features = processor.audio_features(clips())
    expected, lengths = full.encode(**features)
    found, same = model.encode(**features)
    assert torch.equal(lengths, same)
    assert 0 < (found.float() - expected).abs().mean() / expected.abs().mean() < close
    assert model.embed_audio(**features).inputs.dtype == torch.float32
    model.save_pretrained(tmp_path)
    again = AudioLMForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again.encode(**features)[0], found)


def test_an_encoder_that_learns_is_float32(parts):
    with pytest.raises(ValueError, match="speech_lora trains a float32 encoder"):
        tiny.make_config(parts, speech_lora=tiny.LORA, encoder_precision="int8")


# State ----------------------------------------------------------------------------------------------------


def state_of(model) -> dict:
    """Everything of every module that a forward pass could flip: flags, numbers, tensors, what trains."""
    plain = bool | int | float | str | None
    state = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, plain)
    }
    state |= {f"{n} trains": p.requires_grad for n, p in model.named_parameters()}
    state |= {n: t.clone() for n, t in model.state_dict().items()}
    return state | {"config": model.config.to_json_string(use_diff=False)}


@pytest.mark.parametrize("training", [False, True])
def test_a_pass_changes_nothing(compressed, training):
    model, processor = compressed
    model.train(training)
    model.ctc_weight = 0.3
    before = state_of(model)
    batch = processor(TEXTS, audio=clips(), answers=ANSWERS, ctc_targets=ANSWERS)
    model(**batch).loss.backward()
    model.align(batch["ctc_labels"], **audio_of(batch))
    model.generate(**processor(TEXTS, audio=clips()), max_new_tokens=3)
    model.read_ctc(**audio_of(batch))
    after = state_of(model)
    assert before.keys() == after.keys()
    changed = [k for k, v in before.items() if not (torch.equal(v, after[k]) if torch.is_tensor(v) else v == after[k])]
    assert changed == []


def test_train_leaves_frozen_parts_in_eval_mode(parts):
    lora = {**tiny.LORA, "lora_dropout": 0.5}
    model, _ = tiny.build(parts, **tiny.COMPRESSED, lora=lora, speech_lora=lora)
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    awake = {name for name, module in model.named_modules() if module.training}
    frozen = {n for n in awake if n.startswith(("speech_encoder", "language_model"))}
    assert {n.split(".")[0] for n in awake - {""}} == {"projector", "ctc", "speech_encoder", "language_model"}
    assert frozen == {n for n, _ in model.named_modules() if "lora_" in n}
    assert any(isinstance(model.get_submodule(n), torch.nn.Dropout) for n in frozen)
    model.eval()
    assert not any(module.training for module in model.modules())


def test_a_frozen_encoder_does_not_drop_out_in_training(compressed):
    model, processor = compressed
    features = processor.audio_features(clips())
    before, _ = model.speech_encoder(*features.values())
    model.train()
    assert torch.equal(model.speech_encoder(*features.values())[0], before)


def test_gradients_reach_projector_ctc_and_lora_and_nothing_else(compressed):
    model, processor = compressed
    model(**processor(TEXTS, audio=clips(), answers=ANSWERS)).loss.backward()
    check_gradients(model, ("projector.", "ctc."), "language_model.")


def test_alignment_reaches_projector_and_ctc_only(compressed):
    model, processor = compressed
    batch = processor(TEXTS, audio=clips(), ctc_targets=ANSWERS)
    model.align(batch["ctc_labels"], **audio_of(batch)).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    unused = {"ctc.blank_embedding", "ctc.residual"}  # they serve compression
    wanted = {n for n, _ in model.named_parameters() if n.startswith(("projector.", "ctc."))}
    assert reached == wanted - unused - {n for n in wanted if n.endswith("key.bias")}


def test_gradients_reach_the_speech_encoders_lora(parts):
    model, processor = tiny.build(parts, **tiny.COMPRESSED, speech_lora=tiny.LORA)
    model(**processor(TEXTS, audio=clips(), answers=ANSWERS)).loss.backward()
    check_gradients(model, ("projector.", "ctc."), "speech_encoder.")


def check_gradients(model, whole: tuple[str, ...], adapted: str) -> None:
    for name, parameter in model.named_parameters():
        learns = name.startswith(whole) or (name.startswith(adapted) and "lora_" in name)
        assert parameter.requires_grad == learns, name
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == learns, name


def test_the_loss_is_lm_plus_weighted_ctc(compressed):
    model, processor = compressed
    batch = processor(TEXTS, audio=clips(), answers=ANSWERS, ctc_targets=ANSWERS)
    assert model(**batch).ctc_loss is None
    plain = model(**batch).loss
    model.ctc_weight = 0.3
    output = model(**batch)
    torch.testing.assert_close(output.lm_loss, plain.detach())
    torch.testing.assert_close(output.ctc_loss, model.align(batch["ctc_labels"], **audio_of(batch)).detach())
    assert output.loss > plain + 0.1


def test_the_loss_has_the_weighted_router_loss_where_asked(parts, tmp_path):
    plan = MoEPlan("shared", 4, 2, 0.5, "fitted")
    model, processor = tiny.build(parts, text_model=str(tiny.write_mixture(parts, tmp_path, plan)))
    batch = processor(TEXTS, audio=clips(), answers=ANSWERS)
    plain = model(**batch)
    assert plain.router_loss is None
    model.router_loss_weight = 0.3
    output = model(**batch)
    torch.testing.assert_close(output.lm_loss, plain.loss.detach())
    torch.testing.assert_close(output.loss, plain.loss + 0.3 * output.router_loss)
    assert 2 < output.router_loss < 4
    items = int((batch["labels"] != -100).sum())
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * items).loss, output.loss / 2)
    routers = [p.requires_grad_() for n, p in model.named_parameters() if is_router(n)]
    output = model(**batch)
    (output.loss - model(**batch).lm_loss).backward()
    assert len(routers) == 4 and all(p.grad is not None for p in routers)


def test_a_router_loss_needs_experts(parts):
    model, processor = tiny.build(parts)
    model.router_loss_weight = 0.3
    with pytest.raises(ValueError, match="LlamaForCausalLM has no experts to balance: set router_loss_weight=0"):
        model(**processor(TEXTS, audio=clips(), answers=ANSWERS))


def test_losses_of_micro_batches_add_up_to_that_of_the_large_batch(compressed):
    model, processor = compressed
    model.ctc_weight = 0.3
    spelled = ["press", "a b c d", "x"]  # the CTC target need not be as long as the answer
    rows = (TEXTS, clips(), ANSWERS, spelled)
    large = processor(TEXTS, audio=clips(), answers=ANSWERS, ctc_targets=spelled)
    items = int((large["labels"] != -100).sum())
    micro = [
        processor(t, audio=c, answers=a, ctc_targets=s) for t, c, a, s in ([x[:1] for x in rows], [x[1:] for x in rows])
    ]
    losses = [model(**batch, num_items_in_batch=items).loss for batch in micro]
    torch.testing.assert_close(sum(losses), model(**large, num_items_in_batch=items).loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(**large).loss, model(**large, num_items_in_batch=items).loss)


@torch.no_grad()
def test_hidden_states_are_those_that_the_labelled_tokens_are_predicted_from(pair):
    model, processor = pair
    batch = processor(TEXTS, audio=clips(), answers=ANSWERS)
    output = model(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == model.language_model.config.num_hidden_layers + 1
    assert {len(layer) for layer in output.hidden_states} == {int((batch["labels"] != -100).sum())}
    head = model.language_model.get_output_embeddings()
    torch.testing.assert_close(head(output.hidden_states[-1][None])[0], output.logits)
    table = model.language_model.get_input_embeddings().weight
    inputs = batch["input_ids"][:, :-1][batch["labels"][:, 1:] != -100]  # the first layer's input is the token before
    torch.testing.assert_close(output.hidden_states[0], table[inputs])
    assert model(**batch).hidden_states is None


def test_ctc_needs_its_head(parts):
    model, processor = tiny.build(parts)
    features = processor.audio_features(clips())
    with pytest.raises(ValueError, match="ctc_vocab_size"):
        model.align(torch.tensor([[5]] * 3), **features)
    with pytest.raises(ValueError, match="ctc_vocab_size"):
        model.read_ctc(**features)


def test_the_llms_vocabulary_is_never_resized(compressed, parts):
    model, processor = compressed
    config = json.loads((parts / "text" / "config.json").read_text())
    rows = model.language_model.get_input_embeddings().num_embeddings
    assert rows == config["vocab_size"] == len(processor.tokenizer)
    assert model.config.text_config.vocab_size == rows


def test_a_bfloat16_llm_trains_and_answers(parts):
    config = tiny.make_config(parts, **VARIANTS["compressed"])
    model = AudioLMForConditionalGeneration.from_parts(config, dtype=torch.bfloat16, ctc_token_ids=list(range(4, 32)))
    processor = tiny.build(parts)[1]
    loss = model(**processor(TEXTS, audio=clips(), answers=ANSWERS)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.generate(**processor(TEXTS, audio=clips()), max_new_tokens=2).shape[0] == 3


# Files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_saved_model_comes_back_equal(parts, tmp_path, variant):
    model, processor = tiny.build(parts, seed=7, **VARIANTS[variant])
    model.save_pretrained(tmp_path)
    batch = processor(TEXTS, audio=clips(), answers=ANSWERS)
    torch.manual_seed(123)  # a fresh connector would be another one
    for loaded in (
        AudioLMForConditionalGeneration.from_pretrained(tmp_path),
        AutoModel.from_pretrained(tmp_path),
    ):
        assert isinstance(loaded, AudioLMForConditionalGeneration)
        assert not loaded.training
        assert torch.equal(loaded(**batch).loss, model(**batch).loss)
        theirs = loaded.state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items())


def test_a_save_that_does_not_fit_leaves_what_was_saved_before(parts, tmp_path):
    tiny.build(parts, seed=7)[0].save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=rf"model\.safetensors needs more than .* free in {tmp_path}\."):
            tiny.build(parts, seed=8, **tiny.WITH_CTC)[0].save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_file_holds_connector_and_adapters_only(parts, tmp_path):
    model, _ = tiny.build(parts, **tiny.COMPRESSED, lora=tiny.LORA, speech_lora=tiny.LORA)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    keys = load_file(tmp_path / "model.safetensors").keys()
    assert {k for k in keys if k.startswith(("speech_encoder.", "language_model.")) and "lora_" not in k} == set()
    assert Counter(k.split(".")[0] for k in keys if "lora_" in k) == {
        "speech_encoder": 8,
        "language_model": 8,
    }
    assert keys == model.own_state_dict().keys()


def test_half_precision_files_load_as_float32(compressed, tmp_path):
    model, _ = compressed
    model.save_pretrained(tmp_path, dtype=torch.float16)
    saved = load_file(tmp_path / "model.safetensors")
    assert {v.dtype for v in saved.values()} == {torch.float16, torch.int64}
    loaded = AudioLMForConditionalGeneration.from_pretrained(tmp_path).own_state_dict()
    for name, value in model.own_state_dict().items():
        assert loaded[name].dtype == value.dtype
        torch.testing.assert_close(loaded[name], value, atol=1e-3, rtol=1e-3)


def test_weights_that_do_not_fit_are_refused_and_listed(compressed, tmp_path):
    model, _ = compressed
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    del state["projector.norm.weight"]
    state["projector.stranger"] = torch.zeros(2)
    state["ctc.bias"] = torch.zeros(5)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError) as refusal:
        AudioLMForConditionalGeneration.from_pretrained(tmp_path)
    for part in (str(path), "'projector.norm.weight'", "'projector.stranger'", "ctc.bias: (5,)", "(29,)"):
        assert part in str(refusal.value)
    with pytest.raises(ValueError, match="does not fit"):
        model.load_own_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_each_misfit_alone_is_refused(compressed, change):
    model, _ = compressed
    state = dict(model.own_state_dict())
    if change == "missing":
        del state["ctc.blank"]
    elif change == "unexpected":
        state["language_model.lm_head.weight"] = torch.zeros(1)
    else:
        state["ctc.blank"] = torch.zeros(1, 32)
    with pytest.raises(ValueError, match="does not fit"):
        model.load_own_state_dict(state)


def test_a_folder_without_weights_is_refused(compressed, tmp_path):
    compressed[0].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AudioLMForConditionalGeneration.from_pretrained(tmp_path)


def test_from_parts_starts_from_the_checkpoints(compressed, parts):
    model, _ = compressed
    own = load_file(parts / "text" / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model.language_model.model.norm.weight, own)
    assert model.config.speech_config.d_model == 32
    assert model.config.text_config.vocab_size == 260
    assert model.config.text_config.name_or_path == model.config.text_model


def test_a_model_of_a_configuration_alone_is_frozen_too(compressed):
    model = AudioLMForConditionalGeneration(compressed[0].config)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {n for n, p in compressed[0].named_parameters() if p.requires_grad}
    assert model.state_dict().keys() == compressed[0].state_dict().keys()
