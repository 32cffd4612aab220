"""What `gsssocks check` finds, step by step, and the exit status that says so."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["STATUS", "Finding", "Report"]

STATUS = {
    "configuration": 2,
    "credential": 3,
    "service": 4,
    "proxy": 5,
    "authentication": 6,
    "protection": 7,
    "target": 8,
}
"""Exit status by the step that failed; 0 if none did."""


@dataclass
class Finding:
    """One step of the examination.

    Attributes:
        step: a key of `STATUS`.
        ok: whether it succeeded.
        facts: what was found, in words.
        milliseconds: how long it took.
    """

    step: str
    ok: bool = True
    facts: dict[str, str] = field(default_factory=dict)
    milliseconds: float = 0.0


@dataclass
class Report:
    """All findings, in order."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status: 0, or the number of the step that ended the examination (`STATUS`)."""
        last = self.findings[-1]
        return 0 if last.ok else STATUS[last.step]

    @property
    def directly(self) -> str:
        """In words, by what the target is reached directly; empty where it is not."""
        return self.findings[-1].facts.get("reached", "")
