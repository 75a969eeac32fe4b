"""Packaging of beam-curate: the application ``beam_curate`` and its PTransforms, ``transforms``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "beam_curate" / "__init__.py").read_text())[1]

setup(
    name="beam-curate",
    version=VERSION,
    description="Curate image datasets with Apache Beam: WebDataset tars in, the good images out.",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["beam_curate*", "transforms*"]),
    package_data={
        "beam_curate": [
            "py.typed",
            "models/demo/*.json",
            "models/demo/*.safetensors",
            "report/*.j2",
            "report/*.css",
            "report/*.js",
        ],
        "transforms": ["py.typed"],
    },
    install_requires=[
        "apache-beam[gcp]>=2.77",
        "torch>=2.4",
        "open_clip_torch>=3.3",
        "pyarrow>=15",
        "webdataset>=0.2.100",
        "ijson>=3.2",
        "pyyaml>=6",
        "google-cloud-storage>=2.18",
        "Pillow>=11.3",
        "safetensors>=0.4",
        "numpy>=1.26",
        "vl-convert-python>=1.9",
        "Jinja2>=3.1",
    ],
    extras_require={
        "dali": ["nvidia-dali-cuda130>=2.0; sys_platform == 'linux'"],
        "dali-cuda12": ["nvidia-dali-cuda120>=1.40; sys_platform == 'linux'"],
        "aws": ["apache-beam[aws]"],
        "bench": ["py-spy>=0.4"],
        "test": [
            "pytest>=8",
            "atheris>=3; python_version >= '3.11' and sys_platform == 'linux'",
            "hypothesis>=6.100",
            "datasets>=3",
            "pandas>=2",
            "moto[s3]>=5",
            "flask>=3",
            "flask-cors>=6",
            "duckdb>=1.5",
            "polars>=2",
            "wids>=0.1.11",
            "selenium>=4.20",
            "ruff>=0.6",
            "mypy>=1.11",
        ],
    },
    entry_points={"console_scripts": ["beam-curate=beam_curate.__main__:main"]},
)
