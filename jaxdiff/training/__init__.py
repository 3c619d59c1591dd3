"""Training: a state, one compiled step, a loop that reads top to bottom, checkpoints."""

from .blocks import block_names as block_names
from .blocks import block_norms as block_norms
from .blocks import gradient_norms as gradient_norms
from .checkpoints import CheckpointError as CheckpointError
from .loop import Every as Every
from .loop import TrainingError as TrainingError
from .loop import loop as loop
from .optimizers import learning_rates as learning_rates
from .optimizers import make_optimizer as make_optimizer
from .optimizers import warmup_cosine as warmup_cosine
from .state import TrainState as TrainState
from .state import init_state as init_state
from .step import Metrics as Metrics
from .step import TrainStep as TrainStep
from .step import Update as Update
from .step import make_train_step as make_train_step
from .step import make_validate as make_validate
from .transfer import Lora as Lora
from .transfer import restricted as restricted
