"""The command line: finds the command, merges settings file and flags, calls it, refuses in one
line.

Exit codes: 0 done, 2 wrong usage or input (one line on stderr), 1 a bug (with its traceback), 3
another process of the job was lost, 128 and the signal's number when interrupted (130 for Ctrl-C,
143 for SIGTERM, 129 for SIGHUP).
"""

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emojax import interruption
from emojax.commands import (
    audit,
    compare,
    concepts,
    demo,
    dissect,
    evaluate,
    explain,
    judge,
    labels,
    plan,
    predict,
    prepare,
    probe,
    report,
    run,
    shortcuts,
    sweep,
    train,
)
from emojax.commands.base import Command, WritesRun
from emojax.data.torch_apart import import_transformers
from emojax.distributed import processes
from emojax.errors import InputError, did_you_mean, of_the_disk, one_line, printable, short
from emojax.section import Section, user_path
from emojax.settings import Settings, paths_in, read_settings
from emojax.settings import explain as explain_refusal

COMMANDS = {
    module.COMMAND.name: module.COMMAND
    for module in (
        demo,
        prepare,
        audit,
        concepts,
        train,
        evaluate,
        predict,
        probe,
        dissect,
        labels,
        explain,
        judge,
        sweep,
        shortcuts,
        run,
        report,
        compare,
        plan,
    )
}


def overview() -> str:
    """What `emojax --help` prints."""
    lines = [
        "emojax: which facial-expression concept each hidden unit stands for, and what editing by "
        "those labels does",
        "",
        "usage: emojax <command> [--config FILE] [--section.field VALUE ...]",
        "",
        *(f"  {name:<10} {command.purpose}" for name, command in COMMANDS.items()),
        "",
        "emojax <command> --help lists its settings with their defaults. --config FILE takes them "
        "from YAML; --config paper and other files of configs/ go by name.",
        "Several processes as one (docs/scale.md): --coordinator HOST:PORT --processes N --index "
        "I, or --coordinator auto.",
    ]
    return "\n".join(lines)


def _take_out(args: Sequence[str], flags: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Takes `--flag VALUE` and `--flag=VALUE` out of the arguments.

    Raises:
      InputError: a flag has no value, or stands twice.
    """
    rest = []
    values = {}
    waiting = None
    for arg in args:
        name, equals, value = arg.partition("=")
        if waiting is not None:
            values[waiting] = arg
            waiting = None
        elif name in values:
            raise InputError(f"{name} is given twice; give it once")
        elif name in flags and equals:
            values[name] = value
        elif arg in flags:
            waiting = arg
        else:
            rest.append(arg)
    if waiting is not None:
        raise InputError(f"{waiting} needs a {'file' if waiting == '--config' else 'value'}")
    return values, rest


def parse_job(args: Sequence[str]) -> tuple[processes.Job | None, list[str]]:
    """Which process of which job this is, and the other arguments.

    Raises:
      InputError: part of it is missing or makes no sense.
    """
    values, rest = _take_out(args, ("--coordinator", "--processes", "--index"))
    if not values:
        return None, rest
    coordinator = values.pop("--coordinator", None)
    if coordinator == "auto" and not values:
        return processes.Job("auto"), rest
    if coordinator in (None, "auto") or len(values) != 2:
        raise InputError(
            "a job needs --coordinator HOST:PORT --processes N --index I, or --coordinator auto "
            "alone"
        )
    for flag, value in values.items():
        if not (value.isascii() and value.isdecimal() and len(value) <= 5):
            raise InputError(f"{flag} is {value[:20]!r}, not a number below 100000")
    count = int(values["--processes"])
    index = int(values["--index"])
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise InputError(f"--coordinator is {short(coordinator)}, not HOST:PORT or auto")
    if index >= count:
        raise InputError(f"--index {index} is not below --processes {count}; the main process is 0")
    return processes.Job(coordinator, count, index), rest


def parse(command: Command, args: Sequence[str]) -> Section:
    """Settings of a command: defaults, then the settings file, then flags.

    Raises:
      InputError: a name or value is refused, in the file or on the command line.
    """
    import tyro

    values, rest = _take_out(args, ("--config",))
    if rest and not rest[0].startswith("-") and command.positional is not None:
        rest = [command.positional, *rest]
    rest = [_full_flag(command, argument) for argument in rest]
    default = command.settings(**_from_file(command, values.get("--config")))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                command.settings,
                args=rest,
                default=default,
                prog=f"emojax {command.name}",
                description=f"{command.purpose}. --config FILE takes settings from YAML.",
            )
    except ValidationError as error:
        raise InputError(explain_refusal(error, command.settings)) from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(_one_line(complaint.getvalue())) from None


def _full_flag(command: Command, argument: str) -> str:
    """A flag that was given without its section, with it; any other argument as it is."""
    flag, equals, value = argument.partition("=")
    return command.short.get(flag, flag) + equals + value


def _from_file(command: Command, path: str | None) -> dict[str, Any]:
    """The sections of a settings file that the command takes."""
    if path is None:
        return {}
    settings = read_settings(Path(path))
    known = command.settings.model_fields.keys() & Settings.model_fields.keys()
    return {name: getattr(settings, name) for name in known}


def _one_line(boxed: str) -> str:
    """The message in tyro's framed, wrapped complaint, without frame, help text and pydantic's
    link.
    """
    text = re.sub(r"[─│╭╮╰╯]+|-{5,}", " ", boxed.partition("\n")[2])
    text = re.split(r"For full helptext|Argument helptext", text)[0]
    text = re.sub(
        r"\[type=.*?\]|For further information visit\s+\S+|\d+ validation errors? for \w+",
        " ",
        text,
        flags=re.S,
    )
    return " ".join(text.split()) or " ".join(boxed.split())


def main(args: Sequence[str] | None = None, *, alone: bool = False) -> int:
    """Runs a command line; returns the exit code. `alone`: nothing else is done in this process.

    Signals end the work in order, and printing cannot fail.
    """
    with interruption.safe_streams(), interruption.listening():
        args = list(sys.argv[1:] if args is None else args)
        if not args or args[0] in ("-h", "--help"):
            print(overview())
            return 0
        if args[0] == "--version":
            from emojax.store import versions

            print(f"emojax {versions().get('emojax', 'not installed')}")
            return 0
        return _run_line(args, alone)


def _run_line(args: Sequence[str], alone: bool) -> int:
    """Runs `<command> [flags]`; what goes wrong becomes one line on stderr and an exit code."""
    job, name = None, "emojax: "
    try:
        if args[0] not in COMMANDS:
            raise InputError(f"no command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        command = COMMANDS[args[0]]
        _check_working_folder()
        job, rest = parse_job(args[1:])
        if job is not None and job.index is not None:
            name += f"process {job.index}: "
        settings = parse(command, rest)
        if alone and (hasattr(settings, "clip") or args[0] == "demo"):
            import_transformers()
        _run(command, settings, job, _take_out(rest, ("--config",))[0].get("--config"))
        interruption.check_interrupted()
        return 0
    except BaseException as error:
        outcome = _outcome_of(error)
        if outcome is not None:
            message, code = outcome
            notes = getattr(error, "__notes__", ())  # added on the error's way up
            print(printable(name + "; ".join([message, *notes])), file=sys.stderr)
        elif not isinstance(error, Exception):  # --help ends by SystemExit
            raise
        else:
            _tell_bug(error, args)
            code = 1
    if job is not None:
        processes.leave(code)
    return code


def _tell_bug(error: Exception, args: Sequence[str]) -> None:
    """Prints the traceback of an error that nobody expected, and what to report with it."""
    import platform
    import shlex

    from emojax.store import versions

    # It may quote what a file holds, which a terminal must not obey.
    print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    about = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(
        "emojax: this is a bug; please report it with the lines above and these:\n"
        f"  command: {printable(shlex.join(['emojax', *args]))}\n"
        f"  versions: python {platform.python_version()}, {about}",
        file=sys.stderr,
    )


def _check_working_folder() -> None:
    """Raises InputError when the folder that the process works in is gone."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(
            f"the working folder cannot be found ({error.strerror}); change to one that exists"
        ) from None


def _outcome_of(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code for an error that is no bug; None for a bug."""
    if isinstance(error, InputError):
        return one_line(error), 2
    if isinstance(error, processes.PeerLost):
        return str(error), processes.LOST
    # An error after a signal is its consequence, for instance of an import that it broke.
    if isinstance(error, KeyboardInterrupt) or interruption.was_interrupted():
        return "interrupted; nothing half-written was kept", interruption.exit_code()
    line = _of_the_machine(error)
    return None if line is None else (one_line(line), 2)


def _of_the_machine(error: BaseException) -> str | None:
    """The line for an error that is the machine's, of its disk or memory; None for any other."""
    if isinstance(error, OSError):
        return of_the_disk(error)
    text = str(error)
    if isinstance(error, MemoryError) or text.startswith("RESOURCE_EXHAUSTED"):
        cure = "lower --probe.tile or the batch, take fewer images, or use a larger machine"
        return f"out of memory ({short(text, 200)}); {cure}"
    return None


def _run(
    command: Command, settings: Section, job: processes.Job | None, config: str | None
) -> None:
    from emojax.commands import console  # jax and the library load only once the settings are read
    from emojax.distributed import mesh

    _check_places(settings)
    mesh.use_all_cores()
    cache: Path | None = getattr(settings, "cache", None)
    if cache is not None:
        mesh.keep_programs(cache / "programs")
    with processes.joined(job), console.log_shown(), contextlib.ExitStack() as quiet:
        mesh.check_platforms()
        interruption.listen()  # anew: JAX's service for a job's processes takes SIGTERM for itself
        if job is not None:
            told = [command.name, settings.model_dump(mode="json")]
            processes.check_same_everywhere(told, "settings")
            if not processes.is_main_process():
                nowhere = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
                quiet.enter_context(contextlib.redirect_stdout(nowhere))
        if isinstance(settings, WritesRun) and processes.is_main_process():
            _check_out(settings, config)
        command.run(settings)


def _check_places(settings: Section) -> None:
    """Refuses, before any is opened, places that are neither a file nor a folder.

    Raises:
      InputError: a setting names a pipe, socket or device, which may never end; or `~` or `~name`
        where there is no such home, as for a user without a name, and no file has that name itself.
    """
    for flag, path in paths_in(settings):
        there = path.exists()
        if there and not path.is_file() and not path.is_dir():
            raise InputError(f"{flag} {path} is a pipe, socket or device, not a file or folder")
        if not there and str(user_path(path)).startswith("~"):
            raise InputError(
                f"{flag} {path}: there is no such home folder; write the whole path, or set HOME"
            )


def _check_out(settings: WritesRun, config: str | None) -> None:
    """Refuses, before any work, to put a run where something would be lost.

    Raises:
      InputError: `--out` touches an input or the cache, or holds what may not be replaced.
    """
    from emojax import outputs

    if isinstance(settings, concepts.ConceptsSettings) and settings.prompt:
        return  # a prompt is printed, nothing is written
    named = [(flag, path) for flag, path in paths_in(settings) if flag not in ("--out", "--cache")]
    if config is not None:
        named.append(("--config", Path(config)))
    outputs.check_inputs(settings.out, named, getattr(settings, "cache", None))
    outputs.check_out(settings.out, overwrite=settings.overwrite)
