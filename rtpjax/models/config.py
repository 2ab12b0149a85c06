"""A model's shape and options, read from a Hugging Face config.json and checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rtpjax.errors import CheckpointError
from rtpjax.models import registry
from rtpjax.models.encodings import encoding_of
from rtpjax.models.moe_config import MoeConfig
from rtpjax.models.quantization import UNQUANTIZED, Quantization
from rtpjax.models.rope import RopeConfig

HIDDEN_ACTS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and options of a decoder, named as in config.json.

    Attributes:
        head_dim: Features of one attention head; need not be hidden_size / num_attention_heads.
        layer_windows: For each layer, the tokens of context it attends to; None is all of them.
        attention_bias: Whether q_proj, k_proj and v_proj add a bias.
        o_proj_bias: Whether o_proj does.
        qk_norm: Whether queries and keys are normalized per head before rope.
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
    attention_bias: bool
    o_proj_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: RopeConfig
    moe: MoeConfig | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    torch_dtype: str | None = None
    quantization: Quantization = UNQUANTIZED

    @property
    def sliding_window(self) -> int | None:
        """The window of the layers that have one, None if all attend to everything."""
        return next((window for window in self.layer_windows if window is not None), None)

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
        moe = MoeConfig.from_hf(hf, num_layers) if "num_experts" in family.hf_defaults else None
        if moe is not None and encoding is not None:
            raise CheckpointError(
                "config.json: the checkpoint is quantized, and experts are computed from plain "
                "weights only. Use the checkpoint in bfloat16 that it was made from."
            )
        return ModelConfig(
            architecture=name,
            vocab_size=_positive_int(hf, "vocab_size"),
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=head_dim,
            intermediate_size=_positive_int(hf, "intermediate_size"),
            max_position_embeddings=_positive_int(hf, "max_position_embeddings"),
            rms_norm_eps=float(hf["rms_norm_eps"]),
            hidden_act=hf["hidden_act"],
            tie_word_embeddings=bool(hf["tie_word_embeddings"]),
            layer_windows=_layer_windows(hf, num_layers),
            attention_bias=bool(hf["attention_bias"]),
            o_proj_bias=bool(hf.get("o_proj_bias", hf["attention_bias"])),
            mlp_bias=bool(hf["mlp_bias"]),
            qk_norm=bool(hf["qk_norm"]),
            rope=RopeConfig.from_hf(hf, head_dim),
            moe=moe,
            eos_token_ids=_token_ids(hf.get("eos_token_id")),
            bos_token_id=hf.get("bos_token_id"),
            torch_dtype=hf.get("dtype") or hf.get("torch_dtype"),
            quantization=UNQUANTIZED if encoding is None else encoding.quantization,
        )


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
    # sliding_window: null says "no window"; elsewhere null says "not given".
    given = {k: v for k, v in config.items() if v is not None or k == "sliding_window"}
    for key, fixed in family.hf_fixed.items():
        if given.get(key, fixed) != fixed:
            raise CheckpointError(
                f"config.json: {key} is {given[key]!r}, but {family.__name__} is defined with "
                f"{fixed!r}. Correct config.json, or name another architecture."
            )
    return {**family.hf_defaults, **given, **family.hf_fixed}


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


def _layer_windows(hf: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Each layer's window, by layer_types or else by max_window_layers (the first that has one)."""
    window = hf.get("sliding_window")
    use_window = hf.get("use_sliding_window")
    if window is not None and use_window is None:
        raise CheckpointError(
            f"config.json: sliding_window is {window}, but {hf['architectures'][0]} attends to the "
            "whole context. Set it to null, or name an architecture that has windows."
        )
    window = _positive_int(hf, "sliding_window") if window is not None and use_window else None
    first = hf.get("max_window_layers", 0)
    derived = [
        "sliding_attention" if window is not None and i >= first else "full_attention"
        for i in range(num_layers)
    ]
    kinds = hf.get("layer_types", derived)
    known = {"full_attention": None, "sliding_attention": window}
    if len(kinds) != num_layers or not set(kinds) <= known.keys():
        raise CheckpointError(
            f"config.json: layer_types must give each of the {num_layers} layers one of "
            f"{sorted(known)}, found {list(kinds)}."
        )
    if window is None and "sliding_attention" in kinds:
        raise CheckpointError(
            "config.json: layer_types has sliding_attention, but no window is set."
        )
    return tuple(known[kind] for kind in kinds)


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
