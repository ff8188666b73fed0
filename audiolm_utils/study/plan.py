"""What training on the study's full data needs: disk, hours and reading processes, each number's kind beside it.

Accounted numbers come from [`account`], measured ones from this repository's README, published ones from the study.
What the sets hold is written down from memory of the papers named here; assumptions are constants below. Nothing here
has run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from audiolm_utils.evaluation.accounting import DEFAULT, FBANK_HZ, Account, account
from audiolm_utils.evaluation.architectures import STUDY
from audiolm_utils.evaluation.roofline import DEVICES
from audiolm_utils.models.patches import PATCH
from audiolm_utils.study.full_recipes import FULL_RECIPES, STAGES
from audiolm_utils.study.published import NOT_STATED, published_composition

GPU = DEVICES["NVIDIA H100 SXM"]
MFU = 0.4  # assumed share of the data sheet's FLOP/s; Llama 3's pre-training had 0.38 to 0.43 (Grattafiori et al. 2024)
ANSWER_TOKENS = 32  # assumed
NVLINK, ETHERNET = 450e9, 12.5e9  # bytes/s each way: half of the data sheet's 900 GB/s, and 100 Gbit/s; assumed reached
LONGEST_S = 30  # longer recordings are cut into clips before training
READ_S_PER_S = 27.0 * 60  # seconds of audio that a process reads in a second: `make bench`, README
TABLE_ROWS, TABLE_S = 1.5e6, 3.5  # an annotation of so many rows is read in so many seconds: `make bench`, README
SPEECH_HZ = 50  # frames of Whisper a second
BYTES_PER_S = 16_000 * 2  # of 16 kHz, 16-bit mono
HOUR_S, GB = 3600, 1e9


@dataclass(frozen=True)
class PublicSet:
    """A public set as its paper describes what trains: hours, recordings."""

    hours: float
    recordings: int
    source: str

    @property
    def clip_s(self) -> float:
        """Seconds of a clip in the mean, at most: a longer recording is cut."""
        return min(self.hours * HOUR_S / self.recordings, LONGEST_S)


SETS = {
    "GigaSpeech": PublicSet(1_000, 909_401, "Chen et al. 2021, subset M"),
    "LibriSpeech": PublicSet(960.9, 281_241, "Panayotov et al. 2015, three training parts"),
    "WavCaps": PublicSet(7_568, 403_050, "Mei et al. 2023"),
    "Clotho": PublicSet(18.1, 2_893, "Drossos et al. 2020, development; 15 to 30 s taken for 22.5"),
    "AudioCaps": PublicSet(127, 45_780, "Kim et al. 2019, clips of 10 s; as many as the study had"),
    "MusicNet": PublicSet(34, 330, "Thickstun et al. 2017"),
}


def clip_seconds(stage: str) -> float:
    """Seconds of a training clip of a stage in the mean, by the study's composition.

    Where that names no set, speech to transcribe is taken for stage 1's, everything else for LibriSpeech.
    """
    composition = published_composition()
    asr = composition[(composition["stage"] == "stage1") & (composition["task"] == "asr")]
    mixed = sum(SETS[row.dataset].clip_s * row.samples for row in asr.itertuples()) / asr["samples"].sum()
    rows = composition[composition["stage"] == stage]
    seconds = 0.0
    for row in rows.itertuples():
        unsaid = mixed if row.task == "asr" else SETS["LibriSpeech"].clip_s
        seconds += row.samples * (unsaid if row.dataset == NOT_STATED else SETS[row.dataset].clip_s)
    return seconds / rows["samples"].sum()


@dataclass(frozen=True)
class Way:
    """A way to train: on how many GPUs, with the LLM's layers whole or cut among them, by which link."""

    name: str
    gpus: int
    cut: bool = False
    bytes_per_s: float = NVLINK


WAYS = (
    Way("one GPU", 1),
    Way("eight GPUs, `ddp.yaml`", 8),
    Way("eight GPUs, `fsdp.yaml`", 8, cut=True),
    Way("two machines of four, `ddp.yaml`", 8, bytes_per_s=ETHERNET),
    Way("two machines of four, `fsdp.yaml`", 8, cut=True, bytes_per_s=ETHERNET),
)


def clip_flops(costs: Account) -> dict[str, float]:
    """FLOPs of one training clip by precision of the part.

    Frozen encoders run forward once; the LLM's frozen layers pass gradients on, which doubles them; the connector
    learns, which triples it. LoRA's own arithmetic and the unpacking of 4-bit weights are left out.
    """
    times = {"connector": 3, "LLM": 2}
    flops: dict[str, float] = {}
    for part in costs.parts:
        own = part.flops + (ANSWER_TOKENS * costs.flops_per_token if part.name == "LLM" else 0)
        flops[part.precision] = flops.get(part.precision, 0) + times.get(part.name, 1) * own
    return flops


def step_seconds(costs: Account, way: Way, clips: int) -> tuple[float, float]:
    """Seconds that a step of some clips computes, and that it sends and receives; overlap of the two is left out."""
    computing = sum(flops / (MFU * GPU.rate(precision)) for precision, flops in clip_flops(costs).items())
    learned = sum(4 * part.parameters for part in costs.parts if part.name in ("connector", "LoRA"))
    layers = sum(part.matrix_bytes for part in costs.parts if part.name == "LLM")
    sent = (2 * learned + (2 * layers if way.cut else 0)) * (way.gpus - 1) / way.gpus
    return computing * clips / way.gpus, sent / way.bytes_per_s


def training_hours(row: str, way: Way) -> tuple[float, float, float]:
    """Hours of both stages of a full recipe, their mean step in s, and the s of audio that are heard in a second."""
    hours = steps = audio_s = 0.0
    for stage in STAGES:
        clip_s = clip_seconds(stage.name)
        costs = account(STUDY[row], audio_s=round(clip_s, 1), mode="real length")
        hours += stage.steps * sum(step_seconds(costs, way, stage.batch_size)) / HOUR_S
        steps += stage.steps
        audio_s += stage.steps * stage.batch_size * clip_s
    return hours, hours * HOUR_S / steps, audio_s / (hours * HOUR_S)


def feature_bytes_per_hour() -> dict[str, float]:
    """Bytes of an hour of audio in the feature cache, float16: Whisper-large's frames, BEATs' steps of patches."""
    speech, audio = DEFAULT.stream_sizes("BEATs")
    return {"Whisper-large": 2 * speech * SPEECH_HZ * HOUR_S, "BEATs": 2 * audio * FBANK_HZ / PATCH * HOUR_S}


def plan() -> str:
    """The plan as three tables in Markdown."""
    hours = sum(each.hours for each in SETS.values())
    features = feature_bytes_per_hour()
    lines = ["| public set | hours | recordings | 16 kHz, 16 bit (GB) | source |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {each.hours:,.0f} | {each.recordings:,} | {_wav_gb(each.hours):,.0f} | {each.source} |"
        for name, each in SETS.items()
    ]
    lines += [f"| all | {hours:,.0f} |  | {_wav_gb(hours):,.0f} |  |", ""]
    rows = [round(published_composition().groupby("stage")["samples"].sum()[stage.name] / 1e6, 2) for stage in STAGES]
    clips = [stage.steps * stage.batch_size for stage in STAGES]
    bytes_each = " + ".join(f"{size / 1e6:,.0f}" for size in features.values())
    lines += [
        "| what | number | kind |",
        "|---|---|---|",
        f"| rows of the two stages | {rows[0]} and {rows[1]} million | published |",
        f"| to read both annotations | {sum(rows) * 1e6 / TABLE_ROWS * TABLE_S:.0f} s | measured for 1.5 million |",
        f"| clips of a training: steps × batch, shares of an epoch | {clips[0]:,} + {clips[1]:,}, "
        f"{clips[0] / rows[0] / 1e6:.2f} and {clips[1] / rows[1] / 1e6:.2f} | recipe |",
        f"| a clip in the mean | {clip_seconds('stage1'):.1f} s and {clip_seconds('stage2'):.1f} s | "
        "published composition, recordings cut to 30 s |",
        f"| audio that a process reads in a second | {READ_S_PER_S:,.0f} s | measured, on a CPU of 2 cores |",
        f"| features of an hour, Whisper-large + BEATs, float16 | {bytes_each} MB | accounted |",
        f"| features of everything | {hours * sum(features.values()) / 1e12:.1f} TB, so full recipes encode as they "
        "train | accounted |",
        "",
    ]
    lines += [
        f"| base, {GPU.name} | hours | step (s) | of it sending (s) | processes that read |",
        "|---|---|---|---|---|",
    ]
    for way in WAYS:
        total, step_s, heard = training_hours("base", way)
        costs = account(STUDY["base"], audio_s=round(clip_seconds("stage1"), 1), mode="real length")
        sending = step_seconds(costs, way, STAGES[0].batch_size)[1]
        lines.append(f"| {way.name} | {total:.1f} | {step_s:.3f} | {sending:.3f} | {heard / READ_S_PER_S:.2f} |")
    each = [training_hours(row, WAYS[0])[0] for row in FULL_RECIPES]
    lines.append(f"| all ten rows, a GPU each, `--ray` | {max(each):.1f}, {sum(each):.0f} of GPUs |  |  |  |")
    return "\n".join(lines)


def _wav_gb(hours: float) -> float:
    return hours * HOUR_S * BYTES_PER_S / GB
