"""Networks that learn features of sound: `network(x_t, t, cond, rngs=None)`, Flax NNX modules."""

from .causal import CausalWaveNet as CausalWaveNet
from .convert import convert_diffwave as convert_diffwave
from .convnext import ConvNeXt as ConvNeXt
from .discriminators import Discriminators as Discriminators
from .layers import Condition as Condition
from .layers import count_params as count_params
from .lstm import LSTM as LSTM
from .summary import Summary as Summary
from .summary import flops as flops
from .summary import summarize as summarize
from .transformer import Transformer as Transformer
from .unet import UNet as UNet
from .wavenet import WaveNet as WaveNet
