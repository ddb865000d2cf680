"""comfy_api.latest and folder_paths: node classes, their inputs, what they return, ComfyUI's folders."""

from __future__ import annotations

import inspect

import execution
import folder_paths
import pytest
from comfy_api.latest import ComfyExtension, InputImpl, io, ui
from helpers.signatures import lacking, parameters

import nodes


def test_names_of_a_nodes_methods():
    assert not lacking(io.ComfyNode, "define_schema", "validate_inputs", "fingerprint_inputs", "execute", "hidden")
    assert inspect.iscoroutinefunction(ComfyExtension.get_node_list)


def test_names_of_an_inputs_parts():
    schema = io.Schema(
        node_id="Contract",
        display_name="Contract",
        category="Contract",
        inputs=[
            io.Int.Input("number", default=1, min=0, max=2, optional=True),
            io.Combo.Input("choice", options=["a", "b"]),
        ],
        is_input_list=False,
    )
    number, choice = schema.inputs
    assert (number.id, number.default, number.min, number.max, number.optional) == ("number", 1, 0, 2, True)
    assert (choice.options, schema.display_name, schema.is_input_list) == (["a", "b"], "Contract", False)


def test_an_output_holds_its_values_and_what_the_page_shows():
    output = io.NodeOutput(1, 2, ui=ui.PreviewText("words"))
    assert output.result == (1, 2) and ui.PreviewText("words").as_dict() == {"text": ("words",)}
    saved = ui.SavedResult("a.mp4", "video", io.FolderType.output)
    assert dict(saved) == {"filename": "a.mp4", "subfolder": "video", "type": io.FolderType.output}


def test_comfyui_reads_the_parameters_of_validate_inputs_by_getfullargspec():
    """It does not follow __wrapped__, so a guarded method has a signature of its own."""
    assert "getfullargspec(validate_function)" in inspect.getsource(execution.validate_inputs)


def test_lists_are_declared_on_the_node_class():
    assert not lacking(nodes, "NODE_CLASS_MAPPINGS", "load_custom_node")

    class Listing(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            outputs = [io.Int.Output(is_output_list=True), io.Int.Output()]
            return io.Schema(node_id="Listing", inputs=[], outputs=outputs, is_input_list=True)

        @classmethod
        def execute(cls):
            pass

    assert Listing.INPUT_IS_LIST is True and list(Listing.OUTPUT_IS_LIST) == [True, False]


def test_names_of_a_video_files_parts():
    assert not lacking(
        InputImpl.VideoFromFile,
        *("get_stream_source", "get_duration", "get_frame_rate", "get_dimensions", "get_components"),
    )


@pytest.mark.parametrize("folder", ["diffusion_models", "model_patches", "vae", "text_encoders"])
def test_folders_for_models(folder):
    assert folder in folder_paths.folder_names_and_paths and folder_paths.get_folder_paths(folder)


def test_functions_for_files_and_folders():
    assert not lacking(
        folder_paths,
        *("get_filename_list", "get_full_path", "get_full_path_or_raise", "get_folder_paths"),
        *("get_input_directory", "get_output_directory", "get_temp_directory", "get_directory_by_type"),
    )
    assert ".safetensors" in folder_paths.supported_pt_extensions
    assert folder_paths.annotated_filepath("a.latent [output]") == ("a.latent", folder_paths.get_output_directory())
    assert folder_paths.annotated_filepath("a.latent") == ("a.latent", None)


def test_names_for_files_come_with_a_counter(tmp_path):
    assert parameters(folder_paths.get_save_image_path)[:4] == [
        *("filename_prefix", "output_dir", "image_width", "image_height")
    ]
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "clip_00004_.mp4").touch()
    found = folder_paths.get_save_image_path("video/clip", str(tmp_path), 64, 32)
    assert found == (str(tmp_path / "video"), "clip", 5, "video", "video/clip")
