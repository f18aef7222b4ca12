"""Configuration keys as fields: one reader, closed and typed; stored values come back as they were."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from launcher.errors import InputError
from launcher.schema import AUTO, defaults, from_plain, key, names, nearest, only_read, read, to_plain

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Wheel:
    size_m: float = key(0.5, name="size_cm", unit="cm", scale=0.01, meaning="diameter", above=0)
    spokes: int = key(32, meaning="spokes", unit="spokes", minimum=3, maximum=64)


def _signals(value: Any) -> tuple[signal.Signals, ...]:
    try:
        return tuple(signal.Signals[name] for name in value)
    except KeyError as error:
        raise ValueError("must be names of signals") from error


@dataclass(frozen=True, kw_only=True)
class Bike:
    name: str = key(meaning="name")
    wheel: Wheel = key(meaning="both wheels")
    memory_bytes: int = key(0, name="memory_gib", unit="GiB", scale=GIB, meaning="memory", minimum=0)
    kind: str = key("city", meaning="kind", choices=("city", "race"))
    gears: int | None = key(AUTO, meaning="gears", auto=True, minimum=1)
    bell: bool | None = key(AUTO, meaning="bell", auto=True)
    speeds: tuple[float, ...] = key([], meaning="speeds", minimum=0)
    prices: Mapping[str, float] = key({}, meaning="prices", names=("new", "used"), above=0)
    owner: str | None = key(None, meaning="owner")
    signals: tuple[signal.Signals, ...] = key(["SIGINT"], meaning="signals", convert=_signals)
    saddle: str = key(AUTO, meaning="saddle; auto: by kind", derived=True, choices=("soft", "hard"))
    also_read: ClassVar = {"colour": only_read(str, "red", meaning="colour")}

    @classmethod
    def from_keys(cls, given: dict[str, Any]) -> Bike:
        colour = given.pop("colour")
        if colour == "green":
            raise InputError("bike.colour=green is out of stock")
        if given["saddle"] == AUTO:
            given["saddle"] = "soft" if given["kind"] == "city" else "hard"
        return cls(**given)


def problems(data: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(Bike, data, "bike")
    return list(caught.value.problems)


def test_defaults_units_and_derived_values_are_read() -> None:
    bike = read(Bike, {"name": "a", "memory_gib": 0.5, "kind": "race", "wheel": {"size_cm": 70}}, "bike")
    assert (bike.memory_bytes, bike.saddle, bike.wheel.spokes, bike.gears) == (GIB // 2, "hard", 32, None)
    assert bike.wheel.size_m == pytest.approx(0.7)
    assert bike.signals == (signal.SIGINT,)
    assert read(Bike, {"name": "a"}, "bike").wheel == Wheel()


WRONG = {
    "text for a number": ({"wheel": {"spokes": "many"}}, "bike.wheel.spokes = 'many' must be a whole number, at least"),
    "flag for a number": ({"gears": True}, "bike.gears = True must be a whole number, at least 1, or auto"),
    "null for auto": ({"gears": None}, "bike.gears = null must be a whole number"),
    "nan": ({"wheel": {"size_cm": float("nan")}}, "bike.wheel.size_cm = nan must be a number, above 0"),
    "inf": ({"wheel": {"size_cm": float("inf")}}, "bike.wheel.size_cm = inf must be a number, above 0"),
    "minus inf": ({"memory_gib": float("-inf")}, "at least 0"),
    "too large": ({"gears": 10**12}, "at most 1,000,000,000"),
    "beyond any float": ({"memory_gib": 10**400}, "at most 1,000,000,000"),
    "no choice": ({"kind": "cty"}, "bike.kind = 'cty' is not one of city, race"),
    "no list": ({"speeds": 3}, "bike.speeds = 3 must be a list of numbers, at least 0"),
    "wrong item": ({"speeds": [1, "x"]}, "must be a list of numbers"),
    "wrong name": ({"prices": {"old": 1}}, "must give numbers for some of new, used"),
    "null price": ({"prices": {"new": None}}, "must give numbers"),
    "number for a text": ({"owner": 3}, "bike.owner = 3 must be a text, or null"),
    "value for a group": ({"wheel": 3}, "bike.wheel = 3 must be a group of keys"),
    "rule of its own": ({"signals": ["SIGX"]}, "bike.signals = ['SIGX'] must be names of signals"),
    "rule across keys": ({"colour": "green"}, "bike.colour=green is out of stock"),
    "typo": ({"gearss": 3}, "bike.gearss is not a known key: did you mean bike.gears?"),
    "typo inside": ({"wheel": {"spoke": 3}}, "did you mean bike.wheel.spokes?"),
    "unknown group": ({"bell": {"x": 3}}, "bike.bell = {'x': 3} must be true, false or auto"),
    "not set": ({"name": "???"}, "bike.name is not set: give it as bike.name=VALUE"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_wrong_value_is_refused_with_its_rule(case: str) -> None:
    data, message = WRONG[case]
    [found] = problems({"name": "a", **data})
    assert message in found


def test_every_problem_is_reported_at_once() -> None:
    assert len(problems({"gears": 0, "wheel": {"spoke": 1, "spokes": 1}, "typo": 1})) == 5  # and the name is missing


def test_the_defaults_as_a_user_would_write_them_give_the_defaults() -> None:
    written = defaults(Bike)
    assert written["wheel"] == {"size_cm": 0.5, "spokes": 32} and written["gears"] == AUTO
    assert "name" not in written
    assert read(Bike, {"name": "a", **written}) == read(Bike, {"name": "a"})


@dataclass(frozen=True, kw_only=True)
class Tandem:
    first: Bike = key(meaning="front", name="bike")
    second: Wheel = key(meaning="trailer", name="bike")


def test_two_classes_share_one_closed_group() -> None:
    tandem = read(Tandem, {"bike": {"name": "a", "spokes": 3, "size_cm": 1}})
    assert (tandem.first.name, tandem.second.spokes) == ("a", 3)
    with pytest.raises(InputError, match=r"bike\.spokess is not a known key: did you mean bike\.spokes"):
        read(Tandem, {"bike": {"name": "a", "spokess": 3}})
    assert read(Wheel, {"name": "a", "spokes": 4}, "bike", siblings=(Bike,)).spokes == 4


def _vehicle(data: Mapping[str, Any]) -> type | None:
    known = {"wheel": Wheel, "none": None}
    name = data.get("kind", "none")
    if name not in known:
        raise ValueError(f"vehicle.kind={name} is unknown")
    return known[name]


@dataclass(frozen=True, kw_only=True)
class Owned:
    kind: str = key("none", meaning="kind")


@dataclass(frozen=True, kw_only=True)
class Garage:
    any: Owned = key(meaning="what is in it", name="vehicle")
    wheel: Wheel | None = key(meaning="if it is a wheel", name="vehicle", choose=_vehicle)


def test_a_group_is_read_by_the_class_that_its_data_chooses() -> None:
    assert read(Garage, {"vehicle": {"kind": "wheel", "spokes": 5}}).wheel == Wheel(spokes=5)
    assert read(Garage, {}).wheel is None
    with pytest.raises(InputError, match=r"vehicle\.spokes is not a known key"):
        read(Garage, {"vehicle": {"spokes": 5}})
    with pytest.raises(InputError, match=r"^vehicle\.kind=car is unknown$"):
        read(Garage, {"vehicle": {"kind": "car"}})
    assert names(Garage, data={"vehicle": {"kind": "wheel"}}) == ["vehicle.kind", "vehicle.size_cm", "vehicle.spokes"]


def test_the_nearest_name_is_one_of_the_same_group_first() -> None:
    known = ["train.dtype", "train.steps", "recipe.dtype", "recipe.steps_between"]
    assert nearest("train.stepss", known) == ["train.steps"]
    assert nearest("recipe.dtpe", known) == ["recipe.dtype"]
    assert nearest("trian.dtype", known)[0] == "train.dtype"
    assert nearest("x.zzz", known) == []


def test_what_is_stored_comes_back_as_it_was() -> None:
    bike = read(Bike, {"name": "a", "prices": {"new": 3}, "speeds": [1.5]})
    plain = json.loads(json.dumps(to_plain(bike)))
    assert plain["signals"] == ["SIGINT"]
    assert from_plain(Bike, plain) == bike


def test_a_stored_value_that_is_broken_is_refused_with_every_problem() -> None:
    plain = to_plain(read(Bike, {"name": "a"}))
    broken = {**plain, "memory_bytes": 1.5, "extra": 1, "wheel": {"size_m": 1}, "speeds": ["x"], "signals": ["?"]}
    with pytest.raises(InputError) as caught:
        from_plain(Bike, broken, "plan.bike")
    assert len(caught.value.problems) == 5
    assert "plan.bike.wheel.spokes is missing" in caught.value.problems
