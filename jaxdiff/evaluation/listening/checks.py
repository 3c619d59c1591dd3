"""The clips of a MOS test whose right score is known, by which its panel is screened (ITU-T P.808).

A gold clip is one that anybody hears the quality of: the reference itself, which is excellent (5), or the reference
below 1 kHz under noise that follows its level, which is bad (1). The noise is that of the modulated noise reference
unit (ITU-T P.810), s a random sign for each sample, so that noise and sound are equally strong:

    y[n] = x[n] (1 + s[n])                                                                  (P.810, with Q = 0 dB)

A trap clip says its score. A spoken message, as P.808 has it, needs a voice and a language; here a clip begins like any
other and ends with 1 to 5 beeps in silence, as loud as the clip, and the page tells listeners to count them.
"""

import math

import numpy as np
from jaxtyping import Float

from .anchors import anchor

SPOILED_ABOVE = 1000  # Hz, of a bad gold clip
BEEP, BEEP_EVERY, SILENCE_BEFORE = 0.25, 0.5, 0.5  # seconds
_TONE = 1000.0  # Hz
_RAMP = 0.01  # seconds in which a beep begins and ends, and the clip ends before them

Sound = Float[np.ndarray, "channels samples"]


def spoiled(y: Sound, sr: int, rng: np.random.Generator) -> Sound:
    """`y` as a listener must call it bad: below 1 kHz, with noise as strong as itself (P.810, Q = 0 dB)."""
    return anchor(y, SPOILED_ABOVE, sr) * (1 + rng.choice((-1.0, 1.0), y.shape))


def with_beeps(y: Sound, count: int, sr: int, loudness: float) -> Sound:
    """`y` whose end is silence with so many beeps of `loudness` in LUFS, a quarter of a second each and as far apart.

    It stays as long as it was where that leaves half of it; else its first half stays, and it grows longer.

    >>> with_beeps(np.ones((1, 80_000)), 3, 8000, -23.0).shape
    (1, 80000)
    """
    end = round((SILENCE_BEFORE + count * BEEP_EVERY) * sr)
    kept = max(y.shape[1] - end, y.shape[1] // 2)
    n = np.arange(round(BEEP * sr))
    ramp = np.clip(np.minimum(n + 0.5, n[::-1] + 0.5) / (_RAMP * sr), 0, 1)
    level = math.sqrt(2 / len(y)) * 10 ** (loudness / 20)  # at 1 kHz the loudness of all channels is their power
    beep = level * np.sin(0.5 * np.pi * ramp) ** 2 * np.sin(2 * np.pi * _TONE / sr * n)
    made = np.zeros((len(y), kept + end))
    made[:, :kept] = y[:, :kept]
    fade = min(kept, round(_RAMP * sr))
    made[:, kept - fade : kept] *= np.cos(0.5 * np.pi * (np.arange(fade) + 0.5) / fade) ** 2
    for k in range(count):
        at = kept + round((SILENCE_BEFORE + k * BEEP_EVERY) * sr)
        made[:, at : at + len(beep)] = beep
    return made
