"""Tasks: what is known and what is made. Each file is one; `task.py` says what a task is."""

from .damage import Damage as Damage
from .damage import Damaged as Damaged
from .damage import Guess as Guess
from .enhance import Amount as Amount
from .enhance import Enhance as Enhance
from .foley import Cued as Cued
from .foley import Foley as Foley
from .generate import Generate as Generate
from .instrument import Conversion as Conversion
from .instrument import Instrument as Instrument
from .mixtures import Mixture as Mixture
from .repair import Repair as Repair
from .repair import ZeroShot as ZeroShot
from .restyle import Keep as Keep
from .restyle import Restyle as Restyle
from .task import Batch as Batch
from .task import Example as Example
from .task import Given as Given
from .task import Known as Known
from .task import Needs as Needs
from .task import NoRequest as NoRequest
from .task import Task as Task
from .transcribe import Transcribe as Transcribe
from .vocode import Phases as Phases
from .vocode import Vocode as Vocode
from .vocode import spectral_envelope as spectral_envelope
from .voice import Voice as Voice

TASKS = {  # the names of `task.kind`
    "generate": Generate,
    "vocode": Vocode,
    "enhance": Enhance,
    "transcribe": Transcribe,
    "instrument": Instrument,
    "voice": Voice,
    "repair": Repair,
    "foley": Foley,
}
