"""Which sockets some processes listen on, as the kernel tells it. Linux only."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LISTENING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}
"""By table: the state of a socket that waits for whoever comes."""
_SOCKET = re.compile(r"socket:\[(\d+)\]")


class Listener(NamedTuple):
    """A socket that waits for others. ``command``: of its process, in short."""

    protocol: str
    address: str
    port: int
    command: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        address = ipaddress.ip_address(self.address)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback


def marked(mark: str) -> Iterator[int]:
    """Processes with ``mark`` in their environment, which children inherit."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                found = mark.encode() in (folder / "environ").read_bytes()
            except OSError:
                continue
            if found:
                yield int(folder.name)


def listeners(process: int) -> set[Listener]:
    """What one process listens on; nothing of one that is gone."""
    folder = Path(f"/proc/{process}")
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        links = [_link(path) for path in (folder / "fd").iterdir()]
        tables = {name: (folder / "net" / name).read_text().splitlines()[1:] for name in _LISTENING}
    except OSError:
        return set()
    own = {match[1] for link in links if (match := _SOCKET.fullmatch(link))}
    found = set()
    for protocol, lines in tables.items():
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING[protocol] and fields[9] in own:
                host, _, port = fields[1].partition(":")
                found.add(Listener(protocol, _address(host), int(port, 16), _short(command)))
    return found


def _link(descriptor: Path) -> str:
    """What a descriptor stands for; nothing for one that was closed meanwhile, as is the one that lists them."""
    try:
        return os.readlink(descriptor)  # noqa: PTH115  (what it says is no path)
    except FileNotFoundError:
        return ""


def _address(host: str) -> str:
    """Hexadecimal words in the machine's order, which is little-endian where Ray runs."""
    words = [bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def _short(command: str) -> str:
    program, _, arguments = command.partition(" ")
    script = re.search(r"[\w/.]+\.py", arguments)
    return Path(script[0] if script and Path(program).name.startswith("python") else program).name
