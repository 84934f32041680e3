"""Look published numbers up by table and by what sets them apart."""

from carryover.transfer.report.published import PublishedNumber, published_numbers


def numbers(paper: str, table: int, **asked: object) -> list[PublishedNumber]:
    """Return the numbers of one table whose fields are as asked."""
    return [
        n
        for n in published_numbers()
        if (n.paper, n.table) == (paper, table) and all(getattr(n, k) == v for k, v in asked.items())
    ]


def value(paper: str, table: int, **asked: object) -> float:
    """Return the one number of a table whose fields are as asked."""
    found = numbers(paper, table, **asked)
    assert len(found) == 1, f"{asked}: {len(found)} rows"
    return found[0].value
