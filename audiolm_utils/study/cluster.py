"""Recipes and experiments of the study as tasks of Ray (optional extra `cluster`), each whole on one machine.

Every machine needs this repository and the cache (AUDIOLM_CACHE) as the same shared folders at the same paths: rows,
models, features and checkpoints are files there. That is also how a task goes on when its machine dies: Ray starts it
on another, where it resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from tempfile import NamedTemporaryFile
from typing import Any

from audiolm_utils.data.cache import cache_dir
from audiolm_utils.study.results import REPOSITORY
from audiolm_utils.study.run import KNOWN_RECIPES

PATIENCE_S = 10
RETRIES = 5  # after deaths of a machine or a process; an error of the task's own is not tried again
Call = tuple[str, tuple[Any, ...], dict[str, Any]]  # a function as "module:name", its arguments and keyword arguments

logger = logging.getLogger(__name__)


def run_on_ray(calls: Mapping[str, Call], address: str) -> Iterator[dict[str, Any]]:
    """Make calls by name on a cluster of Ray, one on a machine at a time; yield their rows in the order of the calls.

    Args:
        calls: by the name of the recipe or experiment; each gives a row.
        address: HOST:PORT of a cluster, "auto" for that which this machine is part of, or "local" to start one here.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: there is no cluster at the address.
        FileNotFoundError: a machine does not share the repository and the cache.
        Exception: what a call raised first, after all others are done.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    import ray

    check_reachable(address)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AUDIOLM_")}
    environment["AUDIOLM_CACHE"] = str(cache_dir())
    ray.init(address)
    try:
        with NamedTemporaryFile(prefix=".shared-", dir=cache_dir()) as marker:
            place = ray.remote(max_retries=RETRIES)(_call)
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            tasks = {
                name: place.options(name=name, **demand(name, machines)).remote(
                    call, environment, Path.cwd(), REPOSITORY, Path(marker.name)
                )
                for name, call in calls.items()
            }
            failed: list[Exception] = []
            for name, task in tasks.items():
                try:
                    yield ray.get(task)
                except ray.exceptions.RayError as error:  # of the call, or of a node too many that went
                    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                    logger.error("%s failed: %s", name, cause)
                    failed.append(cause)
            if failed:
                raise failed[0]
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Raise `ConnectionError` where nothing listens at HOST:PORT: Ray itself would try for a quarter of an hour."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
        except OSError as error:
            raise ConnectionError(
                f"no Ray cluster is reached at {address} ({error}): start one by `ray start --head`, which names its "
                "address, or give local"
            ) from error


def demand(name: str, machines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a task asks for: a GPU and its share of the cores for a full recipe where there are GPUs, else all cores.

    Any of the machines (their resources, as Ray names them) can give it, and of like ones none has two tasks, which
    would disturb each other's times; a machine with several GPUs has one for each.
    """
    recipe = KNOWN_RECIPES.get(name)
    with_gpu = [machine for machine in machines if machine.get("GPU")]
    if recipe and recipe.scale == "full" and with_gpu:
        return {"num_gpus": 1, "num_cpus": min(machine["CPU"] // machine["GPU"] for machine in with_gpu)}
    return {"num_cpus": min(machine["CPU"] for machine in machines if machine.get("CPU"))}


def _call(call: Call, environment: Mapping[str, str], folder: Path, repository: Path, marker: Path) -> dict[str, Any]:
    """The task itself, wherever Ray puts it: in the folder and with the settings of the command."""
    os.environ.update(environment)
    os.chdir(folder)
    if repository != REPOSITORY or not marker.exists():
        raise FileNotFoundError(
            f"the machine {os.uname().nodename} runs {REPOSITORY} and does not share {repository} and {marker.parent}: "
            "let it have both folders at the same paths, as one shared disk"
        )
    function, arguments, options = call
    return resolve_name(function)(*arguments, **options)
