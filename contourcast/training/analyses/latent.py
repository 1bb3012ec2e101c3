"""Is there structure in the bottleneck? Channels as points, clusters among them (NETWORKS §14.2).

Each channel of the deepest features is a row of its voxels. Rows are standardised, brought to 50
principal components, and clustered there by k-means; the number of clusters is the one with the
highest mean silhouette. The same is done in a t-SNE embedding, as a second column and with white
noise of the same shape beside it: t-SNE makes clusters out of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float, Int

from contourcast.imaging.errors import InputError
from contourcast.training.analyses.outcome import OnStep, Outcome, nobody, told_of
from contourcast.training.analyses.sites import bottleneck_of
from contourcast.training.cases import Model, case_for
from contourcast.training.pictures import COLORS, picture, quiet
from contourcast.training.samples import Sample
from contourcast.training.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTROL: Final = "white noise"
SPACES: Final = {"pca": "principal components", "t-sne": "t-SNE"}


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """What the paper leaves open, settled in NETWORKS §14.2.

    Attributes:
        components: Of the PCA, at most; fewer where the rows have fewer.
        clusters: k that are tried.
        perplexity: Of t-SNE; must be smaller than the number of channels.
        seeds: Of k-means and t-SNE.
        image_noise: Sds of Gaussian noise added to the normalised scan; the paper's second look.
        embed: Whether t-SNE is made too (it takes nearly all of the time).
    """

    components: int = 50
    clusters: tuple[int, ...] = tuple(range(2, 11))
    perplexity: float = 30.0
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    image_noise: tuple[float, ...] = (0.0,)
    embed: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """The best clustering that was found.

    Attributes:
        silhouettes: Mean silhouette for each k, mean over seeds.
        labels: Of each row, at the best k and the first seed.
    """

    k: int
    silhouette: float
    silhouettes: dict[int, float]
    labels: Int[np.ndarray, " rows"]


def latent(
    models: Sequence[Model],
    samples: Sequence[Sample],
    settings: LatentSettings | None = None,
    on_step: OnStep = nobody,
) -> Outcome:
    """A row for each model, case, noise and space (principal components, embedding).

    Raises:
        InputError: A bottleneck has too few channels for the perplexity or the clusters asked for,
            or scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise InputError(
            "this analysis needs scikit-learn", remedy="pip install 'contourcast[evidence]'"
        )
    settings = settings or LatentSettings()
    rows: list[dict[str, Any]] = []
    pictures: dict[str, tuple[np.ndarray, Clusters]] = {}
    steps = [(m, s, noise) for m in models for s in samples for noise in settings.image_noise]
    for done, (model, sample, noise) in enumerate(steps):
        on_step(f"{model.name}: {sample.name}", done / len(steps))
        case = case_for(model, sample)
        channels = case.channels.copy()
        rng = np.random.default_rng([settings.seeds[0], done])
        channels[0] += noise * rng.standard_normal(channels[0].shape, dtype=np.float32)
        tokens = bottleneck_of(model, channels).flatten(1).numpy()
        sources = {model.name: tokens}
        if noise == settings.image_noise[0]:
            sources[f"{CONTROL} like {model.name}"] = rng.standard_normal(tokens.shape)
        for name, values in sources.items():
            rows += _described(name, case.name, case.patient, noise, values, settings, pictures)
    return Outcome(
        analysis="latent",
        rows=rows,
        figure=_figure(rows, pictures, settings),
        facts={
            "settings": asdict(settings),
            "seeds": settings.seeds,
            **told_of(models, samples),
            "summary": _summary(rows),
        },
    )


def _described(
    name: str,
    case: str,
    patient: str,
    noise: float,
    values: Float[np.ndarray, "channels voxels"],
    settings: LatentSettings,
    pictures: dict[str, tuple[np.ndarray, Clusters]],
) -> list[dict[str, Any]]:
    points = principal(values, settings.components)
    spaces = {"pca": clustered([points] * len(settings.seeds), settings)}
    if settings.embed:
        embedded = [embedding(points, settings.perplexity, seed) for seed in settings.seeds]
        spaces["t-sne"] = clustered(embedded, settings)
        pictures.setdefault(name, (embedded[0], spaces["t-sne"]))
    return [
        {
            "model": name,
            "case": case,
            "patient": patient,
            "image_noise": noise,
            "space": space,
            "channels": values.shape[0],
            "best_k": found.k,
            "silhouette": found.silhouette,
            **{f"silhouette_{k}": found.silhouettes[k] for k in settings.clusters},
        }
        for space, found in spaces.items()
    ]


def principal(
    values: Float[np.ndarray, "rows columns"], components: int
) -> Float[np.ndarray, "rows components"]:
    """Rows to mean 0 and sd 1 (constant ones to zero), then their principal components."""
    from sklearn.decomposition import PCA

    centred = values - values.mean(1, keepdims=True)
    sd = centred.std(1, keepdims=True)
    rows = np.divide(centred, sd, out=np.zeros_like(centred), where=sd > 1e-8)
    most = min(components, rows.shape[0] - 1, rows.shape[1])
    points: np.ndarray = PCA(most, svd_solver="full").fit_transform(rows.astype(float))
    return points


def embedding(
    points: Float[np.ndarray, "rows components"], perplexity: float, seed: int
) -> Float[np.ndarray, "rows 2"]:
    """t-SNE to the plane, begun at the first principal components.

    Raises:
        InputError: The perplexity is not smaller than the number of rows.
    """
    from sklearn.manifold import TSNE

    if perplexity >= len(points):
        raise InputError(
            f"t-SNE with perplexity {perplexity:g} needs more than {len(points)} channels",
            remedy="choose a smaller --perplexity, or --no-embedding",
        )
    tsne = TSNE(2, perplexity=perplexity, init="random", random_state=seed)
    plane: np.ndarray = tsne.fit_transform(points)
    return plane


def clustered(
    spaces: Sequence[Float[np.ndarray, "rows axes"]], settings: LatentSettings
) -> Clusters:
    """k-means for every k, seed n in space n; silhouettes are means over seeds.

    Raises:
        InputError: There are not more rows than the most clusters asked for.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    if len(spaces[0]) <= max(settings.clusters):
        raise InputError(
            f"{len(spaces[0])} channels cannot form {max(settings.clusters)} clusters",
            remedy="ask for fewer clusters",
        )
    silhouettes: dict[int, float] = {}
    labels: dict[int, np.ndarray] = {}
    for k in settings.clusters:
        scores = []
        for points, seed in zip(spaces, settings.seeds, strict=True):
            found = KMeans(k, n_init=4, random_state=seed).fit_predict(points)
            labels.setdefault(k, found)
            several = len(set(found.tolist())) > 1
            scores.append(silhouette_score(points, found) if several else 0.0)
        silhouettes[k] = float(np.mean(scores))
    best = max(silhouettes, key=lambda k: silhouettes[k])
    return Clusters(
        k=best, silhouette=silhouettes[best], silhouettes=silhouettes, labels=labels[best]
    )


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["image_noise"], row["space"]), []).append(row)
    return [
        {
            "model": model,
            "image_noise": noise,
            "space": space,
            "best_k": [row["best_k"] for row in of],
            **asdict(estimate([r["silhouette"] for r in of], [r["patient"] for r in of])),
        }
        for (model, noise, space), of in groups.items()
    ]


def _figure(
    rows: Sequence[dict[str, Any]],
    pictures: dict[str, tuple[np.ndarray, Clusters]],
    settings: LatentSettings,
) -> Figure:
    """Mean silhouette over k in both spaces; the embeddings of the first case."""
    spaces = list(dict.fromkeys(row["space"] for row in rows))
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = picture(columns=len(spaces) + len(pictures), width=3.1, height=3.0)
    for axes, space in zip(panels, spaces, strict=False):
        for n, name in enumerate(names):
            of = [
                r
                for r in rows
                if (r["model"], r["space"]) == (name, space)
                and r["image_noise"] == settings.image_noise[0]
            ]
            course = [np.mean([r[f"silhouette_{k}"] for r in of]) for k in settings.clusters]
            control = name.startswith(CONTROL)
            axes.plot(
                settings.clusters,
                course,
                color="0.55" if control else COLORS[n // 2 % len(COLORS)],
                ls="--" if control else "-",
                marker="o",
                ms=3,
                label=name,
            )
        axes.set(
            title=f"silhouette, {SPACES[space]}", xlabel="clusters k", xticks=settings.clusters
        )
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(0.6, axes.get_ylim()[1]))
        quiet(axes)
    panels[0].legend(frameon=False, fontsize=8, loc="upper right")
    for axes, (name, (points, found)) in zip(panels[len(spaces) :], pictures.items(), strict=True):
        colors = [COLORS[label % len(COLORS)] for label in found.labels]
        axes.scatter(points[:, 0], points[:, 1], c=colors, s=9, lw=0)
        axes.set(title=f"{name}\nk = {found.k}, {found.silhouette:.2f}", xticks=[], yticks=[])
        quiet(axes)
    return figure
