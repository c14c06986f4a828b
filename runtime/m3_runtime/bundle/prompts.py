"""A checkpoint's prompts: texts that its authors put before a query or a passage, by name.

They are kept as sentence-transformers writes them, in config_sentence_transformers.json, so that it finds them too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m3_runtime.bundle.reader import Bundle
from m3_runtime.errors import BundleFormatError, InputError

PROMPTS_NAME = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Prompts:
    """Prompts by name; `default` names the one for texts that come without a prompt's name."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    @classmethod
    def from_json(cls, data: object) -> "Prompts":
        """From what config_sentence_transformers.json holds; its other keys do not matter.

        Raises:
            InputError: a prompt is no text, or the default is none of them.

        >>> Prompts.from_json({"prompts": {"query": "query: "}, "default_prompt_name": None})
        Prompts(prompts={'query': 'query: '}, default=None)
        """
        found = data if isinstance(data, dict) else {}
        prompts, default = found.get("prompts") or {}, found.get("default_prompt_name")
        if not isinstance(data, dict) or not isinstance(prompts, dict):
            raise InputError(f"{PROMPTS_NAME}: expected an object with prompts by name, got {data!r}")
        if wrong := [name for name, text in prompts.items() if not isinstance(text, str)]:
            raise InputError(f"{PROMPTS_NAME}: prompt {wrong[0]!r} must be a text, got {prompts[wrong[0]]!r}")
        if default is not None and default not in prompts:
            raise InputError(f"{PROMPTS_NAME}: default_prompt_name is {default!r}, which is none of {sorted(prompts)}")
        return cls(prompts, default)

    def to_json(self) -> dict[str, Any]:
        """What sentence-transformers reads."""
        return {"prompts": dict(self.prompts), "default_prompt_name": self.default}


def read_prompts(bundle: Bundle) -> Prompts:
    """The prompts of a bundle; none where its checkpoint had none.

    Raises:
        BundleFormatError: the file that holds them is malformed.
    """
    if PROMPTS_NAME not in {entry.path for entry in bundle.manifest.files}:
        return Prompts()
    try:
        return Prompts.from_json(json.loads(bundle.file(PROMPTS_NAME).read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:  # InputError is a ValueError
        raise BundleFormatError(f"{error}; export the bundle again") from error
