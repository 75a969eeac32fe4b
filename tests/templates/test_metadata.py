"""The Flex Template's ``metadata.json`` is what Dataflow reads, and says what the command line says."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from google.cloud.dataflow_v1beta3 import ParameterType, TemplateMetadata

from beam_curate import options
from beam_curate.options import CurateOptions

TEMPLATES = Path(__file__).parents[2] / "templates"
METADATA = TemplateMetadata.from_json((TEMPLATES / "metadata.json").read_text())
PARAMETERS = {parameter.name: parameter for parameter in METADATA.parameters}
REQUIRED = {"input": "gs://bucket/in", "output_dir": "gs://bucket/out"}


def flags(kind=CurateOptions) -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    kind._add_argparse_args(parser)
    return {
        name.removeprefix("--"): action
        for action in parser._actions
        for name in action.option_strings
        if action.dest != "help" and action.help != argparse.SUPPRESS
    }


def test_every_flag_is_a_parameter_and_every_other_parameter_is_a_flag_of_beam():
    ours = flags()
    assert set(ours) <= set(PARAMETERS)
    beams = {name for kind in PipelineOptions.__subclasses__() for name in flags(kind)}
    assert set(PARAMETERS) - set(ours) <= beams


@pytest.mark.parametrize("name", flags())
def test_a_parameter_says_what_its_flag_says(name):
    parameter, flag = PARAMETERS[name], flags()[name]
    help_text = re.sub(r"( \(default: .*\)|; required)$", "", flag.help)
    assert parameter.help_text == help_text[0].upper() + help_text[1:] + "."
    assert 0 < len(parameter.label) <= 40
    assert parameter.is_optional == (name not in REQUIRED)
    assert [option.value for option in parameter.enum_options] == list(flag.choices or ())
    if flag.default is None:
        assert not parameter.default_value
    else:
        assert parameter.default_value == str(flag.default).lower() or parameter.default_value == str(flag.default)
    (regex,) = parameter.regexes
    if parameter.default_value:
        assert re.search(regex, parameter.default_value)
    if flag.choices:
        assert parameter.param_type == ParameterType.ENUM
        assert all(re.search(regex, choice) for choice in flag.choices)
    assert (parameter.param_type == ParameterType.BOOLEAN) == isinstance(flag.default, bool)


GOOD = {
    "input": ["gs://bucket/in/*.tar", "gs://a/b,gs://c/d{0..9}.tar"],
    "output_dir": ["gs://bucket/out"],
    "embeddings_dir": ["none", "gs://bucket/embeddings"],
    "images_per_tar": ["1", "10000"],
    "sidecars": ["none", "card", "wids,sizes,dali,card"],
    "limit": ["3"],
    "inference_batch_size": ["64"],
    "max_image_pixels": ["1000000"],
    "aesthetic_threshold": ["5.5", "-1"],
    "nsfw_threshold": ["0.25"],
    "clip_model": ["ViT-L-14-quickgelu", "hf-hub:laion/CLIP-ViT-B-32"],
    "clip_pretrained": ["gs://bucket/weights.safetensors", "laion2b_s34b_b88k"],
    "aesthetic_head": ["none", "gs://bucket/head.safetensors"],
    "nsfw_head": ["none"],
    "accelerator": ["type:nvidia-l4;count:1;install-nvidia-driver", "type:nvidia-tesla-t4;count:2"],
    "min_ram": ["24GB", "1.5TiB"],
    "overwrite": ["true", "false"],
    "strict": ["true"],
    "verbose": ["false"],
    "progress": ["log", "none"],
    "report": ["true", "false"],
    "deterministic_name": ["false"],
    "write_embeddings": ["false"],
    "member_names": ["sequential"],
    "device": ["cuda"],
    "precision": ["fp16"],
}
BAD = {
    "input": ["", "/local/in", "gs://a,/b"],
    "output_dir": ["", "local", "gs://bucket/out*"],
    "embeddings_dir": ["local"],
    "images_per_tar": ["0", "many"],
    "sidecars": ["", "idx", "wids;card"],
    "aesthetic_threshold": ["high"],
    "accelerator": ["nvidia-l4", "type:nvidia-l4"],
    "min_ram": ["24", "much"],
    "overwrite": ["yes"],
    "member_names": ["key"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_what_the_template_takes_the_command_line_takes(name, value):
    assert re.search(PARAMETERS[name].regexes[0], value)
    chosen = options.parse([f"--{key}={text}" for key, text in {**REQUIRED, name: value}.items()])
    assert str(getattr(chosen, name)).lower() in (value.lower(), f"{value}.0")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_what_is_wrong_is_refused_before_anything_starts(name, value):
    assert not re.search(PARAMETERS[name].regexes[0], value)


def test_every_parameter_has_values_that_are_tried():
    assert set(GOOD) == set(flags())


def test_the_image_has_the_beam_and_the_python_that_are_pinned():
    dockerfile = (TEMPLATES / "Dockerfile").read_text()
    constraints = (TEMPLATES.parent / "constraints.txt").read_text()
    (beam,) = re.findall(r"^apache-beam==(\S+)$", constraints, re.MULTILINE)
    sdk_python, sdk = re.findall(r"^FROM apache/beam_python(\S+)_sdk:(\S+) AS beam$", dockerfile, re.MULTILINE)[0]
    (python,) = re.findall(r"^FROM python:(\d+\.\d+)\.\d+-", dockerfile, re.MULTILINE)
    (launcher,) = re.findall(r"/python(\d+)-template-launcher-base:\d{8}_", dockerfile)
    assert sdk == beam
    assert sdk_python == python
    assert launcher == python.replace(".", "")
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for name in copied.split():
            assert (TEMPLATES.parent / name).exists()
    json.loads((TEMPLATES / "metadata.json").read_text())
