"""The background of an inverted image: what goes with none of the nouns (Dynamic Prompt Learning, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from ....host.cost import Cost, measured
from ....host.families import family_of
from ....host.marks import check_unedited
from ....host.models import prediction_of
from ....inversion.record import Inversion
from ....inversion.steps import Predict
from ....inversion.walk import walk_inversion
from ...engine.install import install
from ...maps.probabilities import OBJECT_SCALE
from ...maps.recorder import recorder
from ...maps.segments import Segments, find_segments
from ...words.prompt import Prompt

SELF_SCALE = 2
"""Scale of the layers whose self-attention is clustered: 32 x 32 tokens at 512 pixels."""


@dataclass(frozen=True)
class Clustering:
    """How the background is found; the defaults are the paper's.

    Attributes:
        clusters: V, parts that the self-attention map is cut into.
        least: mean of a noun's map, 0..1, from which a part is the noun's.
        seed: of the clustering's random starts.
    """

    clusters: int = 5
    least: float = 0.2
    seed: int = 1


def background_regions(
    model: Any,
    inversion: Inversion,
    prompt: Prompt,
    nouns: Mapping[str, Sequence[int]],
    clustering: Clustering = Clustering(),
) -> tuple[list[Segments], Cost]:
    """The regions of every image of an inversion, some of which go with a noun; the others are background.

    The maps are those of the inversion: its network calls are made again, on the stored latents. One UNet evaluation
    for each step and image.

    Args:
        model: host MODEL without edits, as the image was inverted with.
        inversion: made with the prompt.
        nouns: places on the text's token axis by noun.

    Raises:
        ValueError: edits on the model, another model, a prompt of another length, or no noun.
    """
    check_unedited(model, place="the background mask")
    inversion.check_model(family_of(model).name, prediction_of(model))
    if not nouns:
        raise ValueError(f"Name the nouns of the prompt whose objects are no background: {', '.join(prompt.words)}.")
    control = recorder(prompt, family_of(model), (OBJECT_SCALE,), (SELF_SCALE,), 0.0, 1.0)
    planned = f"{(len(inversion.sigmas) - 1) * inversion.batch} UNet evaluations"

    def again(predict: Predict, image: Tensor) -> list[Tensor]:
        for z, (_, high) in zip(inversion.latents, pairwise(inversion.sigmas), strict=False):
            predict(z.to(image), high)
        return [image]

    with measured(install(model, control), "Background mask", planned) as (counted, cost):
        walk_inversion(counted, again, inversion, inversion.sigmas, None, 1.0)
    found = find_segments(control.maps.recording, clustering.clusters, nouns, clustering.least, clustering.seed)
    return found, cost
