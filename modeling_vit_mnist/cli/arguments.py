"""Dataclasses filled from flags and recipes: unknown names are refused, and the nearest known name is shown."""

import argparse
import difflib
import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .errors import UsageError

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
            if action.type is string_to_bool:
                action.type = parse_bool

    def error(self, message: str):
        raise UsageError(message)

    def parse(self, argv: list[str], recipe: Mapping[str, Any] | None = None) -> tuple:
        """One instance per dataclass, then a namespace of the arguments that were added separately, if any. `recipe`
        holds values of flags that `argv` does not set.

        Raises [`UsageError`] for an unknown flag or an unusable value."""
        for token in argv:
            if token.startswith("--"):
                self._check_known(token[2:].split("=")[0], "flag --")
        argv = self._tokens(recipe or {}, argv) + argv
        try:
            *arguments, stray = self.parse_args_into_dataclasses(
                argv, look_for_args_file=False, return_remaining_strings=True
            )
        except (ValueError, TypeError, ImportError) as error:
            raise UsageError(str(error)) from error
        if stray:
            raise UsageError(f"Unexpected argument {stray[0]!r}.")
        return tuple(arguments)

    def read_recipe(self, path: Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
        """The values in a recipe and its bases. Raises [`UsageError`] for an unreadable file or an unknown key."""
        if path.resolve() in derived:
            raise UsageError(f"The recipe {path} has itself as a base.")
        try:
            recipe = YAML(typ="safe", pure=True).load(path)
        except (OSError, ValueError, YAMLError) as error:
            raise UsageError(f"Cannot read the recipe {path}: {error}") from error
        if not isinstance(recipe, dict):
            raise UsageError(f"The recipe {path} must hold lines of 'name: value', got {type(recipe).__name__}.")
        base = recipe.pop("base", None)
        for key in recipe:
            self._check_known(str(key), f"key in {path.name}: ")
        if base is None:
            return recipe
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
                print(textwrap.fill(f"--{name} {text}".ljust(44) + meaning, 119, subsequent_indent=" " * 44))

    def _tokens(self, recipe: Mapping[str, Any], argv: list[str]) -> list[str]:
        """The flags that a recipe stands for, without those that `argv` makes meaningless."""
        given = {token[2:].split("=")[0].replace("-", "_") for token in argv if token.startswith("--")}
        chosen = {name: value for name, value in vars(self.parse_known_args(argv)[0]).items() if name in given}
        tokens = []
        for key, value in self._without_overridden(recipe, chosen).items():
            if isinstance(value, list):
                tokens += [f"--{key}", *map(str, value)]
            elif value is not None:
                tokens.append(f"--{key}={json.dumps(value) if isinstance(value, (dict, bool)) else value}")
        return tokens

    def _without_overridden(self, recipe: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        """`recipe` without the settings that belong to a choice which `over` makes differently."""
        kept = dict(recipe)
        for key, choice in BELONGS_TO.items():
            if choice in over and str(over[choice]) != str(recipe.get(choice, self.get_default(choice))):
                kept.pop(key, None)
        return kept

    def _check_known(self, name: str, kind: str) -> None:
        known = [option.removeprefix("--") for action in self._actions for option in action.option_strings]
        if name in known:
            return
        dashes, new = kind.partition("--")[1], RENAMED.get(name.replace("-", "_"))
        if new in known:
            raise UsageError(f"Unknown {kind}{name}: its name is now {dashes}{new}.")
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise UsageError(f"Unknown {kind}{name}" + (f": did you mean {dashes}{near[0]}?" if near else "."))
