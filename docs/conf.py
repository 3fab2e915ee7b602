"""The site of sdediff: Markdown pages, mathematics as MathML (no script, no font, nothing fetched), and the API read off docstrings.

    pip install -e '.[docs]' -c .ci/constraints.txt && sphinx-build -W -b html docs build/docs

Docstrings are plain text: paragraphs, formulas indented, names in double backquotes. Here they become reStructuredText, and what they say
of the theory page, "theory, eq. (4)", a link to that equation.
"""
import math
import pkgutil
import re
import textwrap
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

import sdediff
from sdediff import catalogue
from sdediff.recipes import describe, methods

project, author, copyright = "sdediff", "The sdediff authors", "The sdediff authors, MIT licence"
version = release = sdediff.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme, html_title = "furo", "sdediff"
html_static_path, html_css_files = ["_static"], ["page.css"]
html_show_sourcelink = html_copy_source = False
highlight_language = "none"
myst_enable_extensions = ["dollarmath", "substitution"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
suppress_warnings = ["ref.python"]              # a short name in an annotation, such as Case, may be in two modules
maximum_signature_line_length = 100

NUMBER = re.compile(r"\\tag\{(\d+)\}")
CITED = re.compile(r"[Tt]heory,\s+eqs?\.\s+(\(\d+\)(?:(?:, | and | or )\(\d+\))*)")


# -- what the pages take from the code ------------------------------------------------------------------------------------------
def table(head, rows):
    """A Markdown table."""
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def of(declared, seen):
    return "" if declared is None else f"{declared}\u00a0({seen:.2f})" if seen is not None else str(declared)


def front(name):
    """What the front door's name is, and where it is described."""
    found = getattr(sdediff, name)
    home = getattr(found, "__module__", found.__name__)
    target = found.__name__ if home == found.__name__ else f"{home}.{found.__qualname__}"
    text = " ".join((found.__doc__ or "").replace("``", "`").split("\n\n")[0].split())
    return f"{{py:obj}}`{name} <{target}>`", re.split(r"(?<!eq)(?<!al)\.\s", text)[0].rstrip(".").replace("|", "\\|")


entries = catalogue.catalogue()
families = dict.fromkeys(e.family for e in entries)
myst_substitutions = {
    "catalogue": "\n\n".join(
        f"**{{py:mod}}`sdediff.solvers.{family}`**\n\n" + table(
            ["method", "what it is", "", "order", "weak", "strong", "calls", "memory"],
            [[f"`{e.name}`", f"{e.summary} ({e.reference})", "SDE" if e.stochastic else "ODE", of(e.order, e.measured),
              of(e.weak, e.measured_weak), of(e.strong, e.measured_strong), "adaptive" if math.isnan(e.calls) else f"{e.calls:g}",
              str(e.memory)] for e in entries if e.family == family]) for family in families),
    "observing": table(["method", "what it is"], [[f"`{name}`", describe(name)] for name in methods(observing=True)]),
    "front": table(["name", "what it is"], [front(name) for name in sdediff.__all__]),
}


# -- mathematics ------------------------------------------------------------------------------------------------------------------
def mathml(text, display):
    """MathML of a formula; named operators stand upright, with a thin space to what they act on."""
    made = convert(re.sub(r"\\(operatorname|mathrm)\{", r"\\text{", text), display=display)
    return re.sub(r"(<mi>(?:log|exp|cos|sin)</mi>|<mtext>div</mtext>)(?=<m[is])", r'\1<mspace width="0.17em"/>', made)


def inline(self, node):
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(self, node):
    """A formula, with its number as the anchor that citations point to."""
    text, number = node.astext(), NUMBER.search(node.astext())
    anchor = f' id="eq-{number[1]}"' if number else ""
    self.body.append(f'<div class="formula"{anchor}><div>{mathml(NUMBER.sub("", text).strip(), "block")}</div>'
                     + (f'<a href="#eq-{number[1]}">({number[1]})</a>' if number else "") + "</div>\n")
    raise nodes.SkipNode


# -- docstrings -------------------------------------------------------------------------------------------------------------------
def plain(text):
    """A docstring's prose: names in double backquotes and emphasised openings stay, citations of the theory are links."""
    kept = re.compile(r"``.+?``|^\*[A-Z][^*]*\*|" + CITED.pattern, re.DOTALL)
    escape = lambda words: re.sub(r"([\\*_|`])", r"\\\1", words)
    found, end = [], 0
    for match in kept.finditer(text):
        link = re.sub(r"\((\d+)\)", r"`(\1) <../theory.html#eq-\1>`__", match[0]) if match[1] else match[0]
        found += [escape(text[end:match.start()]), link]
        end = match.end()
    return "".join(found) + escape(text[end:])


def restructured(app, what, name, obj, options, lines):
    """Paragraphs, literal blocks for what is indented by four, lists for ``* `` and for parameters."""
    written, parts = [], re.split(r"\n\s*\n", "\n".join(lines))
    for part in parts:
        part = part.strip("\n").split("\n")
        listed = len(part) > 1 and set(part[1]) == {"-"}
        if listed:
            written += [f"**{part[0]}**", ""]
            part = part[2:]
        runs = []                                           # [kind, lines]: prose, item or formula
        for line in part:
            deep = line.startswith("    ")
            if (listed and not deep) or line.startswith("* "):
                runs.append(["item", [line.removeprefix("* ")]])
            elif deep and not (listed and runs):
                runs += [] if runs and runs[-1][0] == "formula" else [["formula", []]]
                runs[-1][1].append(line)
            else:
                runs += [] if runs and runs[-1][0] != "formula" else [["prose", []]]
                runs[-1][1].append(line.strip())
        for kind, text in runs:
            if kind == "formula":
                shown = re.sub(r" {4,}(?=theory, eq|\(\d+\)$)", "    ", "\n".join(text), flags=re.MULTILINE)
                written += ["::", "", *textwrap.indent(textwrap.dedent(shown), "    ").split("\n"), ""]
            else:
                prose = plain("\n".join(text)).split("\n")
                written += [*([f"- {prose[0]}", *(f"  {line}" for line in prose[1:])] if kind == "item" else prose), ""]
    lines[:] = written


def skipped(app, what, name, obj, skip, options):
    """Fields of named tuples say nothing of their own."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    app.add_node(nodes.math, override=True, html=(inline, None))
    app.add_node(nodes.math_block, override=True, html=(block, None))
    app.connect("autodoc-process-docstring", restructured)
    app.connect("autodoc-skip-member", skipped)


# -- a page for every module --------------------------------------------------------------------------------------------------------
API = Path(__file__).parent / "api"
API.mkdir(exist_ok=True)
pages = {API / f"{m.name}.rst": f"{m.name}\n{'=' * len(m.name)}\n\n.. automodule:: {m.name}\n"
         for m in pkgutil.walk_packages(sdediff.__path__, "sdediff.") if not m.name.endswith("__main__")}
for old in set(API.glob("*.rst")) - set(pages):
    old.unlink()
for page, text in pages.items():
    if not page.exists() or page.read_text() != text:
        page.write_text(text)
