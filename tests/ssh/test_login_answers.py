"""What a login node answers that is not what was asked for, through a real sshd; no Slurm is needed for a refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sshd_settings import login_node

from launcher.commands.login_answer import page, submitted
from launcher.commands.parcel import read_parcel
from launcher.errors import InputError, LauncherError
from launcher.run.folder import RunFolder

JOB = {"job_id": "7", "run_folder": "/r", "argv": ["sbatch"], "num_runs": 1, "dry_run": False}
ERROR = {"error": {"kind": "input", "problems": ["no"], "exit_code": 2}}
NOISE = "*** Welcome to cluster ***\n{'quota': 1}\n[1]\n"
Login = tuple[list[str], Path]


@pytest.mark.parametrize("before", ["", NOISE])
@pytest.mark.parametrize("after", ["", "Bye\n", "\x1b[0m\n\xff"])
def test_the_document_and_the_page_are_found_among_what_a_shell_prints(before: str, after: str) -> None:
    for document, code in ((JOB, 0), (ERROR, 2)):
        said = f"{before}{json.dumps(document)}\n{after}".encode("latin-1")
        assert submitted(said, python="p", login="l", code=code) == document
    html = "<!doctype html><html><body>é</body></html>"
    assert page(f"{before}{html}\n{after}".encode(), login="l") == f"{html}\n"


@pytest.mark.parametrize(
    "said", [b"", b"null", b"7", b'{"job_id": 7, "run_folder": "/r"}', b'{"job_id": "7"}', b"{" * 9999, b"\x00\xff"]
)
def test_an_answer_without_a_job_is_one_message(said: bytes) -> None:
    with pytest.raises(LauncherError, match=r"named no job.*squeue"):
        submitted(said, python="p", login="l", code=0)
    with pytest.raises(LauncherError, match=r"p on l did not answer as the launcher \(exit code 1"):
        submitted(said, python="p", login="l", code=1)
    with pytest.raises(LauncherError, match="sent no page"):
        page(said, login="l")


@pytest.mark.parametrize("line", [b"", b"hello\n", b"[]\n", b"[" * 99999, b"\xff\n"])
def test_what_is_no_parcel_is_refused(line: bytes) -> None:
    with pytest.raises(InputError, match="nobody sent a job"):
        read_parcel(line)


@pytest.fixture(scope="module")
def login() -> Iterator[Login]:
    """Its words, and its folder with the script."""
    with login_node("true") as (words, folder):
        yield [*words], folder


@pytest.fixture
def launcher(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    (tmp_path / "train.py").write_text("")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "launcher.cli", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)

    return run


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        (
            "echo 'This account is currently not available.'; exit 1",
            "did not answer as the launcher (exit code 1, but printed 'This",
        ),
        ("cat > /dev/null; echo 'Your password has expired.'", "named no job, but printed 'Your password"),
        ("cat > /dev/null; head -c 99 /dev/zero", "named no job, but printed '\\x00"),
        ("echo moved; exit 255", "or lost it before it answered"),
    ],
    ids=["no shell", "a notice alone", "bytes", "lost"],
)
def test_an_answer_of_another_program_is_one_message_and_leaves_nothing(
    login: Login, launcher: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, shell: str, said: str
) -> None:
    words, folder = login
    (folder / "shell").write_text(shell)
    job = ["submit", "script=train.py", "launch.code=[train.py]", "cluster=testcluster", "run_dir=run", "output=json"]
    done = launcher(*job, *words)
    assert said in done.stderr and "Traceback" not in done.stderr and done.returncode == 1, done
    assert json.loads(done.stdout)["error"]["exit_code"] == 1
    assert not (tmp_path / "run").exists()


def test_a_refusal_and_a_page_come_through_a_shell_that_talks(
    login: Login, launcher: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words, folder = login
    (folder / "shell").write_text('echo "Welcome"; eval "$SSH_ORIGINAL_COMMAND"; code=$?; echo Bye; exit $code')
    job = ["submit", "script=train.py", "launch.code=[train.py]", "cluster=testcluster", "run_dir=run", "output=json"]
    done = launcher(*job, *words, "cluster.num_nodes=0")
    assert done.returncode == 2, done
    run = RunFolder(tmp_path / "elsewhere")
    run.path.mkdir()
    login_json = {"login": words[0].partition("=")[2], "ssh": words[1].partition("=")[2], "python": sys.executable}
    run.login.write_text(json.dumps({**login_json, "folder": str(tmp_path / "nothing")}))
    assert launcher("report", "elsewhere").returncode == 2
    (folder / "shell").write_text("echo Welcome; echo '<!doctype html><html>there</html>'; echo Bye")
    assert launcher("report", "elsewhere").stdout == "elsewhere/report.html\n"
    assert run.report.read_text() == "<!doctype html><html>there</html>\n"
    (folder / "shell").write_text("echo Welcome")
    done = launcher("report", "elsewhere")
    assert done.returncode == 1 and "sent no page, but printed 'Welcome'" in done.stderr, done
    done = launcher("report", "elsewhere", "file=/proc/no/page.html")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done
