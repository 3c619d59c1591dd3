"""What is known and what is made: a task turns a batch of raw crops into x0 and a condition, inside the program.

A task is two pure functions: `example` for training, `condition` for use. Each file here is one task.
"""

from .examples import Example as Example
from .examples import Task as Task
from .generation import generation as generation
from .vocoding import spectral_envelope as spectral_envelope
from .vocoding import vocoding as vocoding
