"""Rows of parquet files, and of data sets on the hub: both need the extra `hub`."""

from __future__ import annotations

import io
import re
from typing import Any

from whelp.errors import DataError

HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+)(?=:))?(?::(?P<split>[\w.-]+))?")
"""owner/name, owner/name:split or owner/name:config:split"""
EXTRA = "needs the extra hub: pip install 'whelp[hub]'"


def parquet_records(name: str, content: bytes) -> list[Any]:
    """The records of a parquet file, without what is null in them. Raises DataError."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise DataError(f"{name}: a parquet file {EXTRA}") from error
    try:
        return [without_nulls(record) for record in read_table(io.BytesIO(content)).to_pylist()]
    except (ArrowException, OSError) as error:
        raise DataError(f"{name}: is no parquet file that can be read: {' '.join(str(error).split())[:200]}") from error


def hub_records(name: str) -> list[Any]:
    """The records of a data set on the hub, `train` where no split is named, without what is null in them.

    Nothing of the data set is run. Raises DataError.
    """
    found = HUB_ID.fullmatch(name)
    assert found is not None, name
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{name}: there is no such file, and a data set of the hub {EXTRA}") from error
    try:
        loaded = datasets.load_dataset(found["id"], found["config"], split=found["split"] or "train")
        return [without_nulls(record) for record in loaded]  # a column may need a library of its own to be read
    except Exception as error:  # what a missing network, repository, split or decoder raises is not one kind
        raise DataError(
            f"{name}: there is no such file, and the hub's data set cannot be read: {' '.join(str(error).split())[:300]}. "
            "A data set is owner/name, owner/name:split or owner/name:configuration:split."
        ) from error


def without_nulls(value: Any) -> Any:
    """A column that a record has no value for is null in it: as if its key were not there."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
