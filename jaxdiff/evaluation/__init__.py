"""How good a sound is: objective distances."""

from .frechet import frechet_distance as frechet_distance
from .frechet import log_mel_statistics as log_mel_statistics
