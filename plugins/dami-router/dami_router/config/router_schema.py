"""router.yml as it is written: every key with its type, bounds, default and description.

The descriptions and bounds are also the published JSON Schema, docs/router.schema.json, by which editors complete and
check the file. What needs more than the file itself (the family, the environment, installed estimators) is checked by
the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.json_schema import GenerateJsonSchema

from dami_router.choosing.policy import Rule
from dami_router.config.router_values import (
    Count,
    CountOrNone,
    Effort,
    HeaderNames,
    Lambda,
    LambdaOrEffort,
    Load,
    Origin,
    Path_,
    Seconds,
    SecondsOrNone,
    Share,
    Shift,
    Texts,
    Tokens,
    UpTo1024,
    Urls,
    estimators,
    listed,
)  # fmt: skip
from dami_router.estimators.chain import Chain
from dami_router.estimators.confidence import Choice, Confidence
from dami_router.messages.hints import Hints
from dami_router.shared.strict_model import Flag, Many, Some, StrictModel, Text, Wrong, one_of, shown

__all__ = [
    "AffinitySpec", "BackendEntry", "BreakerSpec", "BudgetSpec", "ConfidenceSettings", "EstimatorLink",
    "EstimatorSection", "HintsSection", "Limits", "LiveEntry", "PolicySpec", "ProbeSpec", "Retries", "RouterFile",
    "ServedEntry", "ShadowSection", "Timeouts", "VariantEntry", "router_json_schema",
]  # fmt: skip


class VariantEntry(StrictModel):
    """A variant of a family that has no manifest."""

    id: Text = Field(description="What clients and backends call it, and the name under which a server has it.")
    lambda_: Lambda = Field(alias="lambda", description="λ: 0 is the Instruct endpoint, 1 the Thinking endpoint.")
    opens_think: Flag = Field(default=False, description="The chat template ends inside a `<think>` block.")


class _AnyBackend(StrictModel):
    url: Urls = Field(description="Base URL, with or without /v1; a list for replicas.")
    api_key_env: Text | None = Field(default=None, description="Environment variable that holds the server's key.")
    ca: Text | None = Field(
        default=None,
        description="PEM file, relative to this file, of the authorities trusted for its https URLs, instead of the "
        "system's.",
    )
    identity: Annotated[Literal["check", "off"], one_of("check", "off")] = Field(
        default="check", description="Check that the server has this model; `off` trusts this file."
    )
    balanced: Flag = Field(
        default=False,
        description="Each URL stands for several servers, like a Kubernetes Service: retry a failed call there once.",
    )


class ServedEntry(_AnyBackend):
    """A server of one variant."""

    variant: Text = Field(description="The variant's id.")
    protocol: Annotated[Literal["tgi", "openai"], one_of("tgi", "openai", "live")] = Field(
        description="`openai` is any server with OpenAI's routes, such as vLLM."
    )
    model: Text | None = Field(default=None, description="The server's name for the variant, if it is not the id.")


class LiveEntry(_AnyBackend):
    """A server that answers at any λ: `dami live`."""

    protocol: Literal["live"]
    instruct: Text | None = Field(default=None, description="Instruct endpoint that it must have; needs `thinking`.")
    thinking: Text | None = Field(default=None, description="Thinking endpoint that it must have; needs `instruct`.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_a_variant(cls, data: object) -> object:
        if isinstance(data, dict) and "variant" in data:
            raise Wrong(("variant",), "a live server has every λ, and so no variant", "leave `variant` out")
        return data

    @model_validator(mode="after")
    def _both_or_neither(self) -> LiveEntry:
        if bool(self.instruct) != bool(self.thinking):
            raise Wrong(("thinking" if self.instruct else "instruct",), "is missing")
        return self


def _protocol(data: object) -> str:
    said = data.get("protocol") if isinstance(data, dict) else getattr(data, "protocol", None)
    return "<live>" if said == "live" else "<served>"


BackendEntry = Annotated[
    Annotated[ServedEntry, Tag("<served>")] | Annotated[LiveEntry, Tag("<live>")], Discriminator(_protocol)
]


class ConfidenceSettings(StrictModel):
    """How confidence is measured, and how it becomes λ."""

    form: Annotated[Choice, one_of(*get_args(Choice))] = Field(
        default=Confidence.form, description="What is measured; `auto` is the best that the servers can give."
    )
    tokens: UpTo1024 | None = Field(
        default=None, description=f"Longest answer of the probe. Default: the map's, or {Confidence.tokens}."
    )
    map: Text | None = Field(default=None, description="A file of `dami calibrate`, relative to this file.")
    timeout: Seconds = Field(default=Confidence.timeout, description="Seconds for all its requests together.")
    cache: CountOrNone = Field(default=Confidence.cache, description="Queries whose result is kept, by digest.")


class EstimatorLink(StrictModel):
    """One estimator with its settings. Other packages' estimators are extra keys."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"minProperties": 1, "maxProperties": 1})
    __pydantic_extra__: dict[str, dict[str, Any] | None] = Field(init=False)

    effort: dict[Effort, Lambda] | None = Field(
        default=None, description="λ for each `reasoning_effort` that a request may name; the rest keep their defaults."
    )
    confidence: ConfidenceSettings | None = Field(
        default=None, description="λ from the served Instruct variant's confidence in its direct answer."
    )
    trained: Text | None = Field(default=None, description="Folder that `dami train` wrote, relative to this file.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: object) -> object:
        if not isinstance(data, dict) or len(data) != 1:
            raise Wrong((), f"expected the name of an estimator, or `name: settings`, found {shown(data)}")
        return data

    @property
    def name(self) -> str:
        """The estimator's name."""
        return next(iter(self.model_fields_set))

    @property
    def options(self) -> dict[str, Any]:
        """The settings of another package's estimator."""
        return (self.model_extra or {}).get(self.name) or {}


def _alone(value: object) -> object:
    return [value] if isinstance(value, str | dict) else value


def _form(data: object) -> str:
    return "<name>" if isinstance(data, str) else "<settings>"


Link = Annotated[
    Annotated[Text, Field(examples=["effort", "confidence"]), Tag("<name>")]
    | Annotated[EstimatorLink, Tag("<settings>")],
    Discriminator(_form),
]


class EstimatorSection(StrictModel):
    """Estimators of λ(q). The first that has a result decides."""

    chain: Annotated[Many[Link] | None, BeforeValidator(estimators)] = Field(
        default=(), description="Estimators in order: `effort`, `confidence`, `trained: FOLDER`, or an installed one."
    )
    fixed: Lambda = Field(default=0.5, description="λ if no estimator of the chain has a result.")
    timeout: Seconds = Field(default=Chain.timeout, description="Seconds for each estimator without its own limit.")


class BudgetSpec(StrictModel):
    """A mean over the last requests that the choice of variants keeps to; either of λ or of tokens."""

    mean_lambda: Lambda | None = Field(default=None, description="Highest mean λ.")
    mean_tokens: Tokens | None = Field(default=None, description="Highest mean number of generated tokens.")
    window: Count = Field(default=200, description="Number of last requests that the mean is taken over.")

    @model_validator(mode="after")
    def _one_mean(self) -> BudgetSpec:
        if (self.mean_lambda is None) == (self.mean_tokens is None):
            raise Wrong((), "expected either mean_lambda or mean_tokens")
        return self

    @property
    def unit(self) -> Literal["lambda", "tokens"]:
        """What the mean is of."""
        return "lambda" if self.mean_tokens is None else "tokens"

    @property
    def mean(self) -> float:
        """The mean λ or mean tokens, whichever is given."""
        return (self.mean_lambda or 0.0) if self.mean_tokens is None else self.mean_tokens


class PolicySpec(StrictModel):
    """How λ(q) becomes a variant."""

    rule: Annotated[Rule, one_of(*get_args(Rule))] = Field(
        default="nearest", alias="choose", description="How a variant is chosen for λ(q)."
    )
    lambda_min: Lambda = Field(default=0.0, description="Smallest λ that an estimate can have.")
    lambda_max: Lambda = Field(default=1.0, description="Largest λ that an estimate can have.")
    sticky: Flag = Field(
        default=False, description="Within a conversation, λ never goes down, and stays while tools are called."
    )
    drop_dominated: Flag = Field(default=True, description="Use dominated variants only as a last fallback.")
    budget: BudgetSpec | None = Field(default=None, description="Limit on the mean λ or mean tokens. None by default.")

    @model_validator(mode="after")
    def _some_lambda_is_left(self) -> PolicySpec:
        if self.lambda_min > self.lambda_max:
            raise Wrong(("lambda_min",), f"{self.lambda_min:g} is above lambda_max, {self.lambda_max:g}")
        return self


class Timeouts(StrictModel):
    """Timeouts of a call to a server, in seconds."""

    connect: Seconds = Field(default=2.0, description="Until a connection is open.")
    first_byte: Seconds = Field(default=60.0, description="Until the first event of a streamed reply.")
    idle: Seconds = Field(default=60.0, description="Between two reads of a streamed reply.")
    total: Seconds = Field(default=600.0, description="For a whole request.")
    keepalive: Seconds = Field(default=4.0, description="How long an unused connection stays open.")


class Retries(StrictModel):
    """Calls that one request may take."""

    attempts: Count = Field(default=6, description="Most calls for one request.")
    backoff: SecondsOrNone = Field(
        default=0.05, description="The nth call waits a random time of at most backoff·2ⁿ⁻² seconds."
    )


class ShadowSection(StrictModel):
    """A second decision that changes nothing and is counted in metrics."""

    estimator: Annotated[Many[Link], BeforeValidator(_alone, json_schema_input_type=Link | Many[Link])] = Field(
        description="An estimator, or a chain of them, as in `estimator.chain`."
    )
    fixed: Lambda = Field(default=0.5, description="λ if none of them has a result.")
    timeout: Seconds = Field(default=Chain.timeout, description="Seconds for each estimator without its own limit.")
    share: Share = Field(default=0.1, description="Fraction of the requests with an estimated λ, picked at random.")


class AffinitySpec(StrictModel):
    """How the replica of a variant is chosen: a conversation stays on one, which has its beginning cached."""

    enabled: Flag = Field(default=True, description="Keep a conversation on one replica; false: the least busy one.")
    headers: HeaderNames = Field(
        default=("x-session-id",),
        description="Headers that name a session: the first that a request has decides on the replica. They are passed "
        "on to the servers, for pickers of their own.",
    )
    load: Load = Field(
        default=1.25, description="A replica with more than this times the mean number of calls gets no others."
    )


class BreakerSpec(StrictModel):
    """When a replica that keeps failing gets no requests, and for how long."""

    failures: Count = Field(default=5, description="Failures in a row that open the breaker.")
    open_s: Seconds = Field(default=5.0, description="Seconds until one request is let through as a trial.")


class Limits(StrictModel):
    """What the proxy accepts."""

    concurrency: Count = Field(default=256, description="Requests at a time.")
    queue: CountOrNone = Field(default=256, description="Requests that may wait.")
    queue_wait: Seconds = Field(default=10.0, description="Longest wait, in seconds.")
    body_bytes: Count = Field(default=16 << 20, description="Largest request body, in bytes, packed or unpacked.")
    body_s: Seconds = Field(default=60.0, description="Seconds for a request's body to arrive.")
    header_bytes: Count = Field(default=64 << 10, description="Largest request line and headers together, in bytes.")
    header_fields: Count = Field(default=100, description="Most headers of a request.")
    header_s: Seconds = Field(default=10.0, description="Seconds for a request's headers to arrive.")
    connections: Count = Field(default=1024, description="Open connections.")
    drain: SecondsOrNone = Field(default=30.0, description="Seconds that running requests have after SIGTERM.")


class HintsSection(StrictModel):
    """Which hints of a request count as its effort, beside `reasoning_effort` and `reasoning.effort`."""

    enable_thinking: Flag = Field(
        default=Hints.enable_thinking,
        description="`chat_template_kwargs.enable_thinking`: false is none, true high.",
    )
    switches: Flag = Field(
        default=Hints.switches, description="`/no_think` and `/think` in the last user message, as Qwen3 has them."
    )
    low_budget: CountOrNone = Field(
        default=Hints.low_budget, description="Anthropic's `budget_tokens` up to this is low."
    )
    medium_budget: CountOrNone = Field(
        default=Hints.medium_budget, description="Anthropic's `budget_tokens` up to this is medium, and above it high."
    )

    @model_validator(mode="after")
    def _in_order(self) -> HintsSection:
        if self.low_budget > self.medium_budget:
            raise Wrong(("low_budget",), f"{self.low_budget} is above medium_budget, {self.medium_budget}")
        return self

    def facts(self) -> Hints:
        """Return the hints as requests are read by."""
        return Hints(**self.model_dump())


class ProbeSpec(StrictModel):
    """How often each server is checked."""

    interval: Seconds = Field(default=10.0, description="Seconds between two checks of a server.")
    timeout: Seconds = Field(default=5.0, description="Seconds for one check.")


class RouterFile(StrictModel):
    """router.yml: which variants there are, where they are served, and how to choose between them."""

    family: Text | None = Field(
        default=None, description="A built family: a folder or manifest, relative to this file, or an id on the Hub."
    )
    variants: Some[VariantEntry] | None = Field(default=None, description="The variants, instead of `family`.")
    backends: Some[BackendEntry] | None = Field(default=None, description="The servers.")
    estimator: EstimatorSection | None = Field(
        default=None, description="How λ(q) is estimated. Default: `chain: [effort]`, then 0.5."
    )
    shadow: ShadowSection | None = Field(
        default=None, description="Estimators to try out: what they would change is counted, not done. None by default."
    )
    thinking_budget: dict[LambdaOrEffort, CountOrNone] = Field(
        default={},
        description="Most thinking tokens of an answer, by effort or by the λ up to which it holds; for servers that "
        "have `thinking_token_budget`, such as vLLM with a reasoning parser.",
    )
    effort_shift: dict[Effort, Shift] | None = Field(
        default=None, description="Moves estimates by `reasoning_effort`, instead of the estimator `effort`."
    )
    policy: PolicySpec = PolicySpec()
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    affinity: AffinitySpec = AffinitySpec()
    breaker: BreakerSpec = BreakerSpec()
    limits: Limits = Limits()
    probe: ProbeSpec = ProbeSpec()
    api_keys_env: Texts | None = Field(
        default=None, description="Environment variables; clients must send the key in one of them. None by default."
    )
    thinking: Annotated[Literal["pass", "split"], one_of("pass", "split")] = Field(
        default="pass", description="`split` moves the thoughts of chat replies into reasoning_content."
    )
    hints: HintsSection = HintsSection()
    aliases: dict[Text, Text] = Field(
        default={},
        description="Other names for `dami`, a pinned λ such as `dami:0.5`, an effort such as `dami:low`, or a "
        "variant's id.",
    )
    pass_through: Annotated[Many[Path_], BeforeValidator(listed, json_schema_input_type=Path_ | Many[Path_])] = Field(
        default=(), description="Further routes of the servers that clients may use, such as /v1/embeddings."
    )
    cors: Annotated[Many[Origin], BeforeValidator(listed, json_schema_input_type=Origin | Many[Origin])] = Field(
        default=(), description="Origins whose pages may send requests from a browser; `*` for all. None by default."
    )


class _Untitled(GenerateJsonSchema):
    """A schema without a title for each key, which editors would show above the description."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def router_json_schema() -> Mapping[str, Any]:
    """Return the JSON Schema of router.yml."""
    made = RouterFile.model_json_schema(by_alias=True, schema_generator=_Untitled)
    return {"$schema": GenerateJsonSchema.schema_dialect, **made}
