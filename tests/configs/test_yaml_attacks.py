"""What a hostile or broken YAML file may not do: run, recurse, grow, or end without a word."""

import pytest

from configs.errors import RecipeError
from configs.yaml_source import read_yaml

LAUGHS = [
    "a0: &a0 [x, x]",
    *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
]
MERGES = ["a0: &a0 {k: 1}"]
MERGES += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], k{n}: 1}}" for n in range(1, 12)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.system ['touch canary']", "no tags"),
        ("a: !!python/name:os.system", "no tags"),
        ("a: " + "[" * 200_000, "nested more than 50 levels"),
        ("a: " + "{a: " * 5000 + "1" + "}" * 5000, "nested more than 50 levels"),
        ("- " * 3000, "nested more than 50 levels"),
        ("\n".join(LAUGHS), "grow beyond"),
        ("\n".join(MERGES), "merges .* that grow beyond"),
        ("a: &a [*a]", "grow beyond"),
        ("a: &a {<<: *a}", "leads back to itself"),
        ("a: " + "1" * 5000, "cannot read"),
        ("a: 0x" + "f" * 5000, "20000 bits"),
        ("a: 2001-99-99", "cannot read"),
        ("a: !!bool x", "cannot read"),
        ("a: !!timestamp x", "cannot read"),
        ('a: "\\U00110000"', "not YAML"),
        ('a: "x\\0y"', "the character"),
        ('"a\\ud800": 1', "the character"),
        ("a: \x00", "1: not YAML"),
        ("a:\n\tb: 1", "2: .*a tab"),
        ("a: 1\nb: 2\na: 3", "3: a: given twice, first on line 1"),
        ("? [a]\n: 1", "unhashable"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("x" * (9 << 20), "more than 8 MiB"),
    ],
    ids=lambda given: given[:30].replace("\0", " "),
)
def test_it_is_refused_by_name(text: str, said: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (path := tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        read_yaml(path)
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    "word", ["a=" + "[" * 3000, "a=\0", "a=\udc80", "a=!!bool x", "a=0x" + "f" * 99]
)
def test_so_is_an_override(word: str, tmp_path) -> None:
    (path := tmp_path / "recipe.yaml").write_text("a: 1")
    with pytest.raises(RecipeError, match="command line"):
        read_yaml(path, [word])


def test_a_byte_order_mark_is_none_of_the_text(tmp_path) -> None:
    (path := tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path).values == {"a": 1}
