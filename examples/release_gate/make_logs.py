"""Stands in for an evaluation: writes one log a model into `logs/`."""

from pathlib import Path

from muaudit.testbed.recorded import PEOPLE, write_logs


def main() -> None:
    """The original knows everybody; the retrained models never saw the forget set."""
    write_logs(
        Path(__file__).parent / "logs",
        {
            "original": range(PEOPLE),
            "retrained-1": (),
            "retrained-2": (),
            "retrained-3": (),
            "candidate": (),
            "leaky-candidate": (7,),
        },
    )


if __name__ == "__main__":
    main()
