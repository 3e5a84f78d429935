"""Where tensors sit, against every architecture that mergekit defines."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.schedule import parse_lambda
from dami_merge.recipes.explanation import grouped

LLAMA = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{m}.weight" for i in range(5) for m in ("self_attn.q_proj", "mlp.up_proj")),
    "model.norm.weight",
    "lm_head.weight",
]


def test_depth_follows_the_glossary() -> None:
    """Embeddings have x=0, layer l has l/(L−1), the final norm and the head have x=1."""
    anatomy = Anatomy.of(LLAMA)
    assert anatomy.layers == 5
    assert anatomy.place("model.embed_tokens.weight").x == 0.0
    assert [anatomy.place(f"model.layers.{i}.mlp.up_proj.weight").x for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert anatomy.place("model.norm.weight").x == anatomy.place("lm_head.weight").x == 1.0


def test_expert_numbers_are_not_layers() -> None:
    """The first number in a name is the layer; an expert's number is not."""
    anatomy = Anatomy.of([f"model.layers.{i}.mlp.experts.{e}.up_proj.weight" for i in range(3) for e in range(8)])
    assert anatomy.stacks == {"model.layers": 3}


def test_layers_that_the_config_does_not_count_do_not_stretch_depth() -> None:
    """A multi-token prediction layer behind the last one leaves the depth of the others alone."""
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(6)]
    anatomy = Anatomy.of(names, {"num_hidden_layers": 5})
    assert anatomy.place(names[4]).x == 1.0
    assert anatomy.place(names[5]).x == 1.0


def test_a_vision_tower_has_its_own_depth() -> None:
    """Stacks of different length in one model each run from 0 to 1."""
    names = [f"model.language_model.layers.{i}.mlp.w" for i in range(4)] + [
        f"model.visual.blocks.{i}.mlp.w" for i in range(7)
    ]
    anatomy = Anatomy.of(names, {"text_config": {"num_hidden_layers": 4}})
    assert anatomy.layers == 4
    assert anatomy.place("model.visual.blocks.3.mlp.w").x == 0.5
    assert anatomy.place("model.language_model.layers.3.mlp.w").x == 1.0


def test_one_stack_under_another_prefix_keeps_its_length() -> None:
    """A name as memory has it finds the stack as disk has it."""
    anatomy = Anatomy.of([f"model.layers.{i}.mlp.w" for i in range(5)])
    assert anatomy.place("model.language_model.layers.2.mlp.w").x == 0.5


def architectures() -> list[Any]:
    from mergekit.architecture.json_definitions import NAME_TO_ARCH

    return [pytest.param(name, arch, id=f"{name}-{i}") for name, a in NAME_TO_ARCH.items() for i, arch in enumerate(a)]


NOT_LAYERS = re.compile(
    r"projector|merger"  # projectors between towers, which mergekit counts as layers of their own
    r"|decoderlayers"  # a slip in mergekit 0.1.5's Whisper definition: the dot is missing
    r"|model\.embedding_norm"  # LFM2's final norm, which mergekit lists before the layers
)


@pytest.mark.parametrize(("name", "architecture"), architectures())
def test_every_architecture_of_mergekit_is_placed(name: str, architecture: Any) -> None:
    """For each architecture mergekit knows: layers get their index, what comes before them 0, after them 1."""
    for module in architecture.modules.values():
        definition = module.architecture.definition
        prefix = module.weight_prefix or ""
        layer = [prefix + w.name for w in definition.layer_templates.weights if not NOT_LAYERS.search(prefix + w.name)]
        names = [t.replace("${layer_index}", str(i)) for t in layer for i in range(3)]
        anatomy = Anatomy.of(names)
        for template in layer:
            for i in range(3):
                place = anatomy.place(template.replace("${layer_index}", str(i)))
                assert (place.index, place.layers, place.x) == (i, 3, i / 2), template
        for weight in definition.pre_weights:
            if not NOT_LAYERS.search(prefix + weight.name):
                assert anatomy.place(prefix + weight.name).x == 0.0, weight.name
        for weight in definition.post_weights:
            assert anatomy.place(prefix + weight.name).x == 1.0, weight.name


VISION = [f"model.visual.blocks.{i}.mlp.w" for i in range(3)] + ["model.visual.patch_embed.w", "model.visual.merger.w"]
DRAFT = ["mtp.layers.0.mlp.w", "mtp.fc.weight", "mtp.pre_fc_norm_embedding.weight", "model.mtp_layers.0.mlp.w"]
LANGUAGE = [f"model.language_model.layers.{i}.mlp.w" for i in range(6)]


def test_layers_are_counted_in_the_language_model() -> None:
    """Vision goes with the first layer, draft layers with the last, however long their own stacks are."""
    anatomy = Anatomy.of([*LANGUAGE, *VISION, *DRAFT], {"text_config": {"num_hidden_layers": 6}})
    assert anatomy.layers == 6
    for names, layer in ((VISION, 0), (DRAFT, 5)):
        for name in names:
            place = anatomy.place(name)
            assert (place.nearest_layer, place.counted_layers) == (layer, 6), name
            for schedule in ("window(4, 5, inside=0.8, outside=0.1)", "step(0.1, 0.8, at=5)"):
                parsed = parse_lambda(schedule)
                assert not isinstance(parsed, float)
                assert parsed.lambda_at(place) == (0.1 if layer == 0 else 0.8)
    assert [anatomy.place(name).x for name in DRAFT] == [1.0] * 4
    assert [anatomy.place(name).x for name in VISION[:3]] == [0.0, 0.5, 1.0]
    assert [anatomy.part_of(name) for name in (VISION[3], DRAFT[1], LANGUAGE[0])] == ["model.visual", "mtp", ""]


def test_draft_layers_numbered_on_from_the_models_go_with_the_last() -> None:
    """DeepSeek's and GLM's draft layer stands behind the last layer that the config counts."""
    names = [f"model.layers.{i}.mlp.w" for i in range(5)] + ["model.layers.4.embed_tokens.weight"]
    anatomy = Anatomy.of(names, {"num_hidden_layers": 4})
    for name in names[4:]:
        place = anatomy.place(name)
        assert (place.index, place.nearest_layer, place.counted_layers, place.x) == (4, 3, 4, 1.0)
    assert anatomy.place(names[3]).nearest_layer == 3


def test_a_model_that_is_all_encoder_counts_its_own_layers() -> None:
    """Without a language model beside it, an encoder's layers are the model's."""
    anatomy = Anatomy.of([f"encoder.layer.{i}.w" for i in range(4)])
    assert [anatomy.place(f"encoder.layer.{i}.w").nearest_layer for i in range(4)] == [0, 1, 2, 3]


def test_explain_shows_the_parts_beside_the_model() -> None:
    """λ of vision and draft tensors outside layers is told by part."""
    anatomy = Anatomy.of([*LANGUAGE, *VISION, *DRAFT], {"text_config": {"num_hidden_layers": 6}})
    values = {name: anatomy.place(name).x for name in (*LANGUAGE, *VISION, *DRAFT)}
    rows = [group.row() for group in grouped(values, anatomy)]
    assert ("model.visual -", "embeddings", "0", "1") in rows
    assert ("mtp.layers 0", "all", "1", "1") in rows
