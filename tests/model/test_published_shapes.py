"""The model files against the parameter counts that their authors published."""

from __future__ import annotations

import pytest

from launcher.config.compose import choices, load

# name → (published parameters, tolerance). Brown et al. 2020, table 2.1, rounds to two or three digits (its 350M is
# 355M in every reproduction), and our vocabulary is padded from 50,257 to 51,200: 2 %. Narayanan et al. 2021, table 1,
# prints one decimal of a billion. The rest are exact: the released checkpoints on huggingface.co.
PUBLISHED = {
    "gpt3_125m": (125e6, 0.02),
    "gpt3_350m": (350e6, 0.02),
    "gpt3_760m": (760e6, 0.02),
    "gpt3_1b3": (1.3e9, 0.02),
    "gpt3_2b7": (2.7e9, 0.02),
    "gpt3_6b7": (6.7e9, 0.02),
    "gpt3_13b": (13e9, 0.02),
    "gpt3_175b": (175e9, 0.02),
    "megatron_22b": (22e9, 0.02),  # Korthikanti et al. 2022, table 3, prints no decimal
    "megatron_530b": (529.6e9, 0.0001),
    "megatron_1t": (1008.0e9, 0.0001),
    "llama2_7b": (6_738_415_616, 0),
    "llama2_13b": (13_015_864_320, 0),
    "llama2_70b": (68_976_648_192, 0),
    "llama3_8b": (8_030_261_248, 0),
    "llama3_70b": (70_553_706_496, 0),
    "mixtral_8x7b": (46_702_792_704, 0),
}
OURS = {"gpt", "gpt_tiny"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameters_match_the_published_count(name: str) -> None:
    published, tolerance = PUBLISHED[name]

    assert load([f"model={name}"]).job.model.params == pytest.approx(published, rel=tolerance)


def test_every_published_model_has_its_count_checked() -> None:
    assert set(choices()["model"]) - OURS == set(PUBLISHED)
