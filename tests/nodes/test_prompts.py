"""UltraGen Prompts as ComfyUI calls it."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    import folder_paths

    (tmp_path / "input").mkdir()
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    return tmp_path / "input"


@pytest.fixture
def node(pack, folder):
    return next(node for node in pack.nodes.NODES if node.__name__ == "UltraGenPrompts")


def execute(node, *arguments, graph=None, **more):
    """graph: what is queued; the node is number 1 in it."""

    class Called(node):
        hidden = io.HiddenHolder.from_dict({io.Hidden.prompt: graph or {}, io.Hidden.unique_id: "1"})

    return Called.execute(*arguments, **more)


IMAGE_LINKED = {"2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 3]}}}


def test_outputs(node):
    node.define_schema().validate()  # which ComfyUI 0.3.75 does by ids
    text = '["a", {"prompt": "b", "negative": "own", "seed": 9}]'
    done = execute(node, text, "none", negative="no", seed=3)
    prompt, negative, seed, image, details = done.result
    assert (prompt, negative, seed) == (["a", "b"], ["no", "own"], [3, 9])
    assert [json.loads(each)["index"] for each in details] == [0, 1]
    assert all(isinstance(each, ExecutionBlocker) for each in image)
    assert done.ui.as_dict()["text"] == ("2 prompts, 1 with a negative, 1 with a seed",)
    assert execute(node, text, "none", index=1).result[0] == ["b"]
    assert "Number 2: b" in execute(node, text, "none", index=1).ui.as_dict()["text"][0]


def test_files_of_the_input_folder(node, folder):
    (folder / "list.txt").write_text("one\ntwo\n")
    (folder / "more.CSV").write_text("prompt;seed\nthree;3\n")
    (folder / "photo.png").touch()
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "sub.json").mkdir()
    os.symlink(folder.parent / "secret.txt", folder / "linked.txt")
    if os.name == "posix":
        open(os.fsencode(folder) + b"/\xff.txt", "w").close()
    assert node.prompt_files() == ["linked.txt", "list.txt", "more.CSV"]
    assert execute(node, "", "linked.txt").result[0] == ["secret"]
    assert execute(node, "", "list.txt").result[0] == ["one", "two"]
    assert execute(node, "", "more.CSV").result[2] == [3]
    outside = "../secret.txt", "sub.json/../../secret.txt", str(folder.parent / "secret.txt")
    for name in (*outside, "gone.txt", "", ".", "sub.json", "a\0"):
        sentence = node.validate_inputs(file=name)
        assert isinstance(sentence, str) and "must be a file in" in sentence
        with pytest.raises(ValueError, match="must be a file in"):
            execute(node, "", name)


def test_a_folder_that_cannot_be_read_has_no_files(node, unreadable, monkeypatch):
    monkeypatch.setattr("folder_paths.get_input_directory", lambda: unreadable)
    assert node.prompt_files() == []


def test_known_when_it_is_queued(node, folder):
    assert node.validate_inputs(text="a") is True
    assert node.validate_inputs(text="a\nb", index=1) is True
    assert (
        node.validate_inputs(text=None) is node.validate_inputs(file=None) is node.validate_inputs(format=None) is True
    )
    assert node.validate_inputs(text="a\nb", index=None) is True
    assert "index must be at most 1, the last of 2" in node.validate_inputs(text="a\nb", index=2)
    assert "format must be one of" in node.validate_inputs(text="a", format="xml")
    assert "at least one prompt" in node.validate_inputs()
    assert "The image of prompt 2: gone.png must be a file in" in node.validate_inputs(
        text='["a", {"prompt": "b", "image": "gone.png"}]'
    )
    (folder / "list.txt").write_bytes("Kätzchen".encode("cp1252"))
    assert "list.txt must be text in UTF-8" in node.validate_inputs(file="list.txt")


def test_images(node, folder):
    (folder / "shots").mkdir()
    wide = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    wide.convert("RGB").save(folder / "turned.jpg", exif=exif)
    wide.save(folder / "shots" / "clear.png")
    Image.fromarray(torch.full((2, 4), 32768).numpy().astype("uint16")).save(folder / "deep.png")
    names = ["turned.jpg", "shots\\clear.png", "deep.png"]
    text = json.dumps([{"prompt": "a", "image": name} for name in names])
    turned, clear, deep = execute(node, text, "none", graph=IMAGE_LINKED).result[3]
    assert turned.shape == (1, 4, 2, 3) and clear.shape == deep.shape == (1, 2, 4, 3)
    assert torch.equal(clear[0, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.allclose(deep, torch.full_like(deep, 0.5), atol=1e-4)
    assert all(image.dtype == torch.float32 for image in (turned, clear, deep))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_broken_image_is_a_sentence(node, folder, content):
    (folder / "broken.png").write_bytes(content)
    text = '{"prompt": "a", "image": "broken.png"}'
    with pytest.raises(ValueError, match="broken.png cannot be read as a picture"):
        execute(node, text, "none", graph=IMAGE_LINKED)
    (not_read,) = execute(node, text, "none").result[3]
    assert "not read, because nothing was linked" in not_read.message


def test_an_item_without_image_is_refused_where_images_are_linked(node, folder):
    Image.new("RGB", (4, 2)).save(folder / "a.png")
    text = '[{"prompt": "a", "image": "a.png"}, "b"]'
    assert isinstance(execute(node, text, "none").result[3][1], ExecutionBlocker)
    assert execute(node, text, "none", index=0, graph=IMAGE_LINKED).result[3][0].shape == (1, 2, 4, 3)
    with pytest.raises(ValueError, match="Prompt 2 has no image"):
        execute(node, text, "none", graph=IMAGE_LINKED)


def test_cached_as_long_as_the_items_are_the_same(node, folder):
    def mark(**more):
        return node.fingerprint_inputs(**({"text": "", "file": "list.txt", "index": 0} | more))

    file, image = folder / "list.txt", folder / "a.png"
    image.write_bytes(b"1")
    file.write_text('["a", {"prompt": "b", "image": "a.png"}]')
    first, second = mark(), mark(index=1)
    file.write_text('["a", {"prompt": "new", "image": "a.png"}]')
    assert mark() == first and mark(index=1) != second
    second = mark(index=1)
    image.write_bytes(b"22")
    assert mark() == first and mark(index=1) != second
    file.write_text('["other"]')
    assert mark() != first
    assert math.isnan(mark(index=1)) and math.isnan(mark(file="gone.txt")) and math.isnan(mark(file=None))
    assert mark(text=None, file="none") == ""
    assert mark(text="a", file="none", negative=None, seed=None) == mark(text="a", file="none")


@pytest.mark.parametrize("asked", [[1], None, {}, {"text": None}, {"text": 5}, {"text": "a" * (2**24 + 1)}])
def test_question_that_is_no_list(pack, node, asked):
    with pytest.raises(ValueError, match="must"):
        pack.nodes.prompts.length_of(asked)


def test_question_of_a_list(pack, node):
    assert pack.nodes.prompts.length_of({"text": "a\nb", "file": "none", "format": "auto"}) == {"count": 2}
