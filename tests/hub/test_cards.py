"""What a repository tells its readers."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builds import build
from support.hub_state import RECIPE

from dami_merge.card import Licence, decide_licence, hub_id, make_card_files
from dami_merge.card.mergekit_config import lambdas_of, layer_lambdas
from dami_merge.card.picture import lambda_picture
from dami_merge.card.serving import longest_prompt, serving
from dami_merge.recipes.recipe import parse_recipe
from dami_router.errors import FailureError
from dami_router.manifest.family import Endpoint, Family, load_family, parse_family

APACHE = Licence("apache-2.0")
BY_MODULE = "\n    - {filter: mlp, value: early(1)}\n    - {value: power(3)}"


def changed(family: Path, **more: Any) -> Family:
    """Return the family as if its endpoints were on the Hub, with further changes."""
    data = json.loads(load_family(family).text())
    for side in ("instruct", "thinking"):
        data["endpoints"][side] |= {"source": f"Qwen/Tiny-{side.title()}@main", "commit": "ab" * 20}
    data["variants"][1] |= more
    return parse_family(json.dumps(data))


def card_of(
    family: Family, root: Path, index: int = 1, branch: str | None = None
) -> tuple[ModelCard, dict[str, bytes]]:
    """Make the files of one variant; return its card, parsed, and all of them."""
    places = {v.id: (f"acme/{v.id}", branch) for v in family.variants}
    files = dict(make_card_files(family, family.variants[index], root, APACHE, places))
    return ModelCard(files["README.md"].decode()), files


def test_the_card_names_both_endpoints_and_the_merge(built: Path) -> None:
    """Hub endpoints become base_model with the relation merge; tags, licence, library and task are set."""
    card, _ = card_of(changed(built), built)
    assert card.data.to_dict() == {
        "license": "apache-2.0", "base_model": ["Qwen/Tiny-Instruct", "Qwen/Tiny-Thinking"],
        "base_model_relation": "merge", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["mergekit", "merge", "dami"],
    }  # fmt: skip
    assert f"at commit `{'ab' * 20}`" in card.text


def test_local_endpoints_are_no_base_model(built: Path) -> None:
    """A folder of the author's is no id on the Hub: the card's metadata leaves it out, and only it."""
    card, _ = card_of(load_family(built), built)
    assert "base_model" not in card.data.to_dict()
    family = changed(built)
    local = family.endpoints.thinking.model_copy(update={"source": "/x/thinking", "commit": None})
    family = family.model_copy(update={"endpoints": family.endpoints.model_copy(update={"thinking": local})})
    assert card_of(family, built)[0].data.base_model == ["Qwen/Tiny-Instruct"]


def test_an_endpoint_in_the_hub_s_cache_is_named_by_its_id(built: Path) -> None:
    """A local path that is a snapshot of huggingface_hub's cache tells its repository."""
    end = load_family(built).endpoints.instruct
    path = f"/home/x/.cache/huggingface/hub/models--Qwen--Qwen3-4B-Instruct-2507/snapshots/{'ab' * 20}"
    assert hub_id(end.model_copy(update={"source": path})) == "Qwen/Qwen3-4B-Instruct-2507"
    assert hub_id(end.model_copy(update={"source": "models--Qwen/x"})) is None


def test_the_card_says_how_to_serve_the_variant(built: Path) -> None:
    """Commands name the repository and branch; siblings are linked, recipe and citations are there."""
    card, _ = card_of(changed(built), built, branch="l050")
    for text in (
        "vllm serve acme/fam-l050 --revision l050 --max-model-len 256\n",
        "--model-id acme/fam-l050 --revision l050 --max-total-tokens 256\n",
        'from_pretrained("acme/fam-l050", revision="l050"', "(https://huggingface.co/acme/fam-l100/tree/l050)",
        load_family(built).recipe.strip(), "arXiv:2601.21414", "arXiv:2403.13257", "![",
    ):  # fmt: skip
        assert text in card.text, text


def test_the_card_says_what_a_reader_needs(built: Path) -> None:
    """Intended use, limits, how to install dami-merge, and the token for private repositories are there."""
    card, _ = card_of(changed(built), built)
    for text in ("**Intended use**", "**Limits**", "pip install -c constraints.txt", "set `HF_TOKEN`"):
        assert text in card.text, text


def test_tgi_gets_a_cache_and_not_the_model_s_folder(built: Path) -> None:
    """The container downloads the id that it is given, so a cache is mounted, and it gets the token."""
    card, _ = card_of(changed(built), built)
    command = card.text.split("docker run", 1)[1].split("```")[0]
    assert '-v "$PWD/hf-cache:/data" -e HF_TOKEN ' in command
    assert "fam-l050:/data" not in command


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 262144}, 32768), ({"max_position_embeddings": 4096}, 4096), ({}, 32768),
        ({"text_config": {"max_position_embeddings": 512}}, 512), ({"max_position_embeddings": True}, 32768),
    ],
)  # fmt: skip
def test_the_context_that_is_served_fits_the_model(
    built: Path, tmp_path: Path, config: dict[str, Any], length: int
) -> None:
    """--max-model-len is the model's own context, and at most 32768, where the card says how far it can be raised."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    family = changed(built)
    text = serving(family.variants[1], "acme/fam", None, longest_prompt(tmp_path))
    assert f"vllm serve acme/fam --max-model-len {length}\n" in text
    assert f"--max-total-tokens {length}\n" in text
    assert ("262,144 tokens" in text) == (config.get("max_position_embeddings") == 262144)


def test_the_example_of_the_card_runs(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python block of the card, with the variant's folder for its id, generates an answer."""
    card, _ = card_of(changed(built), built)
    code = card.text.split("```python\n", 1)[1].split("```")[0]
    code = code.replace("acme/fam-l050", str(built / "fam-l050")).replace(', device_map="auto"', "")
    code = code.replace("How many primes are there below 30?", "8-1=")
    exec(code, {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("opens", "parser"), [(True, True), (False, False)])
def test_the_reasoning_parser_follows_the_template(built: Path, opens: bool, parser: bool) -> None:
    """Only a template that opens the block gets vLLM's parser: others' plain answers would count as reasoning."""
    template = {"source": "thinking", "sha256": "0" * 64, "opens_think": opens}
    card, _ = card_of(changed(built, chat_template=template), built)
    command = next(line for line in card.text.splitlines() if line.startswith("vllm serve"))
    assert (" --reasoning-parser deepseek_r1 " in command) == parser


def test_scores_go_to_the_card_and_to_eval_results(built: Path) -> None:
    """Every measured score is in the card; a benchmark of the Hub is an entry in per cent, others are not."""
    measured = [
        {"benchmark": "acme/sums#easy", "accuracy": 0.805, "mean_tokens": 17574.0, "n": 30},
        {"benchmark": "home | made", "accuracy": 0.5, "mean_tokens": 10.0, "n": 4},
    ]
    card, files = card_of(changed(built, measured=measured), built)
    assert "| acme/sums#easy | 80.5% | 17,574 | 30 |" in card.text
    assert "| home   made | 50.0% | 10 | 4 |" in card.text
    (entry,) = yaml.safe_load(files[".eval_results/dami.yaml"])
    assert (entry["dataset"], entry["value"]) == ({"id": "acme/sums", "task_id": "easy"}, 80.5)
    assert ".eval_results/dami.yaml" not in card_of(changed(built), built)[1]


def test_a_recipe_cannot_break_out_of_its_block(built: Path) -> None:
    """A recipe with a fence and metadata in a comment stays text inside the card."""
    data = json.loads(changed(built).text())
    data["recipe"] = "# ```\n# ---\n# license: other\n" + data["recipe"]
    card, _ = card_of(parse_family(json.dumps(data)), built)
    assert card.data.license == "apache-2.0"
    assert "````yaml\n# ```\n" in card.text


@pytest.mark.parametrize("path", ["uniform", "late(0.5)", "power(2)", BY_MODULE])
def test_mergekit_s_configuration_makes_the_same_lambdas(lab: Path, tmp_path: Path, path: str) -> None:
    """Each variant's mergekit_config.yml is a valid recipe whose λ is, for every tensor, exactly the variant's."""
    family = build(RECIPE.format(lab, path), tmp_path / "out").report.manifest
    for index, variant in enumerate(family.variants):
        _, files = card_of(family, tmp_path / "out", index)
        values, anatomy = lambdas_of(family, variant, tmp_path / "out" / variant.folder)
        recipe = parse_recipe(files["mergekit_config.yml"].decode())
        assert recipe.family is None
        assert {name: recipe.lambda_for(name, anatomy) for name in values} == values
        assert {group.lambda_ for group in variant.resolved} == set(values.values())


def test_a_recipe_without_a_family_is_its_own_configuration(lab: Path, tmp_path: Path) -> None:
    """A single merge is published with its recipe as it stands."""
    text = RECIPE.format(lab, "uniform").split("family:")[0]
    family = build(text, tmp_path / "out", "single.yml").report.manifest
    assert card_of(family, tmp_path / "out", 0)[1]["mergekit_config.yml"].decode() == text


def pixels(png: bytes) -> list[list[int]]:
    """Decode a picture of two bits a pixel, checking every chunk's sum."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    parts: dict[bytes, bytes] = {}
    at = 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data = png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + data)
        parts[kind] = data
        at += 12 + size
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    raw = zlib.decompress(parts[b"IDAT"])
    stride = 1 + width // 4
    assert len(raw) == stride * height
    rows = [raw[i * stride + 1 : (i + 1) * stride] for i in range(height)]
    return [[byte >> shift & 3 for byte in row for shift in (6, 4, 2, 0)] for row in rows]


@settings(max_examples=30)
@given(st.lists(st.floats(-0.5, 1.5), max_size=100), st.floats(0, 1))
def test_the_picture_s_bars_have_the_height_of_lambda(values: list[float], mean: float) -> None:
    """For any λ the file is a sound PNG, and each layer's bar is as high as its λ, clipped to [0, 1]."""
    rows = pixels(lambda_picture(values, mean))
    slot = (640 - 16) / max(len(values), 1)
    for i, value in enumerate(values):
        column = int(8 + i * slot)
        height = sum(row[column] == 1 for row in rows)
        assert abs(height - 123 * min(max(value, 0.0), 1.0)) <= 1.5 + (len(values) > 0)


def test_the_picture_shows_each_layer(lab: Path, tmp_path: Path) -> None:
    """A path over depth is drawn as it is: λ rises over the layers of a late path."""
    family = build(RECIPE.format(lab, "late(0.5)"), tmp_path / "out").report.manifest
    values, anatomy = lambdas_of(family, family.variants[1], tmp_path / "out" / "fam-l050")
    layers = layer_lambdas(values, anatomy)
    assert len(layers) == 4
    assert layers == sorted(layers)
    assert (layers[0], layers[-1]) == (0.25, 0.75)


# Licences


def reader(instruct: Licence | None, thinking: Licence | None) -> Any:
    """Return a reader that knows two endpoints."""

    def read(endpoint: Endpoint) -> Licence | None:
        return instruct if "nstruct" in endpoint.source else thinking

    return read


def test_a_common_licence_is_carried_over(built: Path) -> None:
    """Two endpoints under one licence give a merge under it, with name and link; --license decides over all."""
    ends = load_family(built).endpoints
    own = Licence("other", "qwen-research", "https://example.org/LICENSE")
    assert decide_licence(ends, None, reader(own, own)) == own
    assert decide_licence(ends, "mit", reader(None, own)) == Licence("mit")


@pytest.mark.parametrize(
    ("instruct", "thinking", "says"),
    [
        (APACHE, None, "licence of the thinking endpoint .* is unknown"),
        (None, None, "licence of the instruct endpoint .* is unknown"),
        (APACHE, Licence("mit"), "different licences: apache-2.0 and mit"),
        (Licence("other", "a"), Licence("other", "b"), "different licences"),
        (Licence("cc-by-nc-nd-4.0"), Licence("cc-by-nc-nd-4.0"), "forbids sharing derivatives"),
    ],
)
def test_licences_that_do_not_settle_it_are_refused(
    built: Path, instruct: Licence | None, thinking: Licence | None, says: str
) -> None:
    """Unknown, different and forbidding licences each stop a push, with the option that decides."""
    with pytest.raises(FailureError, match=says) as caught:
        decide_licence(load_family(built).endpoints, None, reader(instruct, thinking))
    assert "--license" in str(caught.value.hint)


def test_a_licence_is_read_from_a_folder_s_card(built: Path, tmp_path: Path) -> None:
    """A local endpoint's README.md gives the licence; none, or one without metadata, gives nothing."""
    from dami_merge.card import read_licence

    end = load_family(built).endpoints.instruct.model_copy(update={"source": str(tmp_path)})
    assert read_licence(end) is None
    (tmp_path / "README.md").write_text("# Model\n")
    assert read_licence(end) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Model\n")
    assert read_licence(end) == APACHE
