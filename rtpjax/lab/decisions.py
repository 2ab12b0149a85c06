"""What follows from the figures: the branches of the plan that was made before there were any."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

Values = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Question:
    """A branch.

    Attributes:
        text: What is asked.
        needs: The figures that it takes.
        answer: What to do, from these figures.
    """

    text: str
    needs: tuple[str, ...]
    answer: Callable[..., str]


def _ratio(wanted: Callable[[float], str]) -> Callable[[float, float], str]:
    return lambda a, b: f"{a / b:.2f}: {wanted(a / b)}"


QUESTIONS = (
    Question(
        "Is a decode step of one row as fast as its kernels allow? (forward.1 / trace.1.kernels)",
        ("forward.1", "trace.1.kernels"),
        _ratio(
            lambda r: (
                "gaps between kernels cost more than 10%: look for launches outside of CUDA graphs "
                "(TF_CPP_VMODULE=command_buffer_thunk=3 tells of each update)"
                if r > 1.1
                else "the kernels are the step; what is slow there is in stage trace"
            )
        ),
    ),
    Question(
        "Do CUDA graphs help? (graphs.off.1 / forward.1)",
        ("graphs.off.1", "forward.1"),
        _ratio(
            lambda r: (
                "no difference: they may not be in use"
                if r < 1.005
                else "they are in use and worth it"
                if r > 1.02
                else "little, as expected of a large model"
            )
        ),
    ),
    Question(
        "Is the product down bound by L2 at 64 rows? (tilings.down.before.64 / tilings.down.64)",
        ("tilings.down.before.64", "tilings.down.64"),
        _ratio(
            lambda r: (
                "yes: 64-wide tiles stay"
                if r > 1.1
                else "no: 32-wide tiles do as well, drop the 64-wide ones"
            )
        ),
    ),
    Question(
        "Is cuBLAS faster at 64 rows? (tilings.down.64 / cublas.down.64)",
        ("tilings.down.64", "cublas.down.64"),
        _ratio(
            lambda r: (
                "yes, by over 10%: let XLA's products have more than 32 rows (MAX_ROWS)"
                if r > 1.1
                else "no: our kernel stays"
            )
        ),
    ),
    Question(
        "Does choosing greedy tokens hold up the host? (choose.held.greedy.1 ms)",
        ("choose.held.greedy.1",),
        lambda held: (
            f"{held:.2f} ms: yes, host and device do not overlap; find what XLA drives from the "
            "host"
            if held > 0.5
            else f"{held:.2f} ms: no"
        ),
    ),
    Question(
        "Do loops belong into the graphs of top-k and top-p? (choose.filters.no_while.64 / "
        "choose.filters.while.64)",
        ("choose.filters.no_while.64", "choose.filters.while.64"),
        _ratio(lambda r: "yes" if r > 1.1 else "it makes no difference: use the plain option"),
    ),
    Question(
        "And into those of conditionals? (choose.held.everything.no_while.64 / .while.64)",
        ("choose.held.everything.no_while.64", "choose.held.everything.while.64"),
        _ratio(lambda r: "yes: the host waits without" if r > 1.5 else "it makes no difference"),
    ),
    Question(
        "Does one long row hold up short ones? (decode_attention.skewed, us for so many bytes)",
        ("decode_attention.skewed", "decode_attention.skewed limit"),
        _ratio(
            lambda r: (
                "over three times the limit: split contexts by their length, with a list of work"
                if r > 3
                else "no: splits by rows are enough"
            )
        ),
    ),
    Question(
        "Do loads of decode attention overlap? (decode_attention.64x1k.stages2 / .stages4)",
        ("decode_attention.64x1k.stages2", "decode_attention.64x1k.stages4"),
        _ratio(lambda r: "more tiles in flight help" if r > 1.05 else "two stages are enough"),
    ),
    Question(
        "Is the Hopper kernel for prompts worth being the default? (mosaic / pallas)",
        ("prefill_attention.mosaic", "prefill_attention.pallas"),
        _ratio(
            lambda r: "yes, if stage kernels found its results right" if r > 1.5 else "not as it is"
        ),
    ),
    Question(
        "How far is cuDNN ahead of the best of ours? (cudnn / mosaic)",
        ("prefill_attention.cudnn", "prefill_attention.mosaic"),
        _ratio(
            lambda r: (
                "over 1.3: two warpgroups that take turns, or FlashInfer as an option"
                if r > 1.3
                else "near enough"
            )
        ),
    ),
    Question(
        "Is int4 faster than bf16? (quantized.down.bf16.1 / quantized.down.int4.1)",
        ("quantized.down.bf16.1", "quantized.down.int4.1"),
        _ratio(
            lambda r: (
                "hardly: rework the kernel before the docs promise anything"
                if r < 1.3
                else "yes"
                if r > 2
                else "somewhat: several groups an iteration would give more"
            )
        ),
    ),
    Question(
        "Was the loop in sorting rows by expert worth removing? (moe.starts.loop / .no_loop)",
        ("moe.starts.loop", "moe.starts.no_loop"),
        _ratio(lambda r: "yes" if r > 1.5 else "it made no difference"),
    ),
    Question(
        "What does the host cost a step? (engine.1 - forward.1, ms)",
        ("engine.1", "forward.1"),
        lambda engine, forward: (
            f"{engine - forward:.2f} ms: "
            + (
                "too much: several steps a dispatch, or arguments packed in C++"
                if engine - forward > 0.7
                else "little"
            )
        ),
    ),
    Question(
        "Is a step as fast as torch's best? (peer.1 / engine.1)",
        ("peer.1", "engine.1"),
        _ratio(lambda r: "yes" if r >= 1 else "no: torch's graph alone is faster"),
    ),
)


def decided(values: Values) -> Iterable[tuple[str, str]]:
    """Each question, and its answer or what it lacks."""
    for question in QUESTIONS:
        missing = [name for name in question.needs if name not in values]
        if missing:
            yield question.text, f"open: {', '.join(missing)} was not measured"
        else:
            yield question.text, question.answer(*(values[name] for name in question.needs))
