"""Look at a run, or at a configuration before it is trained, and tell the usual faults apart.

    files, log -> corpus, features -> gradients, losses, one batch -> export -> samples, sampling steps

Each check gives findings, and `diagnosis` names the first cause among them: what stands before explains what stands
behind. Nothing in a run's folder is written.
"""

from .examine import examine as examine
from .findings import CAUSES as CAUSES
from .findings import Finding as Finding
from .findings import Verdict as Verdict
from .findings import diagnosis as diagnosis
