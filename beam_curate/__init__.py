"""Curate image datasets with Apache Beam: WebDataset tars in, the good images out."""

__version__ = "0.1.0"
