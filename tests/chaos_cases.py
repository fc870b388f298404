"""Disturbances of the command line, one function each: disturb a work, check that it still ends well."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import chaos_lab as lab
import psutil
from chaos_lab import Command, Work, World, WrongError, check_refusal, wait_for_moment
from shard_samples import encode_png

EQUAL = "equal"
REFUSED_THEN_EQUAL = "refused, then equal"
REFUSED = "refused"
ROOM = 256 * lab.MIB
LONGEST_WAIT = 2.0  # seconds before a worker that does something is killed


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case.

    Attributes:
        faults: Number of faults that were caused.
        result: `EQUAL`, `REFUSED_THEN_EQUAL` or `REFUSED`; what is wrong raises a `WrongError`.
        details: Anything else to note.
    """

    faults: int
    result: str
    details: str = ""


Case = Callable[[World, random.Random], Outcome]


def kill(world: World, chance: random.Random, work: Work, kills: int, victim: str = "driver") -> Outcome:
    """Kills a work with SIGKILL at random moments, starts it again each time, and lets it finish.

    Args:
        world: What it works on.
        chance: Source of the random choices.
        work: What is killed.
        kills: Number of kills.
        victim: `driver` for the process of the command, `worker` for one of its workers on the cluster.
    """
    out = world.prepare(work)
    reference = world.get_reference(work)
    killed = 0
    refused = 0
    for _ in range(2 * kills):
        if work.is_finished(out):
            world.check(work, out)
            lab.remove(out)
        command = world.start(work, out)
        if victim == "driver":
            killed += wait_for_moment(command, reference, chance)
            command.process.kill()
        else:
            killed += kill_worker(world, command, chance)
        code = command.wait()
        if code == 0:
            world.check(work, out)
            lab.remove(out)
            work.prepare(world, out)
        elif code != -signal.SIGKILL or victim == "worker":
            check_refusal(command, code)
            refused += 1
        if killed >= kills:
            break
    if code != 0:
        world.finish(work, out)
    return Outcome(killed, REFUSED_THEN_EQUAL if refused else EQUAL)


def kill_worker(world: World, command: Command, chance: random.Random) -> bool:
    """Kills a random worker some time after there is one; returns whether it did."""
    if not command.wait_for(world.find_workers):
        return False
    seconds = chance.uniform(0, LONGEST_WAIT)
    start = time.monotonic()
    command.wait_for(lambda: time.monotonic() >= start + seconds)
    workers = world.find_workers()
    if not workers:
        return False
    with suppress(psutil.NoSuchProcess):
        chance.choice(workers).kill()
        return True
    return False


def stop(world: World, chance: random.Random, work: Work, victim: str = "driver") -> Outcome:
    """Suspends a work with SIGSTOP, and lets it continue after some seconds."""
    out = world.prepare(work)
    command = world.start(work, out)
    stopped = 0
    if wait_for_moment(command, world.get_reference(work), chance):
        processes = [psutil.Process(command.process.pid)] if victim == "driver" else world.find_workers()
        with suppress(psutil.NoSuchProcess):
            for process in processes:
                process.suspend()
            time.sleep(chance.uniform(1, 4))
            for process in processes:
                process.resume()
            stopped = 1
    code = command.wait()
    if code != 0:
        raise WrongError(f"exit {code}:\n{command.output[-3000:]}")
    world.check(work, out)
    lab.remove(out)
    return Outcome(stopped, EQUAL)


@contextmanager
def mount_disk(world: World) -> Iterator[Path]:
    """Mounts a disk in memory for the length of a block."""
    disk = world.scratch / "disk"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def resize_disk(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def fill(world: World, chance: random.Random, work: Work) -> Outcome:
    """Lets the disk be full after a random share of the output, then makes room and starts again."""
    reference = world.get_reference(work)
    with mount_disk(world) as disk:
        out = world.prepare(work, disk)
        used = shutil.disk_usage(disk).used
        room = int(reference.size * chance.uniform(0.0, 0.95))
        resize_disk(disk, max(used + room, 4096))
        command = world.start(work, out)
        code = command.wait()
        if code == 0:
            world.check(work, out)
        else:
            check_refusal(command, code)
            if "No space left on device" not in command.output:
                raise WrongError(f"the reason is not named:\n{command.output}")
        resize_disk(disk, ROOM)
        world.finish(work, out)
    return Outcome(1, REFUSED_THEN_EQUAL if code else EQUAL)


def slow_down(world: World, chance: random.Random, work: Work) -> Outcome:
    """Delays every write of a work, kills it once, and lets it finish on the slow disk."""
    delay = chance.choice((1000, 5000, 20000))
    out = world.prepare(work)
    command = world.start(work, out, delay=delay)
    killed = wait_for_moment(command, world.get_reference(work), chance)
    command.process.kill()
    if command.wait() == 0:
        world.check(work, out)
        lab.remove(out)
        work.prepare(world, out)
    if not work.is_finished(out):
        command = world.start(work, out, delay=delay)
        code = command.wait()
        if code != 0:
            raise WrongError(f"exit {code}:\n{command.output[-3000:]}")
    world.check(work, out)
    lab.remove(out)
    return Outcome(1 + killed, EQUAL, f"{delay} us")


def jump(world: World, chance: random.Random, work: Work) -> Outcome:
    """Lets the clock of a work jump at a random moment."""
    seconds = chance.choice((-1, 1)) * chance.choice((90, 3600, 86400, 400 * 86400))
    out = world.prepare(work)
    after = chance.uniform(0, world.get_reference(work).wall)
    command = world.start(work, out, jump_after=after, jump_by=seconds)
    code = command.wait()
    if code != 0:
        raise WrongError(f"jump of {seconds} s, exit {code}:\n{command.output[-3000:]}")
    world.check(work, out)
    lab.remove(out)
    return Outcome(1, EQUAL, f"{seconds} s")


def start_two(world: World, chance: random.Random, work: Work, jump_by: int = 0) -> Outcome:
    """Starts a work twice with the same output; the clock of the second may be wrong."""
    out = world.prepare(work)
    first = world.start(work, out)
    start = time.monotonic()
    wait = chance.uniform(0, world.get_reference(work).wall / 2)
    first.wait_for(lambda: time.monotonic() >= start + wait)
    second = world.start(work, out, jump_by=jump_by)
    refused = 0
    for command in (first, second):
        code = command.wait()
        if code != 0:
            check_refusal(command, code)
            refused += 1
    if refused == 2:
        raise WrongError(f"none of the two finished:\n{first.output}\n---\n{second.output}")
    world.check(work, out)
    lab.remove(out)
    return Outcome(1, EQUAL, "one refused" if refused else "both finished")


def change_source(world: World, chance: random.Random, change: str) -> Outcome:
    """Changes a file of the source while a shard set is built; then builds it again.

    The result is the shard set of the files as they were before, or as they are afterwards.
    """
    photos = world.scratch / "changing" / world.photos.name
    shutil.copytree(world.photos, photos)
    words = partial(build_from, photos=photos)
    work = Work("", words, lab.observe_shards, is_finished=lab.is_built, has_cluster=True)
    before = build_undisturbed(world, work)  # the manifest names the folder, so this is not that of all cases
    out = world.choose_output(work)
    command = world.start(work, out)
    wait_for_moment(command, world.get_reference(lab.BUILD), chance)
    path = chance.choice(sorted(photos.rglob("*.png")))
    CHANGES[change](path)
    code = command.wait()
    expected = build_undisturbed(world, work)
    result = EQUAL
    if code == 0:
        observed = lab.observe_shards(out)
        if observed not in (before, expected):
            difference = lab.describe_difference(before, observed)
            rejected = (out / "rejected.jsonl").read_text()
            raise WrongError(
                f"the shard set is neither that before nor after the change:\n{difference}\n{rejected}"
            )
    else:
        check_refusal(command, code)
        result = REFUSED_THEN_EQUAL
        last = world.start(work, out)
        code = last.wait()
        if code != 0:  # what the first start left is of another source: the fix is to remove it
            check_refusal(last, code)
            lab.remove(out)
            last = world.start(work, out)
            code = last.wait()
        if code != 0:
            raise WrongError(f"after a refusal:\n{last.output}")
        if lab.observe_shards(out) != expected:
            raise WrongError("after a refusal, the shard set is not that of the source")
    return Outcome(1, result)


def build_undisturbed(world: World, work: Work) -> object:
    """Builds a shard set and returns what it is compared by."""
    out = world.choose_output(work)
    command = world.start(work, out)
    if command.wait() != 0:
        raise WrongError(f"the source cannot be built:\n{command.output}")
    return work.observe(out)


def build_from(world: World, out: Path, photos: Path) -> list[object]:
    return ["shards", "build", f"folder:{photos}", out, "--shard-rows", "10"]


def truncate_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def replace_file(path: Path) -> None:
    import numpy as np

    path.write_bytes(encode_png(np.full((12, 12, 3), 200, np.uint8)))


def add_file(path: Path) -> None:
    shutil.copyfile(path, path.with_name("added.png"))


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    shutil.copytree(path.parent.with_name("moved"), path.parent)


CHANGES: dict[str, Callable[[Path], None]] = {
    "vanishes": Path.unlink,
    "is truncated": truncate_file,
    "is replaced": replace_file,
    "is added": add_file,
    "moves with its folder": move_folder,
}


def build_many(world: World, chance: random.Random, files: int) -> Outcome:
    """Builds a shard set of very many files, once undisturbed and once with a kill."""
    photos = world.scratch / "many" / "photos"
    for folder in sorted(world.photos.iterdir()):
        images = sorted(folder.iterdir())
        (photos / folder.name).mkdir(parents=True)
        for number in range(files // 2):
            os.link(images[number % len(images)], photos / folder.name / f"{number}.png")
    outs = [world.choose_output(lab.BUILD) for _ in range(2)]
    commands = []
    for out in outs:
        words = ["shards", "build", f"folder:{photos}", str(out), "--check", "header", "--shard-rows", "2500"]
        commands.append(partial(world.start_words, words, out, has_cluster=True))
    first = commands[0]()
    start = time.monotonic()
    if first.wait() != 0:
        raise WrongError(first.output[-3000:])
    wall = time.monotonic() - start
    expected = lab.observe_shards(outs[0])
    second = commands[1]()
    start = time.monotonic()
    seconds = chance.uniform(0.2, 0.9) * wall
    killed = second.wait_for(lambda: time.monotonic() >= start + seconds)
    second.process.kill()
    if second.wait() != 0 and not lab.is_built(outs[1]):
        last = commands[1]()
        if last.wait() != 0:
            raise WrongError(last.output[-3000:])
    if lab.observe_shards(outs[1]) != expected:
        raise WrongError("the shard sets differ")
    for path in (*outs, photos.parent):
        lab.remove(path)
    return Outcome(int(killed), EQUAL, f"{files} files")


def run_as_nobody(world: World, chance: random.Random, work: Work, closed: str, mode: int) -> Outcome:
    """Does a work as another user, with something closed to that user.

    Args:
        world: What it works on.
        chance: Not used: there is nothing to choose.
        work: What is done.
        closed: What is closed: `output` for the folder of the output, else the name of an input.
        mode: Its permissions.
    """
    folder = world.scratch / "foreign"
    own = world.scratch / "own"
    folder.mkdir()
    own.mkdir()
    inputs = {}
    for name in ("photos", "shards", "run"):
        shutil.copytree(getattr(world, name), folder / name)
        inputs[name] = folder / name
    foreign = Foreign(world, inputs["photos"], inputs["shards"], inputs["run"])
    out = folder / "run" if work is lab.REPORT else world.choose_output(work, own)
    written = out if work is lab.REPORT else own
    if closed == "output":
        target = written
        os.chown(target, 0, 0)
    else:
        target = folder / closed
        os.chown(written, lab.NOBODY, lab.NOBODY)
    target.chmod(mode)
    before = lab.hash_tree(folder)
    words = [str(word) for word in work.words(foreign, out)]  # type: ignore[arg-type]
    command = world.start_words(words, out, user=lab.NOBODY)
    code = command.wait()
    if not before.items() <= lab.hash_tree(folder).items():
        raise WrongError("what the user could not write has changed")
    if code != 0:
        check_refusal(command, code)
        if out.exists() and closed != "output" and work not in (lab.TRAIN, lab.REPORT):
            raise WrongError(f"left behind: {sorted(map(str, out.rglob('*')))[:5]}")
        return Outcome(1, REFUSED)
    if work in (lab.PREDICT, lab.TRAIN):
        world.check(work, out)
    return Outcome(1, EQUAL)


@dataclass
class Foreign:
    """A world whose inputs are others."""

    world: World
    photos: Path
    shards: Path
    run: Path

    def __getattr__(self, name: str) -> object:
        return getattr(self.world, name)


CLOSED: list[tuple[Work, str, int]] = [
    (lab.BUILD, "output", 0o555),
    (lab.BUILD, "photos", 0o000),
    (lab.BUILD, "photos/class1", 0o000),
    (lab.BUILD, "photos/class1/003.png", 0o000),
    (lab.TRAIN, "output", 0o555),
    (lab.TRAIN, "shards", 0o555),
    (lab.TRAIN, "shards", 0o000),
    (lab.TRAIN, "shards/train-00001-of-00010.arrow", 0o000),
    (lab.PREDICT, "output", 0o555),
    (lab.PREDICT, "run", 0o555),
    (lab.PREDICT, "run", 0o000),
    (lab.PREDICT, "run/model.keras", 0o000),
    (lab.PREDICT, "photos", 0o000),
    (lab.PREDICT, "photos/class0", 0o000),
    (lab.REPORT, "output", 0o555),
    (lab.REPORT, "run/model.keras", 0o000),
    (lab.REPORT, "run/checkpoints", 0o000),
    (lab.TUNE, "output", 0o555),
    (lab.TUNE, "shards", 0o000),
]


@dataclass(frozen=True)
class NamedCase:
    """A case of the campaign.

    Attributes:
        kind: Row of the table.
        name: Its name in the log.
        run: Runs it.
    """

    kind: str
    name: str
    run: Case


def list_cases() -> list[NamedCase]:
    """Lists all cases; the kinds take turns, so that an aborted campaign has seen each kind."""
    groups = [list(group) for group in list_groups()]
    longest = max(map(len, groups))
    return [group[index] for index in range(longest) for group in groups if index < len(group)]


def list_groups() -> Iterator[Iterator[NamedCase]]:
    """Yields the cases of each group."""
    for kind, work, times, kills, victim in (
        ("kill -9 of the builder", lab.BUILD, 6, 3, "driver"),
        ("kill -9 of a local training", lab.TRAIN, 6, 3, "driver"),
        ("kill -9 of a report", lab.REPORT, 4, 3, "driver"),
        ("kill -9 of a prediction", lab.PREDICT, 3, 3, "driver"),
        ("kill -9 of a build worker", lab.BUILD, 3, 1, "worker"),
        ("kill -9 of a training driver on Ray", lab.TRAIN_ON_RAY, 2, 1, "driver"),
        ("kill -9 of a training worker", lab.TRAIN_ON_RAY, 2, 2, "worker"),
        ("kill -9 of the tuner", lab.TUNE, 2, 1, "driver"),
        ("kill -9 of a trial", lab.TUNE, 1, 1, "worker"),
        ("kill -9 of a report job", lab.REPORTS, 2, 1, "driver"),
        ("kill -9 of a report worker", lab.REPORTS, 1, 1, "worker"),
    ):
        yield repeat(kind, times, partial(kill, work=work, kills=kills, victim=victim))
    for work in (lab.BUILD, lab.TRAIN, lab.REPORT, lab.PREDICT):
        yield repeat(f"SIGSTOP: {work.name}", 2, partial(stop, work=work))
    for work in (lab.TRAIN_ON_RAY, lab.TUNE):
        yield repeat(f"SIGSTOP of the workers: {work.name}", 1, partial(stop, work=work, victim="worker"))
    for work, times in ((lab.BUILD, 3), (lab.TRAIN, 4), (lab.REPORT, 3), (lab.PREDICT, 3), (lab.TUNE, 2)):
        yield repeat(f"a full disk: {work.name}", times, partial(fill, work=work))
    for work in (lab.BUILD, lab.TRAIN, lab.REPORT, lab.PREDICT):
        yield repeat(f"a slow disk and a kill: {work.name}", 1, partial(slow_down, work=work))
    for work, times in ((lab.BUILD, 1), (lab.TRAIN, 3), (lab.REPORT, 2), (lab.PREDICT, 1), (lab.TUNE, 1)):
        yield repeat(f"a clock jump: {work.name}", times, partial(jump, work=work))
    for work, times in ((lab.BUILD, 2), (lab.TRAIN, 2), (lab.REPORT, 2), (lab.PREDICT, 1), (lab.TUNE, 1)):
        yield repeat(f"two at once: {work.name}", times, partial(start_two, work=work))
    yield repeat("two at once: report --all", 1, partial(start_two, work=lab.REPORTS))
    ahead = partial(start_two, work=lab.REPORT, jump_by=86400)
    yield repeat("two at once, one a day ahead: report", 1, ahead)
    for change in CHANGES:
        yield repeat(f"a file {change} during a build", 1, partial(change_source, change=change))
    yield repeat("50,000 files and a kill", 1, partial(build_many, files=50_000))
    for work, closed, mode in CLOSED:
        case = partial(run_as_nobody, work=work, closed=closed, mode=mode)
        yield iter([NamedCase("another user", f"another user: {work.name}, {closed} {mode:03o}", case)])


def repeat(kind: str, times: int, case: Case) -> Iterator[NamedCase]:
    """Yields a case several times, under numbered names."""
    for number in range(1, times + 1):
        yield NamedCase(kind, f"{kind} {number}", case)
