"""Whether the user has wandb's login, or asked for wandb by its own variables: without importing it, which is 0.9 s.

No key is read by us: a variable or a line of netrc is there, or it is not.
https://docs.wandb.ai/guides/track/environment-variables
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from launcher import env
from launcher.files import user_path

SERVER = "https://api.wandb.ai"
LOGIN = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
OFF, OFFLINE = ("disabled",), ("offline", "dryrun")


def login() -> str | None:
    """Where wandb's login is; None where the user has none."""
    for name in LOGIN:
        if env.get(name):
            return name
    host = urlsplit(_server()).hostname or ""
    for file in _netrc_files():
        if re.search(rf"^\s*machine\s+{re.escape(host)}(\s|$)", _text(file), re.MULTILINE):
            return str(file)
    return None


def asked_mode() -> str | None:
    """The mode that WANDB_MODE asks for: online, offline or disabled; None where it is not set."""
    mode = (env.get("WANDB_MODE") or "").lower()
    if not mode and (env.get("WANDB_DISABLED") or "").lower() not in ("true", "1"):
        return None
    if mode in OFFLINE:
        return "offline"
    return "disabled" if mode in OFF or not mode else "online"


def _server() -> str:
    """wandb's server: by its variable, its settings, or its own."""
    if found := env.get("WANDB_BASE_URL"):
        return found
    folder = Path(env.get("WANDB_CONFIG_DIR") or user_path("~/.config/wandb"))
    for file in (Path("wandb/settings"), folder / "settings"):
        if match := re.search(r"^\s*base_url\s*[=:]\s*(\S+)", _text(file), re.MULTILINE):
            return match[1]
    return SERVER


def _netrc_files() -> list[Path]:
    given = env.get("NETRC")
    return [Path(given)] if given else [user_path("~/.netrc"), user_path("~/_netrc")]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
