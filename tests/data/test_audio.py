"""Reading and writing sound files."""

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiolm_utils.data.audio import SAMPLE_RATE, AudioError, load_audio, write_wav


def tone(seconds: float = 0.5, rate: int = SAMPLE_RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_reads_every_common_format_as_16_khz_float32(tmp_path, suffix):
    path = tmp_path / f"tone.{suffix}"
    sf.write(path, tone(rate=44_100), 44_100)
    audio = load_audio(path)
    assert audio.dtype == np.float32 and audio.ndim == 1 and audio.flags.c_contiguous
    assert len(audio) / SAMPLE_RATE == pytest.approx(0.5, abs=0.06)  # lossy codecs pad to whole frames
    spectrum = np.abs(np.fft.rfft(audio[: SAMPLE_RATE // 4]))
    assert np.argmax(spectrum) * 4 == pytest.approx(440, abs=4)


def test_stereo_is_the_mean_of_the_channels_not_the_first(tmp_path):
    left, right = tone(), np.zeros_like(tone())
    sf.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "stereo.wav"), left / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 48_000])
def test_resampling_keeps_length_and_level(tmp_path, rate):
    sf.write(tmp_path / "tone.wav", tone(1.0, rate), rate, subtype="FLOAT")
    audio = load_audio(tmp_path / "tone.wav")
    assert len(audio) == SAMPLE_RATE
    np.testing.assert_allclose(audio[2000:-2000], tone(1.0)[2000:-2000], atol=2e-3)


def test_reading_never_changes_the_file(tmp_path):
    path = tmp_path / "tone.wav"
    sf.write(path, tone(), SAMPLE_RATE)
    before = path.read_bytes()
    load_audio(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_long_audio_is_refused_not_cut(tmp_path):
    path = tmp_path / "long.wav"
    sf.write(path, tone(1.0), SAMPLE_RATE)
    assert len(load_audio(path, max_duration_s=1.0)) == SAMPLE_RATE
    with pytest.raises(AudioError, match=r"long\.wav lasts more than 0\.9 s"):
        load_audio(path, max_duration_s=0.9)


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("empty.wav", np.zeros(0, np.float32), "empty"),
        ("nan.wav", np.array([0, np.nan, 0], np.float32), "NaN"),
        ("infinite.wav", np.array([0, np.inf, 0], np.float32), "NaN or infinite"),
    ],
)
def test_unusable_samples_are_refused_by_name(tmp_path, name, samples, message):
    sf.write(tmp_path / name, samples, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=f"{name}.*{message}"):
        load_audio(tmp_path / name)


@pytest.mark.parametrize(("name", "content"), [("text.wav", b"hello"), ("zero.flac", b""), ("x.raw", b"\0" * 64)])
def test_unreadable_files_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=name):
        load_audio(tmp_path / name)


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    for path in (tmp_path / "absent.wav", tmp_path):
        with pytest.raises(AudioError, match=f"{path.name} is not a file"):
            load_audio(path)


def test_headerless_codecs_say_how_to_convert(tmp_path):
    (tmp_path / "prompt.g722").write_bytes(b"\x12" * 100)
    with pytest.raises(AudioError, match=r"ffmpeg -f g722 -i prompt\.g722 prompt\.wav"):
        load_audio(tmp_path / "prompt.g722")


def test_absurd_sample_rates_are_refused(tmp_path):
    sf.write(tmp_path / "slow.wav", tone(), 10)
    with pytest.raises(AudioError, match=r"slow\.wav states 10 Hz"):
        load_audio(tmp_path / "slow.wav")


def test_a_truncated_file_is_refused_or_shorter_but_never_padded(tmp_path):
    path = tmp_path / "cut.flac"
    sf.write(path, tone(2.0), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    try:
        audio = load_audio(path)
    except AudioError as error:
        assert "cut.flac" in str(error)
    else:
        assert len(audio) < 2 * SAMPLE_RATE


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from([b"", b"RIFF\x24\0\0\0WAVEfmt ", b"fLaC\0\0\0\x22", b"OggS\0\2", b"ID3\3", b"\xff\xfb\x90\0"]),
    body=st.binary(max_size=400),
    suffix=st.sampled_from([".wav", ".flac", ".ogg", ".mp3", ".raw", ""]),
)
def test_random_bytes_give_audio_or_an_error_that_names_the_file(tmp_path, head, body, suffix):
    path = tmp_path / f"random{suffix}"
    path.write_bytes(head + body)
    try:
        audio = load_audio(path, max_duration_s=30)
    except AudioError as error:
        assert str(path) in str(error)
    else:
        assert audio.dtype == np.float32 and audio.size and np.isfinite(audio).all()


def test_written_wav_reads_back_within_16_bits(tmp_path):
    write_wav(tmp_path / "deep" / "tone.wav", tone())
    assert sf.info(tmp_path / "deep" / "tone.wav").subtype == "PCM_16"
    np.testing.assert_allclose(load_audio(tmp_path / "deep" / "tone.wav"), tone(), atol=1 / 32768)


def test_writing_clips_beyond_full_scale_and_refuses_unusable_audio(tmp_path):
    write_wav(tmp_path / "loud.wav", np.array([2.0, -2.0], np.float32))
    np.testing.assert_allclose(load_audio(tmp_path / "loud.wav"), [1.0, -1.0], atol=1e-4)
    for audio in (np.zeros(0), np.array([np.nan]), np.zeros((2, 2))):
        with pytest.raises(AudioError, match=r"bad\.wav was not written"):
            write_wav(tmp_path / "bad.wav", audio)
    assert not (tmp_path / "bad.wav").exists()
