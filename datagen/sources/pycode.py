"""Text-to-code pairs out of the Python standard library: docstring summary to function source.

The query is the first paragraph of a function's or method's docstring, the document its source with
the docstring cut out. The code is parsed, never run. One unit is a group of modules.
"""

import ast
import dataclasses
import hashlib
import io
import os
import platform
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datagen.schema import UserError, rejected_row
from datagen.sources import SourceRows, make_pair

Function = ast.FunctionDef | ast.AsyncFunctionDef

MODULES_PER_UNIT = 60
SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PycodeSource:
    """Functions of the standard library of the Python that runs this."""

    name: str = "python-stdlib"
    licence: str = "PSF-2.0"
    instruction: str = "Given a description, retrieve the code that does it."
    min_words: int = 3  # of the docstring's first paragraph
    max_characters: int = 4000  # of the function without its docstring

    def config(self) -> dict[str, Any]:
        content = {"python": platform.python_version(), "modules_sha256": _content_digest()}
        return {"kind": "pycode", **dataclasses.asdict(self), **content}

    def plan(self) -> list[dict[str, Any]]:
        modules = _modules()
        config = self.config()
        return [
            {**config, "source": self.name, "modules": modules[i : i + MODULES_PER_UNIT]}
            for i in range(0, len(modules), MODULES_PER_UNIT)
        ]


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules() -> list[str]:
    found = []
    for folder, folders, names in os.walk(_root()):
        folders[:] = [name for name in folders if name not in SKIPPED]
        paths = [Path(folder, name) for name in names if name.endswith(".py")]
        found += [path.relative_to(_root()).as_posix() for path in paths]
    return sorted(found)


def _content_digest() -> str:
    sizes = [f"{name} {(_root() / name).stat().st_size}" for name in _modules()]
    return hashlib.sha256("\n".join(sizes).encode()).hexdigest()


def read(unit: dict[str, Any]) -> SourceRows:
    """The pairs of some modules."""
    if platform.python_version() != unit["python"]:
        raise UserError(
            found=f"Python {platform.python_version()} on this worker",
            expected=f"Python {unit['python']}, as where the build was started",
            do="install the same version everywhere",
        )
    rows = SourceRows()
    for module in unit["modules"]:
        _read_module(unit, module, rows=rows)
    return rows


def _read_module(unit: dict[str, Any], module: str, *, rows: SourceRows) -> None:
    data = (_root() / module).read_bytes()
    try:
        tree = ast.parse(data)
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        lines = data.decode(encoding).replace("\r\n", "\n").split("\n")
    except (SyntaxError, ValueError) as error:
        rows.rows_in += 1
        record = {"source": unit["source"], "provenance": {"row": module}}
        rows.quarantined.append(rejected_row(record, reason="broken_code", error=str(error)))
        return
    for function in _functions(tree):
        rows.rows_in += 1
        summary, code, reason = _split(function, lines, unit)
        if reason:
            rows.dropped[reason] += 1
            continue
        rows.pairs.append(
            make_pair(
                unit["source"],
                "retrieval",
                query=summary,
                text=code,
                row=f"{module}:{function.lineno}",
                query_tag="eng_Latn",
                document_tag="python_Zyyy",
                instruction=unit["instruction"],
                licence=unit["licence"],
            )
        )


def _functions(tree: ast.AST) -> Iterator[Function]:
    found = [node for node in ast.walk(tree) if isinstance(node, Function)]
    return iter(sorted(found, key=lambda node: (node.lineno, node.col_offset)))


def _split(function: Function, lines: list[str], unit: dict[str, Any]) -> tuple[str, str, str]:
    """(summary, code, reason not to take it); the reason is empty for a good one."""
    docstring = ast.get_docstring(function)
    if not docstring:
        return "", "", "no_docstring"
    summary = " ".join(docstring.split("\n\n")[0].split())
    if len(summary.split()) < unit["min_words"]:
        return "", "", "docstring_too_short"
    if len(function.body) == 1:
        return "", "", "no_body"
    code = _without_docstring(function, lines)
    if code is None or summary in " ".join(code.split()):
        return "", "", "docstring_in_code"
    if len(code) > unit["max_characters"]:
        return "", "", "too_long"
    return summary, code, ""


def _without_docstring(function: Function, lines: list[str]) -> str | None:
    """The source with decorators; None when the docstring shares a line with code."""
    expression = function.body[0]
    assert expression.end_lineno and expression.end_col_offset and function.end_lineno
    # Column offsets count bytes of UTF-8, whatever the encoding of the file is.
    before = lines[expression.lineno - 1].encode()[: expression.col_offset]
    after = lines[expression.end_lineno - 1].encode()[expression.end_col_offset :]
    if before.strip() or after.strip():
        return None
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    head = lines[first - 1 : expression.lineno - 1]
    body = "\n".join(lines[expression.end_lineno : function.end_lineno]).strip("\n")
    return textwrap.dedent("\n".join([*head, body])).rstrip()
