"""The tables that a comparison prints."""

from __future__ import annotations

import statistics
from typing import Any

from timing import Ratio

RATIOS = {
    "peer again": "Peer again (A/A)",
    "peer tuned": "Peer tuned",
    "ours": "Ours",
    "ours over tuned": "Ours over tuned peer",
    "ours cached": "Ours, cached",
    "ours cached over tuned": "Cached over tuned peer",
    "peer compiled": "Peer compiled",
    "ours compiled": "Ours compiled",
    "ours compiled over compiled": "Ours over peer, both compiled",
}


def as_markdown(report: dict[str, Any]) -> str:
    """Machine, then a table of the same work, one of shared and cached work, and one of memory."""
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    timed = [row for row in report["rows"] if row["name"] != "memory"]
    sections = [f"Machine and setting: {machine}."]
    for apart, title in ((False, "The same work"), (True, "Shared images and cached features (ours has less to do)")):
        rows = [row for row in timed if row["apart"] == apart]
        if rows:
            sections.append(f"### {title}\n\n{_timing_table(rows)}")
    memory = [row for row in report["rows"] if row["name"] == "memory"]
    if memory:
        sections.append(f"### Peak memory of a training step, batch 16 (MiB)\n\n{_memory_table(memory)}")
    return "\n\n".join(sections)


def _timing_table(rows: list[dict[str, Any]]) -> str:
    lines = timing_table(rows, "Row", "Peer, s")
    notes = dict.fromkeys(f"{row['title']} ({row['language']}): {row['note']}." for row in rows if row["note"])
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in notes)


def timing_table(rows: list[dict[str, Any]], work: str, seconds: str) -> list[str]:
    """Lines of a table: the peer's seconds, all ratios that a row has, and how equal the results are.

    `work` and `seconds` are the titles of the first column and of the peer's.
    """
    columns = {name: title for name, title in RATIOS.items() if any(name in row["ratios"] for row in rows)}
    titles = [work, "LLM", seconds, *columns.values(), "Equal results"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        ratios = [str(Ratio(**row["ratios"][name])) if name in row["ratios"] else "-" for name in columns]
        peer = f"{statistics.median(row['seconds']['peer']):.3f}"
        lines.append("| " + " | ".join([row["title"], row["language"], peer, *ratios, row["equal"]]) + " |")
    return lines


def _memory_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| LLM | Model | Peak over weights and optimizer | of peer | Saved for backward | of peer | Peak in all |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        peer = row["mib"]["peer"]
        for name, mib in row["mib"].items():
            over, saved = mib["over_weights"], mib["saved"]
            lines.append(
                f"| {row['language']} | {name} | {over:.0f} | {over / peer['over_weights']:.2f}x "
                f"| {saved:.0f} | {saved / peer['saved']:.2f}x | {mib['total']:.0f} |"
            )
    return "\n".join(lines)
