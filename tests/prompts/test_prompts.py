"""Prompt lists in all formats, and the items that the node makes of them."""

from __future__ import annotations

import json

import pytest

from ultragen_core.prompts import entries, formats
from ultragen_core.prompts.formats import AUTO, CSV, JSON, LINES, PARAGRAPHS, decode, parse
from ultragen_core.prompts.items import chosen_items, item_of


def prompts(text, format=AUTO, name="text"):
    return [entry.prompt for entry in parse(text, format, name).entries]


def only(text, format=AUTO, name="text"):
    (entry,) = parse(text, format, name).entries
    return entry.prompt, entry.negative, entry.seed, entry.image


@pytest.mark.parametrize(
    "text",
    [
        "a cat\n# not this\n\n  a dog  \n#\n## nor this\n",
        '["a cat", "a dog"]',
        '{"prompts": [{"prompt": "a cat"}, "a dog"]}',
        "\ufeffa cat\na dog",
        "a cat\r\na dog\r",
        '[\n "a cat",\n "a dog"\n]',
        '# two\n[\n "a cat",\n# the other\n "a dog", ""\n]',
        '{"prompt": "a cat"}\n\n{"prompt": "a dog"}\n',
        "prompt,seed\na cat,1\na dog,2",
        "Prompt\tNegative prompt\na cat\tblurry\n\na dog\n",
        "sep=;\nprompt;seed\na cat;1\na dog;2",
        "sep=|\rprompt|seed\ra cat|1\ra dog|2",
    ],
)
def test_two_prompts(text):
    assert prompts(text) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "text",
    [
        "#1 dad mug",
        "#sunset over the sea",
        "[cinematic] a cat",
        "{red|blue} a cat",
        "[[blurry]] a lake",
        "{{red|blue} car|a bus}",
        '{"red"|"blue"} car',
        '["neon" sign] a cat',
        '["hello"] on a wall',
        "[1] a cat",
        "a cat\u2028with a dog",
        "prompt, a lake",
        "prompt",
        'a sign that says "open", a dog',
        "[" * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_one_line_of_plain_text(text):
    assert prompts(text) == [text]


def test_paragraphs():
    text = "\n# of two lines\nA lake,\r\nmist on it\r\n \r\n\r\n# alone\n\nA hill\n# within\nin snow\n"
    assert prompts(text, PARAGRAPHS) == ["A lake,\nmist on it", "A hill\nin snow"]
    assert prompts(text, LINES) == ["A lake,", "mist on it", "A hill", "in snow"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_every_spreadsheet(separator):
    rows = ["Notes|IMAGE|Prompt| negative |seed", "x|a.png|A lake|blurry|12", "||A hill||", "||||"]
    found = parse("\n".join(rows).replace("|", separator), CSV, "list.csv")
    first, second = found.entries
    assert (first.prompt, first.negative, first.seed, first.image) == ("A lake", "blurry", 12, "a.png")
    assert (second.prompt, second.negative, second.seed, second.image) == ("A hill", None, None, None)
    own = "1 with a negative, 1 with a seed, 1 with an image"
    assert found.summary() == f"2 prompts, {own}. Ignored: 'Notes'."


def test_comments_of_a_table_are_lines_not_cells():
    text = 'prompt,seed\n# no, 1\n"# one",1\n"two\n# three",2\n  ## no "\nfour 6" wide,4'
    assert prompts(text, CSV) == ["# one", "two\n# three", 'four 6" wide']
    assert only("seed\tprompt\n\t# five", CSV)[0] == "# five"
    with pytest.raises(ValueError, match="line 3"):
        parse('prompt,seed\n# no\n"a"b,1', CSV)


def test_quotes_of_a_table():
    text = 'prompt,seed\r\n"A lake, ""blue""\r\nand cold",7\r\n# left out,\r\n#1 dad mug,8\r\n'
    found = parse(text, CSV).entries
    assert [(each.prompt, each.seed) for each in found] == [('A lake, "blue"\r\nand cold', 7), ("#1 dad mug", 8)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('prompt\nA lake, misty; cold\n"A hill, in snow"', ["A lake, misty; cold", "A hill, in snow"]),
        ('A lake\n"A hill, in snow"\n', ["A lake", "A hill, in snow"]),
        ("sep=;\nprompt;seed\nA lake, misty;5", ["A lake, misty"]),
        ('prompt, seed\n"A lake, misty", 5', ["A lake, misty"]),
        ("prompt,seed\nA lake\u2028misty,5", ["A lake\u2028misty"]),
    ],
)
def test_tables_that_are_not_quite(text, expected):
    assert prompts(text, CSV) == expected


@pytest.mark.parametrize(
    ("given", "seed"),
    [(5, 5), ("5", 5), (" 007 ", 7), ("12.0", 12), (12.0, 12), (2**64 - 1, 2**64 - 1), (str(2**64 - 1), 2**64 - 1),
     ("", None), (None, None), (" ", None)],
)  # fmt: skip
def test_seeds(given, seed):
    assert only(json.dumps([{"prompt": "a", "seed": given}])) == ("a", None, seed, None)


@pytest.mark.parametrize(
    "given", ["1e5", "1.2E+15", -1, "-1", 2**64, 1.5, 1e20, True, "abc", "1_000", "\u0661", [1], "9" * 5000]
)
def test_wrong_seeds_name_the_entry(given):
    text = json.dumps(["first", {"prompt": "a", "seed": given}])
    with pytest.raises(ValueError, match="entry 2: seed must be a whole number from 0 to 18446744073709551615"):
        parse(text)


def test_json_keeps_what_it_says_of_each():
    text = (
        '{"negative_prompt": "bad", "style": 1, "prompts": ["a", {"prompt": "b", "negative": "own", "image": "i.png"}]}'
    )
    found = parse(text)
    assert [(each.prompt, each.negative, each.image) for each in found.entries] == [
        ("a", "bad", None),
        ("b", "own", "i.png"),
    ]
    assert found.summary().endswith("Ignored: 'style'.")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# only\n", "must hold at least one prompt"),
        ("[]", "must hold at least one prompt"),
        ('["a", 2]', "entry 2: it must be a string or an object, got 2. Write a JSON list of strings"),
        ('["a", ["b"]]', r"entry 2: it must be a string or an object, got \['b'\]"),
        ('{"prompts": "a lake"}', "JSON list of strings"),
        ('{"prompts": 5}', "JSON list of strings"),
        ('{"text": "a lake"}', "entry 1: it has no prompt, only 'text'"),
        ('[{"prompt": 5}]', "entry 1: prompt must be text, got 5"),
        ('[{"prompt": "a", "positive": "b"}]', "entry 1: it must have one prompt, got two"),
        ('["a", {"negative": "b"}]', "entry 2: it has no prompt, only negative"),
        ('["a"', "is not valid JSON"),
        ('["a cat",\n "a dog",\n]', "is not valid JSON.*line 3"),
        ('{"prompt": "a"}\n{"prompt": b}', "is not valid JSON"),
        ('["a\\u0000b"]', r"entry 1, must be text, got the character '\\x00'"),
        ('["\\ud800"]', r"entry 1, must be text, got the character '\\ud800'"),
        ("a\0b", "must be text, got the character"),
    ],
)  # fmt: skip
def test_wrong_lists(text, sentence):
    with pytest.raises(ValueError, match=f"(?s)^text.*{sentence}"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("A lake, misty\n", "must begin with a row of column names"),
        ("A lake;blurry\nA hill;\n", "must begin with a row of column names"),
        ("prompt,seed\nA lake, misty,5\n", "entry 1: 3 cells under 2 column names"),
        ("prompt,Positive\na,b", "must have one column prompt"),
        ("seed,image\n1,a.png", "must have one column prompt"),
        ('prompt,seed\n"a" b,1', "cannot be read as CSV, line 2"),
        ('prompt,seed\nb,2\n"a,1\n', "cannot be read as CSV.*Close every double quote"),
        ('prompt,seed\n"' + 200_000 * "a" + '",1', "cannot be read as CSV.*limit"),
        ("prompt,image\n,a.png", "entry 1: it has no prompt, only image"),
        ("prompt,seed\n", "must hold at least one prompt"),
    ],
    ids=lambda text: text[:30],
)
def test_wrong_tables(text, sentence):
    with pytest.raises(ValueError, match=f"(?s)^list.csv.*{sentence}"):
        parse(text, AUTO, "list.csv")


def test_files_in_other_encodings():
    text = "ein Kätzchen\nein Hund"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert decode(text.encode(encoding), "list.txt") == text
    for content in (text.encode("cp1252"), "落日下的湖面，远处是群山".encode("gbk"), text.encode("utf-16")[:-1]):
        with pytest.raises(ValueError, match="list.txt must be text in UTF-8.*Save it as UTF-8; in Excel: Save As"):
            decode(content, "list.txt")
    for content in (text.encode("utf-16-le"), text.encode("utf-32")):
        with pytest.raises(ValueError, match="Save it as UTF-8"):
            parse(decode(content, "list.txt"), name="list.txt")
    with pytest.raises(ValueError, match="must have at most 16 MiB"):
        decode(bytes(17 * 2**20), "list.txt")


def test_ending_decides_unless_a_format_is_chosen():
    with pytest.raises(ValueError, match="list.json is not valid JSON"):
        parse("[cinematic] a cat", name="list.json")
    assert prompts("[cinematic] a cat", LINES, "list.json") == ["[cinematic] a cat"]
    assert prompts('"a cat"\n"a dog"', name="list.JSONL") == ["a cat", "a dog"]


def chosen(text, *arguments):
    return [(item.prompt, item.negative, item.seed) for item in chosen_items(parse(text), *arguments)]


def test_the_list_goes_before_the_node():
    text = '["a", {"prompt": "b", "seed": 9, "negative": "own"}]'
    assert chosen(text, -1, "node's", 3) == [("a", "node's", 3), ("b", "own", 9)]
    assert chosen(text, 1, "node's", 3) == [("b", "own", 9)]


def test_an_entry_again_takes_the_next_seed_and_others_never_change_it():
    assert [seed for _, _, seed in chosen("a\na\nb\na", -1, "", 2**64 - 2)] == [2**64 - 2, 2**64 - 1, 2**64 - 2, 0]


@pytest.mark.parametrize("index", [2, -2, 1.0, None])
def test_index_beyond_the_list(index):
    with pytest.raises(ValueError, match="index must be at most 1, the last of 2 prompts, got"):
        chosen_items(parse("a\nb"), index)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "x", None])
def test_wrong_seed_of_the_node(seed):
    with pytest.raises(ValueError, match="seed must be a whole number"):
        chosen_items(parse("a"), -1, "", seed)


def test_details_are_json_of_the_item():
    (item,) = chosen_items(parse('["x", {"prompt": "Kätzchen", "seed": 4, "image": "a.png"}]'), 1, "no")
    assert json.loads(item.details()) == {
        "prompt": "Kätzchen",
        "negative": "no",
        "seed": 4,
        "image": "a.png",
        "index": 1,
    }


def no_file(name):
    raise FileNotFoundError(name)


def test_item_is_known_from_the_graph():
    inputs = {"text": "a\nb\na", "file": "none", "negative": "no", "seed": 3}
    a, b = ({"prompt": prompt, "negative": "no", "seed": 3, "image": None} for prompt in "ab")
    assert [item_of(inputs, position, no_file) for position in (None, 0, 1)] == [a, a, b]
    assert item_of(inputs, 2, no_file) == item_of(inputs, 99, no_file) == a | {"seed": 4}
    assert item_of(inputs | {"index": 1}, 0, no_file) == item_of(inputs | {"index": 1}, 5, no_file) == b
    assert item_of(inputs | {"text": "new\nb\nother"}, 1, no_file) == b
    assert item_of({"text": "", "file": "l.csv"}, 0, lambda name: b"prompt,seed\nc,5") == {
        "prompt": "c", "negative": "", "seed": 5, "image": None
    }  # fmt: skip


def test_what_comes_through_a_link_stays_the_link_or_makes_the_item_unknown():
    inputs = {"text": '["a", "a", {"prompt": "a", "seed": 1}]', "file": "none", "seed": ["7", 0], "negative": ["8", 1]}
    items = [item_of(inputs, position, no_file) for position in range(3)]
    assert [item["seed"] for item in items] == [["7", 0], ["7", 0, 1], 1]
    assert {tuple(item["negative"]) for item in items} == {("8", 1)}
    for name in ("text", "file", "format", "index"):
        assert item_of(inputs | {name: ["9", 0]}, 0, no_file) is None
    assert item_of(inputs | {"file": "gone.txt"}, 0, no_file) is None
    assert item_of(inputs | {"index": 3}, 0, no_file) is None


def test_what_all_entries_share_is_looked_through_once(monkeypatch):
    """Or a list of a few MiB would stop the server for days."""
    calls = []
    for module in (entries, formats):
        monkeypatch.setattr(module, "field_of", lambda name, of=entries.field_of: calls.append(name) or of(name))
    shared = {f"note {number}": 1 for number in range(1000)} | {"negative": "grey"}
    found = parse(json.dumps({"prompts": ["a"] * 1000 + [{"prompt": "b", "mood": "calm"}]} | shared))
    assert {entry.negative for entry in found.entries} == {"grey"} and len(found.entries) == 1001
    assert found.ignored[0] == "'note 0'" and found.ignored[-1] == "'mood'" and len(found.ignored) == 1001
    assert len(calls) < 10_000


def test_lines_that_are_no_json_are_not_all_tried(monkeypatch):
    calls = []
    monkeypatch.setattr(formats.json, "loads", lambda text, of=json.loads: calls.append(text) or of(text))
    with pytest.raises(ValueError, match="is not valid JSON"):
        parse('{"prompt": "a"}\n' + '"\n' * 1000, JSON)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("text", "format"),
    [(",".join(["seed"] * 10**4), CSV), (json.dumps([dict.fromkeys(map(str, range(10**4)), 1)]), JSON)],
)
def test_a_refusal_names_some_of_many_columns(text, format):
    with pytest.raises(ValueError, match="prompt") as refused:
        parse(text, format)
    assert len(str(refused.value)) < 1000
