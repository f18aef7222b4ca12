"""The shell reader splits as a shell does, as far as the rules need it."""

from __future__ import annotations

import shlex
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.lint import lint
from launcher.lint.shell import commands, live_variables, unquote


def words(text: str) -> list[tuple[str, ...]]:
    return [command.words for command in commands(text)]


def test_commands_are_split_at_operators_and_lines_are_joined() -> None:
    assert words("a b && c \\\n d | e; f &\ng # h\n") == [("a", "b"), ("c", "d"), ("e",), ("f",), ("g",)]
    assert [command.operator for command in commands("a & b | c\n")] == ["&", "|", "\n"]


def test_quotes_substitutions_arrays_and_redirections_stay_in_one_word() -> None:
    assert words("x \"a; b\" 'c | d' $(e | f) `g; h`") == [("x", '"a; b"', "'c | d'", "$(e | f)", "`g; h`")]
    assert words('x "$(y "z w")" 2>&1') == [("x", '"$(y "z w")"', "2>&1")]
    assert words("A=( b\n c ) d") == [("A=( b\n c )", "d")]
    assert words("x &> log") == [("x", "&>", "log")]


def test_here_documents_are_no_commands() -> None:
    text = "cat <<EOF > f\nsrun torchrun; rm -rf /\nEOF\necho done\n"
    assert [(command.words[0], command.line) for command in commands(text)] == [("cat", 1), ("echo", 4)]


def test_only_variables_that_this_shell_expands_are_live() -> None:
    assert live_variables("$A'$B'\"$C '$D'\"\\$E${F}") == ["A", "C", "D", "F"]


@given(st.lists(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1), min_size=1, max_size=5))
def test_quoted_words_survive_the_round_trip(plain: list[str]) -> None:
    [command] = commands(shlex.join(plain))
    assert [unquote(word) for word in command.words] == plain


@given(st.text(st.sampled_from("#!SBATCH -=\n\"'`$(){}\\;&|<> srun torchrun A=1"), max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    lines = text.count("\n") + 1
    assert all(1 <= finding.line <= lines for finding in lint(text))


@pytest.mark.parametrize("opening", ["$(", "(", '"$(', "A=(", "`", "${", "$((", "\\", "<<A ", "$A"])
def test_deep_nesting_is_read_in_bounded_time_and_depth(opening: str) -> None:
    began = time.process_time()
    lint(f"#!/bin/bash\nsrun {opening * 5001}\n")
    assert time.process_time() - began < 2


def test_a_variable_that_doubles_does_not_grow_without_bound() -> None:
    lines = ["#!/bin/bash", "A=xxxxxxxxxxxxxxxx", *(f"A{i + 1}=$A{i}$A{i}$A{i}$A{i}$A{i}$A{i}" for i in range(200))]
    began = time.process_time()
    lint("\n".join([*lines, "srun $A200 $A200 $A200", *["srun $A100"] * 100]))
    assert time.process_time() - began < 5
