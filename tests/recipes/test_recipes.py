"""Every recipe is a file, a configuration entry, and says what it is."""

from __future__ import annotations

import ast

import pytest

from launcher.config.compose import choices, load
from launcher.planner import options
from launcher.resources import resource

RECIPES = sorted(file.stem for file in resource("recipes").glob("*.py"))


def test_recipes_and_their_configurations_are_the_same_names() -> None:
    assert choices()["recipe"] == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_configuration_names_its_recipe(name: str) -> None:
    settings = load([f"recipe={name}"])
    assert settings.options.recipe.name == name
    assert options.RECIPES[name].from_config(settings.config["recipe"]) == settings.options.recipe


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_what_it_does_and_how_it_is_started(name: str) -> None:
    said = ast.get_docstring(ast.parse((resource("recipes") / f"{name}.py").read_text())) or ""

    assert "Started by `launcher run" in said
    assert "JSON document" in said
