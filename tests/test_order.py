from pathlib import Path
from typing import Any, cast

import pytest

from tests.order import LONGEST, longest_first


def test_the_longest_files_come_first_and_all_stay_together() -> None:
    assert [name for name in LONGEST if not (Path(__file__).parent / f"{name}.py").is_file()] == []
    named = f"tests/{LONGEST[1]}.py", f"tests/{LONGEST[0]}.py"
    files = ["a.py", "b.py", "b.py", named[0], "c.py", "d.py", "d.py", named[1], named[1]]

    class Item:
        def __init__(self, number: int, file: str) -> None:
            self.nodeid = f"{file}::test_{number}"

    items = [Item(number, file) for number, file in enumerate(files)]
    longest_first(cast(list[pytest.Item], items))
    given: list[Any] = [item.nodeid.rpartition("_")[2] for item in items]
    assert "".join(given) == "783125604"
