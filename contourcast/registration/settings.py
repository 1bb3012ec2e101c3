"""Every number of registration, one set for all patients; recorded in each result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from contourcast.registration.result import Focus


@dataclass(frozen=True, kw_only=True)
class FieldOfViewSettings:
    """Where a scan really holds something (REGISTRATION §3)."""

    spacing_mm: float = 3.0
    closing_mm: float = 6.0
    erosion_mm: float = 8.0  # bright ring at the rim of a full-fan field
    border_share: float = 0.25  # of the border voxels that say one value: that value is padding


@dataclass(frozen=True, kw_only=True)
class LocalNccSettings:
    """Local normalisation: ``(I - mean) / (sd + floor)`` in a cubic window (REGISTRATION §4)."""

    radius_mm: float = 12.0
    least_radius_voxels: int = 2
    floor_hu: float = 60.0  # about the noise of a cone beam: flat tissue stays flat
    lowest_hu: float = -1000.0
    highest_hu: float = 600.0


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """The search over all shifts on coarse volumes (REGISTRATION §5.1)."""

    spacing_mm: float = 8.0
    range_mm: float = 60.0
    blind_range_mm: float = 120.0  # when the positions of the two scans say nothing
    least_overlap: float = 0.30
    peaks: int = 3
    peak_distance_mm: float = 16.0
    least_peak_share: float = 0.4  # of the best peak: lower ones are not descended from
    rotation_deg: float = 6.0  # of the further starts, when the first answer is not accepted
    worse_lncc: float = 0.1  # a start that fits so much worse than another one is not begun from


@dataclass(frozen=True, kw_only=True)
class DescentSettings:
    """Gradient descent on the pose (REGISTRATION §5.3 and §5.4).

    Attributes:
        preconditioner: What the gradient is multiplied with. ``gauss_newton``: the inverse of the
            metric's Gauss-Newton matrix; ``scalar``: one number, plain descent.
        momentum: Heavy ball; of ``scalar`` alone.
        rotation_radius_mm: One radian counts as this many millimetres.
    """

    preconditioner: Literal["gauss_newton", "scalar"] = "gauss_newton"
    momentum: float = 0.7
    rotation_radius_mm: float = 60.0  # moves a typical point of a thorax by about one unit
    damping: float = 1e-3
    iterations: int = 60
    longest_step_voxels: float = 2.0
    shortest_step_voxels: float = 0.004
    halvings: int = 6


@dataclass(frozen=True, kw_only=True)
class LevelSettings:
    """One level of the pyramid."""

    spacing_mm: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class ConsensusSettings:
    """Which part of the field decides the last of the rigid answer.

    Attributes:
        block_mm: Side of the cubes that are asked where they would rather be; neighbours overlap
            by half.
        share: Of the cubes: those that agree best decide. 1: all do.
        rounds: The most times that they are asked.
        least_fill: Cubes with fewer samples than this share of the fullest one are not asked.
        least_blocks: With fewer of them the whole field decides.
        least_contrast: See `consensus.Consensus`. Below it there is one kind of blocks, and the
            whole field, which has more of them, decides.
        least_move_voxels: Of the CBCT's longest. What half of the field says else by less than
            this, the grid of the voxels says, too, and the whole field decides.
    """

    block_mm: float = 40.0  # of 24, 30 and 40 the best on virtual courses: decision 0020
    share: float = 0.5  # as far as least trimmed squares can go
    rounds: int = 3  # five end within 0.02 mm of it
    least_fill: float = 0.4
    least_blocks: int = 60
    least_contrast: float = 2.5  # an abdomen 2.1 to 2.4, breathing thoraces 2.6 to 6: decision 0020
    least_move_voxels: float = 1 / 3  # rigid phantoms of 5 mm voxels: up to 0.31


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """The answer for the prior's surroundings (REGISTRATION §5, focus)."""

    margin_mm: float = 30.0
    farthest_mm: float = 15.0
    farthest_deg: float = 5.0


@dataclass(frozen=True, kw_only=True)
class QualityLimits:
    """When an answer is accepted, looked at or rejected (REGISTRATION §8).

    Attributes:
        version: Changes with every number here; recorded with each verdict.
        closer_mirror_margin: Right pairs of asymmetric bodies are ahead of their mirror image by
            more than this at the coarsest level; of others it is asked again at `spacing_mm`.
    """

    version: str = "4"
    spacing_mm: float = 3.0
    samples: int = 100_000  # a correlation is known to 0.003 then
    bone_hu: float = 150.0
    near_bone_mm: float = 7.0
    least_near_bone_voxels: int = 200
    accept_near_bone_lncc: float = 0.45
    reject_near_bone_lncc: float = 0.30
    accept_lncc: float = 0.22
    reject_lncc: float = 0.12
    accept_overlap: float = 0.60
    reject_overlap: float = 0.30
    accept_start_ratio: float = 1.3
    accept_spread_mm: float = 3.0
    closer_mirror_margin: float = 0.25
    accept_mirror_margin: float = 0.08
    accept_better_fit_mm: float = 2.0
    reject_better_fit_mm: float = 5.0
    accept_prior_in_view: float = 0.99
    accept_shift_mm: float = 40.0
    reject_shift_mm: float = 100.0
    accept_angle_deg: float = 8.0
    reject_angle_deg: float = 15.0
    accept_apart_mm: float = 5.0


@dataclass(frozen=True, kw_only=True)
class RigidSettings:
    """Translation and rigid registration."""

    field_of_view: FieldOfViewSettings = field(default_factory=FieldOfViewSettings)
    local_ncc: LocalNccSettings = field(default_factory=LocalNccSettings)
    start: StartSettings = field(default_factory=StartSettings)
    levels: tuple[LevelSettings, ...] = (
        LevelSettings(spacing_mm=6.0, samples=20_000),
        LevelSettings(spacing_mm=3.0, samples=40_000),
        LevelSettings(spacing_mm=2.0, samples=40_000),
    )
    descent: DescentSettings = field(default_factory=DescentSettings)
    consensus: ConsensusSettings = field(default_factory=ConsensusSettings)
    target: TargetSettings = field(default_factory=TargetSettings)
    least_samples: int = 2000
    seed: int = 20

    @property
    def coarsest(self) -> LevelSettings:
        """Where descents begin."""
        return max(self.levels, key=lambda level: level.spacing_mm)


@dataclass(frozen=True, kw_only=True)
class BSplineSettings:
    """One elastix B-spline (REGISTRATION §6).

    Attributes:
        grid_mm: Distance of control points on the last level; doubled on each level before it.
        bending_weight: Of the bending energy beside the normalised correlation.
        samples: Random points of the correlation in each iteration, drawn anew.
        bending_samples: The same for the bending energy. It is smooth, so fewer say the same:
            half the time of as many as `samples`, the field 0.1 mm apart (4D-Lung patient 113).
    """

    grid_mm: float = 20.0  # 12 mm folds on a cone beam, even with ten times the bending
    bending_weight: float = 0.05
    levels: int = 3
    iterations: int = 300
    samples: int = 4000
    bending_samples: int = 1000
    seed: int = 20


@dataclass(frozen=True, kw_only=True)
class LungSettings:
    """How lungs are found in the planning CT: air within the body, two parts side by side."""

    spacing_mm: float = 2.5
    air_hu: float = -400.0
    gas_hu: float = -930.0  # darker than any lung as a whole: bowel, windpipe
    thinnest_body_mm: float = 6.0  # a couch's shell is thinner, a chest wall is not
    least_lung_cc: float = 200.0
    least_share_of_larger: float = 0.1
    least_apart_mm: float = 50.0
    erosions_mm: tuple[float, ...] = (0.0, 2.5, 5.0, 7.5, 10.0, 12.5, 15.0)
    closing_mm: float = 10.0  # vessels at the hilum and tumours at the pleura
    least_prior_share: float = 0.5  # less of the prior in a lung: it lies beside the lung


@dataclass(frozen=True, kw_only=True)
class FoldingLimits:
    """What the Jacobian determinant of a deformation may be (REGISTRATION §6)."""

    accept_jacobian_min: float = 0.2
    accept_jacobian_max: float = 4.0
    accept_displacement_mm: float = 25.0


@dataclass(frozen=True, kw_only=True)
class DeformableSettings:
    """DIR-T and DIR-L with elastix (REGISTRATION §6).

    Attributes:
        room_mm: The working grid reaches this far beyond the region; more than `blend_mm`.
        coarser_grid: A deformation that folds is tried again with this many times the grid,
        stiffer_bending: and then, on that grid, with this many times the bending.
        wall_limit_s: For each run of elastix.
        memory_limit_gib: Address space of each run of elastix.
    """

    spacing_mm: float = 2.5
    lowest_hu: float = -1000.0
    highest_hu: float = 600.0
    dir_t: BSplineSettings = field(default_factory=BSplineSettings)
    dir_l: BSplineSettings = field(default_factory=lambda: BSplineSettings(iterations=500))
    box_margin_mm: float = 20.0
    lung_margin_mm: float = 5.0
    beside_lung_margin_mm: float = 15.0
    blend_mm: float = 15.0
    room_mm: float = 30.0
    least_region_cc: float = 8.0  # one cell of the 20 mm grid
    coarser_grid: float = 1.6
    stiffer_bending: float = 10.0
    lungs: LungSettings = field(default_factory=LungSettings)
    folding: FoldingLimits = field(default_factory=FoldingLimits)
    threads: int = 1
    wall_limit_s: float = 300.0
    memory_limit_gib: float = 4.0

    @classmethod
    def for_breath_hold_ct(cls) -> DeformableSettings:
        """For two clean CTs of one patient in different breath holds; never for a cone beam.

        The finest grid that does not fold on the public landmark pair (benchmarks/deformable.py).
        """
        return cls(dir_l=BSplineSettings(grid_mm=16.0, iterations=500))


@dataclass(frozen=True, kw_only=True)
class RegistrationSettings:
    """All of registration.

    Attributes:
        focus: Which answer carries the prior: ``body`` (a bone match) or ``target`` (soft tissue).
    """

    focus: Focus = "body"
    rigid: RigidSettings = field(default_factory=RigidSettings)
    limits: QualityLimits = field(default_factory=QualityLimits)
    deformable: DeformableSettings = field(default_factory=DeformableSettings)
