"""From a documented dataclass to a command line.

Every field is a flag with its default and its help text; `-` and `_` in its name are the same. A
mistake is answered with one line that says what was wrong and what to do, and exit status 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import io
import itertools
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
ADVICE = {  # by what the system says of a file
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EACCES: "see who may write it",
    errno.EPERM: "see who may write it",
    errno.EROFS: "choose another place",
    errno.EMFILE: "close other programs",
}
RUNTIME_ADVICE = {  # by what Python says of the system
    "Symlink loop": "choose another place",
    "can't start new thread": "raise the limit (ulimit -u), or end other programs",
}


def option(default: Any, help: str, const: Any = None) -> Any:
    """A dataclass field that becomes a flag; its default is shown behind its help text.

    With `const` the flag may stand without a value, and then has this one.
    """
    return dataclasses.field(default=default, metadata={"help": help, "const": const})


def argument(help: str) -> Any:
    """A dataclass field that becomes a required argument without a name."""
    return dataclasses.field(metadata={"help": help})


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.refuse(f"{message}; see {self.prog} --help")

    def refuse(self, message: str) -> NoReturn:
        """Ends with status 2, saying why in one line.

        Each process that torchrun started says it: the first to end has the others killed.
        """
        self.exit(2, one_line(f"{self.prog}: {message}") + "\n")


def parse(config: type[T], arguments: Sequence[str], program: str, description: str) -> T:
    """The `config` that the arguments describe; exits with status 2 on a mistake."""
    return config(**given_flags(config, arguments, program, description))


def given_flags(
    config: type, arguments: Sequence[str], program: str, description: str
) -> dict[str, Any]:
    """The fields of `config` that the arguments set, by name.

    Exits with status 2 on a mistake, be it one in the flags or one that `config` finds in a value;
    with --help it shows the first line of `description`, the flags, and exits.
    """
    parser = Parser(
        prog=program,
        description=description.partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        add_field(parser, field, plain_type(hints[field.name]))
    known = [flag for action in parser._actions for flag in action.option_strings]
    before = list(itertools.takewhile(lambda a: a != "--", arguments))  # after -- all is text
    given = [with_hyphens(a, known) for a in before] + list(arguments[len(before) :])
    values, unknown = parser.parse_known_args(given)
    if unknown:
        parser.error(unknown_message(unknown[0], known))
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(values).items()
    }
    try:
        config(**fields)
    except ValueError as mistake:
        parser.refuse(str(mistake))
    return fields


def add_field(parser: Parser, field: dataclasses.Field, kind: Any) -> None:
    """Adds the flag or argument that a field describes."""
    help = field.metadata["help"].replace("%", "%%")
    if field.default is dataclasses.MISSING:
        parser.add_argument(field.name, type=kind, help=help, metavar=field.name.upper())
        return
    flag = "--" + field.name.replace("_", "-")
    if kind is bool:
        parser.add_argument(flag, action="store_true", help=help)
        return
    help += shown_default(field.default).replace("%", "%%")
    is_list = typing.get_origin(kind) is tuple
    if is_list:
        kind = typing.get_args(kind)[0]
    metavar = {int: "N", float: "X"}.get(kind, "TEXT")
    const = field.metadata.get("const")
    nargs = "+" if is_list else None if const is None else "?"
    parser.add_argument(flag, nargs=nargs, const=const, type=kind, help=help, metavar=metavar)


def shown_default(default: Any) -> str:
    """What `--help` says about a default; nothing where the help text itself does."""
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        default = " ".join(f'"{item}"' if " " in item else str(item) for item in default)
    return f" (default: {default})"


def plain_type(hint: Any) -> Any:
    """The type behind an annotation: `int` for `int | None`."""
    if isinstance(hint, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None))
    return hint


def with_hyphens(argument: str, flags: Sequence[str]) -> str:
    """`--some-flag` for `--some_flag`; any other text stays as it is."""
    flag, equals, value = argument.partition("=")
    hyphened = flag.replace("_", "-")
    return hyphened + equals + value if hyphened in flags else argument


def unknown_message(given: str, known: Sequence[str]) -> str:
    """What to say about a flag that does not exist."""
    if not given.startswith("-"):
        if f"--{given}" in known:
            return f"unexpected argument {given!r} (did you mean --{given}?)"
        return f"unexpected argument {given!r}; put quotes around a text with blanks"
    flag = given.partition("=")[0]
    if flag in known:
        return f"{flag} stands behind --, where all is text"
    begun = [name for name in known if name.startswith(flag)]
    close = begun or difflib.get_close_matches(flag, known, n=1)
    return f"unknown flag {flag}" + (f" (did you mean {close[0]}?)" if close else "")


def one_line(message: str, most: int = 280) -> str:
    """The message without line breaks and control characters, its middle left out if it is long.

    Files and users can make values of any length; what to do stands at the end.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    return text if len(text) <= most else f"{text[: most - 103]} ... {text[-98:]}"


def run_command(program: str, command: Callable[[], None]) -> int:
    """Runs a command; what a user can cause becomes one line on stderr. Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without emoji shows ? instead
            stream.reconfigure(errors="replace")
    try:
        command()
        return 0
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = open(os.devnull, "w")
        return 0
    except (ValueError, OSError) as error:
        print(one_line(f"{program}: {words_of(error)}"), file=sys.stderr)
        return 2
    except RuntimeError as error:
        advice = next((a for says, a in RUNTIME_ADVICE.items() if str(error).startswith(says)), "")
        if not advice:
            raise
        print(one_line(f"{program}: {error}; {advice}"), file=sys.stderr)
        return 2
    except MemoryError:
        print(f"{program}: there is not enough memory; end other programs", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def words_of(error: ValueError | OSError) -> str:
    """What an error says; the system's own words about a file do not say what to do."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    advice = ADVICE.get(error.errno or 0, "see what is there")
    return f"{' to '.join(names)}: {error.strerror}; {advice}"
