"""A folder of audio in any format becomes checked, resampled, cropped, deterministic batches."""

from .corpora import Corpus as Corpus
from .corpora import open_corpus as open_corpus
from .corpora import write_report as write_report
from .files import AudioError as AudioError
from .files import audio_info as audio_info
from .files import read_audio as read_audio
from .files import write_audio as write_audio
from .pipeline import Batch as Batch
from .pipeline import Crop as Crop
from .pipeline import batches as batches
