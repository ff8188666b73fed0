"""Recipes as tasks of Ray: what they ask for, and two machines of which one dies, against one process.

Run as a module in a folder that `prepare` made, it is the command: in this process, or on the cluster at an address.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from audiolm_utils.study import cluster, public_corpus
from audiolm_utils.study.full_size import EXPERIMENT
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.results import result_path
from audiolm_utils.study.run import run_or_load
from tests import tiny

NAMES = ("tiny-0", "tiny-1")
STEPS, SAVED = 100, 10
QUIET = {"use_cpu": True, "disable_tqdm": True, "save_steps": SAVED, "save_total_limit": STEPS, "logging_steps": SAVED}
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
TIMES = {"created", "minutes"}  # what differs from one run to the next


def recipe(seed: int) -> Recipe:
    """A tiny model on the tiny public sets, in one stage; its parts are looked for in the command's folder."""
    stage = Stage("stage1", "lm", STEPS, ("projector", "lora"), batch_size=2, from_audio=True, prompt_repeats=1)
    settings = {"scale": "full", "seed": seed, "lora": tiny.LORA, "compress": False, "ctc_head": False}
    return tiny.make_recipe(Path("parts"), NAMES[seed], stages=(stage,), **settings)


def run(one: Recipe) -> dict:
    """[`run_or_load`] without times and memory, which take longest and are never the same."""
    public_corpus.measure_efficiency = lambda *_: {}
    return run_or_load(one, **QUIET)


def prepare(folder: Path, repository: Path) -> Path:
    """Write tiny models, clips and annotations, and a repository of our code whose results are its own."""
    tiny.write_speech_model(folder / "parts" / "speech")
    tiny.write_text_model(folder / "parts" / "text")
    tiny.write_public_sets(folder / "public")
    for captions in ("sounds/train.json", "sounds/test.json"):  # their scores need tools
        (folder / "public" / captions).unlink()
    warned_of = result_path(EXPERIMENT).relative_to(repository)  # how long a full recipe takes without a GPU
    (folder / "repository" / warned_of).parent.mkdir(parents=True)
    shared = [
        f"data/{path.name}" for path in (repository / "data").iterdir() if path.name not in ("results", "adapters")
    ]
    for name in ("audiolm_utils", "tests", warned_of, *shared):
        (folder / "repository" / name).symlink_to(repository / name)
    return folder


def environment(folder: Path) -> dict[str, str]:
    ours = {"AUDIOLM_CACHE": folder / "cache", "AUDIOLM_DATA_ROOT": folder / "public"}
    ours |= {"PYTHONPATH": folder / "repository", "OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1}
    return {**os.environ, **{name: str(value) for name, value in ours.items()}, "RAY_USAGE_STATS_ENABLED": "0"}


def start(folder: Path, *address: str) -> subprocess.Popen:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "tests.study.test_cluster", str(folder), *address]
    return subprocess.Popen(command, env=environment(folder), cwd=folder, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-4000:]


def timeless(value):
    """A row without what no two runs have in common."""
    if isinstance(value, dict):
        return {name: timeless(part) for name, part in value.items() if name not in TIMES}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def saved(folder: Path, name: str = "*") -> dict[Path, int]:
    """When each checkpoint of a recipe, or of all, was written, in ns."""
    states = folder.glob(f"cache/runs/{name}-*/0-stage1/checkpoint-*/trainer_state.json")
    return {path: path.stat().st_mtime_ns for path in states}


def running_on(machine) -> str | None:
    """Which recipe a machine is at, by the titles that Ray gives its processes."""
    raylet = psutil.Process(machine.all_processes["raylet"][0].process.pid)
    titles = " ".join(part for child in raylet.children() for part in child.cmdline())
    return next((name for name in NAMES if f"ray::{name}" in titles), None)


@pytest.mark.slow
def test_two_machines_of_which_one_dies_give_what_one_process_gives(tmp_path, repository, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[cluster]'")
    from ray.cluster_utils import Cluster

    alone, together = (prepare(tmp_path / name, repository) for name in ("alone", "together"))
    reference = start(alone)
    for name, value in environment(together).items():
        monkeypatch.setenv(name, value)
    sessions = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets have short paths
    monkeypatch.setenv("RAY_TMPDIR", sessions)
    machine = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    head = {**machine, "_system_config": QUICK, "include_dashboard": False}
    machines = Cluster(initialize_head=True, head_node_args=head)
    try:
        mortal = machines.add_node(**machine)
        machines.wait_for_nodes()
        command = start(together, machines.address)
        deadline = time.monotonic() + 120
        while not saved(together, killed := running_on(mortal) or "none yet"):
            assert command.poll() is None and time.monotonic() < deadline, "nothing is trained on the second machine"
            time.sleep(0.02)
        machines.remove_node(mortal, allow_graceful=False)
        before = saved(together, killed)
        finished = list(together.glob(f"cache/runs/{killed}-*/0-stage1/stage.json"))
        for process in (command, reference):
            finish(process)
    finally:
        reference.kill()
        machines.shutdown()
        shutil.rmtree(sessions, ignore_errors=True)
    assert finished == [], "the machine died too late to be in the middle"
    after = saved(together, killed)
    assert len(after) == STEPS // SAVED and before.items() <= after.items()  # it went on, and did not start over
    for name in NAMES:
        data = [folder / "repository" / "data" for folder in (alone, together)]
        rows = [json.loads((place / "results" / "full" / f"{name}.json").read_text(encoding="utf-8")) for place in data]
        assert timeless(rows[0]) == timeless(rows[1]) and len(rows[0]["training"]["stages"][0]["loss_curve"]) == 10
        for file in (f"results/full/{name}.samples.jsonl", f"adapters/{name}/model.safetensors"):
            assert (data[0] / file).read_bytes() == (data[1] / file).read_bytes(), file
    printed = json.loads((together / "printed.json").read_text())
    assert [row["recipe"] for row in printed] == list(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "kind", "said"),
    [
        (("builtins:int", ("x",), {}), "ValueError", "invalid literal for int"),
        (("os:_exit", (1,), {}), "WorkerCrashedError", "worker died unexpectedly"),
    ],
    ids=["error", "death"],
)
def test_what_one_call_raises_comes_after_the_rows_of_the_others(monkeypatch, empty_cache, bad, kind, said):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[cluster]'")
    sessions = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", sessions)
    monkeypatch.setattr(cluster, "RETRIES", 1)
    rows = cluster.run_on_ray({"bad": bad, "good": ("builtins:dict", (), {"a": 1})}, "local")
    assert next(rows) == {"a": 1}
    with pytest.raises(Exception, match=said) as raised:
        next(rows)
    assert type(raised.value).__name__ == kind
    assert not list(empty_cache.glob(".shared-*"))
    shutil.rmtree(sessions, ignore_errors=True)


CPU, GPUS = {"CPU": 16.0, "memory": 1e9}, {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("name", "machines", "asked"),
    [
        ("full-base", [CPU, GPUS], {"num_gpus": 1, "num_cpus": 8}),
        ("full-base", [CPU, {"CPU": 4.0}], {"num_cpus": 4}),
        ("pocket-quick", [CPU, GPUS, {"memory": 1e9}], {"num_cpus": 16}),
        ("encoders", [GPUS], {"num_cpus": 64}),
    ],
)
def test_a_task_asks_for_a_machine_or_for_a_gpu(name, machines, asked):
    assert cluster.demand(name, machines) == asked


def test_an_address_where_nothing_listens_is_named_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        cluster.check_reachable(address)
    with pytest.raises(ConnectionError, match=f"no Ray cluster is reached at {address} .*ray start --head"):
        cluster.check_reachable(address)
    for other in ("auto", "local", "ray://nowhere:1"):
        cluster.check_reachable(other)


def test_a_machine_that_does_not_share_the_folders_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    call, here = ("builtins:dict", (), {"a": 1}), Path.cwd()
    marker = tmp_path / "marker"
    with pytest.raises(FileNotFoundError, match=f"does not share .* and {tmp_path}"):
        cluster._call(call, {}, here, cluster.REPOSITORY, marker)
    marker.touch()
    assert cluster._call(call, {}, here, cluster.REPOSITORY, marker) == {"a": 1}
    with pytest.raises(FileNotFoundError, match=f"does not share {tmp_path} and"):
        cluster._call(call, {}, here, tmp_path, marker)


if __name__ == "__main__":
    place, *where = sys.argv[1:]
    recipes = [recipe(seed) for seed in range(len(NAMES))]
    calls = {each.name: ("tests.study.test_cluster:run", (each,), {}) for each in recipes}
    rows = list(cluster.run_on_ray(calls, *where)) if where else [run(each) for each in recipes]
    (Path(place) / "printed.json").write_text(json.dumps(rows))
