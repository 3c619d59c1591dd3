"""Training: a state, one compiled step, a loop that reads top to bottom, checkpoints."""

from .checkpoints import CheckpointError as CheckpointError
from .loop import Hooks as Hooks
from .loop import TrainingError as TrainingError
from .loop import train as train
from .state import TrainState as TrainState
from .state import init_state as init_state
from .step import Context as Context
from .step import Objective as Objective
from .step import make_optimizer as make_optimizer
from .step import make_train_step as make_train_step
