"""The index of many arrays costs no more memory and time than that of a few; see test_features for what it holds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audiolm_utils.training.features import FeatureCache

READER = """
import sys, time
from audiolm_utils.training.features import FeatureCache

def peak_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before, start = peak_kib(), time.perf_counter()
cache = FeatureCache(sys.argv[1], "0123abcd")
opened = time.perf_counter() - start
clips = int(sys.argv[2])
assert len(cache) == clips and f"clip{clips}" not in cache
for n in range(0, clips, clips // 100):
    assert cache[f"clip{n}"].tolist() == [[n % 1000] * 4] * 2
print(peak_kib() - before, opened)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is read from Linux' /proc")
def test_memory_and_time_to_open_do_not_grow_with_the_clips(tmp_path):
    """Of a process that opens a cache and reads 100 of its clips: all index lines held were 28 MiB more, and 1 s."""
    peak_kib, opened_s = {}, {}
    for clips in (1_000, 100_000):
        cache = FeatureCache(tmp_path / str(clips), "0123abcd")
        for n in range(clips):
            cache.add(f"clip{n}", np.full((2, 4), n % 1000, np.float16))
        cache.flush()
        command = [sys.executable, "-c", READER, str(tmp_path / str(clips)), str(clips)]
        run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
        peak_kib[clips], opened_s[clips] = map(float, run.stdout.split())
    assert peak_kib[100_000] - peak_kib[1_000] < 2 * 1024, peak_kib
    assert opened_s[100_000] < 0.2, opened_s
