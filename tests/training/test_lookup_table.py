"""The table of an index: it finds what was written, and is taken for absent where it belongs to other files."""

import pytest

from audiolm_utils.training.lookup_table import HEAD, ROW, LookupTable

PLACES = {f"clip{n}": 100 * n for n in range(300)}


@pytest.fixture
def table(tmp_path):
    """A table of 300 keys that covers 5,000 bytes of an index of 6,000."""
    (tmp_path / "index").write_bytes(bytes(n % 251 for n in range(6_000)))
    table = LookupTable(tmp_path / "table", tmp_path / "index")
    table.write(PLACES, 5_000, 70)
    return table


def test_every_key_is_found_and_no_other(table):
    assert {key: table.place(key) for key in PLACES} == PLACES
    assert [table.place(f"clip{n}") for n in range(300, 400)] == [None] * 100
    assert len(table) == 300 and table.path.stat().st_size == HEAD.size + 300 * ROW.itemsize


def test_an_absent_or_cut_table_finds_nothing(table):
    table.path.write_bytes(table.path.read_bytes()[: -ROW.itemsize])
    assert table.cover(6_000, 70) is None
    table.path.write_bytes(table.path.read_bytes()[: HEAD.size + 3])
    assert len(table) == 0 and table.place("clip0") is None and table.cover(6_000, 70) is None
    table.remove()
    assert len(table) == 0 and table.place("clip0") is None and table.cover(6_000, 70) is None
    table.remove()


def test_keys_written_again_move(table):
    table.write({"clip7": 9_000, "new": 9_100}, 5_500, 80)
    assert len(table) == 301
    assert {key: table.place(key) for key in PLACES} == PLACES | {"clip7": 9_000}
    assert table.place("new") == 9_100 and table.cover(6_000, 80) == (5_500, 80)


@pytest.mark.parametrize(("index_size", "data_size"), [(4_999, 70), (6_000, 69)])
def test_shorter_files_are_not_covered(table, index_size, data_size):
    assert table.cover(6_000, 70) == table.cover(5_000, 70) == (5_000, 70)
    assert table.cover(index_size, data_size) is None


def test_another_index_is_not_covered(table):
    data = bytearray(table.index_path.read_bytes())
    data[4_990] ^= 1
    table.index_path.write_bytes(data)
    assert table.cover(6_000, 70) is None


@pytest.mark.parametrize("byte", range(HEAD.size))
def test_a_head_that_is_damaged_anywhere_covers_nothing(table, byte):
    data = bytearray(table.path.read_bytes())
    data[byte] ^= 1
    table.path.write_bytes(data)
    assert table.cover(6_000, 10**6) is None


def test_where_it_cannot_be_written_the_old_one_stays(table, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        table.write({"new": 1}, 6_000, 70)
    assert table.place("new") is None and table.place("clip1") == 100
