"""A model's shape and options, read from a Hugging Face config.json and checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from rtpjax.errors import CheckpointError
from rtpjax.models import registry
from rtpjax.models.encodings import encoding_of
from rtpjax.models.moe_config import MoeConfig
from rtpjax.models.quantization import UNQUANTIZED, Quantization
from rtpjax.models.rope import RopeConfig

FULL, SLIDING = "full_attention", "sliding_attention"  # values of layer_types
# null says "none" of these; elsewhere it says "not given".
_NONE_IF_NULL = {"sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}
HIDDEN_ACTS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockNorms:
    """Names of a layer's norms; None where there is none.

    Families use one name for different places: `post_attention_layernorm` is applied to what
    attention adds in Gemma and OLMo, and to what the MLP reads in Llama.

    Attributes:
        before_attention: Of what attention reads.
        after_attention: Of what attention adds to the residual stream.
        before_mlp: Of what the MLP reads.
        after_mlp: Of what the MLP adds.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and options of a decoder, named as in config.json.

    What has a default is an option: a family sets it (CausalLM.options), Llama has the defaults.

    Attributes:
        head_dim: Features of one attention head; need not be hidden_size / num_attention_heads.
        layer_windows: For each layer, the tokens of context it attends to; None is all of them.
        layer_ropes: For each layer, how queries and keys are rotated; None if they are not.
        attention_bias: Whether q_proj, k_proj and v_proj add a bias.
        o_proj_bias: Whether o_proj does.
        norms: Where a layer has norms.
        norm_offset: What the checkpoint's norm weights lack: 1 where they are stored less 1.
        qk_norm: What queries and keys are normalized over before rope: each head, or the whole
            projection; None if they are not.
        attention_scale: Multiplies attention's scores; None is head_dim ** -0.5.
        attention_soft_cap: Bounds them, see paged_attention.
        has_sinks: Whether each head has a score that takes part in the softmax without a value.
        embedding_scale: Multiplies embeddings.
        residual_scale: Multiplies what a block adds to the residual stream.
        logits_scale: Multiplies logits.
        logits_soft_cap: Then they become cap * tanh(logits / cap).
        eos_token_ids: Any of them ends a sequence; empty if the checkpoint names none.
        moe: Its layers with experts; None if it has none.
        torch_dtype: Format the checkpoint was saved in ("bfloat16", ...), None if it does not say.
        quantization: How matrices are kept.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    layer_windows: tuple[int | None, ...]
    layer_ropes: tuple[RopeConfig | None, ...]
    attention_bias: bool
    o_proj_bias: bool
    mlp_bias: bool
    norms: BlockNorms = BlockNorms()
    norm_offset: float = 0.0
    qk_norm: Literal["head", "projection"] | None = None
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    has_sinks: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    logits_soft_cap: float | None = None
    moe: MoeConfig | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    torch_dtype: str | None = None
    quantization: Quantization = UNQUANTIZED

    @property
    def sliding_window(self) -> int | None:
        """The window of the layers that have one, None if all attend to everything."""
        return next((window for window in self.layer_windows if window is not None), None)

    def with_layers(self, num_layers: int) -> ModelConfig:
        """The model cut to its first layers."""
        return dataclasses.replace(
            self,
            num_hidden_layers=num_layers,
            layer_windows=self.layer_windows[:num_layers],
            layer_ropes=self.layer_ropes[:num_layers],
        )

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> ModelConfig:
        """Reads a config.json, in the style of transformers 4 or 5.

        Args:
            config: The parsed file.

        Raises:
            CheckpointError: The architecture or an option is not supported, or a value cannot be.
        """
        name = _architecture_name(config)
        family = registry.architecture(name)
        hf = _with_family_values(config, family)
        _refuse_unsupported(hf)
        hidden_size = _positive_int(hf, "hidden_size")
        num_heads = _positive_int(hf, "num_attention_heads")
        num_layers = _positive_int(hf, "num_hidden_layers")
        hf.setdefault("num_key_value_heads", num_heads)
        hf.setdefault("head_dim", hidden_size // num_heads)
        num_kv_heads, head_dim = (
            _positive_int(hf, key) for key in ("num_key_value_heads", "head_dim")
        )
        if num_heads % num_kv_heads:
            raise CheckpointError(
                f"config.json: num_attention_heads {num_heads} must be a multiple of "
                f"num_key_value_heads {num_kv_heads}."
            )
        encoding = encoding_of(hf)
        has_experts = "num_experts_per_tok" in family.hf_defaults
        moe = MoeConfig.from_hf(hf, num_layers) if has_experts else None
        layer_types = _layer_types(hf, num_layers)
        fields: dict[str, Any] = {
            "architecture": name,
            "vocab_size": _positive_int(hf, "vocab_size"),
            "hidden_size": hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": head_dim,
            "intermediate_size": _positive_int(hf, "intermediate_size"),
            "max_position_embeddings": _positive_int(hf, "max_position_embeddings"),
            "rms_norm_eps": float(hf["rms_norm_eps"]),
            "hidden_act": hf["hidden_act"],
            "tie_word_embeddings": bool(hf["tie_word_embeddings"]),
            "layer_windows": _layer_windows(hf, layer_types),
            "layer_ropes": _layer_ropes(hf, head_dim, layer_types),
            "attention_bias": bool(hf["attention_bias"]),
            "o_proj_bias": bool(hf.get("o_proj_bias", hf["attention_bias"])),
            "mlp_bias": bool(hf["mlp_bias"]),
            "moe": moe,
            "eos_token_ids": _token_ids(hf.get("eos_token_id")),
            "bos_token_id": hf.get("bos_token_id"),
            "torch_dtype": hf.get("dtype") or hf.get("torch_dtype"),
            "quantization": UNQUANTIZED if encoding is None else encoding.quantization,
        }
        return ModelConfig(**fields | family.options(hf))


def _architecture_name(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or []
    if len(names) != 1:
        raise CheckpointError(
            f"config.json: `architectures` must name one architecture, found {list(names)}; "
            f"supported are {', '.join(sorted(registry.architectures()))}."
        )
    return names[0]


def _with_family_values(
    config: Mapping[str, Any], family: type[registry.CausalLM]
) -> dict[str, Any]:
    given = {k: v for k, v in config.items() if v is not None or k in _NONE_IF_NULL}
    for key, fixed in family.hf_fixed.items():
        if given.get(key, fixed) != fixed:
            raise CheckpointError(
                f"config.json: {key} is {given[key]!r}, but {family.__name__} is defined with "
                f"{fixed!r}. Correct config.json, or name another architecture."
            )
    hf = {**family.hf_defaults, **given, **family.hf_fixed}
    _positive_int(hf, "num_hidden_layers")
    return family.completed(hf)


def _refuse_unsupported(hf: Mapping[str, Any]) -> None:
    if hf["hidden_act"] not in HIDDEN_ACTS:
        raise CheckpointError(
            f"config.json: hidden_act {hf['hidden_act']!r} is not supported; "
            f"supported are {', '.join(HIDDEN_ACTS)}."
        )


def _positive_int(hf: Mapping[str, Any], key: str) -> int:
    value = hf.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"config.json: {key} must be a positive integer, found {value!r}.")
    return value


def windows_but_every(interval: int, num_layers: int) -> list[str]:
    """layer_types where every interval-th layer attends to everything, the others to a window."""
    return [FULL if (layer + 1) % interval == 0 else SLIDING for layer in range(num_layers)]


def _layer_types(hf: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
    """What each layer attends to: layer_types, or else by max_window_layers (the first window)."""
    window, use_window = hf.get("sliding_window"), hf.get("use_sliding_window")
    if window is not None and use_window is None and "layer_types" not in hf:
        raise CheckpointError(
            f"config.json: sliding_window is {window}, but {hf['architectures'][0]} attends to the "
            "whole context. Set it to null, or name an architecture that has windows."
        )
    has_window, first = bool(window is not None and use_window), hf.get("max_window_layers", 0)
    derived = [SLIDING if has_window and i >= first else FULL for i in range(num_layers)]
    types = hf.get("layer_types", derived)
    if len(types) != num_layers or not set(types) <= {FULL, SLIDING}:
        raise CheckpointError(
            f"config.json: layer_types must give each of the {num_layers} layers one of "
            f"{[FULL, SLIDING]}, found {list(types)}."
        )
    return tuple(types)


def _layer_windows(hf: Mapping[str, Any], layer_types: tuple[str, ...]) -> tuple[int | None, ...]:
    """Each layer's window."""
    window = None
    if hf.get("sliding_window") is not None and hf.get("use_sliding_window"):
        window = _positive_int(hf, "sliding_window")
    if window is None and SLIDING in layer_types:
        raise CheckpointError(
            "config.json: layer_types has sliding_attention, but no window is set."
        )
    return tuple(window if kind == SLIDING else None for kind in layer_types)


def _layer_ropes(
    hf: Mapping[str, Any], head_dim: int, layer_types: tuple[str, ...]
) -> tuple[RopeConfig | None, ...]:
    """Each layer's rope: rope_parameters may say one for each type of layer; no_rope_layers has a
    0 for layers without any."""
    given = hf.get("rope_parameters") or {}
    ropes: dict[str, RopeConfig]
    if given and given.keys() <= {FULL, SLIDING}:
        missing = sorted(set(layer_types) - given.keys())
        if missing:
            raise CheckpointError(
                f"config.json: rope_parameters is given by type of layer, but not for {missing}."
            )
        ropes = {
            kind: RopeConfig.from_hf({**hf, "rope_parameters": options}, head_dim)
            for kind, options in given.items()
        }
    else:
        ropes = dict.fromkeys([FULL, SLIDING], RopeConfig.from_hf(hf, head_dim))
    has_rope = hf.get("no_rope_layers", [1] * len(layer_types))
    if len(has_rope) != len(layer_types) or not set(has_rope) <= {0, 1}:
        raise CheckpointError(
            f"config.json: no_rope_layers must have a 0 or 1 for each of the {len(layer_types)} "
            f"layers, found {has_rope!r}."
        )
    return tuple(
        ropes[kind] if has else None for kind, has in zip(layer_types, has_rope, strict=True)
    )


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
