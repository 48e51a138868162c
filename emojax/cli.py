"""The command line: finds the verb, merges settings file and flags, calls the verb, turns refusals into one line.

Exit codes: 0 done, 2 wrong usage or input (one line on stderr), 1 a bug (with its traceback), 3 another process of the
job was lost, 130 interrupted.
"""

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import Field, ValidationError

from emojax import hosts
from emojax.config import Reason, Section, Settings, UserPath, explain, read_settings, verb_model
from emojax.errors import InputError, did_you_mean, of_the_disk, one_line

# What a first argument without dashes is short for.
_POSITIONAL = {"concepts": "--concepts.path", "report": "--run", "compare": "--runs"}
# Flags that a verb may be given without their section.
_SHORT = {
    ("train", "--task"): "--train.task",
    ("report", "--images"): "--report.images",
    ("run", "--images"): "--report.images",
}


class Verb(NamedTuple):
    """A command: what it is for, and the settings it takes."""

    about: str
    model: type[Section]


def _out(verb: str) -> tuple[type, Any]:
    return (UserPath, Field(Path("runs") / verb, description="run folder to write"))


def _verb(name: str, about: str, *sections: str, **extra: tuple[Any, Any]) -> tuple[str, Verb]:
    return name, Verb(about, verb_model(name, sections, out=_out(name), **extra))


_CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_PROBING = ("data", "target", "clip", "probe", "cache")
_DISSECTING = (*_PROBING, "concepts", "dissect")
_RECORD = (Path | None, Field(None, description="record folder of a probe run to score, instead of data and network"))
VERBS = dict(
    [
        _verb(
            "demo",
            "the main job offline, on rendered faces with small trained networks; labels against the truth",
            "cache",
            "report",
            images=(int, Field(3000, ge=200, description="faces to probe with; half as many per test split")),
        ),
        _verb(
            "prepare",
            "build FER2013 from fer2013.csv or the image folder",
            source=(Path | None, Field(None, description="fer2013.csv, or the folder with train/ and test/")),
        ),
        _verb(
            "audit",
            "find blank, placeholder, repeated, leaked and unreadable images, in raw FER2013 too",
            "data",
            reasons=(
                tuple[Reason, ...],
                Field(get_args(Reason), description="what to look for", min_length=1),
            ),
            near=(int, Field(12, ge=0, le=24, description="bits of 120 by which near duplicates may differ")),
            exclude=(bool, Field(False, description="also write exclude.csv, for --data.exclude of the other verbs")),
            sheet=(bool, Field(False, description="also write sheet.png, the images found, to look at")),
        ),
        _verb(
            "concepts",
            "review a concept set (emojax concepts FILE), ask a language model for one, import its answer",
            "concepts",
            "clip",
            classes=(
                tuple[str, ...],
                Field(_CLASSES, description="class names that concepts are compared with", min_length=1),
            ),
            synonym=(float, Field(0.95, description="text cosine from which two concepts are near-synonyms")),
            prompt=(bool, Field(False, description="print what to ask a language model, and do nothing else")),
            answer=(Path | None, Field(None, description="a language model's answer to import as a concept file")),
        ),
        _verb(
            "train",
            "train a VGGNet, a Deep-Emotion or a CompactNet on labelled images, or a small CLIP on rendered faces",
            "data",
            "train",
            "evaluate",
            "cache",
        ),
        _verb(
            "evaluate",
            "test a network: accuracy, recall per class, NLL, confusion",
            "data",
            "target",
            "evaluate",
            copies_of=(
                str | None,
                Field(None, description="test also without the images that occur in this split, pixel for pixel"),
            ),
        ),
        _verb("probe", "run network and CLIP over the probe set once, keep the statistics", *_PROBING),
        _verb("dissect", "label every unit of every layer; the paper's Table 1", *_DISSECTING, record=_RECORD),
        _verb("sweep", "edit by labels: every tau with every factor, tested", *_DISSECTING, "edit", "evaluate"),
        _verb("run", "all of it: probe, dissect, edit by labels, evaluate", *_DISSECTING, "edit", "evaluate", "report"),
        (
            "report",
            Verb(
                "write a run's page and figures (emojax report RUN)",
                verb_model(
                    "report",
                    ("report",),
                    run=(UserPath | None, Field(None, description="run folder")),
                    audit=(UserPath | None, Field(None, description="audit.csv whose flagged images to show")),
                ),
            ),
        ),
        _verb(
            "compare",
            "two or more runs side by side (emojax compare RUN RUN)",
            runs=(tuple[UserPath, ...], Field((), description="run folders; the first is what others are held against")),
        ),
    ]
)


def overview() -> str:
    """What `emojax --help` prints."""
    lines = [
        "emojax: which facial-expression concept each hidden unit stands for, and what editing by those labels does",
        "",
        "usage: emojax <verb> [--config FILE] [--section.field VALUE ...]",
        "",
        *(f"  {name:<10} {verb.about}" for name, verb in VERBS.items()),
        "",
        "emojax <verb> --help lists its settings with their defaults. --config FILE takes them from YAML (see configs/).",
        "Several processes as one (docs/scale.md): --coordinator HOST:PORT --processes N --index I, or --coordinator auto.",
    ]
    return "\n".join(lines)


def _take_out(args: Sequence[str], flags: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Takes `--flag VALUE` and `--flag=VALUE` out of the arguments."""
    rest, found, waiting = [], {}, None
    for arg in args:
        name, equals, value = arg.partition("=")
        if waiting is not None:
            found[waiting], waiting = arg, None
        elif name in flags and equals:
            found[name] = value
        elif arg in flags:
            waiting = arg
        else:
            rest.append(arg)
    if waiting is not None:
        raise InputError(f"{waiting} needs a {'file' if waiting == '--config' else 'value'}")
    return found, rest


def parse_job(args: Sequence[str]) -> tuple[hosts.Job | None, list[str]]:
    """Which process of which job this is, and the other arguments.

    Raises:
      InputError: part of it is missing or makes no sense.
    """
    found, rest = _take_out(args, ("--coordinator", "--processes", "--index"))
    if not found:
        return None, rest
    coordinator = found.pop("--coordinator", None)
    if coordinator == "auto" and not found:
        return hosts.Job("auto"), rest
    if coordinator in (None, "auto") or len(found) != 2:
        raise InputError("a job needs --coordinator HOST:PORT --processes N --index I, or --coordinator auto alone")
    for flag, value in found.items():
        if not value.isdecimal():
            raise InputError(f"{flag} is {value!r}, not a number")
    job = hosts.Job(coordinator, int(found["--processes"]), int(found["--index"]))
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--coordinator is {coordinator!r}, not HOST:PORT or auto")
    if job.index >= job.processes:
        raise InputError(f"--index {job.index} is not below --processes {job.processes}; the first process is 0")
    return job, rest


def parse(verb: str, args: Sequence[str]) -> Section:
    """Settings of a verb: defaults, then the settings file, then flags.

    Raises:
      InputError: a name or value is refused, in the file or on the command line.
    """
    import tyro

    model = VERBS[verb].model
    found, rest = _take_out(args, ("--config",))
    path = Path(found["--config"]) if found else None
    if rest and not rest[0].startswith("-") and verb in _POSITIONAL:
        rest = [_POSITIONAL[verb], *rest]
    rest = [_SHORT.get((verb, flag), flag) + equals + value for flag, equals, value in (arg.partition("=") for arg in rest)]
    settings = Settings() if path is None else read_settings(path)
    own = {name: getattr(settings, name) for name in model.model_fields if name in Settings.model_fields}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                model,
                args=rest,
                default=model(**own),
                prog=f"emojax {verb}",
                description=f"{VERBS[verb].about}. --config FILE takes settings from YAML.",
            )
    except ValidationError as error:
        raise InputError(explain(error, model)) from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(_one_line(complaint.getvalue())) from None


def _one_line(boxed: str) -> str:
    """The message in tyro's framed, wrapped complaint, without frame, help text and pydantic's link."""
    text = re.sub(r"[─│╭╮╰╯]+|-{5,}", " ", boxed.partition("\n")[2])
    text = re.split(r"For full helptext|Argument helptext", text)[0]
    text = re.sub(r"\[type=.*?\]|For further information visit\s+\S+|\d+ validation errors? for \w+", " ", text, flags=re.S)
    return " ".join(text.split()) or " ".join(boxed.split())


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] == "--version":
        from emojax.store import versions

        print(f"emojax {versions().get('emojax', 'not installed')}")
        return 0
    job, name = None, "emojax: "
    try:
        verb = args[0]
        if verb not in VERBS:
            raise InputError(f"no verb {verb!r}{did_you_mean(verb, VERBS)}")
        job, rest = parse_job(args[1:])
        if job is not None and job.index is not None:
            name += f"process {job.index}: "
        _run(verb, parse(verb, rest), job)
        return 0
    except InputError as error:
        code = _complain(f"{name}{one_line(error)}", 2)
    except hosts.PeerLost as lost:
        code = _complain(f"{name}{lost}", hosts.LOST)
    except KeyboardInterrupt:
        code = _complain(f"{name}interrupted; nothing half-written was kept", 130)
    except Exception as error:
        if isinstance(error, OSError) and of_the_disk(error) is not None:
            code = _complain(f"{name}{one_line(OSError(of_the_disk(error)))}", 2)
        elif job is None:
            raise
        else:
            traceback.print_exc()
            code = 1
    if job is not None:
        hosts.leave(code)
    return code


def _complain(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _run(verb: str, settings: Section, job: hosts.Job | None) -> None:
    from emojax import mesh  # jax and the engine load only once the settings have been read

    mesh.use_all_cores()
    with hosts.joined(job), contextlib.ExitStack() as quiet:
        if job is not None:
            hosts.check_same([verb, settings.model_dump(mode="json")], "settings")
            if not hosts.is_first():
                quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        _function(verb)(settings)


def _function(verb: str) -> Callable[[Section], None]:
    from emojax import verbs

    return getattr(verbs, verb)
