"""How every command of this package starts and ends: exit codes and one-line errors."""

import sys
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags, logging

from contract import paths

USER_ERRORS = (ValueError, OSError, FloatingPointError)


def fail(error: Exception) -> int:
    """Prints `error` on stderr in one line and returns exit code 1."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, paths.outages()):
        text = f"a bucket does not answer ({text}); once it does, the same command goes on"
    print(f"error: {text}", file=sys.stderr)
    return 1


def told(counts: Mapping[str, int]) -> str:
    """Counts in one line.

    >>> told({"near-duplicate": 1200, "blacklisted": 3, "too long": 0}), told({})
    ('1,200 near-duplicate, 3 blacklisted', 'none')
    """
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "none"


def require_entries(*names: str) -> None:
    """The flags of these names, lists that are defined already, need entries, none of them empty.

    `--outputs=` and `--outputs=a,,b` are wrong flags then.
    """
    for name in names:
        flags.register_validator(
            name,
            lambda given: given is None or (len(given) > 0 and all(given)),
            message="must be one or several, with commas between them",
        )


def run(main: Callable[[Sequence[str]], int | None], *, positional: bool = False) -> None:
    """Runs `main(argv)` under absl flags and exits the process.

    Only a command that is `positional` takes arguments that are no flags.

    Exit code 0: done. 1: failed, with one line on stderr that names the remedy (`--debug` shows
    the traceback instead). 2: wrong flags. 130: interrupted, by Ctrl-C as a rule.
    """
    flags.DEFINE_bool("debug", False, "Show the traceback of an error instead of one line.")

    def parse(argv: Sequence[str]) -> Sequence[str]:
        # Asked for help, a required flag must not be missed first.
        if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & set(argv[1:]):
            app.usage(writeto_stdout=True)
            sys.exit(0)
        try:
            rest = flags.FLAGS(argv)
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
            # ml_collections raises all of these for a bad key or value of --config.KEY.
            # An error inside a config file brings its traceback, whose last line says it all.
            while error.args and isinstance(error.args[0], Exception):
                error = error.args[0]  # its AttributeError holds the KeyError that tells
            text = str(error.args[0] if error.args else error).strip()
            said = text.splitlines()[-1] if "Traceback" in text else " ".join(text.split())
            print(f"error: {said} (see --help)", file=sys.stderr)
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
            # Orbax logs its whole story, failures with a traceback; they reach us as exceptions.
            logging.set_verbosity(logging.FATAL)
        return guard(main, argv, flags.FLAGS.debug)

    app.run(guarded, flags_parser=parse)


def guard(main: Callable[[Sequence[str]], int | None], argv: Sequence[str], debug: bool) -> int:
    """The exit code of `main(argv)`: what is no fault of ours ends in one line."""
    try:
        return main(argv) or 0
    except (*USER_ERRORS, *paths.outages()) as error:
        if debug:
            raise
        return fail(error)
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130
