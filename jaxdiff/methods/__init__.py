"""Methods: how a model is learned and sampled. Each file is one; `method.py` says what a method is."""

from .adversarial import Adversarial as Adversarial
from .autoregression import Autoregression as Autoregression
from .bridge import Bridge as Bridge
from .diffusion import Diffusion as Diffusion
from .method import Context as Context
from .method import Loss as Loss
from .method import Method as Method
from .method import Model as Model
from .method import Sample as Sample
from .method import Sampling as Sampling
from .method import gradient_step as gradient_step
from .regression import Regression as Regression
from .shortcut import Shortcut as Shortcut

METHODS = {  # the names of `method.kind`
    "diffusion": Diffusion,
    "bridge": Bridge,
    "shortcut": Shortcut,
    "regression": Regression,
    "autoregression": Autoregression,
    "adversarial": Adversarial,
}
