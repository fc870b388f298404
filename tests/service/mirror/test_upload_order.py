"""The order of uploads: after every step, the run on the store can be resumed and names nothing missing."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from service.checkpoint import find_epoch, find_obsolete
from service.checkpoint_record import sort_checkpoints
from service.milestones import find_obsolete_milestones, list_milestones
from service.mirror.plan import Action, LocalFiles, RemoteFiles, Retention, Step, plan_upload

RECORD = "checkpoints/{}/checkpoint.json"
STATE = "checkpoints/{}/state.npz"
MILESTONE = "milestones/epoch-{:04d}.npz"
METRICS = "metrics.jsonl"


@dataclass
class SimulatedRun:
    """A local run directory that is written as the training does it: model, checkpoint, line of metrics.

    Attributes:
        files: Version of every file.
        states: Version of the state that every record describes.
        epochs: Lines of metrics.
        best: Name of the checkpoint of the best epoch.
    """

    keep: int
    files: dict[str, str] = field(default_factory=lambda: {"config.yaml": "c", "code/net.py": "n"})
    states: dict[str, str] = field(default_factory=dict)
    epochs: int = 0
    newest: str | None = None
    best: str = "epoch-0000"
    clock: int = 0

    def tick(self) -> str:
        self.clock += 1
        return str(self.clock)

    def save(self, name: str, is_best: bool) -> None:
        """Saves a checkpoint; at the end of an epoch also the model before it and the metrics after it."""
        is_end = "step" not in name
        if is_end and is_best:
            self.files["model.keras"] = self.tick()
            self.best = name
        self.files[STATE.format(name)] = self.tick()
        self.files[RECORD.format(name)] = self.tick()
        self.states[name] = self.files[STATE.format(name)]
        self.newest = name
        if is_end:
            self.save_milestone(find_epoch(name))
        for other in find_obsolete(list(self.states), name, self.best, self.keep):
            self.remove(other)
        if is_end:
            self.write_metrics(find_epoch(name))

    def save_milestone(self, epoch: int) -> None:
        if epoch in list_milestones(epoch):
            self.files[MILESTONE.format(epoch)] = self.tick()
        names = [name.split("/")[1] for name in self.list_milestones()]
        for name in find_obsolete_milestones(names, epoch):
            del self.files[f"milestones/{name}"]

    def list_milestones(self) -> set[str]:
        return {name for name in self.files if name.startswith("milestones/")}

    def remove(self, name: str) -> None:
        del self.files[STATE.format(name)], self.files[RECORD.format(name)], self.states[name]

    def write_metrics(self, epochs: int) -> None:
        self.epochs = epochs
        self.files[METRICS] = self.tick()
        self.files["status.json"] = self.tick()

    def resume_before(self, name: str) -> None:
        """Resumes from the newest checkpoint before a damaged one, or from the beginning."""
        ordered = sort_checkpoints(self.states)
        older = ordered[: ordered.index(name)]
        self.newest = older[-1] if older else None
        if self.best not in older:
            self.best = "epoch-0000"
        self.write_metrics(find_epoch(self.newest) if self.newest else 0)

    def describe(self) -> LocalFiles:
        retention = Retention(self.newest, self.best, self.keep) if self.newest else None
        return LocalFiles(dict(self.files), retention)


@dataclass
class SimulatedStore:
    """The objects of the run, with what they contain."""

    versions: dict[str, str | None] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    epochs: int = 0

    def apply(self, step: Step, run: SimulatedRun) -> None:
        if step.action is Action.DELETE:
            del self.versions[step.name], self.contents[step.name]
            return
        if step.action is Action.SHORTEN:
            self.epochs = step.epochs
            self.versions[step.name] = None
            return
        self.versions[step.name] = self.contents[step.name] = run.files[step.name]
        if step.name == METRICS:
            self.epochs = run.epochs
        if step.name.endswith("checkpoint.json"):
            name = step.name.split("/")[1]
            self.states[name] = run.states[name]

    def list_whole(self) -> list[str]:
        """Lists the checkpoints whose record describes the state that is there."""
        return [
            name
            for name, state in self.states.items()
            if RECORD.format(name) in self.versions and self.contents.get(STATE.format(name)) == state
        ]

    def check(self) -> None:
        whole = self.list_whole()
        assert self.epochs <= max(map(find_epoch, whole), default=0)
        described = {name.split("/")[1] for name in self.versions if name.endswith("checkpoint.json")}
        assert described == set(whole)
        if whole:
            assert "config.yaml" in self.versions
        if "config.yaml" in self.versions:
            assert "code/net.py" in self.versions
        if any(find_epoch(name) for name in whole):
            assert "model.keras" in self.versions
        newest = sort_checkpoints(whole)[-1:]
        for name in newest:
            epoch = find_epoch(name)
            if epoch in list_milestones(epoch):  # a run that is resumed from here does not save it again
                assert MILESTONE.format(epoch) in self.versions


def draw_next_name(draw: st.DrawFn, run: SimulatedRun) -> str:
    epoch = find_epoch(run.newest) if run.newest else 0
    if draw(st.booleans()):
        return f"epoch-{epoch + 1:04d}"
    previous = int(run.newest.split("step-")[1]) if run.newest and "step" in run.newest else 0
    return f"epoch-{epoch:04d}-step-{previous + 1:07d}"


@settings(max_examples=300)
@given(st.data())
def test_every_prefix_of_the_uploads_is_a_whole_run(data: st.DataObject) -> None:
    run = SimulatedRun(keep=data.draw(st.integers(1, 3), label="keep"))
    store = SimulatedStore()
    for _ in range(data.draw(st.integers(1, 12), label="events")):
        event = data.draw(st.sampled_from(("save", "save", "save", "damage", "forget", "mirror")))
        if event == "save":
            name = draw_next_name(data.draw, run)
            is_best = find_epoch(name) <= 1 or data.draw(st.booleans(), label="is best")
            run.save(name, is_best)
        elif event == "damage" and run.newest:
            run.resume_before(run.newest)
        elif event == "forget":  # the record of the uploads was lost with the process
            store.versions = dict.fromkeys(store.versions)
        steps = plan_upload(run.describe(), RemoteFiles(dict(store.versions), store.epochs))
        end = data.draw(st.integers(0, len(steps)), label="steps before a kill")
        for step in steps[:end]:
            store.apply(step, run)
            store.check()
        if end == len(steps):
            assert store.epochs == run.epochs
            assert {name: store.versions[name] for name in run.files if "epoch-" not in name} == {
                name: version for name, version in run.files.items() if "epoch-" not in name
            }
            assert not run.newest or run.newest in store.list_whole()
            if run.newest:
                epoch = find_epoch(run.newest)
                kept = {MILESTONE.format(kept) for kept in list_milestones(epoch)}
                on_store = {name for name in store.versions if name.startswith("milestones/")}
                assert on_store == run.list_milestones() & kept


def test_unchanged_files_are_not_uploaded_again() -> None:
    run = SimulatedRun(keep=2)
    run.save("epoch-0001", is_best=True)
    assert plan_upload(run.describe(), RemoteFiles(dict(run.files), 1)) == []


def test_checkpoints_that_were_never_fetched_are_removed_by_name() -> None:
    run = SimulatedRun(keep=1)
    run.save("epoch-0003", is_best=False)
    run.best = "epoch-0001"
    on_store = {RECORD.format(name): None for name in ("epoch-0001", "epoch-0002")}
    on_store |= {STATE.format(name): None for name in ("epoch-0001", "epoch-0002")}
    steps = plan_upload(run.describe(), RemoteFiles(on_store, 2))
    removals = [step.name for step in steps if step.action is Action.DELETE]
    assert removals == [RECORD.format("epoch-0002"), STATE.format("epoch-0002")]
    assert [step.name for step in steps[-2:]] == removals
