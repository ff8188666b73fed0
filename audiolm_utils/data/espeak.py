"""Speak one text with libespeak-ng: `python -I -S espeak.py FOLDER VOICE WORDS_PER_MINUTE PITCH TEXT`.

Writes 16-bit mono samples to standard output. It runs alone, on the standard library: libespeak-ng keeps a
state between texts (flutter, noise), so that only a fresh process with a set seed gives the same samples.
"""

import ctypes
import sys

SAMPLE_RATE = 22_050  # Hz, of every espeak-ng voice
OUTPUT_SYNCHRONOUS, RATE, PITCH, CHARACTERS, UTF8 = 2, 1, 3, 1, 1  # speak_lib.h


def speak(folder: str, voice: str, words_per_minute: int, pitch: int, text: str) -> bytes:
    """Return `text` as 16-bit samples at 22.05 kHz; raises `RuntimeError` where the library refuses."""
    samples = bytearray()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def collect(wave: int, count: int, _: int) -> int:
        if wave and count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        return 0

    library = ctypes.CDLL(f"{folder}/libespeak-ng.so")
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    rate = library.espeak_Initialize(OUTPUT_SYNCHRONOUS, 0, f"{folder}/espeak-ng-data".encode(), 0)
    if rate != SAMPLE_RATE:
        raise RuntimeError(f"libespeak-ng in {folder} starts with {rate}; expected {SAMPLE_RATE} Hz.")
    library.espeak_ng_SetRandSeed(1)
    library.espeak_SetSynthCallback(collect)
    if library.espeak_SetVoiceByName(voice.encode()):
        raise RuntimeError(f"libespeak-ng has no voice {voice!r}.")
    library.espeak_SetParameter(RATE, words_per_minute, 0)
    library.espeak_SetParameter(PITCH, pitch, 0)
    data = text.encode() + b"\0"
    if library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, CHARACTERS, 0, UTF8, None, None):
        raise RuntimeError(f"libespeak-ng refuses {text!r}.")
    library.espeak_Synchronize()
    return bytes(samples)


if __name__ == "__main__":
    _, folder, voice, words_per_minute, pitch, text = sys.argv
    sys.stdout.buffer.write(speak(folder, voice, int(words_per_minute), int(pitch), text))
