"""`dami deploy`: from a family to the files that run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from dami_router.cli import command
from dami_router.commands.shared_options import given_options
from dami_router.output import Output, table

if TYPE_CHECKING:
    from dami_router.deploying.fleet_plan import Engine, FleetPlan

__all__ = ["deploy"]

_TARGETS = ("compose", "production-stack", "kserve", "gateway", "ray", "llama-server")


@command(
    "deploy",
    examples=(
        "dami deploy my-org/Qwen3-4B-DAMI-l040 --target compose --gpus 2 --gpu-memory 80 --out fleet",
        "dami deploy ./Qwen3-4B-DAMI --target compose --engine tgi --only 0 --only 0.8 --out fleet",
        "dami deploy my-org/Qwen3-4B-DAMI-l040 --target kserve --namespace chat --name qwen3-4b --out fleet",
        "dami deploy my-org/Qwen3-4B-DAMI-l040 --target ray --replicas 2 --router section.yml --out fleet",
    ),
    help="Write everything that runs a family: servers for its variants, the router in front, keys as secrets. FAMILY "
    "is a folder, a manifest, or the family on the Hub, which the id of any of its variants names. Targets: compose "
    "(one machine), production-stack, kserve, gateway (InferencePool) and ray on Kubernetes, llama-server (a laptop). "
    "The output ends with the file to read first: it opens with the commands to run, a request with the reply to "
    "expect, and who can reach the servers. Nothing is started, and an existing folder is never overwritten.",
)
@click.argument("family")
@click.option("--target", type=click.Choice(_TARGETS), required=True, help="Where the family is to run.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--engine", type=click.Choice(["vllm", "tgi"]), default="vllm", show_default=True, help="The servers.")
@click.option("--live", is_flag=True, help="One server of `dami live --engine vllm` instead of one for each variant.")
@click.option("--only", multiple=True, type=click.FloatRange(0, 1), help="Deploy only this λ. Repeatable.")
@click.option(
    "--gpu-memory", default=80.0, show_default=True, type=click.FloatRange(1, 1024), help="Memory of one GPU, in GiB."
)
@click.option(
    "--gpus",
    type=click.IntRange(1, 1024),
    help="For compose: GPUs of the machine; servers share them where they fit.  [default: as many as servers need]",
)
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1, 64), help="Servers for each variant.")
@click.option(
    "--context",
    type=click.IntRange(min=256),
    help="The most tokens of prompt and answer together.  [default: 32768, or the model's limit]",
)
@click.option("--router", type=click.Path(path_type=Path), help="Settings of the router, as for `dami live --router`.")
@click.option("--image", help="The router's image, where the cluster can pull it.  [default: dami-router:VERSION]")
@click.option("--name", help="The beginning of all names.  [default: the family's name, in lower case]")
@click.option("--namespace", default="default", show_default=True, help="The namespace on Kubernetes.")
@click.option("--gateway", help="The Gateway for kserve and gateway, as NAMESPACE/NAME.")
@click.option("--gateway-url", help="Its URL inside the cluster.  [default: Istio's Service for it]")
def deploy(output: Output, family: str, target: str, out: Path, router: Path | None, **options: Any) -> None:
    """Write the folder."""
    from dami_router.deploying.deploy_targets import TARGETS
    from dami_router.deploying.deploy_targets import deploy as write
    from dami_router.deploying.fleet_plan import DeploySettings

    options["engine"] = cast("Engine", options["engine"])
    given = [option.name for option in given_options() if option.name in options]
    plan, section, files = write(family, target, out, DeploySettings(**options), router, given)
    facts = _facts(plan, target)
    output.result(
        "\n".join([_table(plan), "", *_lines(plan), "", f"wrote {out}: {', '.join(sorted(files))}"]),
        {"out": str(out), **facts, "asks_for_keys": bool(section.keys), "files": sorted(files)},
    )
    if not section.keys:
        output.warning(f"the router will ask clients for no key: api_keys_env of {router} is empty")
    output.hint(f"the commands at the top of {out / TARGETS[target].first}")


def _facts(plan: FleetPlan, target: str) -> dict[str, Any]:
    size = plan.fit
    memory = {"bytes_on_each_gpu": size.needed} if size.gpus else {"bytes_of_each_model": size.needed}
    return {
        "family": plan.family.name,
        "target": target,
        "name": plan.name,
        "servers": [
            {"name": s.name, "variant": s.variant.id if s.variant else None, "model": s.source.model}
            for s in plan.servers
        ],
        "replicas": plan.settings.replicas,
        "gpus_each": size.gpus,
        **memory,
        "context": plan.context,
        "cache_tokens": size.cache_tokens,
    }


def _table(plan: FleetPlan) -> str:
    rows = [[s.name, f"{s.variant.lambda_:g}" if s.variant else "any", s.source.model] for s in plan.servers]
    if not plan.fit.gpus:
        return table(("model", "λ", "weights"), rows)
    counts = [str(plan.settings.replicas), str(plan.fit.gpus)]
    return table(("server", "λ", "replicas", "GPUs each", "weights"), [[*row[:2], *counts, row[2]] for row in rows])


def _lines(plan: FleetPlan) -> list[str]:
    from dami_router.deploying.sizing import ALLOWANCE, GIB, USABLE

    size, whole = plan.fit, plan.settings.gpu_memory
    sequence = f"keys and values of one sequence of {plan.context} tokens"
    family = f"family   {plan.family.name}: {_which(plan)}"
    if not size.gpus:
        every = f"; {size.needed * len(plan.servers) / GIB:.1f} GiB for all" if len(plan.servers) > 1 else ""
        return [family, f"memory   {size.needed / GIB:.1f} GiB for a loaded model: weights in q8_0, {sequence}{every}"]
    where = "one GPU" if size.gpus == 1 else f"each of {size.gpus} GPUs"
    return [
        family,
        f"memory   {size.needed / GIB:.1f} GiB on {where}: weights, {sequence}, {ALLOWANCE / GIB:g} GiB for the rest",
        f"room     {size.cache_tokens} tokens of keys and values where a server has {USABLE:.0%} of {whole:g} GiB",
    ]


def _which(plan: FleetPlan) -> str:
    if plan.settings.live:
        return "every λ from 0 to 1 on one live server"
    chosen, known = len(plan.servers), plan.variants_in_all
    if known == 1:
        return "its only variant"
    return f"all {known} variants; --only λ chooses" if chosen == known else f"{chosen} of {known} variants"
