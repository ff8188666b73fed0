"""The feature cache: exact round trips, and never a wrong array whatever was cut, flipped or raced."""

import json
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.training import feature_index
from audiolm_utils.training.features import FeatureCache, StaleFeature, module_hash

HASH = "0123abcd"
DIM = 4
FILES = ["features.f16", "index.jsonl", "index.table"]


@pytest.fixture(scope="module", autouse=True, params=[None, 2], ids=["lines held", "lines in a table"])
def table_lines(request):
    """Everything holds whether the index is held in memory, as a small one is, or searched on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            patch.setattr(feature_index, "TABLE_ARRAYS", request.param)
        yield request.param


def features(seed: int, frames: int = 6, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, dim)).astype(np.float16)


@pytest.fixture
def held(tmp_path):
    """A cache of five arrays of 1 to 5 frames, on the disk, and the arrays."""
    return tmp_path, write_five(tmp_path)


def write_five(folder) -> dict[str, np.ndarray]:
    arrays = {f"clip{n}": features(n, frames=n + 1) for n in range(5)}
    cache = FeatureCache(folder, HASH)
    for key, array in arrays.items():
        cache.add(key, array)
        if key in ("clip1", "clip4"):
            cache.flush()  # a table, if there is one, is begun by the first two and extended once
    return arrays


def assert_only_true_arrays(folder, arrays) -> FeatureCache:
    """Whatever the files hold, each array read is the one that was added."""
    cache = FeatureCache(folder, HASH)
    for key in list(cache):
        try:
            read = cache[key]
        except StaleFeature:
            assert key not in cache
        else:
            np.testing.assert_array_equal(read, arrays[key])
    return cache


def assert_heals(folder, arrays) -> None:
    """Adding what is missing makes the cache whole again for whoever opens it next."""
    cache = FeatureCache(folder, HASH)
    cache.verify()
    for key, array in arrays.items():
        if key not in cache:
            cache.add(key, array)
    cache.flush()
    again = FeatureCache(folder, HASH)
    assert not set(again.verify()) & set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(again[key], array)


def test_round_trip_before_and_after_flush_and_reopening(tmp_path):
    cache = FeatureCache(tmp_path, HASH)
    cache.add("a", features(0))
    np.testing.assert_array_equal(cache["a"], features(0))
    cache.flush()
    cache.add("b", torch.from_numpy(features(1, frames=3)))
    assert (len(cache), sorted(cache), "a" in cache, "c" in cache) == (2, ["a", "b"], True, False)
    assert len(FeatureCache(tmp_path, HASH)) == 1, "what was not flushed is not on the disk"
    cache.flush()
    again = FeatureCache(tmp_path, HASH)
    np.testing.assert_array_equal(again["b"], features(1, frames=3))
    assert again["b"].dtype == np.float16 and again.dim == DIM
    with pytest.raises(KeyError, match="c"):
        again["c"]


def test_bytes_on_disk_are_the_arrays_in_order(tmp_path):
    cache = FeatureCache(tmp_path, HASH)
    cache.add("a", np.array([[1.0, 2.0]]))
    cache.add("b", np.array([[3.0, 4.0], [5.0, 6.0]]))
    cache.flush()
    assert np.fromfile(tmp_path / HASH / "features.f16", "<f2").tolist() == [1, 2, 3, 4, 5, 6]
    rows = [json.loads(line) for line in (tmp_path / HASH / "index.jsonl").read_text().splitlines()]
    assert {"format": 1, "encoder_hash": HASH, "dim": 2}.items() <= rows[0].items()
    assert [(row["key"], row["offset"], row["frames"]) for row in rows[1:]] == [("a", 0, 1), ("b", 4, 2)]


def test_what_is_read_or_added_is_a_copy(tmp_path):
    array = features(0)
    cache = FeatureCache(tmp_path, HASH)
    cache.add("a", torch.from_numpy(array))
    array[:] = 0
    cache["a"][:] = 1
    np.testing.assert_array_equal(cache["a"], features(0))
    cache.flush()
    assert cache["a"].flags.writeable  # torch.from_numpy warns of anything else


def test_memory_holds_no_more_than_the_flush_bytes(tmp_path):
    cache = FeatureCache(tmp_path, HASH, flush_bytes=100)
    for n in range(10):
        cache.add(str(n), features(n))  # 48 bytes each: every third fills the buffer
    assert len(FeatureCache(tmp_path, HASH)) == 9


def test_opening_writes_nothing(tmp_path):
    assert len(FeatureCache(tmp_path / "new", HASH)) == 0
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4), r"'k' has shape \(4,\)"),
        (np.zeros((0, 4)), r"'k' has shape \(0, 4\)"),
        (np.zeros((2, 5)), "'k' has dim 5.*have 4"),
        (np.full((2, 4), np.nan), "'k' has NaN"),
        (np.full((2, 4), 7e4), "beyond float16"),
    ],
)
def test_bad_arrays_are_refused_by_key(tmp_path, array, message):
    cache = FeatureCache(tmp_path, HASH)
    cache.add("good", features(0))
    with pytest.raises(ValueError, match=message):
        cache.add("k", array)
    assert list(cache) == ["good"]


def test_a_refused_batch_leaves_no_width(tmp_path):
    cache = FeatureCache(tmp_path, HASH)
    with pytest.raises(ValueError, match="'k' has NaN"):
        cache.add_batch({"wide": features(0, dim=9), "k": np.full((2, 9), np.nan)})
    with pytest.raises(ValueError, match=r"dims \[4, 9\]"):
        cache.add_batch({"wide": features(0, dim=9), "narrow": features(0)})
    cache.add("good", features(0))
    assert list(cache) == ["good"] and cache.dim == DIM


@pytest.mark.parametrize("flush_first", [False, True])
def test_a_key_held_keeps_its_array_and_refuses_another_length(tmp_path, flush_first):
    cache = FeatureCache(tmp_path, HASH)
    cache.add("a", features(0))
    if flush_first:
        cache.flush()
    cache.add("a", features(1))
    np.testing.assert_array_equal(cache["a"], features(0))
    with pytest.raises(ValueError, match="'a' is held with 6 frames and now has 7"):
        cache.add("a", features(0, frames=7))


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hid", "abc"])
def test_a_hash_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="encoder_hash"):
        FeatureCache(tmp_path, name)


# Crashes and damage


def test_another_encoder_sees_nothing(held):
    folder, arrays = held
    other = FeatureCache(folder, "another0")
    assert len(other) == 0
    other.add("clip0", features(9, frames=2, dim=7))  # another width too
    other.flush()
    assert_only_true_arrays(folder, arrays)
    assert len(FeatureCache(folder, HASH)) == 5


def test_a_folder_renamed_to_another_hash_is_not_believed(held):
    folder, _ = held
    (folder / HASH).rename(folder / "another0")
    other = FeatureCache(folder, "another0")
    assert len(other) == 0
    other.add("clip0", features(9, dim=7))
    other.flush()
    again = FeatureCache(folder, "another0")
    np.testing.assert_array_equal(again["clip0"], features(9, dim=7))
    assert len(again) == 1


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(FILES), share=st.floats(0, 1))
def test_cut_anywhere_it_keeps_a_true_prefix_and_heals(tmp_path_factory, name, share):
    folder = tmp_path_factory.mktemp("cut")
    arrays = write_five(folder)
    if not (path := folder / HASH / name).is_file():
        return  # there is a table only where lines are put into one
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    cut = assert_only_true_arrays(folder, arrays)
    assert list(cut) == list(arrays)[: len(cut)]
    assert_heals(folder, arrays)


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(FILES), share=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_any_flipped_bit_gives_no_wrong_array_and_heals(tmp_path_factory, name, share, bit):
    folder = tmp_path_factory.mktemp("flip")
    arrays = write_five(folder)
    if not (path := folder / HASH / name).is_file():
        return
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1 << bit
    path.write_bytes(data)
    assert_only_true_arrays(folder, arrays)
    assert_heals(folder, arrays)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["features.f16", "index.jsonl"]), share=st.floats(0, 1))
def test_cut_anywhere_it_keeps_whole_batches(tmp_path_factory, name, share):
    folder = tmp_path_factory.mktemp("cut")
    cache = FeatureCache(folder, HASH)
    batches = [{f"clip{b}-{n}": features(7 * b + n, frames=n + 1) for n in range(3)} for b in range(3)]
    for batch in batches:
        cache.add_batch(batch)
    cache.flush()
    path = folder / HASH / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert [key for key in FeatureCache(folder, HASH)] in [[k for b in batches[:n] for k in b] for n in range(4)]
    assert_heals(folder, {key: array for batch in batches for key, array in batch.items()})


def test_a_batch_is_flushed_when_it_is_whole(tmp_path):
    cache = FeatureCache(tmp_path, HASH, flush_bytes=100)  # of 48 bytes each
    cache.add_batch({str(n): features(n) for n in range(5)})
    assert len(FeatureCache(tmp_path, HASH)) == 5
    with pytest.raises(ValueError, match="'bad' has shape"):
        cache.add_batch({"good": features(9), "bad": np.zeros(3)})
    assert "good" not in cache


def test_a_flipped_byte_is_found_and_only_its_array_is_lost(held):
    folder, arrays = held
    path = folder / HASH / "features.f16"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40  # the last array
    path.write_bytes(data)
    cache = FeatureCache(folder, HASH)
    with pytest.raises(StaleFeature, match=r"clip4 in .*features\.f16 is damaged"):
        cache["clip4"]
    assert "clip4" not in cache and len(cache) == 4
    assert FeatureCache(folder, HASH).verify() == ["clip4"]
    assert_heals(folder, arrays)


def test_a_damaged_header_is_not_believed(held):
    folder, arrays = held
    index = folder / HASH / "index.jsonl"
    index.write_text(index.read_text().replace(f'"dim": {DIM}', '"dim": 6', 1))
    assert len(FeatureCache(folder, HASH)) == 0
    assert_heals(folder, arrays)


def test_a_line_without_its_end_is_computed_again(held, caplog):
    folder, arrays = held
    index = folder / HASH / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-1])  # whole JSON, but the newline never reached the disk
    assert "clip4" not in FeatureCache(folder, HASH)
    assert "ignored what follows byte" in caplog.text
    assert_heals(folder, arrays)


def test_bytes_without_a_line_are_overwritten(held):
    folder, arrays = held
    with open(folder / HASH / "features.f16", "ab") as file:
        file.write(b"left by a crash")
    cache = FeatureCache(folder, HASH)
    cache.add("new", features(7))
    cache.flush()
    assert_heals(folder, arrays | {"new": features(7)})
    assert (folder / HASH / "features.f16").stat().st_size == 2 * DIM * (1 + 2 + 3 + 4 + 5 + 6)


def test_files_removed_under_an_open_cache(held):
    folder, _ = held
    cache = FeatureCache(folder, HASH)
    for path in (folder / HASH).iterdir():
        path.unlink()
    with pytest.raises(KeyError):
        cache["clip0"]
    cache.add("clip0", features(0, frames=1))
    cache.flush()
    np.testing.assert_array_equal(FeatureCache(folder, HASH)["clip0"], features(0, frames=1))


def test_a_full_disk_loses_nothing(held):
    folder, arrays = held
    cache = FeatureCache(folder, HASH)
    cache.add("big", features(8, frames=20_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, limits[1]))  # the write stops half-way
    try:
        with pytest.raises(
            OSError, match=r"File too large: features\.f16 needs [0-9,]+ bytes, and [0-9,]+ are free in .*Make room"
        ):
            cache.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_only_true_arrays(folder, arrays)
    cache.flush()
    assert_heals(folder, arrays | {"big": features(8, frames=20_000)})


# Many arrays


def test_an_older_cache_gets_its_table_at_the_next_flush(held, table_lines):
    folder, arrays = held
    table = folder / HASH / "index.table"
    table.unlink(missing_ok=True)
    cache = FeatureCache(folder, HASH)
    cache.flush()
    assert table.is_file() == bool(table_lines)
    assert list(cache) == list(FeatureCache(folder, HASH)) == list(arrays)
    assert_only_true_arrays(folder, arrays)


def test_a_damaged_array_is_held_once_when_it_was_added_again(held):
    folder, arrays = held
    path = folder / HASH / "features.f16"
    path.write_bytes(b"\x00\x40" + path.read_bytes()[2:])  # of the first array
    cache = FeatureCache(folder, HASH)
    assert cache.verify() == ["clip0"] and (len(cache), list(cache)) == (4, list(arrays)[1:])
    cache.add("clip0", arrays["clip0"])
    assert len(cache) == 5 and sorted(cache) == list(arrays)
    cache.flush()
    for opened in (cache, FeatureCache(folder, HASH)):
        assert len(opened) == 5 and sorted(opened) == list(arrays) and opened.verify() == []
        np.testing.assert_array_equal(opened["clip0"], arrays["clip0"])


# Several writers

WRITER = """
import sys, numpy as np
from audiolm_utils.training import feature_index
from audiolm_utils.training.features import FeatureCache
folder, name, feature_index.TABLE_ARRAYS = *sys.argv[1:3], int(sys.argv[3])
cache = FeatureCache(folder, "0123abcd", flush_bytes=1)
for n in range(40):
    cache.add(f"{name}{n}", np.full((n % 5 + 1, 4), n, np.float16))
    cache.add(f"both{n}", np.full((2, 4), n, np.float16))
"""


@pytest.mark.slow
def test_two_processes_may_write_at_once(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    lines, repository = str(feature_index.TABLE_ARRAYS), Path(__file__).parents[2]
    writers = [subprocess.Popen([*command, name, lines], cwd=repository) for name in "ab"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    cache = FeatureCache(tmp_path, HASH)
    assert cache.verify() == [] and len(cache) == 120
    for n in range(40):
        for key, frames in ((f"a{n}", n % 5 + 1), (f"b{n}", n % 5 + 1), (f"both{n}", 2)):
            np.testing.assert_array_equal(cache[key], np.full((frames, 4), n))
    lines = (tmp_path / HASH / "index.jsonl").read_text().splitlines()
    assert len(lines) == 121, "a key that both computed is written once"


def test_two_writers_of_different_widths_never_mix(tmp_path):
    first, second = FeatureCache(tmp_path, HASH), FeatureCache(tmp_path, HASH)
    first.add("a", features(0))
    second.add("b", features(1, dim=5))
    first.flush()
    with pytest.raises(ValueError, match="now holds dim 4"):
        second.flush()
    assert list(FeatureCache(tmp_path, HASH)) == ["a"]


def test_threads_with_a_cache_each(tmp_path):
    def write(name: str) -> None:
        cache = FeatureCache(tmp_path, HASH, flush_bytes=1)
        for n in range(10):
            cache.add(f"{name}{n}", features(n))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache = FeatureCache(tmp_path, HASH)
    assert cache.verify() == [] and len(cache) == 30


# The encoder's hash


def test_module_hash_follows_weights_names_dtype_and_settings():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    first = module_hash(module, padded=False)
    assert len(first) == 32 and first == module_hash(module, padded=False)
    hashes = {first, module_hash(module), module_hash(module, padded=True), module_hash(module[0])}
    hashes.add(module_hash(module.bfloat16(), padded=False))
    with torch.no_grad():
        module[0].bias[1] += 1
    hashes.add(module_hash(module, padded=False))
    assert len(hashes) == 6
