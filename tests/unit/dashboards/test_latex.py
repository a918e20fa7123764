"""LaTeX tables: their structure, rounding, and what is bold."""

import math
import re

import pytest

from dashboards.latex import Value, compact, escape

NAN = math.nan


def body_of(table: str) -> list[list[str]]:
    rows = table.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    return [row.removesuffix(r" \\").split(" & ") for row in rows.splitlines()]


def unclosed(table: str) -> list[str]:
    """The environments and braces that a table opens and does not close, in order."""
    open_ones: list[str] = []
    for token in re.findall(r"\\(?:begin|end)\{\w+\*?\}|\\.|[{}]", table):
        if token.startswith((r"\begin", "{")):
            open_ones.append(token.replace("begin", "end").replace("{", "}") if token == "{" else token)
        elif token == "}" or token.startswith(r"\end"):
            assert open_ones.pop() == (token if token == "}" else token.replace("end", "begin"))
    return open_ones


def made(values: list[Value | None], names: tuple[str, ...] = ()) -> str:
    texts = [[name] for name in (names or map(str, range(len(values))))]
    return compact(["case"], texts, {"FID": values}, "50 % of {all} ± one", "my sweep/α_1")


def test_a_table_is_complete_and_names_what_it_needs():
    table = made([Value(0.5, 0.1), Value(0.7)], names=("a_b", r"100 % {x} \y"))
    assert unclosed(table) == []
    lines = table.splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs}"
    assert r"\caption{50 \% of \{all\} $\pm$ one}" in lines
    assert r"\label{tab:my-sweep---1}" in lines
    assert r"\begin{tabular}{lr}" in lines
    assert [row[0] for row in body_of(table)] == [r"a\_b", r"100 \% \{x\} \textbackslash{}y"]
    assert {len(row) for row in body_of(table)} == {2}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Value(0.5074, 0.0816), r"0.507 $\pm$ 0.082"),
        (Value(12.345, 0.99), r"12.35 $\pm$ 0.99"),
        (Value(907.4, 37.2), r"907 $\pm$ 37"),
        (Value(907.4, 1234.0), r"907 $\pm$ 1234"),
        (Value(1.25), "1.250"),
        (Value(12345.6, NAN), "12346"),
        (Value(0.0, 0.0), "0"),
        (None, "--"),
    ],
)
def test_values_are_rounded_to_the_place_of_their_interval(value, shown):
    assert body_of(made([value])) == [["0", shown]]


def test_the_lowest_value_of_a_column_is_bold():
    cells = [cell for _, cell in body_of(made([Value(0.7, 0.1), Value(0.5, 0.1), None, Value(0.9)]))]
    assert cells == [r"0.70 $\pm$ 0.10", r"\textbf{0.50 $\pm$ 0.10}", "--", "0.9000"]


def test_text_is_escaped():
    assert (
        escape("a_b & 5 %\n$x$ ~^ <i>")
        == r"a\_b \& 5 \% \$x\$ \textasciitilde{}\textasciicircum{} \textless{}i\textgreater{}"
    )
