"""Records gathered in memory, as the report reads them from files."""

from pathlib import Path

from transfer.report.collection import Collection, collect
from transfer.report.tables import Table, build_tables
from transfer.results import ResultRecord, StoredRecord


def gathered(*records: ResultRecord) -> Collection:
    """Sort records as if the k-th had been read from ``k/result.json``."""
    return collect([StoredRecord(Path(f"{i}/result.json"), r) for i, r in enumerate(records)])


def tables_of(*records: ResultRecord) -> list[Table]:
    """Return the combined tables of records."""
    return build_tables(gathered(*records))
