"""Dataclasses filled from flags and recipes: unknown names are refused, and the nearest known name is shown."""

import argparse
import difflib
import json
import logging
import math
import textwrap
from argparse import ArgumentTypeError
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.error import MarkedYAMLError
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .errors import UsageError
from .inputs import check_values, read_text

logger = logging.getLogger(__name__)

MAX_RECIPE_BYTES = 2**15

RENAMED = {  # old names of flags
    "warp": "elastic_std", "max_shift": "max_translate", "max_scale": "max_scale_jitter",
    "fisher_steps": "fisher_update_interval", "fisher_images": "fisher_batch_size",
}  # fmt: skip
# Settings that have a meaning only for one value of another setting. Overriding the latter drops the former.
BELONGS_TO = {
    "lr_scheduler_kwargs": "lr_scheduler_type", "optim_args": "optim", "greater_is_better": "metric_for_best_model",
}  # fmt: skip


def arg(default: Any = None, help: str = "", **metadata) -> Any:
    """A dataclass field that becomes a flag. `metadata` is passed to `argparse`; a list is copied per instance."""
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_bool(text: str) -> bool:
    """`yes`, `true`, `on`, `1`, or their opposites."""
    return string_to_bool({"on": "yes", "off": "no"}.get(text.lower(), text))


def parse_int(text: str) -> int:
    """An integer of 64 bits."""
    try:
        value = int(text)
    except ValueError as error:
        raise ArgumentTypeError(f"invalid int value: {text!r}") from error
    if not -(2**63) <= value < 2**63:
        raise ArgumentTypeError(f"{text} is too large")
    return value


def parse_float(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"invalid float value: {text!r}") from error
    if not math.isfinite(value):
        raise ArgumentTypeError(f"the number must be finite, got {text!r}")
    return value


def parse_text(text: str) -> str:
    """Text that is not empty. An empty value is that of an unset shell variable, and would mean the default."""
    if not text.strip():
        raise ArgumentTypeError(f"the value is empty: {text!r}")
    return text


PARSERS = {string_to_bool: parse_bool, int: parse_int, float: parse_float, str: parse_text}


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        says_so = action.default in (None, []) or "Default:" in (action.help or "")
        return action.help if says_so else super()._get_help_string(action)


class RecipeParser(HfArgumentParser):
    """`HfArgumentParser` that reads recipes, accepts no abbreviated flags and raises [`UsageError`].

    A recipe is a YAML 1.2 or JSON file of `flag: value`. Its key `base` names another recipe, relative to its own
    folder, that it changes."""

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(dataclass_types, allow_abbrev=False, formatter_class=_Formatter, **kwargs)
        for action in self._actions:
            action.type = PARSERS.get(action.type, action.type)
        hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        self.recipe_keys = [item.name for kind in self.dataclass_types for item in fields(kind) if item.init]
        self.mapping_keys = {
            name for name, hint in hints.items() if any(dict in (kind, get_origin(kind)) for kind in get_args(hint))
        }
        self.given: set[str] = set()  # names of the flags on the command line

    def error(self, message: str):
        raise UsageError(message)

    def parse(self, argv: list[str], recipe: Mapping[str, Any] | None = None) -> tuple:
        """One instance per dataclass, then a namespace of the arguments that were added separately, if any. `recipe`
        holds values of flags that `argv` does not set.

        Raises [`UsageError`] for an unknown flag or an unusable value."""
        options = [token[2:].split("=")[0] for token in argv if token.startswith("--")]
        for option in options:
            self._check_known(option, "flag --", (name.removeprefix("--") for name in self._option_string_actions))
        names = [self._option_string_actions[f"--{option}"].dest for option in options]
        self.given = set(names)
        for name in sorted(name for name in self.given if names.count(name) > 1):
            logger.warning("--%s is given %d times: only the last one counts.", name, names.count(name))
        if stray := self.parse_known_args(argv)[1]:  # before a list in the recipe can take it
            raise UsageError(f"Unexpected argument {stray[0]!r}.")
        argv = self._tokens(recipe or {}, argv) + argv
        try:
            return self.parse_args_into_dataclasses(argv, look_for_args_file=False)
        except (ValueError, TypeError, ImportError) as error:
            raise UsageError(str(error)) from error

    def warn_unused(self, used: Collection[str], what: str) -> None:
        """Name the flags that were given and are not among `used`, the flags that `what` uses."""
        if unused := sorted(self.given - {*used}):
            logger.warning("%s does not use %s.", what, ", ".join(f"--{name}" for name in unused))

    def read_recipe(self, path: Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
        """The values in a recipe and its bases. Raises [`UsageError`] for an unreadable file or an unknown key."""
        try:
            if path.resolve() in derived:
                raise UsageError(f"The recipe {path} has itself as a base.")
            values = YAML(typ="safe", pure=True).load(read_text(path, MAX_RECIPE_BYTES))
            check_values(path, values)
        except UsageError:
            raise
        except FileNotFoundError as error:
            recipes = [other.as_posix() for other in path.parent.glob("*.yaml")]
            near = difflib.get_close_matches(path.as_posix(), recipes, n=1, cutoff=0.5)
            advice = f"; did you mean {near[0]}?" if near else "."
            raise UsageError(f"Cannot read the recipe {path}: there is no such file{advice}") from error
        except (OSError, ValueError, YAMLError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:  # str() takes eight lines
                reason = f"{error.problem}, in line {error.problem_mark.line + 1}"
            raise UsageError(f"Cannot read the recipe {path}: {reason}") from error
        if not isinstance(values, dict):
            found = "nothing" if values is None else type(values).__name__
            raise UsageError(f"The recipe {path} must hold lines of 'name: value', got {found}.")
        recipe: dict[str, Any] = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name in recipe:
                raise UsageError(f"The recipe {path} gives {name} twice.")
            if name != "base":
                self._check_known(name, f"key in {path.name}: ", self.recipe_keys)
            self._check_recipe_value(name, value, path)
            recipe[name] = value
        if "base" not in recipe:
            return recipe
        base = recipe.pop("base")
        inherited = self.read_recipe(path.parent / str(base), (*derived, path.resolve()))
        return self._without_overridden(inherited, recipe) | recipe

    def print_summary(self, groups: Mapping[str, Iterable[str]], values: Mapping[str, Any]) -> None:
        """Print each flag in `groups` (title to names): name, value, and its help or, if that is long, the start."""
        for title, names in groups.items():
            print(f"\n{title}")
            for name in names:
                value = values.get(name)
                text = json.dumps(value) if isinstance(value, dict) else "-" if value in (None, [], "") else value
                meaning = self._option_string_actions[f"--{name}"].help or ""
                meaning = meaning if len(meaning) <= 210 else meaning.split(". ")[0]
                print(textwrap.fill(f"--{name} {text} ".ljust(44) + meaning, 119, subsequent_indent=" " * 44))

    def _tokens(self, recipe: Mapping[str, Any], argv: list[str]) -> list[str]:
        """The flags that a recipe stands for, without those that `argv` makes meaningless."""
        values = vars(self.parse_known_args(argv)[0])
        chosen = {name: value for name, value in values.items() if name in self.given}
        tokens = []
        for key, value in self._without_overridden(recipe, chosen).items():
            if isinstance(value, list):
                tokens += [f"--{key}", *map(str, value)]
            elif value is not None:
                tokens.append(f"--{key}={json.dumps(value) if isinstance(value, (dict, bool)) else value}")
        return tokens

    def _check_recipe_value(self, key: str, value: Any, path: Path) -> None:
        """Raise [`UsageError`] for a value that would not be the flag's as it stands in the recipe."""
        action = self._option_string_actions.get(f"--{key}")
        problem = None
        if value is None:  # a value was forgotten, or None was wanted, which no flag can say
            problem = "no value: give one, or leave the line out"
        elif isinstance(value, dict):
            problem = None if key in self.mapping_keys else "a mapping"
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                problem = f"a mapping that is not JSON ({error})"
        elif isinstance(value, list):
            is_plain = all(isinstance(item, (str, int, float)) and not str(item).startswith("--") for item in value)
            problem = (
                None if action is not None and action.nargs == "+" and value and is_plain else f"the list {value}"
            )
        elif not isinstance(value, (str, bool)) and (action is None or action.type is parse_text):
            problem = f"{value!r}, which is no text: put it in quotes"
        if problem:
            raise UsageError(f"Wrong value of {key} in {path.name}: got {problem}.")

    def _without_overridden(self, recipe: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        """`recipe` without the settings that belong to a choice which `over` makes differently."""
        kept = dict(recipe)
        for key, choice in BELONGS_TO.items():
            if choice in over and str(over[choice]) != str(recipe.get(choice, self.get_default(choice))):
                kept.pop(key, None)
        return kept

    def _check_known(self, name: str, kind: str, known: Iterable[str]) -> None:
        if name in (known := list(known)):
            return
        dashes, new = kind.partition("--")[1], RENAMED.get(name.replace("-", "_"))
        if new in known:
            raise UsageError(f"Unknown {kind}{name}: its name is now {dashes}{new}.")
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise UsageError(f"Unknown {kind}{name}" + (f": did you mean {dashes}{near[0]}?" if near else "."))
