"""Listening tests: people's ratings, who of the panel is kept, what the ratings say, and the page that shows it."""

from .panel import KINDS as KINDS
from .panel import Kind as Kind
from .panel import Rating as Rating
from .panel import Screening as Screening
from .panel import screen as screen
from .panel import webmushra_csv as webmushra_csv
