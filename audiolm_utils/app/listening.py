"""The commands that listen: transcribe, describe, ask."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from pathlib import Path
from pkgutil import resolve_name

from audiolm_utils.app.complaints import complain

MAX_CLIP_S = 30.0


def transcribe(args: argparse.Namespace) -> int:
    """Write down what is said in audio files: one JSON object a line; a bad file is named and skipped."""
    return listen(args, "asr")


def describe(args: argparse.Namespace) -> int:
    """Write a caption of each audio file: one JSON object a line; a bad file is named and skipped."""
    return listen(args, "audiocaption")


def ask(args: argparse.Namespace) -> int:
    """Answer a question about each audio file: one JSON object a line; a bad file is named and skipped."""
    return listen(args, "QA", args.question)


def listen(args: argparse.Namespace, task: str, question: str | None = None) -> int:
    """Print a line a file, `{"file": ..., "answer": ...}`; 1 where a file could not be answered."""
    load_audio, tqdm = resolve_name("audiolm_utils.data.audio:load_audio"), resolve_name("tqdm:tqdm")
    files = [file for path in args.files for file in audio_files(path)]
    if args.onnx:
        if args.precision:
            raise ValueError("--precision is for recipes: an exported model has that of `audiolm export`; leave it out")
        listener = resolve_name("audiolm_utils.export.runner:Runner")(args.onnx)
    else:
        chosen = {"recipe": args.recipe, "precision": args.precision}
        make = resolve_name("audiolm_utils.study.listener:Listener")
        listener = make(**{name: value for name, value in chosen.items() if value})
    failed = 0
    for path in tqdm(files, unit="file", disable=len(files) < 2 or not sys.stderr.isatty()):
        try:
            row = listener(load_audio(path, max_duration_s=MAX_CLIP_S), task, question)
        except (ValueError, OSError) as error:
            if args.debug:
                traceback.print_exc()
            failed += 1
            complain(error)
        else:
            line = json.dumps({"file": str(path), **row}, ensure_ascii=False)
            print(line.encode(errors="backslashreplace").decode(), flush=True)  # a name need not be UTF-8
    if failed:
        print(f"audiolm: {failed} of {len(files)} files have no answer", file=sys.stderr)
    return 1 if failed else 0


def audio_files(path: Path) -> list[Path]:
    """The file itself, or a folder's audio files at any depth, in order; raises ValueError for a folder without any."""
    if not os.path.isdir(path):  # False, too, where it may not be looked at: its reader says why
        return [path]
    suffixes = resolve_name("audiolm_utils.data.audio:SUFFIXES")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and os.path.isfile(file))
    if not found:
        raise ValueError(f"{path} holds no audio: expected files ending in {', '.join(suffixes)}")
    return found
