"""Networks that learn features of sound: `network(x_t, t, cond, rngs=None)`, Flax NNX modules."""

from .causal import CausalWaveNet as CausalWaveNet
from .convert import convert_diffwave as convert_diffwave
from .layers import Condition as Condition
from .layers import count_params as count_params
from .transformer import Transformer as Transformer
from .wavenet import WaveNet as WaveNet
