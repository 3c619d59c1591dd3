"""Run the package's shape annotations as checks in every test (beartype), and draw plots without a screen."""

import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).parent))  # so that the tests find oracles.py under any import mode
install_import_hook(  # with PEP 484's rule that an int is a good float
    ["jaxdiff.features", "jaxdiff.networks", "jaxdiff.diffusion"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
