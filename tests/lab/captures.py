"""Every backend at work on a pod of a pair, without any daemon."""

import asyncio

from nodeagent.redirect.backend import Sandbox
from nodeagent.redirect.nftables import Nft
from nodeagent.redirect.plan import Options
from nodeagent.redirect.xtables import Iptables

WAYS = {"nft": Nft(), "iptables-nft": Iptables("nft"), "iptables-legacy": Iptables("legacy")}


class Capture:
    """One backend and one pod."""

    def __init__(self, way, pod):
        self.name, self.backend, self._pod = way, WAYS[way], pod

    def sandbox(self, **options):
        return Sandbox("pod", self._pod.namespace, None, Options(**options))

    def put(self, **options):
        asyncio.run(self.backend.put(self.sandbox(**options)))

    def compare(self, **options):
        return asyncio.run(self.backend.compare(self.sandbox(**options)))

    def take_out(self):
        asyncio.run(self.backend.take_out(self.sandbox()))

    def left(self):
        """Everything that it could leave in the namespace; iptables keeps tables without a rule."""
        kind = self.name.removeprefix("iptables-")
        saves = [f"{program}-{kind}-save" for program in ("iptables", "ip6tables")]
        listings = ["nft list ruleset"] if self.name == "nft" else saves
        rules = [line for words in listings for line in self._pod.command(*words.split()).splitlines()]
        if self.name != "nft":
            rules = [line for line in rules if line.startswith("-A") or ":NODEMESH" in line]
        ways = ("ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all")
        return [*rules, *(self._pod.command(*words.split()) for words in ways)]
