"""The command line: `audiolm COMMAND`, or `python -m audiolm_utils COMMAND` without the script."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from audiolm_utils import __version__
from audiolm_utils.app.complaints import complain, is_expected, show_warning
from audiolm_utils.app.listening import ask, describe, transcribe
from audiolm_utils.app.study_help import EXPERIMENTS, STUDY_HELP

FIGURES_DIR = Path(__file__).resolve().parents[2] / "figures"
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def weights(args: argparse.Namespace) -> int:
    """Fetch and convert the pocket models."""
    module = resolve_name("audiolm_utils.models.weights")
    for name in module.POCKET:
        print(f"pocket:{name}  {module.resolve(f'pocket:{name}')}", flush=True)
    return 0


def data(args: argparse.Namespace) -> int:
    """Prepare the pocket corpus and the study's two stages, or check an annotation; say what each holds."""
    if args.plan:
        print(resolve_name("audiolm_utils.study.plan:plan")())
        return 0
    if args.check:
        annotations = "audiolm_utils.data.annotation_table"
        table = resolve_name(f"{annotations}:read_annotation_table")(args.check)
        resolve_name(f"{annotations}:check_files")(table, args.root or args.check.parent)
        print(f"{len(table)} rows are sound and have their files")
        print(table.to_pandas().value_counts(["task", "split"]).sort_index().to_string())
        return 0
    corpus, read_stage = "audiolm_utils.data.corpus", resolve_name("audiolm_utils.data.stages:read_stage")
    manifests = {"base": resolve_name(f"{corpus}:read_pocket_manifest")()}
    manifests |= {stage: read_stage(stage) for stage in ("stage1", "stage2")}
    wanted = [item for items in manifests.values() for item in items]
    present = {item.path for item in resolve_name(f"{corpus}:prepare_corpus")(wanted, tts_limit=args.tts_limit)}
    clips: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for name, items in manifests.items():
        for item in items:
            if item.path in present:
                clips[name, item.task][item.split] += 1
                seconds[name, item.task] += item.duration_s or 0.0
    print(f"{'manifest':<10}{'task':<20}{'train':>8}{'validation':>12}{'test':>8}{'hours':>8}")
    for (name, task), row in clips.items():
        counts = f"{row['train']:>8}{row['validation']:>12}{row['test']:>8}"
        print(f"{name:<10}{task:<20}{counts}{seconds[name, task] / 3600:>8.2f}")
    return 0


def study(args: argparse.Namespace) -> int:
    """Train and measure recipes and experiments, or load the results that already match."""
    names = args.recipe or [*resolve_name("audiolm_utils.study.pocket_recipes:RECIPES"), *EXPERIMENTS]
    resolve_name("audiolm_utils.study.run:check_names")([name for name in names if name not in EXPERIMENTS])
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and (alone := [name for name in names if name in EXPERIMENTS]):
        raise ValueError(
            f"{', '.join(alone)} run in one process, and {processes} were launched: start them without torchrun or "
            "accelerate. A recipe that is named may have several"
        )
    if processes > 1 and args.ray:
        raise ValueError(f"--ray starts processes itself, and {processes} were launched: leave out one of the two")
    options: dict[str, Any] = {"fresh": args.fresh}
    reporting = options | ({"report_to": args.report_to} if args.report_to else {})
    run = "audiolm_utils.study.run:run_or_load"
    calls = {n: (EXPERIMENTS[n], (), options) if n in EXPERIMENTS else (run, (n,), reporting) for n in names}
    if args.ray:
        rows = resolve_name("audiolm_utils.study.cluster:run_on_ray")(calls, args.ray)
    else:
        rows = (resolve_name(function)(*which, **how) for function, which, how in calls.values())
    for row in rows:
        if os.environ.get("RANK", "0") == "0":
            print_row(row)
    return 0


def train(args: argparse.Namespace) -> int:
    """Train and measure one recipe, or load its result: `study` of one name."""
    args.recipe, args.ray = [args.recipe], None
    return study(args)


def evaluate(args: argparse.Namespace) -> int:
    """Measure the trained model of a recipe again, without training it."""
    print_row(resolve_name("audiolm_utils.study.run:evaluate_recipe")(args.recipe))
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a trained model as ONNX files, for devices without PyTorch."""
    resolve_name("audiolm_utils.study.on_device:export_recipe")(args.recipe, args.folder, int8=args.int8)
    print(args.folder)
    return 0


def bench(args: argparse.Namespace) -> int:
    """Print the performance tables, measured now (full size: once, then loaded); fail where a ratio got worse."""
    print(resolve_name("audiolm_utils.study.bench:benchmark")(fresh=args.fresh), flush=True)
    ratios, slower = resolve_name("audiolm_utils.study.speed_held:hold_speed")(accept=args.accept)
    print(f"\n{ratios}", flush=True)
    for line in slower:
        print(f"audiolm: slower: {line}", file=sys.stderr)
    return 1 if slower else 0


def figures(args: argparse.Namespace) -> int:
    """Regenerate every figure."""
    for path in resolve_name("audiolm_utils.figures:generate_all")(args.out):
        print(path)
    return 0


def results(args: argparse.Namespace) -> int:
    """Print the table of measured results."""
    print(resolve_name("audiolm_utils.study.results:results_table")().to_string(index=False))
    return 0


def demo(args: argparse.Namespace) -> int:
    """Serve the web demo, to this machine alone unless asked."""
    resolve_name("audiolm_utils.app.demo:launch")(args.host, args.port)
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Say what this machine has, and what each missing thing costs."""
    checks = resolve_name("audiolm_utils.app.doctor:examine")()
    for check in checks:
        print(check)
    return 1 if any(check.required and not check.ok for check in checks) else 0


def print_row(row: dict[str, Any]) -> None:
    """Print one result row as indented JSON."""
    print(json.dumps(row, indent=2, ensure_ascii=False), flush=True)


def positive_int(text: str) -> int:
    """Parse an integer of at least 1; raises `argparse.ArgumentTypeError` naming anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; each sub-command carries its function as `run`."""
    parser = argparse.ArgumentParser(prog="audiolm", description="Small, fast audio language models.")
    parser.add_argument("--version", action="version", version=f"audiolm {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the trace of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], int], *others: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__, parents=[shared, *others])
        sub.set_defaults(run=run)
        return sub

    command(weights)
    sub = command(data)
    sub.add_argument(
        "--tts-limit",
        type=positive_int,
        metavar="N",
        help="render only the first N synthetic training clips, and what needs no more than these",
    )
    sub.add_argument("--check", type=Path, metavar="FILE", help="an annotation JSON or a manifest to check instead")
    sub.add_argument("--root", type=Path, help="folder that its paths start from (default: that of FILE)")
    sub.add_argument("--plan", action="store_true", help="print instead what training on the study's full data needs")
    rooted = argparse.ArgumentParser(add_help=False)
    rooted.add_argument("--data-root", type=Path, metavar="DIR", help="public sets (default: $AUDIOLM_DATA_ROOT)")
    watched = argparse.ArgumentParser(add_help=False)
    watched.add_argument("--fresh", action="store_true", help="train again though a matching result exists")
    watched.add_argument(
        "--report-to", metavar="NAME", help="tensorboard, wandb, ... (transformers' names): loss curves"
    )
    sub = command(study, rooted, watched)
    sub.add_argument(
        "--ray", metavar="ADDRESS", help="each as a task on a Ray cluster: HOST:PORT, auto, or local to start one here"
    )
    sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, STUDY_HELP
    sub.add_argument("recipe", nargs="*", help=f"recipes, or {', '.join(EXPERIMENTS)}; without any all but full ones")
    command(train, rooted, watched).add_argument("recipe", help="name of the recipe")
    sub = command(evaluate, rooted)
    sub.add_argument("recipe", help="name of the recipe")
    heard = argparse.ArgumentParser(add_help=False)
    by = heard.add_mutually_exclusive_group()
    by.add_argument("--recipe", help="recipe whose trained model listens; the shipped one without")
    by.add_argument("--onnx", type=Path, metavar="DIR", help="exported model that listens, without PyTorch")
    heard.add_argument("--precision", choices=("fp32", "int8"), help="of its weights (default: fp32)")
    for run in (transcribe, describe, ask):
        sub = command(run, heard)
        if run is ask:
            sub.add_argument("question", help="asked about every file")
        sub.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio of at most 30 s, or a folder of it")
    sub = command(export)
    sub.add_argument("recipe", help="recipe whose trained model is written")
    sub.add_argument("folder", type=Path, help="made where absent; then `audiolm transcribe --onnx FOLDER FILE...`")
    sub.add_argument("--int8", action="store_true", help="matrices in 8 bits")
    sub = command(bench)
    sub.add_argument("--fresh", action="store_true", help="measure the rows at full size again: 12 minutes")
    sub.add_argument("--accept", action="store_true", help="write the ratios as those that such a machine has to hold")
    sub = command(figures)
    sub.add_argument("--out", type=Path, default=FIGURES_DIR, help="folder (default: figures/)")
    command(results)
    sub = command(demo)
    sub.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in")
    sub.add_argument("--port", type=positive_int, default=7860, help="(default: 7860)")
    command(doctor)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 1 after an error; wrong usage exits with 2."""
    args = build_parser().parse_args(argv)
    if getattr(args, "data_root", None) is not None:
        os.environ["AUDIOLM_DATA_ROOT"] = str(args.data_root)
    with warnings.catch_warnings():
        warnings.showwarning = show_warning  # type: ignore[assignment]
        try:
            return args.run(args)
        except BrokenPipeError:  # the reader went away, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            print("audiolm: interrupted; the same command resumes", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            if not is_expected(error):
                raise
            if args.debug:
                traceback.print_exc()
            complain(error)
            return 1
