"""A supervised run, driven through failures by a launch that only pretends."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import (
    Cause,
    DataError,
    LaunchError,
    NumericalError,
    OnwardError,
    Preempted,
    RecipeError,
    ResourceError,
    note_step,
)
from launcher import remains, supervise
from launcher.chain import Request
from launcher.conduct import Conductor
from launcher.interruption import Interrupted
from launcher.outcome import Outcome
from launcher.placement import Placement
from launcher.policy import LONGEST_BACK_OFF, Policy
from launcher.run_folder import RunFolder, make_folder
from launcher.supervise import Part, Supervisor
from tests.launcher.toy import Toy

NAMES = ("node-1", "node-2", "node-3")
WHY = "no answer within 10 s"


@dataclass
class Scene:
    """A supervisor whose time passes at once, and what it has done.

    Attributes:
        starts: the hosts of each.
        down: hosts that ssh cannot enter.
        cures: what happens while it waits.
    """

    folder: Path
    policy: Policy = field(default_factory=Policy)
    hosts: tuple[str, ...] = ()
    told: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    starts: list[tuple[str, ...]] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    cures: Callable[[float], object] = lambda seconds: None
    batch: int = 12
    steps: int = 0

    def __post_init__(self) -> None:
        placement = Placement(processes=1)
        self.run = RunFolder(self.folder / "run")
        make_folder(self.run.launch("dapt"))
        if self.hosts:
            hostfile = self.folder / "hosts"
            hostfile.write_text("".join(f"{name} slots=1\n" for name in self.hosts))
            placement = Placement(hostfile=hostfile)
        recipe = Toy(
            name="toy",
            output=self.run.root,
            seed=1,
            stages={"dapt": {"kind": "crew"}},  # type: ignore[dict-item]
        )
        # What the toy stage keeps is what a training stage does.
        type(recipe.stages["dapt"]).KEPT = frozenset({"checkpoints/step-*"})
        self.supervisor = Supervisor(
            recipe,
            self.run,
            placement,
            self.policy,
            self.fits,
            self.told.append,
            ask=lambda hosts: {h.name: WHY for h in hosts if h.name in self.down},
            pause=self.pause,
        )

    def fits(self, stages: Sequence[str], world: int) -> None:
        if self.batch % world:
            msg = f"stage {stages[0]}: a batch of {self.batch} over {world}"
            raise RecipeError(msg)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.cures(seconds)

    def save(self) -> None:
        self.steps += 5
        make_folder(self.run.stage("dapt") / "checkpoints" / f"step-{self.steps}")

    def keep(self, failures: Sequence[Callable[[], object]]) -> None:
        """Starts that fail so, and then one that does not."""
        left = iter(failures)

        def work(placement: Placement) -> None:
            self.starts.append(tuple(host.name for host in placement.hosts()))
            for path in self.run.launch("dapt").glob("rank-*.json"):
                path.unlink()
            fail = next(left, None)
            if fail:
                fail()

        self.supervisor.keep(Part(["dapt"], is_launched=True), work)

    @property
    def lines(self) -> list[dict[str, Any]]:
        if not self.run.restarts.exists():
            return []
        return [json.loads(line) for line in self.run.restarts.read_text().splitlines()]


@pytest.fixture(autouse=True)
def _no_ssh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from tests.launcher.toy import Crew

    monkeypatch.setattr(remains, "end_remains", lambda folder, hosts, reach: {})
    before = Crew.KEPT
    yield
    Crew.KEPT = before


def fails(error: BaseException, *before: Callable[[], object]) -> Callable[[], object]:
    def fail() -> None:
        for act in before:
            act()
        raise error

    return fail


def kills(scene: Scene, name: str, calls_itself: str = "") -> Callable[[], object]:
    """The rank on that host is killed."""

    def fail() -> None:
        for rank, host in enumerate(scene.starts[-1]):
            state = "running" if host == name else "error"
            named = calls_itself or host
            left = Outcome(rank=rank, host=named, pid=9, state=state, kind="RuntimeError")  # type: ignore[arg-type]
            left = left.model_copy(update={"message": "Connection closed by peer"})
            (scene.run.launch("dapt") / f"rank-{rank}.json").write_text(left.model_dump_json())
        msg = f"rank on {name}: killed"
        raise LaunchError(msg)

    return fail


LOST = LaunchError("1 of 2 processes came up, exit code 1; the last lines\n of the log")


def test_it_is_started_again_and_every_restart_is_written_down(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.keep([fails(LOST, scene.save), fails(LOST), fails(LOST)])
    assert scene.pauses == [1.0, 2.0, 4.0]
    assert len(scene.starts) == 4
    first = scene.lines[0]
    assert first["kind"] == "lost"
    assert first["message"] == "1 of 2 processes came up, exit code 1; the last lines"
    assert (first["stage"], first["step"], first["after_exit_code"]) == ("dapt", 5, 5)
    assert (first["hosts"], first["left_out"]) == (["localhost"], {})
    assert first["lost_seconds"] >= 0
    assert len(scene.lines) == 3
    assert sum(line.startswith("restart ") for line in scene.told) == 3


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.run.restarts.write_text('{"time": "2026-')
    scene.keep([fails(LOST), fails(LOST)])
    cut, *lines = scene.run.restarts.read_text().splitlines()
    assert cut == '{"time": "2026-'
    assert [json.loads(line)["kind"] for line in lines] == ["lost", "lost"]


def test_restarts_without_progress_are_limited_and_others_are_not(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(restarts=2))
    failures = [fails(LOST, scene.save)] * 5 + [fails(LOST)] * 9
    with pytest.raises(LaunchError):
        scene.keep(failures)
    # The last one with progress had one restart, and one more brought none.
    assert len(scene.starts) == 5 + 2
    assert scene.told[-1] == "not started again: 2 restarts have brought no progress (--restarts)"


def test_none_are_made_if_none_are_wanted(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(restarts=0))
    with pytest.raises(LaunchError):
        scene.keep([fails(LOST, scene.save)])
    assert scene.lines == []


def test_what_ranks_have_left_is_kept_for_a_while(tmp_path: Path) -> None:
    scene = Scene(tmp_path, hosts=NAMES)
    scene.keep([fails(LOST, scene.save), kills(scene, "node-2"), *([fails(LOST, scene.save)] * 10)])
    kept = scene.run.stage("dapt") / "failed-starts"
    assert {path.name for path in kept.iterdir()} == {str(number) for number in range(3, 13)}


def test_the_words_of_a_failed_start_are_where_its_line_says(tmp_path: Path) -> None:
    scene = Scene(tmp_path, hosts=NAMES)
    scene.keep([fails(LOST, scene.save), kills(scene, "node-2")])
    kept = scene.run.stage("dapt") / "failed-starts"
    assert not list((kept / "1").glob("rank-*.json"))
    assert len(list((kept / "2").glob("rank-*.json"))) == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NumericalError("step 7: the loss is not finite"), "`guard`"),
        (DataError("shard 3 is damaged"), "the data has to change"),
        (ResourceError("x: in use", Cause("in_use")), "another command is at work"),
    ],
)
def test_what_would_come_again_is_not_tried_again(
    tmp_path: Path, error: OnwardError, said: str
) -> None:
    scene = Scene(tmp_path)
    with pytest.raises(type(error)) as raised:
        scene.keep([fails(error)])
    assert raised.value is error
    assert said in scene.told[-1]
    assert scene.starts == [()]


def test_the_same_exception_at_the_same_step_ends_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    error = OnwardError("KeyError", Cause("unforeseen"))
    note_step(error, 7)
    with pytest.raises(OnwardError):
        scene.keep([fails(error, scene.save), fails(error)])
    assert "the same exception at the same step, twice" in scene.told[-1]
    assert len(scene.starts) == 2


def test_with_progress_in_between_it_is_not_the_same(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    error = OnwardError("KeyError", Cause("unforeseen"))
    note_step(error, 7)
    scene.keep([fails(error, scene.save), fails(error, scene.save)])
    assert len(scene.starts) == 3


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, room = Scene(tmp_path), [0]
    monkeypatch.setattr(supervise, "_free", lambda path: room[0])

    def cure(seconds: float) -> None:
        room[0] += 40

    scene.cures = cure
    full = ResourceError("/d: no space", Cause("space", "/d", 100))
    scene.keep([fails(full)])
    assert "/d: 100 bytes needed, 40 bytes free; waiting up to 1800 s for room" in scene.told
    assert scene.pauses == [1.0, 10.0, 10.0]
    assert scene.lines[0]["kind"] == "space"


def test_a_disk_that_stays_full_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, Policy(patience=30))
    monkeypatch.setattr(supervise, "_free", lambda path: 5)
    full = ResourceError("/d: no space", Cause("space", "/d", 100))
    with pytest.raises(ResourceError) as raised:
        scene.keep([fails(full)])
    assert raised.value is full
    assert scene.told[-1].startswith("not started again: /d: 100 bytes needed, 5 bytes free after")
    assert scene.pauses == [1.0, 10.0, 10.0, 10.0]


def test_a_port_that_was_taken_is_no_reason_to_wait(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.keep([fails(LaunchError("x", Cause("port")))])
    assert scene.pauses == [0.0]


def test_a_host_that_fails_twice_is_left_out_for_good(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(min_hosts=2), NAMES)
    scene.keep([kills(scene, "node-2"), kills(scene, "node-2"), fails(LOST, scene.save)])
    without = ("node-1", "node-3")
    assert scene.starts == [NAMES, NAMES, without, without]
    assert scene.lines[1]["left_out"] == {"node-2": "failed 2 times"}
    assert scene.lines[1]["hosts"] == list(without)
    assert sum("node-2: left out: failed 2 times" in line for line in scene.told) == 1


def test_the_first_host_stays_where_rank_0s_address_is_given(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(min_hosts=1, restarts=4), NAMES)
    placed = dataclasses.replace(scene.supervisor.placement, master_addr="10.0.0.1")
    scene.supervisor.placement = placed
    scene.keep([kills(scene, "node-1")] * 3)
    assert scene.starts == [NAMES] * 4
    said = "node-1 is the first host, and --master-addr 10.0.0.1"
    assert any(said in line for line in scene.told)


def test_of_a_stage_that_hosts_share_each_host_has_one_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, Policy(min_hosts=1), NAMES)
    hostfile = scene.supervisor.placement.hostfile
    assert hostfile is not None
    hostfile.write_text("".join(f"{name} slots=2\n" for name in NAMES))
    monkeypatch.setattr(type(scene.supervisor.recipe.stages["dapt"]), "RUNS", "hosts")
    # Who calls itself by another name than the hostfile's is known by its rank alone.
    scene.keep([kills(scene, "node-3", "a-b-c")] * 2)
    assert scene.starts[-1] == ("node-1", "node-2")


def test_nobody_is_left_out_unasked(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(restarts=3), NAMES)
    scene.keep([kills(scene, "node-2")] * 3)
    assert scene.starts == [NAMES] * 4
    assert any("node-2: fails, but stays: 2 of 3 hosts are left" in line for line in scene.told)


def test_a_host_that_does_not_answer_is_asked_again_at_the_next_restart(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(min_hosts=1), NAMES)
    scene.keep(
        [
            fails(LOST, scene.save, lambda: scene.down.add("node-3")),
            fails(LOST, scene.save, scene.down.clear),
        ]
    )
    assert scene.starts == [NAMES, ("node-1", "node-2"), NAMES]
    assert [line["left_out"] for line in scene.lines] == [{"node-3": WHY}, {}]


def test_a_host_that_is_needed_is_waited_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(), NAMES)
    scene.cures = lambda seconds: len(scene.pauses) > 3 and scene.down.clear()
    scene.keep([fails(LOST, lambda: scene.down.add("node-1"))])
    assert scene.starts == [NAMES, NAMES]
    assert scene.pauses == [1.0, 10.0, 10.0, 10.0]
    assert scene.lines[0]["left_out"] == {}


def test_not_for_ever(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(patience=20), NAMES)
    with pytest.raises(LaunchError, match=r"node-1: no answer[^$]*waited 20 s for them"):
        scene.keep([fails(LOST, lambda: scene.down.add("node-1"))])


def test_at_the_first_start_all_hosts_must_answer_unless_fewer_will_do(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    scene = Scene(tmp_path / "a", Policy(), NAMES, down={"node-2"})
    with pytest.raises(LaunchError, match="node-2: no answer"):
        scene.keep([])
    (tmp_path / "b").mkdir()
    scene = Scene(tmp_path / "b", Policy(min_hosts=2), NAMES, down={"node-2"})
    scene.keep([])
    assert scene.starts == [("node-1", "node-3")]


def test_a_signal_to_this_process_ends_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    saved = Preempted("stopped after step 7, its state saved")
    signals: list[float] = []
    scene.supervisor.signals = signals
    with pytest.raises(Preempted):
        scene.keep([fails(saved, lambda: signals.append(1.0))])
    assert scene.starts == [()]
    assert scene.lines == []


@pytest.mark.parametrize(
    ("error", "kind"), [(LOST, Interrupted), (Preempted("state saved"), Preempted)]
)
def test_so_does_one_between_two_starts(
    tmp_path: Path, error: OnwardError, kind: type[BaseException]
) -> None:
    scene = Scene(tmp_path)

    def signalled(seconds: float) -> None:
        raise Interrupted(15, [1.0])

    scene.cures = signalled
    with pytest.raises(kind):
        scene.keep([fails(error)])
    assert scene.starts == [()]
    assert scene.lines == []


def test_ranks_that_others_stopped_are_started_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.keep([fails(Preempted("state saved"), scene.save), fails(Interrupted(15))])
    assert [line["kind"] for line in scene.lines] == ["preempted", "stopped"]


def test_impossible_numbers_of_hosts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the hostfile names 3"):
        Scene(tmp_path, Policy(min_hosts=4), NAMES).supervisor.require_possible()
    with pytest.raises(RecipeError, match="there is no --hostfile"):
        Scene(tmp_path, Policy(min_hosts=1)).supervisor.require_possible()


def test_stages_of_this_process_are_started_again_too(tmp_path: Path) -> None:
    text = {"kind": "write", "text": "break"}
    toy = Toy(name="toy", output=tmp_path / "run", seed=1, stages={"a": text})  # type: ignore[dict-item]
    told: list[str] = []
    conductor = Conductor(
        toy, Request(), Placement(processes=1), told.append, lambda *_: None, Policy(restarts=1)
    )
    with pytest.raises(KeyError):
        conductor.run()
    lines = RunFolder(tmp_path / "run").restarts.read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["crash"]
    assert sum(line.startswith("a: running") for line in told) == 2


@dataclass(frozen=True)
class Event:
    """A start that fails: how, on which host, having saved or not, and which are down then."""

    kind: str
    host: str
    is_saved: bool
    down: frozenset[str]
    batch: int

    def happen(self, scene: Scene) -> None:
        scene.down, scene.batch = set(self.down), self.batch
        if self.is_saved:
            scene.save()
        if self.kind == "kill":
            kills(scene, self.host)()
        raise self.error(scene)

    def error(self, scene: Scene) -> OnwardError:
        crash = OnwardError("x", Cause("unforeseen"))
        note_step(crash, 3)
        return {
            "crash": crash,
            "lost": LOST,
            "space": ResourceError("full", Cause("space", str(scene.folder), 1)),
            "port": LaunchError("x", Cause("port")),
            "preempted": Preempted("x"),
            "numerical": NumericalError("x"),
        }[self.kind]


EVENTS = st.builds(
    Event,
    st.sampled_from(["lost", "lost", "crash", "kill", "kill", "space", "port", "preempted"])
    | st.just("numerical"),
    st.sampled_from(NAMES),
    st.booleans(),
    st.frozensets(st.sampled_from(NAMES), max_size=2),
    st.sampled_from([2, 6]),
)


@settings(max_examples=60, deadline=None)
@given(events=st.lists(EVENTS, max_size=14), limit=st.integers(0, 4), least=st.integers(1, 3))
def test_any_row_of_failures_ends(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], limit: int, least: int
) -> None:
    scene = Scene(tmp_path_factory.mktemp("any"), Policy(limit, least, 60.0), NAMES)
    with contextlib.suppress(OnwardError):
        scene.keep([functools.partial(event.happen, scene) for event in events])
    assert len(scene.starts) <= len(events) + 1
    assert all(least <= len(hosts) <= len(NAMES) for hosts in scene.starts)
    assert len(scene.lines) == len(scene.starts) - 1
    fruitless = 0
    for event in events[: len(scene.lines)]:
        assert event.kind != "numerical"
        fruitless = 1 if event.is_saved else fruitless + 1
        assert fruitless <= limit
    assert all(seconds <= LONGEST_BACK_OFF for seconds in scene.pauses)
