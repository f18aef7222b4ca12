"""Which variables count as secrets, and which only sound like it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.secret import is_secret_name, is_secret_value, secrets_in

SECRETS = re.findall(
    r"\w+",
    """
    WANDB_API_KEY HF_TOKEN AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID SSH_PRIVATE_KEY OPENAI_KEY DB_PASS MYSQL_PWD
    GITHUB_PAT PGPASSWORD DB_PASSWORD SSHPASS CREDENTIALS LAUNCHER_SECRET dbPassword HFToken hf_token API_KEY_1
    HF_TOKEN_2 TOKEN AZURE_STORAGE_CONNECTION_STRING
    """,
)
HARMLESS = re.findall(
    r"\w+",
    """
    TOKENIZER_PATH NUM_TOKENS SORT_KEY TOKENIZERS_PARALLELISM EOS_TOKEN PAD_TOKEN_ID TOKEN_BUDGET PWD OLDPWD
    SSH_AUTH_SOCK XAUTHORITY MONKEY KEYBOARD COMPASS BYPASS_CACHE FORWARD_PASS HF_TOKEN_PATH GPG_KEY SLURM_JWT
    PATH AWS_SHARED_CREDENTIALS_FILE NCCL_IB_PKEY PATCH_SIZE
    """,
)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_known_by_the_words_of_its_name(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", HARMLESS)
def test_a_name_that_only_contains_such_a_word_is_no_secret(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HUB", "hf_" + "a" * 30, True),
        ("DATABASE_URL", "postgres://me:pw@db/x", True),
        ("HTTPS_PROXY", "http://me:pw@proxy:3128", False),
        ("http_proxy", "http://me:pw@proxy:3128", False),
        ("HOME", "/home/me", False),
        ("URL", "https://example.org:8080/a@b", False),
    ],
)
def test_a_secret_is_known_by_its_value_too(name: str, value: str, secret: bool) -> None:
    assert is_secret_value(name, value) is secret


def test_only_secrets_that_nobody_asked_for_stay_behind() -> None:
    environment = {"PATH": "", "WANDB_API_KEY": "", "HF_TOKEN": "", "TOKENIZERS_PARALLELISM": ""}
    assert secrets_in(environment, wanted=["HF_TOKEN"]) == ("WANDB_API_KEY",)


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_name_and_value_get_an_answer(name: str, value: str) -> None:
    assert is_secret_name(name) in (True, False)
    assert is_secret_value(name, value) in (True, False)
