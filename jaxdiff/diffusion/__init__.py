"""Diffusion: schedules, predictions, objectives and samplers. Knows no audio, no Flax and no files."""

from .denoisers import Denoiser as Denoiser
from .denoisers import classifier_free_guidance as classifier_free_guidance
from .denoisers import denoiser as denoiser
from .objectives import diffusion_loss as diffusion_loss
from .objectives import logit_normal_times as logit_normal_times
from .objectives import uniform_times as uniform_times
from .objectives import velocity_weight as velocity_weight
from .predictions import Prediction as Prediction
from .predictions import target as target
from .predictions import to_eps as to_eps
from .predictions import to_x0 as to_x0
from .samplers import Sampler as Sampler
from .samplers import ancestral as ancestral
from .samplers import ddim as ddim
from .samplers import euler as euler
from .samplers import heun as heun
from .samplers import noise as noise
from .schedules import Cosine as Cosine
from .schedules import LinearBeta as LinearBeta
from .schedules import RectifiedFlow as RectifiedFlow
from .schedules import Schedule as Schedule
from .schedules import logsnr as logsnr
from .schedules import time_grid as time_grid
