"""Detects secrets, by the name of a variable or the form of a value. The only file that defines them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

# A word that marks a secret anywhere in the name: GIT_SECRET_2, PGPASSWORD, DB_PASSWORDS.
ALWAYS = re.compile(r"\w*(SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEYS?|SSHPASS|PRIVKEY)")
# The last word marks a secret, unless the word before it says otherwise: HF_TOKEN and EOS_TOKEN, SSH_KEY and SORT_KEY.
LAST = frozenset({"TOKEN", "KEY", "PASS", "PWD", "PAT", "AUTH", "JWT", "CREDS"})
PAIRS = frozenset({("API", "KEY"), ("API", "KEYS"), ("API", "TOKENS"), ("ACCESS", "KEY"), ("CONNECTION", "STRING")})
HARMLESS_BEFORE = frozenset(
    [
        *("SORT", "CACHE", "PRIMARY", "FOREIGN", "PARTITION", "HASH", "GROUP", "PUBLIC", "GPG", "INDEX", "DICT"),
        *("BATCH", "TEXT", "LABEL", "IMAGE", "AUDIO", "VIDEO", "INPUT", "OUTPUT", "METRIC", "TARGET", "COLUMN"),
        *("LOOKUP", "EOS", "BOS", "PAD", "UNK", "SEP", "CLS", "MASK", "STOP", "START", "END", "SPECIAL", "MAX", "MIN"),
        *("NUM", "PER", "BY", "NEXT", "FIRST", "SECOND", "FORWARD", "BACKWARD", "ONE", "SINGLE", "MULTI", "USE", "NO"),
        "OLD",
    ]
)
# The last word says that the variable holds only the location of a secret: HF_TOKEN_PATH, VAULT_SECRETS_DIR.
PLACES = frozenset({"FILE", "PATH", "DIR", "FOLDER", "NAME", "ARN", "SOCK", "LENGTH", "LEN", "TTL"})
# PWD is the working folder. SLURM_JWT authenticates Slurm's commands to slurmctld, which refuses sbatch without it.
NO_SECRETS = frozenset({"PWD", "OLDPWD", "SLURM_JWT"})
# Prefixes of Hugging Face, GitHub, GitLab, OpenAI, Slack and AWS keys. wandb's keys look like git commits.
SECRET_VALUES = (
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[opsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|sk-[A-Za-z0-9_-]{20,}"
    r"|xox[abp]-[\w-]{20,}|AKIA[A-Z0-9]{16})\b"
)
_SECRET_VALUE = re.compile(SECRET_VALUES)
_URL_WITH_PASSWORD = re.compile(r"[\w+.-]+://[^\s/:@]*:[^\s/@]+@")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def is_secret_name(name: str) -> bool:
    """Return whether the words of a variable's name (separated by `_` or by case) mark a secret."""
    words = [word.upper() for word in _WORD.findall(name)]
    if name in NO_SECRETS or not words or words[-1] in PLACES:
        return False
    if any(ALWAYS.fullmatch(word) for word in words) or PAIRS & set(pairwise(words)):
        return True
    return words[-1] in LAST and not (len(words) > 1 and words[-2] in HARMLESS_BEFORE)


def is_secret_value(name: str, value: str) -> bool:
    """Return whether a value is a known kind of key or a URL with a password; proxy URLs are allowed."""
    if _SECRET_VALUE.search(value):
        return True
    return _URL_WITH_PASSWORD.search(value) is not None and not name.upper().endswith("PROXY")


def secrets_in(environment: Mapping[str, str], *, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of variables that hold secrets, except those that the user wants to pass on."""
    found = (name for name, value in environment.items() if is_secret_name(name) or is_secret_value(name, value))
    return tuple(sorted(name for name in found if name not in wanted))
