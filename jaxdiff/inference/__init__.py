"""Trained models in use: load them, make sounds with them, of any length."""

from .load import export as export
from .load import load as load
from .outputs import Output as Output
from .pipeline import Pipeline as Pipeline
from .program import export_program as export_program
