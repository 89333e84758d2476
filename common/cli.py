"""How every command starts and ends: flags, exit codes and one-line errors."""

import errno
import importlib.util
import io
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from common import exits, extras, locks, paths, sections
from common.sections import UsageError

USER_ERRORS = (ValueError, OSError, FloatingPointError)

REMEDIES = {
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "is a folder; give a file",
    errno.ENOTDIR: "is below a file; give a folder",
    errno.EEXIST: "already exists and is a file; give a folder",
    errno.EACCES: "no permission; change its mode or owner, or give another path",
    errno.EPERM: "no permission; change its mode or owner, or give another path",
    errno.EROFS: "the file system is read-only; give another path",
    errno.ENOSPC: "no space left on the device; make room and rerun the same command",
    errno.EDQUOT: "the disk quota is used up; make room and rerun the same command",
}
"""What the system's file errors mean here; others keep the system's words."""

NOT_LOADED = "Configuration is not available because of an earlier failure"
"""What ml_collections says before the reason why a --config could not be loaded."""

HELP_FLAGS = frozenset({"--help", "-help", "-h", "--helpshort", "--helpfull"})


def fail(error: Exception) -> int:
    """Prints `error` on stderr in one line; returns the exit code.

    The code is the error's `exit_code`, if it has one: 2 of a wrong setting. Else it is 1, or
    `exits.TEMPORARY` where a restart may succeed.
    """
    code = exits.TEMPORARY if exits.is_temporary(error) else 1
    if isinstance(error, BrokenPipeError) and exits.reader_is_gone():
        return 1
    if isinstance(error, ModuleNotFoundError) and (text := extras.advice(error, "all")):
        pass
    elif isinstance(error, paths.outages()):
        text = f"a bucket does not respond ({error}); rerun the command once it does"
        code = exits.TEMPORARY
    elif isinstance(error, USER_ERRORS) and code == 1:
        text = error_text(error) or type(error).__name__
    else:
        text = exits.unexpected(error)
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return getattr(error, "exit_code", code)


def error_text(error: Exception) -> str:
    """The message of `error`; a file error of the system without its number, and with a remedy.

    >>> error_text(IsADirectoryError(errno.EISDIR, "Is a directory", "data"))
    'data: is a folder; give a file'
    """
    if isinstance(error, OSError) and error.errno in REMEDIES and error.filename:
        return f"{error.filename}: {REMEDIES[error.errno]}"
    if NOT_LOADED in str(error) and isinstance(error.__cause__, Exception):
        return f"--config could not be loaded: {error_text(error.__cause__).rpartition('] ')[2]}"
    return str(error)


def require_entries(*names: str) -> None:
    """Makes each of these list flags, already defined, require one or several non-empty entries.

    `--outputs=` and `--outputs=a,,b` are wrong flags then.
    """
    for name in names:
        flags.register_validator(
            name,
            lambda given: given is None or (len(given) > 0 and all(given)),
            message="must be one or several entries, separated by commas",
        )


def run(
    main: Callable[[Sequence[str]], int | None],
    *,
    config: type | None = None,
    positional: bool = False,
    output: str = "",
) -> None:
    """Runs `main(argv)` under absl flags and exits the process.

    Exit code 0: done. 1: failed, with one line on stderr that names the remedy (`--debug` shows
    the traceback instead). 2: a wrong flag, config file, key or value. 75: another process, a
    device or a bucket was lost; a restart may succeed. 130: interrupted by Ctrl-C. 143: by SIGTERM.

    Args:
      main: the command.
      config: the dataclass that --config is built into: `--help` prints its keys, and errors
        suggest them.
      positional: whether the command takes arguments that are not flags.
      output: the flag that names the file or folder that `main` makes. It is locked meanwhile,
        unless it is empty or the command has `--dry_run`.
    """
    exits.watch()
    flags.DEFINE_bool("debug", False, "Show the traceback of an error instead of one line.")
    keys = list(sections.keys(config)) if config else []

    def parse(argv: Sequence[str]) -> Sequence[str]:
        if given := config_flag(argv):  # it may import its neighbours, as `configs.common`
            path = given.partition(":")[0]
            sys.path.append(str(Path(path).resolve().parent.parent))
            if not Path(path).exists():
                print(f"error: {paths.absence(path, 'file')}", file=sys.stderr)
                sys.exit(2)
        if HELP_FLAGS & set(argv[1:]):  # before parsing, which requires the required flags
            sys.exit(guard(lambda argv: print_help(keys, argv), argv, debug=False))
        try:
            rest = flags.FLAGS(argv)
            sections.require_numbers({f"--{name}": flags.FLAGS[name].value for name in flags.FLAGS})
            if config and flags.FLAGS.config is not None:
                flags.FLAGS.config.to_dict()  # raises where the file could not be loaded
        except Exception as error:  # noqa: BLE001 - a config file may raise anything
            print(f"error: {wrong_flag(error, [key.name for key in keys])}", file=sys.stderr)
            sys.exit(2)
        if rest[1:] and not positional:
            print(
                f"error: unexpected argument {rest[1]!r}; flags are written --name=value",
                file=sys.stderr,
            )
            sys.exit(2)
        return rest

    def guarded(argv: Sequence[str]) -> int:
        if not flags.FLAGS["verbosity"].present:
            # Orbax logs failures with a traceback; they reach us as exceptions.
            logging.set_verbosity(logging.FATAL)
        return guard(locked_main, argv, flags.FLAGS.debug)

    def locked_main(argv: Sequence[str]) -> int | None:
        given = flags.FLAGS.flag_values_dict()
        if not given.get(output) or given.get("dry_run"):
            return main(argv)
        with locks.hold(given[output]):
            return main(argv)

    app.run(guarded, flags_parser=parse)


def print_help(keys: Sequence[sections.Key], argv: Sequence[str]) -> None:
    """Prints the flags of a command and the keys of its config, if it has one."""
    app.usage(writeto_stdout=True)
    if keys:
        print(config_help(keys, argv))


def config_help(keys: Sequence[sections.Key], argv: Sequence[str]) -> str:
    """The keys of the config with their comments, and the values that the given --config has."""
    given = config_flag(argv)
    values: Mapping[str, Any] = {}
    title = "Keys of the config (--help --config=FILE shows the values of a file):"
    if given:
        values = sections.flatten(load_config(given))
        title = f"Keys of the config, with the values of {given}:"
    lines = [f"\n{title}"]
    for key in keys:
        inner = {name: v for name, v in values.items() if name.startswith(f"{key.name}.")}
        shown = {key.name: values[key.name]} if key.name in values else inner
        for name, value in (shown or {key.name: ""}).items():
            lines.append(f"  --config.{name}" + (f"={value!r}" if shown else ""))
        if key.comment:
            lines.append(f"      {key.comment}")
    return "\n".join(lines)


def config_flag(argv: Sequence[str]) -> str:
    """The value of --config among the arguments; "" if it is not given.

    >>> config_flag(["x", "--config=a.py:7b", "--y=z"]), config_flag(["x", "--config", "b.py"])
    ('a.py:7b', 'b.py')
    """
    found = re.search(r"\0--?config[=\0]([^\0]+)", "\0".join(argv))
    return found[1] if found else ""


def load_config(given: str) -> dict[str, Any]:
    """The settings of a config file, `FILE.py` or `FILE.py:ARGUMENT`, as nested dicts.

    Raises:
      UsageError: the file cannot be loaded.
    """
    path, colon, argument = given.partition(":")
    spec = importlib.util.spec_from_file_location("config_file", Path(path))
    try:
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config(*([argument] if colon else [])).to_dict()
    except (ImportError, OSError, SyntaxError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"--config={given} could not be loaded: {error_text(error)}") from error


def wrong_flag(error: Exception, keys: Sequence[str] = ()) -> str:
    """What is wrong with the flags, in one line; `keys` are the dotted keys of the config.

    >>> wrong_flag(ValueError("flag --a=None: Flag --a must have a value other than None."))
    'flag --a is required. (see --help)'
    >>> wrong_flag(flags.UnrecognizedFlagError("lr", "1"), ["optimizer.learning_rate"])
    'unknown flag --lr; did you mean --config.optimizer.learning_rate?'
    >>> wrong_flag(flags.Error("Traceback of a config:\\nValueError: no system 'x'; choose y"))
    "no system 'x'; choose y (see --help)"
    """
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]  # the AttributeError of ml_collections holds the KeyError
    if isinstance(error, flags.UnrecognizedFlagError) and (
        found := sections.similar_keys(error.flagname, keys)
    ):
        return f"unknown flag --{error.flagname}; did you mean --config.{found[0]}?"
    if isinstance(error, (OSError, SyntaxError, ImportError)):
        return f"{' '.join(error_text(error).split())} (see --help)"
    text = str(error.args[0] if error.args else error).strip()
    if not isinstance(error, (flags.Error, AttributeError, LookupError, TypeError, ValueError)):
        return f"--config could not be loaded: {type(error).__name__}: {' '.join(text.split())}"
    if "has no attribute 'get_config'" in text:
        return "--config could not be loaded: the file has no function get_config"
    if "Traceback" in text:  # an error inside a config file; its last line is the message
        return f"{text.splitlines()[-1].removeprefix('ValueError: ')} (see --help)"
    if isinstance(error, KeyError) and (name := re.match(r"'([^']*)'", text)):
        found = sections.similar_keys(name[1], keys)
        return f"the config has no key {name[0]}" + (
            f"; did you mean --config.{found[0]}?" if found else " (see --help --config=FILE)"
        )
    missing = r"--(\w+)=None: Flag --\1 must have a value other than None"
    text = re.sub(missing, r"--\1 is required", text)
    return f"{' '.join(text.split())} (see --help)"


def guard(main: Callable[[Sequence[str]], int | None], argv: Sequence[str], debug: bool) -> int:
    """The exit code of `main(argv)`; every error ends in one line, unless `debug`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack characters: ↵ in ASCII
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with exits.interruptible():
            code = main(argv) or 0
            print(end="", flush=True)  # fails here, where it is one line, on a full disk
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        exits.leave_interrupted()
    except Exception as error:
        if exits.Ending.received and not isinstance(error, USER_ERRORS):
            exits.leave_interrupted()  # libraries turn KeyboardInterrupt into errors of their own
        if debug:
            raise
        code = fail(error)
        if exits.Ending.received:  # a run of datagen's client that stopped in good order
            code = 128 + exits.Ending.received
    exits.Ending.code = code
    return code
