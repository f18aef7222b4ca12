"""`model=hf:PATH`: a Hugging Face folder or config.json in place of a file of the group `model`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import InputError
from launcher.files import read_json
from launcher.model.from_hf import read_hf

PREFIX = "model=hf:"
CONFIG_FILE = "config.json"
SEQ_LEN = "model.seq_len"


def expanded(overrides: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Replace `model=hf:PATH` by the keys that it means, and note what those cannot express.

    Other overrides win. Raises InputError if there is no such file or the model is not supported.
    """
    paths = [word.removeprefix(PREFIX) for word in overrides if word.startswith(PREFIX)]
    if not paths:
        return list(overrides), ()
    rest = [word for word in overrides if not word.startswith(PREFIX)]
    file = _file(paths[-1])
    name = re.sub(r"[^\w.+-]", "-", file.absolute().parent.name if file.name == CONFIG_FILE else file.stem)
    data = read_json(file, remedy="give the folder of a Hugging Face model, or its config.json")
    found = read_hf(data, name=name)
    if found.is_another:
        raise InputError(
            [
                f"model=hf:{paths[-1]} cannot be planned: an estimate of what its keys make would be of another model: "
                "give the shape with model=gpt and its keys"
            ]
            + [f"there is no key for {line}" for line in found.missing]
        )
    keys = [f"model.{key}={json.dumps(value)}" for key, value in found.keys.items()]
    unmapped = [line for line in found.missing if not (SEQ_LEN in line and any(SEQ_LEN in word for word in rest))]
    notes = tuple(f"model=hf:{paths[-1]}: there is no key for {line}" for line in unmapped)
    return ["model=gpt", *keys, *rest], notes


def _file(path: str) -> Path:
    given = Path(path).expanduser()
    file = given / CONFIG_FILE if given.is_dir() else given
    if not file.is_file():
        raise InputError(
            f"model=hf:{path} is not here: give a folder with a {CONFIG_FILE} (nothing is downloaded: "
            f"hf download {path} {CONFIG_FILE} --local-dir FOLDER gets one)"
        )
    return file
