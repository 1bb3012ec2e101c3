"""The analyses of the paper, and those it should have had: one file each (NETWORKS §14).

Each answers with an `Outcome`: a table, a figure, and a JSON with settings, seeds, versions and the
digests of models and cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ANALYSES: Final[Mapping[str, str]] = {
    "robustness": "Dice under noise in the features, on the image, and with a displaced prior",
    "latent": "clusters among the channels of the bottleneck, beside white noise",
    "correlation": "m₁ against m₂, beside an untrained network",
    "lambdas": "the course of λ, of the levels' shares, γ and ‖m₂‖/‖m₁‖ in training",
    "ablate": "trainings that differ in one switch of the noise reduction module",
    "subset": "trainings on nested shares of the patients",
    "field": "the effective receptive field",
    "profile": "parameters, arithmetic, memory and time",
}
"""Each is a module here and a function in it, both of this name."""
