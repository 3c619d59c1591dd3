"""Networks that learn features of sound: `network(x_t, t, cond, rngs=None)`, Flax NNX modules."""

from .causal import CausalWaveNet as CausalWaveNet
from .convert import convert_diffwave as convert_diffwave
from .convnext import ConvNeXt as ConvNeXt
from .discriminators import Discriminators as Discriminators
from .layers import Condition as Condition
from .layers import count_params as count_params
from .lstm import LSTM as LSTM
from .network import Network as Network
from .network import Params as Params
from .network import from_linen as from_linen
from .network import from_nnx as from_nnx
from .network import in_parts as in_parts
from .subband import Subband as Subband
from .summary import Summary as Summary
from .summary import flops as flops
from .summary import summarize as summarize
from .transformer import Transformer as Transformer
from .unet import UNet as UNet
from .wavenet import WaveNet as WaveNet

NETWORKS = dict(  # the names of `network.kind`
    convnext=ConvNeXt,
    transformer=Transformer,
    unet=UNet,
    wavenet=WaveNet,
    subband=Subband,
    lstm=LSTM,
    causal_wavenet=CausalWaveNet,
)
