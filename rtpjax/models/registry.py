"""Which architectures can be served: every module of this folder that defines ARCHITECTURES."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
from flax import nnx

from pallas_kernels.sharded import MeshAxes
from rtpjax.errors import CheckpointError
from rtpjax.models.cache import Caches, Pages
from rtpjax.models.precision import Precision
from rtpjax.models.step import StepInputs

if TYPE_CHECKING:
    from rtpjax.models.config import ModelConfig


class CausalLM(nnx.Module):
    """What every architecture is.

    A parameter's attribute path is its Hugging Face name. Layers keep no state between steps:
    caches are passed in and handed back.

    Attributes:
        hf_defaults: What the family takes for keys that config.json leaves out.
        hf_fixed: What the family does in any case; a config.json that says otherwise is refused.
        stored_names: Where its checkpoints name tensors otherwise than the model: a regular
            expression for a part of a name, and what the model has in its place.
        has_interleaved_experts: Whether its checkpoints keep experts as rtpjax.interleaved_experts
            says, in MXFP4 or plain.
        has_mtp_layers: Whether layers that predict further tokens follow the model's own in its
            checkpoints; they are not served.
    """

    hf_defaults: ClassVar[Mapping[str, Any]] = {}
    hf_fixed: ClassVar[Mapping[str, Any]] = {}
    stored_names: ClassVar[Mapping[str, str]] = {}
    has_interleaved_experts: ClassVar[bool] = False
    has_mtp_layers: ClassVar[bool] = False

    @classmethod
    def completed(cls, hf: dict[str, Any]) -> dict[str, Any]:
        """config.json with the values that follow from others where it leaves them out.

        Args:
            hf: With hf_defaults and hf_fixed.
        """
        return hf

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of ModelConfig in which the family differs from Llama.

        Args:
            hf: What `completed` returned.
        """
        del hf
        return {}

    def __init__(self, config: ModelConfig, precision: Precision, *, rngs: nnx.Rngs):
        raise NotImplementedError

    def __call__(
        self, token_ids: jax.Array, step: StepInputs, caches: Caches
    ) -> tuple[jax.Array, Caches]:
        """Runs one step.

        Args:
            token_ids: int32 `[T]`.
            step: The ragged batch that the tokens form.
            caches: Of all layers of `cache_specs()`.

        Returns:
            Hidden states `[T, D]` after the final norm, and the caches with this step's tokens.
        """
        raise NotImplementedError

    def logits(self, hidden: jax.Array, mesh: MeshAxes | None = None) -> jax.Array:
        """Scores of the next token: hidden `[S, D]` -> float32 `[S, V]`.

        mesh: Devices that the model is split over; None for one device.
        """
        raise NotImplementedError

    def cache_specs(self) -> tuple[Pages, ...]:
        """What each layer caches."""
        raise NotImplementedError


@functools.cache
def architectures() -> Mapping[str, type[CausalLM]]:
    """All architectures by the name that config.json has for them."""
    return _declared("ARCHITECTURES")


@functools.cache
def text_architectures() -> Mapping[str, str]:
    """The text model's architecture inside of those that also take images or sound."""
    return _declared("TEXT_ARCHITECTURES")


def _declared(attribute: str) -> dict[str, Any]:
    """The entries of a dict of every module in this folder that has one."""
    package = importlib.import_module(__package__ or "rtpjax.models")
    found: dict[str, Any] = {}
    for module_info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{module_info.name}")
        for name, entry in getattr(module, attribute, {}).items():
            assert name not in found, f"{name} is defined by two modules"
            found[name] = entry
    return found


def architecture(name: str) -> type[CausalLM]:
    """The class for an architecture's name.

    Raises:
        CheckpointError: There is none.
    """
    if name not in architectures():
        raise CheckpointError(
            f"Architecture {name!r} is not supported; supported are "
            f"{', '.join(sorted(architectures()))}. A new one is a file in rtpjax/models/."
        )
    return architectures()[name]
