"""Dataclasses from the command line and from recipes, for all scripts alike: one-line errors, nearest known names."""

import difflib
import json
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from .errors import InputError


class Parser(HfArgumentParser):
    """`HfArgumentParser` that takes no abbreviations and raises [`InputError`] instead of printing its usage."""

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise InputError(message)

    def parse(self, argv: list[str]) -> tuple:
        """
        One instance per dataclass, then a namespace of the arguments that were added by hand, if any.

        Raises:
            InputError: an unknown flag, named with the nearest known one, or an unusable value.
        """
        for token in argv:
            if token.startswith("--"):
                self._check_known(token[2:].split("=")[0], "flag --")
        try:
            *arguments, stray = self.parse_args_into_dataclasses(
                argv, look_for_args_file=False, return_remaining_strings=True
            )
        except (ValueError, TypeError, ImportError) as error:
            raise InputError(str(error)) from error
        if stray:
            raise InputError(f"Unexpected argument {stray[0]!r}.")
        return tuple(arguments)

    def read_recipe(self, path: Path) -> list[str]:
        """
        The flags that a YAML or JSON file of `name: value` stands for.

        Raises:
            InputError: the file cannot be read, or an unknown key, named with the nearest known one.
        """
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"The recipe {path} cannot be read: {error}") from error
        if not isinstance(recipe, dict):
            raise InputError(f"The recipe {path} must hold lines of 'name: value', got {type(recipe).__name__}.")
        tokens = []
        for key, value in recipe.items():
            self._check_known(str(key), f"key in {path.name}: ")
            if value is not None:
                values = value if isinstance(value, list) else [value]
                tokens += [f"--{key}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in values)]
        return tokens

    def _check_known(self, name: str, kind: str) -> None:
        known = [option.removeprefix("--") for action in self._actions for option in action.option_strings]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise InputError(f"Unknown {kind}{name}" + (f": did you mean {near[0]}?" if near else "."))
