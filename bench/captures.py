"""The capture backends as a dimension: each is a lab of its own in the same run, in which only ours differs.

`CAPTURE=bpf,nft` measures ours once per backend: `ours` is the first, `ours-nft` each further one.
"""

from lab.daemons import AUTO, CAPTURES
from mesh.errors import OperatorError


def chosen(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or [AUTO]
    for name in names:
        if name not in CAPTURES:
            raise OperatorError(f"CAPTURE has no {name}; there are: {', '.join(CAPTURES)}")
    return names


def contender(names: list[str], name: str) -> str:
    return "ours" if name == names[0] else f"ours-{name}"
