"""What the site makes of docstrings and commands, without building it."""

import importlib.util

import pytest
from typer.main import get_command

import smh.cli
from tests.docs.docs_pages import DOCS


def load(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "_extensions" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


roles, commands = load("roles"), load("commands")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Takes a :class:`~smh.Plan`.", "Takes a [`Plan`][whole.smh.Plan]."),
        ("as for :meth:`smh.Plan.build`,", "as for [`smh.Plan.build()`][whole.smh.Plan.build],"),
        ("see :func:`match`", "see [`match()`][whole.match]"),
        ("see :mod:`smh.fit`", "see [`smh.fit`][whole.smh.fit]"),
        (":meth:`keras.Model.export`", "`keras.Model.export()`"),
        ("``:class:`` is left alone, `x` too", "``:class:`` is left alone, `x` too"),
    ],
)
def test_roles_become_links(text, expected):
    assert roles.convert(text, lambda name: None if name.startswith("keras.") else f"whole.{name}") == expected


def test_simple_tables_become_pipe_tables():
    text = """Pools.

=====  ========================
pool   virtual weights
=====  ========================
hash   a sum, which is longer than the rule
both
=====  ========================

More."""
    assert roles.convert(text, str).split("\n") == [
        "Pools.",
        "",
        "| pool | virtual weights |",
        "|---|---|",
        "| hash | a sum, which is longer than the rule |",
        "| both |  |",
        "",
        "More.",
    ]


def test_roles_that_nobody_converted_are_seen():
    for html in ("<p>see :term:<code>pool</code></p>", "<p>{ref}<code>section 3</code></p>"):
        assert roles.leftover(html) in html
    assert roles.leftover("<p>see: <code>pool</code>, {<code>x</code>}</p>") is None


def test_the_reference_has_every_command_with_everything_that_it_takes():
    text = commands.reference()
    group = get_command(smh.cli.app)
    sections = dict(zip(group.commands, text.split("\n## ")[0:], strict=True))
    for name, command in group.commands.items():
        section = sections[name]
        assert section.removeprefix("## ").startswith(f"smh {name}\n")
        for parameter in command.params:
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
            assert f"{shown}" in section, (name, shown)
            assert parameter.help, (name, shown)
        for line in section.split("\n"):
            assert line.replace("\\|", "").count("|") in (0, 3), line
    assert "\\[default: 0\\]" in sections["plan"]


def test_the_page_of_commands_asks_for_the_reference():
    assert commands.MARK in (DOCS / "cli_reference.md").read_text(encoding="utf-8")
