"""Hydra configuration in, frozen values out. The only file that imports hydra."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.build import build_cluster, build_model, build_request, build_training
from launcher.config.fields import raise_problems, unknown_key
from launcher.errors import InputError
from launcher.layout import LayoutRequest
from launcher.layout.job import Job
from launcher.resources import resource

# Keys whose value is taken as it stands, without Hydra's grammar: paths, why_not=tp=4,pp=16, and what goes to sbatch,
# as launch.exclude=node[03,07]. The runs of one sweep share the latter.
SBATCH_KEYS = ("nodelist", "exclude", "constraint", "comment", "mail_type", "dependency", "job_name")
VERBATIM_KEYS = ("why_not", "run_dir", "script", "run_name", *(f"launch.{key}" for key in SBATCH_KEYS))
GROUPS = ("cluster", "model", "layout", "train", "recipe", "launch", "tracking")


@dataclass(frozen=True)
class Settings:
    """One command's input: the job, the layout as asked for, and the whole resolved configuration as plain data."""

    job: Job
    request: LayoutRequest
    config: Mapping[str, Any]


def load(overrides: Sequence[str]) -> Settings:
    """Compose the configuration with Hydra overrides; raises InputError with everything that is wrong."""
    return from_config(compose_config(overrides))


def from_config(config: Mapping[str, Any]) -> Settings:
    """Typed values out of a resolved configuration."""
    problems: list[str] = []
    cluster = build_cluster(config["cluster"], problems)
    model = build_model(config["model"], problems)
    training = build_training(config["train"], cluster, problems)
    request = build_request(config["layout"], cluster, problems)
    raise_problems(problems)
    return Settings(Job(cluster, model, training), request, config)


def compose_config(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration as plain data."""
    with _hydra():
        return _to_plain(_compose(overrides))


def raw_config(overrides: Sequence[str]) -> dict[str, Any]:
    """The composed configuration as plain data, interpolations and missing values as they stand."""
    with _hydra():
        plain = OmegaConf.to_container(_compose(overrides), resolve=False)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def config_text(overrides: Sequence[str]) -> str:
    """The composed configuration as YAML, as `--cfg job` shows it."""
    with _hydra():
        return OmegaConf.to_yaml(_compose(overrides))


def as_yaml(config: Mapping[str, Any]) -> str:
    """A resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of a multirun: `cluster=a,b layout.tp=1,2` gives four lists of overrides."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        parsed = OverridesParser.create().parse_overrides([_quoted(override) for override in overrides])
    except HydraException as error:
        raise InputError(_first_line(error)) from error
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(combination) for batch in batches for combination in batch]


def choices() -> dict[str, list[str]]:
    """The entries of every configuration group, the user's own folder included."""
    return {
        group: sorted({file.stem for folder in sources() for file in (folder / group).glob("*.yaml")})
        for group in GROUPS
    }


def sources() -> list[Path]:
    """The folders that configuration files come from."""
    return [resource("configs"), *_user_configs()]


def keys() -> list[str]:
    """Every key of the default configuration that takes a value."""
    with _hydra():
        config = OmegaConf.to_container(compose("config"), resolve=False)
    return sorted(name for name, value in _items(config) if not isinstance(value, dict))


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra set up on our configuration, and put away again: it keeps its state in a process-wide singleton."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(resource("configs")), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().clear()


def _compose(overrides: Sequence[str]) -> DictConfig:
    try:
        return compose("config", overrides=[*_search_path(), *map(_quoted, overrides)])
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # model=7: Hydra's own ValueError
        raise InputError(_explain(error, overrides)) from error


def _search_path() -> list[str]:
    """The override that makes the user's own folder of configurations known."""
    folders = ",".join(_hydra_string(f"file://{folder}") for folder in _user_configs())
    return [f"hydra.searchpath=[{folders}]"] if folders else []


def _to_plain(config: DictConfig) -> dict[str, Any]:
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise InputError([f"{key} is not set: give it as {key}=VALUE" for key in missing])
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"the configuration does not resolve: {_first_line(error)}") from error
    if not isinstance(plain, dict):
        raise InputError("the configuration is not a group of keys")
    return {str(key): value for key, value in plain.items()}


def _user_configs() -> list[Path]:
    """A `configs` folder of the user's, in the current folder, adds to ours."""
    folder = Path.cwd() / "configs"
    return [folder] if folder.is_dir() and folder.resolve() != resource("configs").resolve() else []


def _quoted(override: str) -> str:
    """An override whose value is quoted for Hydra's grammar where the key takes it verbatim."""
    key, equals, value = override.partition("=")
    plain = key in VERBATIM_KEYS and value != "null" and value[:1] not in ("'", '"')
    return f"{key}={_hydra_string(value)}" if equals and plain else override


def _hydra_string(value: str) -> str:
    """A quoted string of Hydra's grammar: backslashes count only before a quote, `${` would be an interpolation."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return "'" + escaped.replace("${", "\\${") + "'"


def _explain(error: Exception, overrides: Sequence[str]) -> list[str]:
    """What is wrong with the overrides, with what is allowed instead: the worst kind of mistake, every one of it."""
    malformed = [message for override in map(_quoted, overrides) if (message := _syntax_problem(override))]
    if malformed:
        return malformed
    words = [override.lstrip("+~").partition("=") for override in overrides]
    chosen = [(key.partition("@")[0], value) for key, _, value in words if value and not value.startswith("{")]
    known = choices()
    unknown = [(group, value) for group, value in chosen if group in GROUPS and value not in known[group]]
    if unknown:
        return [_unknown_choice(value, group, known[group]) for group, value in unknown]
    keys = _all_keys([override for override in overrides if override.partition("=")[0] in GROUPS])
    lost = [key for key in (o.partition("=")[0] for o in overrides if o[:1] not in "+~") if key not in keys]
    added = [o[1:].partition("=") for o in overrides if o[0] == "+"]
    there = [key for key, _, value in added if key in keys and not value.startswith("{")]
    return [
        *(_unknown_override(key, keys) for key in lost if not key.startswith("hydra.")),
        *(f"+{key}: the key is there already: write {key}=VALUE, without the +" for key in there),
    ] or _unopened(error, overrides)


def _unopened(error: Exception, overrides: Sequence[str]) -> list[str]:
    """Hydra's complaint; where a mapping is to get new keys, how that is written."""
    mappings = [word for word in overrides if word[:1] not in "+~" and word.partition("=")[2].startswith("{")]
    if "not in struct" in _first_line(error) and mappings:
        return [f"{word} adds keys: write +{word}" for word in mappings]
    return [_first_line(error)]


def _syntax_problem(override: str) -> str | None:
    """What Hydra's grammar has against one override, or None."""
    try:
        if OverridesParser.create().parse_override(override).is_sweep_override():
            key, _, value = override.partition("=")
            return f"{override} gives several values: sweep with -m, or quote what is one value: \"{key}='{value}'\""
    except HydraException as error:
        why = _first_line(error)
        return f"{override} is not an override ({why}): write key=value, close brackets, quote what is special"
    return None


def _unknown_override(key: str, keys: Sequence[str]) -> str:
    """What is wrong with a key that does not exist: the nearest keys, else those beside it."""
    parent = key.rpartition(".")[0]
    message = unknown_key(key, keys)
    if "did you mean" in message:
        return message
    return unknown_key(key, [known for known in keys if known.rpartition(".")[0] == parent] or GROUPS)


def _unknown_choice(value: str, group: str, known: Sequence[str]) -> str:
    message = unknown_key(value, known).replace("is not a known key", f"is not a known {group}")
    return message if "known:" in message.partition(":")[2] else f"{message} (known: {', '.join(known)})"


def _all_keys(overrides: Sequence[str]) -> list[str]:
    """Every key of the configuration with these choices of groups; of the default one where they do not compose."""
    try:
        config = compose("config", overrides=[*_search_path(), *overrides])
    except (HydraException, OmegaConfBaseException):
        config = compose("config")
    return sorted(name for name, _ in _items(OmegaConf.to_container(config, resolve=False)))


def _items(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a nested configuration with its value, groups included."""
    if isinstance(node, dict):
        for key, value in node.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            yield name, value
            yield from _items(value, name)


def _first_line(error: BaseException) -> str:
    """The first line of a message, and of what caused it: Hydra's own next lines repeat the configuration."""
    texts = [str(e).strip() for e in (error, error.__cause__) if e is not None]
    lines = [text.splitlines()[0] for text in texts if text not in ("", "None")]
    return "; ".join(dict.fromkeys(lines))
