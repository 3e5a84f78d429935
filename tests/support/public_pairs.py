"""The public Instruct/Thinking pairs that docs/pairs.md lists, and a shrunk random model in the image of each.

A row names two repositories and says how they differ from a plain pair: `tied` (the embeddings are the head),
`untied` (only Thinking stores a head), `renamed` (special tokens have other names at the same ids), `rope` (another
rope_theta), `mtp` (layers for multi-token prediction), `fp8` (both sides in blocks), `fp8_instruct` (one scale a
tensor), `int4` (only quantised weights exist), `code` (the repository carries Python files), `talker` (Thinking
lacks a part), `other` (Thinking has another class).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from support.pairs import Pair
from support.zoo import KINDS, VOCABULARY, random_model

__all__ = ["ROWS", "TALKER", "PublicPair", "dequantised", "load_variant", "write_public_pair"]

TALKER = ("talker.", "code2wav.")
"""What Qwen3-Omni's Thinking checkpoint lacks: the parts that speak."""
_SPECIAL = ("<bos>", "<eos>", "<pad>", "<image>", "<video>", "<vision>", "</vision>")
_FP8_BLOCK = 16
_SCALED = ("_proj.weight", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class PublicPair:
    """One row: who, which class, how shrunk, and what is special about it."""

    instruct: str
    thinking: str
    class_: str
    kind: str
    licence: str
    twists: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """A short name for tests."""
        return self.thinking.rpartition("/")[2]

    @property
    def shape(self) -> tuple[str, tuple[str, ...]]:
        """What the shrunk pair depends on: rows of one shape share one."""
        return self.kind, self.twists

    def has(self, twist: str) -> bool:
        """Whether the row has a twist."""
        return twist in self.twists


def _row(instruct: str, thinking: str, class_: str, kind: str, licence: str, *twists: str) -> PublicPair:
    owner = instruct.partition("/")[0]
    return PublicPair(instruct, thinking if "/" in thinking else f"{owner}/{thinking}", class_, kind, licence, twists)


_VL, _VL_MOE = "Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"
_QWEN2, _QWEN3, _LLAMA, _PHI = "Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM", "Phi3ForCausalLM"
_MISTRAL3, _DEEPSEEK = "Mistral3ForConditionalGeneration", "DeepseekV3ForCausalLM"
_R1 = "deepseek-ai/DeepSeek-R1-Distill"
_BAILING, _GLM = "BailingMoeV2ForCausalLM", "Glm4ForCausalLM"
_APACHE, _MIT, _UNCHECKED = "Apache-2.0", "MIT", "not verified"
_QWEN_MIT = "Apache-2.0, MIT"

ROWS: tuple[PublicPair, ...] = (
    _row("Qwen/Qwen3-4B-Instruct-2507", "Qwen3-4B-Thinking-2507", _QWEN3, "qwen3", _APACHE, "tied"),
    _row("Qwen/Qwen3-4B", "Qwen3-4B-Thinking-2507", _QWEN3, "qwen3", _APACHE, "tied", "rope"),
    _row("Qwen/Qwen3-4B-Instruct-2507-FP8", "Qwen3-4B-Thinking-2507-FP8", _QWEN3, "qwen3", _APACHE, "tied", "fp8"),
    _row(
        "Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B-Thinking-2507", "Qwen3MoeForCausalLM", "qwen3_moe", _APACHE,
    ),
    _row(
        "Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen3-235B-A22B-Thinking-2507", "Qwen3MoeForCausalLM", "qwen3_moe",
        _APACHE,
    ),
    _row(
        "Qwen/Qwen3-Next-80B-A3B-Instruct", "Qwen3-Next-80B-A3B-Thinking", "Qwen3NextForCausalLM", "qwen3_next",
        _APACHE, "mtp",
    ),
    _row("Qwen/Qwen3-VL-2B-Instruct", "Qwen3-VL-2B-Thinking", _VL, "qwen3_vl", _APACHE, "tied"),
    _row("Qwen/Qwen3-VL-4B-Instruct", "Qwen3-VL-4B-Thinking", _VL, "qwen3_vl", _APACHE, "tied"),
    _row("Qwen/Qwen3-VL-8B-Instruct", "Qwen3-VL-8B-Thinking", _VL, "qwen3_vl", _APACHE),
    _row("Qwen/Qwen3-VL-32B-Instruct", "Qwen3-VL-32B-Thinking", _VL, "qwen3_vl", _APACHE),
    _row("Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen3-VL-30B-A3B-Thinking", _VL_MOE, "qwen3_vl_moe", _APACHE),
    _row("Qwen/Qwen3-VL-235B-A22B-Instruct", "Qwen3-VL-235B-A22B-Thinking", _VL_MOE, "qwen3_vl_moe", _APACHE),
    _row(
        "Qwen/Qwen3-Omni-30B-A3B-Instruct", "Qwen3-Omni-30B-A3B-Thinking", "Qwen3OmniMoeForConditionalGeneration",
        "qwen3_omni", _UNCHECKED, "talker",
    ),
    _row(
        "Qwen/Qwen2-VL-72B-Instruct", "QVQ-72B-Preview", "Qwen2VLForConditionalGeneration", "qwen2_vl", _UNCHECKED,
    ),
    _row("Qwen/Qwen2.5-32B-Instruct", "QwQ-32B", _QWEN2, "qwen2", _APACHE, "renamed"),
    _row("Qwen/Qwen2.5-Math-1.5B", f"{_R1}-Qwen-1.5B", _QWEN2, "qwen2", _QWEN_MIT, "untied", "renamed"),
    _row("Qwen/Qwen2.5-Math-7B", f"{_R1}-Qwen-7B", _QWEN2, "qwen2", _QWEN_MIT, "renamed"),
    _row("Qwen/Qwen2.5-14B", f"{_R1}-Qwen-14B", _QWEN2, "qwen2", _QWEN_MIT, "renamed"),
    _row("Qwen/Qwen2.5-32B", f"{_R1}-Qwen-32B", _QWEN2, "qwen2", _QWEN_MIT, "renamed"),
    _row("meta-llama/Llama-3.1-8B-Instruct", f"{_R1}-Llama-8B", _LLAMA, "llama", "Llama 3.1, MIT", "renamed"),
    _row("meta-llama/Llama-3.3-70B-Instruct", f"{_R1}-Llama-70B", _LLAMA, "llama", "Llama 3.3, MIT", "renamed"),
    _row("Qwen/Qwen3-8B", "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", _QWEN3, "qwen3", _UNCHECKED, "renamed", "rope"),
    _row("deepseek-ai/DeepSeek-V3", "DeepSeek-R1", _DEEPSEEK, "deepseek_v3", _UNCHECKED, "fp8", "mtp"),
    _row("deepseek-ai/DeepSeek-V3-0324", "DeepSeek-R1-0528", _DEEPSEEK, "deepseek_v3", _UNCHECKED, "fp8", "mtp"),
    _row("unsloth/DeepSeek-V3-0324-BF16", "DeepSeek-R1-0528-BF16", _DEEPSEEK, "deepseek_v3", _UNCHECKED, "mtp"),
    _row("allenai/Olmo-3-7B-Instruct", "Olmo-3-7B-Think", "Olmo3ForCausalLM", "olmo3", _APACHE),
    _row("allenai/Olmo-3.1-32B-Instruct", "Olmo-3.1-32B-Think", "Olmo3ForCausalLM", "olmo3", _APACHE),
    _row("LiquidAI/LFM2.5-1.2B-Instruct", "LFM2.5-1.2B-Thinking", "Lfm2ForCausalLM", "lfm2", "LFM 1.0", "tied"),
    _row(
        "mistralai/Ministral-3-3B-Instruct-2512-BF16", "Ministral-3-3B-Reasoning-2512", _MISTRAL3, "ministral3",
        _APACHE, "tied",
    ),
    _row(
        "mistralai/Ministral-3-8B-Instruct-2512", "Ministral-3-8B-Reasoning-2512", _MISTRAL3, "ministral3", _APACHE,
        "fp8_instruct",
    ),
    _row(
        "mistralai/Ministral-3-14B-Instruct-2512", "Ministral-3-14B-Reasoning-2512", _MISTRAL3, "ministral3", _APACHE,
        "fp8_instruct",
    ),
    _row("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "Magistral-Small-2509", _MISTRAL3, "mistral3", _UNCHECKED),
    _row(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "Magistral-Small-2506", _MISTRAL3, "mistral3", _UNCHECKED,
        "other",
    ),
    _row(
        "baidu/ERNIE-4.5-21B-A3B-PT", "ERNIE-4.5-21B-A3B-Thinking", "Ernie4_5_MoeForCausalLM", "ernie4_5_moe",
        _UNCHECKED,
    ),
    _row("zai-org/GLM-4-9B-0414", "GLM-Z1-9B-0414", _GLM, "glm4", _UNCHECKED),
    _row("zai-org/GLM-4-32B-0414", "GLM-Z1-32B-0414", _GLM, "glm4", _UNCHECKED),
    _row("microsoft/phi-4", "Phi-4-reasoning", _PHI, "phi3", _MIT),
    _row("microsoft/Phi-4-mini-instruct", "Phi-4-mini-reasoning", _PHI, "phi3", _UNCHECKED, "tied", "code"),
    _row("nvidia/Nemotron-Cascade-8B", "Nemotron-Cascade-8B-Thinking", _QWEN3, "qwen3", _UNCHECKED),
    _row(
        "nvidia/Nemotron-H-8B-Base-8K", "Nemotron-H-8B-Reasoning-128K", "NemotronHForCausalLM", "nemotron_h",
        _UNCHECKED, "code",
    ),
    _row("tiiuae/Falcon-H1-7B-Instruct", "Falcon-H1R-7B", "FalconH1ForCausalLM", "falcon_h1", _UNCHECKED),
    _row(
        "CohereLabs/c4ai-command-a-03-2025", "command-a-reasoning-08-2025", "Cohere2ForCausalLM", "cohere2",
        _UNCHECKED, "tied",
    ),
    _row("arcee-ai/Trinity-Large-Preview", "Trinity-Large-Thinking", "AfmoeForCausalLM", "afmoe", _UNCHECKED),
    _row(
        "meituan-longcat/LongCat-Flash-Chat", "LongCat-Flash-Thinking", "LongcatFlashForCausalLM", "longcat_flash",
        _UNCHECKED, "code",
    ),
    _row(
        "inclusionAI/Ling-2.5-1T", "Ring-2.5-1T", "BailingMoeV2_5ForCausalLM", "bailing_hybrid", _UNCHECKED, "code",
    ),
    _row("inclusionAI/Ling-mini-2.0", "Ring-mini-2.0", _BAILING, "raw_bailing", _UNCHECKED, "code"),
    _row("inclusionAI/Ling-flash-2.0", "Ring-flash-2.0", _BAILING, "raw_bailing", _UNCHECKED, "code"),
    _row("XiaomiMiMo/MiMo-7B-SFT", "MiMo-7B-RL", "MiMoForCausalLM", "raw_mimo", _UNCHECKED, "code"),
    _row(
        "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct", "EXAONE-Deep-7.8B", "ExaoneForCausalLM", "raw_exaone", _UNCHECKED,
        "code",
    ),
    _row(
        "moonshotai/Kimi-VL-A3B-Instruct", "Kimi-VL-A3B-Thinking", "KimiVLForConditionalGeneration", "raw_kimi_vl",
        _UNCHECKED, "code",
    ),
    _row("moonshotai/Kimi-K2-Instruct", "Kimi-K2-Thinking", _DEEPSEEK, "deepseek_v3", _UNCHECKED, "int4"),
)  # fmt: skip


def write_public_pair(row: PublicPair, folder: Path) -> Pair:
    """Write a row's shrunk endpoints, two fine-tunes of one random model, in bf16."""
    pair = Pair(folder / "instruct", folder / "thinking")
    for seed, side in enumerate(pair, start=1):
        if row.kind in _RAW:
            _write_raw(row, side, seed)
        else:
            _write_saved(row, side, seed)
        _write_tokenizer(side, renamed=row.has("renamed") and side == pair.thinking)
    _twist(row, pair)
    return pair


def load_variant(row: PublicPair, folder: Path) -> tuple[dict[str, torch.Tensor], set[str], set[str]]:
    """Load a checkpoint with the row's class: its state, and the missing and the unexpected keys."""
    import transformers

    model, info = getattr(transformers, KINDS[row.kind][0]).from_pretrained(
        folder, output_loading_info=True, dtype=torch.bfloat16
    )
    bad = {*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])}
    return model.state_dict(), bad, set(info["unexpected_keys"])


def dequantised(side: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors, those in fp8 multiplied by their scales in fp32 and rounded once to bf16."""
    tensors = load_file(side / "model.safetensors")
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        scale = tensors.get(f"{name}_scale_inv")
        if scale is not None:
            wide = _spread(scale.float(), tensor.shape) if scale.ndim else scale.float()
            made[name] = (tensor.float() * wide).bfloat16()
        elif not name.endswith("_scale_inv"):
            made[name] = tensor
    return made


def _write_saved(row: PublicPair, side: Path, seed: int) -> None:
    thinking = side.name == "thinking"
    tied = row.has("tied") or (row.has("untied") and not thinking)
    kind = "mistral" if row.has("other") and thinking else row.kind
    model = random_model(kind, tied=tied)
    _tune(model.parameters(), seed)
    if tied:
        model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(side)
    if not row.has("other"):
        _set_config(side, architectures=[row.class_])


def _tune(parameters: Iterable[torch.Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.005 * torch.randn(parameter.shape, generator=generator))


def _write_tokenizer(side: Path, *, renamed: bool) -> None:
    special = [f"<|{name.strip('<>/')}|>" if renamed else name for name in _SPECIAL]
    if renamed:
        special[4:] = [name + "x" for name in special[4:]]
    names = [*special, *(f"t{i}" for i in range(len(special), VOCABULARY))]
    added = [
        {"id": i, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for i, name in enumerate(special)
    ]  # fmt: skip
    model = {"type": "WordLevel", "vocab": {name: i for i, name in enumerate(names)}, "unk_token": special[2]}
    whole = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip
    (side / "tokenizer.json").write_text(json.dumps(whole))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": special[2], "chat_template": "{{ messages }}"}
    (side / "tokenizer_config.json").write_text(json.dumps(config))


def _twist(row: PublicPair, pair: Pair) -> None:
    for seed, side in enumerate(pair, start=11):
        thinking = side == pair.thinking
        if row.has("mtp"):
            _change_weights(side, lambda tensors, seed=seed: _with_mtp(row, tensors, seed))  # type: ignore[misc]
        if row.has("fp8") or (row.has("fp8_instruct") and not thinking):
            _quantise(side, blocks=row.has("fp8"))
        if row.has("talker") and thinking:
            _change_weights(side, _without_talker)
            _set_config(side, enable_audio_output=False)
        if row.has("code"):
            _set_config(side, auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
            (side / "modeling_own.py").write_text("raise SystemExit('remote code was run')\n")
        if row.has("int4") and thinking:
            _change_weights(side, _packed)
            _set_config(side, quantization_config={"quant_method": "compressed-tensors", "format": "pack-quantized"})
    if row.has("rope"):
        config = json.loads((pair.thinking / "config.json").read_text())
        _set_config(pair.thinking, rope_parameters=config["rope_parameters"] | {"rope_theta": 5_000_000.0})


def _set_config(side: Path, **more: Any) -> None:
    path = side / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def _change_weights(side: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = side / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def _with_mtp(row: PublicPair, tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if row.kind == "qwen3_next":
        shapes = {"mtp.fc.weight": (32, 64), "mtp.norm.weight": (32,)}
        shapes |= {f"mtp.layers.0.self_attn.{part}_proj.weight": (16, 32) for part in "qkv"}
        shapes["mtp.layers.0.mlp.gate.weight"] = (4, 32)
    else:
        layer = "model.layers.3."
        shapes = {f"{layer}{name}.weight": (32,) for name in ("enorm", "hnorm", "shared_head.norm")}
        shapes |= {f"{layer}eh_proj.weight": (32, 64), f"{layer}self_attn.o_proj.weight": (32, 32)}
        shapes |= {f"{layer}mlp.experts.{i}.up_proj.weight": (16, 32) for i in range(4)}
    made = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    _tune(made.values(), seed)
    return tensors | {name: tensor.bfloat16() for name, tensor in made.items()}


def _without_talker(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(TALKER)}


def _packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".experts." in name:
            rows, columns = tensor.shape
            made[f"{name}_packed"] = torch.zeros(rows, columns // 8, dtype=torch.int32)
            made[f"{name}_scale"] = torch.ones(rows, 1).bfloat16()
            made[f"{name}_shape"] = torch.tensor([rows, columns])
        else:
            made[name] = tensor
    return made


def _quantise(side: Path, *, blocks: bool) -> None:
    """Write the linear layers in fp8, with a scale for every block of 16 × 16 or one for each tensor."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            if tensor.ndim != 2 or not name.endswith(_SCALED) or "vision" in name or "projector" in name:
                made[name] = tensor
                continue
            scale = _scales(tensor.float(), _FP8_BLOCK if blocks else max(tensor.shape))
            wide = scale if not blocks else _spread(scale, tensor.shape)
            made[name] = (tensor.float() / wide).to(torch.float8_e4m3fn)
            made[f"{name}_scale_inv"] = scale if blocks else scale.reshape(()).bfloat16()
        return made

    _change_weights(side, change)
    size = [_FP8_BLOCK, _FP8_BLOCK] if blocks else None
    scheme = "dynamic" if blocks else "static"
    config = {"quant_method": "fp8", "activation_scheme": scheme, "weight_block_size": size, "fmt": "e4m3"}
    _set_config(side, quantization_config=config)


def _scales(tensor: torch.Tensor, block: int) -> torch.Tensor:
    rows, columns = (math.ceil(n / block) for n in tensor.shape)
    made = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            made[i, j] = tensor[i * block : (i + 1) * block, j * block : (j + 1) * block].abs().max() / 448
    return made.bfloat16().float() if made.numel() == 1 else made


def _spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    wide = scale.repeat_interleave(_FP8_BLOCK, 0).repeat_interleave(_FP8_BLOCK, 1)
    return wide[: shape[0], : shape[1]]


def _raw_layer(prefix: str, names: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{name}.weight": shape for name, shape in names}


def _exaone() -> dict[str, tuple[int, ...]]:
    shapes = {"transformer.wte.weight": (VOCABULARY, 32), "transformer.ln_f.weight": (32,)}
    shapes["lm_head.weight"] = (VOCABULARY, 32)
    for i in range(2):
        attention = [
            (f"attn.attention.{p}_proj", (32 if p in ("q", "out") else 16, 32)) for p in ("q", "k", "v", "out")
        ]
        mlp = [("mlp.c_fc_0", (48, 32)), ("mlp.c_fc_1", (48, 32)), ("mlp.c_proj", (32, 48))]
        shapes |= _raw_layer(f"transformer.h.{i}.", [("ln_1", (32,)), ("ln_2", (32,)), *attention, *mlp])
    return shapes


_LLAMA_LAYER: list[tuple[str, tuple[int, ...]]] = [
    ("input_layernorm", (32,)), ("post_attention_layernorm", (32,)), ("self_attn.q_proj", (32, 32)),
    ("self_attn.k_proj", (16, 32)), ("self_attn.v_proj", (16, 32)), ("self_attn.o_proj", (32, 32)),
    ("mlp.gate_proj", (48, 32)), ("mlp.up_proj", (48, 32)), ("mlp.down_proj", (32, 48)),
]  # fmt: skip


def _mimo() -> dict[str, tuple[int, ...]]:
    shapes = {"model.embed_tokens.weight": (VOCABULARY, 32), "model.norm.weight": (32,)}
    shapes["lm_head.weight"] = (VOCABULARY, 32)
    for i in range(2):
        shapes |= _raw_layer(f"model.layers.{i}.", _LLAMA_LAYER)
    own: list[tuple[str, tuple[int, ...]]] = [("token_layernorm", (32,)), ("input_proj", (32, 64))]
    return shapes | _raw_layer("model.mtp_layers.0.", [*_LLAMA_LAYER, *own])


def _bailing() -> dict[str, tuple[int, ...]]:
    shapes = {"model.word_embeddings.weight": (VOCABULARY, 32), "model.norm.weight": (32,)}
    shapes["lm_head.weight"] = (VOCABULARY, 32)
    for i in range(2):
        parts: list[tuple[str, tuple[int, ...]]] = [
            ("input_layernorm", (32,)), ("post_attention_layernorm", (32,)), ("attention.query_key_value", (64, 32)),
            ("attention.dense", (32, 32)), ("attention.query_layernorm", (8,)), ("attention.key_layernorm", (8,)),
        ]  # fmt: skip
        if i:
            parts += [(f"mlp.experts.{e}.{p}_proj", (16, 32)) for e in range(4) for p in ("gate", "up")]
            parts += [(f"mlp.experts.{e}.down_proj", (32, 16)) for e in range(4)] + [("mlp.gate", (4, 32))]
        else:
            parts += [("mlp.gate_proj", (48, 32)), ("mlp.up_proj", (48, 32)), ("mlp.down_proj", (32, 48))]
        shapes |= _raw_layer(f"model.layers.{i}.", parts)
    return shapes | {"model.layers.1.mlp.gate.expert_bias": (4,)}


def _kimi_vl() -> dict[str, tuple[int, ...]]:
    shapes = {f"language_model.{name}": shape for name, shape in _mimo().items() if "mtp" not in name}
    vision: list[tuple[str, tuple[int, ...]]] = [
        ("norm0", (16,)), ("norm1", (16,)), ("wqkv", (48, 16)), ("wo", (16, 16)), ("mlp.fc0", (32, 16)),
        ("mlp.fc1", (16, 32)),
    ]  # fmt: skip
    shapes |= _raw_layer("vision_tower.encoder.blocks.0.", vision)
    return shapes | {
        "vision_tower.patch_embed.proj.weight": (16, 3, 4, 4),
        "multi_modal_projector.linear_1.weight": (32, 16),
    }


_RAW: dict[str, tuple[str, Callable[[], dict[str, tuple[int, ...]]]]] = {
    "raw_exaone": ("exaone", _exaone),
    "raw_mimo": ("mimo", _mimo),
    "raw_bailing": ("bailing_moe", _bailing),
    "raw_kimi_vl": ("kimi_vl", _kimi_vl),
}
"""Architectures that live in their repositories alone: model_type, and the names and shapes of their tensors."""


def _write_raw(row: PublicPair, side: Path, seed: int) -> None:
    model_type, shapes = _RAW[row.kind]
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    _tune(tensors.values(), seed)
    side.mkdir(parents=True, exist_ok=True)
    save_file({n: t.bfloat16() for n, t in tensors.items()}, side / "model.safetensors", metadata={"format": "pt"})
    text = {"num_hidden_layers": 2, "num_layers": 2, "hidden_size": 32, "vocab_size": VOCABULARY}
    config: dict[str, Any] = {"architectures": [row.class_], "model_type": model_type, "tie_word_embeddings": False}
    config |= {"text_config": text} if row.kind == "raw_kimi_vl" else text
    (side / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16", "num_experts": 4}))
