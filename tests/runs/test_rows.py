"""Rows survive a kill at any byte."""

import csv
import io

from ticketlab.runs.rows import append_row, csv_bytes, read_rows


def test_a_half_written_row_counts_as_none_and_harms_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"a": 1})
    append_row(path, {"a": 2})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) + 1):
        path.write_bytes(whole[:cut])
        append_row(path, {"a": 3})
        rows = [row["a"] for row in read_rows(path)]
        # a row without its line end is whole already
        assert rows == ([1, 2, 3] if cut >= len(whole) - 1 else [1, 3]), cut


def test_no_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "none.jsonl") == []


def test_csv_holds_all_columns():
    content = csv_bytes([{"a": 1, "w": {"fc": 2}}, {"a": 2, "b": "x"}]).decode()
    found = list(csv.DictReader(io.StringIO(content, newline="")))
    assert found == [{"a": "1", "w": '{"fc": 2}', "b": ""}, {"a": "2", "w": "", "b": "x"}]
