"""Question files in the shape in which Search-R1 released its own, made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from agentrl.data.suites import QA7


def released_row(name: str, i: int, question: str, answers: list[str]) -> dict[str, Any]:
    """One row with the columns of the released file; ids are numbered within each set, as there."""
    content = f"Answer the given question. You must conduct reasoning inside <think>. Question: {question}\n"
    return {
        "id": f"test_{i}",
        "question": question,
        "golden_answers": answers,
        "data_source": name,
        "prompt": [{"role": "user", "content": content}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
        "extra_info": {"index": i, "split": "test"},
        "metadata": {"type": "bridge", "level": "hard"} if name == "hotpotqa" else None,
    }


def released_rows(each: int = 3) -> list[dict[str, Any]]:
    """`each` questions of each of the seven sets, asked as tests/openai_server's agents understand them."""
    return [
        released_row(name, i, f"who made thing {name}-{i}", [f"maker {name}-{i}", f"the {i}"])
        for name in QA7
        for i in range(each)
    ]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a Parquet file, with the types of the released one."""
    text = pa.string()
    schema = pa.schema(
        {
            "id": text,
            "question": text,
            "golden_answers": pa.list_(text),
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "ability": text,
            "reward_model": pa.struct({"style": text, "ground_truth": pa.struct({"target": pa.list_(text)})}),
            "extra_info": pa.struct({"index": pa.int64(), "split": text}),
            "metadata": pa.struct({"type": text, "level": text}),
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path
