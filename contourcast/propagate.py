"""The one verb: from a planning CT, a prior and today's CBCT to today's contours.

Pure: types in, types out; no clock but the caller's, no disk, no network, no globals. The command
line calls `propagate`; the durable workflow calls the same four steps and writes down the result
of each before the next begins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import numpy as np
from jaxtyping import Float

from contourcast.imaging.distance import carry, distance_map, filled
from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.imaging.metrics import Agreement, agreement, dice
from contourcast.imaging.resample import Moved
from contourcast.imaging.structures import Contour, Roi, nearest_name
from contourcast.imaging.trace import trace
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Figure, Quality, Verdict
from contourcast.imaging.volume import Mask, Probability, Volume, require_same_frame
from contourcast.models.networks import SEGMENTING
from contourcast.registration.methods import METHODS, Task
from contourcast.registration.result import Registrations
from contourcast.registration.settings import RegistrationSettings

# The network that is meant when none is named; a model folder may hold any other of the house.
NETWORK = "diff-umamba"
ALL_METHODS: tuple[str, ...] = (*METHODS, NETWORK)
KNOWN_METHODS: tuple[str, ...] = (*METHODS, *SEGMENTING)

# Raised whenever the same input may give other contours than before: UIDs follow from it.
RESULT_VERSION = 5

# Dice of a network's contour and the carried prior below which somebody has to look: a target that
# shrank to a quarter inside its prior has 0.40. Of 80 unseen virtual fractions three are below it,
# an organ that the network does not know had 0.36 (docs/decisions/0012).
LEAST_OF_PRIOR = 0.4

# One colour per method, everywhere: structure sets, pictures, pages. Told apart with colour-blind
# eyes and on grey (after Okabe and Ito's palette, brightened for a dark ground).
COLORS_RGB: dict[str, tuple[int, int, int]] = {
    "translation": (230, 159, 0),
    "rigid": (86, 180, 233),
    "dir-t": (0, 200, 140),
    "dir-l": (240, 228, 66),
    NETWORK: (255, 70, 120),
}

OnStep = Callable[[str, float], None]
"""Told what is going on (a sentence) and how much of the whole is done (0 to 1)."""


class DeviceError(ContourcastError):
    """The GPU failed in such a way that this process can compute nothing more on it."""


# How errors of CUDA and of its libraries begin …
_OF_CUDA = ("cuda error", "cudnn error", "cudnn_status", "cublas_status")
# … and those after which its context goes on: want of memory, and what a device cannot do at all.
_HARMLESS = ("out of memory", "alloc_failed", "not_supported", "no kernel image")


@contextmanager
def computing_on(device: str) -> Iterator[None]:
    """Tells a GPU that is lost from a computation that went wrong.

    After an illegal access, or a fault of the hardware, each later call to the device fails as
    well; only a new process gets a new context.

    Raises:
        DeviceError: It is lost.
    """
    try:
        yield
    except RuntimeError as error:
        if device.startswith("cuda") and _is_of_a_lost_device(error):
            raise DeviceError(
                "the GPU failed, and this process can compute nothing more on it",
                remedy="start it anew; when that does not help, look at nvidia-smi",
            ) from error
        raise


def _is_of_a_lost_device(error: RuntimeError) -> bool:
    said = str(error).lower()
    of_cuda = type(error).__name__ == "AcceleratorError" or any(one in said for one in _OF_CUDA)
    return of_cuda and not any(one in said for one in _HARMLESS)


class Network(Protocol):
    """What a network is to the pipeline: today's region from today's scan and the r-CT channel."""

    @property
    def name(self) -> str:
        """What it is called in results, such as ``diff-umamba``."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of its weights."""

    def predict(
        self,
        cbct: Volume,
        r_ct: Probability,
        planning_ct: Moved | None = None,
        *,
        on_note: Callable[[str], None] = lambda note: None,
        on_unseen: Callable[[float], None] = lambda share: None,
    ) -> Probability:
        """Today's region on the CBCT's grid; empty where the r-CT channel is.

        ``on_note`` is told, in a sentence, what was done otherwise than asked, or in what the scan
        is unlike those that it was fitted on; ``on_unseen`` which share of the prior lies where
        the scan shows nothing, and therefore stands as it was.
        """


def is_network(method: str) -> bool:
    """Whether a method is a network rather than a way to carry the prior."""
    return method not in METHODS


def methods_with(network: Network | None) -> tuple[str, ...]:
    """All that a run can draw by: every way to carry the prior, and the network that is loaded."""
    return (*METHODS, *([network.name] if network is not None else []))


def color_rgb(method: str) -> tuple[int, int, int]:
    """The method's colour; all networks share one, since a run has one."""
    return COLORS_RGB.get(method, COLORS_RGB[NETWORK])


@dataclass(frozen=True, kw_only=True)
class Case:
    """One CBCT and all that is known before it.

    Attributes:
        prior: The contour to carry, drawn in the planning CT's frame of reference.
        prior_source_uid: SOP Instance UID of the structure set that holds the prior.
        start: Where registration may start beside its own guesses; None: nothing is known.
        start_is_settled: A person gave it: it is begun from, however it fits.
        vouched: What a person vouched for against the references, in words; empty: nothing.
        doubts: What is so and need not be, a sentence each; a person should look at it.
        notes: What else is odd about the prior, a sentence each.
    """

    planning_ct: Volume
    cbct: Volume
    prior: Roi
    prior_source_uid: str
    prior_digest: str = ""
    start: RigidTransform | None = None
    start_is_settled: bool = False
    vouched: str = ""
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run may be told; recorded in its result."""

    methods: tuple[str, ...] = ALL_METHODS
    registration: RegistrationSettings = field(default_factory=RegistrationSettings)
    device: str = "cpu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self.methods)))
        for name in self.methods:
            if name not in KNOWN_METHODS:
                near = nearest_name(name, KNOWN_METHODS)
                raise InputError(
                    f"no method is named '{name}'" + (f"; the nearest is '{near}'" if near else ""),
                    remedy=f"choose from {', '.join(KNOWN_METHODS)}",
                )
        if sum(is_network(name) for name in self.methods) > 1:
            raise InputError("one run asks one network", remedy="propagate once for each network")


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """One method's contour of today.

    Attributes:
        region: On the CBCT's grid; None when the method failed or nothing may be drawn.
        loops: Its surface on the CBCT's slices, LPS mm.
        failed: Why there is none, when the method itself failed.
    """

    method: str
    region: Probability | None
    loops: tuple[Contour, ...] = ()
    quality: Quality = field(default_factory=Quality)
    ended_as: str = ""
    notes: tuple[str, ...] = ()
    failed: str = ""
    seconds: float = 0.0

    @property
    def volume_cc(self) -> float | None:
        """Volume at the 0.5 level, by voxel centres."""
        return self.region.mask().volume_cc if self.region is not None else None

    @property
    def centroid_xyz_mm(self) -> Float[np.ndarray, " 3"] | None:
        """Centre of mass, LPS mm in the CBCT's frame."""
        return self.region.mask().centroid_xyz_mm() if self.region is not None else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Propagation:
    """The result: registration with quality, one contour per method, agreement, verdict.

    Attributes:
        r_ct: The prior on the CBCT's grid; all zero when the registration was rejected.
        prior_volume_cc: Of the prior on the planning CT.
        agreement: Agreement of each method with each reference method, keyed
            ``(method, reference)``; the references are ``rigid`` and the network, by its name.
    """

    case: Case
    settings: Settings
    registrations: Registrations
    registration_seconds: float
    r_ct: Probability
    drawn: tuple[Drawn, ...]
    agreement: dict[tuple[str, str], Agreement]
    prior_volume_cc: float
    quality: Quality
    network_name: str
    network_digest: str

    @property
    def verdict(self) -> Verdict:
        """The worst of the registration's and of what the contours say of each other."""
        return self.quality.verdict

    @property
    def digest(self) -> str:
        """Identity of the inputs: the same inputs give the same UIDs."""
        return inputs_digest(self.case, self.settings, self.network_digest)


def propagate(
    case: Case,
    *,
    settings: Settings,
    network: Network | None,
    clock: Callable[[], float],
    on_step: OnStep = lambda sentence, done: None,
) -> Propagation:
    """Draws today's contours by every method asked for.

    Raises:
        FrameMismatchError: Prior and planning CT do not share a frame of reference.
        InputError: The network is asked for and there is none.
    """
    on_step("registering the planning CT to the CBCT", 0.0)
    start = clock()
    registrations = register(case, settings)
    registration_seconds = clock() - start
    r_ct = carry_prior(case, registrations)
    drawn = []
    for n, method in enumerate(settings.methods):
        on_step(f"drawing: {method}", 0.2 + 0.75 * n / len(settings.methods))
        drawn.append(
            draw(case, settings, registrations, r_ct, method, network=network, clock=clock)
        )
    on_step("comparing the contours", 0.95)
    return compare(
        case,
        settings,
        registrations,
        r_ct,
        drawn,
        network=network,
        registration_seconds=registration_seconds,
    )


def register(case: Case, settings: Settings) -> Registrations:
    """Step 1: where is the planning CT today, by the whole body and by the target.

    Raises:
        FrameMismatchError: Prior and planning CT do not share a frame of reference.
        DeviceError: The GPU is lost to this process.
    """
    from contourcast.registration.rigid import register_all

    require_same_frame(case.planning_ct.frame_of_reference, case.prior.frame_of_reference)
    with computing_on(settings.device):
        return register_all(
            fixed=case.cbct,
            moving=case.planning_ct,
            prior=prior_mask(case),
            settings=settings.registration,
            start=case.start,
            start_is_settled=case.start_is_settled,
            device=settings.device,
        )


def prior_mask(case: Case) -> Mask:
    """The prior on the planning CT as it is carried: what was drawn on every second slice is whole.

    Rasterised alone it would have half its volume (docs/decisions/0011).
    """
    grid = case.planning_ct.grid
    return filled(case.prior, grid=grid, onto=grid)


def carry_prior(case: Case, registrations: Registrations) -> Probability:
    """Step 2: the r-CT channel, the prior on today's grid; all zero when nothing may be carried."""
    if registrations.rejected:
        return Probability(
            values=np.zeros(case.cbct.grid.shape_zyx, np.float32),
            grid=case.cbct.grid,
            frame_of_reference=case.cbct.frame_of_reference,
            name=case.prior.name,
        )
    return carry(
        distance_map(case.prior, grid=case.planning_ct.grid),
        registrations.chosen.planning_from_cbct,
        onto=case.cbct.grid,
    )


def draw(
    case: Case,
    settings: Settings,
    registrations: Registrations,
    r_ct: Probability,
    method: str,
    *,
    network: Network | None,
    clock: Callable[[], float],
) -> Drawn:
    """Step 3, once for each method: today's region and its surface on today's slices.

    Raises:
        DeviceError: The GPU is lost to this process.
    """
    if registrations.rejected:
        return Drawn(method=method, region=None, notes=("nothing drawn: registration rejected",))
    start = clock()
    try:
        with computing_on(settings.device):
            if is_network(method):
                drawn = _redrawn(case, settings, registrations, r_ct, method, network)
            else:
                drawn = _carried(case, settings, registrations, method)
    except DeviceError:  # this process would draw nothing else either
        raise
    except ContourcastError as error:  # one method's failure costs its row, not the run
        return Drawn(method=method, region=None, failed=str(error), seconds=clock() - start)
    except (RuntimeError, MemoryError, ArithmeticError) as error:  # as torch says want of memory
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        return Drawn(method=method, region=None, failed=why, seconds=clock() - start)
    loops = trace(drawn.region) if drawn.region is not None else ()
    return replace(drawn, loops=loops, seconds=clock() - start)


def _redrawn(
    case: Case,
    settings: Settings,
    registrations: Registrations,
    r_ct: Probability,
    method: str,
    network: Network | None,
) -> Drawn:
    if network is None:
        raise InputError("no network is loaded", remedy="name a model folder: --weights")
    if network.name != method:
        raise InputError(
            f"the model folder holds a {network.name}, and the method is {method}",
            remedy=f"ask for the method {network.name}, or name a model folder of that network",
        )
    planning_ct = Moved(
        volume=case.planning_ct, moving_from_fixed=registrations.chosen.planning_from_cbct
    )
    notes: list[str] = []
    unseen = [0.0]
    region = network.predict(
        case.cbct, r_ct, planning_ct, on_note=notes.append, on_unseen=unseen.append
    )
    in_view = _shown(1.0 - unseen[-1], least=settings.registration.limits.accept_prior_in_view)
    return Drawn(
        method=method, region=region, quality=Quality(figures=(in_view,)), notes=tuple(notes)
    )


def _shown(share: float, *, least: float) -> Figure:
    """How much of the carried prior the scan shows to the network; elsewhere the prior stands."""
    return _at_least(
        least,
        share,
        name="prior_shown",
        reason=f"the scan shows nothing at {100 * (1 - share):.0f} % of the carried prior, which "
        "stands there as it was",
    )


def _at_least(least: float, value: float, *, name: str, reason: str) -> Figure:
    """A figure below which somebody has to look, for that reason."""
    odd = value < least
    return Figure(
        name=name,
        value=value,
        limit=f"accept ≥ {least}",
        verdict=Verdict.LOOK if odd else Verdict.ACCEPT,
        reason=reason if odd else "",
    )


def _carried(case: Case, settings: Settings, registrations: Registrations, method: str) -> Drawn:
    carriage = METHODS[method](
        Task(
            fixed=case.cbct,
            moving=case.planning_ct,
            prior=prior_mask(case),
            registrations=registrations,
            settings=settings.registration,
        )
    )
    shape = distance_map(case.prior, grid=case.planning_ct.grid)
    return Drawn(
        method=method,
        region=carry(shape, carriage.planning_from_cbct, onto=case.cbct.grid),
        quality=carriage.quality,
        ended_as=carriage.ended_as,
        notes=carriage.notes,
    )


def compare(
    case: Case,
    settings: Settings,
    registrations: Registrations,
    r_ct: Probability,
    drawn: Sequence[Drawn],
    *,
    network: Network | None,
    registration_seconds: float,
) -> Propagation:
    """Step 4: what the contours say of each other and of the prior, and the verdict of it all."""
    regions = {d.method: d.region.mask() for d in drawn if d.region is not None}
    agreements = {
        (method, reference): agreement(mask, regions[reference])
        for reference in regions
        if reference == "rigid" or is_network(reference)
        for method, mask in regions.items()
        if method != reference
    }
    prior_cc = prior_mask(case).volume_cc
    figures = [*registrations.quality.figures, *map(_doubt, case.doubts)]
    judged = []
    for d in drawn:
        own = _plausibility(d, prior_cc, r_ct)
        judged.append(replace(d, quality=Quality(figures=(*d.quality.figures, *own))))
        figures += [*own, *_reservations(d)]
    return Propagation(
        case=case,
        settings=settings,
        registrations=registrations,
        registration_seconds=registration_seconds,
        r_ct=r_ct,
        drawn=tuple(judged),
        agreement=agreements,
        prior_volume_cc=prior_cc,
        quality=Quality(figures=tuple(figures)),
        network_name=network.name if network is not None else "",
        network_digest=network.digest if network is not None else "",
    )


def _doubt(sentence: str) -> Figure:
    """What was not certain before anything was drawn is no better than a look."""
    return Figure(name="belongs_together", value=None, verdict=Verdict.LOOK, reason=sentence)


def _plausibility(drawn: Drawn, prior_cc: float, r_ct: Probability) -> list[Figure]:
    """A contour that vanished, doubled or failed deserves a look."""
    if drawn.failed:
        return [
            Figure(
                name=f"{drawn.method}_drawn",
                value=0.0,
                limit="accept 1",
                verdict=Verdict.LOOK,
                reason=f"{drawn.method} failed: {drawn.failed}",
            )
        ]
    if drawn.region is None:
        return []
    ratio = (drawn.volume_cc or 0.0) / prior_cc if prior_cc else None
    odd = ratio is None or not 0.25 <= ratio <= 2.0
    figures = [
        Figure(
            name=f"{drawn.method}_volume_over_prior",
            value=ratio,
            limit="accept 0.25 to 2",
            verdict=Verdict.LOOK if odd else Verdict.ACCEPT,
            reason=(
                f"{drawn.method} drew {drawn.volume_cc:.1f} cc, the prior has {prior_cc:.1f} cc"
                if odd
                else ""
            ),
        )
    ]
    if is_network(drawn.method):
        figures.append(_overlap_with_prior(drawn, dice(drawn.region.mask(), r_ct.mask())))
    return figures


def _reservations(drawn: Drawn) -> list[Figure]:
    """What a method says of itself; its reject is a look for the whole."""
    # A translation fits worse by the rotation that it leaves out: that says nothing of the others.
    if drawn.failed or drawn.region is None or drawn.method == "translation":
        return []
    return [
        Figure(
            name=f"{drawn.method}_quality",
            value=None,
            verdict=Verdict.LOOK,
            reason=f"{drawn.method}: {reason}",
        )
        for reason in drawn.quality.reasons
    ]


def _overlap_with_prior(drawn: Drawn, overlap: float) -> Figure:
    """Whether it drew this target: a network that never saw such a one draws something else."""
    return _at_least(
        LEAST_OF_PRIOR,
        overlap,
        name=f"{drawn.method}_overlap_with_prior",
        reason=f"{drawn.method} hardly overlaps the carried prior (Dice {overlap:.2f}): the target "
        "is nearly gone, or it is of a kind that this network does not know",
    )


def inputs_digest(case: Case, settings: Settings, network_digest: str) -> str:
    """SHA-256 (hex) over all that the result depends on (CLINICAL_SERVICE §2.5)."""
    parts = {
        "cbct": case.cbct.source.digest if case.cbct.source else "",
        "planning_ct": case.planning_ct.source.digest if case.planning_ct.source else "",
        "prior": [case.prior_source_uid, case.prior_digest, case.prior.number, case.prior.name],
        "prior_xyz_mm": _digest_of(case.prior),  # a registration may have brought it home
        "start": None if case.start is None else case.start.matrix.round(9).tolist(),
        "vouched": case.vouched,
        "doubts": list(case.doubts),
        "settings": asdict(settings),
        "version": RESULT_VERSION,
        "network": network_digest,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest_of(roi: Roi) -> str:
    """SHA-256 (hex) of where a ROI lies, to a thousandth of a millimetre."""
    loops = [loop.points_xyz_mm.round(3) + 0.0 for loop in roi.loops]  # + 0.0: no negative zero
    return hashlib.sha256(b"|".join(loop.tobytes() for loop in loops)).hexdigest()
