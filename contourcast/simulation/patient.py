"""A virtual patient: the planning CT, the contours on it, and what stays true for the course."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.ndimage import binary_dilation, gaussian_filter

from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.grid import Grid
from contourcast.imaging.structures import Roi
from contourcast.imaging.trace import trace
from contourcast.imaging.volume import Mask, Probability, Volume
from contourcast.simulation import consolidation, observer, tumour
from contourcast.simulation.anatomy import LEFT, RIGHT, Anatomy, ball
from contourcast.simulation.lesion import Lesion
from contourcast.simulation.recipe import RECIPE_VERSION, Recipe, Sampling
from contourcast.simulation.sampling import logistic

GTV_NAME = "GTV"
LUNG_RIM_MM = 3.1
LUNG_RIM_HU = 0.0
FAR_MM = -50.0  # depth written where a lesion's box does not reach


@dataclass(frozen=True, kw_only=True, eq=False)
class VirtualPatient:
    """One person for one course.

    Attributes:
        breathing_mm: Peak to peak at the diaphragm, the patient's usual.
        planning_phase: Where in that the planning CT was taken (0: the time mean),
            as a fraction of breathing_mm.
        drift_mm: Signed: how far the diaphragm stands off its planned height in week 7.
        prior_depth_mm: Of the contour that was drawn on the planning CT, on the lesion's box.
    """

    seed: tuple[int, ...]
    recipe: Recipe
    sampling: Sampling
    anatomy: Anatomy
    lesion: Lesion
    planning_ct: Volume
    generosity_mm: float
    prior_depth_mm: Float[np.ndarray, "z y x"]
    breathing_mm: float
    planning_phase: float
    drift_mm: float

    @property
    def grid(self) -> Grid:
        """The planning CT's."""
        return self.planning_ct.grid

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what the patient is made of; UIDs follow from it."""
        return patient_digest(self.anatomy, self.recipe, self.sampling, self.seed)

    @property
    def frame(self) -> str:
        """The planning CT's frame of reference."""
        return self.planning_ct.frame_of_reference

    @cached_property
    def mobile_weight(self) -> Float[np.ndarray, "z y x"]:
        """How much of the motion each place takes part in: 1 in the lung, 0 in bone."""
        sigma = [self.recipe.sliding_mm / s for s in self.grid.spacing_zyx_mm]
        weight: np.ndarray = gaussian_filter(self.anatomy.mobile.astype(np.float32), sigma)
        return weight

    @cached_property
    def gtv(self) -> Mask:
        """The tumour as it truly is on the planning CT."""
        return self._mask(self.lesion.tumour_depth_mm, "GTV, anatomical")

    @cached_property
    def prior_mask(self) -> Mask:
        """The contour as drawn, as voxels of the planning CT."""
        return self._mask(self.prior_depth_mm, GTV_NAME)

    @cached_property
    def prior(self) -> Roi:
        """The contour as drawn, as polygons on the planning CT's slices."""
        return self._roi(1, GTV_NAME, self._full(self.prior_depth_mm), "GTV", (255, 60, 60))

    @cached_property
    def rois(self) -> tuple[Roi, ...]:
        """All that the structure set holds: GTV, lungs, body, and two that are not the tumour."""
        ring = -np.abs(self._full(self.prior_depth_mm) + 5.0) + 5.0
        carina = self._full(self.prior_depth_mm) + 5.0
        lungs = self.anatomy.lungs
        return (
            self.prior,
            self._roi_of(2, "Lung_L", lungs == LEFT, "ORGAN", (80, 160, 255)),
            self._roi_of(3, "Lung_R", lungs == RIGHT, "ORGAN", (80, 220, 255)),
            self._roi_of(4, "BODY", self.anatomy.body, "EXTERNAL", (90, 200, 90)),
            self._roi(5, "PTV", carina, "PTV", (255, 160, 0)),
            self._roi(6, "zRing", ring, "CONTROL", (160, 160, 160)),
        )

    def _full(self, depth_mm: np.ndarray) -> np.ndarray:
        full = np.full(self.grid.shape_zyx, FAR_MM, np.float32)
        full[self.lesion.box] = np.maximum(depth_mm, FAR_MM)
        return full

    def _mask(self, depth_mm: np.ndarray, name: str) -> Mask:
        values = self._full(depth_mm) > 0
        return Mask(values=values, grid=self.grid, frame_of_reference=self.frame, name=name)

    def _roi(
        self, number: int, name: str, depth_mm: np.ndarray, kind: str, color: tuple[int, int, int]
    ) -> Roi:
        region = Probability(
            values=logistic(depth_mm), grid=self.grid, frame_of_reference=self.frame, name=name
        )
        return Roi(
            number=number,
            name=name,
            contours=trace(region),
            frame_of_reference=self.frame,
            interpreted_type=kind,
            generation_algorithm="MANUAL",
            color_rgb=color,
        )

    def _roi_of(
        self, number: int, name: str, mask: np.ndarray, kind: str, color: tuple[int, int, int]
    ) -> Roi:
        blurred = gaussian_filter(mask.astype(np.float32), (0, 0.8, 0.8))
        return self._roi(number, name, 8 * (blurred - 0.5), kind, color)


def virtual_patient(
    anatomy: Anatomy, *, recipe: Recipe, sampling: Sampling, seed: tuple[int, ...]
) -> VirtualPatient:
    """Makes a patient of an anatomy; the same seed makes the same one.

    The patient has a frame of reference of their own, for many may be made of one CT.

    Raises:
        InputError: The CT has no place for a tumour.
    """
    rng = np.random.default_rng(seed)
    use_drawn = anatomy.drawn is not None and rng.uniform() < recipe.drawn_tumour_share
    found = (tumour.drawn if use_drawn else tumour.graft)(anatomy, recipe, rng)
    has_airless = rng.uniform() < recipe.consolidation_share
    beside = (
        consolidation.grow(anatomy, found, recipe, rng)
        if has_airless
        else consolidation.none_of(found)
    )
    lesion = Lesion(
        box=found.box,
        center_xyz_mm=found.center_xyz_mm,
        lung_hu=found.lung_hu,
        seen=_changeable(anatomy)[found.box],
        tumour_depth_mm=found.depth_mm,
        tumour_hu=found.hu,
        spicules=found.spicules,
        airless_depth_mm=beside.depth_mm,
        airless_hu=beside.hu,
        bronchograms=beside.bronchograms,
        place=found.place,
    )
    generosity = observer.generosity_mm(recipe, rng)
    grid = anatomy.grid
    digest = patient_digest(anatomy, recipe, sampling, seed)
    planning_ct = planning_image(anatomy, lesion, lesion.image(recipe))
    return VirtualPatient(
        seed=seed,
        recipe=recipe,
        sampling=sampling,
        anatomy=anatomy,
        lesion=lesion,
        planning_ct=replace(
            planning_ct, frame_of_reference=derived_uid(digest, "planning frame of reference")
        ),
        generosity_mm=generosity,
        prior_depth_mm=observer.hand_drawn(
            lesion.tumour_depth_mm, grid, recipe, rng, generosity_mm=generosity
        ),
        breathing_mm=rng.uniform(*recipe.breathing_mm_range),
        planning_phase=recipe.difficulty * rng.uniform(*recipe.planning_phase_range),
        drift_mm=recipe.difficulty
        * recipe.drift_mm
        * rng.uniform(*recipe.drift_spread_range)
        * rng.choice([-1.0, 1.0]),
    )


def patient_digest(
    anatomy: Anatomy, recipe: Recipe, sampling: Sampling, seed: tuple[int, ...]
) -> str:
    """SHA-256 (hex) of recipe, sampling, CT and seed: the same patient has the same UIDs."""
    ct = [anatomy.name, anatomy.digest]
    parts = [RECIPE_VERSION, ct, list(seed), asdict(recipe), asdict(sampling)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _changeable(anatomy: Anatomy) -> np.ndarray:
    """Lung, and the voxels at its border that are partly lung."""
    lung = anatomy.lungs > 0
    rim = binary_dilation(lung, ball(LUNG_RIM_MM, anatomy.grid.spacing_zyx_mm)) & ~lung
    changeable: np.ndarray = lung | (rim & (anatomy.ct.values < LUNG_RIM_HU))
    return changeable


def planning_image(anatomy: Anatomy, lesion: Lesion, on_box_hu: np.ndarray) -> Volume:
    """The anatomy's CT with the lesion's box replaced."""
    values = anatomy.ct.values.copy()
    values[lesion.box] = on_box_hu
    return anatomy.ct.with_values(values)
