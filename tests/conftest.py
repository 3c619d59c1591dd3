"""Run the package's shape annotations as checks in every test (beartype), and draw plots without a screen."""

import os

from jaxtyping import install_import_hook

os.environ.setdefault("MPLBACKEND", "Agg")
install_import_hook(
    ["jaxdiff.features", "jaxdiff.networks", "jaxdiff.diffusion"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
