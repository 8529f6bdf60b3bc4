"""The capture backends as a dimension: each is a lab of its own in the same run, in which only ours differs.

`CAPTURE=bpf,nft` measures ours once per backend: `ours` is the first, `ours-nft` each further one. `direct` is BPF with
the direct path within the node.
"""

from typing import Final

from lab.daemons import AUTO, CAPTURES
from mesh.errors import OperatorError

DIRECT: Final = "direct"
NAMES: Final = (*CAPTURES, DIRECT)


def chosen(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or [AUTO]
    for name in names:
        if name not in NAMES:
            raise OperatorError(f"CAPTURE has no {name}; there are: {', '.join(NAMES)}")
    return names


def backend(name: str) -> str:
    """What the agents are told to capture with."""
    return "bpf" if name == DIRECT else name


def contender(names: list[str], name: str) -> str:
    return "ours" if name == names[0] else f"ours-{name}"
