#!/usr/bin/env python3
"""One table as CSV and as Parquet in several forms. Needs pyarrow==26.0.1 and pandas.

    python3 scripts/references/parquet_tables.py tests/fixtures/tables

The columns cover what Parquet can hold of a table: numbers of every width, decimals, truth values, texts with and without a dictionary, dates,
missing values, fields of a structure, and a list, which is no column of a table. The CSV file has the same rows without the list.
"""
import datetime
import decimal
import pathlib
import sys

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

ROWS = 60


def main():
    folder = pathlib.Path(sys.argv[1])
    row = range(ROWS)
    double = [None if i % 13 == 4 else ((i * 37) % 50) / 7 - 3 for i in row]
    target = [2 * i % 19 + (0 if double[i] is None else double[i]) for i in row]
    table = pa.table(
        {
            "id": pa.array([2**53 + 1 + i for i in row], pa.int64()),
            "double": pa.array(double, pa.float64()),
            "single": pa.array([(i * 11 % 17) / 4 for i in row], pa.float32()),
            "small": pa.array([i * 5 % 7 - 3 for i in row], pa.int8()),
            "large": pa.array([2**63 + 2**40 * (i * 3 % 11) for i in row], pa.uint64()),
            "price": pa.array([decimal.Decimal(i * i % 23) / 100 - 1 for i in row], pa.decimal128(7, 2)),
            "wide": pa.array([decimal.Decimal(i * 13 % 29 - 9) / 8 for i in row], pa.decimal128(30, 3)),
            "truth": pa.array([i * i % 3 == 1 for i in row]),
            "day": pa.array([datetime.date(2020, 1, 1 + i % 28) for i in row]),
            "colour": pa.array([[None, "red", "green", "blue, dark"][i * 7 % 4 if i % 5 else 0] for i in row]).dictionary_encode(),
            "place": pa.StructArray.from_arrays([pa.array([i * 3 % 8 / 2 for i in row]), pa.array([i * i % 5 for i in row])], ["north", "east"]),
            "class": pa.array([[3, 10, 2][i % 3] for i in row], pa.int32()),
            "y": pa.array(target, pa.float64()),
            "tags": pa.array([[1.0] * (i % 3) for i in row]),
        }
    )
    table = table.replace_schema_metadata(None)
    forms = {
        "snappy": dict(compression="snappy", row_group_size=25),
        "zstd": dict(compression="zstd", data_page_version="2.0", use_dictionary=False, store_decimal_as_integer=True),
        "gzip": dict(compression="gzip", version="1.0"),
        "lz4": dict(compression="lz4", row_group_size=7),
        "plain": dict(compression="none", use_byte_stream_split=["double", "single"], use_dictionary=["colour"]),
    }
    for name, options in forms.items():
        pq.write_table(table, folder / f"{name}.parquet", store_schema=False, **options)
    flat = table.drop_columns(["tags"]).flatten()
    flat = flat.set_column(flat.column_names.index("truth"), "truth", flat["truth"].cast(pa.int8()))
    flat = flat.set_column(flat.column_names.index("day"), "day", flat["day"].cast(pa.int32()))
    flat = flat.set_column(flat.column_names.index("colour"), "colour", flat["colour"].cast(pa.string()))
    pa.csv.write_csv(flat, folder / "same.csv", pa.csv.WriteOptions(quoting_style="needed"))


if __name__ == "__main__":
    main()
