"""A folder of audio in any format becomes checked, resampled, cropped, deterministic batches."""

from .corpora import Corpus as Corpus
from .corpora import Recording as Recording
from .corpora import hold_out as hold_out
from .corpora import open_corpus as open_corpus
from .corpora import write_report as write_report
from .crops import Crop as Crop
from .files import AudioError as AudioError
from .files import audio_info as audio_info
from .files import read_audio as read_audio
from .files import sound_files as sound_files
from .files import write_audio as write_audio
from .loader import Further as Further
from .loader import Sounds as Sounds
from .loader import batches as batches
from .loader import heard as heard
