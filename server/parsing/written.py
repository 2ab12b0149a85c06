"""How the calls of one answer are written: what the grammars of constrained calls are made from.

    begin   call ARGUMENTS end   separator   call ARGUMENTS end   section_end

Reading is generous and lives in the format's grammar; writing is exactly what the model was trained
on. The texts have placeholders: `{name}` for the function's name, `{index}` for a call's number,
`{key}` for a parameter's name, `{is_string}` for whether its value is a string, "true" or "false".
"""

from __future__ import annotations

from dataclasses import dataclass

from server import limits


@dataclass(frozen=True, slots=True)
class Parameters:
    """Arguments that are written one by one; strings as they are, other values as JSON.

    Attributes:
        before, after: Texts around a value.
        separator: The text between two parameters.
        quote: A mark before and after strings.
        ends: Texts that no string can have in it, for they would end it.
        is_python: Strings are literals, too, and booleans are Python's.
        keys: What a parameter's name must look like.
    """

    before: str
    after: str = ""
    separator: str = ""
    quote: str = ""
    ends: tuple[str, ...] = ()
    is_python: bool = False
    keys: str = r"[^\s<>\"'={}:,]+"


@dataclass(frozen=True, slots=True)
class Written:
    """One way to write calls.

    Attributes:
        call: The text before the arguments.
        end: The text after them.
        begin, section_end: Texts around all calls; without them each call stands for itself.
        separator: The text between two calls.
        arguments: How arguments are written that are not one JSON object.
        trigger: A part of `begin` or `call`: text that has it has a call. Without one an answer
            that begins as a call of an offered function is one.
        names: What a function's name must look like.
        most: Most calls in an answer.
        marks: Texts that may be special tokens, besides those that the format's grammar names.
        in_template: Models whose template has this text write this way.
    """

    call: str
    end: str = ""
    begin: str = ""
    section_end: str = ""
    separator: str = "\n"
    arguments: Parameters | None = None
    trigger: str = ""
    names: str = r"[\w.:/-]+"
    most: int = limits.MAX_PARALLEL_CALLS
    marks: tuple[str, ...] = ()
    in_template: str = ""
