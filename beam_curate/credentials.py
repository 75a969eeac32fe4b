"""Whether a run has what its buckets ask for. Without it Beam's clients try again for minutes before they say so."""

from __future__ import annotations

import importlib.util
import logging
import os

from apache_beam.options.pipeline_options import PipelineOptions, S3Options

from beam_curate.errors import CurateError, UsageError

_logger = logging.getLogger(__name__)


def check(options: PipelineOptions) -> None:
    """Looks for credentials of the storage that the options name.

    Raises:
      UsageError: an optional package is missing.
      CurateError: there are no credentials.
    """
    read = [*options.input.split(","), options.clip_pretrained, options.aesthetic_head, options.nsfw_head]
    written = [options.output_dir, options.embeddings_dir or ""]
    for path in written:
        if path.startswith("gs://") and not _has_google_credentials():
            raise CurateError(
                f"{path}: there are no Google Cloud credentials; run gcloud auth application-default login, "
                "or set GOOGLE_APPLICATION_CREDENTIALS"
            )
    for path in read:
        if path.strip().startswith("gs://") and not _has_google_credentials():
            _logger.warning("%s: there are no Google Cloud credentials; only public buckets can be read", path)
            break
    for path in (*written, *read):
        if path.strip().startswith("s3://"):
            _check_s3(path, options.view_as(S3Options))
            break


def _has_google_credentials() -> bool:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return True
    try:
        google.auth.default()
    except DefaultCredentialsError:
        return False
    return True


def _check_s3(path: str, options: S3Options) -> None:
    if importlib.util.find_spec("boto3") is None:
        raise UsageError(f"{path}: s3:// needs boto3; pip install 'beam-curate[aws]'")
    import boto3

    if not options.s3_access_key_id and boto3.Session().get_credentials() is None:
        raise CurateError(
            f"{path}: there are no AWS credentials; run aws configure, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
