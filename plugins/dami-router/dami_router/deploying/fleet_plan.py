"""What is to run: a server for each variant (or one live server), its size, and the names of everything.

Kubernetes allows 63 lower-case characters for most names. Objects are therefore called `NAME-l040`, where NAME comes
from the family's name or from the user; models keep the variant's own id everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dami_router.deploying.model_shape import ModelShape, read_config
from dami_router.deploying.sizing import GIB, USABLE, Fit, gpus_of, loading_seconds, one_model, require_fit
from dami_router.errors import MisuseError
from dami_router.manifest.family import Family, Variant
from dami_router.manifest.published import open_family
from dami_router.shared.suggestions import listed

__all__ = ["DeploySettings", "Engine", "FleetPlan", "ServerPlan", "WeightsPlace", "gpu_layout", "make_plan"]

Engine = Literal["vllm", "tgi"]
LONGEST_NAME = 63
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._/-]*)?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_DEFAULT_CONTEXT = 32768


@dataclass(frozen=True)
class DeploySettings:
    """What the user decides; every target uses the settings that it has a place for."""

    engine: Engine = "vllm"
    name: str | None = None
    namespace: str = "default"
    gpu_memory: float = 80.0
    gpus: int | None = None
    replicas: int = 1
    context: int | None = None
    only: tuple[float, ...] = ()
    image: str | None = None
    gateway: str | None = None
    gateway_url: str | None = None
    live: bool = False


@dataclass(frozen=True)
class WeightsPlace:
    """Where a server gets its weights: a repository at a commit, or a folder of this machine."""

    model: str
    revision: str | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class ServerPlan:
    """One server: its object's name, the variant, and where its weights are. `variant` is None for a live server."""

    name: str
    variant: Variant | None
    source: WeightsPlace

    @property
    def model(self) -> str:
        """The name under which the server has its model."""
        return self.variant.id if self.variant else "live"

    @property
    def opens_think(self) -> bool:
        """Whether its chat template ends inside a `<think>` block."""
        return self.variant is not None and self.variant.chat_template.opens_think


@dataclass(frozen=True)
class FleetPlan:
    """Everything that a target needs: servers, sizes, names, and the user's settings.

    `family` holds the variants that are deployed, of `variants_in_all` that it has.
    """

    family: Family
    variants_in_all: int
    settings: DeploySettings
    name: str
    servers: tuple[ServerPlan, ...]
    context: int
    fit: Fit
    gpu_bytes: int
    loading_s: int


def make_plan(
    place: str, settings: DeploySettings, *, needs_hub: bool, longest_suffix: str, quantized: bool = False
) -> FleetPlan:
    """Read the family and size its servers.

    `place` is a folder, a manifest or a Hub id. `longest_suffix` is the longest ending that the target adds to a
    server's name. `quantized`: models of 8 bits in one process, on no GPU of a known size. Raises MisuseError where
    the family cannot be run so, and what reading a family raises.
    """
    _require_sound(settings)
    whole = open_family(place)
    variants = _chosen(whole, settings.only)
    family = whole.model_copy(update={"variants": variants})
    name = _name(family, settings.name)
    folder = _folder(place)
    if needs_hub or folder is None:
        _require_pushed(family, [] if settings.live else variants)
    servers = (
        [ServerPlan(f"{name}-live", None, _live_place(family))]
        if settings.live
        else [ServerPlan(_object(name, family, v), v, _source(v, folder, needs_hub)) for v in variants]
    )
    _require_names(servers, longest_suffix)
    shape = ModelShape.of(family, read_config(family, variants[0], folder), quantized=quantized)
    if settings.live:
        shape = ModelShape(2 * shape.weights, shape.token, shape.context, shape.heads, shape.kv_heads)
    context = _context(settings.context, shape, family)
    gpu_bytes = int(settings.gpu_memory * GIB)
    what = f"a live server of {family.name}" if settings.live else f"a variant of {family.name}"
    size = one_model(shape, context) if quantized else require_fit(shape, context, gpu_bytes, what)
    return FleetPlan(
        family, len(whole.variants), settings, name, tuple(servers), context, size, gpu_bytes, loading_seconds(shape)
    )


def _require_sound(settings: DeploySettings) -> None:
    """Refuse what the generated files have no place for; raises MisuseError that names the option."""
    url, gateway, image = settings.gateway_url, settings.gateway, settings.image
    wrong = {
        "--gpu-memory: expected a number of GiB": math.isnan(settings.gpu_memory),
        "--namespace: expected lower-case letters, digits and dashes, at most 63": not _namespace(settings.namespace),
        "--gateway: expected NAMESPACE/NAME": gateway is not None
        and not all(map(_namespace, gateway.split("/", 1) if "/" in gateway else ("",))),
        "--gateway-url: expected http://HOST[:PORT]": url is not None and not _URL.fullmatch(url),
        "--image: expected the name of an image": image is not None and not _IMAGE.fullmatch(image),
    }
    for message, found in wrong.items():
        if found:
            raise MisuseError(message)


def _namespace(text: str) -> bool:
    return len(text) <= LONGEST_NAME and _LABEL.fullmatch(text) is not None


def _folder(place: str) -> Path | None:
    path = Path(place)
    if not path.exists():
        return None
    return (path if path.is_dir() else path.parent).resolve()


def _chosen(family: Family, only: Sequence[float]) -> list[Variant]:
    found = sorted(family.variants, key=lambda variant: variant.lambda_)
    if not found:
        raise MisuseError(f"{family.name}: the family has no variants", hint="build it to its end")
    known = [variant.lambda_ for variant in found]
    if missing := [f"{lambda_:g}" for lambda_ in only if lambda_ not in known]:
        raise MisuseError(
            f"{family.name} has no variant at λ = {', '.join(missing)}; it has {listed(f'{x:g}' for x in known)}"
        )
    return [variant for variant in found if not only or variant.lambda_ in only]


def _require_pushed(family: Family, variants: Sequence[Variant]) -> None:
    lacking = [variant.id for variant in variants if variant.hub is None]
    if lacking:
        raise MisuseError(
            f"{family.name}: this target downloads the weights from the Hub, and the manifest names no repository of "
            f"{listed(lacking)}",
            hint="`dami push` publishes the family and writes its repositories into the manifest; "
            "`--target compose` and `--target llama-server` also run a folder",
        )


def _name(family: Family, given: str | None) -> str:
    name = given or re.sub(r"[^a-z0-9]+", "-", family.name.lower()).strip("-")
    if not given and name and not name[0].isalpha():
        name = f"dami-{name}"
    if not _LABEL.fullmatch(name):
        raise MisuseError(
            f"{name!r:.80}: expected a name of lower-case letters, digits and dashes that starts with a letter, such "
            "as qwen3-4b",
            hint="--name NAME",
        )
    return name


def _object(name: str, family: Family, variant: Variant) -> str:
    ending = variant.id.removeprefix(f"{family.name}-")
    return f"{name}-{re.sub(r'[^a-z0-9]+', '-', ending.lower()).strip('-')}"


def _require_names(servers: Sequence[ServerPlan], suffix: str) -> None:
    names = [server.name for server in servers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MisuseError(f"two variants would both be called {twice[0]}", hint="choose variants with --only")
    longest = max(names, key=len)
    if len(longest) + len(suffix) > LONGEST_NAME:
        room = LONGEST_NAME - len(suffix) - (len(longest) - len(longest.rsplit("-", 1)[0]))
        raise MisuseError(
            f"{longest}{suffix} has {len(longest) + len(suffix)} characters; names have at most {LONGEST_NAME}",
            hint=f"--name NAME with at most {max(room, 1)} characters",
        )


def _source(variant: Variant, folder: Path | None, needs_hub: bool) -> WeightsPlace:
    if variant.hub is not None and (needs_hub or folder is None or not (folder / variant.folder).is_dir()):
        return WeightsPlace(variant.hub.repo, variant.hub.revision)
    if folder is None or not (folder / variant.folder).is_dir():
        raise MisuseError(
            f"{variant.id}: neither a folder beside the manifest nor a repository in it", hint="build it, or push it"
        )
    return WeightsPlace(f"/models/{variant.folder}", folder=folder / variant.folder)


def _live_place(family: Family) -> WeightsPlace:
    """Return where a live server gets Instruct; raises MisuseError where `dami live` cannot be told the pair."""
    for endpoint in (family.endpoints.instruct, family.endpoints.thinking):
        if not _HUB_ID.fullmatch(endpoint.source):
            raise MisuseError(
                f"{family.name}: a live server downloads both endpoints from the Hub, and {endpoint.source:.120} is "
                "not an id there",
                hint="leave --live out, or start `dami live` yourself with the two folders",
            )
    if not isinstance(family.path, str) or family.path == "recipe":
        raise MisuseError(
            f"{family.name}: its λ is spread over the layers by its recipe, which --live has no place for",
            hint="leave --live out, or start `dami live RECIPE --engine vllm` yourself",
        )
    return WeightsPlace(family.endpoints.instruct.source, family.endpoints.instruct.commit)


def _context(given: int | None, shape: ModelShape, family: Family) -> int:
    if given is not None and given > shape.context:
        raise MisuseError(f"--context {given}: {family.name} was trained for at most {shape.context} tokens")
    return given or min(_DEFAULT_CONTEXT, shape.context)


def gpu_layout(plan: FleetPlan, servers: int) -> Sequence[tuple[Sequence[int], float]]:
    """Place servers on the GPUs of one machine: for each, its GPUs and the fraction of them that it may use.

    Raises MisuseError where `--gpus` are too few.
    """
    each = plan.fit.gpus
    gpus = plan.settings.gpus or servers * each
    most = max(1, int(plan.gpu_bytes * USABLE // plan.fit.needed)) if each == 1 else 1
    groups = gpus // each
    if groups * most < servers:
        group = "each" if each == 1 else f"each {each} of them"
        raise MisuseError(
            f"{servers} servers do not fit on {gpus_of(gpus)} of {plan.gpu_bytes / GIB:g} GiB: each needs "
            f"{plan.fit.needed / GIB:.1f} GiB on {gpus_of(each)}, so {most} fit{'s' * (most == 1)} on {group}",
            hint=f"--gpus {-(-servers // most) * each}, fewer variants (--only λ), or a shorter --context",
        )
    sharing = [len(range(group, servers, groups)) for group in range(groups)]
    return [
        (range(i % groups * each, i % groups * each + each), int(USABLE / sharing[i % groups] * 100) / 100)
        for i in range(servers)
    ]
