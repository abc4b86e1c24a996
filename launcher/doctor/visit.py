"""Asks all hosts at once: first each about itself, then about one another."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher.doctor.conversation import Conversation, SilenceError
from launcher.doctor.facts import storage
from launcher.doctor.scene import Unreached
from launcher.hosts import Host
from launcher.master import target_of

START_SECONDS = 7.0
"""For ssh and Python to start; ssh itself gives up connecting after five."""
_ANSWER_SECONDS = 8.0
_DEVICE_SECONDS = 65.0
_CALL_SECONDS = 3.0
_PATIENCE_SECONDS = 5.0
"""Until a network file system must show what another host has written."""

_PREFIX, _OWNER = ".onward-doctor-", "owner"


class Visit:
    """All hosts' probes at work.

    Attributes:
        facts: of each host, by section.
        unreached: why a host did not answer.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        values: Mapping[str, str],
        ways: Mapping[str, Sequence[str]],
    ) -> None:
        """Set up.

        Args:
            hosts: to be asked.
            values: the environment that processes of a launch get there.
            ways: to each by name; none: it is this machine.
        """
        self._hosts = hosts
        self._values = values
        self._ways = ways
        self._open: dict[str, Conversation] = {}
        self.facts: dict[str, dict[str, Any]] = {host.name: {} for host in hosts}
        self.unreached: dict[str, Unreached] = {}

    def begin(self) -> None:
        """Start every probe, and compare clocks: the first answer pays for the start."""
        for host in self._hosts:
            try:
                talk = Conversation(self._ways.get(host.name, ()), self._values)
            except FileNotFoundError as error:
                said = f"there is no {error.filename} on this machine"
                reason = Unreached("start", said, None)
                self.unreached[host.name] = reason
            else:
                self._open[host.name] = talk
        self._at_once(lambda _, talk: talk.ask("clock", START_SECONDS), "start")
        self._at_once(_compare_clocks, "clock")

    def end(self) -> None:
        """Let every probe go."""
        with ThreadPoolExecutor(max_workers=64) as pool:
            list(pool.map(lambda talk: talk.close(), self._open.values()))
        self._open.clear()

    def ask(self, section: str, seconds: float | None = None, **question: Any) -> None:
        """The same question to all."""
        limit = seconds or _ANSWER_SECONDS
        self._at_once(lambda _, talk: talk.ask(section, limit, **question), section)

    def ask_devices(self) -> None:
        """How many GPUs; importing torch takes its time where there are any."""
        self.ask("devices", _DEVICE_SECONDS)

    def ask_network(self, port: int | None, address: str = "") -> None:
        """Where rank 0 will be, and where each host can be called on the way there.

        ``port`` and ``address``: rank 0's, if they were chosen.
        """
        first = self._hosts[0].name
        master = address or "127.0.0.1"
        if len(self._hosts) > 1 and not address:
            self._only([first], "way", target=target_of(self._hosts))
            master = self.facts[first].get("way", {}).get("address", "")
        self._at_once(
            lambda name, talk: talk.ask(
                "network", _ANSWER_SECONDS, master=master, port=port, is_first=name == first
            ),
            "network",
        )

    def call_one_another(self) -> None:
        """Every host opens a connection to every other one, at each address that it listens on."""
        listening = {
            name: [{"name": name, **at} for at in facts["network"]["listens"]]
            for name, facts in self.facts.items()
            if "network" in facts
        }

        def call(name: str, talk: Conversation) -> dict[str, Any]:
            peers = [p for other, places in listening.items() if other != name for p in places]
            rounds = 1 + len(peers) // 64
            return talk.ask(
                "calls",
                _ANSWER_SECONDS + rounds * _CALL_SECONDS,
                peers=peers,
                patience=_CALL_SECONDS,
            )

        self._at_once(call, "calls")

    def share(self, folder: Path) -> None:
        """A token from each, read by all; and one lock that only one may hold."""
        path = str(folder)
        tokens = {name: f"{name} {os.urandom(8).hex()}" for name in self._open}
        self._at_once(
            lambda name, talk: talk.ask(
                "written", _ANSWER_SECONDS, folder=path, name=name, text=tokens[name]
            ),
            "written",
        )
        written = {
            name: text
            for name, text in tokens.items()
            if self.facts[name].get("written", {}).get("trouble") == ""
        }
        self.ask(
            "read",
            _ANSWER_SECONDS + _PATIENCE_SECONDS,
            folder=path,
            tokens=written,
            patience=_PATIENCE_SECONDS,
        )
        able = [name for name in written if name in self._open]
        if len(able) > 1:
            self._try_lock(path, able)

    def _try_lock(self, folder: str, names: Sequence[str]) -> None:
        first, *others = names
        self._only([first], "lock", folder=folder)
        self._only(others, "lock", folder=folder)
        self._only(names, "release")

    def measure_speed(self, folder: Path) -> None:
        """Of every host's writing there, all at once, as they would save a checkpoint."""
        self._at_once(
            lambda name, talk: talk.ask("speed", 30.0, folder=str(folder), name=name), "speed"
        )

    def _only(self, names: Sequence[str], section: str, **question: Any) -> None:
        self._at_once(
            lambda _, talk: talk.ask(section, _ANSWER_SECONDS, **question), section, names
        )

    def _at_once(
        self,
        question: Callable[[str, Conversation], dict[str, Any]],
        section: str,
        names: Sequence[str] | None = None,
    ) -> None:
        """Ask those who still answer; who falls silent is asked no more."""
        asked = {n: t for n, t in self._open.items() if names is None or n in names}
        if not asked:
            return
        with ThreadPoolExecutor(max_workers=min(64, len(asked))) as pool:
            answers = {n: pool.submit(question, n, t) for n, t in asked.items()}
        for name, future in answers.items():
            try:
                self.facts[name][section] = future.result()
            except SilenceError as silence:
                reason = silence.reason
                self.unreached[name] = Unreached(section, reason.said, reason.code)
                talk = self._open.pop(name)
                talk.give_up()
                talk.close()


def _compare_clocks(_: str, talk: Conversation) -> dict[str, Any]:
    """Seconds that a host's clock is ahead of ours, as exact as half the way there and back."""
    sent = time.time()
    told = talk.ask("clock", _ANSWER_SECONDS)["time"]
    back = time.time()
    return {"offset": told - (sent + back) / 2, "error": (back - sent) / 2}


def place_for(folder: Path) -> Path:
    """The nearest folder at or above it that is there."""
    return next(storage.existing(folder.absolute()))


@contextmanager
def trial_folder(place: Path) -> Iterator[Path]:
    """A folder for tokens, gone afterwards; OSError if it cannot be made."""
    _remove_leftovers(place)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    try:
        with (made / _OWNER).open("w", encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _remove_leftovers(place: Path) -> None:
    """Trial folders of examinations that were killed: nobody holds their lock."""
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError), (folder / _OWNER).open(encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
