"""A run as one HTML page: what the files of its folder say, drawn and put together, without jax.

read -> curves -> page
"""

from .page import Page as Page
from .page import report_page as report_page
from .read import Run as Run
from .read import read_run as read_run
