"""Generation: sound from noise, given its class or nothing."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxdiff.data.pipeline import Batch
from jaxdiff.features import Representation
from jaxdiff.networks import Condition

from .examples import Example, Task


def generation(representation: Representation, num_classes: int, *, flip_polarity: bool = False) -> Task:
    """Known: the class, where `num_classes` > 0 and the recording has one. Made: the whole sound.

    `flip_polarity` negates each training crop with probability 1/2, which no ear notices.
    """

    def condition(batch: Batch) -> Condition:
        label = batch["label"]
        return Condition(label=jnp.where(label < 0, num_classes, label) if num_classes else None)

    def example(batch: Batch, key: PRNGKeyArray) -> Example:
        wave = batch["wave"]
        if flip_polarity:
            wave = wave * jax.random.rademacher(key, (len(wave), 1), wave.dtype)
        return Example(representation.encode(wave), condition(batch))

    return Task(example, condition, lambda x0, cond: representation.decode(x0))
