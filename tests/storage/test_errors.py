"""The error tree: one line each, stable codes, and alive after a trip to another process."""

from __future__ import annotations

import pickle

import pytest

from i2am.storage import errors
from i2am.storage.errors import DamagedRun, DamagedSample, DamageError, I2AMError, InputError, UnknownName


def subclasses(cls):
    return [c for direct in cls.__subclasses__() for c in (direct, *subclasses(direct))]


def make(cls):
    if cls is UnknownName:
        return cls("layer", "atn1", ["attn1", "attn2"])
    if cls is DamagedSample:
        return cls("a", "attn1", "c.0: the file is missing")
    return cls("shape", expected="(2, 3)", got="(3, 2)", remedy="transpose it")


@pytest.mark.parametrize("cls", subclasses(I2AMError), ids=lambda c: c.__name__)
def test_every_error_is_one_line_and_survives_pickling(cls):
    error = make(cls)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert "\n" not in str(error)
    assert copy.__dict__ == error.__dict__
    assert cls.exit_status == (1 if issubclass(cls, DamageError) else 2)


def test_codes_are_distinct_and_every_class_stands_in_the_documented_tree():
    classes = [I2AMError, *subclasses(I2AMError)]
    assert len({cls.code for cls in classes}) == len(classes)
    assert all(cls.__name__ in errors.__doc__ for cls in classes)


def test_messages_name_what_expected_got_and_remedy():
    line = "mask; expected 8 x 8; got 4 x 4; resize it"
    assert str(InputError("mask", expected="8 x 8", got="4 x 4", remedy="resize it")) == line
    assert str(DamagedRun("two\nlines   of text")) == "two lines of text"


def test_unknown_name_suggests_the_nearest_and_is_not_quoted():
    assert str(UnknownName("layer", "atn1", ["attn1", "up"])).endswith("did you mean 'attn1'?")
    many = [f"layer{i}" for i in range(20)]
    assert "(20 in all)" in str(UnknownName("layer", "zzz", many))
    assert "there is none" in str(UnknownName("image", "mask", []))


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("NotFound", FileNotFoundError),
        ("UnknownName", KeyError),
        ("AlreadyExists", FileExistsError),
        ("StorageFull", OSError),
        ("NoPermission", PermissionError),
        ("MissingDependency", ImportError),
        ("ShapeMismatch", ValueError),
    ],
)
def test_errors_are_compatible_with_built_in_ones(name, builtin):
    assert issubclass(getattr(errors, name), builtin)


def test_damaged_sample_names_sample_and_layer():
    error = make(DamagedSample)
    assert (error.sample, error.layer) == ("a", "attn1")
    assert str(error).startswith("sample 'a', layer 'attn1' is damaged: c.0: the file is missing")
