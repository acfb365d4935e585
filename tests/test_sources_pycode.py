"""Docstring to code, from the standard library of the Python that runs."""

import ast
import json

import pytest

from datagen.schema import UserError
from datagen.sources import pycode
from datagen.sources.pycode import PycodeSource

UNIT = {"min_words": 3, "max_characters": 4000}


def _split(code: str) -> tuple[str, str, str]:
    function = next(pycode._functions(ast.parse(code)))
    return pycode._split(function, code.split("\n"), UNIT)


def test_the_docstring_becomes_the_query_and_leaves_the_code() -> None:
    code = (
        "class A:\n"
        "    @property\n"
        "    def area(self):\n"
        '        """Return the area\n'
        "        of the shape.\n"
        "\n"
        "        In metres.\n"
        '        """\n'
        "\n"
        "        return self.a * self.b\n"
    )
    assert _split(code) == (
        "Return the area of the shape.",
        "@property\ndef area(self):\n    return self.a * self.b",
        "",
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f():\n    return 1\n", "no_docstring"),
        ('def f():\n    "Too short."\n    return 1\n', "docstring_too_short"),
        ('def f():\n    "Only a docstring here."\n', "no_body"),
        ('def f(): "On one line with code."; return 1\n', "docstring_in_code"),
        (
            'def f():\n    "Say it once more."\n    return "Say it once more."\n',
            "docstring_in_code",
        ),
        ('def f():\n    "A very long one."\n' + "    x = 1\n" * 1000, "too_long"),
    ],
)
def test_what_is_not_taken_has_a_reason(code: str, reason: str) -> None:
    assert _split(code)[2] == reason


def test_columns_are_counted_in_bytes() -> None:
    code = 'def f(x="ü"):\n    "Größe der Fläche."  \n    return "ä"\n'
    assert _split(code)[:2] == ("Größe der Fläche.", 'def f(x="ü"):\n    return "ä"')


def test_the_standard_library() -> None:
    units = PycodeSource().plan()
    rows = pycode.read(json.loads(json.dumps(units[0])))
    assert rows.rows_in == len(rows.pairs) + len(rows.quarantined) + sum(rows.dropped.values())
    assert len(rows.pairs) > 100
    for pair in rows.pairs:
        assert pair.get("title") is None
        assert (pair["document_language"], pair["document_script"]) == ("python", "Zyyy")
        assert pair["query"] not in pair["text"]
    modules = [module for unit in units for module in unit["modules"]]
    assert modules == sorted(modules)
    assert not any("site-packages" in module or "/test/" in module for module in modules)


def test_another_python_on_a_worker_is_refused() -> None:
    with pytest.raises(UserError, match="same version"):
        pycode.read({**PycodeSource().plan()[0], "python": "3.0.0"})
