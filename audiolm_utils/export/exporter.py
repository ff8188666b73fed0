"""Writing a trained model as a folder that [`Runner`] answers from without PyTorch.

The folder holds encoder.onnx, connector.onnx and llm.onnx, each with its weights in a .data file beside it, the LLM's
embedding table, tokenizer.json, config.json and, where the model is given hints, what they come from. config.json is
written last: a folder without it is not whole.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.evaluation.evaluate import ANSWER_TOKENS, OTHER_TOKENS
from audiolm_utils.export.features import SAMPLE_RATE
from audiolm_utils.export.graphs import ConnectorGraph, EncoderGraph, LLMGraph
from audiolm_utils.export.runner import CONFIG, EMBEDDINGS, HINT, INSTRUCTION, NEIGHBOURS, QUESTION, TOKENIZER
from audiolm_utils.models.folding import fold_adapters
from audiolm_utils.models.llm import token_table
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.precision import is_int8
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.retrieval import Neighbours

TASKS = ("asr", "audiocaption", "audiocaption_v2", "QA", "phone_recognition", "gender_recognition")
BLOCK_SIZE = 32  # weights that share a scale in 8 bits
EXAMPLE_S = 1.0
ANY = torch.export.Dim.DYNAMIC
Graph: TypeAlias = tuple[nn.Module, dict[str, torch.Tensor], dict[str, Any], list[str]]


@torch.no_grad()
def export_model(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    folder: Path,
    *,
    int8: bool = False,
    ctc_decode_weight: float = 0.0,
    neighbours: Neighbours | None = None,
    hinted: Collection[str] = (),
    agreed: Collection[str] = (),
) -> None:
    """Write a model for devices without PyTorch; its adapters are folded, in place: it cannot be saved then.

    Args:
        model: trained, on a CPU, its weights in floating point.
        folder: made where absent; a model that is there is written over.
        int8: round the weights of matrix products to 8 bits, `BLOCK_SIZE` of them with one scale.
        ctc_decode_weight: of CTC in a transcript's decoding, see [`CTCLogitsProcessor`].
        neighbours: what hints come from, for the tasks `hinted`; and what agrees on answers to the tasks `agreed`.

    Raises:
        ValueError: the model has a legacy projector, weights in 8 or 4 bits, or an encoder that cannot be exported.
    """
    _check(model)
    config = _config(model, processor) | {"precision": "int8" if int8 else "fp32"}
    config |= {"ctc_decode_weight": ctc_decode_weight, "hinted": list(hinted) if neighbours is not None else []}
    config["agreed"] = list(agreed) if neighbours is not None else []
    fold_adapters(model)
    model.prepared = "export_model"
    model.float().eval()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name, what in _graphs(model, processor).items():
            path = folder / f"{name}.onnx"
            path.with_suffix(".onnx.data").unlink(missing_ok=True)  # the one that is written may not begin behind it
            write_graph(what, Path(place) / path.name if int8 else path)
            if int8:
                write_in_8_bits(Path(place) / path.name, path)
    table = token_table(model.language_model)[:].detach().numpy()
    np.save(folder / EMBEDDINGS, table.astype(np.float16 if int8 else np.float32))
    processor.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    if neighbours is not None:
        arrays: dict[str, Any] = {**neighbours.arrays(), "texts": np.array(neighbours.texts)}
        np.savez(folder / NEIGHBOURS, **arrays)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(model: AudioLMForConditionalGeneration) -> None:
    if model.config.projector_config.legacy:
        raise ValueError("a legacy projector is not exported: train with a projector whose legacy is False")
    if model.config.llm_precision not in ("fp32", "fp16", "bf16") or is_int8(model):
        raise ValueError(
            "the model's weights are in 8 or 4 bits already: export one whose llm_precision and encoder_precision are "
            "'fp32', with int8 for 8 bits on the device"
        )


def _graphs(model: AudioLMForConditionalGeneration, processor: AudioLMProcessor) -> dict[str, Graph]:
    """What [`write_graph`] takes, by name."""
    heard = processor.audio_features([np.ones(round(EXAMPLE_S * SAMPLE_RATE), np.float32)])
    features, lengths = model.encode(**heard)
    width = model.config.projector_config.window_frames
    if model.config.retrieval_layer is not None:
        features = features[..., : model.speech_encoder.hidden_size].contiguous()  # all that the connector sees
    windows = features[0, : len(features[0]) // width * width].unflatten(0, (-1, width))
    sound = {"input_features": heard["input_features"], "frames": torch.arange(int(lengths[0]))}
    vary: dict[str, Any] = {"input_features": None if model.config.pad_to_30s else {2: ANY}, "frames": {0: ANY}}
    if "fbank" in heard:
        sound["fbank"], vary["fbank"] = heard["fbank"], {1: ANY}
    outputs = ["inputs", "log_probs"] if model.ctc is not None else ["inputs"]
    llm = model.language_model.config
    head = getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads
    past = torch.zeros(llm.num_hidden_layers, llm.num_key_value_heads, 3, head)
    prompt = {"inputs_embeds": torch.zeros(1, 5, llm.hidden_size), "past_keys": past, "past_values": past.clone()}
    cached = {"inputs_embeds": {1: ANY}, "past_keys": {2: "past"}, "past_values": {2: "past"}}
    return {
        "encoder": (EncoderGraph(model), sound, vary, ["features"]),
        "connector": (
            ConnectorGraph(model),
            {"windows": windows, "frames": torch.tensor([len(windows) * width])},
            {"windows": {0: ANY}, "frames": None},
            outputs,
        ),
        "llm": (LLMGraph(model), prompt, cached, ["logits", "keys", "values"]),
    }


def write_graph(graph: Graph, path: Path) -> None:
    """Write a module as an ONNX file with its weights in a .data file beside it.

    Args:
        graph: the module; examples of its inputs, by name; which of their dimensions vary, as `torch.export` has it;
            names of its outputs.
    """
    module, arguments, dynamic, outputs = graph
    with _quietly():
        program = torch.onnx.export(
            module.eval(),
            kwargs=arguments,
            dynamic_shapes=dynamic,
            input_names=list(arguments),
            output_names=outputs,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the source it stands, with the paths of this machine
    program.save(path, external_data=True)


def write_in_8_bits(source: Path, target: Path) -> None:
    """Round the matrices of an ONNX file's products to 8 bits, `BLOCK_SIZE` inputs with one scale, in another file."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    how = DefaultWeightOnlyQuantConfig(block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=4, bits=8)
    with _quietly():
        quantizer = MatMulNBitsQuantizer(str(source), algo_config=how)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), use_external_data_format=True)


def _config(model: AudioLMForConditionalGeneration, processor: AudioLMProcessor) -> dict[str, Any]:
    """What the runner is to know beside the graphs."""
    end = model.language_model.generation_config.eos_token_id
    return {
        "mel_bins": processor.feature_extractor.feature_size,
        "pad_to_30s": processor.pad_to_30s,
        "fbank": processor.audio_frontend,
        "compress": model.config.compress,
        "chat": processor.prompt(INSTRUCTION, 1),
        "audio_token": processor.audio_token,
        "audio_token_id": processor.audio_token_id,
        "end_ids": list(end) if isinstance(end, list | tuple) else [end],
        "ctc_token_ids": None if model.ctc is None else model.ctc.token_ids.tolist(),
        "tasks": {task: _task(task) for task in TASKS},
    }


def _task(task: str) -> dict[str, Any]:
    """A task's prompt, the same with a hint, and the most tokens of an answer, fixed and for each second of audio."""
    item = AudioItem(id=task, path=task, text="?", task=task, Q=QUESTION)
    told = AudioItem(id=task, path=task, text="?", task=task, Q=QUESTION, hint=HINT)
    fixed, per_second = ANSWER_TOKENS.get(task, OTHER_TOKENS)
    return {"prompt": test_prompt(item), "hinted": test_prompt(told), "tokens": [fixed, per_second]}


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the exporters say of packages and of torch's own future to themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
