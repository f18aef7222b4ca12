"""Which environment variables are secrets, by name. They reach a job only when the user names them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

SECRET_NAME = re.compile(r".*(API_?KEY|_KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL).*", re.IGNORECASE)
NO_SECRETS = frozenset({"TOKENIZERS_PARALLELISM", "SSH_AUTH_SOCK"})


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret, as far as a name can tell."""
    return name not in NO_SECRETS and SECRET_NAME.fullmatch(name) is not None


def secrets_to_remove(environment: Mapping[str, str], *, wanted: Sequence[str]) -> tuple[str, ...]:
    """Names of the secrets in `environment` that the job must not get."""
    return tuple(sorted(name for name in environment if is_secret_name(name) and name not in wanted))
