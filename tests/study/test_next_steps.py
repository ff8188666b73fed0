"""The steps that the study could have taken next, each on top of those before."""

from audiolm_utils.study.next_steps import STEPS, next_steps


def test_every_step_saves_memory_and_time():
    table = next_steps()
    assert list(table.index) == [name for name, *_ in STEPS]
    assert table.apply(lambda column: column.is_monotonic_decreasing and column.is_unique).all()


def test_hearing_the_clip_takes_most_of_the_time_away_and_half_precision_most_of_the_memory():
    table = next_steps(10.0)
    phone = table["first token, phone CPU (s)"]
    assert phone.iloc[1] < 0.4 * phone.iloc[0]
    memory = table["memory (GiB)"]
    assert -memory.diff().min() == memory.iloc[1] - memory.iloc[2] > 1.2
