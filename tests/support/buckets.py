"""A bucket on the storage server that the fixture ``gcs`` starts."""

from __future__ import annotations

import hashlib
import os

from google.cloud import storage

BUCKET = "bucket"


def bucket() -> storage.Bucket:
    return storage.Client.create_anonymous_client().bucket(BUCKET)


def upload(paths, prefix: str) -> str:
    for path in paths:
        bucket().blob(f"{prefix}/{os.path.basename(path)}").upload_from_filename(str(path))
    return f"gs://{BUCKET}/{prefix}"


def objects(prefix: str) -> dict[str, str]:
    """SHA-256 of every object below a prefix, by name."""
    blobs = bucket().list_blobs(prefix=prefix + "/")
    return {blob.name[len(prefix) + 1 :]: hashlib.sha256(blob.download_as_bytes()).hexdigest() for blob in blobs}
