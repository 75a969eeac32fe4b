"""Dataflow, as far as it can be tried without an account: the job that would be submitted, and the template's way in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.metrics import monitoring_infos
from apache_beam.runners.portability.fn_api_runner import translations
from buckets import BUCKET, bucket, objects
from outputs import tree

from beam_curate import options, pipeline
from beam_curate.__main__ import main

ROOT = Path(__file__).parents[2]
ACCELERATOR = "type:nvidia-l4;count:1;install-nvidia-driver"
HINTS = (f"--accelerator={ACCELERATOR}", "--min_ram=24GB")
DATAFLOW = (
    "--runner=DataflowRunner",
    "--project=project",
    "--region=us-central1",
    f"--temp_location=gs://{BUCKET}/tmp",
)
RECORD = 4096  # bytes: what an image may cost a shuffle
# Steps that read, hold or give image bytes.
READING = "ReadEmbedScore/ReadTarShards/Read"
INFERENCE = "ReadEmbedScore/EmbedImages/RunInference/BeamML_RunInference"
SCORING = "ReadEmbedScore/ScoreEmbeddings/Score"


def built(source: str, output: str, *flags: str):
    """The options, the models and the pipeline of a command line with the demo model."""
    chosen = options.parse([f"--input={source}", f"--output_dir={output}", "--clip_model=demo", *flags])
    models = pipeline.find_models(chosen)
    root = beam.Pipeline(options=chosen)
    pipeline.build(root, chosen, models)
    return chosen, models, root


@pytest.fixture(scope="module")
def job(gcs):
    """The job that Dataflow would get."""
    setup = f"--setup_file={ROOT / 'setup.py'}"
    _, models, root = built(f"gs://{BUCKET}/in", f"gs://{BUCKET}/out", *DATAFLOW, *HINTS, setup, "--dry_run=True")
    return models, root.run().job.proto_pipeline


class Stages:
    """How a runner fuses a job: by Beam's own rules, which keep steps with other hints apart."""

    def __init__(self, proto):
        self.environments = proto.components.environments
        _, self.fused = translations.create_and_optimize_stages(
            proto,
            phases=[
                translations.annotate_downstream_side_inputs,
                translations.fix_side_input_pcoll_coders,
                translations.lift_combiners,
                translations.expand_sdf,
                translations.expand_gbk,
                translations.sink_flattens,
                translations.greedily_fuse,
            ],
            known_runner_urns=frozenset(),
            use_state_iterables=False,
        )

    def steps(self, stage) -> list[str]:
        return [step.unique_name for step in stage.transforms]

    def hints(self, stage) -> dict[str, bytes]:
        return dict(self.environments[stage.environment].resource_hints) if stage.environment else {}

    def boundaries(self, proto) -> set[str]:
        """The steps whose output leaves their stage: what is written to a shuffle, or kept for another stage."""
        producers = {
            output: step.unique_name
            for step in proto.components.transforms.values()
            if not step.subtransforms
            for output in step.outputs.values()
        }
        return {
            producers[collection]
            for stage in self.fused
            for step in stage.transforms
            if step.unique_name.endswith(("/Write", "/Write/0", "/Write/1", "/Write/2"))
            for collection in step.inputs.values()
            if collection in producers
        }


def test_reading_embedding_and_scoring_are_one_stage_with_the_hints_and_all_else_runs_on_plain_workers(job):
    _, proto = job
    stages = Stages(proto)
    hinted = [stage for stage in stages.fused if stages.hints(stage)]
    assert len(hinted) == 1
    assert stages.hints(hinted[0]) == {
        "beam:resources:accelerator:v1": ACCELERATOR.encode(),
        "beam:resources:min_ram_bytes:v1": b"24000000000",
    }
    assert {READING, INFERENCE, SCORING} <= set(stages.steps(hinted[0]))
    others = {step for stage in stages.fused if stage is not hinted[0] for step in stages.steps(stage)}
    assert not any(step.startswith("ReadEmbedScore/") for step in others)
    assert any(step.startswith("WriteShards/Write/") for step in others)


def test_image_bytes_cross_no_boundary_of_a_stage(job, shared, tmp_path):
    _, proto = job
    boundaries = Stages(proto).boundaries(proto)
    assert len(boundaries) > 10
    # What elements weigh in the coders of the job is seen where it runs on real photographs.
    _, _, root = built(str(shared / "photos"), str(tmp_path), "--inference_batch_size=16")
    local = root.to_runner_api()
    result = root.run()
    result.wait_until_finish()
    largest = {}
    for info in result.monitoring_infos():
        if info.urn == monitoring_infos.SAMPLED_BYTE_SIZE_URN:
            count, _, _, most = monitoring_infos.extract_distribution(info)
            largest[info.labels["PCOLLECTION"]] = most if count else 0
    weights = {
        step.unique_name: max(largest.get(output, 0) for output in step.outputs.values())
        for step in local.components.transforms.values()
        if not step.subtransforms and step.outputs
    }
    heavy = {step for step, most in weights.items() if most > RECORD}
    # What a grouping gives is a list of records, each no larger than before.
    grouped = {step for step in heavy if "GroupBy" in step}
    assert heavy - grouped >= {READING}
    assert not (heavy - grouped) & boundaries
    assert {"FilterNsfw/Filter/ParDo(_Filter)", "AllRejects"} & boundaries
    assert 0 < weights["WriteShards/RecordsByShard"] < RECORD


def test_the_device_of_the_workers_is_chosen_and_not_that_of_the_machine_that_submits(job, gcs):
    models, _ = job
    assert (models.encoder.device, models.encoder.precision) == ("cuda", "fp16")
    _, without, _ = built(f"gs://{BUCKET}/in", f"gs://{BUCKET}/out", *DATAFLOW)
    assert (without.encoder.device, without.encoder.precision) == ("cpu", "fp32")


def test_the_setup_file_stages_both_packages_with_the_data_they_need(job):
    _, proto = job
    for environment in proto.components.environments.values():
        staged = [artifact.type_payload.decode() for artifact in environment.dependencies]
        (package,) = [path[path.index("/") :] for path in staged if path.endswith(".tar.gz")]
        with tarfile.open(package) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        packaged = {
            str(path.relative_to(ROOT))
            for name in ("beam_curate", "transforms")
            for path in (ROOT / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert len(packaged) > 30
        assert packaged <= names


def test_a_dry_run_builds_the_job_and_writes_nothing(gcs, tars, capsys):
    assert (
        main([f"--input={tars}", f"--output_dir=gs://{BUCKET}/dry", "--clip_model=demo", *DATAFLOW, "--dry_run=True"])
        == 0
    )
    assert "nothing was run" in capsys.readouterr().out
    assert objects("dry") == {}


@pytest.mark.parametrize("flag", ["--dry_run=True", "--template_location=gs://bucket/template"])
def test_a_runner_that_would_run_the_job_refuses_to_only_build_it(flag, tmp_path, capsys):
    assert main([f"--input={tmp_path}", f"--output_dir={tmp_path / 'out'}", "--clip_model=demo", flag]) == 2
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_where_machines_are_not_given_out_the_hints_change_nothing(source, expected, curate, tmp_path):
    curate(source, tmp_path, *HINTS)
    assert tree(tmp_path) == expected


def test_the_launcher_of_the_template_gets_a_job_from_the_module_that_it_is_told_to_start(gcs, tars):
    dockerfile = (ROOT / "templates" / "Dockerfile").read_text()
    (module,) = re.findall(r"^ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/(\S+)$", dockerfile, re.MULTILINE)
    (copied,) = re.findall(rf"^COPY (\S+) {module}$", dockerfile, re.MULTILINE)
    parameters = {
        "input": tars,
        "output_dir": f"gs://{BUCKET}/templated",
        "clip_model": "demo",
        "aesthetic_threshold": "5.5",
        "overwrite": "false",
        "write_embeddings": "true",
        "accelerator": ACCELERATOR,
        "sdk_container_image": "gcr.io/project/beam-curate:1",
        "number_of_worker_harness_threads": "8",
        "experiments": "no_use_multiple_sdk_containers",
        "runner": "DataflowRunner",
        "project": "project",
        "region": "us-central1",
        "job_name": "curate-1",
        "temp_location": f"gs://{BUCKET}/tmp",
        "staging_location": f"gs://{BUCKET}/staging",
        "template_location": f"gs://{BUCKET}/staging/template_launches/1/job_object",
    }
    command = [sys.executable, str(ROOT / copied), *(f"--{name}={value}" for name, value in parameters.items())]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    described = json.loads(bucket().blob("staging/template_launches/1/job_object").download_as_bytes())
    assert described["name"] == "curate-1"
    assert described["environment"]["sdkPipelineOptions"]["options"]["aesthetic_threshold"] == 5.5
    images = {
        image["containerImage"] for image in described["environment"]["workerPools"][0]["sdkHarnessContainerImages"]
    }
    assert images == {"gcr.io/project/beam-curate:1"}
    # The store says whose it is before the job that fills it is started.
    assert [name.rpartition("/")[2] for name in objects("templated")] == ["_encoder.json"]
