"""The configuration: a whole round trip, and nothing silently accepted."""

import json

import pytest
from transformers import AutoConfig, LlamaConfig, WhisperConfig

from audiolm_utils.models.configuration import AudioLMConfig
from audiolm_utils.models.projector import ProjectorConfig
from tests import tiny


def test_it_comes_back_from_disk_as_it_was(tmp_path):
    config = AudioLMConfig(
        speech_model="pocket:whisper-tiny.en",
        text_model="pocket:smollm2-135m-instruct",
        speech_config=WhisperConfig(d_model=48, encoder_layers=3),
        text_config=LlamaConfig(hidden_size=40, num_attention_heads=4),
        projector=tiny.QFORMER,
        audio_token_id=3,
        pad_to_30s=True,
        ctc_vocab_size=28,
        compress=True,
        lora=tiny.LORA,
        speech_lora={"r": 1, "target_modules": ["fc1"]},
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, AudioLMConfig)
    assert isinstance(again.speech_config, WhisperConfig)
    assert isinstance(again.text_config, LlamaConfig)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert (again.speech_config.d_model, again.text_config.hidden_size) == (48, 40)
    assert again.projector_config == ProjectorConfig(**tiny.QFORMER)
    assert again.lora == tiny.LORA


def test_another_llms_type_is_kept():
    config = AudioLMConfig(text_config={"model_type": "qwen2", "hidden_size": 64})
    assert config.text_config.model_type == "qwen2"
    assert config.text_config.hidden_size == 64


def test_the_file_spells_out_every_projector_field(tmp_path):
    AudioLMConfig(projector={"kind": "mlp"}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["projector"] == ProjectorConfig(kind="mlp").to_dict()


def test_an_unknown_projector_field_is_refused():
    with pytest.raises(TypeError, match="window_seconds"):
        AudioLMConfig(projector={"window_seconds": 0.33})


def test_compression_without_a_ctc_head_is_refused():
    with pytest.raises(ValueError, match="ctc_vocab_size"):
        AudioLMConfig(compress=True)


def test_clips_are_looked_up_by_a_middle_layer_or_by_an_audio_encoder():
    assert AudioLMConfig(retrieval_layer=2).retrieval_layer == 2
    for heard in ({"audio_model": "pocket:beats-mini"}, {"audio_config": {"model_type": "beats"}}):
        with pytest.raises(ValueError, match="set retrieval_layer=None"):
            AudioLMConfig(retrieval_layer=2, **heard)
