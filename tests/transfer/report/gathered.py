"""Records gathered in memory, as the report reads them from files."""

from pathlib import Path

from carryover.transfer.report.collection import Collection, collect
from carryover.transfer.report.tables import Table, build_tables
from carryover.transfer.results.reading import StoredRecord
from carryover.transfer.results.record import ResultRecord


def gathered(*records: ResultRecord) -> Collection:
    """Sort records as if the k-th had been read from ``k/result.json``."""
    return collect([StoredRecord(Path(f"{i}/result.json"), r) for i, r in enumerate(records)])


def tables_of(*records: ResultRecord) -> list[Table]:
    """Return the combined tables of records."""
    return build_tables(gathered(*records))
