"""Sound to numbers and back: pure `jax.numpy` transforms with librosa's names, defaults and orientation."""

from .reconstruct import griffinlim as griffinlim
from .reconstruct import mel_to_stft as mel_to_stft
from .representations import Normalization as Normalization
from .representations import Representation as Representation
from .representations import chain as chain
from .representations import compressed_stft as compressed_stft
from .representations import fit_normalization as fit_normalization
from .representations import log_mel as log_mel
from .representations import normalize as normalize
from .representations import patches as patches
from .spectral import hz_to_mel as hz_to_mel
from .spectral import istft as istft
from .spectral import mel_filterbank as mel_filterbank
from .spectral import mel_to_hz as mel_to_hz
from .spectral import melspectrogram as melspectrogram
from .spectral import power_to_db as power_to_db
from .spectral import stft as stft
